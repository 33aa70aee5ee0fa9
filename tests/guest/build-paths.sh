#!/bin/bash
# Builds build/guest/paths, the guest's part of bench/io_paths.sh: static, since the guest has no libraries.
set -eu
cd "$(dirname "$0")/../.."
mkdir -p build/guest
[ build/guest/paths -nt tests/guest/paths.c ] && exit 0
"${CC:-gcc}" -std=gnu17 -O2 -Wall -Wextra -Werror -static tests/guest/paths.c -o "build/guest/paths.$$"
mv "build/guest/paths.$$" build/guest/paths
