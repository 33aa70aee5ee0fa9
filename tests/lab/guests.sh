#!/bin/bash
# guests.sh prepare|run: which of the guest tests run in the lab, too (box/kvm-guests.sh), in two rows side by side: a guest has one or two CPUs, so has the box.
# With NACELLE_LONG all of them, which takes half an hour.
cd "$(dirname "$0")/../.." || exit 1
# shellcheck disable=SC1091
. tests/guest/lib.sh
# shellcheck disable=SC1091
. tests/lab/again.sh
names=(busybox program32 sqlite)
[ -z "${NACELLE_LONG:-}" ] || names+=(perl luajit python openssl xz git gcc node)
slower=${NACELLE_SLOWER:-1}

programs() {
    local name status=0
    for name in "${names[@]}"; do again guest_case "$name" || status=1; done
    [ -z "${NACELLE_LONG:-}" ] || timeout $((900 * slower)) python3 tests/guest/console.py "$kernel" build/guest/test-busybox.cpio || status=1
    return $status
}
clock() {
    NACELLE_CLOCK_SECONDS=$([ -n "${NACELLE_LONG:-}" ] && echo 60 || echo 5) timeout $((300 * slower)) \
        python3 tests/guest/clock.py "$kernel" build/guest/test-clock.cpio
}
# The guest's clocks over seconds, or with NACELLE_LONG over minutes, with stress-ng behind them.
machine() {
    local status=0
    again clock || status=1
    [ -z "${NACELLE_LONG:-}" ] || guest_case stress || status=1
    return $status
}

case $1 in
prepare)
    [ -z "${NACELLE_LONG:-}" ] || names+=(stress)
    for name in "${names[@]}"; do guest_prepare "$name" || exit; done
    guest_image clock
    ;;
run)
    failed=0 kernel=$(tools/kernel.sh cloud) || exit 1
    programs &
    machine || failed=1
    wait $! || failed=1
    exit $failed
    ;;
esac
