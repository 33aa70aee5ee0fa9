#!/bin/bash
# bench/run.sh [--only REGEX] [--quick] [--columns native,ours,tcg] [--json FILE] [--list]
# Speed of Nacelle against QEMU's TCG and the host itself: same kernel, same initramfs, same programs; one run, one table.
#   NACELLE=build/nacelle   the program under test
#   BENCH=quick             as --quick: a sample of the rows in a few minutes
#   BENCH_OUT=build/bench   where programs, console logs and results.json go
set -euo pipefail
cd "$(dirname "$0")/.."
out=${BENCH_OUT:-build/bench}
tools/setup.sh build fetch peer test
bench/build.sh "$out"
options=()
[ "${BENCH:-}" != quick ] || options+=(--quick)
PYTHONDONTWRITEBYTECODE=1 exec python3 bench/bench.py --out "$out" --nacelle "${NACELLE:-build/nacelle}" "${options[@]}" "$@"
