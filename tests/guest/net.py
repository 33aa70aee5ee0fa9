"""net.py KERNEL INITRD CASE...: guests on user networks and on taps, with either NIC; the host serves, asks, and checks sums."""
import hashlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request

sys.path.insert(0, os.path.dirname(__file__))
import serve as servers  # noqa: E402
import vm  # noqa: E402

KERNEL, INITRD = sys.argv[1:3]
DATA = random.Random(4).randbytes(6 << 20)
SUM = hashlib.sha256(DATA).hexdigest()
MODULES = {"virtio": "virtio_pci,virtio_net", "e1000": "e1000"}
failed = False


def serve(address):
    return servers.start(address, DATA)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def boot(model, options, **keys):
    """Starts a guest with one NIC; keys go to its script."""
    words = " ".join("net.%s=%s" % item for item in keys.items())
    argv = vm.command(KERNEL, INITRD, 1, "512M", words + " net.modules=" + MODULES[model])
    stats = os.path.join(os.environ.get("NACELLE_BUILD", "build"), "guest-tests", "net-%s-%d.json" % (model, os.getpid()))
    guest = vm.Guest(argv + ["--net", options + ",model=" + model, "--stats=json:" + stats])
    guest.stats = stats
    return guest


def finish(guest):
    guest.expect(r"^@@END 0$", 90)
    if guest.wait(30) != 0:
        raise AssertionError("exit status %d" % guest.process.returncode)
    with open(guest.stats) as f:
        stats = json.load(f)
    os.unlink(guest.stats)
    return stats


def check(condition, message):
    if not condition:
        raise AssertionError(message)


def steps_with_sums(guest, names):
    for name in names:
        if name == "many":
            match, _ = guest.expect(r"^many (\d+) ([0-9a-f]+)$", 90)
            check(match[1] == "1" and match[2] == SUM, "many: %s" % match[0])
        elif name == "ping":
            guest.expect(r"^pong$", 60)
        else:
            match, _ = guest.expect(r"^%s ([0-9a-f]+)$" % name, 90)
            check(match[1] == SUM, "%s: another sum" % name)


def user(model, extra=""):
    """DHCP, both directions, connections side by side, and the host's way in."""
    port, stop = free_port(), free_port()
    forwards = "hostfwd=tcp:127.0.0.1:%d-:80,hostfwd=tcp:127.0.0.1:%d-:81" % (port, stop)
    guest = boot(model, "user,mac=52:54:00:77:66:55,hostname=silo,%s%s" % (forwards, extra), address="dhcp", host="10.0.2.2",
                 steps="down,up,many,ping,serve", **serve("127.0.0.1"))
    guest.expect(r"^driver %s mac 52:54:00:77:66:55 mtu 1500$" % {"virtio": "virtio_net"}.get(model, model), 90)
    if model == "virtio":
        match, _ = guest.expect(r"^packed (\d)$", 30)
        check(match[1] == ("0" if "packed=off" in extra else "1"), "rings: %s" % match[0])
    guest.expect(r"^lease 10\.0\.2\.15 router 10\.0\.2\.2 dns 10\.0\.2\.3 name silo$", 60)
    steps_with_sums(guest, ["down", "up", "many", "ping"])
    guest.expect(r"^serving$", 60)
    with urllib.request.urlopen("http://127.0.0.1:%d/data" % port, timeout=60) as answer:
        check(hashlib.sha256(answer.read()).hexdigest() == SUM, "through the forwarded port: another sum")
    socket.create_connection(("127.0.0.1", stop), timeout=20).close()
    stats = finish(guest)
    nic = [d for d in stats["pci"] if d["name"] == "net0"][0]
    check(nic["bytes_in"] > 10 * len(DATA) and nic["bytes_out"] > 2 * len(DATA), "statistics: %s" % nic)
    # Once each way, and once more what had to wait for room in the guest: on a busy host that can be most of what came in.
    check(nic["bytes_copied"] < 2.1 * nic["bytes_in"] + 1.1 * nic["bytes_out"], "copied too often: %s" % nic)


def tap(model):
    """In a network namespace of its own: the guest and the host's stack, with every offload."""
    name = "nct%d" % (os.getpid() % 100000)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"], check=True)
    subprocess.run(["ip", "address", "add", "10.9.8.1/24", "dev", name], check=True)
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    guest = boot(model, "tap=" + name, address="10.9.8.2/24", host="10.9.8.1", steps="down,up,many,ping",
                 **serve("10.9.8.1"))
    guest.expect(r"^driver ", 90)
    steps_with_sums(guest, ["down", "up", "many", "ping"])
    finish(guest)


def limits(model):
    """10 s of iperf3 each way are within 5 % of the limit."""
    port, avg_in, avg_out, seconds = free_port(), 60000, 40000, 10
    server = subprocess.Popen(["iperf3", "-s", "-B", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL)
    try:
        guest = boot(model, "user,avg_in=%dk,peak_in=%dk,avg_out=%dk" % (avg_in, 2 * avg_in, avg_out), address="10.0.2.15/24",
                     host="10.0.2.2", iperf=port, seconds=seconds, steps="iperf")
        for way, limit in (("out", avg_out), ("in", avg_in)):
            match, _ = guest.expect(r"^rate %s ([0-9.]+)$" % way, 120)
            rate = float(match[1])
            print("     %s: %.0f kbit/s with a limit of %d: %+.1f %%" % (way, rate, limit, (rate / limit - 1) * 100))
            check(0.95 <= rate / limit <= 1.05, "%s: %.0f kbit/s with a limit of %d" % (way, rate, limit))
        finish(guest)
    finally:
        server.kill()


def tap_possible():
    """Why no tap can be made here, or None."""
    probe = "ip tuntap add dev nctprobe mode tap && ip link del nctprobe"
    done = subprocess.run(["unshare", "--net", "sh", "-c", probe], capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["unknown"])[-1]


CASES = {
    "user-virtio": lambda: user("virtio"),
    "user-e1000": lambda: user("e1000"),
    "user-split": lambda: user("virtio", ",packed=off"),
    "user-queues": lambda: user("virtio", ",queues=2"),
    "tap-virtio": lambda: tap("virtio"),
    "tap-e1000": lambda: tap("e1000"),
    "limits": lambda: limits("virtio"),
}
for case in sys.argv[3:]:
    if case.startswith("tap-") and not os.environ.get("NACELLE_IN_NAMESPACE"):
        why = tap_possible()
        if why:
            print("SKIP net/%s: no tap device can be made here (%s); the lab's tests have one" % (case, why), flush=True)
            continue
        done = subprocess.run(["unshare", "--net", sys.executable] + sys.argv[:3] + [case],
                              env=dict(os.environ, NACELLE_IN_NAMESPACE="1"))
        failed |= done.returncode != 0
        continue
    started = time.monotonic()
    try:
        CASES[case]()
        print("PASS net/%s (%d s)" % (case, time.monotonic() - started), flush=True)
    except (AssertionError, OSError, subprocess.CalledProcessError) as problem:
        print("FAIL net/%s: %s" % (case, problem), flush=True)
        failed = True
sys.exit(failed)
