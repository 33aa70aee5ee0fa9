# Wired PCI interrupts through the 8259s: a disk of each kind and a network card, all of their interrupts counted there.
# kernel: generic
# modules: virtio_pci virtio_blk ahci sd_mod e1000
modprobe virtio_pci && modprobe virtio_blk && modprobe ahci && modprobe sd_mod && modprobe e1000
n=0
while { [ ! -b /dev/sda ] || [ ! -b /dev/vda ]; } && [ $n -lt 200 ]; do n=$((n + 1)) && sleep 0.1; done
for d in sda vda; do echo "$d: $(dd if=/dev/$d bs=64k count=16 iflag=direct 2>/dev/null | sha256sum | cut -c1-64)"; done
ip link set eth0 up && ip address add 10.0.2.15/24 dev eth0
n=0
while ! ping -c 1 -W 1 10.0.2.2 >/dev/null && [ $n -lt 30 ]; do n=$((n + 1)); done
ping -c 2 -W 20 10.0.2.2 | sed -n 's/, 0% packet loss//p'
# The kernel gives a line of which nobody takes the interrupts up, and says so.
dmesg | grep -iE 'nobody cared|spurious|disabling irq'
for d in ahci virtio0 eth0; do
    # Two of them share a line: "ahci[0000:00:03.0], eth0".
    awk -v d="$d" '$0 ~ " " d "[^ ]*(,|$)" && $3 == "XT-PIC" && $2 > 3 { print d ": by the 8259s, line " $1 }' /proc/interrupts
done
