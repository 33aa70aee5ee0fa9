# Does what tests/guest/control.py says on the console, line by line.
# modules: virtio_pci virtio_blk virtio_net button evdev
for module in virtio_pci virtio_blk virtio_net button evdev; do modprobe $module || exit 1; done
ip link set eth0 up
mkdir -p /etc/acpi/PWRF
printf '#!/bin/sh\necho "the button" >/dev/console\npoweroff -f\n' >/etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
exec </dev/console
stty -echo
echo "control ready"
while read -r line; do
    eval "$line"
    echo "<$?>"
done
