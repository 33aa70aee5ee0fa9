#!/bin/bash
# A full Debian guest gets its address by DHCP and is reached by ssh through a forwarded port.
cd "$(dirname "$0")/../.." || exit 1
directory=$(tools/image.sh) || exit 1
work=$(mktemp -d "${NACELLE_BUILD:-build}/ssh.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
timeout -k 5 600 python3 tests/guest/ssh.py "$directory" "$work"
