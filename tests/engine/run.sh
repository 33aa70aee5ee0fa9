#!/bin/bash
# A guest kernel is moved from engine to engine while it runs (move.c). Usage: run.sh [ENGINES...], each a list like "soft kvm"; without any,
# what runs on every host.
cd "$(dirname "$0")/../.." || exit 2
build=${NACELLE_BUILD:-${BUILD:-build}}
log=$build/move.log
failed=0
[ $# -gt 0 ] || set -- "soft soft"
for engines in "$@"; do
    # A guest that starts under KVM in the lab cannot use AVX: QEMU's emulated CPU does not tell KVM of XSETBV.
    more=
    [ -z "${NACELLE_LAB:-}" ] || [ "${engines%% *}" != kvm ] || more=noavx
    for mode in xapic x2apic; do
        name="engine/move: $engines, $mode"
        # shellcheck disable=SC2086 # words on purpose
        timeout 60 "$build/tests/engine/move" -c 2 -a "cpus=2 wait $mode $more" "$build/kernels/moved.elf" $engines \
            >"$log" 2>&1 </dev/null
        status=$?
        if [ $status = 1 ] && grep -q 'all checks passed' "$log" && grep -q '6 moves' "$log"; then
            echo "PASS $name"
        else
            echo "FAIL $name (status $status)"
            tail -20 "$log" | sed 's/^/    /'
            failed=1
        fi
    done
done
exit $failed
