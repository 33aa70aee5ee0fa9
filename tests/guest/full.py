"""full.py KERNEL INITRD MOUNTPOINT: the host's end of tests/guest/scripts/full.sh. MOUNTPOINT is an empty file system of a few MiB."""
import hashlib
import json
import os
import socket
import sys

sys.path.insert(0, os.path.dirname(__file__))
import vm  # noqa: E402

MIB = 1 << 20
check = vm.Checks("full/", brief=True)


def image(path, size, data):
    """Sparse, with data at its start and a second copy of it 15 * 64 KiB in."""
    with open(path, "wb") as f:
        f.truncate(size)
        f.write(data)
        f.seek(15 * 65536)
        f.write(data[:65536])
    return path


def fill(path):
    """Takes what room there is."""
    with open(path, "wb", buffering=0) as f:
        for size in (65536, 4096):
            try:
                while True:
                    f.write(b"x" * size)
            except OSError:
                pass
    return path


class Control:
    """A connection to a machine's control socket, as soon as there is one, that listens to events."""

    def __init__(self, guest, path):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(60)
        while s.connect_ex(path) and guest.process.poll() is None:
            guest.read(0.05)
        self.file = s.makefile("rw")
        self.file.readline()
        self.events = []
        self.ask("events", on=True)

    def ask(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while "event" in (line := json.loads(self.file.readline())):
            self.events.append(line)
        return line["return"]


def check_told(label, control, log):
    """Whoever listens has heard of each disk's errors, but not of each error; status has the last of them, and the log one line a disk."""
    disks = control.ask("status")["disks"]
    for disk, operation, reason in zip(disks, ("write", "write", "read"), ("No space left on device", "No space left on device", "Input/output error")):
        mine = [e for e in control.events if e["event"] == "disk-error" and e["id"] == disk["id"]]
        good = mine and all(e["operation"] == operation and e["reason"] == reason for e in mine) and 1 <= mine[0]["errors"]
        apart = all(b["time"] - a["time"] > 0.9 and b["errors"] > a["errors"] for a, b in zip(mine, mine[1:]))
        check(label + "told-" + disk["id"], good and apart and disk["errors"] >= mine[-1]["errors"] and
              disk["last_error"].startswith(operation + " of ") and disk["last_error"].endswith(reason), "%s %s" % (mine, disk))
    lines = [line for line in log.splitlines() if "the guest gets an I/O error" in line]
    check(label + "told-log", len(lines) == 3 and all("disk disk%d: " % i in lines[i] for i in range(3)), log)


def main():
    kernel, initrd, where = sys.argv[1:]
    label = os.environ.get("FULL_LABEL", "")
    data = os.urandom(4 * 65536)
    disks = [image("%s/%s" % (where, n), 8 * MIB, data) for n in ("v", "s")]
    elsewhere = image(os.path.join(os.environ["FULL_WORK"], "cut"), 8 * MIB, data)
    filler = fill(where + "/filler")
    head = hashlib.md5(data).hexdigest()
    tail = hashlib.md5(data[:65536] + bytes(3 * 65536)).hexdigest()
    socket_path, log = os.environ["FULL_WORK"] + "/control", os.environ["FULL_WORK"] + "/log"
    with open(log, "wb") as errors:
        guest = vm.Guest(vm.command(kernel, initrd, 1, "384M", "") + [
            "-d", disks[0], "-d", disks[1] + ",if=ahci", "-d", elsewhere, "--control", socket_path], errors=errors)
    # At once: a guest that has booted soon has its first error before a slow host's Python listens.
    control = Control(guest, socket_path)
    for disk in ("vda", "sda"):
        match, _ = guest.expect(r"^%s before (\w+) (\w+)$" % disk, 200)
        good = match.groups() == (head, tail)
        match, _ = guest.expect(r"^%s full: (.*)$" % disk, 100)
        check(label + disk + "-error", "Input/output error" in match[1], "the guest saw '%s'" % match[1])
        match, _ = guest.expect(r"^%s reads (\w+) (\w+)$" % disk, 100)
        check(label + disk + "-reads", good and match.groups() == (head, tail), "sums differ")
    guest.expect(r"^@full$", 60)
    os.unlink(filler)
    for disk in ("vda", "sda"):
        guest.expect(r"^%s writes again$" % disk, 120)
    check(label + "room-again", True)
    match, _ = guest.expect(r"^@cut (\w+)$", 60)
    os.truncate(elsewhere, 8 * 65536)
    guest.expect(r"^vdb: Input/output error$", 120)
    guest.expect(r"^vdb: its start can be read$", 60)
    with open(log, encoding="utf-8") as f:
        check_told(label, control, f.read())
    guest.expect(r"^@mend$", 60)
    os.truncate(elsewhere, 8 * MIB)
    guest.expect(r"^vdb: all of it can be read$", 120)
    check(label + "cut-off", match[1] == tail, "sums differ")
    errors = guest.expect(r"^@@END 0$", 60)[0]
    status = guest.wait(60)
    seen = set(line for line in guest.text.splitlines() if line.startswith("errors of"))
    check(label + "nothing-else", status == 0 and "@@KERNEL" not in guest.text and bool(errors) and
          seen == {"errors of vda: op 1", "errors of sda: op 1", "errors of vdb: op 0"}, "%d, %s" % (status, seen))
    for path in disks:
        with open(path, "rb") as f:
            f.seek(5 * MIB)
            check(label + "written-" + os.path.basename(path), f.read(MIB) == bytes(MIB) and os.stat(path).st_blocks * 512 >= MIB)
    sys.exit(check.failed)


main()
