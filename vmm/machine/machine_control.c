/* Pause and resume, and changes to devices of a running machine. */
#include "vmm/machine/machine_control.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "vmm/machine/machine_internal.h"

/* A disk that does not finish its requests within this does not hold up a pause any longer. */
#define DISK_PATIENCE_NS 2000000000ull

struct machine_pause {
    uint64_t since_ns, since_tsc; /* the host's clocks when the guest's stopped */
    uint64_t clock_ns;            /* the engine's paravirtual clock then */
    uint64_t total_ns;            /* of all pauses that are over */
    struct cpu_state cpu;         /* room for one vCPU's state: no memory is needed to go on */
};

/* ---- the guest's time ---- */

static int move_tsc(struct machine *m, unsigned vcpu, uint64_t by, struct nerr *e)
{
    struct cpu_state *s = &m->pause->cpu;
    struct vcpu *v = m->vcpu[vcpu]->engine_vcpu;
    int r = m->ops->get_state(v, s);
    if (r) return nerr_set(e, r, "the %s engine does not tell its state: %s", m->ops->name, strerror(-r));
    s->tsc_offset -= by;
    return m->ops->set_state(v, s, e);
}

/* A reset gives the boot processor a TSC without an offset; the others keep theirs through INIT, where pauses have moved it. */
int machine_clocks_reset(struct machine *m, struct nerr *e)
{
    int r = 0;
    for (unsigned i = 1; i < m->cpus && m->pause && !r; i++) {
        r = m->ops->get_state(m->vcpu[i]->engine_vcpu, &m->pause->cpu);
        if (r) return nerr_set(e, r, "the %s engine does not tell its state: %s", m->ops->name, strerror(-r));
        if (m->pause->cpu.tsc_offset) r = move_tsc(m, i, m->pause->cpu.tsc_offset, e);
    }
    return r;
}

static int freeze(struct machine *m, struct nerr *e)
{
    struct machine_pause *p = m->pause;
    p->since_ns = clock_mono_ns();
    p->since_tsc = host_tsc();
    int r = m->ops->get_clock ? m->ops->get_clock(m->engine, &p->clock_ns) : 0;
    if (r) return nerr_set(e, r, "the %s engine's clock cannot be read: %s", m->ops->name, strerror(-r));
    r = irqchip_freeze(m->irqchip, e);
    if (!r) platform_freeze(m->platform);
    return r;
}

/* In the order that a move has (move.c): clock, vCPUs with their TSCs, interrupt controllers, the rest. What fails is left out: a guest with one clock
 * wrong is better off than one without timers. The first failure is told. */
static int thaw(struct machine *m, struct nerr *e)
{
    struct machine_pause *p = m->pause;
    struct nerr later;
    uint64_t ns = clock_mono_ns() - p->since_ns, tsc = host_tsc() - p->since_tsc;
    int now, r = m->ops->set_clock ? m->ops->set_clock(m->engine, p->clock_ns) : 0;
    if (r) nerr_set(e, r, "the %s engine's clock cannot be set: %s", m->ops->name, strerror(-r));
    now = irqchip_thaw_begin(m->irqchip, r ? &later : e);
    if (!r) r = now;
    for (unsigned i = 0; i < m->cpus; i++) {
        now = move_tsc(m, i, tsc, r ? &later : e);
        if (!r) r = now;
    }
    /* What the boot processor is about to load has a TSC, too (reset while paused; paused before it ran at all). */
    if (m->vcpu[0]->load_boot_state) m->boot_state->tsc_offset -= tsc;
    now = irqchip_thaw(m->irqchip, ns, r ? &later : e);
    if (!r) r = now;
    platform_thaw(m->platform, ns);
    p->total_ns += ns;
    return r;
}

/* ---- pause and resume ---- */

static bool finish_disks(struct machine *m)
{
    bool idle = true;
    uint64_t deadline = clock_mono_ns() + DISK_PATIENCE_NS;
    for (unsigned i = 0; i < m->devices; i++)
        if (m->device[i].block && !block_drain_until(m->device[i].block, deadline)) idle = false;
    return idle;
}

