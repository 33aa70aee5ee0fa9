"""What a 4 KiB request costs on each way through the VMM, from its own counters (--stats); see io_paths.sh.

The same guest runs once without requests, once with one at a time, once with 32 at a time; a request's cost is the difference by the number
of requests, so what drivers do at start is not in it."""
import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests", "guest"))
import vm  # noqa: E402

# Statistics' name of the device, the way, what a request is
PATHS = [
    ("ahci0", "AHCI"),
    ("disk1", "virtio-blk, split ring"),
    ("disk0", "virtio-blk, packed ring"),
    ("disk2", "virtio-blk, qcow2 by vhost-user"),
    ("net1", "e1000, 4 KiB out, 1 byte back"),
    ("net0", "virtio-net, 4 KiB out, 1 byte back"),
]
COUNTERS = ("exits", "notifications", "interrupts", "copies")


def serve():
    """A server on this host's loopback that answers 4 KiB with one byte."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        left = 4096
        while data := connection.recv(left):
            left -= len(data)
            if not left:
                connection.sendall(b"x")
                left = 4096

    def accept():
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


class Runs:
    def __init__(self, arguments, work):
        self.o, self.work, self.port = arguments, work, serve()
        for name in ("packed", "split", "sata"):
            with open("%s/%s.img" % (work, name), "wb") as f:
                for _ in range(16):
                    f.write(os.urandom(1 << 20))
        subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", work + "/sata.img", work + "/disk.qcow2"], check=True)

    def run(self, count, depth):
        """Counters of each device after a guest that made so many requests of each."""
        stats, disk = self.work + "/stats.json", "--disk=%s/%s" % (self.work, "%s")
        command = [vm.PROGRAM, "run", "--engine", self.o.engine, "--no-reboot", "-k", self.o.kernel, "-i", self.o.initrd, "-m", "512M",
                   "-a", "console=ttyS0 loglevel=1 panic=-1 paths.count=%d paths.depth=%d paths.port=%d %s" %
                   (count, depth, self.port, self.o.append),
                   disk % "packed.img,format=raw", disk % "split.img,format=raw,packed=off", disk % "disk.qcow2",
                   disk % "sata.img,format=raw,if=ahci",
                   "--net=user,net=10.0.2.0/24,mac=52:54:00:00:00:02", "--net=user,net=10.0.3.0/24,mac=52:54:00:00:00:03,model=e1000",
                   "--stats=json:" + stats]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=self.o.seconds,
                              check=False)
        text = done.stdout.decode("latin-1").replace("\r", "")
        if done.returncode or "\n@@END 0" not in text:
            print("FAIL io-paths: the guest did not do its work (exit status %d); its last words:" % done.returncode)
            print("\n".join("  | " + line for line in text.splitlines()[-20:]))
            sys.exit(1)
        rings = [line.split(": ")[1] for line in text.splitlines() if line.startswith("ring of")]
        with open(stats, encoding="utf-8") as f:
            return {d["name"]: d for d in json.load(f)["pci"]}, rings


def costs(before, after, count):
    return {name: {k: (after[name][k] - before[name][k]) / count for k in COUNTERS} for name, _ in PATHS}


def show(title, cost, names):
    print("%-36s %8s %14s %11s %7s" % (title, "exits", "notifications", "interrupts", "copies"))
    for name, way in PATHS:
        if name in names:
            print("  %-34s %8.2f %14.2f %11.2f %7.2f" % (way, *(cost[name][k] for k in COUNTERS)))


def check(cost, rings, engine):
    """The relations that must hold, whatever the numbers are; for make test."""
    failed = False

    def one(name, good, text):
        nonlocal failed
        failed |= not good
        print("%s io-paths/%s: %s" % ("PASS" if good else "FAIL", name, text), flush=True)

    exits = {name: cost[name]["exits"] for name, _ in PATHS}
    one("rings", sorted(rings) == ["0", "1", "1"], "packed ring negotiated by disk: %s" % " ".join(rings))
    virtio = [exits[name] for name in ("disk0", "disk1", "disk2", "net0")]
    rung = [cost[name]["notifications"] for name in ("disk0", "disk1", "disk2", "net0")]
    # With KVM a doorbell is an eventfd's, and no exit.
    good = max(virtio) < 0.4 if engine == "kvm" else min(virtio) > 0.5
    one("doorbells", good and min(rung) > 0.5, "exits %s, notifications %s" % (" ".join("%.2f" % n for n in virtio), " ".join("%.2f" % n for n in rung)))
    one("disk", exits["ahci0"] >= 3 and exits["ahci0"] >= 3 * max(exits["disk0"], exits["disk1"]),
        "exits per 4 KiB read: AHCI %.2f, virtio split %.2f, packed %.2f" % (exits["ahci0"], exits["disk1"], exits["disk0"]))
    one("net", exits["net1"] > 2 and exits["net1"] >= 2 * exits["net0"],
        "exits per 4 KiB sent: e1000 %.2f, virtio %.2f" % (exits["net1"], exits["net0"]))
    copies = {name: cost[name]["copies"] for name, _ in PATHS}
    one("copies", max(copies["disk0"], copies["disk1"], copies["ahci0"]) < 0.01 and 0.99 < copies["disk2"] < 1.01,
        "copies per 4 KiB read: raw %.2f, AHCI %.2f, qcow2 %.2f" % (copies["disk0"], copies["ahci0"], copies["disk2"]))
    return failed


def main():
    parser = argparse.ArgumentParser(prog="bench/io_paths.sh", description="Exits, notifications, interrupts and copies per 4 KiB request.")
    parser.add_argument("--kernel", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--initrd", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--engine", default="soft", help="soft (default) or kvm")
    parser.add_argument("--count", type=int, default=3200, help="requests of each kind, a multiple of 32")
    parser.add_argument("--append", default="", help="for the kernel's command line")
    parser.add_argument("--seconds", type=int, default=300, help="limit for one guest")
    parser.add_argument("--check", action="store_true", help="for make test: one at a time only, and only what must hold")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="io-paths.", dir=os.environ.get("NACELLE_BUILD", "build")) as work:
        runs = Runs(arguments, work)
        idle, _ = runs.run(0, 1)
        one, rings = runs.run(arguments.count, 1)
        one = costs(idle, one, arguments.count)
        if arguments.check:
            return check(one, rings, arguments.engine)
        show("per request, one at a time", one, [n for n, _ in PATHS])
        many, _ = runs.run(arguments.count, 32)
        print()
        show("per request, 32 at a time", costs(idle, many, arguments.count), [n for n, _ in PATHS if not n.startswith("net")])
    return 0


if __name__ == "__main__":
    sys.exit(main())
