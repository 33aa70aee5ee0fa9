/* The local APIC's interrupt acceptance and priorities (SDM vol. 3 10.8). Registers: lapic_reg.c, timer: lapic_timer.c. */
#include <string.h>

#include "vmm/irq/chip.h"

static bool bit_get(const uint64_t *map, unsigned v)
{
    return map[v / 64] >> (v % 64) & 1;
}

static void bit_set(uint64_t *map, unsigned v, bool on)
{
    if (on)
        map[v / 64] |= 1ull << (v % 64);
    else
        map[v / 64] &= ~(1ull << (v % 64));
}

static int bit_highest(const uint64_t *map)
{
    for (int i = 3; i >= 0; i--)
        if (map[i]) return i * 64 + 63 - __builtin_clzll(map[i]);
    return -1;
}

void lapic_update(struct lapic *l, struct irq_kick *k)
{
    int in_service = bit_highest(l->isr), request = bit_highest(l->irr);
    uint32_t isrv = in_service < 0 ? 0 : (uint32_t)in_service & 0xf0;
    uint32_t ppr = (l->tpr & 0xf0) >= isrv ? l->tpr : isrv; /* SDM vol. 3 10.8.3.1 */
    atomic_store_explicit(&l->ppr, ppr, memory_order_relaxed);
    bool on = atomic_load_explicit(&l->base, memory_order_relaxed) & APIC_BASE_EN;
    int now = on && request >= 0 && ((uint32_t)request & 0xf0) > (ppr & 0xf0) ? request : -1;
    /* Virtual wire mode (10.1, "INTR" when the APIC is disabled); LINT0 of vCPU 0 is the one with the PIC behind it. */
    uint32_t lint0 = l->lvt[LVT_LINT0];
    bool wire = l->vcpu == 0 && (!on || (!(lint0 & LVT_MASKED) && (lint0 >> 8 & 7) == IRQ_EXTINT));
    bool wired = atomic_exchange(&l->accepts_extint, wire);
    int before = atomic_exchange(&l->pending, now);
    if (k && ((now >= 0 && now != before) || (wire && !wired))) k->interrupt |= 1ull << l->vcpu;
}

void lapic_set_irr(struct lapic *l, uint8_t vector, bool level)
{
    bit_set(l->irr, vector, true);
    bit_set(l->tmr, vector, level);
}

/* One NMI can be latched while another one is handled; a CPU that handles none may find two. The engine knows which, so two are kept and
 * the engine takes one at a time (SDM vol. 3 6.7.1). */
static void latch_nmi(struct lapic *l)
{
    unsigned n = atomic_load(&l->nmis);
    while (n < 2 && !atomic_compare_exchange_weak(&l->nmis, &n, n + 1)) {
    }
}

void lapic_lvt_fire(struct lapic *l, enum lapic_lvt n)
{
    uint32_t lvt = l->lvt[n];
    uint8_t vector = (uint8_t)lvt;
    if (lvt & LVT_MASKED || !(atomic_load(&l->base) & APIC_BASE_EN)) return;
    /* The timer and error entries have no delivery mode: those bits read as fixed. */
    switch (lvt >> 8 & 7) {
    case IRQ_FIXED:
        if (vector < 16)
            lapic_error(l, ESR_RECEIVE_ILLEGAL_VECTOR);
        else
            lapic_set_irr(l, vector, false);
        break;
    case IRQ_NMI: latch_nmi(l); break;
    default: break;
    }
}

/* An error vector that is itself illegal adds an error but raises nothing more: the bit is set before the recursion. */
void lapic_error(struct lapic *l, uint32_t bit)
{
    if (l->esr_new & bit) return;
    l->esr_new |= bit;
    lapic_lvt_fire(l, LVT_ERROR);
}

/* ---- destinations (SDM vol. 3 10.6.2, 10.12.9) ---- */

static bool matches_logical(struct lapic *l, const struct irq_message *m, bool x2apic)
{
    uint32_t ldr = atomic_load_explicit(&l->ldr, memory_order_relaxed);
    if (x2apic) return m->dest >> 16 == ldr >> 16 && (m->dest & ldr & 0xffff);
    uint8_t mine = (uint8_t)(ldr >> 24), dest = (uint8_t)m->dest;
    if (m->wide && m->dest > 0xff) return false;
    if (atomic_load_explicit(&l->dfr, memory_order_relaxed) >> 28 == 0xf) return mine & dest;
    return (mine >> 4 == dest >> 4) && (mine & dest & 0xf);
}

