# shellcheck shell=bash
# The KVM engine in the lab; sourced by box/kvm.sh (nested paging) and box/kvm-shadow.sh (KVM's own shadow paging), with $paging set.
#
# The box's CPU is QEMU's emulation, which has faults of its own. Guest kernels that need what it gets wrong (alignment checks, exact
# error codes, XSETBV under KVM, ...) are left out here; QEMU's own use of KVM fails on the same ones in the same way.
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

kernels() { # kernels NAME...: those that pass on the soft engine pass here
    BUILD=$build ENGINE=kvm LIMIT=60 tests/kernels/run.sh "$@" >/run/kernels.log 2>&1
    grep '^PASS' /run/kernels.log | while read -r _ name; do pass "$name"; done
    if grep -q '^FAIL' /run/kernels.log; then
        grep -v '^PASS' /run/kernels.log | sed 's/^/     /'
        while read -r _ name; do fail "$name" "on the kvm engine"; done < <(grep '^FAIL' /run/kernels.log)
    fi
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
