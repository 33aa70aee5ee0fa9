"""The table of bench/io.py: rows, ratios, geometric means, what was to be reached. No measuring here."""
import math
import statistics

MEAN_TARGET = 2.0
BOOT_TARGET = 2.0
KINDS = ("virtio", "emulated")
# A row counts as slower than QEMU below this: two runs of one program differ by as much.
EQUAL = 0.97


class Row:
    """One row: the machines' runs, each a pair of values by the clock and by CPU time, or the reason why there are none."""

    def __init__(self, name, unit):
        self.name, self.unit = name, unit
        self.runs, self.failures = {}, {}

    def add(self, machine, pair):
        self.runs.setdefault(machine, []).append(pair)

    def fail(self, machine, why):
        self.failures[machine] = why

    def value(self, machine, which=0):
        """The median over the runs, by the clock (0) or by CPU time (1); None when a run failed."""
        runs = self.runs.get(machine)
        return statistics.median(r[which] for r in runs) if runs and machine not in self.failures else None

    def ratio(self, kind, which=0):
        """How many times better ours is."""
        ours, peer = self.value("ours " + kind, which), self.value("QEMU " + kind, which)
        if not ours or not peer:
            return None
        return peer / ours if self.unit == "s" else ours / peer

    def text(self, machine):
        value = self.value(machine)
        return "FAILED" if machine in self.failures else "-" if value is None else "%.4g" % value

    def as_dict(self):
        return {"name": self.name, "unit": self.unit, "runs": self.runs, "failures": self.failures,
                "ratio": {k: self.ratio(k) for k in KINDS}, "ratio_cpu": {k: self.ratio(k, 1) for k in KINDS}}


def geometric_mean(values):
    values = [v for v in values if v]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def ratio_text(ratio):
    return "-" if ratio is None else "%.2fx" % ratio


def summarize(boot, rows):
    """What was to be reached, and what was."""
    summary = {"failed": ["%s, %s: %s" % (r.name, m, why) for r in [boot] + rows for m, why in r.failures.items()]}
    for which, suffix in ((0, ""), (1, "_cpu")):
        summary["mean" + suffix] = {k: geometric_mean(r.ratio(k, which) for r in rows) for k in KINDS}
        summary["boot" + suffix] = {k: boot.ratio(k, which) for k in KINDS}
        summary["slower" + suffix] = ["%s, %s (%.2fx)" % (r.name, k, r.ratio(k, which)) for r in rows for k in KINDS
                                      if r.ratio(k, which) and r.ratio(k, which) < EQUAL]
    return summary


def verdict(ratios, target):
    values = [v for v in ratios.values() if v]
    return "" if not values else "%s (target %gx)" % ("ok" if min(values) >= target else "MISS", target)


def show(boot, rows, summary):
    """Prints the table. The ratios by CPU time say what a second of the host's CPU is worth; on a host that is busy with other things only
    these say something."""
    line = "%-28s %-5s" + 2 * "  %9s %9s %7s %7s"
    print()
    print((line % ("", "", "ours", "QEMU", "", "by CPU", "ours", "QEMU", "", "by CPU")).rstrip())
    print(line % ("", "", "virtio", "virtio", "ratio", "ratio", "emulated", "emulated", "ratio", "ratio"))
    for row in [boot] + rows:
        cells = []
        for kind in KINDS:
            cells += [row.text("ours " + kind), row.text("QEMU " + kind), ratio_text(row.ratio(kind)), ratio_text(row.ratio(kind, 1))]
        print(line % (row.name, row.unit, *cells))
    cells = []
    for kind in KINDS:
        cells += ["", "", ratio_text(summary["mean"][kind]), ratio_text(summary["mean_cpu"][kind])]
    print(line % ("geometric mean without boot", "", *cells))
    print()
    print("boot to login    %-36s %s" % (", ".join("%s %s" % (k, ratio_text(summary["boot"][k])) for k in KINDS),
                                         verdict(summary["boot"], BOOT_TARGET)))
    print("geometric mean   %-36s %s" % (", ".join("%s %s" % (k, ratio_text(summary["mean"][k])) for k in KINDS),
                                         verdict(summary["mean"], MEAN_TARGET)))
    for suffix, title in (("", "slower than QEMU"), ("_cpu", "by CPU time")):
        print("%-16s %s" % (title, "; ".join(summary["slower" + suffix]) or "no row"))
    for text in summary["failed"]:
        print("FAILED           " + text)