static void hold_nics(struct machine *m, bool on)
{
    for (unsigned i = 0; i < m->devices; i++)
        if (m->device[i].net) net_hold(m->device[i].net, on);
}

static void set_paused(struct machine *m, bool paused)
{
    pthread_mutex_lock(&m->lock);
    m->paused = paused;
    if (!m->stopped && !m->reset_pending) atomic_store(&m->state, paused ? MACHINE_PAUSED : MACHINE_RUNNING);
    pthread_mutex_unlock(&m->lock);
}

int machine_pause(struct machine *m, bool *disks_idle, struct nerr *e)
{
    *disks_idle = true;
    if (m->paused) {
        *disks_idle = finish_disks(m); /* they may not have been, the last time */
        return 0;
    }
    if (!m->pause) {
        m->pause = aligned_alloc(64, sizeof(*m->pause));
        if (!m->pause) return nerr_set(e, -ENOMEM, "machine: out of memory");
        memset(m->pause, 0, sizeof(*m->pause));
    }
    int r = machine_park(m, e);
    if (r) return r;
    set_paused(m, true);
    r = freeze(m, e);
    if (r) {
        set_paused(m, false);
        machine_unpark(m);
        return r;
    }
    hold_nics(m, true);
    *disks_idle = finish_disks(m);
    machine_tell(m, MACHINE_EVENT_PAUSED);
    return 0;
}

int machine_resume(struct machine *m, struct nerr *e)
{
    if (!m->paused) return 0;
    struct nerr why;
    (void)e;
    /* A guest whose clocks jump is better off than one that is paused for ever. */
    if (thaw(m, &why)) nc_warn("resume: %s; the guest's clocks jump", why.text);
    set_paused(m, false);
    machine_unpark(m);
    hold_nics(m, false);
    machine_tell(m, MACHINE_EVENT_RESUMED);
    return 0;
}

/* ---- what there is ---- */

static uint64_t process_cpu_ns(void)
{
    struct timespec t;
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t)) return 0;
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

void machine_info(const struct machine *m, struct machine_info *out)
{
    static const char *const state[] = {[MACHINE_CREATED] = "starting",
                                        [MACHINE_RUNNING] = "running",
                                        [MACHINE_RESETTING] = "resetting",
                                        [MACHINE_PAUSED] = "paused",
                                        [MACHINE_STOPPED] = "ended"};
    uint64_t now = clock_mono_ns(), paused = m->pause ? m->pause->total_ns : 0;
    if (m->paused && m->pause) paused += now - m->pause->since_ns;
    *out = (struct machine_info){.name = m->name,
                                 .engine = m->ops->name,
                                 .state = state[machine_state(m)],
                                 .cpus = m->cpus,
                                 .memory = m->memory.ram_size,
                                 .uptime_ns = m->start_ns ? now - m->start_ns : 0,
                                 .paused_ns = paused,
                                 .cpu_ns = process_cpu_ns(),
                                 .resets = m->resets};
}

static void describe_disk(const struct machine_device *d, struct machine_disk_info *out)
{
    *out = (struct machine_disk_info){
        .id = d->id, .model = d->resized ? "virtio" : "ahci", .leaving = d->life != MACHINE_DISK_HERE && d->function};
    block_info(d->block, &out->block);
    block_get_limits(d->block, &out->limits);
    block_get_stats(d->block, &out->stats);
    block_get_error(d->block, &out->error);
}

static void describe_nic(const struct machine *m, const struct machine_device *d, struct machine_nic_info *out)
{
    struct pci_function *f[PCI_SLOTS];
    unsigned n = pci_functions(m->pci, f, PCI_SLOTS);
    *out = (struct machine_nic_info){.id = d->id, .model = "virtio"};
    for (unsigned i = 0; i < n; i++)
        if (!strcmp(pci_stats(f[i])->name, d->id) && !strcmp(pci_stats(f[i])->kind, "e1000")) out->model = "e1000";
    net_info(d->net, &out->net);
    net_get_limits(d->net, &out->limits);
    net_get_stats(d->net, &out->stats);
}

