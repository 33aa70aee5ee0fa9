/* CPUID: what the host's KVM supports, with the topology of this machine (one socket of single-threaded cores, as in the soft engine).
 *
 * Left out: hardware virtualization and encrypted memory (their state is in no struct cpu_state), performance counters, and
 * AMX (its registers do not fit a 4 KiB XSAVE image). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "vmm/engine/kvm/kvm.h"

#define BIT(n) (1u << (n))
#define LEAF_HYPERVISOR 0x40000000u
#define LEAF_TSC 0x40000010u
#define APIC_TIMER_KHZ 1000000u

static struct kvm_cpuid_entry2 *find(struct kvm_cpuid2 *c, uint32_t leaf, uint32_t sub)
{
    for (uint32_t i = 0; i < c->nent; i++) {
        struct kvm_cpuid_entry2 *x = &c->entries[i];
        if (x->function == leaf && (x->index == sub || !(x->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX))) return x;
    }
    return NULL;
}

static void drop(struct kvm_cpuid2 *c, uint32_t leaf)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->nent; i++)
        if (c->entries[i].function != leaf) c->entries[n++] = c->entries[i];
    c->nent = n;
}

static void add(struct kvm_cpuid2 *c, struct kvm_cpuid_entry2 x)
{
    if (c->nent < KVM_CPUID_ENTRIES) c->entries[c->nent++] = x;
}

/* Registers of a leaf that must read as zero; a leaf that isn't there does so anyway, within the highest one's range. */
static void zero(struct kvm_cpuid2 *c, uint32_t leaf)
{
    for (uint32_t i = 0; i < c->nent; i++) {
        struct kvm_cpuid_entry2 *x = &c->entries[i];
        if (x->function == leaf) x->eax = x->ebx = x->ecx = x->edx = 0;
    }
}

/* Bits of the APIC id that number the CPUs. */
static unsigned id_bits(unsigned cpus)
{
    unsigned n = 0;
    while ((1u << n) < cpus) n++;
    return n;
}

static void leaf_1(struct kvm_cpuid2 *c, unsigned id, unsigned cpus)
{
    struct kvm_cpuid_entry2 *x = find(c, 1, 0);
    if (!x) return;
    x->ebx = (x->ebx & 0xff00) | (1u << id_bits(cpus)) << 16 | id << 24;
    x->ecx &= ~(BIT(3) /* MONITOR */ | BIT(5) /* VMX */ | BIT(15) /* PDCM */);
    x->ecx |= BIT(21) /* x2APIC */ | BIT(24) /* TSC deadline */ | BIT(31) /* hypervisor */;
    x->edx = cpus > 1 ? x->edx | BIT(28) : x->edx & ~BIT(28);
}

static void topology(struct kvm_cpuid2 *c, unsigned id, unsigned cpus)
{
    const struct kvm_cpuid_entry2 *first = find(c, 0, 0);
    bool has = first && first->eax >= 0xb;
    drop(c, 0xb);
    drop(c, 0x1f);
    if (first && find(c, 0, 0)->eax >= 0x1f) zero(c, 0x1f);
    if (!has) return;
    struct kvm_cpuid_entry2 thread = {
        .function = 0xb, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .ebx = 1, .ecx = 0x100, .edx = id};
    struct kvm_cpuid_entry2 core = thread;
    core.index = 1;
    core.eax = id_bits(cpus);
    core.ebx = cpus;
    core.ecx = 0x201;
    add(c, thread);
    add(c, core);
}

/* Level 3 is shared by all cores, the others by none. */
static void caches(struct kvm_cpuid2 *c, unsigned cpus)
{
    uint32_t cores = (1u << id_bits(cpus)) - 1;
    for (uint32_t i = 0; i < c->nent; i++) {
        struct kvm_cpuid_entry2 *x = &c->entries[i];
        if ((x->function != 4 && x->function != 0x8000001d) || !(x->eax & 0x1f)) continue;
        uint32_t shared = (x->eax >> 5 & 7) >= 3 ? cores : 0;
        x->eax = (x->eax & ~(0xfffu << 14)) | shared << 14;
        if (x->function == 4) x->eax = (x->eax & 0x03ffffff) | (cores > 63 ? 63 : cores) << 26;
    }
}

