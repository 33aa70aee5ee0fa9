"""disks.py DIRECTORY WORK: the full Debian guest on the soft engine: boots to a login from a qcow2 overlay, writes through every kind of disk,
is limited, is killed, and has everything that it had flushed."""
import hashlib
import os
import re
import signal
import subprocess
import sys

sys.path.insert(0, os.path.dirname(__file__))
import debian  # noqa: E402
import vm  # noqa: E402

LIMIT_SECONDS = 10 if os.environ.get("NACELLE_LONG") else 4
check = vm.Checks("disks/")


def within(name, got, want, percent):
    off = (got - want) * 100.0 / want
    check(name, abs(off) <= percent, "%.4g instead of %.4g: %+.1f %%" % (got, want, off))


def main():
    directory, work = sys.argv[1:]
    overlay = work + "/root.qcow2"
    base = os.path.abspath(directory + "/disk.img")
    before = hashlib.sha256(open(base, "rb").read(32 << 20)).hexdigest()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, overlay], check=True)
    raw, sata, direct = (vm.empty_disk("%s/%s" % (work, n), 256) for n in ("raw.img", "sata.img", "direct.img"))
    limited = vm.empty_disk(work + "/limited.img", 64)
    guest = debian.Debian(debian.ours(directory, [
        overlay, raw + ",format=raw,serial=RAW-1", direct + ",format=raw,cache=none", sata + ",format=raw,if=ahci",
        limited + ",format=raw,read_bps=2M,write_iops=100", base + ",ro"], append="root=/dev/vda"))
    guest.login()
    # Two of the disks have the root's label: by its name it would be either.
    root = guest.run("findmnt -no SOURCE,OPTIONS /").strip()
    check("root", re.match(r"/dev/vda +rw", root), root)
    check("login", True, "systemd's login prompt after %.0f s, from qcow2 with a backing file" % guest.boot_seconds)
    names = guest.run("lsblk -dno NAME,SIZE,RO,SERIAL").split("\n")
    check("names", any(re.match(r"vdb +256M +0 +RAW-1", n) for n in names) and any(re.match(r"vde +1.4G +1", n) for n in names)
          and any(n.startswith("sda") for n in names), "; ".join(n.strip() for n in names if n.strip()))
    # Data that fio knows again, past the guest's cache, on each kind of disk.
    for device, what in (("vdb", "virtio"), ("vdc", "O_DIRECT"), ("sda", "AHCI")):
        text, status = guest.run("fio --name=v --filename=/dev/%s --rw=randwrite --bsrange=512-256k --bs_unaligned=0 --direct=1 "
                                 "--ioengine=libaio --iodepth=16 --size=24m --verify=crc32c --verify_fatal=1 --do_verify=1 "
                                 "--minimal" % device, 400, check=False)
        check("fio-verify-" + what, status == 0 and "verify:" not in text, "" if status == 0 else text[-300:])
    # A file system on one of them: a tree copied there, its sums seen again after a remount.
    guest.run("mkfs.ext4 -q -F /dev/vdb && mount /dev/vdb /mnt && mkdir /mnt/tree && cp -a /usr/bin /etc /mnt/tree/ && sync", 300)
    guest.run("cd / && find usr/bin etc -type f -exec md5sum {} + | sort > /root/sums; umount /mnt && mount /dev/vdb /mnt", 300)
    guest.run("sed 's# usr/# #' /root/sums > /root/copied; cd /mnt/tree && md5sum --quiet -c /root/copied", 300)
    count = int(guest.run("wc -l < /root/sums"))
    check("tree", count > 300, "%d files, the same sums after a remount" % count)
    guest.run("fstrim /mnt")
    # Limits.
    _, rate = debian.fio(guest, "/dev/vdd", "read", "256k", 4, LIMIT_SECONDS)
    within("limit-read_bps", rate, 2 << 20, 5)
    operations, _ = debian.fio(guest, "/dev/vdd", "randwrite", "4k", 8, LIMIT_SECONDS)
    within("limit-write_iops", operations, 100, 5)
    # What was flushed is there after kill -9, on the raw disk and on the overlay.
    guest.run("for i in $(seq 200); do seq $i 5000 > /mnt/f$i; done; sync; cat /mnt/f* | md5sum > /root/kept; sync")
    kept = guest.run("cat /root/kept").split()[0]
    guest.write("while :; do dd if=/dev/zero of=/mnt/junk bs=64k count=100 2>/dev/null; done &\n")
    guest.process.send_signal(signal.SIGKILL)
    guest.process.wait()
    check("unchanged-base", hashlib.sha256(open(base, "rb").read(32 << 20)).hexdigest() == before)
    status = subprocess.run(["e2fsck", "-fy", raw], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    check("fsck-after-kill", status.returncode in (0, 1), "" if status.returncode in (0, 1) else status.stdout[-400:])
    os.mkdir(work + "/dump")
    subprocess.run(["debugfs", "-R", "rdump / " + work + "/dump", raw], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   check=True)
    names = sorted((n for n in os.listdir(work + "/dump") if re.match(r"f\d+$", n)))
    data = b"".join(open("%s/dump/%s" % (work, n), "rb").read() for n in names)
    check("kept-after-kill", hashlib.md5(data).hexdigest() == kept, "%d files" % len(names))
    # And it boots again from the overlay, with what it had written there.
    status = subprocess.run(["qemu-img", "check", "-q", overlay], check=False).returncode
    check("qcow2-after-kill", status in (0, 3), "qemu-img check: %d" % status)  # 3: leaked clusters, no harm
    if os.environ.get("NACELLE_LONG"):
        guest = debian.Debian(debian.ours(directory, [overlay])).login()
        check("again-after-kill", guest.run("cat /root/kept").split()[0] == kept)
        check("power-off", guest.power_off() == 0)
    sys.exit(check.failed)


main()
