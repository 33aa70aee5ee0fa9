#!/bin/bash
# Disks plugged in and out of a guest on the KVM engine.
# prepare: . tests/guest/lib.sh && tools/kernel.sh cloud && guest_image plug
# limit: 400
export NACELLE_ENGINE=kvm NACELLE_APPEND="noxsave mitigations=off tsc=reliable"
exec tests/guest/plug.sh
