/* Model-specific registers: those of struct cpu_state's fields, and the rest as a list. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "vmm/engine/kvm/kvm.h"

#define MSR_TSC 0x10

/* A struct kvm_msrs with room for one. */
struct one_msr {
    uint32_t nmsrs, pad;
    struct kvm_msr_entry entry;
};

int kvm_get_msr(const struct vcpu *v, uint32_t index, uint64_t *value)
{
    struct one_msr m = {.nmsrs = 1, .entry.index = index};
    int r = kvm_ioctl(v->fd, KVM_GET_MSRS, &m);
    *value = m.entry.data;
    return r < 0 ? r : r == 1 ? 0 : -EINVAL;
}

int kvm_set_msr(const struct vcpu *v, uint32_t index, uint64_t value)
{
    struct one_msr m = {.nmsrs = 1, .entry = {.index = index, .data = value}};
    int r = kvm_ioctl(v->fd, KVM_SET_MSRS, &m);
    return r < 0 ? r : r == 1 ? 0 : -EINVAL;
}

/* ---- TSC ---- */

static struct kvm_device_attr tsc_attr(uint64_t *offset)
{
    return (struct kvm_device_attr){
        .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uint64_t)(uintptr_t)offset};
}

int kvm_get_tsc_offset(const struct vcpu *v, uint64_t *offset)
{
    struct kvm_device_attr a = tsc_attr(offset);
    if (v->engine->tsc_offset_attr) return kvm_ioctl(v->fd, KVM_GET_DEVICE_ATTR, &a);
    int r = kvm_get_msr(v, MSR_TSC, offset);
    *offset -= host_tsc();
    return r;
}

/* Left alone where it is right already: KVM recognizes synchronous TSCs by the way in which they are set. */
int kvm_set_tsc_offset(const struct vcpu *v, uint64_t offset)
{
    uint64_t now;
    struct kvm_device_attr a = tsc_attr(&offset);
    if (!v->engine->tsc_offset_attr) return kvm_set_msr(v, MSR_TSC, host_tsc() + offset);
    int r = kvm_get_tsc_offset(v, &now);
    return r < 0 || now == offset ? r : kvm_ioctl(v->fd, KVM_SET_DEVICE_ATTR, &a);
}

/* ---- the list ---- */

/* Registers with fields of their own (here, in the LAPIC's state, in the clock), what the vCPU's CPUID fixes, what belongs to nested
 * virtualization and Hyper-V's interface, which guests aren't offered, and performance counters. */
static bool listed(uint32_t index)
{
    static const struct {
        uint32_t first, last;
    } others[] = {
        {0x10, 0x12},             /* TSC; the paravirtual clock's old numbers */
        {0x1b, 0x1b},             /* APIC base */
        {0x3a, 0x3a},             /* feature control */
        {0x34, 0x34},             /* SMI count */
        {0x8b, 0x8b},             /* microcode */
        {0xc1, 0xce},             /* counters, platform information */
        {0xcf, 0xcf},             /* core capabilities */
        {0x10a, 0x10a},           /* architecture capabilities */
        {0x174, 0x176},           /* SYSENTER */
        {0x186, 0x18d},           /* counters */
        {0x277, 0x277},           /* PAT */
        {0x309, 0x345},           /* counters */
        {0x38d, 0x390},           /* counters */
        {0x480, 0x492},           /* VMX */
        {0x4c1, 0x4c8},           /* counters */
        {0x6e0, 0x6e0},           /* TSC deadline */
        {0x800, 0x8ff},           /* x2APIC */
        {0x40000000, 0x4000ffff}, /* Hyper-V */
        {0x4b564d00, 0x4b564d00}, /* paravirtual wall clock: a write makes KVM write it to memory, once */
        {0xc0000080, 0xc0000084}, /* EFER, STAR, LSTAR, CSTAR, SFMASK */
        {0xc0000100, 0xc0000103}, /* FS, GS, kernel GS base, TSC_AUX */
        {0xc0000104, 0xc0000104}, /* TSC ratio */
        {0xc0010000, 0xc0010007}, /* counters */
        {0xc0010114, 0xc0010117}, /* SVM */
        {0xc0010200, 0xc001020b}, /* counters */
    };
    for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        if (index >= others[i].first && index <= others[i].last) return false;
    return true;
}

/* KVM's list has what it needs to be told, and leaves these out, though it keeps them. */
static const uint32_t memory_types[] = {
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d,
    0x20e, 0x20f, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x2ff,
};

