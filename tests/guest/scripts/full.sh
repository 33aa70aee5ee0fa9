# Disks whose host has no room left, and one whose file is cut off: errors are the application's, and it ends there. The host's end is
# tests/guest/full.py.
# modules: virtio_pci virtio_blk ahci sd_mod
# kernel: generic
for m in virtio_pci virtio_blk ahci sd_mod; do modprobe $m || exit 1; done
n=0
while { [ ! -b /dev/sda ] || [ ! -b /dev/vdb ]; } && [ $n -lt 200 ]; do n=$((n + 1)) && sleep 0.1; done
# A megabyte in one go at an offset in MiB; the error is what counts.
put() { dd if=/dev/zero of=/dev/"$1" bs=1M count=1 seek="$2" oflag=direct 2>&1 | grep error | head -1; }
get() { dd if=/dev/"$1" bs=64k count=4 skip="$2" iflag=direct 2>/dev/null | md5sum | cut -c1-32; }
again() { # until it works, for a minute
    n=0
    while [ -n "$(put "$1" 5)" ] && [ $n -lt 120 ]; do n=$((n + 1)) && sleep 0.5; done
    [ $n -lt 120 ] && echo "$1 writes again"
}
for d in vda sda; do
    echo "$d before $(get $d 0) $(get $d 15)"
    echo "$d full: $(put $d 4)"
    echo "$d reads $(get $d 0) $(get $d 15)"
done
echo "@full"
again vda
again sda
echo "@cut $(get vdb 15)"
n=0
while dd if=/dev/vdb of=/dev/null bs=64k count=1 skip=15 iflag=direct 2>/dev/null && [ $n -lt 120 ]; do n=$((n + 1)) && sleep 0.5; done
[ $n -lt 120 ] && echo "vdb: $(dd if=/dev/vdb of=/dev/null bs=64k count=1 skip=15 iflag=direct 2>&1 | grep -o 'Input/output error' | head -1)"
dd if=/dev/vdb of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null && echo "vdb: its start can be read"
echo "@mend"
n=0
while ! dd if=/dev/vdb of=/dev/null bs=64k count=1 skip=15 iflag=direct 2>/dev/null && [ $n -lt 120 ]; do n=$((n + 1)) && sleep 0.5; done
[ $n -lt 120 ] && echo "vdb: all of it can be read"
dmesg | grep -E 'I/O error, dev' | sed 's/.*dev \(...\).*op 0x\([01]\).*/errors of \1: op \2/' | sort -u
