/* Time stands still for the guest: the timers of the local APICs stop and later go on with what was left of them. Interrupts of devices that
 * come meanwhile are kept as ever. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/irq/chip.h"

static void copy_timer(struct irq_lapic_state *to, const struct irq_lapic_state *from)
{
    memcpy(to->regs + LAPIC_INITIAL, from->regs + LAPIC_INITIAL, 4);
    memcpy(to->regs + LAPIC_CURRENT, from->regs + LAPIC_CURRENT, 4);
    to->tsc_deadline = from->tsc_deadline;
}

static int take_timer_out(struct irqchip *c, unsigned vcpu, struct nerr *e)
{
    static const struct irq_lapic_state none;
    int r = c->inside->get_lapic(c->engine, vcpu, &c->frozen[vcpu], e);
    if (r) return r;
    struct irq_lapic_state quiet = c->frozen[vcpu];
    copy_timer(&quiet, &none);
    return c->inside->set_lapic(c->engine, vcpu, &quiet, e);
}

/* Those of the first `vcpus`. Goes on after a failure; the first one is told. */
static int put_back(struct irqchip *c, unsigned vcpus, struct nerr *e)
{
    struct nerr later;
    int r = 0;
    for (unsigned i = 0; i < vcpus && c->frozen; i++) {
        int now = c->inside->set_lapic(c->engine, i, &c->frozen[i], r ? &later : e);
        if (!r) r = now;
    }
    free(c->frozen);
    c->frozen = NULL;
    return r;
}

/* An engine's own timers know no stop: they are taken out, and put back in later. */
static int freeze_inside(struct irqchip *c, struct nerr *e)
{
    struct nerr ignored;
    if (!c->frozen) c->frozen = calloc(c->vcpus, sizeof(*c->frozen));
    if (!c->frozen) return nerr_set(e, -ENOMEM, "out of memory for the state of the interrupt controllers");
    for (unsigned i = 0; i < c->vcpus; i++) {
        int r = take_timer_out(c, i, e);
        if (!r) continue;
        (void)put_back(c, i, &ignored);
        return r;
    }
    return 0;
}

int irqchip_thaw_begin(struct irqchip *c, struct nerr *e)
{
    struct nerr later;
    int r = 0;
    for (unsigned i = 0; i < c->vcpus && c->inside && c->frozen; i++) {
        struct irq_lapic_state state;
        int now = c->inside->get_lapic(c->engine, i, &state, r ? &later : e);
        if (!r) r = now;
        if (now) continue; /* as it was when it stopped, then */
        copy_timer(&state, &c->frozen[i]);
        c->frozen[i] = state;
    }
    return r;
}

int irqchip_freeze(struct irqchip *c, struct nerr *e)
{
    if (c->inside) return freeze_inside(c, e);
    for (unsigned i = 0; i < c->vcpus; i++) {
        pthread_mutex_lock(&c->lapic[i].lock);
        lapic_timer_freeze(&c->lapic[i]);
        pthread_mutex_unlock(&c->lapic[i].lock);
    }
    return 0;
}

int irqchip_thaw(struct irqchip *c, uint64_t ns, struct nerr *e)
{
    struct irq_kick k = {0};
    if (c->inside) return put_back(c, c->vcpus, e);
    for (unsigned i = 0; i < c->vcpus; i++) {
        struct lapic *l = &c->lapic[i];
        pthread_mutex_lock(&l->lock);
        lapic_timer_thaw(l, ns);
        lapic_update(l, &k);
        pthread_mutex_unlock(&l->lock);
    }
    irq_kick_run(c, &k);
    return 0;
}

void irq_forget_frozen(struct irqchip *c)
{
    static const struct irq_lapic_state none;
    for (unsigned i = 0; i < c->vcpus && c->frozen; i++) copy_timer(&c->frozen[i], &none);
}
