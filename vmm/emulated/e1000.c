/* Registers, interrupts and life cycle of the e1000. */
#include "vmm/emulated/e1000.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "vmm/emulated/e1000_internal.h"

#define VENDOR_INTEL 0x8086
#define DEVICE_82540EM 0x100e
#define CLASS_ETHERNET 0x020000
#define IO_BAR_SIZE 64
#define ITR_UNIT_NS 256u
#define ITR_MAX_NS 1000000u /* what a driver may delay interrupts by: beyond that it has not meant it */

/* ---- interrupts (3.4) ---- */

/* With irq_lock. */
static void update_line(struct e1000 *d)
{
    bool want = d->icr & d->ims;
    if (want && !d->line) {
        uint64_t now = clock_mono_ns(), interval = (uint64_t)(e1000_get(d, E1000_ITR) & 0xffff) * ITR_UNIT_NS;
        if (now < d->quiet_until) {
            event_timer_arm(&d->itr_timer, d->quiet_until, 0);
            return;
        }
        d->quiet_until = now + (interval < ITR_MAX_NS ? interval : ITR_MAX_NS);
    }
    if (want == d->line) return;
    d->line = want;
    pci_intx_set(d->function, want);
}

void e1000_raise(struct e1000 *d, uint32_t causes)
{
    pthread_mutex_lock(&d->irq_lock);
    d->icr |= causes;
    update_line(d);
    pthread_mutex_unlock(&d->irq_lock);
}

static void on_itr(void *ctx)
{
    e1000_raise(ctx, 0);
}

static uint32_t read_icr(struct e1000 *d)
{
    pthread_mutex_lock(&d->irq_lock);
    uint32_t v = d->icr;
    d->icr = 0;
    update_line(d);
    pthread_mutex_unlock(&d->irq_lock);
    return v;
}

static void write_irq(struct e1000 *d, uint32_t off, uint32_t v)
{
    pthread_mutex_lock(&d->irq_lock);
    switch (off) {
    case E1000_ICR: d->icr &= ~v; break;
    case E1000_ICS: d->icr |= v; break;
    case E1000_IMS: d->ims |= v; break;
    default: d->ims &= ~v; break;
    }
    update_line(d);
    pthread_mutex_unlock(&d->irq_lock);
}

/* ---- registers ---- */

void e1000_add64(struct e1000 *d, enum e1000_reg low, uint64_t by)
{
    uint32_t old = atomic_fetch_add_explicit(&d->reg[low / 4], (uint32_t)by, memory_order_relaxed);
    e1000_add(d, low + 4, (uint32_t)(by >> 32) + ((uint64_t)old + (uint32_t)by > UINT32_MAX));
}

static uint32_t status(const struct e1000 *d)
{
    uint32_t up = atomic_load(&d->link) && e1000_get(d, E1000_CTRL) & CTRL_SLU ? STATUS_LU : 0;
    return STATUS_1000 | STATUS_FD | up;
}

static uint32_t read_register(struct e1000 *d, uint32_t off)
{
    switch (off) {
    case E1000_STATUS: return status(d);
    case E1000_EECD: return e1000_eecd_read(d);
    case E1000_ICR: return read_icr(d);
    case E1000_IMC:
    case E1000_IMS: {
        pthread_mutex_lock(&d->irq_lock);
        uint32_t v = d->ims;
        pthread_mutex_unlock(&d->irq_lock);
        return v;
    }
    default: break;
    }
    if (off >= E1000_STATISTICS && off < E1000_STATISTICS_END)
        return atomic_exchange_explicit(&d->reg[off / 4], 0, memory_order_relaxed);
    return off / 4 < E1000_REGS ? e1000_get(d, off) : 0;
}

/* All but the EEPROM's contents and the link (13.4.1, RST). */
static void reset_registers(struct e1000 *d)
{
    for (unsigned i = 0; i < E1000_REGS; i++) atomic_store_explicit(&d->reg[i], 0, memory_order_relaxed);
    e1000_put(d, E1000_CTRL, CTRL_FD | CTRL_SLU);
    e1000_put(d, E1000_PBA, 0x00100030);
    e1000_put(d, E1000_VET, 0x8100);
    const uint8_t *m = d->mac;
    e1000_put(d, E1000_RAL, (uint32_t)m[0] | (uint32_t)m[1] << 8 | (uint32_t)m[2] << 16 | (uint32_t)m[3] << 24);
    e1000_put(d, E1000_RAH, (uint32_t)m[4] | (uint32_t)m[5] << 8 | RAH_VALID);
}

