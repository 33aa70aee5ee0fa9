"""The table: rows, ratios, geometric means, targets. No measuring here."""
import math

HIGHER_IS_BETTER = ("MB/s",)

# group: (title, target over TCG, where it is heading)
GROUPS = {
    "integer": ("integer programs", 2.0, "1.3x of native"),
    "float": ("scalar floating point", 20.0, "1.3x of native"),
    "simd": ("SIMD", 60.0, "1.3x of native"),
    "rep": ("rep movs/stos bandwidth", 60.0, "native"),
    "system": ("operating system", 1.2, "3x TCG"),
    "clock": ("clock", None, None),
}
PARALLEL_TARGET = 1.8
BOOT_TARGET = 1.5
MEMORY_TARGET_MIB = 64

# Cycles of the software VMM on a 3.8 GHz Pentium 4: Adams, Agesen, "A Comparison of Software and Hardware
# Techniques for x86 Virtualization", ASPLOS 2006, figure 4.
SOFTWARE_2006 = {"syscall": 2308, "in": 216, "cr8wr": 35, "call/ret": 51, "pgfault": 3927, "divzero": 3223, "ptemod": 391}


def better_by(ours, other, unit):
    """How many times better `ours` is than `other`; None when either is missing."""
    if not ours or not other:
        return None
    return ours / other if unit in HIGHER_IS_BETTER else other / ours


def geometric_mean(values):
    values = [v for v in values if v and v > 0]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def value_text(value, unit):
    if value is None:
        return "-"
    if unit == "s":
        return f"{value:.3f} s"
    if unit == "ns":
        return f"{value:.0f} ns" if value < 10000 else f"{value / 1000:.1f} us"
    return f"{value:.0f} {unit}"


def ratio_text(ratio):
    if ratio is None:
        return "-"
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x"


def verdict(ratio, target):
    if ratio is None or target is None:
        return ""
    return "ok" if ratio >= target else "MISS"


class Table:
    """Prints as it is filled, so that a run that is cut short has still shown something."""

    WIDTHS = (28, 12, 12, 12, 10, 12, 24)

    def __init__(self, out):
        self.out = out

    def line(self, *cells):
        cells = list(cells) + [""] * (len(self.WIDTHS) - len(cells))
        text = "".join(f"{c:<{w}}" if i == 0 or i == 6 else f"{c:>{w}}" + ("  " if i == 5 else "")
                       for i, (c, w) in enumerate(zip(cells, self.WIDTHS)))
        print(text.rstrip(), file=self.out, flush=True)

    def title(self, text, columns=("ours", "TCG", "native", "ours/TCG", "native/ours")):
        self.line()
        self.line(text, *columns)


def check_note(row):
    checks = {c for c in (row.get(k, {}).get("check") for k in ("ours", "tcg", "native")) if c and c != "-"}
    return "RESULTS DIFFER" if len(checks) > 1 else ""


def show_groups(table, names, results, summary):
    """results: column -> name -> {value, unit, check}. Fills summary with the geometric means."""
    for group, (title, target, heading) in GROUPS.items():
        members = [n for n in names if n.split("/")[0] == group]
        if not members:
            continue
        table.title(title)
        over_tcg, under_native, tcg_native = [], [], []
        for name in members:
            row = {c: results[c].get(name, {}) for c in results}
            value = {c: row[c].get("value") for c in row}
            unit = next((r["unit"] for r in row.values() if "unit" in r), "")
            ratio = better_by(value["ours"], value["tcg"], unit)
            slower = better_by(value["native"], value["ours"], unit)
            over_tcg.append(ratio)
            under_native.append(slower)
            tcg_native.append(better_by(value["native"], value["tcg"], unit))
            note = check_note(row) or row["ours"].get("note", "") or row["tcg"].get("note", "")
            table.line("  " + name.split("/")[1], *(value_text(value[c], unit) for c in ("ours", "tcg", "native")),
                       ratio_text(ratio), ratio_text(slower), note)
        mean, native = geometric_mean(over_tcg), geometric_mean(under_native)
        peer = geometric_mean(tcg_native)
        counted = sum(r is not None for r in over_tcg)
        goal = f"{verdict(mean, target)} (target {target:g}x)" if target else ""
        table.line(f"  geometric mean of {counted if mean else len(members)}", "", "", f"TCG {ratio_text(peer)}",
                   ratio_text(mean), ratio_text(native), goal)
        summary[group] = {"over_tcg": mean, "native_over_ours": native, "native_over_tcg": peer, "rows": counted,
                          "target": target, "ok": mean is not None and target is not None and mean >= target,
                          "heading": heading}


