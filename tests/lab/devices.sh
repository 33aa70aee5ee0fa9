#!/bin/bash
# devices.sh prepare|run: guest tests of box/kvm-devices.sh.
cd "$(dirname "$0")/../.." || exit 1
# shellcheck disable=SC1091
. tests/guest/lib.sh
read -ra names <<<"${NACELLE_LAB_GUESTS:-kernels virtio net ahci pci several full}"
case $1 in
prepare)
    tools/kernel.sh cloud && tools/kernel.sh generic || exit
    # What kernels.sh compares with.
    guest_prepare boot cloud 1 && guest_prepare boot cloud 4 && guest_prepare boot generic 2 && guest_prepare busybox || exit
    for name in virtio net ahci ahci-reset pci irq several full; do guest_image "$name" || exit; done
    ;;
run)
    failed=0
    for name in "${names[@]}"; do
        started=$SECONDS
        # (Eight CPUs in a box of two get nowhere.)
        NACELLE_LONG=$([ "$name" = kernels ] || echo 1) timeout -k 5 $((600 * ${NACELLE_SLOWER:-1})) "tests/guest/$name.sh"
        status=$?
        echo "-- guest/$name on kvm: status $status after $((SECONDS - started)) s"
        case $status in
        0) ;;
        77) echo "SKIP lab/guest/$name" ;;
        *) failed=1 && echo "FAIL lab/guest/$name (status $status)" ;;
        esac
    done
    exit $failed
    ;;
esac
