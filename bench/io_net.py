"""Network rows of bench/io.py: iperf3 both ways and requests over the user network, virtio-net and e1000, ours and QEMU's.

The peer of every guest is the same iperf3 server and the same echo server on this host's loopback, which the guests reach as 10.0.2.2."""
import re
import socket
import subprocess
import threading

# One byte there and back, again and again: what a client of a small service sees.
REQUESTS = r"""
use strict; use IO::Socket::INET;
my ($port, $seconds) = @ARGV;
sub now { open(my $f, "<", "/proc/uptime") or die; my ($t) = split(" ", <$f>); return $t; }
my $s = IO::Socket::INET->new(PeerAddr => "10.0.2.2", PeerPort => $port, Proto => "tcp") or die "no connection: $!";
setsockopt($s, 6, 1, pack("i", 1));
$| = 1; print "begin\n";
my ($n, $b, $start, $end) = (0, "", now(), 0);
do {
    for (1 .. 50) { syswrite($s, "x") == 1 or die; sysread($s, $b, 1) == 1 or die; $n++; }
    $end = now();
} while ($end - $start < $seconds);
print "end\n"; printf "requests %.1f\n", $n / ($end - $start);
"""


def echo_server():
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(4096):
            connection.sendall(data)

    def accept():
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


class Peer:
    """The host's side; close() it in the end."""

    def __init__(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.iperf_port = s.getsockname()[1]
        self.iperf = subprocess.Popen(["iperf3", "-s", "-B", "127.0.0.1", "-p", str(self.iperf_port)],
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.echo_port = echo_server()

    def close(self):
        self.iperf.kill()
        self.iperf.wait()


def ours_options(emulated):
    return ["--net", "user,model=" + ("e1000" if emulated else "virtio")]


def qemu_options(emulated):
    return ["-netdev", "user,id=n0", "-device", ("e1000" if emulated else "virtio-net-pci") + ",netdev=n0"]


def prepare(guest):
    """Waits for the guest's address; once per guest."""
    guest.run("for i in $(seq 100); do ip -4 route | grep -q '^default' && break; sleep 0.3; done; ip -4 route | grep -q '^default'", 90)
    guest.run("cat >/tmp/requests.pl <<'END'%sEND" % REQUESTS)


# What a row gives: the value, seconds of the machine's CPU that it took, seconds by the clock. Starting the programs is not counted.
def iperf(guest, peer, seconds, options=""):
    """Mbit/s that the receiver saw."""
    command = "iperf3 -c 10.0.2.2 -p %d -f m -i 0 -t %d %s" % (peer.iperf_port, max(2, round(seconds)), options)
    text, cpu, clock = guest.run_marked(command, r"local .* connected to", r"^- - - ", seconds * 4 + 60)
    total = [line for line in text.splitlines() if line.rstrip().endswith("receiver")]
    match = re.search(r"([0-9.]+) Mbits/sec", total[-1]) if total else None
    if not match:
        raise RuntimeError("iperf3 said nothing that can be read: " + text[-400:])
    return float(match[1]), cpu, clock


def requests(guest, peer, seconds):
    command = "perl /tmp/requests.pl %d %g" % (peer.echo_port, seconds)
    text, cpu, clock = guest.run_marked(command, r"^begin$", r"^end$", seconds * 4 + 60)
    return float(re.search(r"requests ([0-9.]+)", text)[1]), cpu, clock


# (name, unit, function(guest, peer, seconds))
ROWS = [
    ("TCP out of the guest", "Mb/s", iperf),
    ("TCP into the guest", "Mb/s", lambda g, p, s: iperf(g, p, s, "-R")),
    ("TCP out, 4 connections", "Mb/s", lambda g, p, s: iperf(g, p, s, "-P 4")),
    ("TCP in, 4 connections", "Mb/s", lambda g, p, s: iperf(g, p, s, "-R -P 4")),
    ("TCP requests of 1 byte", "1/s", requests),
]
