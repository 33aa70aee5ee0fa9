#!/bin/bash
# Wrong use of the command: one line on standard error that says what, where and what to do; exit status 2; nothing on
# standard output; nothing created. And the help that needs no virtual machine.
set -uo pipefail
cd "$(dirname "$0")/../.."
nacelle=${NACELLE:-build/nacelle}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# bad NAME PATTERN ARGUMENT...: the line must match PATTERN (extended regular expression).
bad() {
    local name=$1 pattern=$2 status lines why=
    shift 2
    timeout 20 "$nacelle" "$@" >"$dir/out" 2>"$dir/err" </dev/null
    status=$?
    lines=$(wc -l <"$dir/err")
    [ $status = 2 ] || why="exit status $status, not 2"
    [ "$lines" = 1 ] || why="$lines lines of message, not 1"
    [ ! -s "$dir/out" ] || why="something on standard output"
    grep -qE -- "$pattern" "$dir/err" || why="message does not match '$pattern'"
    if [ -z "$why" ]; then
        echo "PASS bad-input: $name"
    else
        echo "FAIL bad-input: $name: $why: $(head -3 "$dir/err")"
    fi
}

# good NAME PATTERN ARGUMENT...: status 0, PATTERN on standard output, nothing on standard error.
good() {
    local name=$1 pattern=$2
    shift 2
    if timeout 20 "$nacelle" "$@" >"$dir/out" 2>"$dir/err" </dev/null && [ ! -s "$dir/err" ] && grep -qE -- "$pattern" "$dir/out"; then
        echo "PASS help: $name"
    else
        echo "FAIL help: $name: $(head -3 "$dir/err" "$dir/out")"
    fi
}

# A kernel good enough to be accepted: multiboot, naming its own addresses, loaded at 2 MiB.
le() { printf "\\x$(printf %02x $(($1 & 255)))\\x$(printf %02x $(($1 >> 8 & 255)))\\x$(printf %02x $(($1 >> 16 & 255)))\\x$(printf %02x $(($1 >> 24 & 255)))"; }
{
    for word in $((0x1badb002)) $((0x10000)) $(((-0x1badb002 - 0x10000) & 0xffffffff)) $((0x200000)) $((0x200000)) 0 0 $((0x200020)); do le "$word"; done
    printf '\xb0\x00\xe6\xf4\xf4\xeb\xfd' # mov al,0; out 0xf4,al; hlt; jmp hlt
} >"$dir/kernel"

printf 'this is no kernel\n' >"$dir/text"
: >"$dir/empty"
head -c 300 "$dir/kernel" | head -c 20 >"$dir/short"
mkdir "$dir/directory"
mkfifo "$dir/fifo"
head -c 70000 /dev/urandom | sed 's/HdrS/hdrs/g' >"$dir/random"
head -c 3000000 /dev/zero | head -c 2999808 >"$dir/big"
ln -s loop "$dir/loop"