static void reset(void *dev)
{
    struct e1000 *d = dev;
    pthread_mutex_lock(&d->tx_lock);
    pthread_mutex_lock(&d->rx_lock);
    bool continuing = d->tx.continuing;
    reset_registers(d);
    memset(&d->tx, 0, sizeof d->tx);
    d->tx.first = true;
    d->tx.continuing = continuing; /* it is on its way and finds nothing */
    pthread_mutex_unlock(&d->rx_lock);
    pthread_mutex_unlock(&d->tx_lock);
    e1000_wires_reset(d);
    pthread_mutex_lock(&d->irq_lock);
    d->icr = d->ims = 0;
    d->quiet_until = 0;
    update_line(d);
    pthread_mutex_unlock(&d->irq_lock);
    net_forget(d->net);
}

static void write_ctrl(struct e1000 *d, uint32_t v)
{
    if (v & CTRL_RST) {
        reset(d);
        return;
    }
    if (v & CTRL_PHY_RST) e1000_wires_reset(d);
    uint32_t old = e1000_get(d, E1000_CTRL);
    e1000_put(d, E1000_CTRL, v & ~(CTRL_RST | CTRL_PHY_RST));
    if ((old ^ v) & CTRL_SLU && atomic_load(&d->link)) e1000_raise(d, CAUSE_LSC);
}

static void write_tx(struct e1000 *d, uint32_t off, uint32_t v)
{
    pthread_mutex_lock(&d->tx_lock);
    if (off == E1000_TDT || off == E1000_TDH) v &= 0xffff;
    if (off == E1000_TDLEN) v &= 0xfff80;
    if (off == E1000_TDBAL) v &= ~15u;
    e1000_put(d, off, v);
    if (off == E1000_TDT) device_count(&d->stats->notifications, 1);
    if (off == E1000_TDT || off == E1000_TCTL) e1000_tx_run(d);
    pthread_mutex_unlock(&d->tx_lock);
}

static void write_rx(struct e1000 *d, uint32_t off, uint32_t v)
{
    pthread_mutex_lock(&d->rx_lock);
    if (off == E1000_RDT || off == E1000_RDH) v &= 0xffff;
    if (off == E1000_RDLEN) v &= 0xfff80;
    if (off == E1000_RDBAL) v &= ~15u;
    e1000_put(d, off, v);
    pthread_mutex_unlock(&d->rx_lock);
    if (off == E1000_RDT) device_count(&d->stats->notifications, 1);
    if (off == E1000_RDT || off == E1000_RCTL) net_receive_ready(d->net);
}

static void write_register(struct e1000 *d, uint32_t off, uint32_t v)
{
    switch (off) {
    case E1000_CTRL: write_ctrl(d, v); return;
    case E1000_STATUS: return;
    case E1000_EECD: e1000_eecd_write(d, v); return;
    case E1000_EERD: e1000_eerd_write(d, v); return;
    case E1000_MDIC: e1000_mdic_write(d, v); return;
    case E1000_ICR:
    case E1000_ICS:
    case E1000_IMS:
    case E1000_IMC: write_irq(d, off, v); return;
    case E1000_RCTL:
    case E1000_RDBAL:
    case E1000_RDBAH:
    case E1000_RDLEN:
    case E1000_RDH:
    case E1000_RDT: write_rx(d, off, v); return;
    case E1000_TCTL:
    case E1000_TDBAL:
    case E1000_TDBAH:
    case E1000_TDLEN:
    case E1000_TDH:
    case E1000_TDT: write_tx(d, off, v); return;
    default: break;
    }
    if (off >= E1000_STATISTICS && off < E1000_STATISTICS_END) return;
    if (off / 4 < E1000_REGS) e1000_put(d, off, v);
}

/* ---- BARs: the registers, and a window of two ports onto them (13.3) ---- */

