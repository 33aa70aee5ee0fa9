#!/bin/bash
# tests/guest/build-static.sh NAME: builds build/guest/NAME from tests/guest/NAME.c: static, since the guest has no libraries.
set -eu
cd "$(dirname "$0")/../.."
mkdir -p build/guest
[ "build/guest/$1" -nt "tests/guest/$1.c" ] && exit 0
"${CC:-gcc}" -std=gnu17 -O2 -Wall -Wextra -Werror -static "tests/guest/$1.c" -o "build/guest/$1.$$"
mv "build/guest/$1.$$" "build/guest/$1"
