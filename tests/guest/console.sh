#!/bin/bash
# The serial console on a terminal and through pipes, and the ways a run ends.
cd "$(dirname "$0")/../.." || exit 1
. tests/guest/lib.sh
kernel=$(tools/kernel.sh cloud) && guest_image busybox || exit 1
exec timeout 500 python3 tests/guest/console.py "$kernel" "$guest_initrd"
