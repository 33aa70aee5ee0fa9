#!/bin/bash
# tools/image.sh: builds the Debian 12 disk image that tests, benchmarks and the demo boot, and prints its directory.
#
#   disk.img             a raw ext4 file system, label nacelle, no partition table: systemd, sshd, fio, iperf3, Debian's generic kernel
#   vmlinuz, initrd.img  its kernel and initramfs, for: nacelle run -k vmlinuz -i initrd.img -d disk.img -a "root=LABEL=nacelle console=ttyS0"
#   id_ed25519           the key that root@guest lets in; on the console root's password is "nacelle"
#   known_hosts_key      the guest's host key, as in a known_hosts file after the name
#
# The guest asks for an address by DHCP on every Ethernet card. Tests work on copies (cp --sparse=always); the image itself is never
# started. It is built once (about a minute, 150 MB of downloads) and kept in build/guest/image; from root with mounts as well as
# from an unprivileged user; loop devices are not used. NACELLE_IMAGE_REBUILD=1 builds it anew.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$PWD/${NACELLE_GUEST_CACHE:-build/guest}
out=$cache/image
size=1400M # what the guest sees; the file is sparse

key=$(sha256sum <tools/image.sh | cut -c1-16)
if [ -z "${NACELLE_IMAGE_REBUILD:-}" ] && [ "$(cat "$out/.key" 2>/dev/null)" = "$key" ]; then
    echo "$out"
    exit 0
fi
tools/setup.sh image >&2
mkdir -p "$cache"
# One builder at a time; who waited finds it done.
exec 9>"$cache/image.lock"
flock 9
if [ -z "${NACELLE_IMAGE_REBUILD:-}" ] && [ "$(cat "$out/.key" 2>/dev/null)" = "$key" ]; then
    echo "$out"
    exit 0
fi
started=$SECONDS
echo "guest: building the Debian disk image" >&2
# Outside the tree: an unprivileged build runs as another user id there.
work=$(mktemp -d "${TMPDIR:-/tmp}/nacelle-image.XXXXXX")
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT

# Debian's own archives among those that this machine uses: "deb URI SUITE COMPONENT" lines.
sources() {
    apt-cache policy | awk '
        / Packages$/ { uri = $2; split($3, part, "/"); suite = part[1]; component = part[2]; next }
        /release / && /o=Debian,/ && uri != "" { print "deb", uri, suite, component; uri = "" }'
}
sources >"$work/sources.list"
if ! grep -q . "$work/sources.list"; then
    if [ "$(id -u)" = 0 ]; then apt-get update -q >&2; else sudo apt-get update -q >&2; fi
    sources >"$work/sources.list"
fi
grep -q . "$work/sources.list" || { echo "guest: apt knows no Debian archive" >&2 && exit 1; }
suite=$(awk '$3 !~ /-/ { print $3; exit }' "$work/sources.list")

rm -f "$work"/id_ed25519 "$work"/host
ssh-keygen -q -t ed25519 -N '' -C nacelle-test -f "$work/id_ed25519"
ssh-keygen -q -t ed25519 -N '' -C nacelle-guest -f "$work/host"

