#!/bin/bash
# Disks plugged in and out of a guest on the KVM engine; beside it the control socket's test, which mostly waits.
# prepare: . tests/guest/lib.sh && tools/kernel.sh cloud && guest_image plug && guest_image control
# limit: 400
export NACELLE_ENGINE=kvm NACELLE_APPEND="noxsave mitigations=off tsc=reliable"
# shellcheck disable=SC1091
. tests/lab/again.sh
failed=0
mkdir -p /run/control
again timeout -k 5 $((300 * ${NACELLE_SLOWER:-1})) python3 tests/guest/control.py "$(tools/kernel.sh cloud)" build/guest/test-control.cpio /run/control &
again tests/guest/plug.sh || failed=1
wait $! || failed=1
exit $failed
