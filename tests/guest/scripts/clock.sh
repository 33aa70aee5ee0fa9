# Reads the clocks before and after a minute of idling, and of work on all CPUs. For tests/guest/clock.py.
seconds=$(sed -n 's/.*nacelle\.seconds=\([0-9]*\).*/\1/p' /proc/cmdline)
clocks() {
    read -r up _ </proc/uptime
    echo "@T $up $(adjtimex | awk '/time.tv_sec/ { s = $NF } /time.tv_usec/ { u = $NF } END { printf "%d.%06d", s, u }')"
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