static uint64_t bar_read(void *dev, unsigned bar, uint64_t off, unsigned size)
{
    struct e1000 *d = dev;
    if (bar == 0) {
        uint32_t v = read_register(d, (uint32_t)off & ~3u);
        return size == 8 ? v : (v >> (off & 3) * 8) & (size == 4 ? 0xffffffffu : (1u << size * 8) - 1);
    }
    if (off == 0) return __atomic_load_n(&d->io_address, __ATOMIC_RELAXED);
    return off == 4 ? read_register(d, __atomic_load_n(&d->io_address, __ATOMIC_RELAXED)) : 0;
}

/* Registers are 32 bits wide; other writes do nothing (13.1). */
static void bar_write(void *dev, unsigned bar, uint64_t off, unsigned size, uint64_t value)
{
    struct e1000 *d = dev;
    if (size < 4 || off & 3) return;
    if (bar == 0)
        write_register(d, (uint32_t)off, (uint32_t)value);
    else if (off == 0)
        __atomic_store_n(&d->io_address, (uint32_t)value & (E1000_BAR_SIZE - 1) & ~3u, __ATOMIC_RELAXED);
    else if (off == 4)
        write_register(d, __atomic_load_n(&d->io_address, __ATOMIC_RELAXED), (uint32_t)value);
}

static const struct pci_ops pci_ops = {.bar_read = bar_read, .bar_write = bar_write, .reset = reset};

/* ---- life cycle ---- */

static void on_link(void *ctx, bool up)
{
    struct e1000 *d = ctx;
    atomic_store(&d->link, up);
    e1000_phy_link(d, up);
    e1000_raise(d, CAUSE_LSC);
}

static int add_function(struct e1000 *d, struct pci_bus *b, int slot, const char *name, struct nerr *e)
{
    struct pci_desc p = {
        .name = name,
        .kind = "e1000",
        .vendor = VENDOR_INTEL,
        .device = DEVICE_82540EM,
        .subsystem_vendor = VENDOR_INTEL,
        .subsystem = 0x001e,
        .class_code = CLASS_ETHERNET,
        .revision = 2,
        .intx = true,
        .bar = {{.kind = PCI_BAR_MEM32, .size = E1000_BAR_SIZE}, {.kind = PCI_BAR_IO, .size = IO_BAR_SIZE}},
        .ops = &pci_ops,
        .dev = d,
    };
    int r = pci_add(b, slot, &p, &d->function, e);
    if (r) return r;
    d->stats = pci_stats(d->function);
    net_count_into(d->net, d->stats);
    return 0;
}

int e1000_create(struct pci_bus *b, int slot, const struct e1000_options *o, struct event_loop *loop,
                 struct e1000 **out, struct nerr *e)
{
    *out = NULL;
    struct e1000 *d = calloc(1, sizeof *d);
    if (!d) return nerr_set(e, -ENOMEM, "%s: out of memory", o->name);
    d->loop = loop;
    memcpy(d->mac, o->mac, 6);
    d->tx.first = true;
    pthread_mutex_init(&d->tx_lock, NULL);
    pthread_mutex_init(&d->rx_lock, NULL);
    pthread_mutex_init(&d->irq_lock, NULL);
    pthread_mutex_init(&d->wire_lock, NULL);
    event_timer_init(&d->itr_timer, loop, on_itr, d);
    struct net_port port = {
        .ctx = d, .receive = e1000_receive, .receive_end = e1000_receive_end, .link_changed = on_link};
    int r = net_open(&o->net, loop, &port, &d->net, e);
    if (!r) {
        struct net_info info;
        net_info(d->net, &info);
        atomic_store(&d->link, info.link);
        net_on_writable(d->net, e1000_tx_writable, d);
        e1000_eeprom_init(d);
        e1000_wires_reset(d);
        reset_registers(d);
        r = add_function(d, b, slot, o->name, e);
    }
    if (r)
        e1000_destroy(d);
    else
        *out = d;
    return r;
}

void e1000_destroy(struct e1000 *d)
{
    if (!d) return;
    net_close(d->net);
    event_timer_destroy(&d->itr_timer);
    pthread_mutex_destroy(&d->tx_lock);
    pthread_mutex_destroy(&d->rx_lock);
    pthread_mutex_destroy(&d->irq_lock);
    pthread_mutex_destroy(&d->wire_lock);
    free(d);
}

struct net *e1000_backend(struct e1000 *d)
{
    return d->net;
}
