#!/bin/bash
# tests/fuzz/run.sh [--endless]: the device fuzzers, bounded (always the same cases), or until one of them finds something.
set -u
cd "$(dirname "$0")/../.."
build=${NACELLE_BUILD:-build}
out=$build/logs
mkdir -p "$out"
status=0
if [ "${1:-}" = --endless ]; then
    for ((round = $(date +%s); ; round++)); do
        for source in tests/fuzz/fuzz_*.c; do
            "$build/fuzz/$(basename "$source" .c)" --seed $((round * 1000000 + RANDOM)) --cases 1000000000 --seconds 60 || exit 1
        done
    done
fi
for source in tests/fuzz/fuzz_*.c; do
    name=$(basename "$source" .c)
    cases=$(sed -n 's/^.* cases in make test: \([0-9]*\).*/\1/p' "$source")
    if timeout -k 5 200 "$build/fuzz/$name" --seed 1 --cases "${cases:-1000}" >"$out/$name.log" 2>&1; then
        echo "PASS fuzz/${name#fuzz_}"
    else
        tail -40 "$out/$name.log" | sed 's/^/     | /'
        echo "FAIL fuzz/${name#fuzz_}: see $out/$name.log"
        status=1
    fi
done
exit $status
