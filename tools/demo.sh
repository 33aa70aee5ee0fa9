#!/bin/bash
# tools/demo.sh: boots Debian's own cloud kernel, unmodified, under Nacelle. On a terminal you get a shell in the
# guest; without one the guest runs a short session and powers itself off, and this exits with 0 only if all of it worked.
# `make demo` calls it when everything is built.
set -euo pipefail
cd "$(dirname "$0")/.."
nacelle=${NACELLE:-build/nacelle}
kernel=$(tools/kernel.sh cloud)
initrd=build/guest/demo.cpio

step() { echo "demo: $*"; }
step "the kernel: Debian's $(basename "$(realpath "$kernel")")"
step "the initramfs: busybox, in $initrd"
tools/initramfs.sh -t tools/guest/session.sh "$initrd"

append="console=ttyS0 quiet"
command=("$nacelle" run --no-reboot -k "$kernel" -i "$initrd" -m 512M)
[ "${NACELLE_RUNNER:-}" != qemu ] || command=(qemu-system-x86_64 -accel tcg -cpu max -no-reboot -display none -nodefaults
    -serial stdio -kernel "$kernel" -initrd "$initrd" -m 512M)
option=-a
[ "${NACELLE_RUNNER:-}" != qemu ] || option=-append

if [ -t 0 ] && [ -t 1 ]; then
    step "$(printf '%q ' "${command[@]}" $option "$append nacelle.shell")"
    step "you get a shell; \"exit\" powers the guest off, Ctrl-A x ends it at once"
    exec "${command[@]}" $option "$append nacelle.shell"
fi

step "$(printf '%q ' "${command[@]}" $option "$append")"
step "no terminal: a short session in the guest"
output=$(mktemp)
trap 'rm -f "$output"' EXIT
started=$(date +%s%N)
status=0
timeout -k 5 "${NACELLE_DEMO_LIMIT:-300}" "${command[@]}" $option "$append" </dev/null | tee "$output" | tr -d '\r' | grep -v '^@@' || status=$?
if [ $status != 0 ]; then
    step "failed: the virtual machine ended with status $status" >&2
    exit 1
fi
if ! tr -d '\r' <"$output" | grep -qx '@@END 0'; then
    step "failed: the session in the guest did not end well" >&2
    exit 1
fi
step "done: booted, worked and powered off in $((($(date +%s%N) - started) / 1000000)) ms"
