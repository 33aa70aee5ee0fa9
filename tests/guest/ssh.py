"""ssh.py IMAGE-DIRECTORY WORK-DIRECTORY: ssh into a full Debian, a tree copied there and back, both directions by iperf3."""
import hashlib
import os
import random
import re
import socket
import subprocess
import sys
import time

sys.path[:0] = [os.path.dirname(__file__), os.path.join(os.path.dirname(__file__), "..", "..", "bench")]
import debian  # noqa: E402
import io_net  # noqa: E402
import vm  # noqa: E402

directory, work = sys.argv[1:3]
debian.need_room(work, 1500)
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
key = work + "/key"
with open(directory + "/id_ed25519", "rb") as f, open(os.open(key, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as to:
    to.write(f.read())
SSH = ["-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes",
       "-o", "ConnectTimeout=20"]


def ssh(command, seconds=90, data=None):
    done = subprocess.run(["ssh"] + SSH + ["-p", str(port), "root@127.0.0.1", command], input=data, capture_output=True,
                          timeout=seconds)
    return done.returncode, done.stdout


def passed(name, since):
    print("PASS ssh/%s (%d s)" % (name, time.monotonic() - since), flush=True)


disk = debian.copy_of(directory, work + "/root.img")
guest = debian.Debian(debian.ours(directory, [disk + ",format=raw"], extra=[
    "--net", "user,hostname=ash,hostfwd=tcp:127.0.0.1:%d-:22" % port]))
peer = io_net.Peer()
try:
    begun = time.monotonic()
    status, output = 1, b""
    while status and time.monotonic() - begun < debian.PROMPT_TIMEOUT:
        time.sleep(1)
        guest.read(0)
        if guest.process.poll() is not None:
            vm.fail("the VM ended with %d" % guest.process.returncode)
        status, output = ssh("ip -4 -o address show scope global; cat /proc/sys/kernel/hostname")
    if status or not re.search(rb" 10\.0\.2\.15/24 ", output):
        vm.fail("no ssh into the guest: status %d, %r" % (status, output), guest)
    passed("login", begun)
    begun = time.monotonic()
    tree = random.Random(5).randbytes(8 << 20)
    status, output = ssh("cat >/tmp/data && sha256sum </tmp/data", data=tree)
    if status or output.split()[0].decode() != hashlib.sha256(tree).hexdigest():
        vm.fail("another sum in the guest: %r" % output, guest)
    status, output = ssh("cat /tmp/data /tmp/data")
    if status or output != tree + tree:
        vm.fail("%d bytes came back, not %d, or others" % (len(output), 2 * len(tree)), guest)
    passed("copies", begun)
    begun = time.monotonic()
    for options in ("", "-R"):
        status, output = ssh("iperf3 -c 10.0.2.2 -p %d -f m -t 2 %s" % (peer.iperf_port, options))
        rate = re.findall(rb"([0-9.]+) Mbits/sec.*receiver", output)
        if status or not rate or float(rate[-1]) < 20:
            vm.fail("iperf3 %s: %r" % (options, output[-400:]), guest)
        print("     %s: %s Mbit/s" % ("in" if options else "out", rate[-1].decode()))
    passed("iperf3", begun)
    ssh("systemctl poweroff")
    if guest.wait(120) != 0:
        vm.fail("the VM ended with %d" % guest.process.returncode)
finally:
    peer.close()
    guest.kill()
