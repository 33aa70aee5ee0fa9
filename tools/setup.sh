#!/bin/bash
# tools/setup.sh GROUP...: makes sure that the Debian packages of these groups are installed.
#
# Says which are missing and what for, installs them with apt-get (through sudo when not root), and asks
# the archive for new package lists only when it has to. Silent and quick when everything is there.
# Groups: build, test, lint, fetch (what tools/packages.sh and tools/initramfs.sh need), image (tools/image.sh), peer (QEMU), lab (what lab/run needs).
set -euo pipefail

declare -A why=(
    [gcc]="the compiler"
    [make]="the build"
    [libc6-dev]="the C library's headers"
    [binutils]="the linker"
    [libzydis-dev]="decoding of x86 instructions"
    [libcjson-dev]="JSON"
    [liburing-dev]="disk I/O by io_uring"
    [libslirp-dev]="user networking"
    [iperf3]="network speed and limits"
    [iproute2]="network tests"
    [libcmocka-dev]="unit tests"
    [nasm]="test kernels in assembly"
    [python3]="terminal tests"
    [acpica-tools]="iasl, which checks our ACPI tables"
    [qemu-system-x86]="the peer that results and speed are compared with"
    [clang]="lint: the second compiler"
    [clang-format]="lint: layout"
    [clang-tidy]="lint: static checks"
    [shellcheck]="lint: shell scripts"
    [qemu-system-common]="qemu-storage-daemon, which qcow2 and nbd disks need when they are used"
    [qemu-utils]="qcow2 images and an NBD server for tests"
    [mmdebstrap]="the Debian disk image"
    [e2fsprogs]="the disk image's file system"
    [fakeroot]="the disk image's file owners, when not root"
    [openssh-client]="the disk image's keys, and the way into the guest"
    [ca-certificates]="package downloads"
    [xz-utils]="unpacking of Debian packages"
)
group_packages() {
    case $1 in
    build) echo gcc make libc6-dev binutils libzydis-dev libcjson-dev liburing-dev libslirp-dev ;;
    test) echo libcmocka-dev nasm python3 acpica-tools iperf3 iproute2 qemu-system-common qemu-utils ;;
    fetch) echo ca-certificates xz-utils ;;
    peer) echo qemu-system-x86 ;;
    lab) echo gcc libc6-dev python3 qemu-system-x86 ca-certificates xz-utils ;;
    image) echo mmdebstrap e2fsprogs fakeroot openssh-client ;;
    lint) echo clang clang-format clang-tidy shellcheck ;;
    *) echo "tools/setup.sh: no group '$1'; there are build, test, fetch, image, peer, lab, lint" >&2 && exit 2 ;;
    esac
}

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "setup: not root and there is no sudo; run as root: $*" >&2
        exit 1
    fi
}

missing=()
for group in "$@"; do
    for package in $(group_packages "$group"); do
        installed "$package" || missing+=("$package")
    done
done
[ ${#missing[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null || {
    echo "setup: this needs Debian's apt-get; elsewhere install by hand: ${missing[*]}" >&2
    exit 1
}
echo "setup: installing ${#missing[@]} Debian packages:"
for package in "${missing[@]}"; do
    printf '  %-18s %s\n' "$package" "${why[$package]:-}"
done

install_missing() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" \
        >"$log" 2>&1
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The first try works where the lists are there and fresh; a fresh container has none.
if ! install_missing; then
    echo "setup: fetching new package lists"
    as_root apt-get update -q >"$log" 2>&1 && install_missing || {
        cat "$log" >&2
        echo "setup: apt-get failed, see above" >&2
        exit 1
    }
fi
echo "setup: done"
