"""control.py KERNEL INITRD WORK: a running guest, steered through its control socket by nacelle ctl, and asked what it sees of that."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))
import vm  # noqa: E402

KERNEL, INITRD, WORK = sys.argv[1:4]
ENV = dict(os.environ, NACELLE_RUN_DIR=WORK + "/run")
MIB = 1 << 20
check = vm.Checks("control%s/" % ("" if vm.ENGINE == "soft" else "-" + vm.ENGINE))


def nacelle(*words, limit=120):
    return subprocess.run([vm.PROGRAM, *words], env=ENV, capture_output=True, text=True, timeout=limit, check=False)


def ctl(*words, name="one", status=0):
    """The reply's "return" (or "error")."""
    done = nacelle("ctl", name, *words, "--json")
    if done.returncode != status:
        vm.fail("ctl %s: status %d: %s%s" % (" ".join(words), done.returncode, done.stdout, done.stderr), guest)
    reply = json.loads(done.stdout)
    return reply["error" if status else "return"]


def image(name, mib):
    return vm.empty_disk("%s/%s" % (WORK, name), mib)


class Guest(vm.Guest):
    """Of tests/guest/scripts/control.sh: does what it is told line by line."""

    def __init__(self, name, extra=(), cpus=1):
        os.environ["NACELLE_RUN_DIR"] = ENV["NACELLE_RUN_DIR"]
        argv = vm.command(KERNEL, INITRD, cpus, "192M", "")
        argv.remove("--no-reboot")
        super().__init__(argv + ["--name", name] + list(extra))

    def ready(self):
        self.expect(r"^control ready$", 120)

    def run(self, command, seconds=60):
        begin = self.position
        self.write(command + "\n")
        match, _ = self.expect(r"^<(\d+)>$", seconds)
        if match[1] != "0":
            vm.fail("'%s' ended with %s: %s" % (command, match[1], self.text[begin:]), self)
        return self.text[begin:match.start()].strip()

    def until(self, command, wanted, seconds=60):
        """Repeats a command until it prints that; what it printed last."""
        end = time.monotonic() + seconds
        while (text := self.run(command)) != wanted and time.monotonic() < end:
            time.sleep(0.2)
        return text

    def uptime(self):
        return float(self.run("cut -d ' ' -f 1 /proc/uptime"))


def events(name):
    """A connection that listens: a file to read lines from."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(120)
    s.connect("%s/run/%s.sock" % (WORK, name))
    lines = s.makefile("r")
    lines.readline()
    s.sendall(b'{"execute":"events","arguments":{"on":true}}\n')
    lines.readline()
    return lines


def pause(listener):
    """The guest's clocks stand still, nothing runs, and then all goes on. A timer of the guest's is under way."""
    complaints = "dmesg | grep -ciE 'unstable|stall|lockup|clocksource.*skew' || true"
    known = guest.run(complaints)
    wall = time.monotonic()
    before = guest.uptime()
    guest.run("(sleep 1; echo slept >/tmp/slept) & echo $! >/tmp/sleeper")
    reply = ctl("pause")
    check("pause", reply == {"state": "paused", "disks_idle": True}, json.dumps(reply))
    cpu = guest.cpu_seconds()
    output = len(guest.text)
    guest.write("echo awake\n")
    time.sleep(4)
    guest.read(0)
    used = guest.cpu_seconds() - cpu
    check("pause-quiet", used < 0.2 and len(guest.text) == output, "%.2f s of CPU time in 4 s, no output" % used)
    check("pause-again", ctl("pause")["state"] == "paused" and ctl("status")["state"] == "paused")
    check("resume", ctl("resume") == {"state": "running"})
    guest.expect(r"^awake$", 60)
    guest.expect(r"^<0>$", 60)
    paused = ctl("status")["paused"]
    lived = guest.uptime() - before
    wall = time.monotonic() - wall
    # What the guest lived through is less than what went by here, by the length of the pause.
    check("pause-clock", paused >= 4 and lived < wall - paused + 0.5,
          "%.1f s of %.1f s paused, the guest's clock went on by %.2f s" % (paused, wall, lived))
    check("pause-timer", guest.until("cat /tmp/slept 2>/dev/null || true", "slept") == "slept")
    # On a busy machine it takes time to ask: our clock is read on both sides.
    first, lived, least = time.monotonic(), guest.uptime(), time.monotonic()
    time.sleep(2)
    least, lived, most = time.monotonic() - least, guest.uptime() - lived, time.monotonic() - first
    check("pause-after", least - 0.3 < lived < most + 0.3, "then %.2f s in %.2f to %.2f s" % (lived, least, most))
    kernel = guest.run(complaints)
    check("pause-kernel", kernel == known, "%s complaints, %s before" % (kernel, known))
    names = [json.loads(listener.readline())["event"] for _ in range(2)]
    check("events", names == ["paused", "resumed"], " ".join(names))


def seconds(command):
    """The guest's clock, not ours: a busy machine delays our looking."""
    text = guest.run("read a b </proc/uptime; %s; read c d </proc/uptime; echo took $a $c" % command, 180)
    match = re.search(r"took ([0-9.]+) ([0-9.]+)", text)
    return float(match[2]) - float(match[1])


