#!/bin/bash
# nacelle doctor on a host that has everything it can have in the box.
# lab: --numa 2 --hugepages 32
nacelle=${NACELLE:-build/nacelle}
failed=0
check() {
    local name=$1
    shift
    if "$@"; then echo "PASS lab/doctor/$name"; else echo "FAIL lab/doctor/$name" && failed=1; fi
}
modprobe -a tun vhost_net
report=/run/doctor.json
# Looks, and keeps a line "name state" for each check.
examine() {
    "$@" doctor --json >$report || return
    python3 -c 'import json,sys; [print(c["name"], c["state"]) for c in json.load(sys.stdin)["checks"]]' <$report >$report.states
}
state() { sed -n "s/^$1 //p" $report.states; }
# KVM's speed is measured, and on a machine with other things to do the box gets no CPU now and then.
for ((i = 0; i < 20; i++)); do
    examine "$nacelle" || exit
    [ "$(state kvm)" != ok ] || break
    sleep 1
done
for name in cpu kvm nested-paging nested-kvm huge-pages-2m numa cgroup userfaultfd io_uring tun vhost-net; do
    check $name [ "$(state $name)" = ok ]
done
check iommu [ "$(state iommu)" = missing ]
check engine grep -q '"engine":.*"kvm"' $report
check words grep -q '^numa  *ok  *2 nodes' <("$nacelle" doctor)
# What holds the module (lab/kvm_pin.c); this script's few VMs go without it.
kill "$(cat /run/lab/kvm_pin)"
for ((i = 0; i < 100; i++)); do
    modprobe -r kvm-amd 2>/dev/null && break
    sleep 0.1
done
examine "$nacelle"
check without-kvm [ "$(state kvm) $(state nested-paging)" = "missing missing" ]
modprobe kvm-amd npt=0
chmod 666 /dev/kvm
examine "$nacelle"
check without-npt [ "$(state nested-paging)" = limited ]
chmod 600 /dev/kvm
examine setpriv --reuid 65534 --clear-groups "$nacelle"
check not-allowed [ "$(state kvm) $(state cgroup)" = "limited limited" ]
modprobe -r kvm-amd
modprobe kvm-amd
chmod 666 /dev/kvm
exit $failed
