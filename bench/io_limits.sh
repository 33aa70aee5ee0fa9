#!/bin/bash
# bench/io_limits.sh [--check]
# Limits of disks and network cards: what is set, and what fio and iperf3 get inside the full Debian guest over 10 s; one row for each kind.
# More than 5 % off fails. About four minutes.
#   NACELLE=build/nacelle   the program under test
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh build fetch image test
PYTHONDONTWRITEBYTECODE=1 exec python3 bench/io_limits.py "$@"
