"""debian.py DIRECTORY WORK: the full Debian guest on the KVM engine, in the lab: systemd's login prompt, an address, ssh, and data that are the same
afterwards: fio --verify on a virtio and on a SATA disk, and sums of a copied tree."""
import os
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "guest"))
import debian  # noqa: E402
import vm  # noqa: E402

LONG = 1200  # seconds: the box is some twenty times slower than its host
check = vm.Checks("lab/debian-")


def ssh(directory, work, port, command):
    key = work + "/key"
    with open(directory + "/id_ed25519", "rb") as f, open(os.open(key, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as to:
        to.write(f.read())
    done = subprocess.run(["ssh", "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
                           "-o", "BatchMode=yes", "-o", "ConnectTimeout=120", "-p", str(port), "root@127.0.0.1", command],
                          capture_output=True, text=True, timeout=LONG, check=False)
    return done.returncode, done.stdout


def main():
    directory, work = sys.argv[1:]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    overlay = work + "/root.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", os.path.abspath(directory + "/disk.img"), overlay], check=True)
    raw, sata = (vm.empty_disk("%s/%s" % (work, n), 64) for n in ("raw.img", "sata.img"))
    guest = debian.Debian(debian.ours(directory, [overlay, raw + ",format=raw,serial=RAW", sata + ",format=raw,if=ahci"], engine="kvm",
                                      append="noxsave mitigations=off tsc=reliable", extra=["--net", "user,hostfwd=tcp:127.0.0.1:%d-:22" % port]))
    guest.login()
    check("login", True, "systemd's login prompt after %.0f s" % guest.boot_seconds)
    address = guest.run("n=0; until ip -4 -o address show scope global | grep . || [ $n = 60 ]; do n=$((n + 1)); sleep 1; done", LONG)
    check("address", " 10.0.2.15/24 " in address, address.strip())
    end, status, output = time.monotonic() + LONG, 1, ""
    while status and time.monotonic() < end:
        status, output = ssh(directory, work, port, "cat /proc/sys/kernel/hostname; systemd-detect-virt; uname -r")
    check("ssh", status == 0 and "kvm" in output, " ".join(output.split()))
    for device, what in (("vdb", "virtio"), ("sda", "AHCI")):
        text, status = guest.run("fio --name=v --filename=/dev/%s --rw=randwrite --bsrange=512-256k --bs_unaligned=0 --direct=1 --ioengine=libaio "
                                 "--iodepth=16 --size=24m --verify=crc32c --verify_fatal=1 --do_verify=1 --minimal" % device, LONG, check=False)
        check("fio-verify-" + what, status == 0 and "verify:" not in text, "" if status == 0 else text[-300:])
    guest.run("mkfs.ext4 -q -F /dev/vdb && mount /dev/vdb /mnt && cp -a /etc /usr/sbin /mnt/ && sync", LONG)
    guest.run("cd / && find etc usr/sbin -type f -exec md5sum {} + | sed 's# usr/# #' >/root/sums; umount /mnt && mount /dev/vdb /mnt", LONG)
    guest.run("cd /mnt && md5sum --quiet -c /root/sums", LONG)
    count = int(guest.run("wc -l </root/sums"))
    check("tree", count > 200, "%d files, the same sums after a remount" % count)
    errors = guest.run("dmesg | grep -ciE 'i/o error|call trace|BUG:' || true").strip()
    check("kernel", errors == "0", errors + " complaints")
    check("power-off", guest.power_off(LONG) == 0)
    sys.exit(check.failed)


main()
