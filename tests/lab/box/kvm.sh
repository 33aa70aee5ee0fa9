#!/bin/bash
# The KVM engine with nested paging: guest kernels, Debian's kernel, guests that move between engines, --engine auto.
# (What goes wrong: kvm-bad.sh.)
# prepare: . tests/guest/lib.sh && tools/kernel.sh cloud && guest_image boot && tools/initramfs.sh -t tests/engine/debian-guest.sh "${NACELLE_BUILD:-build}/engine-debian.cpio"
# limit: 900
paging=kvm
# shellcheck disable=SC1091
. tests/lab/kvm.sh

# All but those that tests/lab/KVM-DIFFERENCES.md names, in two rows side by side.
kernels alignment apic avx compat32 cpuid_features debug_regs double_fault exceptions far_transfer fpu_exceptions fpu_gates fsgsbase \
    hostile_cache hostile_fetch hostile_remap inner_loops io_bitmap irq_routes irq_shadow kernel_ops large_walk legacy32 lock_smp \
    moved page_cross smc tsc_agree endless_loop &
row=$!
kernels hello hostile_tables hostile_wrap hostile_xmc ist mmio_operands pagefault paging_ad paging_large paging_rights \
    pcid_code random_code real_mode rep_strings segment_faults single_step syscall sysenter timer tlb_flush triple_fault triple_fault_stack tsc \
    xmc xsave endless_faults || failed=1
wait $row || failed=1
boot 1
boot 2
# The box gets no CPU now and then on a busy machine, and then KVM looks slow.
for ((i = 0; i < 10; i++)); do
    "$nacelle" run --engine auto --debug-exit 0xf4 -m 16M -k "$build/kernels/hello.elf" </dev/null >/run/out 2>/run/err
    [ -s /run/err ] || break
done
if [ -s /run/err ]; then fail "auto takes kvm" "$(cat /run/err)"; else pass "auto takes kvm, without a word"; fi

engines "soft kvm" "kvm soft" "kvm kvm" || failed=1

if "$build/tests/engine/dirty" kvm >/run/dirty.log; then pass "dirty log"; else fail "dirty log" "$(tail -1 /run/dirty.log)"; fi

exit $failed
