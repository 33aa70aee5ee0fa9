"""I/O of Nacelle against QEMU's TCG: the full Debian image of tools/image.sh, the same disks, one run. See io.sh.

Every row is measured on one machine after the other while the others are idle, so that all see the same load of the host. The value of a
row is the median of its repeats. Beside the values by the clock stand those by the CPU time that the machine's process used: on a host that is
busy with other things only these say something."""
import argparse
import json
import math
import os
import statistics
import sys

sys.path[:0] = [os.path.dirname(__file__), os.path.join(os.path.dirname(__file__), "..", "tests", "guest")]
import debian  # noqa: E402
import io_net  # noqa: E402

MACHINES = ["ours virtio", "QEMU virtio", "ours emulated", "QEMU emulated"]
MEMORY = 512  # MiB


class Options:
    def __init__(self, quick):
        self.seconds = 2 if quick else 6
        self.ramp = 0.5 if quick else 1
        self.repeats = 1 if quick else 3
        self.boots = 1 if quick else 3
        self.data_mib = 256 if quick else 512


def start(name, directory, out, cpus):
    """One of MACHINES with a root disk and a data disk; nothing is shared between two."""
    file_name = name.replace(" ", "-")
    root = debian.copy_of(directory, "%s/%s-root.img" % (out, file_name))
    data = "%s/%s-data.img" % (out, file_name)
    emulated = name.endswith("emulated")
    if name.startswith("ours"):
        option = ",if=ahci,format=raw" if emulated else ",format=raw"
        command = debian.ours(directory, [root + option, data + option], MEMORY, cpus, io_net.ours_options(emulated))
    else:
        command = debian.qemu(directory, [root, data], MEMORY, cpus, io_net.qemu_options(emulated), emulated=emulated)
    return debian.Debian(command)


def device(name):
    return "/dev/sdb" if name.endswith("emulated") else "/dev/vdb"


# Rows: (name, unit, function(guest, machine's name, options, peer) -> value; more is better, "s" rows: less is better).
def disk_row(rw, block, depth, unit):
    def measure(guest, name, options, _):
        iops, rate = debian.fio(guest, device(name), rw, block, depth, options.seconds, options.ramp)
        return iops if unit == "IOPS" else rate / 1e6
    return measure


ROWS = [
    ("random read 4 KiB, depth 1", "IOPS", disk_row("randread", "4k", 1, "IOPS")),
    ("random read 4 KiB, depth 32", "IOPS", disk_row("randread", "4k", 32, "IOPS")),
    ("random write 4 KiB, depth 1", "IOPS", disk_row("randwrite", "4k", 1, "IOPS")),
    ("random write 4 KiB, depth 32", "IOPS", disk_row("randwrite", "4k", 32, "IOPS")),
    ("sequential read 1 MiB", "MB/s", disk_row("read", "1m", 4, "MB/s")),
    ("sequential write 1 MiB", "MB/s", disk_row("write", "1m", 4, "MB/s")),
]


def net_row(function):
    return lambda guest, name, options, peer: function(guest, peer, options.seconds)


ROWS += [(name, unit, net_row(function)) for name, unit, function in io_net.ROWS]


def boot_row(machines, directory, out, options, cpus, log):
    """Boot to login, one machine at a time; leaves the last boot of each running. Gives values by machine, and the guests."""
    values, guests = {m: [] for m in machines}, {}
    for turn in range(options.boots):
        for name in machines:
            guest = start(name, directory, out, cpus)
            guest.login()
            values[name].append((guest.boot_seconds, guest.boot_cpu))
            log("  boot to login, %s: %.1f s (%.1f s of CPU)" % (name, guest.boot_seconds, guest.boot_cpu))
            if turn + 1 < options.boots:
                guest.kill()
            else:
                guest.run("systemctl is-system-running --wait >/dev/null; true", 300)  # what starts later would disturb
                guests[name] = guest
    return values, guests


