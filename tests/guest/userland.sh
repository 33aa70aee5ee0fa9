#!/bin/bash
# Debian's own programs run in the guest and write what they write under QEMU.
# tests/guest/userland.sh [NAME...] runs only these guest scripts.
cd "$(dirname "$0")/../.." || exit 1
. tests/guest/lib.sh
failed=0
names=("$@")
[ $# -gt 0 ] || names=(program32 farreturn sqlite perl luajit python openssl xz git gcc node stress)
for name in "${names[@]}"; do guest_case "$name" || failed=1; done
exit $failed
