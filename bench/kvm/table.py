"""The table of make bench-kvm: Nacelle's KVM engine beside QEMU's machines, each with the ratio."""
import argparse
import json
import statistics

TITLES = {"ours": "nacelle", "microvm": "QEMU microvm", "q35": "QEMU q35"}
# For the "10 ms on a native host": what a current server core does at its slowest on start-up code, cold caches and page faults included.
NATIVE_INSTRUCTIONS_PER_MS = 1e6
FIRST_INSTRUCTION_MS = 10
OWN_MEMORY_MIB = 5


def seen(results, machine, what):
    """The median over the boots of a machine: a result, or one of its exits."""
    values = [r.get(what) if what != "exits" and what in r else (r.get("exits") or {}).get(what)
              for r in results.get(machine, []) if "error" not in r]
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def counted(path, order):
    """Per machine the lines of lab/count.c, as a list with one {name: counts} for each boot; the boots were by turns in `order`."""
    boots = []
    with open(path, encoding="ascii") as f:
        for line in f:
            name, user, kernel, guest, runs = line.split()
            if name == "vmrun":
                boots.append({})
            if boots:
                boots[-1][name] = {"user": int(user), "kernel": int(kernel), "guest": int(guest), "runs": int(runs)}
    result = {}
    for i, boot in enumerate(boots):
        result.setdefault(order[i % len(order)], []).append(boot)
    return result


def cell(value, unit):
    if value is None:
        return "-"
    if unit == "M":
        return f"{value / 1e6:.2f} M"
    if unit == "":
        return f"{value:.0f}"
    return f"{value:.3f} {unit}" if unit == "s" else f"{value:.1f} {unit}"


def main():
    p = argparse.ArgumentParser()
    p.add_argument("times")
    p.add_argument("counted")
    p.add_argument("counts")
    p.add_argument("--json")
    o = p.parse_args()
    with open(o.times, encoding="ascii") as f:
        times = json.load(f)
    with open(o.counted, encoding="ascii") as f:
        steady = json.load(f)
    order = [m for m, runs in steady.items() if "error" not in runs[-1]]
    counts = counted(o.counts, order)
    machines = [m for m in TITLES if m in steady]

    def count(machine, at, *keys):
        boots = [b for b in counts.get(machine, [])[1:] if at in b]
        return statistics.median(sum(b[at][k] for k in keys) for b in boots) if boots else None

    rows = [
        ("start to init, wall time in the box", "s", lambda m: seen(times, m, "seconds")),
        ("start to init, 1 instruction a ns", "s", lambda m: seen(steady, m, "seconds")),
        ("memory beside the guest's", "MiB", lambda m: seen(steady, m, "resident_mib")),
        ("exits to init, by KVM's count", "", lambda m: seen(steady, m, "exits")),
        ("  of these port I/O", "", lambda m: seen(steady, m, "io")),
        ("  of these MMIO", "", lambda m: seen(steady, m, "mmio")),
        ("  of these second-stage page faults", "", lambda m: seen(steady, m, "fault")),
        ("  of these interrupts of the box", "", lambda m: seen(steady, m, "irq")),
        ("instructions to the guest's first", "M", lambda m: count(m, "vmrun", "user", "kernel")),
        ("  of these in the VMM itself", "M", lambda m: count(m, "vmrun", "user")),
        ("host instructions to init", "M", lambda m: count(m, "mark1", "user", "kernel")),
        ("guest instructions to init", "M", lambda m: count(m, "mark1", "guest")),
        ("VMRUNs to init", "", lambda m: count(m, "mark1", "runs")),
    ]
    width = 38
    print(f"{'':{width}}" + "".join(f"{TITLES[m]:>16}" for m in machines)
          + "".join(f"{'/ ' + TITLES[m][5:]:>12}" for m in machines if m != "ours"))
    results = {}
    for title, unit, pick in rows:
        values = {m: pick(m) for m in machines}
        results[title.strip()] = values
        line = f"{title:{width}}" + "".join(f"{cell(values[m], unit):>16}" for m in machines)
        for m in machines:
            if m != "ours":
                ours = values.get("ours")
                line += f"{f'{values[m] / ours:.2f}x' if ours and values[m] is not None else '-':>12}"
        print(line)
    print("\n(ratios: how many times ours the peer needs)")
    for m in machines:
        for r in times.get(m, []) + steady[m]:
            if "error" in r:
                print(f"{TITLES[m]}: {r['error']}")
    first = results["instructions to the guest's first"].get("ours")
    own = results["memory beside the guest's"].get("ours")
    ours, peer = (results["start to init, 1 instruction a ns"].get(m) for m in ("ours", "microvm"))
    if first:
        ms = first / NATIVE_INSTRUCTIONS_PER_MS
        print(f"first guest instruction at native scale, 1 instruction a nanosecond: {ms:.1f} ms, "
              f"target {FIRST_INSTRUCTION_MS} ms: {'ok' if ms < FIRST_INSTRUCTION_MS else 'MISS'}")
    if own is not None:
        print(f"own memory: {own:.1f} MiB, target {OWN_MEMORY_MIB} MiB: {'ok' if own <= OWN_MEMORY_MIB else 'MISS'}")
    if ours and peer:
        print(f"start to init: target no slower than microvm: {'ok' if ours <= peer else 'MISS'}")
    if o.json:
        with open(o.json, "w", encoding="ascii") as f:
            json.dump(results, f, indent=1)


if __name__ == "__main__":
    main()