bad 'no arguments to run' 'kernel' run
bad 'unknown verb' "'fly'" fly
bad 'help on an unknown verb' "'fly'" help fly
bad 'unknown long option' '--turbo' run --turbo
bad 'unknown short option' '-z' run -z
bad 'option without its argument' '--memory needs' run -k "$dir/kernel" --memory
bad 'short option without its argument' '-m needs' run -k "$dir/kernel" -m
bad 'argument to an option that takes none' 'no-reboot' run -k "$dir/kernel" --no-reboot=yes
bad 'stray argument' "'$dir/kernel'" run "$dir/kernel"
bad 'missing kernel' "$dir/none.*No such file" run -k "$dir/none"
bad 'kernel is a directory' "$dir/directory" run -k "$dir/directory"
bad 'kernel is a fifo' "$dir/fifo" run -k "$dir/fifo"
bad 'kernel is a device' '/dev/zero' run -k /dev/zero
bad 'kernel is empty' "$dir/empty" run -k "$dir/empty"
bad 'kernel is text' 'not a kernel' run -k "$dir/text"
bad 'kernel is noise' 'not a kernel' run -k "$dir/random"
bad 'kernel is a program' 'no kernel' run -k "$nacelle"
bad 'kernel is cut short' "$dir/short" run -k "$dir/short"
bad 'empty kernel name' 'kernel' run -k ''
bad 'missing initrd' "$dir/none.*No such file" run -k "$dir/kernel" -i "$dir/none"
bad 'initrd is a directory' "$dir/directory" run -k "$dir/kernel" -i "$dir/directory"
bad 'initrd larger than memory' 'no room' run -k "$dir/kernel" -i "$dir/big" -m 4M
bad 'memory: no number' 'memory.*abc' run -k "$dir/kernel" -m abc
bad 'memory: zero' 'memory' run -k "$dir/kernel" -m 0
bad 'memory: negative' 'memory.*-1' run -k "$dir/kernel" -m -1
bad 'memory: unknown unit' 'memory.*5Q' run -k "$dir/kernel" -m 5Q
bad 'memory: too large' 'memory' run -k "$dir/kernel" -m 99999T
bad 'memory: overflow' 'memory.*too large' run -k "$dir/kernel" -m 18446744073709551615T
bad 'memory: odd size' 'memory' run -k "$dir/kernel" -m 4097K
bad 'memory: smaller than the kernel needs' '--memory' run -k "$dir/kernel" -m 2M
bad 'cpus: zero' 'cpus' run -k "$dir/kernel" -c 0
bad 'cpus: too many' 'cpus.*65' run -k "$dir/kernel" -c 65
bad 'cpus: no number' 'cpus.*two' run -k "$dir/kernel" -c two
bad 'debug-exit: no number' 'debug-exit.*port' run -k "$dir/kernel" --debug-exit port
bad 'debug-exit: too large' 'debug-exit.*65536' run -k "$dir/kernel" --debug-exit 65536
bad 'debug-exit: a port that is taken' '0x3f8|overlaps' run -k "$dir/kernel" --debug-exit 0x3f8
[ -e /dev/kvm ] || bad 'engine: kvm is not there' 'no /dev/kvm; load.*or use --engine soft' run -k "$dir/kernel" --engine kvm
bad 'engine: unknown' 'hyper' run -k "$dir/kernel" --engine hyper
bad 'stats: unknown form' 'xml' run -k "$dir/kernel" --stats=xml:x
bad 'stats: no file' 'json:' run -k "$dir/kernel" --stats=json:
bad 'stats: file that cannot be written' '/nonexistent/x' run -k "$dir/kernel" --stats=json:/nonexistent/x
# Disks.
truncate -s 1M "$dir/disk"
truncate -s 1000 "$dir/odd"
{ printf KDMV && head -c 4092 /dev/zero; } >"$dir/vmdk"
{ printf 'QFI\373\0\0\0\3' && head -c 4088 /dev/zero; } >"$dir/half.qcow2"
bad 'console: no kind' 'pty, socket=FILE or file=FILE' run -k "$dir/kernel" --console link=x
bad 'console: two kinds' 'not two' run -k "$dir/kernel" --console "pty,file=$dir/x"
bad 'console: unknown key' 'unknown key tty' run -k "$dir/kernel" --console tty
bad 'console: no place for a file' "$dir/none/x" run -k "$dir/kernel" --console "file=$dir/none/x"
bad 'console: something else is there' "$dir/kernel.*in use" run -k "$dir/kernel" --console "socket=$dir/kernel"
bad 'console: a link to a file' 'link=FILE goes with pty' run -k "$dir/kernel" --console "link=$dir/x,file=$dir/y"
bad 'console: a link to a socket' 'link=FILE goes with pty' run -k "$dir/kernel" --console "socket=$dir/y,link=$dir/x"
bad 'console: a fifo' "$dir/fifo is a pipe" run -k "$dir/kernel" --console "file=$dir/fifo"
bad 'vsock: no path' 'cid=3,path=FILE' run -k "$dir/kernel" --vsock cid=3
bad 'vsock: the host as guest' 'cid.*2' run -k "$dir/kernel" --vsock "cid=2,path=$dir/v"
bad 'vsock: twice' 'give it once' run -k "$dir/kernel" --vsock "cid=3,path=$dir/v" --vsock "cid=4,path=$dir/w"
bad 'vsock: no such directory' "$dir/none/v" run -k "$dir/kernel" --vsock "cid=3,path=$dir/none/v"
bad 'disk: no such file' "$dir/none.*truncate" run -k "$dir/kernel" -d "$dir/none"
bad 'disk: no such file, with = in its name' "$dir/a=b: .*truncate" run -k "$dir/kernel" -d "$dir/a=b"
bad 'disk: no such NBD server' "nbd.unix:///x.socket=$dir/none: qemu-storage-daemon: .*connect" run -k "$dir/kernel" -d "nbd+unix:///x?socket=$dir/none"
bad 'disk: empty' "$dir/empty.*size" run -k "$dir/kernel" -d "$dir/empty"
bad 'disk: size not of whole sectors' "$dir/odd.*1000 bytes.*multiple of 512" run -k "$dir/kernel" -d "$dir/odd"
bad 'disk: directory' "$dir/directory.*neither" run -k "$dir/kernel" -d "$dir/directory"
bad 'disk: fifo' "$dir/fifo.*neither" run -k "$dir/kernel" -d "$dir/fifo"
bad 'disk: format that is not supported' 'vmdk.*qemu-img convert' run -k "$dir/kernel" -d "$dir/vmdk"
bad 'disk: damaged qcow2' "$dir/half.qcow2.*qemu-storage-daemon" run -k "$dir/kernel" -d "$dir/half.qcow2"
TMPDIR=/none bad 'disk: no place for a socket' "$dir/half.qcow2: .*TMPDIR" run -k "$dir/kernel" -d "$dir/half.qcow2"
bad 'disk: unknown key' 'unknown key colour' run -k "$dir/kernel" -d "$dir/disk,colour=red"
bad 'disk: unknown model' 'if=floppy.*virtio, ahci' run -k "$dir/kernel" -d "$dir/disk,if=floppy"
bad 'disk: limit without a number' 'read_bps=fast.*no number' run -k "$dir/kernel" -d "$dir/disk,read_bps=fast"
bad 'disk: the same one twice' "$dir/disk.*in use" run -k "$dir/kernel" -d "$dir/disk" -d "$dir/disk,ro"
bad 'disk: a comma in its name' 'unknown key comma;.*,,' run -k "$dir/kernel" -d "$dir/with,comma"
bad 'disk: a device that is no disk' '/dev/null: it is neither.*give' run -k "$dir/kernel" -d /dev/null
bad 'disk: a link to itself' "$dir/loop: .*symbolic links" run -k "$dir/kernel" -d "$dir/loop"
bad 'disk: of the same serial' 'two disks have the serial S,.*give' run -k "$dir/kernel" -d "$dir/disk,serial=S" -d "$dir/big,serial=S"
bad 'disk: a serial of two lines' 'serial=a.b is not possible' run -k "$dir/kernel" -d "$dir/disk,serial=a"$'\n'b
bad 'disk: a serial that is too long' 'at most 20' run -k "$dir/kernel" -d "$dir/disk,serial=123456789012345678901"
bad 'disk: two files' 'two files' run -k "$dir/kernel" -d "$dir/disk,path=$dir/big"
bad 'disk: a key twice' 'ro is given twice' run -k "$dir/kernel" -d "$dir/disk,ro,ro"
bad 'disk: another that writes' 'that writes to it; end that' run -k "$dir/kernel" -d "$dir/disk" -d "$dir/disk,ro"
disks=()
for _ in $(seq 70); do disks+=(-d "$dir/disk,ro"); done
bad 'disk: 70 of them' '24 disks are the most' run -k "$dir/kernel" "${disks[@]}"
bad 'disk: more than there are slots' 'no PCI slot is free' run -k "$dir/kernel" "${disks[@]:0:48}" -n none -n none -n none -n none -n none -n none -n none
for v in -1 -0 1.5M 0x10 '' ' 1' 1e3 1P 18446744073709551616; do
    bad "disk: a limit of '$v'" 'total_iops=.* no number; give' run -k "$dir/kernel" -d "$dir/disk,total_iops=$v"
