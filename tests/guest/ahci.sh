#!/bin/bash
# Debian's generic kernel and its AHCI driver on two raw disks: integrity, size, serial number, discard; with MSI and with a wired interrupt.
cd "$(dirname "$0")/../.." || exit 1
. tests/guest/lib.sh
[ "$guest_runner" = nacelle ] || { echo "the guest needs --disk" && exit 77; }
failed=0

# sums FILE: of its ends, as the guest reads them
ends() {
    local n size
    size=$(($(stat -c %s "$1") / 512))
    for n in 1 3 8 255 256 257 4096; do dd if="$1" bs=512 count=$n skip=$((size - n)) status=none; done | sha256sum | sed 's/ .*//'
}

# ahci_case NAME CPUS KERNEL-OPTIONS MSIS
ahci_case() {
    local name=ahci-$1 started=$SECONDS dir sum out kernel
    out=$guest_work/$name dir=$(mktemp -d "$guest_work/$name.XXXXXX")
    truncate -s 160M "$dir/a" && head -c 10000896 /dev/urandom >"$dir/b"
    sum=$(sha256sum <"$dir/b" | cut -c1-64)
    cat >"$out.expected" <<END
disks: 167772160 10000896
model: Nacelle disk     depth 32
serial: NX-0815             
links: 2
discard: 2147450880
interrupts: $4
read: $sum
files: good
copy: $sum
ends: $(ends "$dir/b")
cache: write through $sum
END
    if kernel=$(tools/kernel.sh generic) && guest_image ahci &&
        guest_append=$3 NACELLE_RUN_OPTIONS="-d $dir/a,if=ahci -d $dir/b,if=ahci,serial=NX-0815" \
            guest_run nacelle "$out" 240 "$kernel" "$guest_initrd" "$2" 768M &&
        diff "$out.expected" "$out" && cmp -n 10000896 "$dir/a" "$dir/b"; then
        echo "PASS guest/$name ($((SECONDS - started)) s)"
    else
        echo "FAIL guest/$name ($((SECONDS - started)) s)"
        failed=1
    fi
    rm -rf "$dir"
}
# Its guest resets the machine, so the run is not guest_run's.
reset_case() {
    local started=$SECONDS dir out kernel status
    out=$guest_work/ahci-reset dir=$(mktemp -d "$guest_work/ahci-reset.XXXXXX")
    truncate -s 160M "$dir/a" && truncate -s 1M "$dir/b"
    : >"$out.console"
    kernel=$(tools/kernel.sh generic) && guest_image ahci-reset &&
        timeout -k 5 240 "$guest_program" run --engine "${NACELLE_ENGINE:-soft}" -k "$kernel" -i "$guest_initrd" -c 2 -m 768M \
            -a "console=ttyS0 loglevel=1 panic=-1 ${NACELLE_APPEND:-}" -d "$dir/a,if=ahci" -d "$dir/b,if=ahci" \
            </dev/null >"$out.console" 2>"$out.stderr"
    status=$?
    if [ $status = 0 ] && [ "$(tr -d '\r' <"$out.console" | grep -cE '^(first: reset|second: good|@@END 0)$')" = 3 ] &&
        ! grep -q '^@@KERNEL' "$out.console"; then
        echo "PASS guest/ahci-reset ($((SECONDS - started)) s)"
    else
        tail -25 "$out.console" | tr -d '\r' | sed 's/^/  | /'
        echo "FAIL guest/ahci-reset ($((SECONDS - started)) s): status $status"
        failed=1
    fi
    rm -rf "$dir"
}
reset_case
ahci_case msi 2 "" 1
ahci_case wired 1 "pci=nomsi" 0
exit $failed
