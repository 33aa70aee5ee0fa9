#!/bin/bash
# Debian's cloud kernel has disks plugged in and out while it uses them: tests/guest/scripts/plug.sh is the guest's end.
cd "$(dirname "$0")/../.." || exit 1
. tests/guest/lib.sh
engine=${NACELLE_ENGINE:-soft}
plug=${NACELLE_BUILD:-build}/tests/guest/plug
kernel=$(tools/kernel.sh cloud) || exit 1
# In the lab there is no network to make the initramfs.
place=/tmp
if [ -n "${NACELLE_LAB:-}" ]; then
    guest_initrd=build/guest/test-plug.cpio place=/run
else
    guest_image plug || exit 1
fi
work=$(mktemp -d "$place/nacelle-plug-XXXXXX")
trap 'rm -rf "$work"' EXIT
failed=0

contents() { yes "disk $1, a line of 29 bytes" | head -c "$2"; }

# plugged CPUS ROUNDS: boots the guest, then looks at what it left in the images.
plugged() {
    local cpus=$1 rounds=$2 name=guest/plug-$engine-$1cpu log=$work/log out=$work/out started=$SECONDS i n problem=
    for i in 0 1 base; do cp "$work/$i.plain" "$work/disk$i.img"; done
    timeout -k 5 $((240 + rounds * 20)) "$plug" -e "$engine" -c "$cpus" -i "$guest_initrd" -d "$work/diskbase.img" -r \
        -a "console=ttyS0 loglevel=1 panic=-1 plug.rounds=$rounds plug.dir=$work plug.sum0=$(sum 0) plug.sum1=$(sum 1) ${NACELLE_APPEND:-}" \
        "$kernel" >"$out" 2>"$log" </dev/null
    local status=$?
    for i in 0 1; do
        cp "$work/$i.plain" "$work/want"
        for ((n = 1; n <= rounds; n++)); do
            [ $((n % 2)) != $i ] || yes "round $n of disk $i" | head -c 65536 | put $((64 + n)) 65536
        done
        # The end of what is compared: the guest's writers write zeroes from 16 MiB on, as far as they come.
        [ $i != 0 ] || printf 'before the reset' | put 0 16
        [ $i != 0 ] || head -c 65536 /dev/zero | put 63 65536
        cmp -n 16777216 "$work/want" "$work/disk$i.img" >>"$log" 2>&1 || problem+=" disk$i has other contents;"
    done
    cmp "$work/base.plain" "$work/diskbase.img" >>"$log" 2>&1 || problem+=" the disk from the start has other contents;"
    [ $status = 0 ] || problem+=" status $status;"
    [ "$(grep -c 'round [0-9]* done' "$out")" = "$rounds" ] && grep -q 'all rounds done' "$out" || problem+=" not all done;"
    ! grep -q 'FAILED\|@@KERNEL' "$out" || problem+=" a check in the guest failed;"
    [ "$(grep -c '^added hot' "$log")" = "$rounds" ] && [ "$(grep -c '^removed hot' "$log")" = "$rounds" ] || problem+=" not all came and went;"
    for i in "removed base" "removed late" "removed asked" "refused late: .*of that name already" "refused other: .*in use" \
        "refused other: .*none.img" "refused nobody: "; do
        grep -q "^$i" "$log" || problem+=" no \"$i\";"
    done
    if [ -z "$problem" ]; then
        echo "PASS $name ($((SECONDS - started)) s)"
    else
        echo "FAIL $name:$problem"
        tail -15 "$log" | sed 's/^/    ! /'
        tail -20 "$out" | tr -d '\r' | sed 's/^/    | /'
        failed=1
    fi
}
for i in 0 1; do contents $i $(((40960 + i * 2048) * 512)) >"$work/$i.plain"; done
contents base 1048576 >"$work/base.plain"
sum() { head -c 4194304 "$work/$1.plain" | md5sum | cut -c1-32; }
put() { dd of="$work/want" bs="$2" seek="$1" conv=notrunc iflag=fullblock 2>/dev/null; }

if [ -n "${NACELLE_LAB:-}" ]; then
    plugged 2 "${NACELLE_PLUG_ROUNDS:-3}"
else
    plugged 1 "${NACELLE_PLUG_ROUNDS:-4}"
    plugged 4 "${NACELLE_PLUG_ROUNDS:-20}"
fi
exit $failed
