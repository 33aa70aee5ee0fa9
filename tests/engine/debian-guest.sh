# Runs in the guest (as /test.sh of an initramfs): works, asks to be moved while it does, and checks that nothing went wrong.
moves=8
dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null
want=$(sha256sum </tmp/data)
# Busy on all CPUs meanwhile. Their files exist before they do: the first move may come before a worker's first round.
touch /tmp/worked.1 /tmp/worked.2
worker() {
    while [ ! -e /tmp/stop ]; do
        [ "$(sha256sum </tmp/data)" = "$want" ] || echo "worker $1: wrong sum"
        echo . >>/tmp/worked.$1
    done
}
worker 1 &
worker 2 &
# Without leading zeros: to the shell 0.97 s would be 097, no number.
uptime_cs() { cut -d' ' -f1 /proc/uptime | sed 's/\.//;s/^0*//'; }
n=0
while [ $n -lt $moves ]; do
    n=$((n + 1))
    before=$(uptime_cs) done1=$(wc -l </tmp/worked.1)
    echo "@@MOVE" >/dev/console
    sleep 1
    after=$(uptime_cs)
    [ $((after - before)) -ge 99 ] && [ $((after - before)) -lt 6000 ] || echo "move $n: a second took $((after - before)) cs"
    i=0
    while [ "$(wc -l </tmp/worked.1)" = "$done1" ] && [ $i -lt 30 ]; do sleep 1 && i=$((i + 1)); done
    [ $i -lt 30 ] || echo "move $n: the other process does not go on"
done
touch /tmp/stop
wait
echo "went on"
