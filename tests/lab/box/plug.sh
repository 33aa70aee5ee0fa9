#!/bin/bash
# Disks plugged in and out of a guest on the KVM engine.
# prepare: . tests/guest/lib.sh && tools/kernel.sh cloud && guest_image plug
# limit: 400
exec tests/guest/plug.sh kvm
