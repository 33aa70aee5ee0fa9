#!/bin/bash
# bench/kvm.sh [MACHINE,…]: Nacelle's KVM engine beside QEMU's microvm and q35 with KVM, in the lab: the same kernel and initramfs.
# Two boxes: one with two CPUs for wall time, one with a single CPU whose instructions are counted and whose clock goes by them, so that
# no load of this machine shows in it. (What hardware needs for an exit itself is in neither: look at how many there are.)
#   NACELLE=build/nacelle   BENCH_OUT=build/bench   BENCH_REPEATS=3   BENCH_WALL=no leaves the first box out
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh build fetch lab
out=${BENCH_OUT:-build/bench}/kvm
machines=${1:-ours,microvm,q35}
mkdir -p "$out/init"
flags=(-std=gnu17 -O2 -Wall -Wextra -Werror -static)
"${CC:-gcc}" "${flags[@]}" bench/kvm/init.c -o "$out/init/init"
"${CC:-gcc}" "${flags[@]}" bench/kvm/start.c -o "$out/start"
"${CC:-gcc}" -std=gnu17 -O2 tools/mkcpio.c -o "$out/mkcpio"
"$out/mkcpio" "$out/init.cpio" "$out/init"
cp --dereference --update "$(tools/kernel.sh cloud)" "$out/vmlinuz"

# box RESULT OPTIONS…
box() {
    local result=$1
    shift
    echo "bench: a box with $*" >&2
    lab/run --timeout 1500 "$@" --env PYTHONDONTWRITEBYTECODE=1 bench/kvm/inside.py --nacelle "${NACELLE:-build/nacelle}" \
        --kernel "$out/vmlinuz" --initrd "$out/init.cpio" --start "$out/start" --machines "$machines" \
        --repeats "${BENCH_REPEATS:-3}" --out "$out/$result" >&2
}
echo '{}' >"$out/times.json"
[ "${BENCH_WALL:-yes}" = no ] || box times.json --cpus 2
box counted.json --count "$out/counts"
echo
python3 bench/kvm/table.py "$out/times.json" "$out/counted.json" "$out/counts" --json "$out/results.json"
