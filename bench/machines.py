"""Starts the machines under test and reads their serial consoles."""
import os
import selectors
import signal
import struct
import subprocess
import time

BOOT_TIMEOUT = 120  # seconds from the start to the first line of ours
START_TIMEOUT = 40  # for the boot rows, which need a few seconds
ROW_TIMEOUT = 170   # seconds without a line; a row's own alarm is at 150


def guest_command(machine, nacelle, memory, cpus, kernel, initrd, append):
    """machine: ours, tcg (quiet q35), q35 and microvm (as users start them)."""
    if machine == "ours":
        return [nacelle, "run", "--kernel", kernel, "--initrd", initrd, "--append", append, "--memory", f"{memory}M",
                "--cpus", str(cpus), "--engine", "soft", "--no-reboot"]
    command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", f"{memory}M", "-smp", str(cpus), "-no-reboot",
               "-kernel", kernel, "-initrd", initrd, "-append", append]
    if machine == "tcg":
        return command + ["-M", "q35", "-display", "none", "-serial", "stdio", "-monitor", "none"]
    if machine == "q35":
        return command + ["-M", "q35", "-nographic"]
    return command + ["-M", "microvm,x-option-roms=off,pic=off,rtc=on,isa-serial=on", "-nodefaults", "-no-user-config",
                      "-display", "none", "-serial", "stdio"]


class Machine:
    """A running machine (or program) and its lines, with the time of arrival of each."""

    def __init__(self, command, log):
        self.log = log
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        start_new_session=True)
        self.buffer = b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)

    def line(self, timeout):
        """The next line (time, text); None at the end; raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not self.selector.select(left):
                raise TimeoutError
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                return None
            self.log.write(data)
            self.log.flush()
            self.buffer += data
        text, self.buffer = self.buffer.split(b"\n", 1)
        return time.monotonic(), text.decode("utf-8", "replace").strip("\r\n ")

    def close(self):
        """Ends it, whatever state it is in; gives the exit status."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.stdout.close()
        self.selector.close()
        return self.process.wait()

    def wait(self, timeout):
        """Reads to the end; gives the exit status (killed: negative)."""
        try:
            while self.line(timeout) is not None:
                pass
            self.process.wait(timeout)
        except (TimeoutError, subprocess.TimeoutExpired):
            pass
        return self.close()


class Rows:
    """What nbench printed: values by row, failures, the clocks.

    With a cpu_clock (seconds of CPU the machine has used so far) a row's value is its mean, scaled by the share of the
    wall time that the machine had a CPU: for hosts that are busy with other things. Else it is the best repeat."""

    def __init__(self, cpu_clock=None):
        self.cpu_clock = cpu_clock
        self.values, self.finished = {}, False
        self.current, self.done = None, 0
        self.first_clock = self.last_clock = None  # (guest, host)
        self.start = None  # (CPU seconds, wall seconds) at the start of the row

    def feed(self, when, text):
        words = text.split(None, 2)
        if not words:
            return
        if words[0] in ("READY", "CLOCK", "END") and len(words) > 1:
            self.last_clock = (float(words[1]), when)
            self.first_clock = self.first_clock or self.last_clock
            self.finished |= words[0] == "END"
            if words[0] == "CLOCK" and self.cpu_clock:
                self.scale(self.cpu_clock(words[2]), when)
        elif words[0] == "START":
            self.current, self.done = words[1], self.done + 1
            self.values[self.current] = {"note": "did not end"}
            if self.cpu_clock:
                self.start = (self.cpu_clock(None), when)
        elif words[0] == "ROW":
            best, mean, unit, check = words[2].split()
            self.values[words[1]] = {"value": float(best), "mean": float(mean), "unit": unit, "check": check}
        elif words[0] in ("FAIL", "SKIP"):
            self.values[words[1]] = {"note": (words[0] + " " + words[2])[:40]}

    def scale(self, cpu, when):
        row = self.values.get(self.current, {})
        share = (cpu - self.start[0]) / (when - self.start[1]) if when > self.start[1] else 0
        if "mean" in row and share > 0:
            share = min(share, 1)
            row["cpu_share"] = share
            row["value"] = row["mean"] / share if row["unit"] == "MB/s" else row["mean"] * share


def native_clock():
    """CPU seconds of nbench's rows, as it prints them itself."""
    last = [0.0]

    def clock(text):
        last[0] = float(text) if text else last[0]
        return last[0]

    return clock


def process_clock(pid):
    """CPU seconds of a VMM, all threads."""

    def clock(_):
        total = 0
        for task in os.listdir(f"/proc/{pid}/task"):
            try:
                with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as f:
                    total += int(f.read().split()[0])
            except OSError:
                pass
        return total / 1e9

    return clock


