# Two SATA disks behind the AHCI controller, driven by Debian's own modules: a file system survives a load, a check, and being
# mounted again; the second disk's contents were made on the host and must arrive as they are. tests/guest/ahci.sh looks at what this says.
# packages: e2fsprogs
# kernel: generic
# modules: ahci sd_mod ext4 crc32c_generic
modprobe ahci && modprobe sd_mod && modprobe crc32c_generic && modprobe ext4 || exit 1
n=0
while { [ ! -b /dev/sda ] || [ ! -b /dev/sdb ]; } && [ $n -lt 200 ]; do n=$((n + 1)) && sleep 0.1; done
# Links come up in any order: the larger disk is A.
if [ "$(blockdev --getsize64 /dev/sda)" -gt "$(blockdev --getsize64 /dev/sdb)" ]; then A=sda B=sdb; else A=sdb B=sda; fi
echo "disks: $(blockdev --getsize64 /dev/$A) $(blockdev --getsize64 /dev/$B)"
echo "model: $(cat /sys/block/$A/device/model) depth $(cat /sys/block/$A/device/queue_depth)"
echo "serial: $(tail -c +5 /sys/block/$B/device/vpd_pg80)"
echo "links: $(dmesg | grep -c 'SATA link up 6.0 Gbps')"
echo "discard: $(cat /sys/block/$A/queue/discard_max_bytes)"
grep -q ahci /proc/interrupts && echo "interrupts: $(grep ahci /proc/interrupts | grep -c PCI-MSI)"
echo "read: $(sha256sum </dev/$B | cut -c1-64)"

mkfs.ext4 -q -E nodiscard /dev/$A || exit 1
mkdir -p /mnt && mount -t ext4 -o discard /dev/$A /mnt || exit 1
mkdir /mnt/a && cp -a /bin /busybox /sbin /lib /usr /mnt/a/ 2>/dev/null
(cd /mnt/a && find . -type f | sort | xargs sha256sum) >/tmp/sums
for i in 1 2 3 4; do (dd if=/dev/urandom of=/mnt/r$i bs=7k count=500 2>/dev/null && sha256sum /mnt/r$i >>/tmp/sums.r) & done
wait
rm -rf /mnt/a/busybox && fstrim /mnt && umount /mnt || exit 1
fsck.ext4 -f -n /dev/$A >/tmp/fsck 2>&1 || { cat /tmp/fsck && exit 1; }
mount -t ext4 /dev/$A /mnt || exit 1
grep -v ' ./busybox/' /tmp/sums >/tmp/left
(cd /mnt/a && sha256sum -c /tmp/left >/tmp/check) && sha256sum -c /tmp/sums.r >/tmp/check.r || { grep -v ': OK' /tmp/check && exit 1; }
[ "$(wc -l </tmp/check)" -gt 20 ] && echo "files: good"
dd if=/dev/$B of=/mnt/copy bs=1M 2>/dev/null && sync && echo 3 >/proc/sys/vm/drop_caches
echo "copy: $(sha256sum </mnt/copy | cut -c1-64)"
umount /mnt
# Odd places and sizes, past the cache; the last sector; a write cache that is off.
end=$(blockdev --getsz /dev/$B)
for n in 1 3 8 255 256 257 4096; do dd if=/dev/$B bs=512 count=$n skip=$((end - n)) iflag=direct 2>/dev/null; done | sha256sum | sed 's/ .*//;s/^/ends: /'
echo "write through" | tee /sys/class/block/$A/device/scsi_disk/*/cache_type >/dev/null
dd if=/dev/$B of=/dev/$A bs=1024k oflag=direct conv=notrunc 2>/dev/null
echo "cache: $(cat /sys/class/block/$A/device/scsi_disk/*/cache_type) $(head -c "$(blockdev --getsize64 /dev/$B)" /dev/$A | sha256sum | cut -c1-64)"
dmesg | grep -E 'ata[0-9].*(exception|failed|error)|I/O error|EXT4-fs error' && exit 1
exit 0
