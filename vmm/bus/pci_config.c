/* Configuration space: what is the same for all functions (PCI 3.0 chapter 6). Every byte has a mask of the bits that a guest may change;
 * after each write the registers it touched take effect. */
#include "vmm/bus/pci_internal.h"

/* PCI Express capability (PCIe 3.0 7.8) */
#define EXPRESS_DEVICE_CONTROL 8
#define DEVICE_CONTROL_FLR 0x80u /* high byte */

static bool overlaps(unsigned off, unsigned size, unsigned at, unsigned len)
{
    return off < at + len && at < off + size;
}

/* ---- BARs ---- */

static uint64_t bar_value(const struct pci_function *f, unsigned n)
{
    const struct pci_bar *b = &f->d.bar[n];
    uint64_t v = pci_get32(f->config + PCI_BAR(n));
    if (b->kind == PCI_BAR_MEM64) v |= (uint64_t)pci_get32(f->config + PCI_BAR(n + 1)) << 32;
    return v & ~(b->size - 1);
}

/* The host bridge passes on what lies wholly inside one of its windows; a BAR elsewhere decodes nothing. */
static uint64_t bar_decodes(const struct pci_function *f, unsigned n)
{
    const struct pci_bar *b = &f->d.bar[n];
    if (b->kind == PCI_BAR_NONE) return PCI_NOWHERE;
    bool io = b->kind == PCI_BAR_IO;
    if (!(f->config[PCI_COMMAND] & (io ? COMMAND_IO : COMMAND_MEMORY))) return PCI_NOWHERE;
    if (atomic_load_explicit(&f->unplugged, memory_order_relaxed)) return PCI_NOWHERE;
    uint64_t addr = bar_value(f, n);
    for (unsigned i = 0; i < WINDOWS; i++) {
        const struct pci_window *w = &f->bus->window[i];
        if ((w->space == BUS_PIO) == io && addr >= w->base && addr - w->base < w->size &&
            b->size <= w->size - (addr - w->base))
            return addr;
    }
    return PCI_NOWHERE;
}

void pci_update_bars(struct pci_function *f)
{
    unsigned moved = 0;
    for (unsigned n = 0; n < PCI_BARS; n++) {
        uint64_t at = bar_decodes(f, n);
        if (at == f->bar_at[n]) continue;
        f->bar_at[n] = at;
        moved |= 1u << n;
    }
    if (!moved) return;
    pci_map_rebuild(f->bus);
    for (unsigned n = 0; n < PCI_BARS; n++)
        if (moved >> n & 1 && f->d.ops->bar_moved) f->d.ops->bar_moved(f->d.dev, n, f->bar_at[n]);
}

/* ---- reset ---- */

void pci_registers_reset(struct pci_function *f, bool hot)
{
    for (unsigned i = 0; i < PCI_CONFIG_SIZE; i++)
        f->config[i] = (uint8_t)((f->config[i] & ~f->writable[i]) | (f->reset_value[i] & f->writable[i]));
    for (unsigned n = 0; hot && n < PCI_BARS; n++) {
        unsigned at = PCI_BAR(n);
        pci_put32(f->config + at, pci_get32(f->config + at) & ~pci_get32(f->writable + at));
    }
    atomic_store_explicit(&f->command, pci_get16(f->config + PCI_COMMAND), memory_order_release);
    pci_message_reset(f);
    pci_intx_update(f);
    pci_update_bars(f);
}

void pci_function_reset(struct pci_function *f, bool hot)
{
    if (f->d.ops->reset) f->d.ops->reset(f->d.dev);
    pci_intx_set(f, false);
    pci_registers_reset(f, hot);
}

/* ---- accesses ---- */

uint64_t pci_config_read(struct pci_function *f, unsigned off, unsigned size)
{
    uint64_t v = 0;
    if (off + size > PCI_CONFIG_SIZE) return ~0ull;
    if (off + size > PCI_FIRST_CAPABILITY) {
        pci_message_pending(f);
        if (f->d.ops->config_reading) f->d.ops->config_reading(f->d.dev, off, size);
    }
    if (overlaps(off, size, PCI_STATUS, 1)) pci_intx_status(f);
    for (unsigned i = 0; i < size; i++) v |= (uint64_t)f->config[off + i] << 8 * i;
    return v;
}

static bool apply(struct pci_function *f, unsigned off, unsigned size, uint64_t value)
{
    bool any = false;
    for (unsigned i = 0; i < size; i++) {
        uint8_t w = f->writable[off + i];
        f->config[off + i] = (uint8_t)((f->config[off + i] & ~w) | ((value >> 8 * i) & w));
        any |= w;
    }
    return any;
}

static bool wants_reset(struct pci_function *f)
{
    if (!f->express) return false;
    uint8_t *high = &f->config[f->express + EXPRESS_DEVICE_CONTROL + 1];
    bool flr = *high & DEVICE_CONTROL_FLR;
    *high &= (uint8_t)~DEVICE_CONTROL_FLR; /* always reads as 0 */
    return flr;
}

/* Capabilities of the bus's own are looked at whatever the write touched: they are few, and writes are rare. */
static void capability_written(struct pci_function *f, unsigned off, unsigned size)
{
    pci_message_update(f);
    pci_intx_update(f);
    if (wants_reset(f))
        pci_function_reset(f, true);
    else if (f->d.ops->config_written)
        f->d.ops->config_written(f->d.dev, off, size);
}

void pci_config_write(struct pci_function *f, unsigned off, unsigned size, uint64_t value)
{
    if (off + size > PCI_CONFIG_SIZE || !apply(f, off, size, value)) return;
    if (overlaps(off, size, PCI_COMMAND, 2)) {
        uint16_t old = atomic_exchange(&f->command, pci_get16(f->config + PCI_COMMAND)), now = f->command;
        if ((old ^ now) & COMMAND_INTX_OFF) pci_intx_update(f);
        if (now & ~old & COMMAND_MASTER) pci_message_update(f);
    }
    if (overlaps(off, size, PCI_COMMAND, 2) || overlaps(off, size, PCI_BAR(0), 4 * PCI_BARS)) pci_update_bars(f);
    if (off + size > PCI_FIRST_CAPABILITY) capability_written(f, off, size);
}
