#!/bin/bash
# The tests of network back ends where a tap device can always be made.
# lab: --numa 2 --hugepages 32
program=${NACELLE_BUILD:-build}/tests/unit/test_net
[ -x "$program" ] || { echo "no $program here (make unit builds it)" && exit 77; }
modprobe tun || exit 1
log=/run/test_net.log
# The box's emulated CPU is slow: what is measured in time is measured elsewhere.
CMOCKA_TEST_FILTER="test_tap*" "$program" >$log 2>&1
status=$?
if [ $status = 0 ] && grep -q 'OK \] test_tap_device' $log; then
    echo "PASS lab/tap"
else
    cat $log
    echo "FAIL lab/tap"
    exit 1
fi
