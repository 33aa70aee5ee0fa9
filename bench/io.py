"""I/O of Nacelle against QEMU's TCG: the full Debian image of tools/image.sh, the same disks, one run. See io.sh.

Every row is measured on one machine after the other while the others are idle, and again for each repeat, so that all see the same load
of the host. A machine that fails a row is started anew for the next one; the row says FAILED, and so does the exit status."""
import argparse
import json
import os
import signal
import sys
import time

sys.path[:0] = [os.path.dirname(__file__), os.path.join(os.path.dirname(__file__), "..", "tests", "guest")]
import debian  # noqa: E402
import io_net  # noqa: E402
import io_table  # noqa: E402

MACHINES = ["ours virtio", "QEMU virtio", "ours emulated", "QEMU emulated"]
MEMORY = 512  # MiB
RESTARTS = 2  # of one machine; then its remaining rows fail


class Options:
    def __init__(self, arguments):
        quick = arguments.quick
        self.seconds = 2 if quick else 4
        self.ramp = 0.5 if quick else 1
        self.repeats = 1 if quick else 3
        self.boots = 1 if quick else 3
        self.data_mib = 256 if quick else 512
        self.cpus = arguments.cpus
        self.out = arguments.out


class Machine:
    """One of MACHINES, with a root disk and a data disk of its own."""

    def __init__(self, name, directory, options):
        self.name, self.directory, self.options = name, directory, options
        self.emulated = name.endswith("emulated")
        self.device = "/dev/sdb" if self.emulated else "/dev/vdb"
        self.files = {part: "%s/%s-%s.img" % (options.out, name.replace(" ", "-"), part) for part in ("root", "data")}
        self.guest = None
        self.restarts = RESTARTS

    def start(self):
        """Boots to a login; gives seconds by the clock and of CPU."""
        self.stop()
        root, data = debian.copy_of(self.directory, self.files["root"]), self.files["data"]
        if not os.path.exists(data):
            debian.data_disk(data, self.options.data_mib)
        if self.name.startswith("ours"):
            option = ",format=raw" + (",if=ahci" if self.emulated else "")
            command = debian.ours(self.directory, [root + option, data + option], MEMORY, self.options.cpus,
                                  io_net.ours_options(self.emulated))
        else:
            command = debian.qemu(self.directory, [root, data], MEMORY, self.options.cpus, io_net.qemu_options(self.emulated),
                                  emulated=self.emulated)
        self.guest = debian.Debian(command)
        self.guest.login()
        return self.guest.boot_seconds, self.guest.boot_cpu

    def settle(self):
        """Lets what starts after the login finish."""
        self.guest.run("systemctl is-system-running --wait >/dev/null; true", 300)
        io_net.prepare(self.guest)

    def need(self):
        """The guest, started again when it did not survive the last row."""
        if not self.guest:
            if not self.restarts:
                raise RuntimeError("it failed too often before")
            self.restarts -= 1
            self.start()
            self.settle()
        return self.guest

    def stop(self):
        if self.guest:
            self.guest.kill()
        self.guest = None

    def remove(self):
        self.stop()
        for path in self.files.values():
            if os.path.exists(path):
                os.remove(path)


# Rows: (name, unit, function(machine, options, peer) -> value, seconds of CPU, seconds by the clock). More is better.
def disk_row(rw, block, depth, unit):
    def measure(machine, options, _):
        iops, rate, cpu, clock = debian.fio_marked(machine.need(), machine.device, rw, block, depth, options.seconds, options.ramp)
        return iops if unit == "IOPS" else rate / 1e6, cpu, clock
    return measure


def net_row(function):
    return lambda machine, options, peer: function(machine.need(), peer, options.seconds)


ROWS = [
    ("random read 4 KiB, depth 1", "IOPS", disk_row("randread", "4k", 1, "IOPS")),
    ("random read 4 KiB, depth 32", "IOPS", disk_row("randread", "4k", 32, "IOPS")),
    ("random write 4 KiB, depth 1", "IOPS", disk_row("randwrite", "4k", 1, "IOPS")),
    ("random write 4 KiB, depth 32", "IOPS", disk_row("randwrite", "4k", 32, "IOPS")),
    ("sequential read 1 MiB", "MB/s", disk_row("read", "1m", 4, "MB/s")),
    ("sequential write 1 MiB", "MB/s", disk_row("write", "1m", 4, "MB/s")),
] + [(name, unit, net_row(function)) for name, unit, function in io_net.ROWS]


