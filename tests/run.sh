#!/bin/bash
# tests/run.sh [--long] [UNIT PROGRAM]...: runs every test (or with NACELLE_ONLY=unit, cli, kernels, engine, diff, fuzz, tsan, lab, guest: that group).
#
# A test is a unit test program, or a script in tests/cli/ and tests/guest/, or the run.sh of
# tests/kernels/, tests/engine/, tests/diff/, tests/fuzz/, tests/tsan/ and tests/lab/. It passes when it exits with 0 and is skipped when it exits with 77. A script that prints lines
# "PASS name", "FAIL name", "SKIP name" is counted by these lines instead. Every test is bounded in time.
# The last line is the sum: "N passed, N failed", and ", N skipped" where there were any.
set -uo pipefail
cd "$(dirname "$0")/.."
NACELLE_LONG=
[ "${1:-}" != --long ] || { NACELLE_LONG=1 && shift; }
export NACELLE_LONG
build=${NACELLE_BUILD:-build}
logs=$build/logs
mkdir -p "$logs"
passed=0 failed=0 skipped=0
child=
trap '[ -z "$child" ] || kill $child; exit 130' INT TERM

# run NAME SECONDS COMMAND...
run() {
    local name=$1 limit=$2 log status started=$SECONDS counted
    shift 2
    log=$logs/${name//\//_}.log
    timeout -k 10 "$limit" "$@" >"$log" 2>&1 </dev/null &
    child=$!
    wait $child
    status=$?
    child=
    counted=$(grep -cE '^(PASS|FAIL|SKIP) ' "$log")
    if [ "$counted" -gt 0 ]; then
        # Indented lines under a FAIL say why; the log may be on a machine that is gone by now.
        awk '/^(PASS|FAIL|SKIP) / { show = /^FAIL/; print; next } show && /^ / && ++n <= 60' "$log"
        passed=$((passed + $(grep -c '^PASS ' "$log")))
        failed=$((failed + $(grep -c '^FAIL ' "$log")))
        skipped=$((skipped + $(grep -c '^SKIP ' "$log")))
        # Failing without saying which is failing, too.
        if [ $status != 0 ] && ! grep -q '^FAIL ' "$log"; then
            echo "FAIL $name (exit status $status)"
            failed=$((failed + 1))
        fi
        ! grep -q '^FAIL ' "$log" || echo "     see $log"
    elif [ $status = 0 ]; then
        echo "PASS $name ($((SECONDS - started)) s)"
        passed=$((passed + 1))
    elif [ $status = 77 ]; then
        echo "SKIP $name: $(tail -1 "$log")"
        skipped=$((skipped + 1))
    else
        [ $status != 124 ] || echo "     no end after $limit s"
        echo "FAIL $name (exit status $status), the end of $log:"
        tail -15 "$log" | sed 's/^/     | /'
        failed=$((failed + 1))
    fi
}

wanted() { [ -z "${NACELLE_ONLY:-}" ] || [ "$NACELLE_ONLY" = "$1" ]; }

if wanted unit; then
    for program in "$@"; do
        run "unit/$(basename "$program")" 300 "$program"
    done
fi
if wanted cli; then
    for script in tests/cli/*.sh; do
        [ ! -x "$script" ] || run "cli/$(basename "$script" .sh)" 300 "$script"
    done
fi
for directory in kernels engine diff fuzz tsan lab; do
    if wanted $directory && [ -x tests/$directory/run.sh ]; then run $directory $((NACELLE_LONG ? 14400 : 2400)) tests/$directory/run.sh; fi
done
if wanted guest; then
    for script in tests/guest/*.sh; do
        case $script in */lib.sh | */build32.sh | */build-static.sh) continue ;; esac
        [ ! -x "$script" ] || run "guest/$(basename "$script" .sh)" 3600 "$script"
    done
fi

sum="$passed passed, $failed failed"
[ $skipped = 0 ] || sum+=", $skipped skipped"
echo "$sum"
[ $failed = 0 ] && [ $passed -gt 0 ]