def show_parallel(table, results, summary):
    """results: column -> cpus (1, 4) -> name -> row."""
    names = sorted({n for c in results.values() for rows in c.values() for n in rows})
    if not names:
        return
    table.title("parallel: 4 vCPUs against 1", ("ours 1", "ours 4", "ours gain", "TCG gain", "native gain"))
    gains = {c: [] for c in results}
    for name in names:
        value = {c: {n: results[c].get(n, {}).get(name, {}).get("value") for n in (1, 4)} for c in results}
        gain = {c: better_by(value[c][4], value[c][1], "s") for c in results}
        for c, g in gain.items():
            gains[c].append(g)
        table.line("  " + name.split("/")[1], value_text(value["ours"][1], "s"), value_text(value["ours"][4], "s"),
                   *(ratio_text(gain[c]) for c in ("ours", "tcg", "native")))
    mean = {c: geometric_mean(g) for c, g in gains.items()}
    table.line("  geometric mean", "", "", *(ratio_text(mean[c]) for c in ("ours", "tcg", "native")),
               f"{verdict(mean['ours'], PARALLEL_TARGET)} (target {PARALLEL_TARGET}x)")
    summary["parallel"] = {"gain": mean["ours"], "tcg_gain": mean["tcg"], "native_gain": mean["native"],
                           "target": PARALLEL_TARGET, "ok": mean["ours"] is not None and mean["ours"] >= PARALLEL_TARGET}


def show_nano(table, nano, summary):
    """nano: column -> name -> cycles."""
    names = list(dict.fromkeys(n for c in nano.values() for n in c))
    if not names:
        return
    table.title("nanobenchmarks, cycles", ("ours", "TCG", "2006", "ours/TCG", "2006/ours"))
    for name in names:
        ours, tcg, then = nano["ours"].get(name), nano["tcg"].get(name), SOFTWARE_2006.get(name)
        table.line("  " + name, *("-" if v is None else f"{v:.0f}" if v >= 100 else f"{v:.1f}" for v in (ours, tcg, then)),
                   ratio_text(better_by(ours, tcg, "")), ratio_text(better_by(ours, then, "")))
    summary["nano"] = {c: dict(v) for c, v in nano.items()}


def show_boot(table, boot, summary):
    """boot: machine -> {seconds: [..], median, rss_mib}."""
    if not boot:
        return
    table.title("start to the guest's init", ("median", "runs", "", "ours is", "VMM memory"))
    ours = boot.get("ours", {}).get("median")
    for machine, b in boot.items():
        ratio = better_by(ours, b.get("median"), "s") if machine != "ours" else None
        rss = b.get("rss_mib")
        table.line("  " + b["title"], value_text(b.get("median"), "s"), str(len(b["seconds"])), "",
                   ratio_text(ratio), "-" if rss is None else f"{rss:.0f} MiB",
                   f"{verdict(ratio, BOOT_TARGET)} (target {BOOT_TARGET}x) {b['note']}" if machine == "q35" else b["note"])
    rss = boot.get("ours", {}).get("rss_mib")
    if rss is not None:
        table.line(f"  VMM memory beside guest RAM: {rss:.0f} MiB, "
                   f"{'ok' if rss < MEMORY_TARGET_MIB else 'MISS'} (target under {MEMORY_TARGET_MIB} MiB)")
    summary["boot"] = {m: {k: b.get(k) for k in ("median", "seconds", "rss_mib")} for m, b in boot.items()}


def show_clocks(table, clocks):
    """clocks: list of (column, cpus, guest seconds, host seconds)."""
    if not clocks:
        return
    table.title("guest clock, host clock", ("guest", "host", "difference", "", ""))
    for column, cpus, guest, host in clocks:
        if host > 1:
            off = (guest - host) / host * 100
            # Lines take a few ms to get from the guest to here, more on a busy host.
            note = "" if abs(off) < 0.5 or abs(guest - host) < 0.1 else "CLOCK WRONG: its rows are too"
            table.line(f"  {column}, {cpus} vCPU", f"{guest:.2f} s", f"{host:.2f} s", f"{off:+.3f} %", "", "", note)
