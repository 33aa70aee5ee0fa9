"""io.py KERNEL INITRD: a guest with a disk and a network card of each kind: every byte arrives, and what each device cost (--stats)."""
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(__file__))
import serve  # noqa: E402
import vm  # noqa: E402

WRITTEN = 2048000
REQUESTS = 2 * WRITTEN // 4096
DATA = random.Random(7).randbytes(1 << 20)
check = vm.Checks("io/%s-" % vm.ENGINE)


def sums(path):
    data = open(path, "rb").read()
    return hashlib.sha256(data).hexdigest(), hashlib.sha256(data[:WRITTEN]).hexdigest()


def line(guest, words, seconds=120):
    return guest.expect("^%s ([0-9a-f]{64})$" % words, seconds)[0][1]


def cost(devices, kind):
    found = [d for d in devices if d["kind"] == kind]
    if len(found) != 1:
        vm.fail("%d devices of kind %s in the statistics" % (len(found), kind))
    d = found[0]
    text = "%d requests, %.2f exits each, %d interrupts, %d of them by irqfd" % (
        d["requests"], d["exits"] / max(1, d["requests"]), d["interrupts"], d["irqfd"])
    return d, text


def transfers(guest, work):
    read = {disk: sums("%s/%s" % (work, disk))[0] for disk in ("vda", "sda")}
    new = line(guest, "new", 240)
    for disk in ("vda", "sda"):
        check(disk + "-read", line(guest, disk + " read") == read[disk])
        check(disk + "-written", line(guest, disk + " back") == new)
    want = hashlib.sha256(DATA).hexdigest()
    for driver in ("virtio_net", "e1000"):
        guest.expect("^%s pong$" % driver, 120)
        check(driver + "-down", line(guest, driver + " down") == want)
        check(driver + "-up", line(guest, driver + " up") == want)
    guest.expect(r"^@@END 0$", 90)
    status = guest.wait(60)
    check("end", status == 0 and "@@KERNEL" not in guest.text, "status %d" % status)
    for disk in ("vda", "sda"):
        check(disk + "-image", sums("%s/%s" % (work, disk))[1] == new)


def costs(stats):
    """With ioeventfd and irqfd a virtio device's requests are no exits; AHCI has seven of them for each."""
    devices = json.load(open(stats))["pci"]
    kvm = vm.ENGINE == "kvm"
    for kind in ("virtio-blk", "virtio-net"):
        d, text = cost(devices, kind)
        few = d["exits"] < (300 if kvm else 2 * d["requests"] + 300)
        check(kind + "-cost", few and d["requests"] > (REQUESTS if kind == "virtio-blk" else 100), text)
        # The first of each vector go without, see vmm/bus/pci_irqfd.c.
        check(kind + "-irqfd", d["irqfd"] > 0.8 * d["interrupts"] - 50 if kvm else d["irqfd"] == 0, text)
    d, text = cost(devices, "ahci")
    check("ahci-cost", d["requests"] > REQUESTS and 3 < d["exits"] / d["requests"] < 12, text)
    d, text = cost(devices, "e1000")
    check("e1000-cost", d["requests"] > 100 and d["exits"] > 100, text)


def main():
    kernel, initrd = sys.argv[1:3]
    with tempfile.TemporaryDirectory(prefix="nacelle-io-") as work:
        for disk in ("vda", "sda"):
            open("%s/%s" % (work, disk), "wb").write(os.urandom(4 << 20))
        ports = serve.start("127.0.0.1", DATA)
        argv = vm.command(kernel, initrd, 1, "256M", "io.http=%(http)d io.sum=%(sum)d" % ports)
        guest = vm.Guest(argv + ["-d", work + "/vda", "-d", work + "/sda,if=ahci", "-n", "user", "-n", "user,model=e1000",
                                 "--stats=json:%s/stats" % work])
        transfers(guest, work)
        costs(work + "/stats")
        print("\n".join("     " + text for text in guest.text.splitlines() if "MSI" in text or "IO-APIC" in text))
    return check.failed


sys.exit(main())
