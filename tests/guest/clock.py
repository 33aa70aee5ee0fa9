"""clock.py KERNEL INITRD: over one boot, a minute idle and a minute under load: the guest's clock against the host's,
the host CPU time an idle guest costs, and the VMM's own memory beside guest RAM."""
import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
import vm  # noqa: E402

SECONDS = int(os.environ.get("NACELLE_CLOCK_SECONDS", "60"))
MAX_DRIFT = 0.001
# The lab's box is an emulated machine: its CPU is slow, and even the quickest reading is late on its way.
LAB = bool(os.environ.get("NACELLE_LAB"))
MAX_LATE = 0.05 * vm.SLOWER if LAB else 0
MAX_IDLE = 0.5 if LAB else 0.03
MAX_OWN_KIB = 64 * 1024
RAM = 512 << 20

check = vm.Checks("clock%s/" % ("" if vm.ENGINE == "soft" else "-" + vm.ENGINE))
cpu_at_first = None  # the VMM's CPU time when the latest reading began


def reading(guest, seconds):
    """For each guest clock the reading that was quickest on its way: how far the host's clock is ahead of it."""
    ahead = {"monotonic": [], "wall": []}
    global cpu_at_first
    cpu_at_first = None
    while True:
        match, when = guest.expect(r"^@([MWT])(?: (\S+))?$", seconds)
        if cpu_at_first is None:
            cpu_at_first = guest.cpu_seconds()
        if match[1] == "T":
            return min(ahead["monotonic"]), min(ahead["wall"]), when
        ahead["monotonic" if match[1] == "M" else "wall"].append(when - float(match[2]))


def drift(name, a, b):
    host = b[2] - a[2]
    for clock, index in (("monotonic", 0), ("wall", 1)):
        off = a[index] - b[index]
        check("%s-%s" % (clock, name), abs(off) < MAX_DRIFT * host + MAX_LATE,
              "%+.0f ms in %.1f s: %+.4f %%" % (off * 1000, host, off / host * 100))


guest = vm.Guest(vm.command(sys.argv[1], sys.argv[2], 2, "512M", "nacelle.seconds=%d" % SECONDS))
guest.expect(r"^@@BEGIN$", 120)
start = reading(guest, 60)
cpu = guest.cpu_seconds()
end = reading(guest, SECONDS * 2 + 30)
idle = (cpu_at_first - cpu) / SECONDS
drift("idle", start, end)
check("idle-cpu", idle < MAX_IDLE or vm.RUNNER == "qemu", "%.2f %% of a host CPU" % (idle * 100))
own = guest.resident_beside_ram(RAM)
check("memory", own < MAX_OWN_KIB or vm.RUNNER == "qemu", "%.1f MiB of the VMM's own beside guest RAM" % (own / 1024))
start = reading(guest, 60)
end = reading(guest, SECONDS * 2 + 60)
drift("busy", start, end)
own = guest.resident_beside_ram(RAM)
check("memory-busy", own < MAX_OWN_KIB or vm.RUNNER == "qemu", "%.1f MiB" % (own / 1024))
guest.expect(r"^@@END 0$", 60)
check("end", guest.wait(20) == 0, "powers off")
sys.exit(check.failed)
