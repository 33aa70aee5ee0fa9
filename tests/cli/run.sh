#!/bin/bash
# nacelle run, from outside: every exit status, the console through pipes and files and on a terminal, signals, statistics.
set -uo pipefail
cd "$(dirname "$0")/../.."
nacelle=${NACELLE:-build/nacelle}
dir=$(mktemp -d)
main=$BASHPID
# A background job killed before its exec would run this trap as well.
trap '[ $BASHPID != $main ] || rm -rf "$dir"' EXIT
command -v nasm >/dev/null || { echo "nasm is missing"; exit 77; }

guest() { # NAME [VALUE]: assembles, prints the path
    local file=$dir/$1${2:-}
    [ -e "$file" ] || nasm -f bin -DGUEST="$1" -DVALUE="${2:-0}" -o "$file" tests/cli/guest.asm || exit 1
    echo "$file"
}
vm() { # SECONDS GUEST-FILE ARGUMENT...
    local limit=$1 file=$2
    shift 2
    timeout -k 5 "$limit" "$nacelle" run -k "$file" -m 16M --engine soft --debug-exit 0xf4 "$@"
}
check() { # NAME CONDITION...
    local name=$1
    shift
    if "$@"; then echo "PASS run: $name"; else echo "FAIL run: $name"; fi
}
status_is() { # EXPECTED NAME ACTUAL
    if [ "$1" = "$3" ]; then echo "PASS run: $2"; else echo "FAIL run: $2: status $3, not $1"; fi
}

# Exit statuses
for value in 0 1 16 127; do
    vm 20 "$(guest exit $value)" </dev/null >"$dir/out" 2>"$dir/err"
    status_is $((value * 2 + 1)) "debug-exit of $value" $?
    check "debug-exit of $value says nothing" [ ! -s "$dir/out" -a ! -s "$dir/err" ]
done
vm 20 "$(guest triple)" --no-reboot </dev/null >"$dir/out" 2>"$dir/err"
status_is 4 'triple fault' $?
check 'triple fault dumps registers' grep -q '^cr0 ' "$dir/err"
: >"$dir/err"
"$nacelle" run -k "$(guest triple)" -m 16M --engine soft </dev/null >"$dir/out" 2>"$dir/err" &
pid=$!
for _ in $(seq 200); do grep -q 'triple fault' "$dir/err" && break; sleep 0.1; done
sleep 1
kill -TERM $pid
wait $pid
check 'a guest that dies again and again does not fill the log' [ "$(grep -c 'triple fault' "$dir/err")" -ge 1 -a "$(wc -l <"$dir/err")" -le 4 ]
vm 20 "$(guest reset)" --no-reboot </dev/null >"$dir/out" 2>"$dir/err"
status_is 0 'reset under --no-reboot' $?
vm 20 "$(guest second)" </dev/null >"$dir/out" 2>"$dir/err"
status_is 43 'the guest starts anew after a reset' $?
vm 20 "$(guest off)" </dev/null >"$dir/out" 2>"$dir/err"
status_is 0 'power-off' $?

# Console
vm 20 "$(guest hello)" </dev/null >"$dir/out" 2>"$dir/err"
check 'output right before the end arrives' [ "$(cat "$dir/out")" = 'hello from the guest' ]
{ sleep 0.3; printf 'through a pipe, longer than the FIFO is: 0123456789 \001x q'; } | vm 20 "$(guest echo)" >"$dir/out" 2>"$dir/err"
status_is 1 'input through a pipe' ${PIPESTATUS[1]}
printf 'through a pipe, longer than the FIFO is: 0123456789 \001x ' >"$dir/expected"
check 'input through a pipe comes through as it is' cmp -s "$dir/out" "$dir/expected"
printf 'from a file q' >"$dir/in"
vm 20 "$(guest echo)" <"$dir/in" >"$dir/out" 2>"$dir/err"
status_is 1 'input from a file' $?
check 'input from a file comes through' [ "$(cat "$dir/out")" = 'from a file ' ]
vm 60 "$(guest lines)" </dev/null 2>"$dir/err" | { sleep 1; cat; } >"$dir/out"
check 'a slow reader loses nothing' [ "$(sort -u "$dir/out")$(wc -l <"$dir/out")" = 0123456789100000 ]
vm 20 "$(guest hello)" </dev/null 2>"$dir/err" >&-
status_is 1 'closed standard output' $?
vm 20 "$(guest hello)" 2>"$dir/err" <&- >"$dir/out"
status_is 1 'closed standard input' $?
vm 20 "$(guest lines)" </dev/null 2>"$dir/err" | true
status_is 1 'a reader that goes away' ${PIPESTATUS[0]}
# A reader that never reads: SIGTERM ends the run all the same.
mkfifo "$dir/fifo"
sleep 60 <"$dir/fifo" &
sleeper=$!
"$nacelle" run -k "$(guest flood)" -m 16M --engine soft </dev/null >"$dir/fifo" 2>"$dir/err" &
pid=$!
sleep 1
start=$SECONDS
kill -TERM $pid
wait $pid
status_is 143 'a reader that never reads' $?
check 'a reader that never reads does not hold up the end' [ $((SECONDS - start)) -lt 10 ]
kill $sleeper

