"""console.py KERNEL INITRD: a person at the serial console: on a terminal, and through pipes."""
import os
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))
import vm  # noqa: E402

PROMPT = r"nacelle:[^\n]*# (\x1b\[6n)?\Z"  # busybox asks the terminal where the cursor is
QEMU = vm.RUNNER == "qemu"


def passed(name):
    print("PASS console/%s" % name, flush=True)


def boot(terminal):
    guest = vm.Guest(vm.command(sys.argv[1], sys.argv[2], 1, "512M", "nacelle.shell"), terminal)
    return guest


# A shell, with a terminal in raw mode: Ctrl-C belongs to the guest.
guest = boot(True)
before = guest.terminal_mode()
guest.expect(PROMPT, 120)
guest.write("echo $((6 * 7)) answers\r")
guest.expect(r"^42 answers$")
guest.expect(PROMPT)
passed("shell")
guest.write("sleep 1000\r")
time.sleep(1)
guest.write("\x03")
guest.expect(PROMPT, 20)
guest.write("echo after $((40 + 2))\r")
guest.expect(r"^after 42$")
guest.expect(PROMPT)
passed("ctrl-c")
# More in one go than a serial port holds.
guest.write("echo " + "0123456789abcdef" * 60 + " | wc -c\r")
guest.expect(r"^961$", 30)
guest.expect(PROMPT)
passed("long-line")
guest.write("seq 1 5000 | md5sum; seq 1 5000; echo last line\r")
match, _ = guest.expect(r"^([0-9a-f]{32})  -\n((?:\d+\n)+)last line$", 60)
if match[2].split() != [str(i) for i in range(1, 5001)]:
    vm.fail("output was lost or mixed up", guest)
guest.expect(PROMPT)
passed("much-output")
guest.write("\x01h")
guest.expect(r"[xX] +\S", 10)
passed("ctrl-a-h")
guest.write("\x01x")
status = guest.wait(10)
passed("ctrl-a-x")
if not QEMU and guest.terminal_mode() != before:
    vm.fail("the terminal's mode was not restored")
passed("terminal-restored (status %d)" % status)

# A busy guest can be ended, too. (tests/kernels has one that spins with interrupts off.)
guest = boot(True)
guest.expect(PROMPT, 120)
guest.write("while :; do :; done\r")
time.sleep(1)
guest.write("\x01x")
guest.wait(10)
passed("ctrl-a-x-busy")

guest = boot(True)
guest.expect(PROMPT, 120)
guest.write("exit\r")
if guest.wait(30) != 0:
    vm.fail("power-off ended with status %d" % guest.process.returncode)
passed("exit-powers-off")

# Through pipes; the end of the input is not the end of the guest. (What arrives before the guest's driver has set its
# serial port up is lost, as on hardware, so this waits for the shell.)
guest = boot(False)
guest.expect(PROMPT, 120)
guest.write("echo piped $((6 * 7))\nsleep 2; echo still $((40 + 2)); reboot -f\n")
guest.process.stdin.close()
guest.expect(r"^piped 42$", 30)
guest.expect(r"^still 42$", 30)
passed("pipe")
if guest.wait(30) != 0:
    vm.fail("a reset under --no-reboot ended with status %d" % guest.process.returncode)
passed("reset-under-no-reboot")
