#!/bin/bash
# The lab's tests: first lab/run itself, then every script of tests/lab/box/ inside a box.
#
# A script's lines near its start say what it needs: "# lab: OPTIONS" (of lab/run) and "# limit: SECONDS" (120). Scripts with the same
# options share one box, one after the other. A script passes by exit status 0 and is skipped by 77, or
# prints its own lines "PASS name", "FAIL name", "SKIP name". "# prepare: COMMAND" is run on this host
# first; "# long" is for make test-long only, where other scripts may do more and take ten times longer. NACELLE_LAB_TESTS="NAME…" takes only these.
cd "$(dirname "$0")/../.." || exit 1
build=${NACELLE_BUILD:-build}
only=" ${NACELLE_LAB_TESTS:-} "
failed=0
# On a machine with other things to do everything takes so many times longer.
slower=$(awk -v cpus="$(nproc)" '{ n = int($1 / cpus + 1); print (n > 8 ? 8 : n) }' /proc/loadavg)
wanted() { [ "$only" = "  " ] || [[ $only == *" $1 "* ]]; }

if wanted self; then tests/lab/self.sh || failed=1; fi

# By options, behind a blank: an array has no empty subscript.
declare -A boxes limits
for script in tests/lab/box/*.sh; do
    name=$(basename "$script" .sh)
    wanted "$name" || continue
    longer=$([ -n "${NACELLE_LONG:-}" ] && echo 10 || echo 1)
    if grep -qx '# long' "$script"; then [ $longer = 10 ] && longer=1 || continue; fi
    options=" $(sed -n '1,12s/^# lab: *//p' "$script" | head -1)"
    limit=$(sed -n '1,12s/^# limit: *//p' "$script" | head -1)
    limit=$((${limit:-120} * slower * longer))
    prepare=$(sed -n '1,12s/^# prepare: *//p' "$script" | head -1)
    if [ -n "$prepare" ] && ! bash -c "$prepare" >"$build/lab-prepare.log" 2>&1; then
        echo "FAIL lab/$name: its preparation failed: $(tail -1 "$build/lab-prepare.log")"
        failed=1
        continue
    fi
    boxes[$options]+=" $name:$limit"
    limits[$options]=$((${limits[$options]:-240} + limit))
done
for options in "${!boxes[@]}"; do
    left=${boxes[$options]}
    # A box that stood still (docs/lab.md) says nothing about us: what it did not get to the end of is done again, twice at most.
    for attempt in 1 2 3; do
        : >"$build/lab-done"
        # shellcheck disable=SC2086 # words on purpose
        lab/run $options --timeout "${limits[$options]}" --env NACELLE --env NACELLE_BUILD="$build" --env NACELLE_LONG --env NACELLE_LAB_GUESTS --env NACELLE_SLOWER="$slower" \
            --env NACELLE_LAB_DONE="$build/lab-done" tests/lab/inside.sh $left
        status=$?
        ! grep -qvE ' (0|77)$' "$build/lab-done" || failed=1
        [ $status = 126 ] && [ $attempt -lt 3 ] || break
        for entry in $left; do ! grep -q "^${entry%:*} " "$build/lab-done" || left=${left/ $entry/}; done
        echo "-- once more:$left"
    done
    if [ $status -ge 124 ]; then
        echo "FAIL lab: the box '${options# }' with${boxes[$options]} (status $status)"
        failed=1
    elif [ $status != 0 ]; then
        failed=1
    fi
done
exit $failed
