/* A /dev/kvm for tests on hosts without one: keeps what it is told, fails where it is asked to, and runs a function instead of a guest. */
#ifndef TESTS_UNIT_KVM_FAKE_H
#define TESTS_UNIT_KVM_FAKE_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "vmm/engine/kvm/kvm.h"

#define FAKE_KVM 1000
#define FAKE_VM 1001
#define FAKE_VCPU 1010 /* + id */
#define FAKE_RUN_SIZE (3 * 4096)
#define FAKE_MSRS 64
#define FAKE_RING 4096

struct fake_vcpu {
    struct kvm_run *run;
    struct kvm_dirty_gfn *ring;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_debugregs debug;
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp;
    struct kvm_xcrs xcrs;
    uint8_t xsave[4096];
    struct kvm_lapic_state lapic;
    struct kvm_msr_entry msr[FAKE_MSRS];
    unsigned msrs, cpuid_entries;
    uint64_t tsc_offset;
    struct kvm_cpuid_entry2 cpuid[KVM_CPUID_ENTRIES];
};

struct fake_kvm {
    int open_error, version, missing_cap, max_vcpus;
    unsigned long fail_request; /* fails with fail_error */
    int fail_error;
    uint32_t refused_msr, absent_msr;
    bool no_ring, no_tsc_attr;
    int (*on_run)(struct fake_vcpu *v, unsigned run);
    unsigned runs, opened, closed;
    struct fake_vcpu vcpu[4];
    struct kvm_userspace_memory_region slot[4];
    struct kvm_irq_routing_entry route[128];
    unsigned routes, lines_set, msis, irqfds, ioeventfds, ring_resets;
    struct kvm_irqfd irqfd;
    struct kvm_ioeventfd ioeventfd;
    struct kvm_msi msi;
    uint32_t line;
    struct kvm_irqchip chip[3];
    uint64_t clock;
};
static struct fake_kvm fake;

static int fake_open(void)
{
    if (fake.open_error) return -fake.open_error;
    fake.opened++;
    return FAKE_KVM;
}

static void fake_close(int fd)
{
    (void)fd;
    fake.closed++;
}

static void *fake_mmap(int fd, size_t len, off_t offset)
{
    struct fake_vcpu *v = &fake.vcpu[fd - FAKE_VCPU];
    void *p = calloc(1, len);
    if (offset)
        v->ring = p;
    else
        v->run = p;
    return p;
}

static void fake_munmap(void *p, size_t len)
{
    (void)len;
    free(p);
}

static struct kvm_msr_entry *fake_msr(struct fake_vcpu *v, uint32_t index)
{
    for (unsigned i = 0; i < v->msrs; i++)
        if (v->msr[i].index == index) return &v->msr[i];
    if (v->msrs == FAKE_MSRS || index == fake.absent_msr) return NULL;
    v->msr[v->msrs] = (struct kvm_msr_entry){.index = index};
    return &v->msr[v->msrs++];
}

static int fake_msrs(struct fake_vcpu *v, struct kvm_msrs *t, bool set)
{
    for (unsigned i = 0; i < t->nmsrs; i++) {
        struct kvm_msr_entry *m = fake_msr(v, t->entries[i].index);
        if (!m || (set && t->entries[i].index == fake.refused_msr && t->entries[i].data)) return (int)i;
        if (set)
            m->data = t->entries[i].data;
        else
            t->entries[i].data = m->data;
    }
    return (int)t->nmsrs;
}

