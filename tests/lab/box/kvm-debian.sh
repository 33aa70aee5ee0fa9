#!/bin/bash
# The full Debian installation on the KVM engine: boots from its disk image (qcow2 over it) to a login, has an address, is reached by ssh; data stay the same.
# lab: --memory 3G
# prepare: tools/setup.sh image test && tools/image.sh
# limit: 1500
# long
work=$(mktemp -d /run/debian.XXXXXX)
PYTHONDONTWRITEBYTECODE=1 NACELLE_BOOT_SECONDS=900 timeout -k 5 1450 python3 tests/lab/debian.py "$(tools/image.sh)" "$work"
