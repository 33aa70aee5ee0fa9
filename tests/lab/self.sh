#!/bin/bash
# lab/run itself: output as it comes and byte for byte, exit status, arguments and environment, and that nothing
# is left behind however it ends. Two boxes are started to the end, three are killed.
cd "$(dirname "$0")/../.." || exit 1
work=$(mktemp -d "${NACELLE_BUILD:-build}/lab-self.XXXXXX")
work=$(realpath "$work")
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
    rm -rf "$work"
}
trap cleanup EXIT
failed=0
check() {
    local name=$1
    shift
    if "$@"; then
        echo "PASS lab/self/$name"
    else
        echo "FAIL lab/self/$name: $*"
        failed=1
    fi
}

# await SECONDS COMMAND…
await() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.1
    done
}
said() { grep -qa "$1" "$2"; }
# The QEMU that belongs to a lab/run.
box_of() { cat "build/lab/run.$1".*/pid 2>/dev/null; }
runs() { [ -n "$(box_of "$1")" ]; }
gone() { ! kill -0 "$1" 2>/dev/null; }
nothing_left() { ! compgen -G "build/lab/run.$1.*" >/dev/null; }

# The script says something and goes on only when it sees that we have heard it.
cat >"$work/talk" <<'END'
echo "heard? $1/$2 $LAB_TEST $PWD"
for ((i = 0; i < 600; i++)); do
    [ ! -e "$(dirname "$0")/go" ] || break
    sleep 0.1
done
[ -e "$(dirname "$0")/go" ] || exit 1
printf 'bytes\r\n\377\0end' >&2
"$(dirname "$0")/count" && "$(dirname "$0")/count"
echo written >"$(dirname "$0")/from-the-box"
sleep 1000 &
exit 7
END
cat >"$work/count.c" <<'END'
#define MARK(n) __asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00; .long 0x4e4c0000 + %c0" ::"i"(n))
int main(void)
{
    MARK(0);
    __asm__ volatile("mov $1000000, %%eax; 1: dec %%eax; jnz 1b" ::: "eax", "cc");
    MARK(1);
    return 0;
}
END
"${CC:-gcc}" -O2 -static "$work/count.c" -o "$work/count" || exit
LAB_TEST="two words" lab/run --count "$work/counts" --timeout 400 --env LAB_TEST "$work/talk" 'a b' "c'd" >"$work/out" 2>"$work/errors" &
pid=$!
pids+=("$pid")
check streams await 300 said 'heard?' "$work/out"
touch "$work/go"
wait $pid
check status [ $? = 7 ]
{
    echo "heard? a b/c'd two words $PWD"
    printf 'bytes\r\n\377\0end'
} >"$work/expected"
check bytes cmp "$work/expected" "$work/out"
check shared-files [ "$(cat "$work/from-the-box" 2>&1)" = written ]
check cleans-up nothing_left "$pid"
# Another QEMU than Debian 12's is no fault of ours, but good to know of.
unmended=$(sed -n 's,^lab/mend: ,,p' "$work/errors")
if [ -n "$unmended" ]; then echo "SKIP lab/self/mends: $unmended"; else check mends [ -s build/guest/lab/mend.so ]; fi
# Two million instructions in the program's own half of the address space, and a few around them.
check counts awk '$1 != "mark1" || $2 < 2000000 || $2 > 2000020 || $4 || $5 { bad = 1 } END { exit bad || NR != 2 }' "$work/counts"

echo 'echo up; sleep 1000' >"$work/hang"
lab/run --timeout 400 "$work/hang" >"$work/out" 2>&1 &
pid=$!
pids+=("$pid")
await 300 said up "$work/out"
box=$(box_of $pid)
kill -TERM $pid
wait $pid
check term-status [ $? = 143 ]
check term-kills gone "${box:-$$}"
check term-cleans-up nothing_left "$pid"

lab/run --timeout 1 true >"$work/out" 2>&1 &
pid=$!
pids+=("$pid")
wait $pid
check timeout-status [ $? = 124 ]
check timeout-says said 'no end after 1 s' "$work/out"
check timeout-cleans-up nothing_left "$pid"

# A box whose signs of life are stopped and that is busy all the same.
cat >"$work/still" <<'END'
for process in /proc/[0-9]*; do
    case $(tr '\0' ' ' <"$process/cmdline") in *lab/session*) kill -STOP "${process#/proc/}" ;; esac
done 2>/dev/null
while :; do :; done
END
NACELLE_LAB_STUCK=20 lab/run --timeout 300 "$work/still" >"$work/out" 2>&1 &
pid=$!
pids+=("$pid")
wait $pid
check stands-still [ $? = 126 ]
check stands-still-says said 'the box stands still: 20 s' "$work/out"
check stands-still-cleans-up nothing_left "$pid"

lab/run --timeout 300 sleep 1000 >"$work/out" 2>&1 &
pid=$!
pids+=("$pid")
await 60 runs $pid
box=$(box_of $pid)
kill -KILL $pid
check killed-kills await 30 gone "${box:-$$}"

lab/run --memory lots true 2>"$work/out"
check usage [ $? = 2 ]
check usage-says said 'is no size' "$work/out"
lab/run /nonexistent/script 2>"$work/out"
check no-script-says said 'no script /nonexistent' "$work/out"
lab/run --append 'panic=-1 lab.session=/nowhere' --timeout 300 true >"$work/out" 2>&1
check broken-box [ $? = 125 ]
exit $failed
