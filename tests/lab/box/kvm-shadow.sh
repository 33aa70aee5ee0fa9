#!/bin/bash
# The KVM engine where the CPU has no nested paging (kvm_amd.npt=0): KVM keeps shadow page tables, all else is the same.
# prepare: . tests/guest/lib.sh && tools/kernel.sh cloud && guest_image boot && tools/initramfs.sh -t tests/engine/debian-guest.sh "${NACELLE_BUILD:-build}/engine-debian.cpio"
# lab: --npt 0
# limit: 700
paging=kvm-shadow
# shellcheck disable=SC1091
. tests/lab/kvm.sh

if [ "$(cat /sys/module/kvm_amd/parameters/npt)" = N ]; then pass "npt is off"; else fail "npt is off" "it is on"; fi
kernels hello far_transfer hostile_wrap irq_routes ist lock_smp paging_ad rep_strings smc xmc timer || failed=1
boot 1
boot 2
engines "soft kvm" || failed=1
exit $failed
