# Disks and network cards of both kinds in one guest, for tests/guest/io.py: 4 KiB requests one at a time, sums of what is read and written, and
# TCP both ways by each card. The kernel's command line says where the host's servers are: io.http=PORT io.sum=PORT.
# kernel: generic
# modules: virtio_pci virtio_blk ahci sd_mod virtio_net e1000
value() { tr ' ' '\n' </proc/cmdline | sed -n "s/^io\.$1=//p"; }
for module in virtio_pci virtio_blk ahci sd_mod virtio_net e1000; do modprobe $module || exit 1; done
n=0
while { [ ! -b /dev/vda ] || [ ! -b /dev/sda ]; } && [ $n -lt 300 ]; do n=$((n + 1)) && sleep 0.1; done
head -c 2048000 /dev/urandom >/tmp/new
echo "new $(sha256sum </tmp/new | cut -c1-64)"
for disk in vda sda; do
    echo "$disk read $(dd if=/dev/$disk bs=64k iflag=direct 2>/dev/null | sha256sum | cut -c1-64)"
    dd if=/tmp/new of=/dev/$disk bs=4k oflag=direct conv=notrunc 2>/dev/null || exit 1
    echo "$disk back $(dd if=/dev/$disk bs=4k count=500 iflag=direct 2>/dev/null | sha256sum | cut -c1-64)"
done
# Both are on networks of the same addresses, so one at a time.
for driver in virtio_net e1000; do
    card=
    for path in /sys/class/net/eth*; do
        [ "$(basename "$(readlink "$path/device/driver")")" != $driver ] || card=${path##*/}
    done
    [ -n "$card" ] || exit 1
    ip link set "$card" up && ip address add 10.0.2.15/24 dev "$card"
    n=0
    while [ "$(cat /sys/class/net/"$card"/carrier)" != 1 ] && [ $n -lt 100 ]; do n=$((n + 1)) && sleep 0.1; done
    ping -c 3 -i 0.2 -w 60 -s 1400 10.0.2.2 >/tmp/ping && echo "$driver pong" || cat /tmp/ping
    wget -q -O /tmp/data "http://10.0.2.2:$(value http)/data" || exit 1
    echo "$driver down $(sha256sum </tmp/data | cut -c1-64)"
    echo "$driver $(nc 10.0.2.2 "$(value sum)" </tmp/data)"
    ip address del 10.0.2.15/24 dev "$card" && ip link set "$card" down
done
grep -E 'virtio|ahci|eth' /proc/interrupts
true
