# stress-ng with --verify: each class checks its own results.
# packages: stress-ng
# memory: 1G
# cpus: 2
# limit: 600
# compare: no
cd /tmp || exit 1
run() {
    stress-ng --verify --quiet --timeout 90 "$@" >/tmp/log 2>&1
    status=$?
    echo "$*: $status"
    [ $status = 0 ] || { tail -5 /tmp/log; failed=1; }
}
run --cpu 2 --cpu-ops 160
run --vm 1 --vm-bytes 32M --vm-ops 2000
run --matrix 1 --matrix-size 64 --matrix-ops 60
run --fork 2 --fork-ops 200
run --switch 2 --switch-ops 4000
run --signal 1 --signal-ops 4000
run --vecmath 1 --vecmath-ops 20
[ -z "$failed" ]
