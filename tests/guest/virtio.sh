#!/bin/bash
# Debian's cloud kernel drives virtio disks, console, entropy and sockets.
cd "$(dirname "$0")/../.." || exit 1
. tests/guest/lib.sh
kernel=$(tools/kernel.sh cloud) && guest_image virtio || exit 1
failed=0
case_() { timeout -k 5 300 python3 tests/guest/virtio.py "$kernel" "$guest_initrd" "$@" || failed=1; }
case_ soft 2
case_ split 2
exit $failed
