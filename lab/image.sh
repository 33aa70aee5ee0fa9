#!/bin/bash
# lab/image.sh: makes the box's kernel and initramfs and prints three lines: the kernel (an uncompressed
# ELF file), the initramfs, and the directory of the kernel's modules. No root is needed.
#
# The kernel is Debian's own linux-image-amd64, unpacked from its bzImage on the host: decompressing it
# under emulation takes seconds. The initramfs has busybox and what it takes to reach the shared root file system, and no more.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${NACELLE_GUEST_CACHE:-build/guest}
out=$cache/lab
mkdir -p "$out"
# Two that start at once build it once.
exec 9>"$out/lock"
flock 9

# What /init loads, in its order (each after what it depends on): output, file systems, then KVM.
wanted=(virtio_pci virtio_console 9pnet_virtio 9p overlay kvm-amd)

vmlinuz=$(readlink -f "$(tools/kernel.sh generic)")
release=${vmlinuz##*/vmlinuz-}
modules=${vmlinuz%/boot/*}/lib/modules/$release
busybox=$(tools/packages.sh --alone busybox-static)/bin/busybox

# The package leaves this to its installation.
if [ ! -e "$modules/.depmod-done" ]; then
    "$busybox" depmod -b "${vmlinuz%/boot/*}" "$release"
    touch "$modules/.depmod-done"
fi

kernel=$out/vmlinux-$release
if [ ! -s "$kernel" ]; then
    # Documentation/arch/x86/boot.rst: setup_sects (0x1f1), payload_offset (0x248, from the protected-mode
    # code on), payload_length (0x24c); the payload ends with four bytes that are its size unpacked.
    number() { od -An -t "u$2" -j $(($1)) -N "$2" "$vmlinuz" | tr -d ' '; }
    start=$((($(number 0x1f1 1) + 1) * 512 + $(number 0x248 4)))
    length=$(($(number 0x24c 4) - 4))
    if ! head -c $((start + length)) "$vmlinuz" | tail -c $length | xz -dc >"$kernel.$$"; then
        rm -f "$kernel.$$"
        echo "lab: the kernel in $vmlinuz is not packed by xz, which this knows" >&2
        exit 1
    fi
    mv "$kernel.$$" "$kernel"
fi

initrd=$out/initramfs-$release.cpio
key=$({
    echo "$busybox ${wanted[*]}"
    cat lab/image.sh lab/init lab/kvm_pin.c tools/mkcpio.c
} | sha256sum)
if [ ! -s "$initrd" ] || [ "$(cat "$initrd.key" 2>/dev/null)" != "$key" ]; then
    mkcpio=$out/mkcpio
    "${CC:-gcc}" -std=gnu17 -O2 tools/mkcpio.c -o "$mkcpio"
    tree=$(mktemp -d "$out/tree.XXXXXX")
    trap 'rm -rf "$tree"' EXIT
    chmod 755 "$tree"
    mkdir -p "$tree"/{bin,dev,proc,sys,modules,lower,upper,root}
    cp "$busybox" "$tree/bin/busybox"
    install -m 755 lab/init "$tree/init"
    "${CC:-gcc}" -std=gnu17 -O2 -static lab/kvm_pin.c -o "$tree/bin/kvm_pin"
    for name in "${wanted[@]}"; do
        # "path: dependency dependency…", what is needed first comes last.
        line=$(grep "/$name\.ko:" "$modules/modules.dep") || { echo "lab: the kernel has no module $name" >&2 && exit 1; }
        # shellcheck disable=SC2086 # words on purpose
        for path in $(printf '%s\n' ${line/:/} | tac); do
            module=${path##*/}
            [ ! -e "$tree/modules/$module" ] || continue
            cp "$modules/$path" "$tree/modules/$module"
            echo "${module%.ko}" >>"$tree/modules/order"
        done
    done
    "$mkcpio" "$initrd.$$" "$tree"
    mv "$initrd.$$" "$initrd"
    echo "$key" >"$initrd.key"
fi
realpath "$kernel" "$initrd" "$modules"
