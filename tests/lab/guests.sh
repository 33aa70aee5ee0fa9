#!/bin/bash
# guests.sh prepare|run: which of the guest tests run in the lab, too (box/kvm-guests.sh). With NACELLE_LONG all of them, which takes half an hour.
cd "$(dirname "$0")/../.." || exit 1
# shellcheck disable=SC1091
. tests/guest/lib.sh
names=(busybox program32 sqlite)
[ -z "${NACELLE_LONG:-}" ] || names+=(perl luajit python openssl xz git gcc node stress)
failed=0
case $1 in
prepare)
    for name in "${names[@]}"; do guest_prepare "$name" || exit; done
    [ -z "${NACELLE_LONG:-}" ] || guest_image clock
    ;;
run)
    for name in "${names[@]}"; do guest_case "$name" || failed=1; done
    if [ -n "${NACELLE_LONG:-}" ]; then
        kernel=$(tools/kernel.sh cloud)
        timeout 900 python3 tests/guest/console.py "$kernel" build/guest/test-busybox.cpio || failed=1
        NACELLE_CLOCK_SECONDS=20 timeout 500 python3 tests/guest/clock.py "$kernel" build/guest/test-clock.cpio || failed=1
    fi
    ;;
esac
exit $failed