done
bad 'disk: a limit of 2^63' 'read_bps=9223372036854775808 is too large; give at most' run -k "$dir/kernel" -d "$dir/disk,read_bps=9223372036854775808"
for uri in nbd: nbd:// 'nbd://[::1' nbd+unix:///x 'nbd+unix:///x?socket='; do
    bad "disk: $uri" 'give nbd://HOST.*socket=PATH' run -k "$dir/kernel" -d "$uri"
done
bad 'disk: called as a network card' 'two devices called a;' run -k "$dir/kernel" -n none,id=a -d "$dir/disk,id=a"
for own in console0 ahci0 vsock0 rng0; do
    bad "disk: called $own" "two devices called $own;" run -k "$dir/kernel" -d "$dir/disk,id=$own,if=ahci" --console "file=$dir/x" --vsock "cid=3,path=$dir/v"
done
bad 'net: unknown kind' "'bridge' is no kind of network; begin with user" run -k "$dir/kernel" -n bridge
bad 'net: unknown item' "unknown item 'colour'" run -k "$dir/kernel" -n user,colour=red
bad 'net: no forward' 'hostfwd=2222-22 is no forward; give tcp' run -k "$dir/kernel" -n user,hostfwd=2222-22
bad 'net: limits at odds' 'peak_in is below avg_in' run -k "$dir/kernel" -n user,avg_in=2M,peak_in=1M
bad 'net: interface of another kind' 'tap=lo' run -k "$dir/kernel" -n tap=lo
bad 'net: a peak alone' 'peak_in without avg_in; give both' run -k "$dir/kernel" -n none,peak_in=1M
bad 'net: a burst alone' 'burst_out without avg_out; give both' run -k "$dir/kernel" -n none,burst_out=1M
bad 'net: an average of next to nothing' 'avg_in=1 is less than 8K' run -k "$dir/kernel" -n none,avg_in=1
bad 'net: a limit of -1' 'avg_in=-1 is no number' run -k "$dir/kernel" -n none,avg_in=-1
bad 'net: a limit of 2^63' 'avg_in=9223372036854775808 is too large' run -k "$dir/kernel" -n none,avg_in=9223372036854775808
bad 'net: a group address' 'is a group address; give' run -k "$dir/kernel" -n user,mac=ff:ff:ff:ff:ff:ff
bad 'net: two of one address' 'two NICs have the address 52:54:00:00:00:01; give' run -k "$dir/kernel" -n none,mac=52:54:00:00:00:01 -n none,mac=52:54:00:00:00:01
bad 'net: a forward to elsewhere' 'outside of the guest.s network' run -k "$dir/kernel" -n user,hostfwd=tcp:127.0.0.1:22022-10.9.9.9:22
bad 'net: a network of one address' 'net=10.0.2.0/31 is no network' run -k "$dir/kernel" -n user,net=10.0.2.0/31
bad 'net: no name of a tap' 'tap=a/b is no name' run -k "$dir/kernel" -n tap=a/b
bad 'net: nine of them' 'more than 8 NICs' run -k "$dir/kernel" -n none -n none -n none -n none -n none -n none -n none -n none -n none
# Root would make the tap; without rights in the network's name space nobody can.
if unshare -r true 2>/dev/null; then
    printf '#!/bin/bash\nexec unshare -r "%s" "$@"\n' "$(realpath "$nacelle")" >"$dir/unprivileged"
    chmod +x "$dir/unprivileged"
    nacelle=$dir/unprivileged bad 'net: no such tap' 'tap=nosuch: (no such interface.*run .ip tuntap|this host has no /dev/net/tun)' run -k "$dir/kernel" -n tap=nosuch
