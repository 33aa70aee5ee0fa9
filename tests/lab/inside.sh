#!/bin/bash
# tests/lab/inside.sh NAME:SECONDS…: runs scripts of tests/lab/box/ one after the other; in the box.
failed=0
for entry in "$@"; do
    name=${entry%:*} limit=${entry##*:} started=$SECONDS
    log=/run/lab-test-$name.log
    timeout -k 5 "$limit" "tests/lab/box/$name.sh" </dev/null 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    case $status in
    0) grep -qE '^(PASS|FAIL|SKIP) ' "$log" || echo "PASS lab/$name ($((SECONDS - started)) s)" ;;
    77) echo "SKIP lab/$name: $(tail -1 "$log")" ;;
    124 | 137) echo "FAIL lab/$name: no end after $limit s" ;;
    *) grep -q '^FAIL ' "$log" || echo "FAIL lab/$name (exit status $status)" ;;
    esac
    [ "$status" = 0 ] || [ "$status" = 77 ] || failed=1
    # What a script left running must not disturb the next.
    busybox killall -q -KILL nacelle qemu-system-x86_64
done
exit $failed
