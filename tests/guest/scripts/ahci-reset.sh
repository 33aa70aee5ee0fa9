# The machine is reset while disks are busy, with what was flushed in place afterwards. tests/guest/ahci.sh runs it.
# packages: e2fsprogs
# kernel: generic
# modules: ahci sd_mod ext4 crc32c_generic
modprobe ahci && modprobe sd_mod && modprobe crc32c_generic && modprobe ext4 || exit 1
n=0
while { [ ! -b /dev/sda ] || [ ! -b /dev/sdb ]; } && [ $n -lt 200 ]; do n=$((n + 1)) && sleep 0.1; done
if [ "$(blockdev --getsize64 /dev/sda)" -gt "$(blockdev --getsize64 /dev/sdb)" ]; then A=sda B=sdb; else A=sdb B=sda; fi
mkdir -p /mnt
if [ "$(dd if=/dev/$B bs=1 count=5 2>/dev/null)" != again ]; then
    mkfs.ext4 -q -E nodiscard /dev/$A && mount -t ext4 /dev/$A /mnt || exit 1
    cp -a /usr /mnt/ && sync
    printf again | dd of=/dev/$B conv=notrunc,fsync 2>/dev/null
    for i in 1 2; do dd if=/dev/zero of=/mnt/f$i bs=64k count=300 2>/dev/null & dd if=/dev/$A of=/dev/null bs=4k iflag=direct 2>/dev/null & done
    sleep 0.3
    echo "first: reset"
    echo b >/proc/sysrq-trigger # at once: nothing is flushed, no driver is told
    sleep 100
fi
mount -t ext4 /dev/$A /mnt || exit 1
(cd /usr && find . -type f | sort | xargs sha256sum) >/tmp/a
(cd /mnt/usr && find . -type f | sort | xargs sha256sum) >/tmp/b
cmp /tmp/a /tmp/b && [ "$(wc -l </tmp/a)" -gt 20 ] && umount /mnt && fsck.ext4 -f -n /dev/$A >/dev/null 2>&1 && echo "second: good"
dmesg | grep -E 'ata[0-9].*(exception|failed|error)|I/O error|EXT4-fs error' && exit 1
exit 0
