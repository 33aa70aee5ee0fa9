#!/bin/bash
# nacelle ctl, nacelle ps and the control socket from outside: wrong use, where sockets are, what is left behind, generated documentation.
set -uo pipefail
cd "$(dirname "$0")/../.."
nacelle=${NACELLE:-build/nacelle}
dir=$(mktemp -d)
main=$BASHPID
vms=()
end() {
    [ $BASHPID = "$main" ] || return
    # To timeout, which passes it on; those that were waited for are not in the list any more.
    [ ${#vms[@]} = 0 ] || kill -TERM "${vms[@]}" 2>/dev/null
    rm -rf "$dir"
}
trap end EXIT
command -v nasm >/dev/null || { echo "nasm is missing"; exit 77; }
nasm -f bin -DGUEST=halt -DVALUE=0 -o "$dir/kernel" tests/cli/guest.asm || exit 1
export NACELLE_RUN_DIR=$dir/run

check() { # NAME CONDITION...
    local name=$1
    shift
    if "$@"; then echo "PASS control: $name"; else echo "FAIL control: $name: $(head -c 300 "$dir/err" 2>/dev/null)"; fi
}
# wrong NAME PATTERN ARGUMENT...: status 2, one line on standard error that matches, nothing on standard output.
wrong() {
    local name=$1 pattern=$2 status
    shift 2
    timeout 20 "$nacelle" "$@" >"$dir/out" 2>"$dir/err" </dev/null
    status=$?
    check "$name" [ "$status $(wc -l <"$dir/err") $(wc -c <"$dir/out") $(grep -cE -- "$pattern" "$dir/err")" = '2 1 0 1' ]
}
vm() { # ARGUMENT...: in the background; its process is $vm
    timeout 120 "$nacelle" run -k "$dir/kernel" -m 16M --engine soft "$@" >"$dir/vm.out" 2>"$dir/vm.err" </dev/null &
    vms+=($!)
}
ended() { # waits for the machine that was started last: its status
    local process=${vms[-1]}
    unset 'vms[-1]'
    wait "$process"
}
await() { # CONDITION...: up to 30 s
    local n
    for ((n = 0; n < 300; n++)); do
        "$@" && return
        sleep 0.1
    done
    return 1
}
pid() { sed -n 's/^pid *//p' "$dir/status"; } # of the machine that answered last
answers() { "$nacelle" ctl "$1" status --timeout 5 >"$dir/status" 2>/dev/null; }

# Documentation is what the schema says now.
generator=${NACELLE_BUILD:-build}/tools/gencontrol
"$generator" markdown vmm/control/commands.json >"$dir/page" 2>"$dir/err"
check 'docs/control.md is up to date (else: make control-docs)' cmp -s "$dir/page" docs/control.md
"$generator" man vmm/control/commands.json >"$dir/page" 2>"$dir/err"
check 'nacelle-ctl.1 is up to date (else: make control-docs)' cmp -s "$dir/page" docs/man/nacelle-ctl.1
"$nacelle" ctl --help >"$dir/help" 2>"$dir/err"
for command in $(sed -n 's/^      "name": "\([a-z-]*\)", "since.*/\1/p' vmm/control/commands.json); do
    grep -q "^  $command " "$dir/help" || echo "FAIL control: help has no $command"
done
check 'help' [ "$(grep -c '^  [a-z]' "$dir/help")" -gt 12 -a ! -s "$dir/err" ]

wrong 'ctl without a name' 'which machine' ctl
wrong 'ctl without a command' 'what shall' ctl web
wrong 'unknown command' "'explode'" ctl web explode
wrong 'unknown argument' "'x=1'" ctl web status x=1
wrong 'missing argument' 'id is missing' ctl web disk-remove
wrong 'bad number' 'size=1Q' ctl web disk-resize disk0 1Q
wrong 'bad choice' 'down, up' ctl web net-link net0 sideways
wrong 'argument given twice' 'twice' ctl web disk-limits id=a id=b
wrong 'unknown option' '--turbo' ctl web status --turbo
wrong 'bad time-out' '--timeout' ctl web status --timeout 0
wrong 'no such machine' "'web'" ctl web status
wrong 'no such socket' "$dir/none" ctl "$dir/none" status
wrong 'a name with a slash' '--name' run -k "$dir/kernel" --name a/b
wrong 'an empty name' '--name' run -k "$dir/kernel" --name ''
wrong 'a name with a line feed' '--name' run -k "$dir/kernel" --name $'a\nb'
wrong 'ps with an argument' "'web'" ps web
"$nacelle" ps >"$dir/out" 2>"$dir/err"
check 'ps of nothing' [ "$(wc -l <"$dir/out")" = 1 -a ! -s "$dir/err" -a ! -e "$dir/run" ]

# A machine with a name.
vm --name web
check 'a machine answers' await answers web
check 'its directory and socket are its owner'"'s" [ "$(stat -c %a "$dir/run") $(stat -c %a "$dir/run/web.sock")" = '700 600' ]
wrong 'the same name' "pid $(pid)\\).*nacelle ctl web quit" run -k "$dir/kernel" --name web -d "$dir/none"
"$nacelle" ctl web status --json >"$dir/out" 2>"$dir/err"
check 'status as JSON' python3 -c 'import json, sys; o = json.load(open(sys.argv[1])); sys.exit(o["return"]["name"] != "web")' "$dir/out"
"$nacelle" ctl web net-link net0 up >"$dir/out" 2>"$dir/err"
check 'an error reply' [ "$? $(wc -l <"$dir/err") $(grep -c 'no NIC' "$dir/err") $(wc -c <"$dir/out")" = '1 1 1 0' ]
"$nacelle" ctl "$dir/run/web.sock" pause >"$dir/out" 2>"$dir/err"
check 'by path' grep -q '^state *paused' "$dir/out"
"$nacelle" ctl web quit >"$dir/out" 2>"$dir/err"
check 'quit' [ "$? $(cat "$dir/out" "$dir/err")" = '0 ' ]
check 'quit waits for the end' [ ! -e "$dir/run/web.sock" ]
ended
check 'quit ends with 0' [ "$? $(cat "$dir/vm.err")" = '0 ' ]
check 'nothing is left' [ "$(ls -A "$dir/run")" = .lock ]

# Signals take the socket along; a kill does not, and ps does.
vm --name web
await answers web
kill -TERM "$(pid)"
ended
check 'SIGTERM leaves nothing' [ "$(ls -A "$dir/run")" = .lock ]
vm --name web
await answers web
kill -KILL "$(pid)"
ended 2>/dev/null
check 'SIGKILL leaves a socket' [ -S "$dir/run/web.sock" ]
vm --name web
check 'the next one takes its place' await answers web
kill -KILL "$(pid)"
ended 2>/dev/null
"$nacelle" ps >"$dir/out" 2>"$dir/err"
check 'ps cleans up' [ "$(wc -l <"$dir/out") $(grep -c killed "$dir/err") $(ls -A "$dir/run")" = '1 1 .lock' ]

# Elsewhere, nowhere.
vm --control "$dir/own"
check '--control PATH' await answers "$dir/own"
wrong '--control PATH in use' "$dir/own" run -k "$dir/kernel" --control "$dir/own"
"$nacelle" ctl "$dir/own" quit
ended
check '--control PATH is removed' [ ! -e "$dir/own" ]
wrong '--control without a place' 'nowhere' run -k "$dir/kernel" --control "$dir/nowhere/x"
nasm -f bin -DGUEST=exit -DVALUE=3 -o "$dir/exit" tests/cli/guest.asm
quick() { timeout 20 "$nacelle" run -k "$dir/exit" -m 16M --engine soft --debug-exit 0xf4 "$@" >"$dir/out" 2>"$dir/err" </dev/null; }
quick --control none
check '--control none' [ "$? $(cat "$dir/err")" = '7 ' ]
NACELLE_RUN_DIR=$dir/exit quick
check 'no directory: a warning, and the machine runs' [ "$? $(wc -l <"$dir/err") $(grep -c 'no control socket' "$dir/err")" = '7 1 1' ]
chmod 777 "$dir/run"
quick
check 'a directory of everybody: the same' [ "$? $(grep -c 'other users' "$dir/err")" = '7 1' ]
chmod 700 "$dir/run"
mkdir "$dir/session"
env -u NACELLE_RUN_DIR XDG_RUNTIME_DIR="$dir/session" timeout 20 "$nacelle" run -k "$dir/exit" -m 16M --engine soft --debug-exit 0xf4 </dev/null 2>"$dir/err"
check 'in XDG_RUNTIME_DIR' [ "$? $(cat "$dir/err") $(ls -A "$dir/session/nacelle")" = '7  .lock' ]