def timed(measure, guest, name, options, peer):
    """The value by the clock and by CPU time: what a second of the host's CPU is worth."""
    cpu = guest.cpu_seconds()
    value = measure(guest, name, options, peer)
    cpu = guest.cpu_seconds() - cpu
    return value, value * (options.seconds + options.ramp) / max(cpu, 0.01)


def ratio(unit, ours, peer):
    return peer / ours if unit == "s" else ours / peer


def table(results, which, title):
    """One table, by the clock (0) or by CPU time (1); gives the geometric means."""
    print("\n%-30s %-5s %28s   %28s" % (title, "", "paravirtual", "emulated"))
    print("%-30s %-5s" % ("", "") + 2 * " %10s %10s %7s " % ("ours", "QEMU", "ratio"))
    ratios = {}
    for name, unit, values in results:
        line = "%-30s %-5s" % (name, unit)
        for kind in ("virtio", "emulated"):
            a, b = (values.get("%s %s" % (who, kind), (None, None))[which] for who in ("ours", "QEMU"))
            shown = "-"
            if a and b:
                ratios.setdefault(kind, []).append(ratio(unit, a, b))
                shown = "%.2fx" % ratios[kind][-1]
            line += " %10s %10s %7s " % ("%.4g" % a if a else "-", "%.4g" % b if b else "-", shown)
        print(line)
    means = {k: math.exp(sum(math.log(v) for v in r) / len(r)) for k, r in ratios.items()}
    print("%-30s %-5s" % ("geometric mean", "") +
          "".join(" %29s " % ("%.2fx" % means[k] if k in means else "-") for k in ("virtio", "emulated")))
    return means


def median(pairs):
    return tuple(statistics.median(p[i] for p in pairs) for i in (0, 1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="build/bench/io")
    parser.add_argument("--quick", action="store_true", help="one short repeat of each row")
    parser.add_argument("--machines", default=",".join(MACHINES), help="some of: " + ", ".join(MACHINES))
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--cpus", type=int, default=1)
    arguments = parser.parse_args()
    options = Options(arguments.quick)
    machines = [m for m in MACHINES if m in arguments.machines.split(",")]
    os.makedirs(arguments.out, exist_ok=True)
    directory = debian.image()

    def log(text):
        print(text, file=sys.stderr, flush=True)

    guests = {}
    peer = io_net.Peer()
    try:
        for name in machines:
            debian.data_disk("%s/%s-data.img" % (arguments.out, name.replace(" ", "-")), options.data_mib)
        boots, guests = boot_row(machines, directory, arguments.out, options, arguments.cpus, log)
        results = [("boot to login", "s", {m: median(v) for m, v in boots.items()})]
        for guest in guests.values():
            io_net.prepare(guest)
        for name, unit, measure in ROWS:
            if arguments.only not in name:
                continue
            values = {m: [] for m in machines}
            for _ in range(options.repeats):
                for m in machines:
                    values[m].append(timed(measure, guests[m], m, options, peer))
            results.append((name, unit, {m: median(v) for m, v in values.items()}))
            log("  %s: %s" % (name, ", ".join("%s %.4g (%.4g)" % (m, *results[-1][2][m]) for m in machines)))
    finally:
        peer.close()
        for guest in guests.values():
            guest.kill()
        for name in machines:
            for part in ("root", "data"):
                path = "%s/%s-%s.img" % (arguments.out, name.replace(" ", "-"), part)
                if os.path.exists(path):
                    os.remove(path)
    clock = table(results, 0, "by the clock")
    cpu = table(results, 1, "by CPU time")
    with open(arguments.out + "/results.json", "w") as f:
        json.dump({"rows": [{"name": n, "unit": u, "values": v} for n, u, v in results], "geometric_mean": clock, "geometric_mean_cpu": cpu,
                   "load": os.getloadavg(),
                   "quick": arguments.quick, "cpus": arguments.cpus}, f, indent=1)


if __name__ == "__main__":
    main()