# The initramfs holds what finds the disk, not every driver there is: that is a fifth of the size, and of the time to unpack it.
modules="virtio_pci virtio_blk virtio_scsi ahci sd_mod nvme ata_piix ext4 crc32c_generic crc32c_intel"
cat >"$work/before.sh" <<EOF
set -e
mkdir -p "\$1/etc/initramfs-tools/conf.d" "\$1/usr/share/initramfs-tools/modules.d"
printf 'MODULES=list\nCOMPRESS=zstd\nRESUME=none\n' >"\$1/etc/initramfs-tools/conf.d/nacelle"
printf '%s\n' $modules >"\$1/usr/share/initramfs-tools/modules.d/nacelle"
EOF
cat >"$work/after.sh" <<EOF
set -e
root=\$1
echo nacelle-guest >"\$root/etc/hostname"
printf '127.0.0.1 localhost nacelle-guest\n' >"\$root/etc/hosts"
echo 'LABEL=nacelle / ext4 errors=remount-ro 0 1' >"\$root/etc/fstab"
echo 'nameserver 10.0.2.3' >"\$root/etc/resolv.conf"
mkdir -p "\$root/etc/systemd/network" "\$root/etc/systemd/system.conf.d" "\$root/root/.ssh"
# Hosts of tests may be slow: a minute and a half is then not enough for a device to show up.
printf '[Manager]\nDefaultTimeoutStartSec=15min\n' >"\$root/etc/systemd/system.conf.d/slow-host.conf"
printf '[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\n' >"\$root/etc/systemd/network/80-dhcp.network"
mkdir -p "\$root/etc/systemd/system/dev-ttyS0.device.d"
printf '[Unit]\nJobRunningTimeoutSec=15min\n' >"\$root/etc/systemd/system/dev-ttyS0.device.d/slow-host.conf"
chroot "\$root" systemctl -q enable systemd-networkd.service
chroot "\$root" systemctl -q disable systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer
install -m 600 "$work/host" "\$root/etc/ssh/ssh_host_ed25519_key"
install -m 644 "$work/host.pub" "\$root/etc/ssh/ssh_host_ed25519_key.pub"
rm -f "\$root"/etc/ssh/ssh_host_rsa_key* "\$root"/etc/ssh/ssh_host_ecdsa_key*
chmod 700 "\$root/root/.ssh"
install -m 600 "$work/id_ed25519.pub" "\$root/root/.ssh/authorized_keys"
echo root:nacelle | chroot "\$root" chpasswd
: >"\$root/etc/machine-id"
rm -rf "\$root"/var/lib/apt/lists/* "\$root"/var/cache/apt/*.bin "\$root"/var/cache/apt/archives/*.deb
EOF

packages=systemd,systemd-sysv,udev,dbus,libpam-systemd,login,passwd,kmod,zstd,iproute2,iputils-ping,procps,openssh-server,openssh-sftp-server
packages+=,fio,iperf3,e2fsprogs,ethtool,pciutils,linux-image-amd64
exclude=()
for path in '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/locale/*' '/usr/share/info/*' '/usr/share/lintian/*' \
    '/lib/modules/*/kernel/sound/*' '/lib/modules/*/kernel/drivers/'{gpu,media,infiniband,iio,staging,usb,hid,hwmon,isdn}'/*' \
    '/lib/modules/*/kernel/drivers/net/'{wireless,can,usb,fddi,hamradio}'/*' \
    '/lib/modules/*/kernel/net/'{wireless,mac80211,bluetooth}'/*' \
    '/usr/lib/x86_64-linux-gnu/perl/*' '/lib/systemd/boot/*'; do
    exclude+=(--dpkgopt="path-exclude=$path")
done
mmdebstrap --quiet --dpkgopt=force-unsafe-io --variant=minbase --include="$packages" "${exclude[@]}" \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    --essential-hook="sh $work/before.sh \"\$1\"" --customize-hook="sh $work/after.sh \"\$1\"" \
    "$suite" "$work/root.tar" "$work/sources.list" >"$work/log" 2>&1 || {
    tail -20 "$work/log" >&2
    echo "guest: mmdebstrap failed, see above" >&2
    exit 1
}

# Owners and rights must be the archive's: as root they are, else fakeroot remembers them.
cat >"$work/make.sh" <<EOF
set -e
mkdir "$work/root"
tar -C "$work/root" -xf "$work/root.tar" --numeric-owner --exclude='./dev/*'
cp -L "$work/root/vmlinuz" "$work/root/initrd.img" "$work"
chmod 644 "$work/vmlinuz" "$work/initrd.img"
rm -f "$work/disk.img"
truncate -s $size "$work/disk.img"
mke2fs -q -F -t ext4 -L nacelle -U 6e616365-6c6c-4e61-8365-6c6c65646562 -E lazy_itable_init=0,lazy_journal_init=0 -m 1 -N 40000 \\
    -d "$work/root" "$work/disk.img"
EOF
if [ "$(id -u)" = 0 ]; then sh "$work/make.sh"; else fakeroot sh "$work/make.sh"; fi

cut -d' ' -f1,2 <"$work/host.pub" >"$work/known_hosts_key"
mkdir -p "$out"
rm -f "$out/.key"
for file in disk.img vmlinuz initrd.img id_ed25519 known_hosts_key; do
    cp --sparse=always "$work/$file" "$out/$file.new"
    mv "$out/$file.new" "$out/$file"
done
chmod 600 "$out/id_ed25519"
chmod 444 "$out/disk.img"
echo "$key" >"$out/.key"
echo "guest: disk image built in $((SECONDS - started)) s: $(du -h "$out/disk.img" | cut -f1) of $size" >&2
echo "$out"
