# What Linux makes of the PCI bus: no complaints, the devices, a function level reset, a BAR that moves, and a disk that
# works afterwards. tests/guest/pci.sh runs it under several kernel options.
# packages: pciutils
# kernel: generic
# modules: virtio_pci virtio_blk ahci sd_mod
dmesg | grep -iE 'pci|acpi|mmconfig' | grep -iE "error|fail|warn|bug|can't|cannot|unable|conflict|invalid|no compatible|not reserved|overlap|bogus" |
    grep -v 'if necessary, use "pci='
lspci -n | sed 's/ *(.*//'
sata=$(lspci -n | sed -n 's/ 0106: .*//p')
base=$((0x$(setpci -s "$sata" BASE_ADDRESS_5)))
echo 1 >/sys/bus/pci/devices/0000:$sata/reset && [ $((0x$(setpci -s "$sata" BASE_ADDRESS_5))) = $base ] && echo "function level reset"
setpci -s "$sata" COMMAND=2
echo "version: $(devmem $((base + 0x10)))"
setpci -s "$sata" BASE_ADDRESS_5=$(printf %x $((base + 0x1000000)))
echo "moved: $(devmem $((base + 0x1000010))) $(devmem $((base + 0x10)))"
setpci -s "$sata" BASE_ADDRESS_5=$(printf %x $base) && setpci -s "$sata" COMMAND=0
modprobe virtio_pci && modprobe virtio_blk && modprobe ahci && modprobe sd_mod
n=0
while { [ ! -b /dev/sda ] || [ ! -b /dev/vda ]; } && [ $n -lt 200 ]; do n=$((n + 1)) && sleep 0.1; done
for d in sda vda; do echo "$d: $(dd if=/dev/$d bs=64k count=16 iflag=direct 2>/dev/null | sha256sum | cut -c1-64)"; done
echo "MSI: $(grep -c PCI-MSI /proc/interrupts | sed 's/^[1-9].*/yes/')"
