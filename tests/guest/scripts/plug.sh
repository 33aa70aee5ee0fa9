# Disks that are added and removed while the guest runs and uses them; tests/guest/plug.c does it, tests/guest/plug.sh is the host's end.
# modules: virtio_pci virtio_blk
for module in virtio_pci virtio_blk; do modprobe $module || exit 1; done
rounds=$(sed -n 's/.*plug.rounds=\([0-9]*\).*/\1/p' /proc/cmdline)
dir=$(sed -n 's/.*plug.dir=\([^ ]*\).*/\1/p' /proc/cmdline)

disk() { # SERIAL: prints its name
    for d in /sys/block/vd*; do
        [ "$(cat "$d/serial" 2>/dev/null)" != "$1" ] || basename "$d"
    done
}
until_() { # SECONDS CONDITION...
    local left=$(($1 * 20))
    shift
    while ! "$@"; do
        [ $left -gt 0 ] || { echo "FAILED: waited for: $*"; return 1; }
        left=$((left - 1))
        usleep 50000
    done
}
here() { [ -n "$(disk "$1")" ]; }
away() { ! here "$1"; }
add() { echo "@@AFTER $1" >/dev/console; echo "@@ADD $1 $dir/$2 $3" >/dev/console; until_ 120 here "$3"; }
remove() { echo "@@REMOVE $1" >/dev/console; until_ 120 away "$2"; }

if here again; then # the second boot: what was added stays
    d=$(disk again)
    [ "$(dd if=/dev/$d bs=16 count=1 2>/dev/null)" = "before the reset" ] || echo "FAILED: the disk after the reset"
    remove late again
    # The host ends with the guest: one more disk, which comes when that one has really gone, keeps it until then.
    echo "@@AFTER late" >/dev/console
    add last disk1.img last
    away asked || echo "FAILED: the disk that was asked for came through the reset"
    echo "all rounds done"
    exit 0
fi

# A reader and a writer at work, that will see I/O errors when their disk goes. By descriptor: a name that has gone would make a file.
work() {
    exec 7<>/dev/$1
    while dd if=/proc/self/fd/7 of=/dev/null bs=4k count=200 iflag=direct 2>/dev/null; do :; done &
    while dd if=/dev/zero of=/proc/self/fd/7 bs=4k seek=4096 count=200 oflag=direct conv=notrunc 2>/dev/null; do :; done &
    exec 7>&-
}

n=0
while [ $n -lt "$rounds" ]; do
    n=$((n + 1))
    # A disk of another size, serial number and contents in every round; the first of them lies where "hot" was before.
    add hot disk$((n % 2)).img SN-$n || exit 1
    d=$(disk SN-$n)
    [ -b /dev/$d ] || until_ 10 test -b /dev/$d || exit 1
    [ "$(cat /sys/block/$d/size)" = $((40960 + n % 2 * 2048)) ] || echo "FAILED: round $n: size $(cat /sys/block/$d/size)"
    [ "$(dd if=/dev/$d bs=1M count=4 2>/dev/null | md5sum | cut -c1-32)" = "$(sed -n "s/.*plug.sum$((n % 2))=\([0-9a-f]*\).*/\1/p" /proc/cmdline)" ] ||
        echo "FAILED: round $n: contents"
    # Written, flushed, read back past the cache.
    yes "round $n of disk $((n % 2))" | head -c 65536 >/tmp/out
    dd if=/tmp/out of=/dev/$d bs=64k seek=$((64 + n)) conv=fsync,notrunc 2>/dev/null || echo "FAILED: round $n: write"
    dd if=/dev/$d bs=64k skip=$((64 + n)) count=1 iflag=direct 2>/dev/null | cmp - /tmp/out || echo "FAILED: round $n: read back"
    work $d
    case $((n % 4)) in
    3) echo 0 >/sys/bus/pci/slots/$(basename $(readlink -f /sys/block/$d/device/..) | sed 's/0000:00:\(..\).0/\1/' | { read -r s; echo $((0x$s)); })/power
        until_ 120 away SN-$n || exit 1 ;; # by the guest's own wish
    *) remove hot SN-$n || exit 1 ;;
    esac
    wait
    echo "round $n done"
done

# One that the machine had from its start.
here base && remove base base
# Two at once, refusals, and one that stays over a reset; one is asked for that the dying system has no time for.
add late disk0.img again || exit 1
echo "@@ADD late $dir/disk1.img twice" >/dev/console
echo "@@ADD other $dir/disk0.img locked" >/dev/console
echo "@@ADD other $dir/none.img missing" >/dev/console
echo "@@REMOVE nobody" >/dev/console
add asked disk1.img asked || exit 1
dd if=/dev/zero of=/dev/$(disk again) bs=64k count=1 seek=63 conv=notrunc 2>/dev/null
printf 'before the reset' | dd of=/dev/$(disk again) conv=fsync,notrunc 2>/dev/null
sync
echo "@@REMOVE asked" >/dev/console
reboot -f
sleep 100