def disks():
    read = "dd if=/dev/vda of=/dev/null bs=64k count=%d iflag=direct 2>/dev/null"
    reply = ctl("disk-limits", "id=disk0", "read_bps=2M")
    check("disk-limits", reply == {"id": "disk0", "limits": {"read_bps": 2 * MIB}}, json.dumps(reply))
    took = seconds(read % 192)
    check("disk-limits-hold", 4.5 < took, "12 MiB at 2 MiB/s in %.1f s" % took)
    # What waits for a limit goes on when it is taken away.
    guest.write((read % 4096) + "; echo through\n")
    time.sleep(1)
    check("disk-limits-off", ctl("disk-limits", "disk0", "read_bps=0")["limits"] == {})
    guest.expect(r"^through$", 60)
    guest.expect(r"^<0>$", 60)
    error = ctl("disk-limits", "disk9", "read_bps=1", status=1)
    check("disk-unknown", error["class"] == "not-found" and "disk0" in error["message"], error["message"])

    reply = ctl("disk-resize", "disk0", "80M")
    seen = guest.until("cat /sys/block/vda/size", str(80 * 2048))
    check("disk-resize", reply["size"] == 80 * MIB and seen == str(80 * 2048), "%s sectors" % seen)
    check("disk-resize-use", guest.run("dd if=/dev/urandom of=/dev/vda bs=1M seek=79 count=1 oflag=direct 2>/dev/null; echo $?") == "0")
    error = ctl("disk-resize", "disk0", "64M", status=1)
    check("disk-shrink", os.path.getsize(WORK + "/disk") == 80 * MIB, error["message"])


def plug(listener):
    path = image("more", 8)
    reply = ctl("disk-add", "path=" + path, "serial=MORE", "read_iops=1000", "packed=off")
    seen = guest.until("echo $(cat /sys/block/vdb/serial) $(cat /sys/block/vdb/size)", "MORE 16384")
    check("disk-add", seen == "MORE 16384" and len(ctl("status")["disks"]) == 2, "%s: %r" % (reply["id"], seen))
    # Bit 34, the packed ring: vda has it, vdb must not.
    rings = guest.run("echo $(cut -c 35 /sys/block/vda/device/features) $(cut -c 35 /sys/block/vdb/device/features)")
    check("disk-add-packed", rings == "1 0", rings)
    error = ctl("disk-add", "path=" + path, status=1)
    check("disk-add-locked", error["class"] == "busy", error["message"])
    error = ctl("disk-add", "path=" + WORK + "/nothing", status=1)
    check("disk-add-missing", error["class"] == "not-found", error["message"])
    ctl("disk-remove", reply["id"])
    event = json.loads(listener.readline())
    check("disk-remove", event["event"] == "disk-removed" and event["id"] == reply["id"] and len(ctl("status")["disks"]) == 1)
    check("disk-remove-guest", guest.until("ls /sys/block | grep -c vdb || true", "0") == "0")


def plug_qcow2(listener):
    """Its storage daemon was started by the thread that opened it, and lives until the disk goes."""
    path = WORK + "/more.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"], check=True)
    reply = ctl("disk-add", "path=" + path)
    seen = guest.until("echo $(cat /sys/block/vdb/size)", "16384")
    time.sleep(1)
    written = guest.run("seq 100000 | dd of=/dev/vdb bs=64k conv=fsync 2>/dev/null; head -c 588895 /dev/vdb | md5sum; seq 100000 | md5sum").split()
    format_ = ctl("status")["disks"][1]["format"]
    ctl("disk-remove", reply["id"])
    event = json.loads(listener.readline())
    check("disk-add-qcow2", seen == "16384" and written[0] == written[2] and format_ == "qcow2" and event["event"] == "disk-removed", " ".join(written))
    check("disk-add-qcow2-after", subprocess.run(["qemu-img", "check", "-q", path], check=False).returncode == 0)


