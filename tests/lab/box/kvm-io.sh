#!/bin/bash
# Disks and network cards on the KVM engine: Debian's generic kernel with a raw file by virtio and by AHCI, and user networks by virtio and by e1000.
# prepare: . tests/guest/lib.sh && tools/kernel.sh generic && guest_image io
# limit: 240
export NACELLE_ENGINE=kvm NACELLE_APPEND="noxsave mitigations=off tsc=reliable"
exec timeout -k 5 230 python3 tests/guest/io.py "$(tools/kernel.sh generic)" build/guest/test-io.cpio
