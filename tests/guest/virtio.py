"""A guest with virtio disks, console, entropy and sockets: tests/guest/scripts/virtio.sh is its end, this is the host's."""
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, os.path.dirname(__file__))
import vm  # noqa: E402

PATTERN = bytes((i * 7 + (i >> 8) + (i >> 16)) & 0xff for i in range(1 << 16))


def disk(path, size_mib, files):
    """An ext4 image with random files below old/ and their sums."""
    with tempfile.TemporaryDirectory() as tree:
        os.mkdir(tree + "/old")
        lines = []
        for name, size in files.items():
            data = os.urandom(size)
            open("%s/old/%s" % (tree, name), "wb").write(data)
            lines.append("%s  old/%s\n" % (hashlib.md5(data).hexdigest(), name))
        open(tree + "/sums", "w").write("".join(lines))
        subprocess.run(["mkfs.ext4", "-q", "-F", "-d", tree, path, "%dM" % size_mib], check=True)


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(150)
    s.connect(path)
    return s


def serve_echo(path, result):
    """Gives one connection back what it sends."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(1)

    def run():
        c, _ = server.accept()
        count = 0
        while True:
            data = c.recv(30000)
            if not data:
                break
            c.sendall(data)
            count += len(data)
        result.append(count)
        c.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def talk(path, port, data):
    """Connects to the guest's port and sends data; returns what comes back up to the guest's end."""
    s = connect(path)
    s.sendall(b"CONNECT %d\n" % port)
    answer = b""
    while not answer.endswith(b"\n"):
        byte = s.recv(1)
        if not byte:
            return None
        answer += byte
    if not answer.startswith(b"OK "):
        vm.fail("the socket answered %r" % answer)
    got = []

    def read():
        while True:
            part = s.recv(65536)
            if not part:
                break
            got.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    s.sendall(data)
    s.shutdown(socket.SHUT_WR)
    reader.join(150)
    s.close()
    return b"".join(got)


def main():
    kernel, initrd, label, cpus, extra = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5:]
    work = tempfile.mkdtemp(prefix="nacelle-virtio-")
    split = ",packed=off" if label.endswith("split") else ""
    disk(work + "/a.img", 64, {"f%d" % i: 100000 * i + i for i in range(1, 9)})
    open(work + "/b.img", "wb").write(os.urandom(1 << 20))
    argv = vm.command(kernel, initrd, cpus, "256M", "") + extra + [
        "-d", work + "/a.img,serial=SN-1234" + split, "-d", work + "/b.img,ro" + split, "--console", "socket=" + work + "/con",
        "--vsock", "cid=5,path=" + work + "/vsock"]
    echoed = []
    guest = vm.Guest(argv)
    server = serve_echo(work + "/vsock_2000", echoed)

    features = {}
    for _ in range(5):
        m, _ = guest.expect(r"^@V 0x(\w+) (\w+)$")
        features[m.group(1)] = m.group(2)
    if any(bits != ("1110" if split and device == "0002" else "1111") for device, bits in features.items()):
        vm.fail("not what was offered of indirect, event index, version 1 and packed rings: %r" % features, guest)
    m, _ = guest.expect(r"^@B (\d+) (\S+) (.*) (\d+) queues$")
    if m.groups() != ("131072", "SN-1234", "write back", str(cpus)):
        vm.fail("the disk is not as configured: %r" % (m.groups(),), guest)
    m, _ = guest.expect(r"^@R (\d)$")
    if m.group(1) != "1":
        vm.fail("the second disk is not read-only", guest)

    con = connect(work + "/con")
    text = b""
    for until, reply in ((b"@C ready\n", b"a line from the host\n"), (b"@C end\n", b"")):
        while until not in text:
            part = con.recv(4096)
            if not part:
                guest.read(5)
                vm.fail("the console ended after %r; the guest said:\n%s" % (text[-100:], guest.text[-500:]), guest)
            text += part
        con.sendall(reply)
    want = b"@C ready\n@C a line from the host\n" + b"".join(b"%d\n" % i for i in range(1, 20001)) + b"@C end\n"
    if text != want:
        vm.fail("the console's %d bytes differ from the %d expected" % (len(text), len(want)), guest)

    guest.expect("^listening$")
    data = PATTERN * 40
    if talk(work + "/vsock", 1000, data) != data:
        vm.fail("the guest's echo differs", guest)
    m, _ = guest.expect(r"^echoed (\d+) bytes, sum (\d+)$")
    if (int(m.group(1)), int(m.group(2))) != (len(data), sum(PATTERN) * 40):
        vm.fail("the guest got something else", guest)
    guest.expect(r"^got 5000000 bytes back$", 150)
    server.join(20)
    if echoed != [5000000]:
        vm.fail("the host's end got %r bytes" % echoed, guest)
    guest.expect(r"^@@END 0$")
    if guest.wait(30) != 0:
        vm.fail("the VMM ended with %d" % guest.process.returncode)
    check = subprocess.run(["e2fsck", "-fn", work + "/a.img"], capture_output=True)
    if check.returncode != 0:
        vm.fail("e2fsck finds faults: %s" % check.stdout.decode())
    for name in ("vsock", "con"):
        if os.path.exists(work + "/" + name):
            vm.fail("%s was left behind" % name)
    subprocess.run(["rm", "-rf", work])
    print("PASS guest/virtio-%s-%dcpu" % (label, cpus))


main()