fi
bad 'control: an empty path' '--control: the path is empty' run -k "$dir/kernel" --control ''
bad 'control: a directory' "$dir/directory is in use or no socket" run -k "$dir/kernel" --control "$dir/directory"
bad 'net: two of one name' 'two devices called a; give each' run -k "$dir/kernel" -n none,id=a -n none,id=a
python3 -c 'import socket, sys, time; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1], flush=True); time.sleep(20)' >"$dir/port" &
taken=$!
for _ in $(seq 50); do [ -s "$dir/port" ] || sleep 0.1; done
bad 'net: port taken' "127.0.0.1:$(cat "$dir/port"): Address already in use; choose another" run -k "$dir/kernel" -n "user,hostfwd=tcp:127.0.0.1:$(cat "$dir/port")-:22"
kill $taken
(
    exec 8<>"$dir/disk"
    # 37: F_OFD_SETLK
    python3 -c 'import fcntl,struct,sys,time; fcntl.fcntl(8, 37, struct.pack("hhqqi", 1, 0, 0, 0, 0)); print(flush=True); time.sleep(10)' >"$dir/locked" &
    holder=$!
    while [ ! -s "$dir/locked" ]; do sleep 0.05; done
    bad 'disk: in use by another program' "$dir/disk.*in use.*ro" run -k "$dir/kernel" -d "$dir/disk"
    kill $holder
)
good 'help' 'run' --help
good 'help verb' 'run' help
good 'help run' '--debug-exit' help run
good 'run --help' '--no-reboot' run --help
good 'version' '^nacelle [0-9]+\.[0-9]+' --version
good 'version verb' '^nacelle [0-9]+\.[0-9]+' version
"$nacelle" >"$dir/out" 2>"$dir/err"
[ $? = 2 ] && [ ! -s "$dir/out" ] && grep -q Usage "$dir/err" && echo 'PASS help: no verb' || echo 'FAIL help: no verb'
