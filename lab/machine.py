"""The box's hardware: from lab/run's options to QEMU's."""
import os
import re
import shutil

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
MIB = 1 << 20
MAX_CPUS = 64
MAX_NODES = 8
MIN_NODE_MIB = 256
NVME_FUNCTIONS = 4


def size_mib(text):
    """'2G' -> 2048; a bare number counts MiB. None when it is no size."""
    match = re.fullmatch(r"([0-9]+)([KMG]?)", text.upper())
    if not match:
        return None
    return int(match[1]) * UNITS[match[2] or "M"] // MIB


def huge(text):
    """'64' -> ('2M', 64), '1G:2' -> ('1G', 2). None when it is neither."""
    match = re.fullmatch(r"(?:(2M|1G):)?([0-9]+)", text.upper())
    return (match[1] or "2M", int(match[2])) if match else None


def problem(options):
    """What is wrong with the options, or None."""
    memory = size_mib(options.memory)
    if not memory:
        return f"--memory: '{options.memory}' is no size; give a number and K, M or G"
    if not 1 <= options.cpus <= MAX_CPUS:
        return f"--cpus: give 1 to {MAX_CPUS}"
    if not 1 <= options.numa <= MAX_NODES or memory // options.numa < MIN_NODE_MIB:
        return f"--numa: give 1 to {MAX_NODES} nodes, with at least {MIN_NODE_MIB} MiB of --memory for each"
    pages = huge(options.hugepages)
    if not pages:
        return f"--hugepages: '{options.hugepages}' is neither a number nor 2M:N or 1G:N"
    if pages[1] * (2 if pages[0] == "2M" else 1024) > memory // 2:
        return "--hugepages: more than half of the box's --memory"
    for disk in options.disk:
        if not os.path.isfile(disk):
            return f"--disk: there is no file {disk}"
    if not shutil.which("qemu-system-x86_64"):
        return "qemu-system-x86_64 is missing; install it with: tools/setup.sh lab"
    return None


def modules(options):
    names = list(options.module)
    if options.iommu:
        names.append("vfio-pci")
    if options.nvme_sriov:
        names.append("nvme")
    if options.disk:
        names.append("virtio_blk")
    return names


def escape(path):
    """For the kernel's command line, which ends words at blanks; lab/init undoes it."""
    return "".join(f"\\0{ord(c):03o}" if c in " \t\n\"'\\" else c for c in path)


def value(text):
    """QEMU's options end at commas, except doubled ones."""
    return text.replace(",", ",,")


def command_line(options, checkout, directory):
    # Without no_timer_check and nowatchdog a kernel that gets no CPU for a while takes that for broken hardware.
    words = ["console=ttyS0 loglevel=4 panic=-1 tsc=reliable no_timer_check nowatchdog random.trust_cpu=on mitigations=off",
             f"lab.checkout={escape(checkout)} lab.session={escape(directory)}",
             f"lab.kvm={0 if options.no_kvm else 1} lab.npt={options.npt} lab.nested={options.nested}"]
    size, count = huge(options.hugepages)
    if count:
        words.append(f"hugepagesz={size} hugepages={count}")
    if options.iommu:
        words.append(f"{options.iommu}_iommu=on")
    words.append(options.append)
    return " ".join(filter(None, words))


def numa(options, memory):
    argv = []
    share = memory // options.numa
    for node in range(options.numa):
        size = share if node else memory - share * (options.numa - 1)
        cpus = [c for c in range(options.cpus) if c * options.numa // options.cpus == node]
        argv += ["-object", f"memory-backend-ram,id=node{node},size={size}M"]
        argv += ["-numa", f"node,nodeid={node},memdev=node{node}"
                 + (f",cpus={cpus[0]}-{cpus[-1]}" if cpus else "")]
    for a in range(options.numa):
        for b in range(options.numa):
            if a != b:
                argv += ["-numa", f"dist,src={a},dst={b},val=20"]
    return argv


def devices(options, directory):
    argv = []
    if options.iommu == "intel":
        argv += ["-device", "intel-iommu,intremap=on,caching-mode=on"]
    elif options.iommu == "amd":
        argv += ["-device", "amd-iommu"]
    # Backing for the NVMe controller's only namespace; it goes with the run.
    if options.nvme_sriov:
        image = os.path.join(directory, "nvme.img")
        with open(image, "wb") as f:
            f.truncate(64 * MIB)
        n = NVME_FUNCTIONS
        argv += ["-device", "pcie-root-port,id=nvme-port,slot=1", "-device", "nvme-subsys,id=nvme-subsystem",
                 "-device", f"nvme,id=nvme,serial=lab,bus=nvme-port,subsys=nvme-subsystem,sriov_max_vfs={n},"
                            f"max_ioqpairs={n * 2 + 2},msix_qsize={n * 2 + 3},sriov_vq_flexible={n * 2},sriov_vi_flexible={n}",
                 "-drive", f"file={value(image)},if=none,id=nvme-image,format=raw",
                 "-device", "nvme-ns,drive=nvme-image,bus=nvme,nsid=1,shared=on"]
    for i, disk in enumerate(options.disk):
        argv += ["-drive", f"file={value(os.path.abspath(disk))},if=none,id=disk{i},format=raw",
                 "-device", f"virtio-blk-pci,drive=disk{i},serial=lab-disk{i}"]
    return argv


def qemu(options, kernel, initrd, checkout, directory):
    memory = size_mib(options.memory)
    argv = ["qemu-system-x86_64", "-name", "nacelle-lab", "-machine", "q35,kernel-irqchip=off,smbus=off,vmport=off,hpet=on",
            "-accel", "tcg,thread=" + ("single" if options.count else "multi"), "-cpu", "EPYC,+svm,+npt,+umip", "-smp", str(options.cpus), "-m", f"{memory}M",
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-kernel", kernel, "-initrd", initrd, "-append", command_line(options, checkout, directory),
            "-chardev", f"file,id=console,path={value(os.path.join(directory, 'console'))}", "-serial", "chardev:console",
            "-chardev", "stdio,id=output,signal=off", "-device", "virtio-serial-pci",
            "-device", "virtserialport,chardev=output,name=lab-output",
            "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=root,mount_tag=lab-root",
            "-fsdev", f"local,id=checkout,path={value(checkout)},security_model=none,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=checkout,mount_tag=lab-checkout"]
    if options.numa > 1:
        argv += numa(options, memory)
    return argv + devices(options, directory)
