/* The local APIC's registers, as MMIO (xAPIC) and as MSRs (x2APIC): SDM vol. 3 10.4 and 10.12. */
#include "vmm/irq/chip.h"

#define MSR_APIC_BASE 0x1b
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_X2APIC_FIRST 0x800
#define MSR_X2APIC_LAST 0x8ff

#define ICR_LEVEL_ASSERT (1u << 14)
#define ICR_TRIGGER_LEVEL (1u << 15)
#define ICR_BUSY (1u << 12)

/* Writable bits; the read-only ones (delivery status 12, remote IRR 14) are ignored, the rest is reserved. */
const uint32_t lapic_lvt_writable[LVT_COUNT] = {
    [LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_PERF] = 0x107ff,
    [LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,   [LVT_ERROR] = 0x100ff,
};
static const uint32_t lvt_readonly[LVT_COUNT] = {
    [LVT_TIMER] = 0x1000, [LVT_THERMAL] = 0x1000, [LVT_PERF] = 0x1000,
    [LVT_LINT0] = 0x5000, [LVT_LINT1] = 0x5000,   [LVT_ERROR] = 0x1000,
};

static bool x2apic_mode(const struct lapic *l)
{
    return atomic_load(&l->base) & APIC_BASE_EXTD;
}

/* ---- interprocessor interrupts ---- */

static void send_to_self(struct lapic *l, const struct irq_message *m, struct irq_kick *k)
{
    /* The self shorthand carries fixed interrupts only (SDM vol. 3 table 10-3). */
    if (m->mode == IRQ_FIXED) lapic_accept(l, m, k);
}

/* Without l->lock: it takes the locks of the destinations. */
static void send_ipi(struct lapic *l, uint64_t icr, bool x2apic, struct irq_kick *k)
{
    uint32_t low = (uint32_t)icr;
    struct irq_message m = {
        .dest = x2apic ? (uint32_t)(icr >> 32) : (uint32_t)(icr >> 56),
        .logical = low >> 11 & 1,
        .wide = x2apic,
        .mode = low >> 8 & 7,
        .vector = (uint8_t)low,
    };
    if (m.mode == IRQ_INIT && low & ICR_TRIGGER_LEVEL && !(low & ICR_LEVEL_ASSERT))
        return; /* INIT de-assert: no effect */
    if ((m.mode == IRQ_FIXED || m.mode == IRQ_LOWEST) && m.vector < 16) {
        pthread_mutex_lock(&l->lock);
        lapic_error(l, ESR_SEND_ILLEGAL_VECTOR);
        lapic_update(l, k);
        pthread_mutex_unlock(&l->lock);
        return;
    }
    switch (low >> 18 & 3) {
    case 0: irq_deliver(l->chip, &m, ENGINE_MAX_VCPUS, k); break;
    case 1: send_to_self(l, &m, k); break;
    case 2:
    case 3:
        m.dest = 0xffffffff;
        m.wide = true;
        irq_deliver(l->chip, &m, (low >> 18 & 3) == 3 ? l->vcpu : ENGINE_MAX_VCPUS, k);
        break;
    }
}

/* ---- register contents, with the lock held ---- */

static uint32_t read_map(const uint64_t *map, uint32_t off)
{
    unsigned word = off >> 4 & 7;
    return (uint32_t)(map[word / 2] >> (word % 2 * 32));
}

static uint32_t read_reg(struct lapic *l, uint32_t reg)
{
    switch (reg) {
    case LAPIC_ID: return x2apic_mode(l) ? l->vcpu : atomic_load(&l->xapic_id) << 24;
    case LAPIC_VERSION: return APIC_VERSION;
    case LAPIC_TPR: return l->tpr;
    case LAPIC_PPR: return atomic_load(&l->ppr);
    case LAPIC_LDR: return atomic_load(&l->ldr);
    case LAPIC_DFR: return atomic_load(&l->dfr);
    case LAPIC_SVR: return atomic_load(&l->svr);
    case LAPIC_ESR: return l->esr;
    case LAPIC_ICR: return (uint32_t)l->icr;
    case LAPIC_ICR_HIGH: return (uint32_t)(l->icr >> 32);
    case LAPIC_INITIAL: return l->initial;
    case LAPIC_CURRENT: return lapic_timer_current(l);
    case LAPIC_DIVIDE: return l->divide;
    default: break;
    }
    if (reg >= LAPIC_ISR && reg < LAPIC_TMR) return read_map(l->isr, reg);
    if (reg >= LAPIC_TMR && reg < LAPIC_IRR) return read_map(l->tmr, reg);
    if (reg >= LAPIC_IRR && reg < LAPIC_ESR) return read_map(l->irr, reg);
    if (reg >= LAPIC_LVT && reg <= LAPIC_LVT_LAST) return l->lvt[(reg - LAPIC_LVT) / 16];
    return 0;
}

/* While the APIC is disabled by software all LVT masks are set and stay so (SDM vol. 3 10.4.7.2). */
static void write_svr(struct lapic *l, uint32_t v)
{
    atomic_store(&l->svr, v & (SVR_NO_EOI_BROADCAST | SVR_ENABLE | 0xff));
    if (v & SVR_ENABLE) return;
    for (unsigned i = 1; i < LVT_COUNT; i++) l->lvt[i] |= LVT_MASKED;
    lapic_timer_set_lvt(l, l->lvt[LVT_TIMER] | LVT_MASKED);
}

static void write_lvt(struct lapic *l, enum lapic_lvt n, uint32_t v)
{
    v &= lapic_lvt_writable[n];
    if (!(atomic_load(&l->svr) & SVR_ENABLE)) v |= LVT_MASKED;
    if (n == LVT_TIMER)
        lapic_timer_set_lvt(l, v);
    else
        l->lvt[n] = v;
}

/* Registers that mean the same in both modes; the value was checked. Others are ignored. */
static void write_reg(struct lapic *l, uint32_t reg, uint32_t v)
{
    switch (reg) {
    case LAPIC_TPR: l->tpr = v & 0xff; break;
    case LAPIC_SVR: write_svr(l, v); break;
    case LAPIC_ESR: /* a write latches what came since the last one (10.5.3) */
        l->esr = l->esr_new;
        l->esr_new = 0;
        break;
    case LAPIC_INITIAL: lapic_timer_set_initial(l, v); break;
    case LAPIC_DIVIDE: lapic_timer_set_divide(l, v); break;
    default:
        if (reg >= LAPIC_LVT && reg <= LAPIC_LVT_LAST) write_lvt(l, (enum lapic_lvt)((reg - LAPIC_LVT) / 16), v);
    }
}

/* ---- xAPIC: MMIO ---- */

static bool known_reg(uint32_t reg)
{
    switch (reg) {
    case LAPIC_ID:
    case LAPIC_VERSION:
    case LAPIC_TPR:
    case LAPIC_APR:
    case LAPIC_PPR:
    case LAPIC_EOI:
    case LAPIC_RRD:
    case LAPIC_LDR:
    case LAPIC_DFR:
    case LAPIC_SVR:
    case LAPIC_ESR:
    case LAPIC_ICR:
    case LAPIC_ICR_HIGH:
    case LAPIC_INITIAL:
    case LAPIC_CURRENT:
    case LAPIC_DIVIDE: return true;
    default: return (reg >= LAPIC_ISR && reg < LAPIC_ESR) || (reg >= LAPIC_LVT && reg <= LAPIC_LVT_LAST);
    }
}

static bool mmio_on(const struct lapic *l)
{
    return (atomic_load(&l->base) & (APIC_BASE_EN | APIC_BASE_EXTD)) == APIC_BASE_EN;
}

uint32_t lapic_mmio_read(struct lapic *l, uint32_t off, struct irq_kick *k)
{
    if (!mmio_on(l)) return 0xffffffff;
    uint32_t v = 0;
    pthread_mutex_lock(&l->lock);
    if (known_reg(off))
        v = read_reg(l, off);
    else
        lapic_error(l, ESR_ILLEGAL_REGISTER);
    lapic_update(l, k);
    pthread_mutex_unlock(&l->lock);
    return v;
}

void lapic_mmio_write(struct lapic *l, uint32_t off, uint32_t v, struct irq_kick *k)
{
    if (!mmio_on(l)) return;
    if (off == LAPIC_EOI) {
        lapic_eoi(l, k);
        return;
    }
    pthread_mutex_lock(&l->lock);
    switch (off) {
    case LAPIC_ID: atomic_store(&l->xapic_id, v >> 24); break;
    case LAPIC_LDR: atomic_store(&l->ldr, v & 0xff000000); break;
    case LAPIC_DFR: atomic_store(&l->dfr, v | 0x0fffffff); break;
    case LAPIC_ICR_HIGH: l->icr = (uint32_t)l->icr | (uint64_t)(v & 0xff000000) << 32; break;
    case LAPIC_ICR: l->icr = (l->icr & 0xffffffff00000000) | (v & 0xccfff); break;
    default:
        if (known_reg(off))
            write_reg(l, off, v);
        else
            lapic_error(l, ESR_ILLEGAL_REGISTER);
    }
    l->icr &= ~(uint64_t)ICR_BUSY;
    uint64_t icr = l->icr;
    lapic_update(l, k);
    pthread_mutex_unlock(&l->lock);
    if (off == LAPIC_ICR) send_ipi(l, icr, false, k);
}

/* ---- x2APIC: MSRs (SDM vol. 3 table 10-6) ---- */

static bool x2apic_readable(uint32_t reg)
{
    return known_reg(reg) && reg != LAPIC_APR && reg != LAPIC_RRD && reg != LAPIC_DFR && reg != LAPIC_ICR_HIGH &&
           reg != LAPIC_EOI;
}

static bool x2apic_read(struct lapic *l, uint32_t reg, uint64_t *value, struct irq_kick *k)
{
    if (!x2apic_mode(l) || !x2apic_readable(reg)) return false;
    pthread_mutex_lock(&l->lock);
    *value = reg == LAPIC_ICR ? l->icr : read_reg(l, reg);
    lapic_update(l, k);
    pthread_mutex_unlock(&l->lock);
    return true;
}

/* The bits that may be set in a write without #GP; all others are reserved or the register is read-only. */
static uint64_t x2apic_writable(uint32_t reg)
{
    switch (reg) {
    case LAPIC_TPR: return 0xff;
    case LAPIC_SVR: return SVR_NO_EOI_BROADCAST | SVR_ENABLE | 0xff;
    case LAPIC_ICR: return 0xffffffff000cdfff;
    case LAPIC_INITIAL: return 0xffffffff;
    case LAPIC_DIVIDE: return 0xb;
    case LAPIC_SELF_IPI: return 0xff;
    default:
        if (reg >= LAPIC_LVT && reg <= LAPIC_LVT_LAST)
            return lapic_lvt_writable[(reg - LAPIC_LVT) / 16] | lvt_readonly[(reg - LAPIC_LVT) / 16];
        return 0;
    }
}

static bool x2apic_can_write(uint32_t reg)
{
    return x2apic_writable(reg) || reg == LAPIC_EOI || reg == LAPIC_ESR;
}

static bool x2apic_write(struct lapic *l, uint32_t reg, uint64_t v, struct irq_kick *k)
{
    if (!x2apic_mode(l) || !x2apic_can_write(reg) || v & ~x2apic_writable(reg)) return false;
    if (reg == LAPIC_EOI) {
        lapic_eoi(l, k);
        return true;
    }
    if (reg == LAPIC_SELF_IPI) {
        send_ipi(l, (v & 0xff) | 1u << 18, true, k);
        return true;
    }
    pthread_mutex_lock(&l->lock);
    if (reg == LAPIC_ICR)
        l->icr = v & ~(uint64_t)ICR_BUSY;
    else
        write_reg(l, reg, (uint32_t)v);
    lapic_update(l, k);
    pthread_mutex_unlock(&l->lock);
    if (reg == LAPIC_ICR) send_ipi(l, v, true, k);
    return true;
}

/* ---- IA32_APIC_BASE and IA32_TSC_DEADLINE ---- */

/* The physical address width that the engines' CPUID tells the guest (SOFT_PHYS_BITS in the soft one). */
#define GUEST_PHYS_BITS 46
const uint64_t lapic_address_mask = ((1ull << GUEST_PHYS_BITS) - 1) & ~0xfffull;

/* SDM vol. 3 10.12.5 and figure 10-27: which mode may follow which. */
static bool mode_change_legal(uint64_t from, uint64_t to)
{
    bool en = to & APIC_BASE_EN, ext = to & APIC_BASE_EXTD;
    if (ext && !en) return false;
    if (ext && !(from & APIC_BASE_EN)) return false;       /* disabled -> x2APIC */
    if (en && !ext && from & APIC_BASE_EXTD) return false; /* x2APIC -> xAPIC */
    return true;
}

static bool write_base(struct lapic *l, uint64_t v, struct irq_kick *k)
{
    const uint64_t modes = APIC_BASE_EN | APIC_BASE_EXTD;
    if (v & ~lapic_address_mask & ~(modes | APIC_BASE_BSP)) return false;
    pthread_mutex_lock(&l->lock);
    uint64_t old = atomic_load(&l->base);
    bool ok = mode_change_legal(old, v);
    if (ok) {
        atomic_store(&l->base, v);
        if (old & APIC_BASE_EN && !(v & APIC_BASE_EN)) {
            /* It will come back as after power-on (10.4.3). */
            lapic_reset_locked(l);
            atomic_store(&l->xapic_id, l->vcpu);
        } else if (!(old & APIC_BASE_EXTD) && v & APIC_BASE_EXTD) {
            atomic_store(&l->ldr, l->vcpu >> 4 << 16 | 1u << (l->vcpu & 15)); /* 10.12.10.2 */
        }
        lapic_update(l, k);
    }
    pthread_mutex_unlock(&l->lock);
    return ok;
}

bool lapic_msr_read(struct lapic *l, uint32_t msr, uint64_t *value, struct irq_kick *k)
{
    if (msr == MSR_APIC_BASE) {
        *value = atomic_load(&l->base);
        return true;
    }
    if (msr == MSR_TSC_DEADLINE) {
        pthread_mutex_lock(&l->lock);
        *value = lapic_timer_deadline(l);
        lapic_update(l, k);
        pthread_mutex_unlock(&l->lock);
        return true;
    }
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST) return false;
    return x2apic_read(l, (msr - MSR_X2APIC_FIRST) << 4, value, k);
}

bool lapic_msr_write(struct lapic *l, uint32_t msr, uint64_t value, struct irq_kick *k)
{
    if (msr == MSR_APIC_BASE) return write_base(l, value, k);
    if (msr == MSR_TSC_DEADLINE) {
        pthread_mutex_lock(&l->lock);
        lapic_timer_set_deadline(l, value);
        lapic_update(l, k);
        pthread_mutex_unlock(&l->lock);
        return true;
    }
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST) return false;
    return x2apic_write(l, (msr - MSR_X2APIC_FIRST) << 4, value, k);
}
