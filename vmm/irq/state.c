/* State of the user-space controllers, out and in (struct irq_*_state, vmm/engine/irq_state.h). What comes in may be hostile. */
#include <errno.h>
#include <string.h>

#include "vmm/irq/chip.h"

/* ---- local APIC ---- */

static void put(uint8_t *page, unsigned reg, uint32_t v)
{
    memcpy(page + reg, &v, sizeof v);
}

static uint32_t get(const uint8_t *page, unsigned reg)
{
    uint32_t v;
    memcpy(&v, page + reg, sizeof v);
    return v;
}

static void put_map(uint8_t *page, unsigned reg, const uint64_t map[4])
{
    for (unsigned i = 0; i < 8; i++) put(page, reg + 16 * i, (uint32_t)(map[i / 2] >> (i % 2 * 32)));
}

static void get_map(const uint8_t *page, unsigned reg, uint64_t map[4])
{
    for (unsigned i = 0; i < 4; i++) map[i] = get(page, reg + 32 * i) | (uint64_t)get(page, reg + 32 * i + 16) << 32;
    map[0] &= ~0xffffull; /* vectors 0 to 15 don't exist (SDM vol. 3 10.5.2) */
}

static bool x2apic(const struct lapic *l)
{
    return atomic_load(&l->base) & APIC_BASE_EXTD;
}

void lapic_get_state(struct lapic *l, struct irq_lapic_state *s)
{
    memset(s, 0, sizeof *s);
    pthread_mutex_lock(&l->lock);
    uint32_t count = lapic_timer_current(l);
    s->tsc_deadline = lapic_timer_deadline(l);
    s->base = atomic_load(&l->base);
    s->esr_new = (uint8_t)l->esr_new;
    s->nmis = (uint8_t)atomic_load(&l->nmis);
    s->wait_sipi = l->wait_sipi;
    put(s->regs, LAPIC_ID, (x2apic(l) ? l->vcpu : atomic_load(&l->xapic_id)) << 24);
    put(s->regs, LAPIC_VERSION, APIC_VERSION);
    put(s->regs, LAPIC_TPR, l->tpr);
    put(s->regs, LAPIC_PPR, atomic_load(&l->ppr));
    put(s->regs, LAPIC_LDR, atomic_load(&l->ldr));
    put(s->regs, LAPIC_DFR, atomic_load(&l->dfr));
    put(s->regs, LAPIC_SVR, atomic_load(&l->svr));
    put_map(s->regs, LAPIC_ISR, l->isr);
    put_map(s->regs, LAPIC_TMR, l->tmr);
    put_map(s->regs, LAPIC_IRR, l->irr);
    put(s->regs, LAPIC_ESR, l->esr);
    put(s->regs, LAPIC_ICR, (uint32_t)l->icr);
    put(s->regs, LAPIC_ICR_HIGH, (uint32_t)(l->icr >> 32));
    for (unsigned i = 0; i < LVT_COUNT; i++) put(s->regs, LAPIC_LVT + 16 * i, l->lvt[i]);
    put(s->regs, LAPIC_INITIAL, l->initial);
    put(s->regs, LAPIC_CURRENT, count);
    put(s->regs, LAPIC_DIVIDE, l->divide);
    pthread_mutex_unlock(&l->lock);
}

static void set_identity(struct lapic *l, const struct irq_lapic_state *s)
{
    atomic_store(&l->base, s->base);
    atomic_store(&l->svr, get(s->regs, LAPIC_SVR) & (SVR_NO_EOI_BROADCAST | SVR_ENABLE | 0xff));
    if (x2apic(l)) {
        atomic_store(&l->xapic_id, l->vcpu);
        atomic_store(&l->dfr, 0xffffffff);
        atomic_store(&l->ldr, l->vcpu >> 4 << 16 | 1u << (l->vcpu & 15)); /* SDM vol. 3 10.12.10.2 */
    } else {
        atomic_store(&l->xapic_id, get(s->regs, LAPIC_ID) >> 24);
        atomic_store(&l->dfr, get(s->regs, LAPIC_DFR) | 0x0fffffff);
        atomic_store(&l->ldr, get(s->regs, LAPIC_LDR) & 0xff000000);
    }
}