def run_native(program, root, only, repeats, pin, cpu_time, log):
    rows = Rows(native_clock() if cpu_time else None)
    command = [program, "--root", root, "--only", only, "--repeats", str(repeats)] + (["--pin"] if pin else [])
    machine = Machine(command, log)
    try:
        while (line := machine.line(ROW_TIMEOUT)) is not None:
            rows.feed(*line)
    except TimeoutError:
        pass
    machine.close()
    return rows.values


def run_guest(make_command, only, repeats, expected, cpu_time, log, say):
    """Runs all rows in a guest; one that takes the guest along costs that row: the next guest starts behind it.
    Gives (values, [(guest seconds, host seconds)])."""
    values, clocks, first = {}, [], 0
    for attempt in range(5):
        append = f"console=ttyS0 quiet panic=-1 bench.only={only} bench.repeats={repeats} bench.first={first}"
        machine = Machine(make_command(append), log)
        rows = Rows(process_clock(machine.process.pid) if cpu_time else None)
        why = ""
        try:
            while (line := machine.line(ROW_TIMEOUT if rows.first_clock else BOOT_TIMEOUT)) is not None:
                rows.feed(*line)
                if rows.finished:
                    break
        except TimeoutError:
            why = "hangs"
        status = machine.wait(20) if rows.finished else machine.close()
        values.update(rows.values)
        if rows.first_clock and rows.last_clock[1] > rows.first_clock[1]:
            clocks.append(tuple(b - a for a, b in zip(rows.first_clock, rows.last_clock)))
        if rows.finished:
            break
        where = rows.current or "the boot"
        why = why or f"ended with status {status}"
        say(f"the guest {why} in {where}")
        if rows.current is None:
            break
        values.setdefault(rows.current, {}).setdefault("note", f"guest {why}")
        if "value" not in values[rows.current]:
            values[rows.current]["note"] = f"guest {why}"
        first += rows.done
        if first >= expected:
            break
    return values, clocks


def boot_seconds(command, log):
    """Wall time from the start to the marker of init; None when it did not come."""
    machine = Machine(command, log)
    try:
        while (line := machine.line(START_TIMEOUT)) is not None:
            if "INIT-REACHED" in line[1]:
                return line[0] - machine.started
    except TimeoutError:
        pass
    finally:
        machine.close()
    return None


def memory_beside_guest(command, guest_mib, log):
    """MiB resident in the VMM that are not guest RAM, a while after init was reached."""
    machine = Machine(command, log)
    try:
        while (line := machine.line(START_TIMEOUT)) is not None:
            if "INIT-REACHED" in line[1]:
                time.sleep(1)
                return resident_beside(machine.process.pid, guest_mib << 20)
    except (TimeoutError, OSError):
        pass
    finally:
        machine.close()
    return None


def resident_beside(pid, guest_bytes):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
        total = next(int(l.split()[1]) for l in f if l.startswith("Rss:")) * 1024
    areas = []  # writable areas, neighbours joined
    with open(f"/proc/{pid}/maps", encoding="utf-8") as f:
        for text in f:
            span, mode = text.split()[:2]
            start, end = (int(x, 16) for x in span.split("-"))
            if mode.startswith("rw"):
                if areas and areas[-1][1] == start:
                    areas[-1][1] = end
                else:
                    areas.append([start, end])
    # Both VMMs end guest RAM with a guard page, so it is the end of its area, whatever was joined below it.
    area = min((a for a in areas if a[1] - a[0] >= guest_bytes), key=lambda a: a[1] - a[0], default=None)
    if area is None:
        return None
    start = area[1] - guest_bytes
    with open(f"/proc/{pid}/pagemap", "rb") as f:
        f.seek(start // 4096 * 8)
        entries = f.read(guest_bytes // 4096 * 8)
    present = sum(e >> 63 for (e,) in struct.iter_unpack("<Q", entries))
    return (total - present * 4096) / (1 << 20)


def run_nano(machine, nacelle, kernel, log):
    """name -> cycles."""
    if machine == "ours":
        command = [nacelle, "run", "--kernel", kernel, "--debug-exit", "0xf4", "--no-reboot", "--memory", "64M", "--engine", "soft"]
    else:
        command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "64M", "-display", "none", "-serial", "stdio",
                   "-monitor", "none", "-nic", "none", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
                   "-kernel", kernel]
    cycles = {}
    vm = Machine(command, log)
    try:
        while (line := vm.line(60)) is not None:
            at = line[1].find("NANO ")
            if at >= 0:
                _, name, value = line[1][at:].split()
                cycles[name] = float(value)
    except (TimeoutError, ValueError):
        pass
    vm.close()
    return cycles
