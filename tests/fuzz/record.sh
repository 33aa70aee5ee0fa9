#!/bin/bash
# tests/fuzz/record.sh [NAME]...: records tests/fuzz/seeds/ anew, or those: a Debian kernel with one device, on the soft engine, in a nacelle that writes down what
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

cat >"$work/console.sh" <<'END'
modprobe virtio_pci && modprobe virtio_console
n=0
while [ ! -c /dev/hvc0 ] && [ $n -lt 100 ]; do n=$((n + 1)) && sleep 0.1; done
{ stty raw -echo; echo ready; IFS= read -r line; echo "$line" | rev; seq 1 200; IFS= read -r line; echo end; } <>/dev/hvc0 >&0 2>&1
echo once more >/dev/hvc0
END
cat >"$work/rng.sh" <<'END'
modprobe virtio_pci && modprobe virtio-rng
for n in 1 16 64 500; do dd if=/dev/hwrng of=/dev/null bs=$n count=3; done
END
cat >"$work/vsock.sh" <<'END'
modprobe virtio_pci && modprobe vmw_vsock_virtio_transport
vsock send 2000 5000
vsock send 2000 20000
vsock send 2001
vsock echo 1000
END

# The other end of the console's or of vsock's sockets in $work, for one recording.
peer() {
    python3 - "$1" "$work" <<'END' &
import os, socket, sys, threading, time

def connect(path):
    for _ in range(600):
        s = socket.socket(socket.AF_UNIX)
        try:
            s.connect(path)
            return s
        except OSError:
            time.sleep(0.1)
    sys.exit("nobody is at " + path)

def console(work):
    s = connect(work + "/console")
    f = s.makefile("rw", newline="\n")
    while "ready" not in f.readline():
        pass
    s.sendall(b"hello\n")
    while "200" not in f.readline():
        pass
    s.sendall(b"a longer line of several words, which ends at last\n")
    while f.readline():
        pass

def echo(s):
    while data := s.recv(4096):
        s.sendall(data)

def vsock(work):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(work + "/vsock_2000")
    listener.listen()
    for _ in range(2):
        s, _ = listener.accept()
        echo(s)
        s.close()
    for _ in range(600):
        s = connect(work + "/vsock")
        s.sendall(b"CONNECT 1000\n")
        if s.recv(64).startswith(b"OK"):
            break
        s.close()
        time.sleep(0.1)
    s.sendall(b"x" * 3000)
    got = 0
    while got < 3000:
        got += len(s.recv(4096))
    s.close()

{"console": console, "vsock": vsock}[sys.argv[1]](sys.argv[2])
END
}

# record NAME BYTES KERNEL SCRIPT APPEND MODULES OPTION...
record() {
    local name=$1 bytes=$2 kernel=$3 script=$4 append=$5 modules=() module
    for module in $6; do modules+=(-m "$module"); done
    [ "$name" != vsock ] || modules+=(-f build/guest/vsock:bin/vsock)
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

only=" $* "
wanted() { [ "$only" = "  " ] || [[ $only == *" $1 "* ]]; }
! wanted virtio-blk-split || record virtio-blk-split 20000 cloud disk.sh disk=vda "virtio_pci virtio_blk" -d "$work/virtio,packed=off"
! wanted virtio-blk-packed || record virtio-blk-packed 20000 cloud disk.sh disk=vda "virtio_pci virtio_blk" -d "$work/virtio"
! wanted virtio-net-split || record virtio-net-split 30000 cloud net.sh "" "virtio_pci virtio_net" -n user,queues=2,packed=off
! wanted virtio-net-packed || record virtio-net-packed 30000 cloud net.sh "" "virtio_pci virtio_net" -n user,queues=2
! wanted e1000 || record e1000 40000 generic net.sh "" e1000 -n user,model=e1000
! wanted ahci || record ahci 40000 generic disk.sh disk=sda "ahci sd_mod" -d "$work/ahci,if=ahci"
if wanted console; then
    peer console
    record console 20000 generic console.sh "" "virtio_pci virtio_console" --console "socket=$work/console"
    wait
fi
! wanted rng || record rng 20000 generic rng.sh "" "virtio_pci virtio-rng"
if wanted vsock; then
    tests/guest/build-vsock.sh
    peer vsock
    record vsock 40000 generic vsock.sh "" "virtio_pci vmw_vsock_virtio_transport" --vsock "cid=7,path=$work/vsock"
    wait
fi
