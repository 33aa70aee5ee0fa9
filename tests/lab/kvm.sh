# shellcheck shell=bash
# The KVM engine in the lab; sourced by box/kvm.sh (nested paging) and box/kvm-shadow.sh (KVM's own shadow paging), with $paging set.
#
# The box's CPU is QEMU's emulation, which has faults of its own; guest kernels leave out what it gets wrong (KVM-DIFFERENCES.md).
# Guests get "noxsave" for that reason, "mitigations=off" since the emulated CPU has faults that kernels warn of, and "tsc=reliable"
# since its CPUs' time-stamp counters do not agree.
# shellcheck disable=SC1091
. tests/lab/again.sh
nacelle=${NACELLE:-build/nacelle}
build=${NACELLE_BUILD:-build}
paging=${paging:?}
# shellcheck disable=SC2034 # for whoever sources this
failed=0
pass() { echo "PASS lab/$paging/$1"; }
fail() {
    echo "FAIL lab/$paging/$1: $2"
    # shellcheck disable=SC2034
    failed=1
}

# On a machine with other things to do everything takes so many times longer (tests/lab/run.sh).
slower=${NACELLE_SLOWER:-1}

# where_is PID: what a VMM that does not end is at: its threads, its vCPUs' exits by RIP, and whether these go on.
where_is() {
    local task file
    for task in /proc/"$1"/task/*; do
        echo "$(cat "$task/comm") $(cut -d' ' -f3,14,15 "$task/stat") in $(cat "$task/wchan")"
    done
    for file in /sys/kernel/debug/kvm/"$1"-*/{exits,halt_exits,irq_exits,io_exits,mmio_exits}; do echo "${file##*/} $(cat "$file")"; done
    echo 1 >/sys/kernel/tracing/events/kvm/enable
    sleep 3
    echo 0 >/sys/kernel/tracing/events/kvm/enable
    tail -40 /sys/kernel/tracing/trace
}

# tell WHAT: a runner's lines "PASS name" and "FAIL name" under this group's name, each as it comes, and a failure's other lines in one
# piece behind it, since two runners may be at work side by side. The runner's last line is its sum; 1 when something failed or that did not come.
# (Not awk: Debian's reads ahead.)
tell() {
    local line verdict='' lines='' bad=0 sum='' bad_names=()
    while IFS= read -r line; do
        case $line in
        PASS\ * | FAIL\ *)
            printf %s "$verdict$lines"
            [ "${line:0:4}" = PASS ] || bad_names+=("${line:5}")
            verdict="${line:0:5}lab/$paging/${line:5}"$'\n' lines=
            if [ "${line:0:4}" = FAIL ]; then bad=1; else printf %s "$verdict" && verdict=; fi
            ;;
        *" passed, "*" failed" | "engines: "*" failed") sum=$line ;;
        *) lines+="     $line"$'\n' ;;
        esac
    done
    printf %s "$verdict$lines"
    [ ${#bad_names[@]} = 0 ] || printf '%s\n' "${bad_names[@]%%[ :]*}" >"$failures"
    case $bad$sum in
    1* | 0*" 0 failed") ;;
    0) bad=1 && echo "FAIL lab/$paging/$1: the runner did not get to its end" ;;
    *) bad=1 && echo "FAIL lab/$paging/$1: $sum" ;;
    esac
    return $bad
}

# kernels NAME...: those that pass on the soft engine pass here; what a kernel leaves out is told by the runner.
kernels() {
    local failures=/run/failures-$BASHPID
    printf '%s\n' "$@" >"$failures"
    again kernels_left
}
# Of the kernels named in $failures; what fails stays there.
kernels_left() {
    local names
    mapfile -t names <"$failures"
    BUILD=$build ENGINE=kvm LIMIT=$((60 * slower)) tests/kernels/run.sh "${names[@]}" 2>&1 | tell kernels
}

# engines ENGINES...: guests that change engines, and clocks after pauses.
engines() {
    local failures=/run/failures-$BASHPID
    again engines_once "$@"
}
engines_once() {
    NACELLE_BUILD=$build tests/engine/run.sh "$@" 2>&1 | tell engines
}

# On an idle machine a boot takes 10 seconds. One that hangs must leave time for all the others.
boot_limit=$((75 * slower))
[ $boot_limit -le 300 ] || boot_limit=300

# boot CPUS: Debian's cloud kernel, with the script and the results of tests/guest/boot.
# shellcheck disable=SC2034
boot() {
    again boot_once "$1" || failed=1
}
boot_once() {
    local cpus=$1 out=/run/boot-$1 status pid i
    "$nacelle" run --engine kvm --no-reboot -k "$(tools/kernel.sh cloud)" -i build/guest/test-boot.cpio \
        -c "$cpus" -m 512M \
        -a "console=ttyS0 loglevel=1 panic=-1 nacelle.cpus=$cpus noxsave mitigations=off tsc=reliable" \
        </dev/null >$out.console 2>$out.stderr &
    pid=$!
    for ((i = 0; i < boot_limit; i++)); do
        kill -0 $pid 2>/dev/null || break
        sleep 1
    done
    if kill -0 $pid 2>/dev/null; then
        where_is $pid | sed 's/^/  ? /'
        kill -KILL $pid
    fi
    wait $pid
    status=$?
    tr -d '\r' <$out.console | sed -n '/^@@BEGIN/,/^@@END/p' | grep -v '^@@' >$out
    if [ $status != 0 ] || ! diff tests/guest/expected/boot $out || grep '^@@KERNEL' $out.console; then
        tail -20 $out.console | sed 's/^/  | /'
        sed 's/^/  ! /' $out.stderr
        fail "cloud kernel, $cpus CPU" "status $status"
        return 1
    else
        pass "cloud kernel, $cpus CPU"
    fi
}