# Signals
for pair in TERM:143 INT:130 HUP:129 QUIT:131; do
    # From a background job bash has SIGINT and SIGQUIT ignored, unless job control is on.
    : >"$dir/out"
    set -m
    "$nacelle" run -k "$(guest spin)" -m 16M --engine soft </dev/null >"$dir/out" 2>"$dir/err" &
    pid=$!
    set +m
    for _ in $(seq 100); do [ -s "$dir/out" ] && break; sleep 0.05; done
    kill -"${pair%:*}" $pid
    wait $pid 2>/dev/null
    status_is "${pair#*:}" "SIG${pair%:*} ends a guest that spins" $?
done

# Signals before there is a guest: an NBD server takes the connection and says nothing.
cat >"$dir/silent.py" <<'PY'
import socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
client = s.accept()[0]
print("connected", flush=True)
time.sleep(100)
PY
for signal in TERM:143 INT:130; do
    rm -f "$dir/silent"
    : >"$dir/out"
    python3 "$dir/silent.py" "$dir/silent" >"$dir/out" &
    server=$!
    for _ in $(seq 200); do [ -e "$dir/silent" ] && break; sleep 0.05; done
    set -m
    "$nacelle" run -k "$(guest spin)" -m 16M --engine soft -d "nbd+unix:///x?socket=$dir/silent" </dev/null >"$dir/err" 2>&1 &
    pid=$!
    set +m
    for _ in $(seq 200); do [ -s "$dir/out" ] && break; sleep 0.05; done
    start=$SECONDS
    kill -"${signal%:*}" $pid
    wait $pid 2>/dev/null
    status_is "${signal#*:}" "SIG${signal%:*} ends a run that waits for a disk" $?
    check 'and soon' [ $((SECONDS - start)) -lt 10 ]
    kill $server
    wait $server 2>/dev/null
done

# An idle guest: 4 s with its vCPU in HLT, user and system time under 3 %.
TIMEFORMAT='%3U %3S'
used=$({ time timeout -s TERM 4 "$nacelle" run -k "$(guest halt)" -m 16M --engine soft </dev/null >/dev/null 2>&1; } 2>&1)
check "an idle guest costs under 3 % ($used s of 4)" awk -v u="$used" 'BEGIN { split(u, t, " "); exit !(t[1] + t[2] < 0.12) }'

# Messages and statistics
timeout 20 "$nacelle" run -k "$(guest exit)" -m 16M --debug-exit 0xf4 </dev/null >"$dir/out" 2>"$dir/err"
check 'auto says what it took and why, in one line' [ "$(grep -c soft "$dir/err")$(wc -l <"$dir/err")" = 11 ]
vm 20 "$(guest hello)" --stats --name seven </dev/null >"$dir/out" 2>"$dir/err"
check '--stats has a table' grep -q 'exits: io' "$dir/err"
check '--stats names the machine' grep -q '^seven: soft engine' "$dir/err"
vm 20 "$(guest hello)" -c 2 --stats=json:"$dir/stats" </dev/null >"$dir/out" 2>"$dir/err"
check '--stats=json writes JSON' python3 -c 'import json, sys
s = json.load(open(sys.argv[1]))
assert s["engine"] == "soft" and s["status"] == 1 and len(s["vcpus"]) == 2
assert s["vcpus"][0]["exits"]["io"] >= 20 and s["vmm_resident"] < 64 << 20' "$dir/stats"
mkfifo "$dir/pipe"
vm 20 "$(guest hello)" --stats=json:"$dir/pipe" </dev/null >"$dir/out" 2>"$dir/err"
status_is 1 'statistics for a pipe that nobody reads' $?
check 'and it says so' grep -q "nobody reads the pipe $dir/pipe" "$dir/err"
exec 9<>"$dir/pipe"
vm 20 "$(guest hello)" --stats=json:"$dir/pipe" </dev/null >"$dir/out" 2>"$dir/err"
read -r -t 20 line <&9
check 'statistics for a pipe that somebody reads' [ "$line" = '{' -a ! -s "$dir/err" ]
exec 9<&-

# A terminal, with a guest that listens to nothing.
cat >"$dir/terminal.py" <<'PY'
import os, select, sys, termios, time
def until(fd, text, seconds=20):
    got, end = b"", time.monotonic() + seconds
    while text not in got:
        if time.monotonic() > end or not select.select([fd], [], [], 0.2)[0] and os.waitpid(pid, os.WNOHANG)[0]:
            sys.exit("no %r in %r" % (text, got))
        if select.select([fd], [], [], 0)[0]:
            got += os.read(fd, 1000)
master, slave = os.openpty()
before = termios.tcgetattr(slave)
pid = os.fork()
if pid == 0:
    os.setsid()
    for fd in 0, 1, 2:
        os.dup2(slave, fd)
    os.execv(sys.argv[1], sys.argv[1:])
until(master, b".")
assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG), "not raw"
os.write(master, b"\x03some keys for nobody\x01h")
until(master, b"Ctrl-A")
os.write(master, b"\x01x")
end = time.monotonic() + 20
while True:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        break
    if time.monotonic() > end:
        os.kill(pid, 9)
        sys.exit("Ctrl-A x did not end it")
    time.sleep(0.02)
assert os.waitstatus_to_exitcode(status) == 0, status
assert termios.tcgetattr(slave) == before, "terminal not restored"
PY
for g in spin halt; do
    check "Ctrl-A x on a terminal ends a guest that does nothing but $g" timeout 60 python3 "$dir/terminal.py" "$nacelle" run -k "$(guest $g)" -m 16M --engine soft
done
