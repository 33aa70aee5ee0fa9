"""A guest under test as an object: started on pipes or on a terminal of its own, read with time stamps."""
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

RUNNER = os.environ.get("NACELLE_RUNNER", "nacelle")
PROGRAM = os.environ.get("NACELLE", "build/nacelle")
ENGINE = os.environ.get("NACELLE_ENGINE", "soft")
# In the lab on a machine with other things to do everything takes so many times longer (tests/lab/run.sh).
SLOWER = int(os.environ.get("NACELLE_SLOWER", "1"))


def command(kernel, initrd, cpus, memory, append):
    append = "console=ttyS0 loglevel=1 panic=-1 nacelle.cpus=%d %s %s" % (cpus, append, os.environ.get("NACELLE_APPEND", ""))
    if RUNNER == "qemu":
        return ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-no-reboot", "-display", "none", "-nodefaults",
                "-serial", "mon:stdio", "-kernel", kernel, "-initrd", initrd, "-smp", str(cpus), "-m", memory,
                "-append", append]
    return [PROGRAM, "run", "--engine", ENGINE, "--no-reboot", "-k", kernel, "-i", initrd, "-c", str(cpus), "-m", memory,
            "-a", append]


class Guest:
    def __init__(self, argv, terminal=False, errors=subprocess.STDOUT):
        """errors: a file for what the VMM itself says; else it comes between the guest's output."""
        self.text = ""
        self.position = 0  # what expect() has not looked at yet
        self.terminal = terminal
        if terminal:
            self.master, slave = pty.openpty()
            self.slave = slave
            self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        else:
            read_end, write_end = os.pipe()
            self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=write_end, stderr=errors)
            os.close(write_end)
            self.master = read_end

    def terminal_mode(self):
        return termios.tcgetattr(self.slave)

    def write(self, data):
        if self.terminal:
            os.write(self.master, data.encode())
        else:
            self.process.stdin.write(data.encode())
            self.process.stdin.flush()

    def read(self, seconds):
        """Waits up to that long for output; False at its end or when there was none."""
        if not select.select([self.master], [], [], max(0, seconds))[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        self.text += data.decode("latin-1").replace("\r", "")
        return bool(data)

    def expect(self, pattern, seconds=60):
        """Waits for a regular expression in new output; returns the match and the time it came. One that ends with "$" waits for the line's end."""
        end = time.monotonic() + seconds * SLOWER
        ended = False
        while True:
            seen = len(self.text) if ended or not pattern.endswith("$") else self.text.rfind("\n") + 1
            match = re.compile(pattern, re.M).search(self.text[:seen], self.position)
            if match:
                self.position = match.end()
                return match, time.monotonic()
            if ended:
                fail("the VM ended (status %d) without %r:\n%s" % (self.process.returncode, pattern, self.text[-800:]))
            if time.monotonic() > end:
                fail("no %r within %d s; the end of what there is:\n%s" % (pattern, seconds, self.text[-800:]), self)
            ended = not self.read(end - time.monotonic()) and self.process.poll() is not None

    def wait(self, seconds):
        end = time.monotonic() + seconds * SLOWER
        while self.process.poll() is None:
            if time.monotonic() > end:
                fail("the VM did not end within %g s" % seconds, self)
            self.read(0.05)
        return self.process.returncode

    def cpu_seconds(self):
        fields = open("/proc/%d/stat" % self.process.pid).read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_beside_ram(self, ram_bytes):
        """Resident KiB of all mappings but guest RAM (the ones as large as RAM, or RAM's part)."""
        resident = size = 0
        rest = []
        for line in open("/proc/%d/smaps" % self.process.pid):
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                low, high = line.split()[0].split("-")
                size = int(high, 16) - int(low, 16)
            elif line.startswith("Rss:"):
                rest.append((size, int(line.split()[1])))
        ram = [r for r in rest if r[0] >= ram_bytes]
        if len(ram) != 1:
            fail("expected one mapping that holds guest RAM, there are %d" % len(ram), self)
        resident = sum(r[1] for r in rest) - ram[0][1]
        return resident


class Failed(SystemExit):
    """Ends a test; a benchmark goes on with its next row."""

    def __init__(self, message):
        super().__init__(1)
        self.message = message

    def __str__(self):
        return self.message


def fail(message, guest=None):
    if guest and guest.process.poll() is None:
        guest.process.send_signal(signal.SIGKILL)
    print("FAIL %s: %s" % (os.path.basename(sys.argv[0]), message), flush=True)
    raise Failed(message)


class Checks:
    """A test's PASS and FAIL lines; `brief`: with the text of FAILs only."""

    def __init__(self, prefix, brief=False):
        self.prefix = prefix
        self.brief = brief
        self.failed = False

    def __call__(self, name, good, text=""):
        self.failed |= not good
        text = "" if good and self.brief else text
        print("%s %s%s%s" % ("PASS" if good else "FAIL", self.prefix, name, ": " + text if text else ""), flush=True)


def empty_disk(path, mib):
    with open(path, "wb") as f:
        f.truncate(mib << 20)
    return path
