/* A machine goes on with another CPU engine. This is the part of a migration that is about CPUs and interrupt controllers, without
 * a stream in between; what it stands on is that their state means the same to every engine. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "vmm/machine/machine_internal.h"

/* All that an engine keeps of a machine, but memory. */
struct moved {
    uint64_t clock_ns, taken_ns; /* the guest's paravirtual clock, and CLOCK_MONOTONIC when it was read */
    struct irq_chips_state chips;
    struct irq_lapic_state lapic[MACHINE_MAX_CPUS];
    struct cpu_state *cpu; /* one per vCPU */
};

static int take(struct machine *m, struct moved *s, struct nerr *e)
{
    int r = m->ops->get_clock ? m->ops->get_clock(m->engine, &s->clock_ns) : 0;
    s->taken_ns = clock_mono_ns();
    for (unsigned i = 0; i < m->cpus && !r; i++) r = m->ops->get_state(m->vcpu[i]->engine_vcpu, &s->cpu[i]);
    if (r) return nerr_set(e, r, "the %s engine does not tell its state: %s", m->ops->name, strerror(-r));
    for (unsigned i = 0; i < m->cpus && !r; i++) r = irqchip_get_lapic(m->irqchip, i, &s->lapic[i], e);
    return r ? r : irqchip_get_chips(m->irqchip, &s->chips, e);
}

/* The order matters: clock, vCPUs (with the TSC's offset), their LAPICs, the rest. */
static int give(struct machine *m, const struct moved *s, struct nerr *e)
{
    uint64_t now = s->clock_ns + (clock_mono_ns() - s->taken_ns);
    int r = m->ops->set_clock ? m->ops->set_clock(m->engine, now) : 0;
    if (r) return nerr_set(e, r, "the %s engine's clock cannot be set: %s", m->ops->name, strerror(-r));
    for (unsigned i = 0; i < m->cpus && !r; i++) r = m->ops->set_state(m->vcpu[i]->engine_vcpu, &s->cpu[i], e);
    for (unsigned i = 0; i < m->cpus && !r; i++) {
        r = irqchip_set_lapic(m->irqchip, i, &s->lapic[i], e);
        m->vcpu[i]->wait_sipi = s->lapic[i].wait_sipi && !m->ops->irq;
    }
    return r ? r : irqchip_set_chips(m->irqchip, &s->chips, e);
}

struct seat {
    const struct engine_ops *ops;
    struct engine *engine;
    struct vcpu *vcpu[MACHINE_MAX_CPUS];
};

static struct seat seat_of(const struct machine *m)
{
    struct seat s = {.ops = m->ops, .engine = m->engine};
    for (unsigned i = 0; i < m->cpus; i++) s.vcpu[i] = m->vcpu[i]->engine_vcpu;
    return s;
}

static void sit(struct machine *m, const struct seat *s)
{
    m->ops = s->ops;
    m->engine = s->engine;
    for (unsigned i = 0; i < m->cpus; i++) m->vcpu[i]->engine_vcpu = s->vcpu[i];
    irqchip_use_engine(m->irqchip, m->ops, m->engine);
    machine_use_eventfds(m);
}

static int new_seat(struct machine *m, const struct engine_ops *ops, struct seat *s, struct nerr *e)
{
    struct engine_config cfg = {.memory = &m->memory, .vcpus = m->cpus};
    *s = (struct seat){.ops = ops};
    int r = ops->create(&cfg, &s->engine, e);
    for (unsigned i = 0; i < m->cpus && !r; i++)
        r = ops->vcpu_create(s->engine, i, irqchip_port(m->irqchip, i), &s->vcpu[i], e);
    if (r && s->engine) ops->destroy(s->engine);
    return r;
}

/* With all vCPUs parked. When it fails, all is as it was. */
static int change(struct machine *m, const struct engine_ops *ops, struct moved *s, struct nerr *e)
{
    struct seat old = seat_of(m), new;
    struct nerr ignored;
    pci_bus_leave_engine(m->pci);
    int r = take(m, s, e);
    if (!r) r = new_seat(m, ops, &new, e);
    if (r) {
        pci_bus_enter_engine(m->pci);
        return r;
    }
    sit(m, &new);
    r = give(m, s, e);
    if (r) {
        sit(m, &old);
        (void)give(m, s, &ignored);
    }
    pci_bus_enter_engine(m->pci);
    const struct seat *gone = r ? &new : &old;
    gone->ops->destroy(gone->engine);
    return r;
}

int machine_change_engine(struct machine *m, const struct engine_ops *ops, struct nerr *e)
{
    int r = -ENOMEM;
    struct moved *s = calloc(1, sizeof(*s));
    if (s) s->cpu = aligned_alloc(64, m->cpus * sizeof(*s->cpu));
    if (!s || !s->cpu)
        nerr_set(e, r, "machine: out of memory");
    else
        r = machine_park(m, e);
    if (!r) {
        r = change(m, ops, s, e);
        machine_unpark(m);
    }
    if (s) free(s->cpu);
    free(s);
    return r;
}
