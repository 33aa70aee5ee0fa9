"""The full Debian guest of tools/image.sh: started with its own copy of the image, logged in on the serial console, commands run."""
import atexit
import itertools
import os
import re
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))
import vm  # noqa: E402

PROMPT_TIMEOUT = int(os.environ.get("NACELLE_BOOT_SECONDS", "600"))
numbers = itertools.count(1)


def image():
    """The image's directory; built when it is not there."""
    out = subprocess.run(["tools/image.sh"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return out.strip().splitlines()[-1]


def copy_of(directory, path):
    """A disk of one's own to write to."""
    subprocess.run(["cp", "--sparse=always", directory + "/disk.img", path], check=True)
    os.chmod(path, 0o600)
    return path


def ours(directory, disks, memory=512, cpus=1, extra=(), append="", engine="soft"):
    """disks: values of --disk; the first is the root."""
    command = [vm.PROGRAM, "run", "--engine", engine, "-k", directory + "/vmlinuz", "-i", directory + "/initrd.img", "-m",
               "%dM" % memory, "-c", str(cpus), "-a", "root=LABEL=nacelle rw console=ttyS0 quiet " + append]
    for disk in disks:
        command += ["--disk", disk]
    return command + list(extra)


def qemu(directory, disks, memory=512, cpus=1, extra=(), append="", emulated=False):
    """disks: file names of raw images. Emulated: AHCI, as q35 has it."""
    command = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-cpu", "max", "-display", "none", "-monitor", "none",
               "-serial", "stdio", "-no-reboot", "-nodefaults", "-m", "%dM" % memory, "-smp", str(cpus),
               "-kernel", directory + "/vmlinuz", "-initrd", directory + "/initrd.img",
               "-append", "root=LABEL=nacelle rw console=ttyS0 quiet " + append]
    for i, disk in enumerate(disks):
        command += ["-drive", "file=%s,format=raw,if=none,id=d%d" % (disk, i), "-device",
                    ("ide-hd,drive=d%d,bus=ide.%d" % (i, i)) if emulated else "virtio-blk-pci,drive=d%d" % i]
    return command + list(extra)


class Debian(vm.Guest):
    """Boots at once; login() waits for it. boot_seconds, boot_cpu: to the login prompt."""

    def __init__(self, command):
        self.started = time.monotonic()
        super().__init__(command)
        atexit.register(self.kill)  # whatever ends the test ends the guest

    def login(self):
        _, at = self.expect(r"nacelle-guest login: ", PROMPT_TIMEOUT)
        self.boot_seconds = at - self.started
        self.boot_cpu = self.cpu_seconds()
        self.write("root\n")
        self.expect(r"Password: ", 300)
        self.write("nacelle\n")
        self.expect(r":~# ", 300)
        # A shell without line editing; no echo and no prompt: what comes is what commands print.
        self.write("exec dash\n")
        self.expect(r"^(?:\x1b\[\?2004l)?# ", 300)
        self.write("stty -echo; PS1=; PS2=; dmesg -n 1; echo rea''dy\n")
        self.expect(r"^ready$", 300)
        return self

    def run(self, command, seconds=120, check=True):
        """Output and status of a shell command."""
        n = next(numbers)
        self.write("{ %s\n} 2>&1; echo \"<%d:$?>\"\n" % (command, n))
        begin = self.position
        match, _ = self.expect(r"<%d:(\d+)>\n" % n, seconds)
        output = self.text[begin:match.start()]
        status = int(match.group(1))
        if check and status:
            kernel, _ = self.run("dmesg | tail -n 25", check=False)
            vm.fail("'%s' ended with %d:\n%s\nthe kernel's last words:\n%s" % (command, status, output[-600:], kernel), self)
        return output if check else (output, status)

    def run_marked(self, command, begin, end, seconds=120):
        """As run(), and what it took from the line that looks like `begin` to the one like `end`: output, seconds of CPU, of the clock."""
        n = next(numbers)
        self.write("{ %s\n} 2>&1; echo \"<%d:$?>\"\n" % (command, n))
        over = r"<%d:(\d+)>\n" % n
        at, marks = self.position, []
        for pattern in (begin, end):
            match, when = self.expect("(?:%s)|%s" % (pattern, over), seconds)
            if match.group(1):
                vm.fail("'%s' ended with %s before '%s': %s" % (command, match.group(1), pattern, self.text[at:][-600:]), self)
            marks.append((self.cpu_seconds(), when))
        match, _ = self.expect(over, seconds)
        text = self.text[at:match.start()]
        if match.group(1) != "0":
            vm.fail("'%s' ended with %s: %s" % (command, match.group(1), text[-600:]), self)
        return text, marks[1][0] - marks[0][0], marks[1][1] - marks[0][1]

    def power_off(self, seconds=120):
        self.write("systemctl poweroff\n")
        return self.wait(seconds)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


FIO = ("fio --name=x --filename=%s --direct=1 --ioengine=libaio --rw=%s --bs=%s --iodepth=%d --runtime=%g --ramp_time=%g "
       "--time_based --minimal --terse-version=3 %s")


def fio_result(guest, text):
    line = [l for l in text.splitlines() if re.match(r"3;fio-", l)]
    if not line:
        vm.fail("fio said nothing that can be read:\n" + text[-600:], guest)
    field = line[-1].split(";")
    # Terse format 3: total KiB, KiB/s, IOPS of reads at 6..8, of writes at 47..49 (fields counted from 1).
    return int(field[7]) + int(field[48]), (int(field[6]) + int(field[47])) * 1024


def fio(guest, device, rw, block, depth, seconds, ramp=1, options=""):
    """Runs fio on a whole disk; gives (operations per second, bytes per second) of both directions together."""
    return fio_result(guest, guest.run(FIO % (device, rw, block, depth, seconds, ramp, options), seconds=seconds * 6 + 120))


def fio_marked(guest, device, rw, block, depth, seconds, ramp=1):
    """As fio(), and beside it what the run without fio's start took: (..., seconds of CPU, seconds by the clock)."""
    # (In brackets, because fio redirects the output of what it runs.)
    marks = " ".join("--exec_%srun='(echo @%s >/dev/console)'" % (m, m) for m in ("pre", "post"))
    command = FIO % (device, rw, block, depth, seconds, ramp, marks)
    text, cpu, clock = guest.run_marked(command, "@pre$", "@post$", seconds * 6 + 120)
    return (*fio_result(guest, text), cpu, clock)


def data_disk(path, mib):
    """A disk full of bytes that do not compress, in the host's page cache."""
    if os.path.exists(path):
        os.remove(path)
    block = os.urandom(1 << 20)
    with open(path, "wb") as f:
        for i in range(mib):
            f.write(i.to_bytes(8, "little") + block[8:])
    return path


def need_room(directory, mib):
    if shutil.disk_usage(directory).free < mib << 20:
        print("SKIP %s: less than %d MiB free in %s" % (os.path.basename(sys.argv[0]), mib, directory))
        sys.exit(77)
