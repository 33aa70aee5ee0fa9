#!/bin/bash
# Debian's cloud and generic kernels boot, with 1, 2, 4 and 8 CPUs; busybox's applets; user land.
cd "$(dirname "$0")/../.." || exit 1
. tests/guest/lib.sh
failed=0
case_() { guest_case "$@" || failed=1; }
case_ boot cloud 1
case_ boot cloud 4
case_ boot generic 2
case_ busybox cloud 1
[ -z "${NACELLE_LONG:-}" ] || for cpus in 2 8; do case_ boot cloud $cpus; case_ boot generic $cpus; done
exit $failed
