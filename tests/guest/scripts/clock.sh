# Reads the clocks before and after a minute of idling, and of work on all CPUs. For tests/guest/clock.py.
seconds=$(sed -n 's/.*nacelle\.seconds=\([0-9]*\).*/\1/p' /proc/cmdline)
# One reading may be late on its way out; of twenty the quickest is taken.
clocks() {
    n=0
    while [ $n -lt 20 ]; do
        read -r up _ </proc/uptime
        echo "@M $up"
        adjtimex | awk '/time.tv_sec/ { s = $NF } /time.tv_usec/ { u = $NF } END { printf "@W %d.%06d\n", s, u }'
        n=$((n + 1))
    done
    echo "@T"
}
sleep 3 # let boot's last work end
clocks
sleep "$seconds"
clocks
i=0
while [ $i -lt "$(nproc)" ]; do
    (while :; do seq 1 2000 | sort -n | md5sum; done) >/dev/null &
    i=$((i + 1))
done
clocks
sleep "$seconds"
clocks
kill $(jobs -p) 2>/dev/null
exit 0
