# One of several machines: checks a shared tree, copies it to its own disk, checks it there after a remount, and uses its network.
# kernel: generic
# modules: virtio_pci virtio_blk virtio_net ahci sd_mod e1000 ext4 crc32c_generic
# packages: e2fsprogs
number=$(tr ' ' '\n' </proc/cmdline | sed -n 's/^several.number=//p')
modprobe virtio_pci && modprobe virtio_blk && modprobe crc32c_generic && modprobe ext4 || exit 1
own=vda shared=vdb card=virtio_net
[ "$number" != 2 ] || { own=sda shared=vda card=e1000 && modprobe ahci && modprobe sd_mod; }
n=0
while { [ ! -b /dev/$own ] || [ ! -b /dev/$shared ]; } && [ $n -lt 300 ]; do n=$((n + 1)) && sleep 0.1; done
modprobe $card
tree_sum() { (cd "$1" && find . -type f | grep -v lost+found | sort | xargs md5sum | md5sum | cut -c1-32); }
mkdir -p /own /shared
mount -t ext4 -o ro,noload /dev/$shared /shared && echo "shared $(tree_sum /shared)" || exit 1
/sbin/mke2fs -q -t ext4 /dev/$own && mount -t ext4 /dev/$own /own || exit 1
cp -a /shared/d? /own/ && umount /own && mount -t ext4 /dev/$own /own || exit 1
echo "copied $(tree_sum /own)"
umount /own /shared
ip link set eth0 up && ip address add 10.0.2.15/24 dev eth0
n=0
while ! ping -c 1 -W 1 10.0.2.2 >/dev/null && [ $n -lt 60 ]; do n=$((n + 1)); done
ping -c 3 -W 30 10.0.2.2 | sed -n 's/.* \([0-9]\) packets received.*/network \1 of 3/p'
