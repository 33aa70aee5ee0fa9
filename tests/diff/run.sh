#!/bin/bash
# tests/diff/run.sh [--endless]: the differential fuzzer, bounded (always the same cases, about 80 s), or until it finds something.
# Differences are printed with their replay file, which lies in $NACELLE_BUILD/logs.
set -u
cd "$(dirname "$0")/../.."
build=${NACELLE_BUILD:-build}
fuzz=$build/difffuzz
out=$build/logs
mkdir -p "$out"
if [ "${1:-}" = --endless ]; then
    # Rounds of five minutes, each with seeds of its own; the mode changes so that all of it is reached.
    for ((round = $(date +%s); ; round++)); do
        for mode in 64 64 64 32 16; do
            echo "== mode $mode, seed $round$mode"
            "$fuzz" --mode $mode --seed "$round$mode$RANDOM" --seconds 300 --out "$out" || exit 1
        done
    done
fi
status=0
check() {
    local name=$1
    shift
    if timeout -k 5 200 "$fuzz" --quiet --out "$out" "$@"; then
        echo "PASS diff/$name"
    else
        echo "FAIL diff/$name"
        status=1
    fi
}
timeout -k 5 100 "$fuzz" --self-test --seed 7 --cases 4000 | grep -E '^(PASS|FAIL)' || { echo "FAIL diff/self-test"; status=1; }
for cases in tests/diff/regressions-*.case; do
    name=$(basename "$cases" .case)
    if timeout -k 5 60 "$fuzz" --replay "$cases" >"$out/$name.log"; then
        echo "PASS diff/$name"
    else
        echo "FAIL diff/$name: see $out/$name.log"
        status=1
    fi
done
check instructions --singles --seed 11 --cases 200000
check blocks --blocks --seed 12 --cases 100000
check compatibility-mode --mode 32 --seed 13 --cases 100000
check sixteen-bit --mode 16 --seed 14 --cases 40000
exit $status