bool machine_disk_info(const struct machine *m, unsigned n, struct machine_disk_info *out)
{
    for (unsigned i = 0; i < m->devices; i++) {
        if (!m->device[i].block || n--) continue;
        describe_disk(&m->device[i], out);
        return true;
    }
    return false;
}

bool machine_nic_info(const struct machine *m, unsigned n, struct machine_nic_info *out)
{
    for (unsigned i = 0; i < m->devices; i++) {
        if (!m->device[i].net || n--) continue;
        describe_nic(m, &m->device[i], out);
        return true;
    }
    return false;
}

/* ---- changes ---- */

static int unknown(const struct machine *m, bool disk, const char *id, struct nerr *e)
{
    char list[320] = "";
    size_t used = 0;
    for (unsigned i = 0; i < m->devices; i++) {
        const struct machine_device *d = &m->device[i];
        if (disk ? !d->block : !d->net) continue;
        int n = snprintf(list + used, sizeof(list) - used, "%s%s", used ? ", " : "", d->id);
        if (n < 0 || (size_t)n >= sizeof(list) - used) break;
        used += (size_t)n;
    }
    return nerr_set(e, -ENOENT, "there is no %s '%.40s'; there %s %s", disk ? "disk" : "NIC", id, used ? "are:" : "is",
                    used ? list : "none");
}

static struct machine_device *find(const struct machine *m, bool disk, const char *id, struct nerr *e)
{
    for (unsigned i = 0; i < m->devices; i++) {
        const struct machine_device *d = &m->device[i];
        if ((disk ? d->block != NULL : d->net != NULL) && strcmp(d->id, id) == 0) return (struct machine_device *)d;
    }
    unknown(m, disk, id, e);
    return NULL;
}

int machine_disk_find(const struct machine *m, const char *id, struct machine_disk_info *out, struct nerr *e)
{
    const struct machine_device *d = find(m, true, id, e);
    if (d) describe_disk(d, out);
    return d ? 0 : -ENOENT;
}

int machine_nic_find(const struct machine *m, const char *id, struct machine_nic_info *out, struct nerr *e)
{
    const struct machine_device *d = find(m, false, id, e);
    if (d) describe_nic(m, d, out);
    return d ? 0 : -ENOENT;
}

int machine_disk_resize(struct machine *m, const char *id, uint64_t bytes, struct nerr *e)
{
    struct machine_device *d = find(m, true, id, e);
    if (!d) return -ENOENT;
    if (!d->resized)
        return nerr_set(e, -ENOTSUP, "disk %s: a SATA disk has one size while the machine runs; use if=virtio", d->id);
    int r = block_resize(d->block, bytes, e);
    if (!r) d->resized(d->dev);
    return r;
}

int machine_disk_limits(struct machine *m, const char *id, const struct block_limits *l, struct nerr *e)
{
    struct machine_device *d = find(m, true, id, e);
    return d ? block_set_limits(d->block, l, e) : -ENOENT;
}

int machine_nic_limits(struct machine *m, const char *id, const struct net_limits *l, struct nerr *e)
{
    struct machine_device *d = find(m, false, id, e);
    return d ? net_set_limits(d->net, l, e) : -ENOENT;
}

int machine_nic_link(struct machine *m, const char *id, bool up, struct nerr *e)
{
    struct machine_device *d = find(m, false, id, e);
    if (!d) return -ENOENT;
    net_set_link(d->net, up);
    return 0;
}

/* ---- events ---- */

void machine_listen(struct machine *m, void (*fn)(void *ctx, enum machine_event event), void *ctx)
{
    m->listen = fn;
    m->listen_ctx = ctx;
}

void machine_tell(struct machine *m, enum machine_event event)
{
    if (m->listen) m->listen(m->listen_ctx, event);
}
