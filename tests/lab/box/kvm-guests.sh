#!/bin/bash
# Guest tests that run on soft run on the KVM engine with the same results: Debian's programs write what they write under QEMU on the host.
# prepare: tests/lab/guests.sh prepare
# limit: 300
export NACELLE_ENGINE=kvm NACELLE_APPEND="noxsave mitigations=off tsc=reliable"
exec tests/lab/guests.sh run
