#!/bin/bash
# Four machines at once: raw, qcow2, AHCI and O_DIRECT disks, an image shared read-only, networks; checksums of a copied tree.
cd "$(dirname "$0")/../.." || exit 1
. tests/guest/lib.sh
kernel=$(tools/kernel.sh generic) && guest_image several || exit 1
work=$(mktemp -d "$guest_work/several.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
timeout -k 5 900 python3 tests/guest/several.py "$kernel" "$guest_initrd" "$work"
