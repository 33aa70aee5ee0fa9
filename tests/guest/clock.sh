#!/bin/bash
# The guest keeps time, idle and busy; an idle guest is cheap; the VMM is small. Takes two minutes.
cd "$(dirname "$0")/../.." || exit 1
. tests/guest/lib.sh
kernel=$(tools/kernel.sh cloud) && guest_image clock || exit 1
exec timeout 500 python3 tests/guest/clock.py "$kernel" "$guest_initrd"
