#!/bin/bash
# The KVM engine with nested paging: guest kernels, Debian's kernel, guests that move between engines, --engine auto, bad cases.
# prepare: . tests/guest/lib.sh && tools/kernel.sh cloud && guest_image boot && tools/initramfs.sh -t tests/engine/debian-guest.sh "${NACELLE_BUILD:-build}/engine-debian.cpio"
# limit: 1200
paging=kvm
# shellcheck disable=SC1091
. tests/lab/kvm.sh

# All but those that tests/lab/KVM-DIFFERENCES.md names, in two rows side by side.
kernels alignment apic avx compat32 cpuid_features debug_regs double_fault exceptions far_transfer fpu_exceptions fpu_gates fsgsbase \
    hostile_cache hostile_fetch hostile_remap inner_loops io_bitmap irq_routes irq_shadow kernel_ops legacy32 lock_smp \
    moved page_cross smc endless_loop >/run/row &
kernels hello hostile_tables hostile_wrap hostile_xmc ist mmio_operands pagefault paging_ad paging_large paging_rights \
    pcid_code random_code real_mode rep_strings segment_faults single_step syscall sysenter timer tlb_flush triple_fault triple_fault_stack tsc \
    xmc xsave endless_faults
wait
cat /run/row
! grep -q '^FAIL' /run/row || failed=1
boot 1
boot 2
# The box gets no CPU now and then on a busy machine, and then KVM looks slow.
for ((i = 0; i < 10; i++)); do
    "$nacelle" run --engine auto --debug-exit 0xf4 -m 16M -k "$build/kernels/hello.elf" </dev/null >/run/out 2>/run/err
    [ -s /run/err ] || break
done
if [ -s /run/err ]; then fail "auto takes kvm" "$(cat /run/err)"; else pass "auto takes kvm, without a word"; fi

while read -r verdict name; do
    if [ "$verdict" = PASS ]; then pass "$name"; else fail "$name" "see above"; fi
done < <(NACELLE_BUILD=$build tests/engine/run.sh "soft kvm" "kvm soft" "kvm kvm" 2>&1 | tee /run/move.log | grep -E '^(PASS|FAIL)')
grep -vE '^(PASS|FAIL)' /run/move.log

if "$build/tests/engine/dirty" kvm >/run/dirty.log; then pass "dirty log"; else fail "dirty log" "$(tail -1 /run/dirty.log)"; fi

# A fall-back says why, in one line; who insists is told what to do.
kernel=$build/kernels/hello.elf
lacking() { # lacking AS NAME PATTERN: --engine auto falls back with a line that says PATTERN, --engine kvm ends with 2 and says so, too
    local as=$1 name=$2 pattern=$3
    "$as" "$nacelle" run --engine auto --debug-exit 0xf4 -m 16M -k "$kernel" </dev/null >/run/out 2>/run/err
    if [ $? = 1 ] && [ "$(wc -l </run/err)" = 1 ] && grep -q "engine soft, since .*$pattern" /run/err; then
        pass "auto: $name"
    else
        fail "auto: $name" "$(cat /run/err)"
    fi
    "$as" "$nacelle" run --engine kvm --debug-exit 0xf4 -m 16M -k "$kernel" </dev/null >/run/out 2>/run/err
    if [ $? = 2 ] && [ "$(wc -l </run/err)" = 1 ] && grep -q "\-\-engine kvm: .*$pattern" /run/err; then
        pass "kvm: $name"
    else
        fail "kvm: $name" "$(cat /run/err)"
    fi
}
nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
run() { "$@"; }
chmod 600 /dev/kvm
lacking nobody "no permission" "no permission to open /dev/kvm; add"
chmod 666 /dev/kvm
mv /dev/kvm /dev/kvm.away
lacking run "no /dev/kvm" "no /dev/kvm; load"
mknod /dev/kvm c 1 3
lacking run "another device" "is no KVM"
rm /dev/kvm
mv /dev/kvm.away /dev/kvm

# More vCPUs than this host's KVM allows is the engine's limit here; memory that cannot be had is a sentence, too.
(ulimit -v 3000000 && "$nacelle" run --engine kvm -m 4G -k "$kernel" </dev/null >/run/out 2>/run/err)
if [ $? = 2 ] && grep -q 'memory' /run/err && [ "$(wc -l </run/err)" = 1 ]; then pass "no memory"; else fail "no memory" "$(cat /run/err)"; fi

# What KVM cannot emulate ends the run with 5, a line and the registers: here, code in a place without memory.
timeout 60 "$nacelle" run --engine kvm --no-reboot --debug-exit 0xf4 -m 64M -k "$build/kernels/hostile_fetch.elf" </dev/null >/run/out 2>/run/err
if [ $? = 5 ] && grep -q 'the kvm engine failed: KVM cannot emulate' /run/err && grep -q '^cr0 ' /run/err; then
    pass "emulation failure"
else
    fail "emulation failure" "$(head -2 /run/err)"
fi
exit $failed
