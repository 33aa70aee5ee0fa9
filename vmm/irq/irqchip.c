/* Glue: routing between the controllers, the bus and the host. */
#include <errno.h>
#include <stdlib.h>

#include "vmm/irq/chip.h"

/* The guest may move a LAPIC's page (IA32_APIC_BASE) within this window; the bus is fixed, so all of it is ours. */
#define LAPIC_WINDOW_BASE 0xfed00000u
#define LAPIC_WINDOW_SIZE 0x300000u

static _Thread_local unsigned current_vcpu;

void irqchip_set_current_vcpu(unsigned vcpu)
{
    current_vcpu = vcpu;
}

void irq_kick_run(struct irqchip *c, const struct irq_kick *k)
{
    for (uint64_t m = k->init; m; m &= m - 1) c->host.init(c->host.ctx, (unsigned)__builtin_ctzll(m));
    for (uint64_t m = k->sipi; m; m &= m - 1) c->host.sipi(c->host.ctx, (unsigned)__builtin_ctzll(m), k->sipi_vector);
    for (uint64_t m = k->interrupt; m; m &= m - 1) c->host.interrupt(c->host.ctx, (unsigned)__builtin_ctzll(m));
}

/* Lowest priority (SDM vol. 3 10.6.2.4): the enabled candidate with the lowest processor priority; equals take turns. */
static bool deliver_lowest(struct irqchip *c, const struct irq_message *m, unsigned except, struct irq_kick *k)
{
    unsigned first = atomic_fetch_add_explicit(&c->lowest_next, 1, memory_order_relaxed) % c->vcpus;
    struct lapic *best = NULL;
    uint32_t best_priority = 0;
    for (unsigned i = 0; i < c->vcpus; i++) {
        struct lapic *l = &c->lapic[(first + i) % c->vcpus];
        if (l->vcpu == except || !lapic_matches(l, m) || !(atomic_load(&l->svr) & SVR_ENABLE)) continue;
        uint32_t p = atomic_load_explicit(&l->ppr, memory_order_relaxed);
        if (best && p >= best_priority) continue;
        best = l;
        best_priority = p;
    }
    return best && lapic_accept(best, m, k);
}

bool irq_deliver(struct irqchip *c, const struct irq_message *m, unsigned except, struct irq_kick *k)
{
    if (m->mode == IRQ_LOWEST) return deliver_lowest(c, m, except, k);
    bool taken = false;
    for (unsigned i = 0; i < c->vcpus; i++)
        if (i != except && lapic_matches(&c->lapic[i], m)) taken |= lapic_accept(&c->lapic[i], m, k);
    return taken;
}

void irqchip_set_line(struct irqchip *c, unsigned gsi, bool level)
{
    if (gsi >= IRQ_LINES) return;
    if (c->inside) {
        c->inside->set_line(c->engine, gsi, level);
        return;
    }
    struct irq_kick k = {0};
    /* ISA IRQ 0, the PIT, is wired to pin 2 of the IOAPIC; the 8259s' own pin 2 is their cascade. */
    if (gsi == 2)
        pic_set_line(&c->pic, 0, level, &k);
    else if (gsi > 0 && gsi < 16)
        pic_set_line(&c->pic, gsi, level, &k);
    ioapic_set_line(&c->ioapic, gsi, level, &k);
    irq_kick_run(c, &k);
}

/* SDM vol. 3 10.11 */
void irqchip_msi(struct irqchip *c, uint64_t addr, uint32_t data)
{
    if (addr >> 20 != 0xfee) return;
    if (c->inside) {
        c->inside->msi(c->engine, addr, data);
        return;
    }
    struct irq_kick k = {0};
    struct irq_message m = {
        .dest = addr >> 12 & 0xff,
        .logical = addr >> 2 & 1,
        .mode = data >> 8 & 7,
        .vector = (uint8_t)data,
        .level = data >> 15 & 1,
    };
    if (m.level && !(data >> 14 & 1)) return; /* a level's de-assertion */
    irq_deliver(c, &m, ENGINE_MAX_VCPUS, &k);
    irq_kick_run(c, &k);
}

int irqchip_irqfd_add(struct irqchip *c, int fd, uint64_t addr, uint32_t data, struct nerr *e)
{
    if (addr >> 20 != 0xfee)
        return nerr_set(e, -EINVAL, "irqfd: 0x%llx is no address of a message-signalled interrupt",
                        (unsigned long long)addr);
    return c->inside ? c->inside->irqfd_add(c->engine, fd, addr, data, e) : irqfd_add(c, fd, addr, data, e);
}

bool irqchip_irqfd_direct(const struct irqchip *c)
{
    return c->inside;
}

void irqchip_irqfd_remove(struct irqchip *c, int fd)
{
    if (c->inside)
        c->inside->irqfd_remove(c->engine, fd);
    else
        irqfd_remove(c, fd);
}

/* ---- LAPIC MMIO ---- */

static struct lapic *lapic_at(struct irqchip *c, uint64_t off, uint32_t *reg)
{
    struct lapic *l = &c->lapic[current_vcpu < c->vcpus ? current_vcpu : 0];
    uint64_t base = atomic_load(&l->base) & ~0xfffull;
    uint64_t addr = LAPIC_WINDOW_BASE + off;
    if (addr - base >= 0x1000) return NULL;
    *reg = (uint32_t)(addr - base);
    return l;
}

