# shellcheck shell=bash
# The KVM engine in the lab; sourced by box/kvm.sh (nested paging) and box/kvm-shadow.sh (KVM's own shadow paging), with $paging set.
#
# The box's CPU is QEMU's emulation, which has faults of its own; guest kernels leave out what it gets wrong (KVM-DIFFERENCES.md).
# Guests get "noxsave" for that reason, "mitigations=off" since the emulated CPU has faults that kernels warn of, and "tsc=reliable"
# since its CPUs' time-stamp counters do not agree.
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

kernels() { # kernels NAME...: those that pass on the soft engine pass here; what a kernel leaves out is told by the runner
    local log
    log=$(mktemp)
    BUILD=$build ENGINE=kvm LIMIT=${LIMIT:-120} tests/kernels/run.sh "$@" >"$log" 2>&1
    grep '^PASS' "$log" | while read -r _ name; do pass "$name"; done
    if grep -q '^FAIL' "$log"; then
        grep -v '^PASS' "$log" | sed 's/^/     /'
        while read -r _ name; do fail "$name" "on the kvm engine"; done < <(grep '^FAIL' "$log")
    fi
    rm -f "$log"
}

# boot CPUS: Debian's cloud kernel, with the script and the results of tests/guest/boot.
boot() {
    local cpus=$1 out=/run/boot-$1 status
    timeout 150 "$nacelle" run --engine kvm --no-reboot -k "$(tools/kernel.sh cloud)" -i build/guest/test-boot.cpio \
        -c "$cpus" -m 512M \
        -a "console=ttyS0 loglevel=1 panic=-1 nacelle.cpus=$cpus noxsave mitigations=off tsc=reliable" \
        </dev/null >$out.console 2>$out.stderr
    status=$?
    tr -d '\r' <$out.console | sed -n '/^@@BEGIN/,/^@@END/p' | grep -v '^@@' >$out
    if [ $status != 0 ] || ! diff tests/guest/expected/boot $out || grep '^@@KERNEL' $out.console; then
        tail -20 $out.console | sed 's/^/  | /'
        sed 's/^/  ! /' $out.stderr
        fail "cloud kernel, $cpus CPU" "status $status"
    else
        pass "cloud kernel, $cpus CPU"
    fi
}
