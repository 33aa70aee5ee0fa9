"""several.py KERNEL INITRD DIRECTORY: four machines at once on one host, each with a disk and a network of its own and one image that they all share
read-only. tests/guest/scripts/several.sh is their end."""
import hashlib
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(__file__))
import vm  # noqa: E402

MACHINES = 4
check = vm.Checks("several/", brief=True)


def tree_sum(shared):
    """As the guest makes it: of the sums of all files, in the order of their names."""
    lines = []
    for folder, _, names in os.walk(shared):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as f:
                lines.append((os.path.relpath(path, shared), hashlib.md5(f.read()).hexdigest()))
    return hashlib.md5("".join("%s  ./%s\n" % (s, n) for n, s in sorted(lines)).encode()).hexdigest()


def main():
    kernel, initrd, work = sys.argv[1:]
    tree = work + "/tree"
    for folder in range(4):
        os.makedirs("%s/d%d" % (tree, folder))
        for i in range(40):
            with open("%s/d%d/f%02d" % (tree, folder, i), "wb") as f:
                f.write(os.urandom(1 + (folder * 40 + i) * 211))
    shared = work + "/shared.img"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", "-d", tree, shared, "16M"], check=True, stdout=subprocess.DEVNULL)
    want = tree_sum(tree)
    with open(shared, "rb") as f:
        before = hashlib.md5(f.read()).hexdigest()
    guests = []
    for n in range(MACHINES):
        own = "%s/own%d" % (work, n)
        if n == 1:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", own, "48M"], check=True)
        else:
            vm.empty_disk(own, 48)
        option = ("", ",format=qcow2", ",if=ahci", ",packed=off,cache=none,format=raw")[n]
        net = "user" + (",model=e1000" if n == 2 else ",packed=off" if n == 3 else "")
        guests.append(vm.Guest(vm.command(kernel, initrd, 1, "384M", "several.number=%d" % n) + [
            "-d", own + option, "-d", shared + ",ro", "-n", net]))
    # None of their own disks can be given to another machine meanwhile, nor the shared one to a writer.
    for text, path in (("own", work + "/own0"), ("shared", shared)):
        again = subprocess.run([vm.PROGRAM, "run", "-k", kernel, "-d", path], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                               timeout=60, check=False)
        check("refused-" + text, again.returncode != 0 and "in use" in again.stderr, again.stderr[-200:])
    for n, guest in enumerate(guests):
        match, _ = guest.expect(r"^shared (\w+)$", 300)
        good = match[1] == want
        match, _ = guest.expect(r"^copied (\w+)$", 300)
        good &= match[1] == want
        match, _ = guest.expect(r"^network (\d) of 3$", 120)
        check("machine-%d" % n, good and match[1] == "3", "%s, another sum or pings lost" % match[0])
    for n, guest in enumerate(guests):
        guest.expect(r"^@@END 0$", 120)
        check("end-%d" % n, guest.wait(120) == 0 and "@@KERNEL" not in guest.text, guest.text[-300:])
    for n in (0, 2, 3):
        done = subprocess.run(["e2fsck", "-fn", "%s/own%d" % (work, n)], capture_output=True, check=False)
        check("fsck-%d" % n, done.returncode == 0, done.stdout.decode()[-300:])
    with open(shared, "rb") as f:
        check("shared-unchanged", hashlib.md5(f.read()).hexdigest() == before)
    sys.exit(check.failed)


main()