/* Registers are 32 bits wide on 16-byte boundaries; narrower reads of them are tolerated, other bytes read as
 * zero (SDM vol. 3 10.4.1 leaves them undefined). */
static uint64_t lapic_window_read(void *dev, uint64_t off, unsigned size)
{
    struct irqchip *c = dev;
    uint32_t reg;
    struct lapic *l = lapic_at(c, off, &reg);
    if (!l || c->inside) return ~0ull; /* the engine's own is switched off, or it would have answered */
    if ((reg & 0xf) + size > 4 && size <= 4) return 0;
    struct irq_kick k = {0};
    uint64_t v = lapic_mmio_read(l, reg & 0xff0, &k) >> ((reg & 3) * 8);
    irq_kick_run(c, &k);
    return v;
}

static void lapic_window_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct irqchip *c = dev;
    uint32_t reg;
    struct lapic *l = lapic_at(c, off, &reg);
    if (!l || c->inside || reg & 0xf || size < 4) return;
    struct irq_kick k = {0};
    lapic_mmio_write(l, reg, (uint32_t)value, &k);
    irq_kick_run(c, &k);
}

static const struct bus_handler lapic_window = {lapic_window_read, lapic_window_write};

void irqchip_use_engine(struct irqchip *c, const struct engine_ops *ops, struct engine *g)
{
    c->inside = ops->irq;
    c->engine = g;
    if (!c->inside) return;
    ioapic_reset(&c->ioapic); /* those here rest, without a timer running */
    for (unsigned i = 0; i < c->vcpus; i++) lapic_power_on(&c->lapic[i]);
}

int irqchip_attach(struct irqchip *c, struct bus *b, struct nerr *e)
{
    int r = pic_attach(&c->pic, b, e);
    if (!r) r = ioapic_attach(&c->ioapic, b, e);
    if (!r) r = bus_add(b, BUS_MMIO, LAPIC_WINDOW_BASE, LAPIC_WINDOW_SIZE, &lapic_window, c, "lapic", e);
    return r;
}

/* ---- life ---- */

int irqchip_create(unsigned vcpus, struct event_loop *loop, const struct irqchip_host *host, struct irqchip **out,
                   struct nerr *e)
{
    if (vcpus < 1 || vcpus > ENGINE_MAX_VCPUS)
        return nerr_set(e, -EINVAL, "%u vCPUs: from 1 to %d are possible", vcpus, ENGINE_MAX_VCPUS);
    struct irqchip *c = calloc(1, sizeof *c + vcpus * sizeof c->lapic[0]);
    if (!c) return nerr_set(e, -ENOMEM, "out of memory for the interrupt controllers");
    c->host = *host;
    c->loop = loop;
    c->vcpus = vcpus;
    for (unsigned i = 0; i < vcpus; i++) lapic_init(&c->lapic[i], c, i);
    ioapic_init(&c->ioapic, c);
    pic_init(&c->pic, c);
    irqfd_init(c);
    *out = c;
    return 0;
}

void irqchip_destroy(struct irqchip *c)
{
    if (!c) return;
    irqfd_fini(c);
    for (unsigned i = 0; i < c->vcpus; i++) lapic_fini(&c->lapic[i]);
    pic_fini(&c->pic);
    ioapic_fini(&c->ioapic);
    free(c->frozen);
    free(c);
}

const struct vcpu_irq_port *irqchip_port(struct irqchip *c, unsigned vcpu)
{
    return vcpu < c->vcpus ? &c->lapic[vcpu].port : NULL;
}

/* Power-on is the same whoever keeps the controllers: those here, just reset, are the model for the engine's. */
static int reset_inside(struct irqchip *c, struct nerr *e)
{
    struct irq_chips_state old, new;
    struct irq_lapic_state l;
    int r = c->inside->reset(c->engine, e);
    for (unsigned i = 0; i < c->vcpus && !r; i++) {
        lapic_get_state(&c->lapic[i], &l);
        r = c->inside->set_lapic(c->engine, i, &l, e);
    }
    if (!r) r = c->inside->get_chips(c->engine, &old, e);
    if (r) return r;
    ioapic_get_state(&c->ioapic, &new.ioapic);
    pic_get_state(&c->pic, new.pic);
    new.ioapic.lines = old.ioapic.lines; /* the devices' wires stay as they are */
    for (unsigned i = 0; i < 2; i++) new.pic[i].lines = old.pic[i].lines;
    return c->inside->set_chips(c->engine, &new, e);
}

int irqchip_reset(struct irqchip *c, struct nerr *e)
{
    struct irq_kick k = {0};
    irq_forget_frozen(c);
    ioapic_reset(&c->ioapic);
    pic_reset(&c->pic, &k);
    for (unsigned i = 0; i < c->vcpus; i++) lapic_power_on(&c->lapic[i]);
    if (c->inside) return reset_inside(c, e);
    irq_kick_run(c, &k);
    return 0;
}
