#!/bin/bash
# tests/fuzz/record.sh: records tests/fuzz/seeds/ anew: a Debian kernel with one device, on the soft engine, in a nacelle that writes down what
# is done to it. A few seconds each. Needed when drivers do something new, or devices have got features that they now use.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${NACELLE_BUILD:-build}
make -s "$build/fuzz/record"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# As large as the fuzzers' disks. FUZZ_SEED_RAM and this guest's memory are the same, too.
truncate -s 256K "$work/virtio" && truncate -s 512K "$work/ahci"

cat >"$work/disk.sh" <<'END'
disk=$(tr ' ' '\n' </proc/cmdline | sed -n 's/^disk=//p')
for m in virtio_pci virtio_blk ahci sd_mod; do modprobe $m 2>/dev/null; done
n=0
while [ ! -b /dev/$disk ] && [ $n -lt 100 ]; do n=$((n + 1)) && sleep 0.1; done
dd if=/dev/$disk of=/dev/null bs=4k count=8 iflag=direct
dd if=/dev/zero of=/dev/$disk bs=32k count=3 oflag=direct
dd if=/dev/zero of=/dev/$disk bs=512 count=3 seek=5 conv=fsync
for i in 1 2 3 4; do dd if=/dev/$disk of=/dev/null bs=16k skip=$i count=3 iflag=direct & done
wait
blkdiscard -o 65536 -l 65536 /dev/$disk
/sbin/blkdiscard -z -o 4096 -l 8192 /dev/$disk
cat /sys/block/$disk/serial 2>/dev/null
echo "write through" >/sys/block/$disk/queue/write_cache
dd if=/dev/zero of=/dev/$disk bs=4k count=2 conv=fsync
END
cat >"$work/net.sh" <<'END'
for m in virtio_pci virtio_net e1000; do modprobe $m 2>/dev/null; done
ip link set eth0 up
n=0
while [ "$(cat /sys/class/net/eth0/carrier)" != 1 ] && [ $n -lt 50 ]; do n=$((n + 1)) && sleep 0.1; done
ip address add 10.0.2.15/24 dev eth0
ping -c 2 10.0.2.2
ping -c 1 -s 3000 10.0.2.2
wget -q -O - http://10.0.2.2:1/ 2>/dev/null
ip link set eth0 promisc on
ip link set eth0 address 02:00:00:00:00:07 2>/dev/null
ip link set eth0 down
END

# record NAME BYTES KERNEL SCRIPT APPEND MODULES OPTION...
record() {
    local name=$1 bytes=$2 kernel=$3 script=$4 append=$5 modules=() module
    for module in $6; do modules+=(-m "$module"); done
    shift 6
    [ "$kernel" != cloud ] || modules+=(-p util-linux) # a blkdiscard that knows -z
    tools/initramfs.sh -k "$kernel" "${modules[@]}" -t "$work/$script" "$work/$name.cpio"
    NACELLE_RECORD=1:$bytes:$work/$name.seed timeout -k 5 120 "$build/fuzz/record" run --no-reboot --engine soft -m 128M \
        -k "$(tools/kernel.sh "$kernel")" -i "$work/$name.cpio" -a "console=ttyS0 loglevel=3 panic=-1 $append" "$@" \
        </dev/null >"$work/$name.log" || { cat "$work/$name.log" && exit 1; }
    [ -z "${VERBOSE:-}" ] || cat "$work/$name.log"
    install -m 644 "$work/$name.seed" "tests/fuzz/seeds/$name.seed"
    ls -s --block-size=1 "tests/fuzz/seeds/$name.seed"
}

record virtio-blk-split 20000 cloud disk.sh disk=vda "virtio_pci virtio_blk" -d "$work/virtio,packed=off"
record virtio-blk-packed 20000 cloud disk.sh disk=vda "virtio_pci virtio_blk" -d "$work/virtio"
record virtio-net-split 30000 cloud net.sh "" "virtio_pci virtio_net" -n user,queues=2,packed=off
record virtio-net-packed 30000 cloud net.sh "" "virtio_pci virtio_net" -n user,queues=2
record e1000 40000 generic net.sh "" e1000 -n user,model=e1000
record ahci 40000 generic disk.sh disk=sda "ahci sd_mod" -d "$work/ahci,if=ahci"