void lapic_set_state(struct lapic *l, const struct irq_lapic_state *s, struct irq_kick *k)
{
    pthread_mutex_lock(&l->lock);
    lapic_reset_locked(l);
    set_identity(l, s);
    atomic_store(&l->nmis, s->nmis > 2 ? 2 : s->nmis);
    l->wait_sipi = s->wait_sipi;
    l->tpr = get(s->regs, LAPIC_TPR) & 0xff;
    get_map(s->regs, LAPIC_ISR, l->isr);
    get_map(s->regs, LAPIC_TMR, l->tmr);
    get_map(s->regs, LAPIC_IRR, l->irr);
    l->esr = get(s->regs, LAPIC_ESR) & 0xff;
    l->esr_new = s->esr_new;
    l->icr = (get(s->regs, LAPIC_ICR) & 0xccfff & ~(1u << 12)) | (uint64_t)get(s->regs, LAPIC_ICR_HIGH) << 32;
    for (unsigned i = 1; i < LVT_COUNT; i++) l->lvt[i] = get(s->regs, LAPIC_LVT + 16 * i) & lapic_lvt_writable[i];
    lapic_timer_restore(l, &(struct lapic_timer_state){.lvt = get(s->regs, LAPIC_LVT) & lapic_lvt_writable[LVT_TIMER],
                                                       .initial = get(s->regs, LAPIC_INITIAL),
                                                       .current = get(s->regs, LAPIC_CURRENT),
                                                       .divide = get(s->regs, LAPIC_DIVIDE),
                                                       .deadline = s->tsc_deadline});
    lapic_update(l, k);
    if (atomic_load(&l->nmis)) k->interrupt |= 1ull << l->vcpu;
    pthread_mutex_unlock(&l->lock);
}

/* ---- IOAPIC ---- */

void ioapic_get_state(struct ioapic *a, struct irq_ioapic_state *s)
{
    memset(s, 0, sizeof *s);
    pthread_mutex_lock(&a->lock);
    memcpy(s->redir, a->redir, sizeof s->redir);
    s->lines = a->lines;
    s->select = a->select;
    s->id = a->id;
    pthread_mutex_unlock(&a->lock);
}

/* Edges that were seen are seen. A level whose message is under way (remote IRR) waits for its EOI; another is sent now. */
void ioapic_set_state(struct ioapic *a, const struct irq_ioapic_state *s, struct irq_kick *k)
{
    pthread_mutex_lock(&a->lock);
    for (unsigned i = 0; i < IRQ_LINES; i++) a->redir[i] = s->redir[i] & (RTE_WRITABLE | RTE_REMOTE_IRR);
    a->lines = s->lines & ((1u << IRQ_LINES) - 1);
    a->select = s->select;
    a->id = s->id & 0xf;
    for (unsigned i = 0; i < IRQ_LINES; i++)
        if (a->lines >> i & 1 && a->redir[i] & RTE_LEVEL) ioapic_service(a, i, k);
    pthread_mutex_unlock(&a->lock);
}

/* ---- 8259s ---- */

void pic_get_state(struct pic *p, struct irq_pic_state out[2])
{
    pthread_mutex_lock(&p->lock);
    for (unsigned i = 0; i < 2; i++) {
        const struct i8259 *c = &p->i8259[i];
        out[i] = (struct irq_pic_state){
            .irr = c->irr,
            .imr = c->imr,
            .isr = c->isr,
            .lines = c->lines,
            .elcr = c->elcr,
            .vector = c->icw2,
            .init_step = c->init_step,
            .priority_add = c->priority_add,
            .needs_icw4 = c->icw4 & 1,
            .single = c->single,
            .read_isr = c->read_isr,
            .poll = c->poll,
            .special_mask = c->special_mask,
            .auto_eoi = c->auto_eoi,
            .rotate_on_aeoi = c->rotate_on_aeoi,
            .fully_nested = c->fully_nested,
        };
    }
    pthread_mutex_unlock(&p->lock);
}

