# Compares the documents with the tree, and --help and the manual pages with the options that the sources define.
import glob
import os
import re
import subprocess
import sys

PROGRAM = sys.argv[1]
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "SPECIFICATION.md", "CONTRIBUTING.md"] + sorted(
    glob.glob("docs/**/*.md", recursive=True) + glob.glob("tests/**/*.md", recursive=True))
failed = False


def read(path):
    with open(path) as f:
        return f.read()


def check(name, wrong):
    """wrong: what is not as it should be, in words."""
    global failed
    wrong = sorted(set(wrong))
    failed = failed or bool(wrong)
    print(f"{'FAIL' if wrong else 'PASS'} documents: {name}")
    for w in wrong[:20]:
        print(f"    {w}")


def helps(verb):
    return subprocess.run([PROGRAM, "help", verb], stdout=subprocess.PIPE, check=True, text=True, timeout=20).stdout


def manual(path):
    """Its words, without the formatting."""
    text = re.sub(r"\\f[BIR]", "", read(path)).replace(r"\-", "-").replace(r"\(dq", '"')
    lines = []
    for line in text.splitlines():
        alternating = re.match(r"\.(?:BR|RB|BI|IB|RI|IR) (.*)", line)
        if alternating:  # words are set together; quoted ones may have spaces
            line = "".join(a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', alternating[1]))
        lines.append(re.sub(r"^\.(?:B|I|TP|PP|SS|SH|IP|br|RS|RE) ?", "", line))
    return "\n".join(lines)


def long_options(text):
    return set(re.findall(r"(?<![\w-])--([a-z][a-z-]*)", text))


def keys(text):
    """KEY of KEY=VALUE."""
    return set(re.findall(r"(?<![\w=/.-])([a-z][a-z0-9_]*)=", text))


def code(text):
    """What is set as code: `spans` and indented blocks."""
    indented = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", re.sub(r"(?m)^    .*$", "", text))] + indented


def is_there(path):
    path = path.rstrip("/").replace("NAME", "*").replace("my-test", "*")
    unit = re.fullmatch(r"build/tests/unit/(\w+)", path)
    return bool(glob.glob(f"tests/unit/{unit[1]}.c" if unit else path))


def make_targets():
    rules = "\n".join(read(p) for p in ["Makefile", *glob.glob("mk/*.mk"), *glob.glob("tests/*/*.mk")])
    return set(re.findall(r"[\w-]+", " ".join(re.findall(r"(?m)^\.PHONY:(.*)$", rules))))


def documents():
    paths, targets, named, links = [], [], [], []
    folders = r"(?:\./)?((?:cli|common|vmm|tests|tools|bench|lab|docs|mk|\.ci|build/tests/unit)/[\w./*-]*)"
    for document in DOCUMENTS:
        text = read(document)
        for span in code(text):
            for word in re.split(r"[\s;,()]+", span):
                path = re.fullmatch(folders, word.rstrip("."))
                if path and not is_there(path[1]):
                    paths.append(f"{document}: {word}")
                if re.fullmatch(r"test_\w+", word) and not os.path.exists(f"tests/unit/{word}.c"):
                    paths.append(f"{document}: {word}")
            words = re.match(r"(?:\S+=\S+ )*make((?: [\w-]+)+)(?: |$)", span)
            for word in words[1].split() if words else []:
                if word not in make_targets():
                    targets.append(f"{document}: make {word}")
            for script, what in (("kernels/run", "tests/kernels/{}.c"), ("guest/userland", "tests/guest/scripts/{}.sh")):
                found = re.search(rf"tests/{script}\.sh((?: \w+)+)", span)
                for word in found[1].split() if found else []:
                    if word != "NAME" and not os.path.exists(what.format(word)):
                        named.append(f"{document}: {span}: {word}")
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            if not os.path.exists(os.path.join(os.path.dirname(document), link)):
                links.append(f"{document}: {link}")
        # A table goes on to its end.
        for gap in re.findall(r"(?m)^\|.*\n\n\|.*\n(?!\| ---)", text):
            links.append(f"{document}: a table in two pieces at {gap.splitlines()[2][:60]}")
    check("files and test programs that they name are there", paths)
    folders = ["bench/", "cli/", "common/", "lab/", *glob.glob("vmm/*/"), *glob.glob("tests/[a-z]*/")]
    architecture = read("ARCHITECTURE.md")
    check("ARCHITECTURE.md has every folder", [f for f in folders if f not in architecture])
    check("so are make's targets", targets)
    check("and guest kernels and scripts", named)
    check("links lead somewhere, tables are whole", links)


def options():
    table = set(re.findall(r'\{"([a-z-]+)", (?:required|optional|no)_argument', read("cli/run.c")))
    text, page = helps("run"), manual("docs/man/nacelle.1")
    if len(table) < 10:
        sys.exit("documents.py does not find the options in cli/run.c")
    own = long_options(page) & set().union(*(long_options(helps(v)) for v in ("ps", "ctl", "doctor")))
    check("help run has every option", table ^ long_options(text))
    check("nacelle(1) has every option", table ^ (long_options(page) - (own - table)))
    synopsis = page.split("SYNOPSIS")[1].split("nacelle ps")[0]
    check("so has its synopsis", (table - {"help"}) ^ long_options(synopsis))
    usage = re.search(r"(?s)    nacelle run --kernel.*?nacelle ps", read("README.md"))[0]
    check("README's synopsis has none that is not there", long_options(usage) - table - {"json"})
    check("ctl and ps have theirs in nacelle-ctl(1)",
          (long_options(helps("ctl")) | long_options(helps("ps"))) - long_options(manual("docs/man/nacelle-ctl.1")))
    verbs = set(re.findall(r"(?m)^  ([a-z]+) ", subprocess.check_output([PROGRAM, "help"], text=True)))
    check("nacelle(1) has every verb", verbs - set(re.findall(r"nacelle ([a-z]+)", page)))


def items():
    text, page = helps("run"), manual("docs/man/nacelle.1")
    disk = set(re.findall(r'\{"([a-z_]+)", (?:set_|offsetof)', read("cli/option_disk.c")))
    net = set(re.findall(r'strcmp\(kv->key, "([a-z0-9_]+)"\)|\{"([a-z_]+)", &l->', read("cli/option_net.c")))
    net = {a or b for a, b in net} - {"user", "none"}
    if len(disk) < 10 or len(net) < 10:
        sys.exit("documents.py does not find the items of --disk and --net")
    for name, real in (("--disk", disk), ("--net", net)):
        bare = {"ro"}  # a word by itself
        for where, has in (("help run", text), ("nacelle(1)", page)):
            check(f"{where} has every item of {name}", (real - bare) - keys(has))
    others = {"cid", "path", "link", "socket", "file", "json", "console"}
    for where, has in (("help run", text), ("nacelle(1)", page)):
        check(f"{where} has no item that is not there", keys(has) - disk - net - others)


documents()
options()
items()
sys.exit(failed)
