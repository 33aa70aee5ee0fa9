/* The KVM engine behind engine.h: a VM's life, its memory, its clock. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/engine/kvm/kvm.h"

/* ---- memory ---- */

int kvm_memory_slot(const struct engine *g, unsigned i, bool log)
{
    const struct memory_slot *s = &g->memory->slot[i];
    struct kvm_userspace_memory_region r = {
        .slot = i,
        .flags = (s->readonly ? KVM_MEM_READONLY : 0) | (log ? KVM_MEM_LOG_DIRTY_PAGES : 0),
        .guest_phys_addr = s->base.v,
        .memory_size = s->size,
        .userspace_addr = (uintptr_t)s->host,
    };
    return kvm_ioctl(g->vm_fd, KVM_SET_USER_MEMORY_REGION, &r);
}

static int map_memory(const struct engine *g, struct nerr *e)
{
    for (unsigned i = 0; i < g->memory->slots; i++) {
        int r = kvm_memory_slot(g, i, false);
        if (r < 0)
            return nerr_set(e, r, "KVM refuses %llu MiB of guest memory at 0x%llx: %s; use a smaller --memory",
                            (unsigned long long)(g->memory->slot[i].size >> 20),
                            (unsigned long long)g->memory->slot[i].base.v, strerror(-r));
    }
    return 0;
}

/* ---- life ---- */

static void kvm_destroy(struct engine *g)
{
    if (!g) return;
    for (unsigned i = 0; i < ENGINE_MAX_VCPUS; i++)
        if (g->vcpu[i]) kvm_vcpu_destroy(g->vcpu[i]);
    kvm_dirty_fini(g);
    kvm_irq_fini(g);
    if (g->vm_fd >= 0) kvm_sys->close(g->vm_fd);
    if (g->kvm_fd >= 0) kvm_sys->close(g->kvm_fd);
    free(g->cpuid);
    free(g->msr_list);
    free(g);
}

static int check_vcpus(const struct engine *g, struct nerr *e)
{
    int max = kvm_ioctl_n(g->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
    if (max <= 0) max = 4; /* what the interface promises where it doesn't say */
    if (max > ENGINE_MAX_VCPUS) max = ENGINE_MAX_VCPUS;
    if (g->vcpus < 1 || g->vcpus > (unsigned)max)
        return nerr_set(e, -EINVAL, "--cpus: %u vCPUs are not possible; this host's KVM allows 1 to %d", g->vcpus, max);
    return 0;
}

static int list_msrs(struct engine *g, struct nerr *e)
{
    g->msr_list = calloc(1, sizeof(*g->msr_list) + KVM_MSR_LIST_MAX * sizeof(uint32_t));
    if (!g->msr_list) return nerr_set(e, -ENOMEM, "out of memory for the kvm engine");
    g->msr_list->nmsrs = KVM_MSR_LIST_MAX;
    int r = kvm_ioctl(g->kvm_fd, KVM_GET_MSR_INDEX_LIST, g->msr_list);
    return r < 0 ? nerr_set(e, r, "KVM does not list its registers: %s", strerror(-r)) : 0;
}

static int set_up(struct engine *g, struct nerr *e)
{
    int r = check_vcpus(g, e);
    if (r) return r;
    g->vm_fd = kvm_create_vm(g->kvm_fd, e);
    if (g->vm_fd < 0) return g->vm_fd;
    uint64_t identity = KVM_IDENTITY_MAP;
    r = kvm_ioctl(g->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
    if (r >= 0) r = kvm_ioctl_n(g->vm_fd, KVM_SET_TSS_ADDR, KVM_TSS);
    if (r < 0) return nerr_set(e, r, "KVM refuses its own pages: %s; see the host's kernel log", strerror(-r));
    r = kvm_irq_init(g, e);
    if (!r) r = map_memory(g, e);
    if (!r) r = kvm_cpuid_init(g, e);
    if (!r) r = list_msrs(g, e);
    if (!r) r = kvm_signals_init(e);
    if (r) return r;
    /* No performance counters: their state is no vCPU's we could move, and what counts them is not guest-only. */
    struct kvm_enable_cap pmu = {.cap = KVM_CAP_PMU_CAPABILITY, .args = {KVM_PMU_CAP_DISABLE}};
    if (kvm_ioctl_n(g->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_PMU_CAPABILITY) > 0)
        (void)kvm_ioctl(g->vm_fd, KVM_ENABLE_CAP, &pmu);
    g->ring_bytes = (uint32_t)kvm_dirty_init(g);
    r = kvm_ioctl_n(g->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (r < (int)sizeof(struct kvm_run)) return nerr_set(e, -EINVAL, "KVM's vCPUs have no shared page");
    g->run_size = (size_t)r;
    return 0;
}

static int kvm_create(const struct engine_config *cfg, struct engine **out, struct nerr *e)
{
    struct engine *g = calloc(1, sizeof(*g));
    if (!g) return nerr_set(e, -ENOMEM, "out of memory for the kvm engine");
    g->memory = cfg->memory;
    g->vcpus = cfg->vcpus;
    g->vm_fd = -1;
    pthread_mutex_init(&g->irq_lock, NULL);
    pthread_mutex_init(&g->dirty_lock, NULL);
    g->kvm_fd = kvm_open_checked(e);
    int r = g->kvm_fd < 0 ? g->kvm_fd : set_up(g, e);
    if (r) {
        kvm_destroy(g);
        return r;
    }
    *out = g;
    return 0;
}

/* ---- clock ---- */

static int kvm_get_clock(struct engine *g, uint64_t *ns)
{
    struct kvm_clock_data c = {0};
    int r = kvm_ioctl(g->vm_fd, KVM_GET_CLOCK, &c);
    *ns = c.clock;
    return r < 0 ? r : 0;
}

static int kvm_set_clock(struct engine *g, uint64_t ns)
{
    struct kvm_clock_data c = {.clock = ns};
    int r = kvm_ioctl(g->vm_fd, KVM_SET_CLOCK, &c);
    return r < 0 ? r : 0;
}

/* ---- the rest ---- */

/* Nobody calls it: interrupts are the kernel's, who wakes vCPUs itself. */
static void kvm_interrupt(struct vcpu *v)
{
    (void)v;
}

static unsigned kvm_stats(struct vcpu *v, struct engine_stat *s, unsigned max)
{
    const struct engine_stat all[] = {
        {"KVM_RUN calls", v->stats.entries},
        {"kicks", v->stats.kicks_seen},
        {"exits: dirty ring full", v->stats.rings_full},
    };
    unsigned n = sizeof(all) / sizeof(all[0]);
    if (n > max) n = max;
    memcpy(s, all, n * sizeof(all[0]));
    return n;
}

const struct engine_ops engine_kvm = {
    .name = "kvm",
    .probe = kvm_probe,
    .create = kvm_create,
    .destroy = kvm_destroy,
    .vcpu_create = kvm_vcpu_create,
    .get_state = kvm_get_state,
    .set_state = kvm_set_state,
    .run = kvm_vcpu_run,
    .kick = kvm_vcpu_kick,
    .interrupt = kvm_interrupt,
    .stats = kvm_stats,
    .memory_written = kvm_memory_written,
    .irq = &kvm_irq_ops,
    .ioeventfd_add = kvm_ioeventfd_add,
    .ioeventfd_remove = kvm_ioeventfd_remove,
    .get_clock = kvm_get_clock,
    .set_clock = kvm_set_clock,
    .dirty_track = kvm_dirty_track,
    .dirty_collect = kvm_dirty_collect,
};
