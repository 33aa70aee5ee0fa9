#!/bin/bash
# tools/initramfs.sh [-p PACKAGE]... [-f FILE:PATH]... [-k KERNEL -m MODULE...] [-t SCRIPT] OUT: builds an initramfs from
# Debian's busybox-static, further Debian packages with what they depend on, and files of ours. No root is needed.
# MODULEs of Debian's KERNEL (cloud or generic) come with what they depend on, for modprobe in the guest.
# SCRIPT becomes /test.sh, which tools/guest/init runs; without it the guest gives a shell.
# OUT is left alone when it was made from the same things already.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${NACELLE_GUEST_CACHE:-build/guest}
usage="usage: tools/initramfs.sh [-p PACKAGE]... [-f FILE:PATH]... [-k KERNEL -m MODULE...] [-t SCRIPT] OUT"

packages=()
modules=() kernel=cloud
files=(tools/guest/init:init tools/guest/motd:etc/motd tools/guest/passwd:etc/passwd tools/guest/group:etc/group)
while getopts p:f:k:m:t: option; do
    case $option in
    p) packages+=("$OPTARG") ;;
    f) files+=("$OPTARG") ;;
    k) kernel=$OPTARG ;;
    m) modules+=("$OPTARG") ;;
    t) files+=("$OPTARG:test.sh") ;;
    *) echo "$usage" >&2 && exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# = 1 ] || { echo "$usage" >&2 && exit 2; }
out=$1
mkdir -p "$cache" "$(dirname "$out")"

mkcpio=$cache/mkcpio
if [ ! -x "$mkcpio" ] || [ tools/mkcpio.c -nt "$mkcpio" ]; then
    "${CC:-gcc}" -std=gnu17 -O2 -Wall -Wextra -Werror tools/mkcpio.c -o "$mkcpio.$$"
    mv "$mkcpio.$$" "$mkcpio"
fi

trees=$(tools/packages.sh --alone busybox-static)
[ ${#packages[@]} = 0 ] || trees+=$'\n'$(tools/packages.sh "${packages[@]}")

vmlinuz=
[ ${#modules[@]} = 0 ] || vmlinuz=$(readlink -f "$(tools/kernel.sh "$kernel")")

# The same parts make the same file: skip the work when nothing changed.
parts=$({
    echo "$trees"
    echo "$vmlinuz ${modules[*]}"
    sha256sum tools/initramfs.sh tools/mkcpio.c
    for file in "${files[@]}"; do echo "$file $(sha256sum <"${file%%:*}")"; done
} | sha256sum)
if [ -e "$out" ] && [ "$(cat "$out.parts" 2>/dev/null)" = "$parts" ]; then exit 0; fi

overlay=$(mktemp -d "$cache/overlay.XXXXXX")
trap 'rm -rf "$overlay" "$out.$$"' EXIT
chmod 755 "$overlay"
mkdir -p "$overlay"/{bin,sbin,etc,dev,proc,sys,tmp,run,root,usr/bin,usr/sbin,busybox}
ln -s busybox "$overlay/bin/sh"
ln -s /bin/busybox "$overlay/usr/bin/env"
for file in "${files[@]}"; do
    install -D -m 755 "${file%%:*}" "$overlay/${file#*:}"
done

if [ ${#modules[@]} -gt 0 ]; then
    release=${vmlinuz##*/vmlinuz-}
    from=${vmlinuz%/boot/*}/lib/modules/$release
    to=$overlay/lib/modules/$release
    # The package leaves this to its installation.
    if [ ! -s "$from/modules.dep" ]; then
        "$(tools/packages.sh --alone busybox-static)/bin/busybox" depmod -b "${vmlinuz%/boot/*}" "$release"
    fi
    mkdir -p "$to"
    for module in "${modules[@]}"; do
        # "path: dependency dependency...", with all that those depend on.
        line=$(grep "/$module\.ko:" "$from/modules.dep") || { echo "initramfs: $release has no module $module" >&2 && exit 1; }
        for path in ${line/:/}; do
            [ ! -e "$to/$path" ] || continue
            install -D -m 644 "$from/$path" "$to/$path"
            grep "^$path:" "$from/modules.dep" >>"$to/modules.dep"
        done
    done
fi

mapfile -t tree_list <<<"$trees"
"$mkcpio" -x usr/share/doc -x usr/share/man -x usr/share/locale -x usr/share/info -x usr/share/lintian \
    -x usr/share/bash-completion "$out.$$" "${tree_list[@]}" "$overlay"
# (Both anew: a copy of this directory may be made of hard links.)
mv "$out.$$" "$out"
echo "$parts" >"$out.parts.$$"
mv "$out.parts.$$" "$out.parts"