bool lapic_matches(struct lapic *l, const struct irq_message *m)
{
    uint64_t base = atomic_load_explicit(&l->base, memory_order_relaxed);
    if (!(base & APIC_BASE_EN)) return false;
    if (m->dest == (m->wide ? 0xffffffffu : 0xffu)) return true;
    bool x2apic = base & APIC_BASE_EXTD;
    if (m->logical) return matches_logical(l, m, x2apic);
    return m->dest == (x2apic ? l->vcpu : atomic_load_explicit(&l->xapic_id, memory_order_relaxed));
}

/* ---- acceptance ---- */

static bool accept_fixed(struct lapic *l, const struct irq_message *m, struct irq_kick *k)
{
    if (!(atomic_load_explicit(&l->svr, memory_order_relaxed) & SVR_ENABLE)) return false;
    if (m->vector < 16)
        lapic_error(l, ESR_RECEIVE_ILLEGAL_VECTOR);
    else
        lapic_set_irr(l, m->vector, m->level);
    lapic_update(l, k);
    return m->vector >= 16;
}

static bool accept_init(struct lapic *l, struct irq_kick *k)
{
    lapic_reset_locked(l);
    /* The BSP begins at the reset vector again instead of waiting for a SIPI (SDM vol. 3 8.4.2). */
    l->wait_sipi = !(atomic_load(&l->base) & APIC_BASE_BSP);
    k->init |= 1ull << l->vcpu;
    return true;
}

static bool accept_sipi(struct lapic *l, uint8_t vector, struct irq_kick *k)
{
    if (!l->wait_sipi) return false;
    l->wait_sipi = false;
    k->sipi |= 1ull << l->vcpu;
    k->sipi_vector = vector;
    return true;
}

bool lapic_accept(struct lapic *l, const struct irq_message *m, struct irq_kick *k)
{
    bool taken = false;
    pthread_mutex_lock(&l->lock);
    if (atomic_load(&l->base) & APIC_BASE_EN) {
        switch (m->mode) {
        case IRQ_FIXED:
        case IRQ_LOWEST: taken = accept_fixed(l, m, k); break;
        case IRQ_NMI:
            latch_nmi(l);
            k->interrupt |= 1ull << l->vcpu;
            taken = true;
            break;
        case IRQ_INIT: taken = accept_init(l, k); break;
        case IRQ_SIPI: taken = accept_sipi(l, m->vector, k); break;
        default: break; /* SMI: this machine has no SMM. ExtINT: only through LINT0 */
        }
    }
    pthread_mutex_unlock(&l->lock);
    return taken;
}

void lapic_lint0_rise(struct lapic *l, struct irq_kick *k)
{
    if (atomic_load(&l->accepts_extint)) {
        k->interrupt |= 1ull << l->vcpu;
        return;
    }
    pthread_mutex_lock(&l->lock);
    unsigned mode = l->lvt[LVT_LINT0] >> 8 & 7;
    if (mode == IRQ_FIXED || mode == IRQ_NMI) {
        lapic_lvt_fire(l, LVT_LINT0);
        if (mode == IRQ_NMI && atomic_load(&l->nmis)) k->interrupt |= 1ull << l->vcpu;
        lapic_update(l, k);
    }
    pthread_mutex_unlock(&l->lock);
}

void lapic_eoi(struct lapic *l, struct irq_kick *k)
{
    pthread_mutex_lock(&l->lock);
    int v = bit_highest(l->isr);
    bool level = false;
    if (v >= 0) {
        bit_set(l->isr, (unsigned)v, false);
        level = bit_get(l->tmr, (unsigned)v);
        lapic_update(l, k);
    }
    bool broadcast = !(atomic_load(&l->svr) & SVR_NO_EOI_BROADCAST);
    pthread_mutex_unlock(&l->lock);
    if (level && broadcast) ioapic_eoi(&l->chip->ioapic, (uint8_t)v, k);
}

/* ---- reset ---- */

void lapic_reset_locked(struct lapic *l)
{
    memset(l->irr, 0, sizeof l->irr);
    memset(l->isr, 0, sizeof l->isr);
    memset(l->tmr, 0, sizeof l->tmr);
    l->tpr = l->esr = l->esr_new = 0;
    l->icr = 0;
    for (unsigned i = 0; i < LVT_COUNT; i++) l->lvt[i] = LVT_MASKED;
    /* There is no firmware before the kernel, so the board comes up the way firmware leaves it: the BSP gets the PIC's
     * interrupts through LINT0 (virtual wire mode, MultiProcessor Specification 3.6.2.2). */
    if (l->vcpu == 0) l->lvt[LVT_LINT0] = IRQ_EXTINT << 8;
    atomic_store(&l->svr, 0xff);
    atomic_store(&l->dfr, 0xffffffff);
    bool x2apic = atomic_load(&l->base) & APIC_BASE_EXTD;
    atomic_store(&l->ldr, x2apic ? l->vcpu >> 4 << 16 | 1u << (l->vcpu & 15) : 0);
    atomic_store(&l->nmis, 0);
    lapic_timer_reset(l);
    lapic_update(l, NULL);
}

