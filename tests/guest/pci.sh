#!/bin/bash
# pci.sh [NAME...]: Linux on the PCI bus, with configuration space by ECAM and by ports, with messages and with wires to either controller, with BARs moved by the kernel.
cd "$(dirname "$0")/../.." || exit 1
. tests/guest/lib.sh
[ "$guest_runner" = nacelle ] || { echo "the guest needs --disk" && exit 77; }
failed=0
only=" $* "
wanted() { [ "$only" = "  " ] || [[ $only == *" $1 "* ]]; }
limit=120
# Everything takes longer there.
[ -z "${NACELLE_LAB:-}" ] || limit=$((90 * ${NACELLE_SLOWER:-1}))

# boot_case NAME KERNEL-OPTIONS SCRIPT OTHER-OPTIONS: what tests/guest/scripts/SCRIPT.sh says of a machine with the same 1 MiB behind AHCI and behind
# virtio is what standard input has, with its checksum for SUM.
boot_case() {
    local name=pci-$1 started=$SECONDS dir out kernel sum
    wanted "$1" || return 0
    [ "${NACELLE_ENGINE:-soft}" = soft ] || name+=-$NACELLE_ENGINE
    out=$guest_work/$name dir=$(mktemp -d "$guest_work/$name.XXXXXX")
    head -c 1048576 /dev/urandom >"$dir/a"
    sum=$(sha256sum <"$dir/a" | cut -c1-64)
    sed "s/SUM/$sum/" >"$out.expected"
    if kernel=$(tools/kernel.sh generic) && guest_image "$3" &&
        guest_append=$2 NACELLE_RUN_OPTIONS="-d $dir/a,if=ahci,ro -d $dir/a,if=virtio,ro $4" \
            guest_run nacelle "$out" $limit "$kernel" "$guest_initrd" 1 384M &&
        diff "$out.expected" "$out"; then
        echo "PASS guest/$name ($((SECONDS - started)) s)"
    else
        echo "FAIL guest/$name ($((SECONDS - started)) s)"
        failed=1
    fi
    rm -rf "$dir"
}
# pci_case NAME KERNEL-OPTIONS MSI
pci_case() {
    boot_case "$1" "$2" pci "" <<END
00:00.0 0600: 8086:0d57
00:01.0 0100: 1af4:1042
00:02.0 0106: 8086:2922
00:03.0 00ff: 1af4:1044
function level reset
version: 0x00010301
moved: 0x00010301 0xFFFFFFFF
sda: SUM
vda: SUM
MSI: $3
END
}
# irq_case NAME KERNEL-OPTIONS: systems that do not use the IOAPIC
irq_case() {
    boot_case "$1" "$2" irq "--net user,model=e1000" <<END
sda: SUM
vda: SUM
2 packets transmitted, 2 packets received
ahci: by the 8259s, line 5:
virtio0: by the 8259s, line 10:
eth0: by the 8259s, line 5:
END
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
