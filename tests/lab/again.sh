# shellcheck shell=bash
# again COMMAND...: what fails is done again, twice at most, and told as "AGAIN" instead of "FAIL" so long. For what runs in KVM's guests in the box, since
# QEMU's emulation loses changes of code now and then (docs/lab.md, Limits); what is wrong with us is wrong three times.
again() {
    local status
    for _ in 1 2; do
        "$@" 2>&1 | sed -u 's/^FAIL /AGAIN /'
        status=${PIPESTATUS[0]}
        [ "$status" != 0 ] || return 0
    done
    "$@"
}
