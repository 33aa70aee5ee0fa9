#!/bin/bash
# A really full host file system under a guest's disks (a tmpfs, and ext4 on a loop device), and a file that is cut off: the guest gets I/O
# errors and nothing else, and goes on when there is room again.
cd "$(dirname "$0")/../.." || exit 1
. tests/guest/lib.sh
kernel=$(tools/kernel.sh generic) && guest_image full || exit 1
work=$(mktemp -d "$guest_work/full.XXXXXX") || exit 1
loop=
cleanup() {
    umount "$work/mount" 2>/dev/null
    [ -z "$loop" ] || losetup -d "$loop"
    rm -rf "$work"
}
if [ -z "${NACELLE_IN_NAMESPACE:-}" ]; then
    rm -rf "$work"
    # Mounts of its own, which end with it.
    unshare -m true 2>/dev/null || { echo "no mount namespace can be made here" && exit 77; }
    NACELLE_IN_NAMESPACE=1 exec unshare -m "$0" "$@"
fi
trap cleanup EXIT
failed=0
mkdir "$work/mount"
export FULL_WORK=$work
if mount -t tmpfs -o size=3m full "$work/mount" 2>/dev/null; then
    FULL_LABEL=tmpfs- timeout -k 5 500 python3 tests/guest/full.py "$kernel" "$guest_initrd" "$work/mount" || failed=1
    umount "$work/mount"
else
    echo "SKIP full/tmpfs: no file system can be mounted here"
fi
truncate -s 6M "$work/device" && mkfs.ext4 -q -O ^has_journal "$work/device"
if [ -z "${NACELLE_LONG:-}" ]; then
    :
elif loop=$(losetup -f --show "$work/device" 2>/dev/null) && mount "$loop" "$work/mount" 2>/dev/null; then
    FULL_LABEL=ext4- timeout -k 5 500 python3 tests/guest/full.py "$kernel" "$guest_initrd" "$work/mount" || failed=1
else
    echo "SKIP full/ext4: no loop device can be used here"
fi
exit $failed
