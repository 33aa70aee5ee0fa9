#!/bin/sh
# Runs the guest kernels and says which pass. Usage: run.sh [NAME...]
#   RUNNER=nacelle (default)   build/nacelle, software engine
#   RUNNER=qemu                QEMU's TCG, to prove the kernels themselves
#   VERBOSE=1                  shows every kernel's output; else only that of failing ones
# Options and the expected exit status stand at the top of each kernel: "// RUN:", "// STATUS:", "// QEMU:".
cd "$(dirname "$0")/../.." || exit 2
BUILD=${BUILD:-build}
RUNNER=${RUNNER:-nacelle}
LIMIT=${LIMIT:-60}
log=$(mktemp) || exit 2
trap 'rm -f "$log"' EXIT
passed=0 failed=0 known=0

# tag FILE NAME: the text behind "// NAME:"
tag() { sed -n "s,^// $2: *,,p" "$1" | head -n 1; }

run() { # run NAME CPUS KEYS: with keys, on a terminal of its own, where they are typed after two seconds
    if [ "$RUNNER" = qemu ]; then
        set -- "$1" "$2" "$3" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m 64M -smp "$2" -nographic -nic none \
            -no-reboot -device pc-testdev -device isa-debug-exit,iobase=0xf4,iosize=4 -kernel "$BUILD/kernels/$1.elf" -append "cpus=$2"
    else
        set -- "$1" "$2" "$3" "$BUILD/nacelle" run --kernel "$BUILD/kernels/$1.elf" --engine soft --debug-exit 0xf4 \
            --no-reboot -m 64M -c "$2" -a "cpus=$2"
    fi
    keys=$3
    shift 3
    if [ -z "$keys" ]; then
        timeout "$LIMIT" "$@" </dev/null
        return
    fi
    { sleep 2; printf "$keys"; sleep 3; } | timeout 20 script -qec "$*" /dev/null
}

[ $# -gt 0 ] || set -- $(cd tests/kernels && ls -- *.c | sed 's/\.c$//')
for name in "$@"; do
    src=tests/kernels/$name.c
    cpus=$(tag "$src" RUN | sed -n 's/.*-c *\([0-9]*\).*/\1/p')
    want=$(tag "$src" STATUS)
    want=${want:-1}
    note=$(tag "$src" QEMU)
    if [ "$RUNNER" = qemu ]; then
        case $note in
        skip*) echo "SKIP $name (QEMU: ${note#skip })"; continue ;;
        status*) want=$(echo "$note" | sed 's/status *\([0-9]*\).*/\1/') ;;
        esac
    fi
    run "$name" "${cpus:-1}" "$(tag "$src" KEYS)" >"$log" 2>&1
    got=$?
    needs=$(tag "$src" OUTPUT)
    [ "$want" != 1 ] || needs="all checks passed"
    if [ "$got" = "$want" ] && { [ -z "$needs" ] || grep -q -- "$needs" "$log"; }; then
        passed=$((passed + 1))
        echo "PASS $name$(sed -n 's/^SKIPPED \(.*[^\r]\)\r*$/ [skipped: \1]/p' "$log" | tr -d '\r\n')"
        [ -z "$VERBOSE" ] || sed 's/^/    /' "$log"
    else
        case $RUNNER-$note in
        qemu-fails*)
            known=$((known + 1))
            echo "KNOWN $name: QEMU ${note#fails: }"
            [ -z "$VERBOSE" ] || sed 's/^/    /' "$log"
            continue
            ;;
        esac
        failed=$((failed + 1))
        echo "FAIL $name: exit status $got, expected $want"
        head -n "${LINES_SHOWN:-25}" "$log" | sed 's/^/    /'
    fi
done
[ "$known" = 0 ] || echo "$known fail under QEMU as known: there the manual decides"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
