#!/bin/bash
# What the box offers: KVM with nested paging, NUMA nodes, cgroup v2, huge pages, this host's files, the checkout's build.
# lab: --numa 2 --hugepages 32
failed=0
check() {
    local name=$1
    shift
    if "$@"; then echo "PASS lab/host/$name"; else echo "FAIL lab/host/$name" && failed=1; fi
}
check kvm [ -c /dev/kvm ]
check nested-paging grep -qx '[Y1]' /sys/module/kvm_amd/parameters/npt
check numa [ "$(echo /sys/devices/system/node/node[0-9]*)" = "/sys/devices/system/node/node0 /sys/devices/system/node/node1" ]
check hugepages [ "$(</sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)" = 32 ]
controllers() {
    local c
    for c in cpu memory io cpuset; do grep -qw $c /sys/fs/cgroup/cgroup.subtree_control || return 1; done
}
check cgroup-v2 controllers
check build "${NACELLE:-build/nacelle}" version
# Written files stay in the box, but for the checkout's.
check overlay touch /usr/lab-was-here
check modprobe modprobe tun
check tun [ -c /dev/net/tun ]
exit $failed
