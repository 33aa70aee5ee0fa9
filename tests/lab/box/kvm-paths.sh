#!/bin/bash
# What a 4 KiB request costs by each way on the KVM engine, from the VMM's counters: notifications of virtio devices are no exits there.
# prepare: . tests/guest/lib.sh && tools/kernel.sh generic && guest_image paths
# limit: 240
# long
NACELLE_BUILD=/run PYTHONDONTWRITEBYTECODE=1 timeout -k 5 230 python3 bench/io_paths.py --kernel "$(tools/kernel.sh generic)" --initrd build/guest/test-paths.cpio --engine kvm --check --count 64 \
    --append "noxsave mitigations=off tsc=reliable"
