#!/bin/bash
# nacelle ctl and nacelle ps with real guests: pause, limits, disks that grow and come and go, links, reset, power button.
cd "$(dirname "$0")/../.." || exit 1
. tests/guest/lib.sh
kernel=$(tools/kernel.sh cloud) && guest_image control || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
timeout -k 5 600 python3 tests/guest/control.py "$kernel" "${guest_initrd:?}" "$work"
