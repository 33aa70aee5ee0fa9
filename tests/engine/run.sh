#!/bin/bash
# Guests are moved from engine to engine while they run (move.c): a kernel of ours, and Debian's; and their time-stamp counters after pauses and resets (tsc.py). Usage: run.sh [ENGINES...], each a list like "soft kvm"; without any,
# what runs on every host.
cd "$(dirname "$0")/../.." || exit 2
build=${NACELLE_BUILD:-${BUILD:-build}}
log=$build/move.log
failed=0
# On a machine with other things to do the lab's box takes so many times longer (tests/lab/run.sh).
slower=${NACELLE_SLOWER:-1}
[ $# -gt 0 ] || set -- "soft soft"

# Debian's kernel with processes at work. Its initramfs is made on the host; the lab has no network to do so.
image=$build/engine-debian.cpio
[ -n "${NACELLE_LAB:-}" ] || tools/initramfs.sh -t tests/engine/debian-guest.sh "$image" || exit 1
kernel=$(tools/kernel.sh cloud) || exit 1
debian() {
    local more="" status
    # The lab's CPU lacks what soft offers: PCID, INVPCID, UMIP, RDPID, SERIALIZE. (See tests/lab/kvm.sh for the rest.)
    [ -z "${NACELLE_LAB:-}" ] ||
        more="noxsave mitigations=off tsc=reliable clearcpuid=145,298,514,534,590"
    # In the lab a translator runs on an emulator that translates: minutes until the guest is up.
    [ -z "${NACELLE_LAB:-}" ] || [ -n "${NACELLE_LONG:-}" ] || return 0
    case $1 in "soft "*) ;; *) return ;; esac
    # shellcheck disable=SC2086 # words on purpose
    timeout $((900 * slower)) "$build/tests/engine/move" -c 2 -m 256 -i "$image" -a "console=ttyS0 loglevel=1 panic=-1 $more" "$kernel" $1 \
        >"$log" 2>&1 </dev/null
    status=$?
    if [ $status = 0 ] && grep -q 'went on' "$log" && grep -q '8 moves' "$log" && ! grep -q '@@KERNEL\|move [0-9]*: [^sk]\|wrong' "$log"; then
        echo "PASS engine/move Debian's kernel: $1"
    else
        echo "FAIL engine/move Debian's kernel: $1 (status $status)"
        tail -30 "$log" | tr -d '\r' | sed 's/^/    /'
        failed=$((failed + 1))
    fi
}
for engines in "$@"; do
    # A guest that starts under KVM in the lab cannot use AVX: QEMU's emulated CPU does not tell KVM of XSETBV.
    more=
    [ -z "${NACELLE_LAB:-}" ] || [ "${engines%% *}" != kvm ] || more=noavx
    for mode in xapic x2apic; do
        name="engine/move: $engines, $mode"
        # shellcheck disable=SC2086 # words on purpose
        timeout $((60 * slower)) "$build/tests/engine/move" -c 2 -a "cpus=2 wait $mode $more" "$build/kernels/moved.elf" $engines \
            >"$log" 2>&1 </dev/null
        status=$?
        if [ $status = 1 ] && grep -q 'all checks passed' "$log" && grep -q '6 moves' "$log"; then
            echo "PASS $name"
        else
            echo "FAIL $name (status $status)"
            tail -20 "$log" | sed 's/^/    /'
            failed=$((failed + 1))
        fi
    done
    debian "$engines"
done
# Time-stamp counters: soft's outside of the lab.
case " $* " in *kvm*) engine=kvm ;; *) engine=soft ;; esac
NACELLE=${NACELLE:-$build/nacelle} timeout $((120 * slower)) python3 tests/engine/tsc.py $engine </dev/null || failed=$((failed + 1))
echo "engines: $failed failed"
[ $failed = 0 ]
