#!/bin/bash
# The full Debian image boots to a login, and its disks keep what they are given.
cd "$(dirname "$0")/../.." || exit 1
directory=$(tools/image.sh) || exit 1
work=$(mktemp -d "${NACELLE_BUILD:-build}/disks.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
timeout -k 5 900 python3 tests/guest/disks.py "$directory" "$work"
status=$?
# Every kind of limit takes 10 s to measure.
[ -z "${NACELLE_LONG:-}" ] || timeout -k 5 1200 bench/io_limits.sh --check || status=1
exit $status
