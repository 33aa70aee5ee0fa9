#!/bin/bash
# Disks on block devices and on full file systems, where loop devices and mounts can always be had.
# lab: --numa 2 --hugepages 32
program=$(realpath "${NACELLE_BUILD:-build}/tests/unit/test_block_device")
[ -x "$program" ] || { echo "no $program here (make unit builds it)" && exit 77; }
modprobe loop || exit 1
log=/run/test_block_device.log
cd /var/tmp && "$program" >$log 2>&1
status=$?
if [ $status = 0 ] && [ "$(grep -c ' OK \] ' $log)" = 5 ]; then
    echo "PASS lab/block-device"
else
    cat $log
    echo "FAIL lab/block-device"
    exit 1
fi
