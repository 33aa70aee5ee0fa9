# shellcheck shell=bash
# For tests that boot a real kernel. Sourced with the checkout as the current directory.
#
#   NACELLE         the program under test (build/nacelle)
#   NACELLE_ENGINE  its CPU engine (soft)
#   NACELLE_APPEND  more for the guests' kernel command line
#   NACELLE_GUEST_WORK  where it keeps images and output (guest-tests in the build directory)
#   NACELLE_RUNNER  "qemu" runs the same guests under QEMU instead: to prove a test before the engine
guest_runner=${NACELLE_RUNNER:-nacelle}
guest_program=${NACELLE:-build/nacelle}
guest_work=${NACELLE_GUEST_WORK:-${NACELLE_BUILD:-build}/guest-tests}
mkdir -p "$guest_work"

# guest_command RUNNER KERNEL INITRD CPUS MEMORY APPEND: sets the array `guest_argv`.
guest_command() {
    case $1 in
    qemu)
        guest_argv=(qemu-system-x86_64 -accel tcg -cpu max -no-reboot -display none -nodefaults
            -serial stdio -kernel "$2" -initrd "$3" -smp "$4" -m "$5" -append "$6")
        ;;
    nacelle)
        # shellcheck disable=SC2206 # options for all runs, split on purpose
        guest_argv=("$guest_program" run --engine "${NACELLE_ENGINE:-soft}" --no-reboot -k "$2" -i "$3" -c "$4" -m "$5" -a "$6"
            ${NACELLE_RUN_OPTIONS:-})
        ;;
    *) echo "NACELLE_RUNNER is 'nacelle' or 'qemu', not '$1'" >&2 && exit 2 ;;
    esac
}

# guest_run RUNNER OUT SECONDS KERNEL INITRD CPUS MEMORY: runs the image's /test.sh. OUT gets what that
# wrote; OUT.console everything. `guest_append` is added to the kernel's command line. 0 when the script ended with 0, the VMM ended with 0, and the kernel complained of nothing.
guest_run() {
    local runner=$1 out=$2 limit=$3 status end
    shift 3
    guest_command "$runner" "$@" "console=ttyS0 loglevel=1 panic=-1 nacelle.cpus=$3 ${guest_append:-} ${NACELLE_APPEND:-}"
    timeout -k 5 "$limit" "${guest_argv[@]}" </dev/null >"$out.console" 2>"$out.stderr"
    status=$?
    tr -d '\r' <"$out.console" | sed -n '/^@@BEGIN/,/^@@END/p' | grep -v '^@@' >"$out"
    end=$(tr -d '\r' <"$out.console" | sed -n 's/^@@END //p')
    [ $status != 124 ] || echo "$runner: no end after $limit s"
    if [ $status != 0 ] || [ "$end" != 0 ]; then
        echo "$runner: exit status $status, the guest's script: ${end:-did not end}; the end of $out.console:"
        tail -25 "$out.console" | tr -d '\r' | sed 's/^/  | /'
        tail -5 "$out.stderr" | sed 's/^/  ! /'
        return 1
    fi
    # (QEMU's emulated CPUs have time-stamp counters that do not agree.)
    if grep '^@@KERNEL' "$out.console" | { [ "$runner" = qemu ] && grep -vE 'TSC|clocksource|sched_clock' || cat; } | tr -d '\r' | sed 's/^/  | /' | grep .; then
        echo "$runner: the guest's kernel complained"
        return 1
    fi
}

# guest_reference OUT SECONDS KERNEL INITRD CPUS MEMORY: the same under QEMU, kept for the next time.
guest_reference() {
    local out=$1 key kept
    key=$(sha256sum "$3" "$4" | cut -c1-64 | cat - <(echo "$5 $6 $(sha256sum <tests/guest/lib.sh)") | sha256sum | cut -c1-24)
    kept=build/guest/reference/$key
    mkdir -p build/guest/reference
    if [ ! -e "$kept" ]; then
        [ -z "${NACELLE_LAB:-}" ] || { echo "there is no run under QEMU to compare with; guest_prepare makes it, outside of the lab" && return 1; }
        guest_run qemu "$out" "${@:2}" || return 1
        cp "$out" "$kept.$$" && mv "$kept.$$" "$kept"
    fi
    cp "$kept" "$out"
}

