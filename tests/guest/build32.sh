#!/bin/bash
# Builds the 32-bit guest programs into build/guest/, with Debian's 32-bit C library from its package, not installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=build/guest
mapfile -t dirs < <(tools/packages.sh --alone libc6-dev-i386 lib32gcc-12-dev)
libc=${dirs[0]}/usr libgcc=$(echo "${dirs[1]}"/usr/lib/gcc/x86_64-linux-gnu/*/32)
newer() { [ -e "$2" ] && [ "$2" -nt "$1" ] && [ "$2" -nt tests/guest/build32.sh ]; }
if ! newer tests/guest/program32.c $cache/program32; then
    gcc -m32 -std=gnu17 -O2 -Wall -Wextra -Werror -fno-pie -isystem /usr/include/x86_64-linux-gnu \
        -isystem "$libc/include/x86_64-linux-gnu" -c tests/guest/program32.c -o $cache/program32.o
    ld -m elf_i386 -static -o $cache/program32.new "$libc/lib32/crt1.o" "$libc/lib32/crti.o" $cache/program32.o \
        -L"$libc/lib32" -L"$libgcc" --start-group -lm -lpthread -lc -lgcc -lgcc_eh --end-group "$libc/lib32/crtn.o"
    mv $cache/program32.new $cache/program32
fi
if ! newer tests/guest/tiny32.asm $cache/tiny32; then
    nasm -f elf32 tests/guest/tiny32.asm -o $cache/tiny32.o
    ld -m elf_i386 -o $cache/tiny32.new $cache/tiny32.o
    nasm -DFAR_RETURN -f elf32 tests/guest/tiny32.asm -o $cache/tiny32.o
    ld -m elf_i386 -o $cache/farreturn32 $cache/tiny32.o
    mv $cache/tiny32.new $cache/tiny32
fi
