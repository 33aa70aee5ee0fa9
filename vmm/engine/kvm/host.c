/* Is this host's KVM there, may it be used, has it what is needed? */
#include <errno.h>
#include <string.h>

#include "vmm/engine/kvm/kvm.h"

#define API_VERSION 12
#define CREATE_TRIES 100

/* All are older than Linux 5.0; a module (or an outer hypervisor's filter) that refuses one is refused here and not in the middle of a run. */
static const struct {
    int cap;
    const char *name;
} needed[] = {
    {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
    {KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR"},
    {KVM_CAP_SET_IDENTITY_MAP_ADDR, "KVM_CAP_SET_IDENTITY_MAP_ADDR"},
    {KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
    {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
    {KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"},
    {KVM_CAP_IRQFD, "KVM_CAP_IRQFD"},
    {KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"},
    {KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"},
    {KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
    {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
    {KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},
    {KVM_CAP_XSAVE, "KVM_CAP_XSAVE"},
    {KVM_CAP_XCRS, "KVM_CAP_XCRS"},
    {KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK"},
    {KVM_CAP_TSC_DEADLINE_TIMER, "KVM_CAP_TSC_DEADLINE_TIMER"},
    {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
};

static int open_failed(int r, struct nerr *e)
{
    switch (r) {
    case -ENOENT:
    case -ENXIO:
    case -ENODEV:
        return nerr_set(e, r,
                        "this host has no /dev/kvm; load kvm_intel or kvm_amd, turn virtualization on in its firmware "
                        "(or nested virtualization, where it is a VM itself)");
    case -EACCES:
    case -EPERM:
        return nerr_set(e, r, "no permission to open /dev/kvm; add this user to the group kvm and log in anew");
    default: return nerr_set(e, r, "/dev/kvm cannot be opened: %s", strerror(-r));
    }
}

static int check(int fd, struct nerr *e)
{
    int version = kvm_ioctl_n(fd, KVM_GET_API_VERSION, 0);
    if (version < 0)
        return nerr_set(e, version, "/dev/kvm is no KVM (%s); load kvm_intel or kvm_amd", strerror(-version));
    if (version != API_VERSION)
        return nerr_set(e, -ENOTSUP, "/dev/kvm speaks version %d of its interface, not %d; use another host kernel",
                        version, API_VERSION);
    for (unsigned i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
        if (kvm_ioctl_n(fd, KVM_CHECK_EXTENSION, (uintptr_t)needed[i].cap) <= 0)
            return nerr_set(e, -ENOTSUP, "this host's KVM lacks %s; update the host's kernel", needed[i].name);
    return 0;
}

int kvm_open_checked(struct nerr *e)
{
    int fd = kvm_sys->open();
    if (fd < 0) return open_failed(fd, e);
    int r = check(fd, e);
    if (!r) return fd;
    kvm_sys->close(fd);
    return r;
}

int kvm_create_vm(int kvm_fd, struct nerr *e)
{
    int r = -EINTR;
    for (unsigned i = 0; i < CREATE_TRIES && r == -EINTR; i++) r = kvm_ioctl_n(kvm_fd, KVM_CREATE_VM, 0);
    if (r >= 0) return r;
    if (r == -EBUSY)
        return nerr_set(e, r, "KVM cannot create a VM: another hypervisor holds the CPU's virtualization; stop it");
    return nerr_set(e, r, "KVM cannot create a VM: %s; see the host's kernel log", strerror(-r));
}