# guest_prepare NAME [KERNEL [CPUS]]: all that guest_case needs and the lab, which has no network and little speed, cannot make.
guest_prepare() {
    local script=tests/guest/scripts/$1.sh kernel out=$guest_work/prepare-$1
    kernel=$(tools/kernel.sh "${2:-cloud}") && guest_image "$1" || return
    [ "$(meta "$script" compare yes)" = yes ] || return 0
    guest_reference "$out" "$(meta "$script" limit 120)" "$kernel" "$guest_initrd" "${3:-$(meta "$script" cpus 1)}" \
        "$(meta "$script" memory 512M)"
}

# meta FILE KEY DEFAULT: the value of a line "# KEY: value" near the start of a guest script.
meta() {
    local value
    value=$(sed -n "1,12s/^# $2: *//p" "$1" | head -1)
    echo "${value:-$3}"
}

# guest_image NAME: builds the initramfs of tests/guest/scripts/NAME.sh, sets guest_initrd.
guest_image() {
    local hook=()
    local script=tests/guest/scripts/$1.sh arguments=() package file
    guest_initrd=build/guest/test-$1.cpio
    read -ra hook <<<"$(meta "$script" build "")"
    [ ${#hook[@]} = 0 ] || "${hook[@]}" || return 1
    for package in $(meta "$script" packages ""); do arguments+=(-p "$package"); done
    for file in $(meta "$script" files ""); do arguments+=(-f "$file"); done
    arguments+=(-k "$(meta "$script" kernel cloud)")
    for file in $(meta "$script" modules ""); do arguments+=(-m "$file"); done
    tools/initramfs.sh "${arguments[@]}" -t "$script" "$guest_initrd"
}

# guest_case NAME [KERNEL [CPUS]]: runs a guest script and compares what it wrote with tests/guest/expected/NAME (where
# there is one) and with what QEMU's CPU makes of the same guest. Prints PASS or FAIL.
guest_case() {
    local name=$1 kernel_name=${2:-cloud} script=tests/guest/scripts/$1.sh
    local cpus=${3:-$(meta "$script" cpus 1)} memory limit kernel label out started=$SECONDS
    memory=$(meta "$script" memory 512M) limit=$(meta "$script" limit 120)
    label=guest/$name-$kernel_name-${cpus}cpu
    [ "${NACELLE_ENGINE:-soft}" = soft ] || label+=-$NACELLE_ENGINE
    # Everything takes longer there; but one that hangs must leave time for the others.
    [ -z "${NACELLE_LAB:-}" ] || limit=$((limit * 3))
    [ -z "${NACELLE_LAB:-}" ] || [ -n "${NACELLE_LONG:-}" ] || limit=$((90 * ${NACELLE_SLOWER:-1}))
    out=$guest_work/$name-$kernel_name-$cpus
    guest_problem() {
        echo "FAIL $label ($((SECONDS - started)) s): $1"
        return 1
    }
    kernel=$(tools/kernel.sh "$kernel_name") || { guest_problem "no kernel" && return 1; }
    guest_image "$name" || { guest_problem "no initramfs" && return 1; }
    guest_run "$guest_runner" "$out" "$limit" "$kernel" "$guest_initrd" "$cpus" "$memory" ||
        { guest_problem "the run failed"; return 1; }
    if [ -e "tests/guest/expected/$name" ]; then
        diff "tests/guest/expected/$name" "$out" || { guest_problem "not what was expected"; return 1; }
    fi
    if [ "$guest_runner" != qemu ] && [ "$(meta "$script" compare yes)" = yes ]; then
        guest_reference "$out.qemu" "$limit" "$kernel" "$guest_initrd" "$cpus" "$memory" ||
            { guest_problem "the run under QEMU failed"; return 1; }
        diff "$out.qemu" "$out" || { guest_problem "not as under QEMU (<)"; return 1; }
    fi
    echo "PASS $label ($((SECONDS - started)) s)"
}
