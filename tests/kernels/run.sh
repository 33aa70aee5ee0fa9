#!/bin/sh
# Runs the guest kernels and says which pass. Usage: run.sh [NAME...]
#   RUNNER=nacelle (default)   build/nacelle, software engine
#   RUNNER=qemu                QEMU's TCG, to prove the kernels themselves; its use of KVM with ACCEL=kvm
#   ENGINE=soft (default)      the CPU engine: soft, kvm, auto
#   VERBOSE=1                  shows every kernel's output; else only that of failing ones
# Options and the expected exit status stand at the top of each kernel: "// RUN:", "// STATUS:", "// QEMU:".
cd "$(dirname "$0")/../.." || exit 2
BUILD=${BUILD:-build}
RUNNER=${RUNNER:-nacelle}
LIMIT=${LIMIT:-60}
ENGINE=${ENGINE:-soft}
accel="-accel tcg,thread=multi -cpu max"
[ "${ACCEL:-tcg}" = tcg ] || accel="-accel $ACCEL -cpu host"
# Where a kernel runs: it leaves out what is known to be wrong there (tests/lab/KVM-DIFFERENCES.md).
where=
[ "$RUNNER-$ENGINE" != nacelle-kvm ] && [ "$RUNNER-${ACCEL:-}" != qemu-kvm ] || where="kvm ${NACELLE_LAB:+lab}"
log=$(mktemp) || exit 2
trap 'rm -f "$log" "$log.errors"' EXIT
passed=0 failed=0 known=0

# tag FILE NAME: the text behind "// NAME:"
tag() { sed -n "s,^// $2: *,,p" "$1" | head -n 1; }

quoted() { # the words as a shell reads them
    for word in "$@"; do printf "'%s' " "$word"; done
}

run() { # run NAME CPUS KEYS ARGUMENT: with keys, on a terminal of its own, where they are typed after two seconds
    if [ "$RUNNER" = qemu ]; then
        set -- "$3" qemu-system-x86_64 $accel -m 64M -smp "$2" -nographic -nic none \
            -no-reboot -device pc-testdev -device isa-debug-exit,iobase=0xf4,iosize=4 -kernel "$BUILD/kernels/$1.elf" -append "cpus=$2 $4 $where"
    else
        set -- "$3" "$BUILD/nacelle" run --kernel "$BUILD/kernels/$1.elf" --engine "$ENGINE" --debug-exit 0xf4 \
            --no-reboot -m 64M -c "$2" -a "cpus=$2 $4 $where"
    fi
    keys=$1
    shift
    if [ -z "$keys" ]; then
        timeout "$LIMIT" "$@" </dev/null
        return
    fi
    { sleep 2; printf "$keys"; sleep 3; } | timeout 20 script -qec "$(quoted "$@")" /dev/null
}

good() { # good STATUS WANTED OUTPUT: "any" takes every end of the guest, none of the VMM's own (5, or a fatal signal)
    if [ "$2" = any ]; then
        case $1 in 5 | 132 | 134 | 135 | 136 | 139) return 1 ;; esac
    else
        [ "$1" = "$2" ] && { [ -z "$3" ] || grep -q -- "$3" "$log"; }
    fi
}

one() { # one NAME ARGUMENT
    src=tests/kernels/$1.c
    cpus=$(tag "$src" RUN | sed -n 's/.*-c *\([0-9]*\).*/\1/p')
    want=$(tag "$src" STATUS)
    want=${want:-1}
    note=$(tag "$src" QEMU)
    if [ "$RUNNER" = qemu ]; then
        case $note in
        skip*) echo "SKIP $1 (QEMU: ${note#skip })"; return ;;
        status*) want=$(echo "$note" | sed 's/status *\([0-9]*\).*/\1/') ;;
        esac
    fi
    run "$1" "${cpus:-1}" "$(tag "$src" KEYS)" "$2" >"$log" 2>"$log.errors"
    got=$?
    cat "$log.errors" >>"$log" # the VMM's own words do not wait for the guest's
    needs=$(tag "$src" OUTPUT)
    [ "$want" != 1 ] || needs="all checks passed"
    title=$1${2:+ $2}
    if good "$got" "$want" "$needs"; then
        passed=$((passed + 1))
        echo "PASS $title$(tr -d '\r' <"$log" | sed -n 's/^.*SKIPPED \(.*\)$/ [skipped: \1]/p; s/^.*LEFT OUT \(.*\)$/ [left out: \1]/p' | tr -d '\n')"
        [ -z "$VERBOSE" ] || sed 's/^/    /' "$log"
    elif [ "$RUNNER" = qemu ] && [ "${note#fails}" != "$note" ]; then
        known=$((known + 1))
        echo "KNOWN $title: QEMU ${note#fails: }"
        [ -z "$VERBOSE" ] || sed 's/^/    /' "$log"
    else
        failed=$((failed + 1))
        echo "FAIL $title: exit status $got, expected $want"
        head -n "${LINES_SHOWN:-25}" "$log" | sed 's/^/    /'
    fi
}

[ $# -gt 0 ] || set -- $(cd tests/kernels && ls -- *.c | sed 's/\.c$//')
for name in "$@"; do
    arguments=$(tag "tests/kernels/$name.c" ARGS)
    if [ -z "$arguments" ]; then
        one "$name" ""
    else
        for argument in $arguments; do one "$name" "$argument"; done
    fi
done
[ "$known" = 0 ] || echo "$known fail under QEMU as known: there the manual decides"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