static bool is_memory_type(uint32_t index)
{
    return (index >= 0x200 && index <= 0x20f) || (index >= 0x250 && index <= 0x26f) || index == 0x2ff;
}

/* One at a time, at creation: which of them can be read is found out here, once. */
static void add_msr(struct vcpu *v, uint32_t index)
{
    uint64_t value;
    if (kvm_get_msr(v, index, &value)) return;
    v->msr[v->msrs++] = (struct kvm_msr_entry){.index = index, .data = value};
}

int kvm_msrs_init(struct vcpu *v, struct nerr *e)
{
    const struct kvm_msr_list *l = v->engine->msr_list;
    unsigned types = sizeof(memory_types) / sizeof(memory_types[0]);
    v->msr = calloc(l->nmsrs + types, sizeof(*v->msr));
    if (!v->msr) return nerr_set(e, -ENOMEM, "no memory for vCPU %u", v->id);
    for (unsigned i = 0; i < types; i++) add_msr(v, memory_types[i]);
    for (unsigned i = 0; i < l->nmsrs; i++)
        if (listed(l->indices[i]) && !is_memory_type(l->indices[i])) add_msr(v, l->indices[i]);
    return 0;
}

static struct kvm_msrs *new_table(const struct vcpu *v)
{
    struct kvm_msrs *t = calloc(1, sizeof(*t) + v->msrs * sizeof(t->entries[0]));
    if (!t) return NULL;
    t->nmsrs = v->msrs;
    memcpy(t->entries, v->msr, v->msrs * sizeof(t->entries[0]));
    return t;
}

static int collect(const struct vcpu *v, const struct kvm_msrs *t, struct cpu_state *s)
{
    s->msrs = 0;
    for (unsigned i = 0; i < v->msrs; i++) {
        if (t->entries[i].data == v->msr[i].data) continue;
        if (s->msrs == CPU_MAX_MSRS) return -E2BIG;
        s->msr[s->msrs++] = (struct cpu_msr){.index = t->entries[i].index, .value = t->entries[i].data};
    }
    return 0;
}

int kvm_get_msrs(struct vcpu *v, struct cpu_state *s)
{
    struct kvm_msrs *t = new_table(v);
    if (!t) return -ENOMEM;
    int r = kvm_ioctl(v->fd, KVM_GET_MSRS, t);
    if (r >= 0) r = r == (int)v->msrs ? collect(v, t, s) : -EIO;
    free(t);
    return r;
}

static struct kvm_msr_entry *find(struct kvm_msrs *t, uint32_t index)
{
    for (unsigned i = 0; i < t->nmsrs; i++)
        if (t->entries[i].index == index) return &t->entries[i];
    return NULL;
}

static int merge(struct kvm_msrs *t, const struct cpu_state *s, struct nerr *e)
{
    if (s->msrs > CPU_MAX_MSRS) return nerr_set(e, -EINVAL, "state: %u registers are too many", s->msrs);
    for (unsigned i = 0; i < s->msrs; i++) {
        struct kvm_msr_entry *m = find(t, s->msr[i].index);
        if (!m)
            return nerr_set(e, -ENOTSUP, "state: this host's KVM has no register 0x%x, which the guest uses",
                            s->msr[i].index);
        m->data = s->msr[i].value;
    }
    return 0;
}

/* KVM stops at the first one that it refuses, and says how many it took. One that it refuses to get back even its own initial value is
 * passed over. */
static int write_all(const struct vcpu *v, struct kvm_msrs *t, struct nerr *e)
{
    unsigned done = 0, all = t->nmsrs;
    while (done < all) {
        t->nmsrs = all - done;
        int r = kvm_ioctl(v->fd, KVM_SET_MSRS, t);
        if (r < 0) return nerr_set(e, r, "state: KVM refuses registers: %s", strerror(-r));
        if ((unsigned)r >= all - done) return 0;
        done += (unsigned)r;
        const struct kvm_msr_entry *bad = &t->entries[r];
        if (bad->data != v->msr[done].data)
            return nerr_set(e, -EINVAL, "state: KVM refuses 0x%llx for register 0x%x", (unsigned long long)bad->data,
                            bad->index);
        done++;
        memmove(t->entries, t->entries + r + 1, (all - done) * sizeof(t->entries[0]));
    }
    return 0;
}

int kvm_set_msrs(struct vcpu *v, const struct cpu_state *s, struct nerr *e)
{
    struct kvm_msrs *t = new_table(v);
    if (!t) return nerr_set(e, -ENOMEM, "state: out of memory");
    int r = merge(t, s, e);
    if (!r) r = write_all(v, t, e);
    free(t);
    return r;
}
