#!/bin/bash
# Linux on the PCI bus, with configuration space by ECAM and by ports, with messages and with wires to either controller, with BARs moved by the kernel.
cd "$(dirname "$0")/../.." || exit 1
. tests/guest/lib.sh
[ "$guest_runner" = nacelle ] || { echo "the guest needs --disk" && exit 77; }
failed=0

# pci_case NAME KERNEL-OPTIONS MSI
pci_case() {
    local name=pci-$1 started=$SECONDS dir out kernel sum status
    out=$guest_work/$name dir=$(mktemp -d "$guest_work/$name.XXXXXX")
    kernel=$(tools/kernel.sh generic) && guest_image pci || return 1
    head -c 1048576 /dev/urandom >"$dir/a"
    sum=$(sha256sum <"$dir/a" | cut -c1-64)
    guest_append=$2 NACELLE_RUN_OPTIONS="-d $dir/a,if=ahci,ro -d $dir/a,if=virtio,ro" \
        guest_run nacelle "$out" 120 "$kernel" "$guest_initrd" 1 384M
    status=$?
    cat >"$out.expected" <<END
00:00.0 0600: 8086:0d57
00:01.0 0100: 1af4:1042
00:02.0 0106: 8086:2922
00:03.0 00ff: 1af4:1044
function level reset
version: 0x00010301
moved: 0x00010301 0xFFFFFFFF
sda: $sum
vda: $sum
MSI: $3
END
    if [ $status = 0 ] && diff "$out.expected" "$out"; then
        echo "PASS guest/$name ($((SECONDS - started)) s)"
    else
        echo "FAIL guest/$name ($((SECONDS - started)) s)"
        failed=1
    fi
    rm -rf "$dir"
}
# irq_case NAME KERNEL-OPTIONS: systems that do not use the IOAPIC
irq_case() {
    local name=pci-$1 started=$SECONDS dir out kernel sum status
    out=$guest_work/$name dir=$(mktemp -d "$guest_work/$name.XXXXXX")
    kernel=$(tools/kernel.sh generic) && guest_image irq || return 1
    head -c 1048576 /dev/urandom >"$dir/a"
    sum=$(sha256sum <"$dir/a" | cut -c1-64)
    guest_append=$2 NACELLE_RUN_OPTIONS="-d $dir/a,if=ahci,ro -d $dir/a,ro --net user,model=e1000" \
        guest_run nacelle "$out" 120 "$kernel" "$guest_initrd" 1 384M
    status=$?
    cat >"$out.expected" <<END
sda: $sum
vda: $sum
2 packets transmitted, 2 packets received
ahci: by the 8259s, line 5:
virtio0: by the 8259s, line 10:
eth0: by the 8259s, line 5:
END
    if [ $status = 0 ] && diff "$out.expected" "$out"; then
        echo "PASS guest/$name ($((SECONDS - started)) s)"
    else
        echo "FAIL guest/$name ($((SECONDS - started)) s)"
        failed=1
    fi
    rm -rf "$dir"
}
pci_case plain "" yes
pci_case ports "pci=conf1,nommconf" yes
pci_case wired "pci=nomsi" 0
irq_case noapic "noapic pci=nomsi"
irq_case line-register "noapic pci=noacpi,nomsi"
[ -z "${NACELLE_LONG:-}" ] || {
    irq_case nolapic "nolapic pci=nomsi"
    pci_case realloc "pci=realloc,nocrs" yes
    pci_case nommconf "pci=nommconf" yes
}
exit $failed