def first_line(problem):
    lines = str(problem).strip().splitlines() or [repr(problem)]
    return lines[0] if len(lines[0]) < 200 else lines[0][:200] + " ..."


class Bench:
    def __init__(self, machines, options, only):
        self.machines, self.options = machines, options
        self.rows = [r for r in ROWS if only in r[0]]
        self.peer = io_net.Peer()
        self.began = time.monotonic()

    def say(self, text):
        print("%5d s  %s" % (time.monotonic() - self.began, text), file=sys.stderr, flush=True)

    def attempt(self, row, machine, function):
        """Adds what the function gives to the row; a failure ends the machine and is written down."""
        try:
            pair = function()
        except (debian.vm.Failed, RuntimeError, OSError, ValueError, IndexError) as problem:
            row.fail(machine.name, first_line(problem))
            self.say("%-30s %-14s FAILED" % (row.name, machine.name))
            machine.stop()
            return
        row.add(machine.name, pair)
        self.say("%-30s %-14s %8.4g %s (%.4g by CPU time)" % (row.name, machine.name, pair[0], row.unit, pair[1]))

    def boot(self):
        """Boot to login. The last boot of each machine stays for the rows."""
        row = io_table.Row("boot to login", "s")
        for turn in range(self.options.boots):
            for machine in self.machines:
                self.attempt(row, machine, machine.start)
                if turn + 1 < self.options.boots or not self.rows:
                    machine.stop()
                elif machine.guest:
                    self.settle(row, machine)
        return row

    def settle(self, row, machine):
        try:
            machine.settle()
        except debian.vm.Failed as problem:
            row.fail(machine.name, first_line(problem))
            machine.stop()

    def measure(self, name, unit, function):
        row = io_table.Row(name, unit)

        def once(machine):
            value, cpu, clock = function(machine, self.options, self.peer)
            return value, value * clock / max(cpu, 0.01)

        for _ in range(self.options.repeats):
            for machine in self.machines:
                if machine.name not in row.failures:
                    self.attempt(row, machine, lambda m=machine: once(m))
        return row

    def run(self):
        try:
            boot = self.boot()
            return boot, [self.measure(*row) for row in self.rows]
        finally:
            self.peer.close()
            for machine in self.machines:
                machine.remove()


def main():
    parser = argparse.ArgumentParser(prog="bench/io.sh", description="I/O against QEMU's TCG, in one table.")
    parser.add_argument("--out", default="build/bench/io", help="where disks and results.json go")
    parser.add_argument("--json", help="where the numbers go (default: results.json in the output directory)")
    parser.add_argument("--quick", action="store_true", help="one short repeat of each row; also BENCH=quick")
    parser.add_argument("--machines", default=",".join(MACHINES), help="some of: " + ", ".join(MACHINES))
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--cpus", type=int, default=1, help="virtual CPUs of each machine")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # guests and disks go, too
    names = arguments.machines.split(",")
    if set(names) - set(MACHINES):
        parser.error("--machines: there are " + ", ".join(MACHINES))
    options = Options(arguments)
    os.makedirs(arguments.out, exist_ok=True)
    debian.need_room(arguments.out, len(names) * (1400 + options.data_mib))
    directory, load = debian.image(), os.getloadavg()[0]
    bench = Bench([Machine(m, directory, options) for m in MACHINES if m in names], options, arguments.only)
    if load > 0.5:
        bench.say("the host is not idle (load %.1f): go by the ratios by CPU time" % load)
    boot, rows = bench.run()
    summary = dict(io_table.summarize(boot, rows), load_before=load, seconds=time.monotonic() - bench.began, quick=arguments.quick,
                   cpus=arguments.cpus)
    io_table.show(boot, rows, summary)
    with open(arguments.json or arguments.out + "/results.json", "w", encoding="utf-8") as f:
        json.dump({"summary": summary, "rows": [r.as_dict() for r in [boot] + rows]}, f, indent=1)
    return 1 if summary["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
