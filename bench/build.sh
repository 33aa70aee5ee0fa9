#!/bin/bash
# bench/build.sh OUT: makes all that the benches run, from Debian's packages and bench/guest/ and bench/nano/.
#   OUT/stage/        the guest's root, used on the host as well: init and ntrue (ours), r/ (Debian's programs)
#   OUT/bench.cpio    the same as initramfs;  OUT/boot.cpio  a tiny one, for the boot rows
#   OUT/nano.elf      a multiboot kernel;  OUT/vmlinuz  Debian's cloud kernel
# Nothing is installed and no root is needed. Does only what is not done yet.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: bench/build.sh OUT}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cc=${CC:-gcc}

# To link with: static libraries, the hearts of real programs.
static_packages=(zlib1g-dev liblzma-dev libzstd-dev liblz4-dev libsqlite3-dev liblua5.4-dev)
# To run as they are: an interpreter, a compiler, a JIT, with the libraries that they load.
program_packages=(python3.11-minimal libpython3.11-stdlib cpp-12 luajit perl-base)

kernel=$(tools/kernel.sh cloud)
static_trees=$(tools/packages.sh --alone "${static_packages[@]}")
program_trees=$(tools/packages.sh "${program_packages[@]}")
cp --dereference --update "$kernel" "$out/vmlinuz"

newer() { # newer FILE SOURCE...: is a source newer than the file?
    local file=$1 source
    shift
    [ -e "$file" ] || return 0
    for source in "$@"; do [ "$source" -nt "$file" ] && return 0; done
    return 1
}

build_programs() {
    local flags=(-std=gnu17 -O2 -Wall -Wextra -Werror) libraries=() tree object objects=() source special
    while read -r tree; do
        flags+=(-isystem "$tree/usr/include" -isystem "$tree/usr/include/x86_64-linux-gnu" -isystem "$tree/usr/include/lua5.4")
        libraries+=(-L"$tree/usr/lib/x86_64-linux-gnu")
    done <<<"$static_trees"
    mkdir -p "$out/obj" "$out/stage"
    for source in nbench integer library exec float simd rep system parallel; do
        object=$out/obj/$source.o
        special=()
        # Scalar means scalar: without vectors, and without contractions that only some CPUs have.
        [ $source != float ] || special=(-fno-tree-vectorize -ffp-contract=off)
        "$cc" "${flags[@]}" "${special[@]}" -c "bench/guest/$source.c" -o "$object"
        objects+=("$object")
    done
    # The linker warns that dlopen() in a static program needs the same C library at run time; sqlite never calls it.
    "$cc" -static "${objects[@]}" "${libraries[@]}" -lsqlite3 -llua5.4 -lz -llz4 -lzstd -llzma -lm -lpthread \
        -o "$out/stage/init" 2>"$out/obj/link.log" || { cat "$out/obj/link.log" >&2 && exit 1; }
    "$cc" "${flags[@]}" -static bench/guest/ntrue.c -o "$out/stage/ntrue"
    mkdir -p "$out/boot"
    "$cc" "${flags[@]}" -static bench/guest/nboot.c -o "$out/boot/init"
}

build_root() {
    local root=$out/stage/r tree
    rm -rf "$root"
    mkdir -p "$root"
    while read -r tree; do cp -a --link "$tree/." "$root/"; done <<<"$program_trees"
    (
        cd "$root"
        rm -rf usr/share var usr/include usr/sbin usr/lib/valgrind usr/lib/x86_64-linux-gnu/gconv
        find usr/lib/gcc -type f ! -name cc1 -delete
        find usr/bin -mindepth 1 ! -name python3.11 ! -name perl ! -name luajit -delete
        cd usr/lib/python3.11
        rm -rf test lib2to3 idlelib ensurepip distutils unittest tkinter pydoc_data turtledemo asyncio xmlrpc wsgiref lib-dynload
    )
    mkdir -p "$root/bench"
    cp bench/guest/work.* "$root/bench/"
    # What the compiler compiles: our own integer programs.
    "$cc" -E -P bench/guest/integer.c -o "$root/bench/work.i"
}

build_nano() {
    # shellcheck disable=SC2054 # the commas belong to the linker's options
    local flags=(-std=gnu17 -O2 -m64 -ffreestanding -nostdlib -fpie -fvisibility=hidden -mno-red-zone -mgeneral-regs-only
        -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -Wall -Wextra -Werror -Itests/kernels/lib
        -static -no-pie -Wl,--build-id=none -Wl,-z,max-page-size=4096 -Wl,--no-warn-rwx-segments
        -Wl,-T,tests/kernels/lib/kernel.ld)
    "$cc" "${flags[@]}" bench/nano/nano.c tests/kernels/lib/*.c tests/kernels/lib/*.S -o "$out/obj/nano.64"
    objcopy -O elf32-i386 "$out/obj/nano.64" "$out/nano.elf" # multiboot 1 loads 32-bit ELF files
}

if newer "$out/bench.cpio" bench/build.sh bench/guest/* tools/mkcpio.c; then
    echo "bench: building the programs" >&2
    build_programs
    build_root
    "$cc" -std=gnu17 -O2 -Wall -Wextra -Werror tools/mkcpio.c -o "$out/mkcpio"
    "$out/mkcpio" "$out/boot.cpio" "$out/boot"
    "$out/mkcpio" "$out/bench.cpio.part" "$out/stage"
    mv "$out/bench.cpio.part" "$out/bench.cpio"
fi
if newer "$out/nano.elf" bench/build.sh bench/nano/* tests/kernels/lib/*; then
    build_nano
fi
