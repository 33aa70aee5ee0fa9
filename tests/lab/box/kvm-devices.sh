#!/bin/bash
# All other guest tests that run on soft, on the KVM engine: kernels with more CPUs, all kinds of disks, networks and virtio devices, several machines
# at once, full host file systems. (kvm-guests.sh, kvm-io.sh, kvm-plug.sh have the rest.) NACELLE_LAB_GUESTS="NAME..." takes only these.
# prepare: tests/lab/devices.sh prepare
# lab: --memory 3G
# limit: 3600
# long
modprobe -a tun loop crc32c_generic ext4 || exit 1
# The box's own files are in memory, where O_DIRECT cannot be had, and the checkout has no sockets: a file system on a loop device has both.
truncate -s 1G /run/work.img && mkfs.ext4 -q /run/work.img && mkdir /run/work && mount -o loop /run/work.img /run/work || exit 1
export NACELLE_GUEST_WORK=/run/work/guest-tests TMPDIR=/run/work
export NACELLE_ENGINE=kvm NACELLE_APPEND="noxsave mitigations=off tsc=reliable"
exec tests/lab/devices.sh run
