# The kernel came up with the CPUs, the memory and the clocks it should have.
# memory: 512M
want=$(sed -n 's/.*nacelle\.cpus=\([0-9]*\).*/\1/p' /proc/cmdline)
is() { [ "$2" = "$3" ] && echo "$1: ok" || echo "$1: $2, not $3"; }

is "CPUs online" "$(nproc)" "$want"
is "CPUs in /proc/cpuinfo" "$(grep -c ^processor /proc/cpuinfo)" "$want"
i=0
while [ $i -lt "$want" ]; do
    taskset -c $i true || echo "CPU $i does not run"
    i=$((i + 1))
done
total=$(sed -n 's/MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)
[ "$total" -gt 460000 ] && [ "$total" -lt 524288 ] && echo "memory: ok" || echo "memory: $total kB of 512 MiB"
for table in APIC DSDT FACP; do
    [ -s /sys/firmware/acpi/tables/$table ] && echo "ACPI $table: ok" || echo "ACPI $table: missing"
done
# Every CPU's own timer interrupts.
ticks() { awk '/^ *LOC:/ { for (i = 2; i < NF && $i ~ /^[0-9]+$/; i++) printf "%s ", $i }' /proc/interrupts; }
before=$(ticks)
i=0
while [ $i -lt "$want" ]; do
    taskset -c $i sh -c 'n=0; while [ $n -lt 30000 ]; do n=$((n + 1)); done' &
    i=$((i + 1))
done
wait
echo "$before/$(ticks)" | awk -F/ -v want="$want" '{
    n = split($1, a, " "); split($2, b, " "); moved = 0
    for (i = 1; i <= n; i++) if (b[i] > a[i]) moved++
    print "timer interrupts: " (moved == want ? "ok" : "on " moved " of " want " CPUs")
}'
# A second is about a second, on every clock (the drift test measures it exactly).
u0=$(cut -d. -f1 /proc/uptime) d0=$(date +%s)
sleep 2
u1=$(cut -d. -f1 /proc/uptime) d1=$(date +%s)
[ $((u1 - u0)) -ge 2 ] && [ $((u1 - u0)) -le 4 ] && echo "uptime: ok" || echo "uptime: $((u1 - u0)) s in 2 s"
[ $((d1 - d0)) -ge 2 ] && [ $((d1 - d0)) -le 4 ] && echo "date: ok" || echo "date: $((d1 - d0)) s in 2 s"
[ "$(date +%Y)" -ge 2023 ] && echo "RTC: ok" || echo "RTC: $(date)"
[ -c /dev/ttyS0 ] && echo "ttyS0: ok"
uname -s -m
