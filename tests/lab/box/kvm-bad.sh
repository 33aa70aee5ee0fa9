#!/bin/bash
# What goes wrong with KVM: none there, not allowed, a capability refused, too many vCPUs, no memory, errors of KVM itself. Half of it is pretended (kvm_refuse.c).
# limit: 120
paging=kvm-bad
# shellcheck disable=SC1091
. tests/lab/kvm.sh
kernel=$build/kernels/hello.elf
out=/run/bad.out err=/run/bad.err

# run WORDS...: a run of $kernel; its exit status in $status.
run() {
    timeout 60 "${as[@]}" "$nacelle" run --debug-exit 0xf4 --no-reboot -m 16M -k "$kernel" "$@" </dev/null >$out 2>$err
    status=$?
}
# says NAME STATUS PATTERN: how that ended, and that it said so in one line.
says() {
    mapfile -t lines <$err
    if [ "$status" = "$2" ] && [ ${#lines[@]} = 1 ] && [[ ${lines[0]} =~ $3 ]]; then pass "$1"; else fail "$1" "status $status: ${lines[*]}"; fi
}
# A fall-back says why, in one line; who insists is told what to do.
lacking() { # lacking NAME PATTERN
    run --engine auto
    says "auto: $1" 1 "engine soft, since .*$2"
    run --engine kvm
    says "kvm: $1" 2 "--engine kvm: .*$2"
}
as=(setpriv --reuid 65534 --regid 65534 --clear-groups)
chmod 600 /dev/kvm
lacking "no permission" "no permission to open /dev/kvm; add"
chmod 666 /dev/kvm
as=()
mv /dev/kvm /dev/kvm.away
lacking "no /dev/kvm" "no /dev/kvm; load"
mknod /dev/kvm c 1 3
lacking "another device" "is no KVM"
rm /dev/kvm
mv /dev/kvm.away /dev/kvm

# refusing WHAT: KVM does from here on.
refusing() { as=(env LD_PRELOAD="$PWD/$build/tests/lab/kvm_refuse.so" NACELLE_KVM_REFUSE="$*"); }
refusing nothing 0
run --engine kvm
if [ $status = 1 ] && [ ! -s $err ]; then pass "nothing refused"; else fail "nothing refused" "status $status: $(head -3 $err)"; fi
refusing cap 32 # KVM_CAP_IRQFD
lacking "a capability" "lacks KVM_CAP_IRQFD; update"
refusing vcpus 1
run --engine kvm -c 2
says "too many vCPUs" 2 "--cpus: 2 vCPUs are not possible; this host's KVM allows 1 to 1$"
run --engine kvm -c 1000
says "more vCPUs than there can be" 2 "--cpus"
refusing vcpu 22 # EINVAL
run --engine kvm -c 2
says "a vCPU refused" 2 "--cpus: KVM refuses vCPU 0 of 2; use fewer"
refusing memory 12 # ENOMEM
run --engine kvm
says "memory refused" 2 "KVM refuses [0-9]* MiB of guest memory at 0x[0-9a-f]*: Cannot allocate memory; use a smaller --memory"

# For real: no room for the guest's memory.
as=(bash -c 'ulimit -v 3000000 && exec "$@"' -)
run --engine kvm -m 4G
says "no memory" 2 "memory"

# broken NAME PATTERN: the run ends with 5, a line and the registers.
broken() {
    run --engine kvm
    mapfile -t lines <$err
    if [ $status = 5 ] && [[ ${lines[0]} == *"the kvm engine failed: $2; please report it with the registers below" ]] &&
        [[ ${lines[1]} == "vcpu 0: rip "* && ${lines[*]} == *" cr0 "* && ${lines[*]:1} != *nacelle:* ]]; then
        pass "$1"
    else
        fail "$1" "status $status: ${lines[*]}"
    fi
}
refusing internal 3
broken "internal error" "KVM internal error: 3, unexpected exit during event delivery 0x80000b0e 0x31"
refusing internal 77
broken "internal error of another kind" "KVM internal error: 77, ? 0x80000b0e 0x31"
refusing entry 2147483649
broken "the CPU refuses to enter" "the CPU refuses to enter the guest: reason 0x80000001"
refusing exit 999
broken "an exit of unknown kind" "KVM exit of unknown kind: 999"
refusing run 14 # EFAULT
broken "guest memory out of reach" "KVM cannot reach guest memory: is the host out of memory or huge pages?"
# For real: what KVM cannot emulate; here, code in a place without memory.
as=()
kernel=$build/kernels/hostile_fetch.elf
broken "emulation failure" "KVM cannot emulate what the guest does here"
exit $failed
