"""One run, one table: Nacelle, QEMU's TCG and the host itself, on the same programs. See run.sh for the options."""
import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time

import machines
import report

# A sample of every group for BENCH=quick.
QUICK = ("integer/(sort|hash|sha256|bytecode|json|zlib|sqlite|lua|python3|gcc|dijkstra|regex)$|float/(nbody|fft|spectral)|"
         "simd/(saxpy-fma|dgemm-fma|blend-sse2)|rep/|system/(getppid|page-fault|switch-pipe|fork-exec|signal|pipe-64K)|"
         "parallel/(processes|threads)|clock/")
MEMORY_MIB = 1024
BOOT_MEMORY_MIB = 512


class Bench:
    def __init__(self, options):
        self.o = options
        self.out = os.path.abspath(options.out)
        self.quick = options.quick
        self.repeats = 1 if self.quick else 3
        self.log = open(os.path.join(self.out, "console.log"), "wb")
        self.kernel = os.path.join(self.out, "vmlinuz")
        self.program = os.path.join(self.out, "stage/init")
        self.root = os.path.join(self.out, "stage/r")
        self.columns = [c for c in ("native", "ours", "tcg") if c in options.columns.split(",")]
        if "ours" in self.columns and not os.access(options.nacelle, os.X_OK):
            self.say(f"there is no {options.nacelle}: its column stays empty")
            self.columns.remove("ours")
        self.only = options.only or (QUICK if self.quick else ".")
        names = subprocess.run([self.program, "--names", "--only", self.only], stdout=subprocess.PIPE, text=True, check=True)
        self.names = names.stdout.split()
        self.results = {c: {} for c in ("ours", "tcg", "native")}
        self.parallel = {c: {1: {}, 4: {}} for c in ("ours", "tcg", "native")}
        self.clocks, self.nano, self.boot = [], {"ours": {}, "tcg": {}}, {}

    def say(self, text):
        print(f"bench: {text}", file=sys.stderr, flush=True)

    def wants(self, part):
        return not self.o.only or re.search(self.o.only, part) is not None

    def expression(self, parallel):
        """Of the rows to run: exact names, so that what runs in a guest is what was listed here."""
        names = [n for n in self.names if n.startswith("parallel/") == parallel]
        return names, "^(" + "|".join(names) + ")$"

    def guest_rows(self, column, cpus, names, only, cpu_time):
        def command(append):
            return machines.guest_command(column, self.o.nacelle, MEMORY_MIB, cpus, self.kernel,
                                          os.path.join(self.out, "bench.cpio"), append)

        self.say(f"{column}: {len(names)} rows, {cpus} vCPU")
        values, clocks = machines.run_guest(command, self.short(names, only), self.repeats, len(names), cpu_time, self.log,
                                            lambda text: self.say(f"{column}: {text}"))
        self.clocks += [(column, cpus, guest, host) for guest, host in clocks]
        return values

    def short(self, names, only):
        """The kernel command line holds 2047 characters; a full list of names is shortened to what it came from."""
        return only if len(only) < 1500 else "^(" + "|".join(sorted({n.split("/")[0] + "/" for n in names})) + ")"

    def run_rows(self):
        names, only = self.expression(False)
        for column in self.columns:
            if not names:
                break
            if column == "native":
                self.say(f"native: {len(names)} rows")
                self.results[column] = machines.run_native(self.program, self.root, only, self.repeats, True, self.o.cpu_time,
                                                           self.log)
            else:
                self.results[column] = self.guest_rows(column, 1, names, only, self.o.cpu_time)

    def run_parallel(self):
        names, only = self.expression(True)
        for column in self.columns:  # in wall time, whatever the options: that is what more CPUs are for
            for cpus in (1, 4):
                if not names:
                    return
                if column == "native":
                    rows = machines.run_native(self.program, self.root, only, self.repeats, cpus == 1, False, self.log)
                else:
                    rows = self.guest_rows(column, cpus, names, only, False)
                self.parallel[column][cpus] = rows

    def run_nano(self):
        for column in ("ours", "tcg"):
            if column in self.columns:
                self.say(f"{column}: nanobenchmarks")
                self.nano[column] = machines.run_nano(column, self.o.nacelle, os.path.join(self.out, "nano.elf"), self.log)

    def run_boot(self):
        titles = {"ours": "nacelle", "q35": "QEMU q35, -kernel", "microvm": "QEMU microvm, -kernel"}
        runs = 1 if self.quick else 3
        for machine, title in titles.items():
            if ("ours" if machine == "ours" else "tcg") not in self.columns:
                continue
            self.say(f"boot: {title}")

            def command(append):
                return machines.guest_command(machine, self.o.nacelle, BOOT_MEMORY_MIB, 1, self.kernel,
                                              os.path.join(self.out, "boot.cpio"), append)

            tries = []
            while len(tries) < runs and tries.count(None) < 2:  # QEMU's microvm hangs now and then on a busy host
                tries.append(machines.boot_seconds(command("console=ttyS0"), self.log))
            seconds = [s for s in tries if s]
            rss = machines.memory_beside_guest(command("console=ttyS0 bench.wait"), BOOT_MEMORY_MIB, self.log) if seconds else None
            lost = f"{tries.count(None)} of {len(tries)} did not get there" if None in tries else ""
            self.boot[machine] = {"title": title, "seconds": seconds, "rss_mib": rss, "note": lost,
                                  "median": statistics.median(seconds) if seconds else None}

    def run(self):
        started = time.monotonic()
        load = os.getloadavg()[0]
        if load > 0.5:
            self.say(f"the host is not idle (load {load:.1f}): expect noise")
        if self.wants("boot/"):
            self.run_boot()
        self.run_rows()
        self.run_parallel()
        if self.wants("nano/"):
            self.run_nano()
        summary = {"load_before": load, "seconds": time.monotonic() - started}
        self.show(summary)
        return summary

    def show(self, summary):
        table = report.Table(sys.stdout)
        cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo", encoding="utf-8") if l.startswith("model name")), "?")
        qemu = subprocess.run(["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, text=True, check=False).stdout
        table.line(f"Nacelle's bench on {cpu}, {os.cpu_count()} CPUs, {platform.release()}; "
                   f"{qemu.splitlines()[0] if qemu else 'no QEMU'}; load {summary['load_before']:.1f}; "
                   f"{'CPU time, mean' if self.o.cpu_time else 'best'} of {self.repeats}; {summary['seconds']:.0f} s in all")
        table.line("Times: lower is better; MB/s: higher. ours/TCG: how many times faster than TCG; native/ours: how many times")
        table.line("slower than the host itself. Beside each mean: how many times slower than native TCG is.")
        report.show_boot(table, self.boot, summary)
        report.show_groups(table, self.names, self.results, summary)
        report.show_parallel(table, self.parallel if any(r for c in self.parallel.values() for r in c.values()) else {}, summary)
        report.show_nano(table, self.nano, summary)
        report.show_clocks(table, self.clocks)


def main():
    parser = argparse.ArgumentParser(prog="bench/run.sh", description="Speed against QEMU's TCG and native, in one table.")
    parser.add_argument("--only", help="regular expression over row names (group/name, boot/, nano/)")
    parser.add_argument("--columns", default="native,ours,tcg", help="which to run, comma-separated")
    parser.add_argument("--json", help="where the numbers go (default: results.json in the output directory)")
    parser.add_argument("--quick", action="store_true", help="a sample of the rows, once each; also BENCH=quick")
    parser.add_argument("--cpu-time", action="store_true", help="for busy hosts: CPU seconds of the machine instead of wall")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    parser.add_argument("--out", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--nacelle", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    bench = Bench(options)
    if options.list:
        print("\n".join(["boot/"] + bench.names + ["nano/"]))
        return 0
    summary = bench.run()
    with open(options.json or os.path.join(bench.out, "results.json"), "w", encoding="utf-8") as f:
        json.dump({"summary": summary, "rows": bench.results, "parallel": bench.parallel, "nano": bench.nano,
                   "boot": bench.boot, "clocks": bench.clocks}, f, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
