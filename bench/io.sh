#!/bin/bash
# bench/io.sh [--quick] [--only TEXT] [--machines LIST] [--cpus N]
# Disk and network speed, and boot to login, of the full Debian image: Nacelle against QEMU's TCG, each with paravirtual and with emulated
# devices; same guest, same image, same host, one run, one table.
#   NACELLE=build/nacelle   the program under test
#   BENCH=quick             as --quick
#   BENCH_OUT=build/bench   where disks (3 GiB, removed at the end) and results.json go
set -euo pipefail
cd "$(dirname "$0")/.."
out=${BENCH_OUT:-build/bench}/io
tools/setup.sh build fetch image peer test
options=()
[ "${BENCH:-}" != quick ] || options+=(--quick)
mkdir -p "$out"
[ -z "${BLOCK_BENCH:-}" ] || "$BLOCK_BENCH" "$out" 0.5
export NACELLE=${NACELLE:-build/nacelle}
PYTHONDONTWRITEBYTECODE=1 exec python3 bench/io.py --out "$out" "${options[@]}" "$@"
