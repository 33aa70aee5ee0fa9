#!/usr/bin/env python3
"""In the box: starts the same guest in every VMM by turns and writes what was seen as JSON."""
import argparse
import glob
import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import machines  # noqa: E402

MEMORY_MIB = 256
BOOT_TIMEOUT = 120
SETTLE_SECONDS = 1  # before memory is looked at
APPEND = "console=ttyS0 quiet panic=-1"


def command_of(machine, o):
    if machine == "ours":
        return [o.nacelle, "run", "--engine", "kvm", "--kernel", o.kernel, "--initrd", o.initrd, "--append", APPEND,
                "--memory", f"{MEMORY_MIB}M", "--cpus", "1", "--no-reboot"]
    command = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", f"{MEMORY_MIB}M", "-smp", "1", "-no-reboot",
               "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
               "-kernel", o.kernel, "-initrd", o.initrd, "-append", APPEND]
    if machine == "q35":
        return command + ["-M", "q35"]
    return command + ["-M", "microvm,x-option-roms=off,pic=off,rtc=on,isa-serial=on"]


def exits_of(pid):
    """What KVM counted for the process's machine: every exit, and kinds of them."""
    places = glob.glob(f"/sys/kernel/debug/kvm/{pid}-*/")
    if not places:
        return None

    def read(name):
        with open(places[0] + name, encoding="ascii") as f:
            return int(f.read())

    return {"exits": read("exits"), "mmio": read("mmio_exits"), "io": read("io_exits"), "halt": read("halt_exits"),
            "irq": read("irq_exits"), "fault": read("pf_taken")}


def boot(machine, o, log):
    """One boot: seconds to init, exits, memory; or what went wrong."""
    vm = machines.Machine([o.start] + command_of(machine, o), log)
    try:
        while (line := vm.line(BOOT_TIMEOUT)) is not None:
            if "INIT-REACHED" in line[1]:
                seconds = line[0] - vm.started
                exits = exits_of(vm.process.pid)
                time.sleep(SETTLE_SECONDS)
                os.kill(vm.process.pid, signal.SIGSTOP)  # so that what is read fits together
                beside = machines.resident_beside(vm.process.pid, MEMORY_MIB << 20)
                return {"seconds": seconds, "exits": exits, "resident_mib": beside}
        return {"error": f"ended with status {vm.close()} before init"}
    except TimeoutError:
        return {"error": f"no init after {BOOT_TIMEOUT} s"}
    finally:
        vm.close()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--nacelle", required=True)
    p.add_argument("--kernel", required=True)
    p.add_argument("--initrd", required=True)
    p.add_argument("--start", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--machines", default="ours,microvm,q35")
    o = p.parse_args()
    results = {}
    with open(o.out + ".log", "wb") as log:
        # One boot each that does not count: the first reads programs and firmware from the disk.
        for repeat in range(o.repeats + 1):
            for machine in o.machines.split(","):
                if repeat and "error" in results.get(machine, [{}])[-1]:
                    continue
                result = boot(machine, o, log)
                print(f"  {machine}: {result}", flush=True)
                if repeat or "error" in result:
                    results.setdefault(machine, []).append(result)
    with open(o.out, "w", encoding="ascii") as f:
        json.dump(results, f)


if __name__ == "__main__":
    main()
