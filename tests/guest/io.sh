#!/bin/bash
# A disk and a network card of each kind in one guest; the lab has the same guest on KVM (tests/lab/box/kvm-io.sh).
cd "$(dirname "$0")/../.." || exit 1
# shellcheck disable=SC1091
. tests/guest/lib.sh
[ "$guest_runner" = nacelle ] || { echo "the guest needs --disk" && exit 77; }
kernel=$(tools/kernel.sh generic) && guest_image io || exit 1
exec timeout -k 5 400 python3 tests/guest/io.py "$kernel" "$guest_initrd"