static int fake_supported_cpuid(struct kvm_cpuid2 *c)
{
    const struct kvm_cpuid_entry2 list[] = {
        {.function = 0, .eax = 0x1f, .ebx = 0x756e6547},
        {.function = 1, .ebx = 0x00100800, .ecx = 1 << 5 | 1 << 3, .edx = 1 << 0},
        {.function = 4, .index = 0, .flags = 1, .eax = 0x7c004121},
        {.function = 4, .index = 3, .flags = 1, .eax = 0x7c0fc163},
        {.function = 7, .flags = 1, .ebx = 1 << 2 | 1, .edx = 1 << 24 | 1 << 4},
        {.function = 0xa, .eax = 0x07300402},
        {.function = 0xb, .index = 0, .flags = 1, .eax = 1, .ebx = 2, .ecx = 0x100},
        {.function = 0xd, .flags = 1, .eax = 0x60007},
        {.function = 0x40000000, .eax = 0x40000001, .ebx = 0x4b4d564b},
        {.function = 0x40000001, .eax = 0x1000003},
        {.function = 0x80000001, .ecx = 1 << 2 | 1 << 22, .edx = 1 << 29},
        {.function = 0x80000008, .eax = 0x3028},
    };
    c->nent = sizeof(list) / sizeof(list[0]);
    memcpy(c->entries, list, sizeof(list));
    return 0;
}

static int fake_extension(int cap)
{
    if (cap == fake.missing_cap) return 0;
    switch (cap) {
    case KVM_CAP_MAX_VCPUS: return fake.max_vcpus;
    case KVM_CAP_DIRTY_LOG_RING_ACQ_REL: return 0;
    case KVM_CAP_DIRTY_LOG_RING: return fake.no_ring ? 0 : 1 << 20;
    default: return 1;
    }
}

static int fake_system(unsigned long request, void *p, uintptr_t n)
{
    static const uint32_t msrs[] = {0x10, 0x174, 0x1a0, 0x3b, 0xc0000081, 0x4b564d01, 0x200};
    struct kvm_msr_list *l = p;
    switch (request) {
    case KVM_GET_API_VERSION: return fake.version;
    case KVM_CHECK_EXTENSION: return fake_extension((int)n);
    case KVM_CREATE_VM: return FAKE_VM;
    case KVM_GET_VCPU_MMAP_SIZE: return FAKE_RUN_SIZE;
    case KVM_GET_SUPPORTED_CPUID: return fake_supported_cpuid(p);
    case KVM_GET_MSR_INDEX_LIST:
        l->nmsrs = sizeof(msrs) / sizeof(msrs[0]);
        memcpy(l->indices, msrs, sizeof(msrs));
        return 0;
    default: fail_msg("unexpected system ioctl 0x%lx", request); return -ENOTTY;
    }
}

static int fake_vm(unsigned long request, void *p, uintptr_t n)
{
    struct kvm_userspace_memory_region *r = p;
    struct kvm_irq_routing *t = p;
    struct kvm_irq_level *l = p;
    struct kvm_irqchip *c = p;
    switch (request) {
    case KVM_CHECK_EXTENSION: return fake_extension((int)n);
    case KVM_CREATE_VCPU:
        fake.vcpu[n].mp.mp_state = n ? KVM_MP_STATE_UNINITIALIZED : KVM_MP_STATE_RUNNABLE;
        return FAKE_VCPU + (int)n;
    case KVM_SET_USER_MEMORY_REGION: fake.slot[r->slot] = *r; return 0;
    case KVM_SET_GSI_ROUTING:
        fake.routes = t->nr;
        memcpy(fake.route, t->entries, t->nr * sizeof(t->entries[0]));
        return 0;
    case KVM_IRQ_LINE:
        fake.lines_set++;
        fake.line = l->level ? fake.line | 1u << l->irq : fake.line & ~(1u << l->irq);
        return 0;
    case KVM_SIGNAL_MSI: fake.msis++, fake.msi = *(struct kvm_msi *)p; return 1;
    case KVM_IRQFD: fake.irqfds++, fake.irqfd = *(struct kvm_irqfd *)p; return 0;
    case KVM_IOEVENTFD: fake.ioeventfds++, fake.ioeventfd = *(struct kvm_ioeventfd *)p; return 0;
    case KVM_GET_IRQCHIP: *c = fake.chip[c->chip_id]; return 0;
    case KVM_SET_IRQCHIP: fake.chip[c->chip_id] = *c; return 0;
    case KVM_RESET_DIRTY_RINGS: fake.ring_resets++; return 1;
    case KVM_GET_CLOCK: ((struct kvm_clock_data *)p)->clock = fake.clock; return 0;
    case KVM_SET_CLOCK: fake.clock = ((struct kvm_clock_data *)p)->clock; return 0;
    case KVM_GET_DIRTY_LOG: memset(((struct kvm_dirty_log *)p)->dirty_bitmap, 0x81, 1); return 0;
    case KVM_CREATE_IRQCHIP:
    case KVM_SET_TSS_ADDR:
    case KVM_SET_IDENTITY_MAP_ADDR:
    case KVM_ENABLE_CAP: return 0;
    default: fail_msg("unexpected VM ioctl 0x%lx", request); return -ENOTTY;
    }
}