void lapic_power_on(struct lapic *l)
{
    pthread_mutex_lock(&l->lock);
    atomic_store(&l->base, APIC_DEFAULT_BASE | APIC_BASE_EN | (l->vcpu == 0 ? APIC_BASE_BSP : 0));
    atomic_store(&l->xapic_id, l->vcpu);
    l->wait_sipi = l->vcpu != 0;
    lapic_reset_locked(l);
    pthread_mutex_unlock(&l->lock);
}

/* ---- the engine's view ---- */

/* Two loads: this is on the engine's path between blocks. */
static int port_pending(void *ctx)
{
    struct lapic *l = ctx;
    if (atomic_load_explicit(&l->accepts_extint, memory_order_acquire) &&
        atomic_load_explicit(&l->chip->pic.intr, memory_order_acquire))
        return 0; /* the PIC says which vector when it is acknowledged; ExtINT knows no priority */
    return atomic_load_explicit(&l->pending, memory_order_acquire);
}

static int port_acknowledge(void *ctx)
{
    struct lapic *l = ctx;
    struct irq_kick k = {0};
    int v = -1;
    if (atomic_load(&l->accepts_extint)) v = pic_acknowledge(&l->chip->pic, &k);
    if (v < 0) {
        pthread_mutex_lock(&l->lock);
        v = atomic_load(&l->pending);
        if (v >= 0) {
            bit_set(l->irr, (unsigned)v, false);
            bit_set(l->isr, (unsigned)v, true);
            lapic_update(l, &k);
        }
        pthread_mutex_unlock(&l->lock);
    }
    irq_kick_run(l->chip, &k);
    return v;
}

static bool port_take_nmi(void *ctx)
{
    struct lapic *l = ctx;
    unsigned n = atomic_load(&l->nmis);
    while (n && !atomic_compare_exchange_weak(&l->nmis, &n, n - 1)) {
    }
    return n != 0;
}

static uint8_t port_get_cr8(void *ctx)
{
    struct lapic *l = ctx;
    pthread_mutex_lock(&l->lock);
    uint8_t v = (uint8_t)(l->tpr >> 4);
    pthread_mutex_unlock(&l->lock);
    return v;
}

static void port_set_cr8(void *ctx, uint8_t v)
{
    struct lapic *l = ctx;
    struct irq_kick k = {0};
    pthread_mutex_lock(&l->lock);
    l->tpr = (uint32_t)(v & 0xf) << 4;
    lapic_update(l, &k);
    pthread_mutex_unlock(&l->lock);
    irq_kick_run(l->chip, &k);
}

static bool port_msr_read(void *ctx, uint32_t msr, uint64_t *value)
{
    struct lapic *l = ctx;
    struct irq_kick k = {0};
    bool ok = lapic_msr_read(l, msr, value, &k);
    irq_kick_run(l->chip, &k);
    return ok;
}

static bool port_msr_write(void *ctx, uint32_t msr, uint64_t value)
{
    struct lapic *l = ctx;
    struct irq_kick k = {0};
    bool ok = lapic_msr_write(l, msr, value, &k);
    irq_kick_run(l->chip, &k);
    return ok;
}

static void port_set_tsc_offset(void *ctx, uint64_t tsc_offset)
{
    struct lapic *l = ctx;
    struct irq_kick k = {0};
    pthread_mutex_lock(&l->lock);
    lapic_timer_set_tsc_offset(l, tsc_offset);
    lapic_update(l, &k);
    pthread_mutex_unlock(&l->lock);
    irq_kick_run(l->chip, &k);
}

int lapic_init(struct lapic *l, struct irqchip *c, unsigned vcpu)
{
    l->chip = c;
    l->vcpu = vcpu;
    l->port = (struct vcpu_irq_port){
        .ctx = l,
        .pending = port_pending,
        .acknowledge = port_acknowledge,
        .take_nmi = port_take_nmi,
        .get_cr8 = port_get_cr8,
        .set_cr8 = port_set_cr8,
        .msr_read = port_msr_read,
        .msr_write = port_msr_write,
        .set_tsc_offset = port_set_tsc_offset,
    };
    int r = pthread_mutex_init(&l->lock, NULL);
    if (r) return -r;
    lapic_timer_init(l);
    lapic_power_on(l);
    return 0;
}

void lapic_fini(struct lapic *l)
{
    lapic_timer_fini(l);
    pthread_mutex_destroy(&l->lock);
}
