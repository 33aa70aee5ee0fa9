#!/bin/bash
# Builds build/guest/vsock, the guest's end of the vsock test: static, since the guest has no libraries.
set -eu
cd "$(dirname "$0")/../.."
mkdir -p build/guest
[ build/guest/vsock -nt tests/guest/vsock.c ] && exit 0
"${CC:-gcc}" -std=gnu17 -O2 -Wall -Wextra -Werror -static tests/guest/vsock.c -o "build/guest/vsock.$$"
mv "build/guest/vsock.$$" build/guest/vsock
