# 4 KiB requests on every kind of disk and network card there is, as bench/io_paths.py tells it on the kernel's command line:
# paths.count=N of them, paths.depth=N at once, paths.port=PORT of a server at every card's 10.0.N.2.
# kernel: generic
# modules: virtio_pci virtio_blk virtio_net ahci sd_mod e1000
# files: build/guest/paths:bin/paths
# build: tests/guest/build-static.sh paths
value() { tr ' ' '\n' </proc/cmdline | sed -n "s/^paths\.$1=//p"; }
for module in virtio_pci virtio_blk ahci sd_mod virtio_net e1000; do modprobe $module || exit 1; done
n=0
while { [ ! -b /dev/vdc ] || [ ! -b /dev/sda ]; } && [ $n -lt 300 ]; do n=$((n + 1)) && sleep 0.1; done
# One name and number for each card: those of a kernel go by who comes first.
for card in /sys/class/net/eth*; do
    number=$((0x$(cut -d: -f6 <"$card/address")))
    ip address add "10.0.$number.15/24" dev "${card##*/}" && ip link set "${card##*/}" up || exit 1
done
n=0
while [ "$(cat /sys/class/net/eth*/carrier 2>/dev/null | grep -c 1)" != 2 ] && [ $n -lt 300 ]; do n=$((n + 1)) && sleep 0.1; done
for d in /sys/bus/virtio/devices/*; do
    [ "$(cat "$d/device")" != 0x0002 ] || echo "ring of $(ls "$d/block"): $(cut -c35 "$d/features")"
done
count=$(value count) depth=$(value depth)
[ "$count" != 0 ] || exit 0
for disk in vda vdb vdc sda; do paths disk /dev/$disk "$count" "$depth" || exit 1; done
[ "$depth" = 1 ] || exit 0
for n in 2 3; do paths net 10.0.$n.2 "$(value port)" "$count" || exit 1; done
grep -E 'virtio|eth|ahci' /proc/interrupts