def silent_server(name):
    """Takes connections and says nothing: the socket, and what to give as a disk's path."""
    s = socket.socket(socket.AF_UNIX)
    s.bind("%s/%s" % (WORK, name))
    s.listen(16)
    s.settimeout(60)
    return s, "path=nbd+unix:///x?socket=%s/%s" % (WORK, name)


def add_in_background(*words):
    return subprocess.Popen([vm.PROGRAM, "ctl", "one", "disk-add", "--json", "--timeout", "120", *words], env=ENV,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def plug_slowly():
    """A disk whose server says nothing for as long as it is waited for (20 s): guest, console and control go on meanwhile."""
    server, path = silent_server("silent")
    adding = add_in_background(path, "id=slow")
    connection, _ = server.accept()
    longest = 0
    for _ in range(3):
        before = time.monotonic()
        ctl("status")
        guest.run("sleep 0.01")  # its console, and its timer
        longest = max(longest, time.monotonic() - before)
    check("disk-add-slow", adding.poll() is None and longest < 6, "status, console and timer took %.2f s at most meanwhile" % longest)
    same = ctl("disk-add", "path=" + image("other", 1), "id=slow", status=1)
    early = ctl("disk-remove", "slow", status=1)
    check("disk-add-slow-taken", same["class"] == "exists" and early["class"] == "busy", same["message"] + "; " + early["message"])
    server.close()
    connection.close()
    out, _ = adding.communicate(timeout=60)
    error = json.loads(out)["error"]
    check("disk-add-slow-fails", adding.returncode == 1 and "nbd+unix" in error["message"] and "blockdev" not in error["message"], error["message"])
    other = ctl("disk-add", "path=" + WORK + "/other", "id=slow")
    check("disk-add-slow-again", guest.until("echo $(cat /sys/block/vdb/size)", "2048") == "2048" and other["id"] == "slow")
    ctl("disk-remove", "slow")


def quit_slowly():
    """The machine ends at once, whatever is being opened, and who waits for that is told."""
    server, path = silent_server("silent2")
    adding = add_in_background(path)
    connection, _ = server.accept()
    begin = time.monotonic()
    ctl("quit")
    status = guest.wait(60)
    took = time.monotonic() - begin
    out, _ = adding.communicate(timeout=60)
    check("quit", status == 0 and took < 10 and os.listdir(WORK + "/run") == [".lock"], "in %.1f s" % took)
    check("quit-opening", "the machine has ended" in json.loads(out)["error"]["message"], out.replace("\n", " "))
    connection.close()
    server.close()


def nics():
    carrier = "cat /sys/class/net/eth0/carrier"
    guest.run("ip address add 10.0.2.15/24 dev eth0; ip link set eth0 up")
    up = guest.until(carrier, "1")
    ctl("net-link", "id=net0", "state=down")
    down = guest.until(carrier, "0")
    check("net-link", (up, down) == ("1", "0") and ctl("status")["nics"][0]["link"] == "down")
    ctl("net-link", "net0", "up")
    check("net-link-up", guest.until(carrier, "1") == "1")
    reply = ctl("net-limits", "net0", "avg_in=4M", "avg_out=8M", "peak_out=16M", "burst_out=64K")
    check("net-limits", reply["limits"] == {"avg_in": 4000000, "avg_out": 8000000, "peak_out": 16000000, "burst_out": 65536},
          json.dumps(reply["limits"]))
    # 2 MiB at 4 Mbit/s take 4 s and more.
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(1)
    pid = os.fork()
    if not pid:
        c, _ = server.accept()
        c.sendall(b"x" * (2 * MIB))
        os._exit(0)
    took = seconds("nc 10.0.2.2 %d </dev/null | wc -c | grep -qx %d" % (server.getsockname()[1], 2 * MIB))
    os.waitpid(pid, 0)
    check("net-limits-hold", 3.5 < took, "2 MiB at 4 Mbit/s in %.1f s" % took)
    error = ctl("net-limits", "net0", "peak_in=1M", status=1)
    check("net-limits-wrong", error["class"] == "argument" and ctl("net-limits", "net0")["limits"] == reply["limits"], error["message"])


def several():
    """Two machines side by side; a name twice; one that is killed."""
    two = Guest("two", ["--control", "none"])
    three = subprocess.Popen([vm.PROGRAM, "run", "--engine", "soft", "-k", KERNEL, "-m", "64M", "-a", "panic=60"], env=ENV,
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    name = "vm-%d" % three.pid
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            rows = {row["name"]: row for row in json.loads(nacelle("ps", "--json").stdout)}
            if rows.get(name, {}).get("state") == "running":
                break
        check("ps", sorted(rows) == sorted(["one", name]) and rows["one"]["pid"] == guest.process.pid and rows[name]["memory"] == 64 * MIB,
              " ".join(sorted(rows)))
        table = nacelle("ps").stdout.splitlines()
        check("ps-table", len(table) == 3 and table[0].split() == "NAME PID STATE ENGINE CPUS MEMORY CPU% UPTIME".split(), table[0])
        again = nacelle("run", "--engine", "soft", "--name", "one", "-k", KERNEL)
        check("same-name", again.returncode == 2 and "(pid %d)" % guest.process.pid in again.stderr and
              len(again.stderr.splitlines()) == 1, again.stderr.strip())
        os.kill(three.pid, signal.SIGSTOP)
        rows = {row["name"]: row for row in json.loads(nacelle("ps", "--json").stdout)}
        check("ps-stopped", rows[name]["state"] == "no answer" and rows[name]["pid"] == three.pid)
    finally:
        three.kill()
        three.wait()
        two.process.kill()
        two.process.wait()
    path = "%s/run/%s.sock" % (WORK, name)
    stale = os.path.exists(path)
    gone = nacelle("ctl", name, "status")
    listed = nacelle("ps")
    check("stale", stale and gone.returncode == 2 and name not in listed.stdout and not os.path.exists(path) and
          listed.stderr == "nacelle: removed the socket of a machine that had been killed\n", listed.stderr.strip())


def main():
    global guest
    disk = image("disk", 64)
    guest = Guest("one", ["-d", disk, "-n", "user"], cpus=2)
    guest.ready()
    listener = events("one")
    status = ctl("status")
    check("status", status["name"] == "one" and status["pid"] == guest.process.pid and status["memory"] == 192 * MIB and
          status["disks"][0]["size"] == 64 * MIB and status["nics"][0]["kind"] == "user", status["state"])
    text = nacelle("ctl", "one", "status").stdout
    check("status-text", "192 MiB" in text and "disk0" in text and "net0" in text)
    first, second = ctl("stats"), ctl("stats")
    check("stats", second["vcpus"][0]["exits"]["io"] >= first["vcpus"][0]["exits"]["io"] > 0 and second["wall_seconds"] > first["wall_seconds"]
          and {p["name"] for p in second["pci"]} >= {"disk0", "net0"})
    pause(listener)
    disks()
    plug(listener)
    plug_qcow2(listener)
    plug_slowly()
    json.loads(listener.readline())  # disk-removed
    nics()
    several()
    # A reset, of a machine that is paused: it stays so, and then starts anew, with clocks that agree.
    ctl("pause")
    ctl("reset")
    event = [json.loads(listener.readline())["event"] for _ in range(2)]
    check("reset", event == ["paused", "reset"] and ctl("status")["state"] == "paused" and ctl("status")["resets"] == 1, " ".join(event))
    ctl("resume")
    guest.ready()
    kernel = guest.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource; dmesg | grep -ciE 'unstable|warp' || true")
    # (The lab's CPUs have time-stamp counters that do not agree, and KVM has a clock for that.)
    check("reset-clock", kernel.split() == ["tsc", "0"] if vm.ENGINE == "soft" else kernel.split()[0] in ("tsc", "kvm-clock"), kernel.replace("\n", " "))
    # The power button, to a guest that listens to it.
    guest.run("acpid -l /dev/null; until ls -l /proc/$(pidof acpid)/fd 2>/dev/null | grep -q event; do sleep 0.1; done; sleep 1")
    ctl("power-button")
    guest.expect(r"^the button$", 60)
    check("power-button", guest.wait(120) == 0)
    check("ended", json.loads(listener.readline())["event"] == "resumed" and json.loads(listener.readline())["status"] == 0)
    check("no-socket", not os.path.exists(WORK + "/run/one.sock") and nacelle("ctl", "one", "status").returncode == 2)
    # One that is told to go, paused or not.
    guest = Guest("one")
    guest.ready()
    ctl("pause")
    quit_slowly()


guest = None
try:
    main()
finally:
    if guest and guest.process.poll() is None:
        guest.process.kill()
sys.exit(check.failed)
