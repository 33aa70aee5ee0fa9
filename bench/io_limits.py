"""How exactly limits hold: fio and iperf3 inside the full Debian guest, 10 s for each kind of limit. See io_limits.sh."""
import argparse
import os
import re
import signal
import sys
import tempfile

sys.path[:0] = [os.path.dirname(__file__), os.path.join(os.path.dirname(__file__), "..", "tests", "guest")]
import debian  # noqa: E402
import io_net  # noqa: E402

SECONDS = 10
ALLOWED = 5  # per cent
KI, MI = 1 << 10, 1 << 20

# A disk each: its options, then what fio does there: (row, rw, block, depth, "bps" or "iops", what is to come out).
DISKS = [
    ("read_bps=4M", [("read_bps, 64 KiB", "read", "64k", 4, "bps", 4 * MI)]),
    ("write_bps=3M", [("write_bps, 256 KiB", "write", "256k", 4, "bps", 3 * MI)]),
    ("total_bps=4M", [("total_bps, reads and writes", "randrw", "16k", 4, "bps", 4 * MI)]),
    ("read_iops=200", [("read_iops, 4 KiB", "randread", "4k", 8, "iops", 200),
                       ("read_iops, 256 KiB: 4 each", "randread", "256k", 8, "iops", 50)]),
    ("write_iops=150", [("write_iops, 4 KiB", "randwrite", "4k", 8, "iops", 150)]),
    ("total_iops=250", [("total_iops, reads and writes", "randrw", "4k", 8, "iops", 250)]),
    ("total_bps=4M,read_bps=1M", [("read_bps below total_bps", "read", "64k", 4, "bps", 1 * MI),
                                  ("total_bps above read_bps", "write", "64k", 4, "bps", 4 * MI)]),
    ("read_bps=2M,if=ahci", [("read_bps, AHCI", "read", "64k", 4, "bps", 2 * MI)]),
]
# A card each: its options, then what iperf3 does there: (row, "" or "-R", seconds, Mbit/s that are to come out). An average of 20 with bursts of
# B bytes at up to 60 gives 60 while the burst lasts (8 B / 40 M seconds), and 20 on average plus the burst over a longer time.
BURST = 10 * MI
CARDS = [
    ("avg_out=30M,avg_in=50M", [("avg_out", "", SECONDS, 30), ("avg_in", "-R", SECONDS, 50)]),
    ("avg_out=20M,peak_out=60M,burst_out=10M,avg_in=20M,peak_in=60M,burst_in=10M",
     [("burst_out, then avg_out", "", SECONDS, 20 + 8 * BURST / 1e6 / SECONDS),
      ("burst_in, then avg_in", "-R", SECONDS, 20 + 8 * BURST / 1e6 / SECONDS)]),
    ("avg_out=20M,peak_out=60M,burst_out=100M,avg_in=20M,peak_in=60M,burst_in=100M",
     [("peak_out, burst not spent", "", SECONDS, 60), ("peak_in, burst not spent", "-R", SECONDS, 60)]),
    ("avg_out=30M,avg_in=50M,model=e1000", [("avg_out, e1000", "", SECONDS, 30), ("avg_in, e1000", "-R", SECONDS, 50)]),
]


def command(directory, work):
    """Disks b, c, ... (AHCI: sda) and one network 10.0.N.0 per card, N from 2 on."""
    disks = [debian.copy_of(directory, work + "/root.img") + ",format=raw"]
    for i, (options, _) in enumerate(DISKS):
        path = "%s/%d.img" % (work, i)
        with open(path, "wb") as f:
            f.truncate(64 * MI)
        disks.append("%s,format=raw,%s" % (path, options))
    cards = ["--net=user,net=10.0.%d.0/24,mac=52:54:00:00:00:%02x,%s" % (i + 2, i + 2, options) for i, (options, _) in enumerate(CARDS)]
    return debian.ours(directory, disks, extra=cards)


def address_cards(guest):
    """No DHCP: four default routes would be three too many."""
    for i in range(len(CARDS)):
        guest.run("for c in /sys/class/net/e*; do [ \"$(cat $c/address)\" != 52:54:00:00:00:%02x ] || { ip address flush dev ${c##*/}; "
                  "ip address add 10.0.%d.15/24 dev ${c##*/} && ip link set ${c##*/} up; }; done" % (i + 2, i + 2))


class Table:
    def __init__(self, check):
        self.check, self.failed = check, False
        if not check:
            print("%-32s %12s %12s %8s" % ("limit", "set", "measured", "error"))

    def row(self, name, unit, want, got):
        error = (got - want) * 100.0 / want
        bad = abs(error) > ALLOWED
        self.failed |= bad
        if self.check:
            print("%s limits/%s: %.4g %s of %.4g: %+.1f %%" % ("FAIL" if bad else "PASS", name, got, unit, want, error), flush=True)
        else:
            print("%-32s %7.4g %4s %7.4g %4s %+7.1f %% %s" % (name, want, unit, got, unit, error, "MISS" if bad else "ok"), flush=True)


def iperf(guest, peer, network, options, seconds):
    text = guest.run("iperf3 -c 10.0.%d.2 -p %d -f k -i 0 -t %d %s" % (network, peer.iperf_port, seconds, options), seconds * 4 + 60)
    total = re.findall(r"([0-9.]+) Kbits/sec.*receiver", text)
    if not total:
        debian.vm.fail("iperf3 said nothing that can be read: " + text[-400:], guest)
    return float(total[-1]) / 1e3


def main():
    parser = argparse.ArgumentParser(prog="bench/io_limits.sh", description="Limits of disks and network cards against what a guest gets.")
    parser.add_argument("--check", action="store_true", help="PASS and FAIL lines, for make test-long")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # guests and disks go, too
    directory, table, peer = debian.image(), Table(arguments.check), io_net.Peer()
    with tempfile.TemporaryDirectory(prefix="limits.", dir=os.environ.get("NACELLE_BUILD", "build")) as work:
        debian.need_room(work, 2000)
        try:
            guest = debian.Debian(command(directory, work)).login()
            guest.run("systemctl is-system-running --wait >/dev/null; systemctl stop systemd-networkd.socket systemd-networkd; true", 300)
            address_cards(guest)
            letters = iter("bcdefghij")
            for options, rows in DISKS:
                device = "/dev/sda" if "ahci" in options else "/dev/vd" + next(letters)
                for name, rw, block, depth, unit, want in rows:
                    operations, rate = debian.fio(guest, device, rw, block, depth, SECONDS)
                    scale = 1 if unit == "iops" else KI
                    table.row(name, "op/s" if unit == "iops" else "KiB", want / scale, (operations if unit == "iops" else rate) / scale)
            for i, (_, rows) in enumerate(CARDS):
                for name, way, seconds, want in rows:
                    table.row(name, "Mb/s", want, iperf(guest, peer, i + 2, way, seconds))
            guest.kill()
        finally:
            peer.close()
    return table.failed


if __name__ == "__main__":
    sys.exit(main())
