#!/bin/bash
# Disks and network cards on the KVM engine: Debian's generic kernel with a raw file by virtio and by AHCI, and user networks by virtio and by e1000. Beside it
# one that has its PCI interrupts by wires to the 8259s (with NACELLE_LONG all of tests/guest/pci.sh).
# prepare: . tests/guest/lib.sh && tools/kernel.sh generic && guest_image io && guest_image pci && guest_image irq
# limit: 240
export NACELLE_ENGINE=kvm NACELLE_APPEND="noxsave mitigations=off tsc=reliable"
# shellcheck disable=SC1091
. tests/lab/again.sh
failed=0
wires=noapic
[ -z "${NACELLE_LONG:-}" ] || wires=
# shellcheck disable=SC2086 # nothing, when it is all
again tests/guest/pci.sh $wires &
again timeout -k 5 $((180 * ${NACELLE_SLOWER:-1})) python3 tests/guest/io.py "$(tools/kernel.sh generic)" build/guest/test-io.cpio || failed=1
wait $! || failed=1
exit $failed
