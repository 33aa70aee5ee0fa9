"""tsc.py ENGINE: the time-stamp counters of a guest's CPUs agree when it has started, and however often it was paused and reset since."""
import json
import os
import socket
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../guest"))
import vm  # noqa: E402

ENGINE = sys.argv[1]
KERNEL = os.path.join(os.environ.get("NACELLE_BUILD", "build"), "kernels/tsc_agree.elf")
LIMIT = 60
check = vm.Checks("engine/tsc %s, " % ENGINE)


def rounds(guest, name):
    """A whole round from here on: the one under way is not counted."""
    guest.read(0)
    guest.position = len(guest.text)
    lines = [guest.expect(r"^round \d+: (.*)$", LIMIT)[0] for _ in range(2)]
    check(name, lines[1][1].startswith("agree"), lines[1][1])


def main(work):
    os.environ["NACELLE_RUN_DIR"] = work
    guest = vm.Guest([vm.PROGRAM, "run", "--engine", ENGINE, "-k", KERNEL, "-c", "2", "-m", "16M", "-a", "cpus=2 rounds", "--name", "tsc"])

    def ctl(word):
        connection.write('{"execute":"%s"}\n' % word)
        connection.flush()
        reply = connection.readline()
        if "return" not in json.loads(reply):
            vm.fail("%s: %s" % (word, reply), guest)

    try:
        rounds(guest, "started")
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(LIMIT * vm.SLOWER)
            s.connect(work + "/tsc.sock")
            connection = s.makefile("rw")
            connection.readline()
            for name, words in (("paused", ["pause", "resume"]), ("paused and reset", ["pause", "reset", "resume"]),
                                ("paused once more", ["pause", "resume"]), ("reset", ["reset"])):
                for word in words:
                    ctl(word)
                    if word == "pause":
                        time.sleep(0.3)
                rounds(guest, name)
            ctl("quit")
            guest.wait(LIMIT)
    finally:
        if guest.process.poll() is None:
            guest.process.kill()


with tempfile.TemporaryDirectory() as directory:
    main(directory)
sys.exit(check.failed)
