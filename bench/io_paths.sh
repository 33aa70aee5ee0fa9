#!/bin/bash
# bench/io_paths.sh [--engine soft|kvm] [--count N] [--check]
# What one 4 KiB request costs on each way through the VMM: exits, notifications, interrupts, copies (docs/io-paths.md). Counts, not times:
# the disks' are the same on any host, the network's nearly.
#   NACELLE=build/nacelle   the program under test
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tests/guest/lib.sh
. tests/guest/lib.sh
tools/setup.sh build fetch test
kernel=$(tools/kernel.sh generic)
guest_image paths
PYTHONDONTWRITEBYTECODE=1 exec python3 bench/io_paths.py --kernel "$kernel" --initrd "${guest_initrd:?}" "$@"