static int fake_device_attr(struct fake_vcpu *v, unsigned long request, const struct kvm_device_attr *a)
{
    if (fake.no_tsc_attr) return -ENXIO;
    if (request == KVM_GET_DEVICE_ATTR) *(uint64_t *)(uintptr_t)a->addr = v->tsc_offset;
    if (request == KVM_SET_DEVICE_ATTR) v->tsc_offset = *(uint64_t *)(uintptr_t)a->addr;
    return 0;
}

#define FAKE_KEEP(get, set, field)                              \
    case get: memcpy(p, &v->field, sizeof(v->field)); return 0; \
    case set: memcpy(&v->field, p, sizeof(v->field)); return 0

static int fake_vcpu_ioctl(struct fake_vcpu *v, unsigned long request, void *p)
{
    const struct kvm_cpuid2 *c = p;
    switch (request) {
        FAKE_KEEP(KVM_GET_REGS, KVM_SET_REGS, regs);
        FAKE_KEEP(KVM_GET_SREGS, KVM_SET_SREGS, sregs);
        FAKE_KEEP(KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, debug);
        FAKE_KEEP(KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, events);
        FAKE_KEEP(KVM_GET_MP_STATE, KVM_SET_MP_STATE, mp);
        FAKE_KEEP(KVM_GET_XCRS, KVM_SET_XCRS, xcrs);
        FAKE_KEEP(KVM_GET_XSAVE, KVM_SET_XSAVE, xsave);
        FAKE_KEEP(KVM_GET_LAPIC, KVM_SET_LAPIC, lapic);
    case KVM_GET_MSRS: return fake_msrs(v, p, false);
    case KVM_SET_MSRS: return fake_msrs(v, p, true);
    case KVM_SET_CPUID2:
        v->cpuid_entries = c->nent;
        memcpy(v->cpuid, c->entries, c->nent * sizeof(c->entries[0]));
        return 0;
    case KVM_GET_TSC_KHZ: return 2000000;
    case KVM_HAS_DEVICE_ATTR:
    case KVM_GET_DEVICE_ATTR:
    case KVM_SET_DEVICE_ATTR: return fake_device_attr(v, request, p);
    case KVM_RUN:
        if (v->run->immediate_exit) return -EINTR;
        return fake.on_run ? fake.on_run(v, fake.runs++) : -EIO;
    default: fail_msg("unexpected vCPU ioctl 0x%lx", request); return -ENOTTY;
    }
}

static int fake_ioctl(int fd, unsigned long request, uintptr_t arg)
{
    if (request == fake.fail_request) return -fake.fail_error;
    if (fd == FAKE_KVM) return fake_system(request, (void *)arg, arg);
    if (fd == FAKE_VM) return fake_vm(request, (void *)arg, arg);
    return fake_vcpu_ioctl(&fake.vcpu[fd - FAKE_VCPU], request, (void *)arg);
}

static const struct kvm_sys fake_sys = {fake_open, fake_ioctl, fake_mmap, fake_munmap, fake_close};

/* Before each test. */
static int fake_setup(void **state)
{
    (void)state;
    memset(&fake, 0, sizeof(fake));
    fake.version = 12;
    fake.missing_cap = -1;
    fake.max_vcpus = 4;
    kvm_sys = &fake_sys;
    return 0;
}

static int fake_teardown(void **state)
{
    (void)state;
    kvm_sys = &kvm_sys_host;
    return 0;
}

#define FAKE_TEST(f) cmocka_unit_test_setup_teardown(f, fake_setup, fake_teardown)

#endif
