# Disks, entropy, console and sockets by virtio; the other end is tests/guest/virtio.py.
# modules: virtio_pci virtio_blk virtio-rng virtio_console vmw_vsock_virtio_transport
# files: build/guest/vsock:bin/vsock
# build: tests/guest/build-static.sh vsock
for module in virtio_pci virtio_blk virtio-rng virtio_console vmw_vsock_virtio_transport; do modprobe $module || exit 1; done

# What was negotiated: bits 28 (indirect), 29 (event index), 32 (version 1), 34 (packed).
for d in /sys/bus/virtio/devices/*; do
    echo "@V $(cat $d/device) $(cut -c29,30,33,35 $d/features)"
done

q=/sys/block/vda/queue
echo "@B $(cat /sys/block/vda/size) $(cat /sys/block/vda/serial) $(cat $q/write_cache) $(ls /sys/block/vda/mq | wc -l) queues"
echo "@R $(cat /sys/block/vdb/ro)"
mkdir -p /mnt
mount -t ext4 /dev/vda /mnt || exit 1
(cd /mnt && md5sum -c sums) || exit 1
mkdir /mnt/new
for i in 1 2 3 4; do
    (head -c $((i * 700000 + 17)) /dev/urandom >/mnt/new/$i; dd if=/mnt/new/$i of=/mnt/new/$i.direct bs=4k oflag=direct conv=notrunc 2>/dev/null) &
done
wait
(cd /mnt/new && md5sum [1-4]* >sums) || exit 1
rm /mnt/old/* # holes for fstrim
umount /mnt && mount -t ext4 /dev/vda /mnt || exit 1
(cd /mnt/new && md5sum -c sums >/dev/null) || exit 1
fstrim /mnt || exit 1
umount /mnt
if dd if=/dev/zero of=/dev/vdb bs=4k count=1 oflag=direct 2>/dev/null; then echo "wrote a read-only disk"; exit 1; fi
cmp /dev/vdb /dev/vdb || exit 1

[ "$(dd if=/dev/hwrng bs=1024 count=8 2>/dev/null | wc -c)" = 8192 ] || exit 1
[ "$(dd if=/dev/hwrng bs=1024 count=8 2>/dev/null | md5sum)" != "$(dd if=/dev/hwrng bs=1024 count=8 2>/dev/null | md5sum)" ] || exit 1

# (The driver forgets its settings when the last user closes it.)
{ stty raw -echo; echo "@C ready"; IFS= read -r line; echo "@C $line"; seq 1 20000; echo "@C end"; sleep 1; } <>/dev/hvc0 >&0 2>&1

vsock echo 1000 || exit 1
vsock send 2000 5000000 || exit 1
if vsock send 2001 2>/dev/null; then echo "a port that nobody listens at"; exit 1; fi