void pic_set_state(struct pic *p, const struct irq_pic_state in[2], struct irq_kick *k)
{
    pthread_mutex_lock(&p->lock);
    for (unsigned i = 0; i < 2; i++) {
        struct i8259 *c = &p->i8259[i];
        const struct irq_pic_state *s = &in[i];
        *c = (struct i8259){
            .irr = s->irr,
            .imr = s->imr,
            .isr = s->isr,
            .lines = s->lines,
            .elcr = s->elcr & c->elcr_mask,
            .elcr_mask = c->elcr_mask,
            .icw2 = s->vector & 0xf8,
            .icw4 = s->needs_icw4,
            .init_step = s->init_step >= 2 && s->init_step <= 4 ? s->init_step : 0,
            .priority_add = s->priority_add & 7,
            .read_isr = s->read_isr,
            .poll = s->poll,
            .special_mask = s->special_mask,
            .auto_eoi = s->auto_eoi,
            .rotate_on_aeoi = s->rotate_on_aeoi,
            .fully_nested = s->fully_nested,
            .single = s->single,
            .master = c->master,
        };
    }
    pic_update(p, k);
    pthread_mutex_unlock(&p->lock);
}

/* ---- the whole ---- */

int irqchip_get_chips(struct irqchip *c, struct irq_chips_state *s, struct nerr *e)
{
    if (c->inside) return c->inside->get_chips(c->engine, s, e);
    ioapic_get_state(&c->ioapic, &s->ioapic);
    pic_get_state(&c->pic, s->pic);
    return 0;
}

int irqchip_set_chips(struct irqchip *c, const struct irq_chips_state *s, struct nerr *e)
{
    if (c->inside) return c->inside->set_chips(c->engine, s, e);
    struct irq_kick k = {0};
    ioapic_set_state(&c->ioapic, &s->ioapic, &k);
    pic_set_state(&c->pic, s->pic, &k);
    irq_kick_run(c, &k);
    return 0;
}

static int check_vcpu(const struct irqchip *c, unsigned vcpu, struct nerr *e)
{
    if (vcpu < c->vcpus) return 0;
    return nerr_set(e, -EINVAL, "state: there is no LAPIC %u; the machine has %u", vcpu, c->vcpus);
}

int irqchip_get_lapic(struct irqchip *c, unsigned vcpu, struct irq_lapic_state *s, struct nerr *e)
{
    int r = check_vcpu(c, vcpu, e);
    if (r) return r;
    if (c->inside) return c->inside->get_lapic(c->engine, vcpu, s, e);
    lapic_get_state(&c->lapic[vcpu], s);
    return 0;
}

int irqchip_set_lapic(struct irqchip *c, unsigned vcpu, const struct irq_lapic_state *s, struct nerr *e)
{
    int r = check_vcpu(c, vcpu, e);
    if (r) return r;
    uint64_t mode = s->base & (APIC_BASE_EN | APIC_BASE_EXTD);
    if (mode == APIC_BASE_EXTD || s->base & ~(lapic_address_mask | mode | APIC_BASE_BSP))
        return nerr_set(e, -EINVAL, "state: LAPIC %u has an impossible base 0x%llx", vcpu, (unsigned long long)s->base);
    if (c->inside) return c->inside->set_lapic(c->engine, vcpu, s, e);
    struct irq_kick k = {0};
    lapic_set_state(&c->lapic[vcpu], s, &k);
    irq_kick_run(c, &k);
    return 0;
}
