#!/bin/bash
# The network: both NICs on user networks and on taps; limits.
# tests/guest/net.sh [CASE...] runs only these.
cd "$(dirname "$0")/../.." || exit 1
. tests/guest/lib.sh
kernel=$(tools/kernel.sh generic) && guest_image net || exit 1
cases=("$@")
[ $# -gt 0 ] || cases=(user-virtio user-split user-e1000 tap-virtio limits)
[ $# -gt 0 ] || [ -z "${NACELLE_LONG:-}" ] || cases+=(tap-e1000 user-queues)
exec timeout 600 python3 tests/guest/net.py "$kernel" "$guest_initrd" "${cases[@]}"
