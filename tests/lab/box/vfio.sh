#!/bin/bash
# Devices to pass on: an IOMMU with groups, and virtual functions of an NVMe controller, driven by the box and by VFIO.
# lab: --iommu intel --nvme-sriov
failed=0
check() {
    local name=$1
    shift
    if "$@"; then echo "PASS lab/vfio/$name"; else echo "FAIL lab/vfio/$name" && failed=1; fi
}
await() {
    for ((i = 0; i < 200; i++)); do
        "$@" && return
        sleep 0.1
    done
    return 1
}
bind() {
    echo "$2" >"/sys/bus/pci/devices/$1/driver_override"
    [ ! -e "/sys/bus/pci/devices/$1/driver" ] || echo "$1" >"/sys/bus/pci/devices/$1/driver/unbind"
    echo "$1" >/sys/bus/pci/drivers_probe
}
await [ -e /dev/nvme0n1 ]
mapfile -t functions < <(lab/nvme-vfs 2)
check functions [ ${#functions[@]} = 2 ]
group() { basename "$(readlink -f "/sys/bus/pci/devices/$1/iommu_group")"; }
check own-groups [ "$(group "${functions[0]}")" != "$(group "${functions[1]}")" ]
bind "${functions[0]}" nvme
live() { grep -qsx live /sys/bus/pci/devices/"${functions[0]}"/nvme/nvme*/state; }
check driven-by-the-box await live
bind "${functions[1]}" vfio-pci
check driven-by-vfio await [ -c "/dev/vfio/$(group "${functions[1]}")" ]
check doctor grep -q '^iommu  *ok ' <("${NACELLE:-build/nacelle}" doctor)
exit $failed