static void amd_topology(struct kvm_cpuid2 *c, unsigned id, unsigned cpus)
{
    struct kvm_cpuid_entry2 *x = find(c, 0x80000001, 0);
    bool extended = x && x->ecx & BIT(22); /* TOPOEXT */
    if (x) {
        x->ecx &= ~(BIT(2) /* SVM */ | BIT(23) | BIT(24) | BIT(28) /* performance counters */);
        bool amd = x->edx & BIT(0); /* repeats leaf 1 there */
        x->ecx = amd && cpus > 1 ? x->ecx | BIT(1) /* CMP_LEGACY */ : x->ecx & ~BIT(1);
    }
    x = find(c, 0x80000008, 0);
    if (x) x->ecx = (cpus - 1) | id_bits(cpus) << 12;
    x = find(c, 0x8000001e, 0);
    if (x && extended) {
        x->eax = id;
        x->ebx = id & 0xff;
        x->ecx = x->edx = 0;
    }
}

static void leave_out(struct kvm_cpuid2 *c)
{
    static const uint32_t leaves[] = {0xa, 0x12, 0x14, 0x1d, 0x1e, 0x8000000a, 0x8000001f, 0x80000022};
    for (unsigned i = 0; i < sizeof(leaves) / sizeof(leaves[0]); i++) zero(c, leaves[i]);
    struct kvm_cpuid_entry2 *x = find(c, 7, 0);
    if (x) {
        x->ebx &= ~(BIT(2) /* SGX */ | BIT(25) /* processor trace */);
        x->ecx &= ~BIT(30);                       /* SGX_LC */
        x->edx &= ~(BIT(22) | BIT(24) | BIT(25)); /* AMX */
    }
    x = find(c, 0xd, 0);
    if (x) x->eax &= ~(BIT(17) | BIT(18));
    for (uint32_t i = 17; i <= 18; i++) {
        x = find(c, 0xd, i);
        if (x) x->eax = x->ebx = x->ecx = x->edx = 0;
    }
}

/* The TSC's and the APIC timer's frequency, so that guests need not measure them. */
static void frequencies(struct kvm_cpuid2 *c, uint32_t tsc_khz)
{
    struct kvm_cpuid_entry2 *x = find(c, LEAF_HYPERVISOR, 0);
    if (!x || !tsc_khz) return;
    x->eax = LEAF_TSC;
    drop(c, LEAF_TSC);
    add(c, (struct kvm_cpuid_entry2){.function = LEAF_TSC, .eax = tsc_khz, .ebx = APIC_TIMER_KHZ});
}

void kvm_cpuid_make(struct kvm_cpuid2 *c, unsigned id, unsigned cpus, uint32_t tsc_khz)
{
    leaf_1(c, id, cpus);
    leave_out(c);
    caches(c, cpus);
    amd_topology(c, id, cpus);
    topology(c, id, cpus);
    frequencies(c, tsc_khz);
}

static struct kvm_cpuid2 *new_cpuid(void)
{
    struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + KVM_CPUID_ENTRIES * sizeof(c->entries[0]));
    if (c) c->nent = KVM_CPUID_ENTRIES;
    return c;
}

int kvm_cpuid_init(struct engine *g, struct nerr *e)
{
    g->cpuid = new_cpuid();
    if (!g->cpuid) return nerr_set(e, -ENOMEM, "out of memory for the kvm engine");
    int r = kvm_ioctl(g->kvm_fd, KVM_GET_SUPPORTED_CPUID, g->cpuid);
    if (r < 0) return nerr_set(e, r, "KVM does not say which CPU features it supports: %s", strerror(-r));
    if (g->cpuid->nent > KVM_CPUID_ENTRIES) return nerr_set(e, -EIO, "KVM lists too many CPU features");
    return 0;
}

int kvm_cpuid_vcpu(struct vcpu *v, struct nerr *e)
{
    const struct engine *g = v->engine;
    struct kvm_cpuid2 *c = new_cpuid();
    if (!c) return nerr_set(e, -ENOMEM, "no memory for vCPU %u", v->id);
    memcpy(c, g->cpuid, sizeof(*c) + g->cpuid->nent * sizeof(c->entries[0]));
    int khz = kvm_ioctl_n(v->fd, KVM_GET_TSC_KHZ, 0);
    kvm_cpuid_make(c, v->id, g->vcpus, khz > 0 ? (uint32_t)khz : (uint32_t)(host_tsc_hz() / 1000));
    int r = kvm_ioctl(v->fd, KVM_SET_CPUID2, c);
    free(c);
    return r < 0 ? nerr_set(e, r, "KVM refuses the CPU features that it offers: %s", strerror(-r)) : 0;
}
