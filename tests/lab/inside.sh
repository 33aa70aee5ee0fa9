#!/bin/bash
# tests/lab/inside.sh NAME:SECONDS…: runs scripts of tests/lab/box/ one after the other; in the box.
failed=0
# What the tests boot may be a link to a place that the box does not have (/run, /var/tmp), or that came after its start.
guests=${NACELLE_GUEST_CACHE:-build/guest}
if [ ! -r "$guests/vmlinuz-generic" ]; then
    echo "FAIL lab: the box does not see $guests$([ ! -L "$guests" ] || echo " (a link to $(readlink "$guests"))"); have it in the checkout"
    exit 1
fi
for entry in "$@"; do
    name=${entry%:*} limit=${entry##*:} started=$SECONDS
    log=/run/lab-test-$name.log
    echo "-- lab/$name, for at most $limit s"
    timeout -k 5 "$limit" "tests/lab/box/$name.sh" </dev/null 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    case $status in
    0) grep -qE '^(PASS|FAIL|SKIP) ' "$log" || echo "PASS lab/$name ($((SECONDS - started)) s)" ;;
    77) echo "SKIP lab/$name: $(tail -1 "$log")" ;;
    124 | 137) echo "FAIL lab/$name: no end after $limit s" ;;
    *) grep -q '^FAIL ' "$log" || echo "FAIL lab/$name (exit status $status)" ;;
    esac
    [ "$status" = 0 ] || [ "$status" = 77 ] || failed=1
    [ -z "${NACELLE_LAB_DONE:-}" ] || echo "$name $status" >>"$NACELLE_LAB_DONE"
    # What a script left running must not disturb the next.
    busybox killall -q -KILL nacelle qemu-system-x86_64
done
exit $failed
