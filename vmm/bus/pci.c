/* The bus: its host bridge, the two ways into configuration space, functions and their capabilities, wired interrupts. */
#include "vmm/bus/pci.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/bus/pci_internal.h"
#include "vmm/irq/irq.h"

/* All below 4 GiB lies in the PC hole (GUEST_LOW_RAM_END), under the IOAPIC at 0xfec00000. ECAM has room for one bus, so that
 * kernels look for devices on this one only. */
#define ECAM_BASE 0xe0000000ull
#define ECAM_SIZE 0x100000ull
#define MEM_BASE GUEST_LOW_RAM_END
#define MEM_SIZE (ECAM_BASE - MEM_BASE)
/* Small and right above RAM, since hosts of nested guests may have no more than 39 bits of physical address. */
#define MEM64_ALIGN (4ull << 30)
#define MEM64_SIZE (16ull << 30)
#define IO_SIZE 0x4000u
#define IO_BASE 0xc000u
#define IO_OTHER_BASE 0x8000u

/* An id that no kernel has quirks for. */
#define BRIDGE_VENDOR 0x8086
#define BRIDGE_DEVICE 0x0d57
#define CLASS_HOST_BRIDGE 0x060000

void pci_layout_init(struct pci_layout *l, uint64_t ram_size, uint16_t taken_port)
{
    uint64_t end = GUEST_HIGH_RAM_BASE;
    if (ram_size > GUEST_LOW_RAM_END) end += ram_size - GUEST_LOW_RAM_END;
    /* The debug-exit port is up to four bytes wide. */
    bool taken = taken_port >= IO_BASE - 3;
    *l = (struct pci_layout){
        .ecam_base = ECAM_BASE,
        .ecam_size = ECAM_SIZE,
        .io_base = taken ? IO_OTHER_BASE : IO_BASE,
        .io_size = taken ? IO_SIZE - 0x1000 : IO_SIZE,
        .mem_base = MEM_BASE,
        .mem_size = MEM_SIZE,
        .mem64_base = (end + MEM64_ALIGN - 1) & ~(MEM64_ALIGN - 1),
        .mem64_size = MEM64_SIZE,
    };
}

/* ---- configuration accesses ---- */

static struct pci_function *answering(const struct pci_bus *b, unsigned devfn)
{
    struct pci_function *f = devfn & 7 ? NULL : b->function[devfn >> 3];
    return f && !atomic_load_explicit(&f->unplugged, memory_order_relaxed) ? f : NULL;
}

static uint64_t access_read(struct pci_bus *b, unsigned devfn, unsigned reg, unsigned size)
{
    struct pci_function *f = answering(b, devfn);
    return f ? pci_config_read(f, reg, size) : ~0ull;
}

static void access_write(struct pci_bus *b, unsigned devfn, unsigned reg, unsigned size, uint64_t value)
{
    struct pci_function *f = answering(b, devfn);
    if (f) pci_config_write(f, reg, size, value);
}

static uint64_t ecam_read(void *dev, uint64_t off, unsigned size)
{
    struct pci_bus *b = dev;
    pthread_mutex_lock(&b->config_lock);
    uint64_t v = access_read(b, (unsigned)(off >> 12), off & 0xfff, size);
    pthread_mutex_unlock(&b->config_lock);
    return v;
}

static void ecam_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct pci_bus *b = dev;
    pthread_mutex_lock(&b->config_lock);
    access_write(b, (unsigned)(off >> 12), off & 0xfff, size, value);
    pthread_mutex_unlock(&b->config_lock);
}

/* PCI 3.0 3.2.2.3.2: 0xcf8 is a register for 32-bit accesses only; 0xcfc to 0xcff are the bytes of the selected double word. */
static bool data_selected(const struct pci_bus *b, uint64_t off, unsigned size, unsigned *devfn, unsigned *reg)
{
    *devfn = b->address >> 8 & 0xff;
    *reg = (b->address & 0xfc) + (off & 3);
    return off >= 4 && off + size <= 8 && b->address >> 31 && (b->address >> 16 & 0xff) == 0;
}

static uint64_t port_read(void *dev, uint64_t off, unsigned size)
{
    struct pci_bus *b = dev;
    unsigned devfn, reg;
    uint64_t v = ~0ull;
    pthread_mutex_lock(&b->config_lock);
    if (off == 0 && size == 4)
        v = b->address;
    else if (data_selected(b, off, size, &devfn, &reg))
        v = access_read(b, devfn, reg, size);
    pthread_mutex_unlock(&b->config_lock);
    return v;
}

static void port_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct pci_bus *b = dev;
    unsigned devfn, reg;
    pthread_mutex_lock(&b->config_lock);
    if (off == 0 && size == 4)
        b->address = (uint32_t)value & 0x80fffffcu;
    else if (data_selected(b, off, size, &devfn, &reg))
        access_write(b, devfn, reg, size, value);
    pthread_mutex_unlock(&b->config_lock);
}

const struct bus_handler pci_config_ports = {port_read, port_write};

/* ---- wired interrupts ---- */

/* Level-triggered and shared: the line is up while any slot holds it. */
static void hold(struct pci_bus *b, unsigned line, unsigned slot, bool level)
{
    uint32_t *holders = &b->asserting[line], before = *holders;
    *holders = level ? before | 1u << slot : before & ~(1u << slot);
    if (!*holders == !before) return;
    if (b->cfg.sink)
        b->cfg.sink->line(b->cfg.sink->ctx, line, *holders);
    else
        irqchip_set_line(b->cfg.irqchip, line, *holders);
}

/* A pin is wired to the IOAPIC and to the 8259s; a system uses one of them and masks the other. */
static void intx_settle(struct pci_function *f)
{
    struct pci_bus *b = f->bus;
    uint16_t command = atomic_load_explicit(&f->command, memory_order_acquire);
    bool level = f->intx_wish && !atomic_load_explicit(&f->unplugged, memory_order_acquire) &&
                 !(command & COMMAND_INTX_OFF) && !pci_msi_enabled(f) && !pci_msix_enabled(f);
    if (level == f->intx) return;
    f->intx = level;
    if (level) device_count(&f->stats.interrupts, 1);
    hold(b, pci_gsi(f->slot), f->slot, level);
    hold(b, pci_isa_irq(f->slot), f->slot, level);
}

void pci_intx_set(struct pci_function *f, bool level)
{
    if (!f->d.intx) return;
    pthread_mutex_lock(&f->bus->intx_lock);
    f->intx_wish = level;
    intx_settle(f);
    pthread_mutex_unlock(&f->bus->intx_lock);
}

void pci_intx_update(struct pci_function *f)
{
    pthread_mutex_lock(&f->bus->intx_lock);
    intx_settle(f);
    pthread_mutex_unlock(&f->bus->intx_lock);
}

void pci_intx_status(struct pci_function *f)
{
    pthread_mutex_lock(&f->bus->intx_lock);
    f->config[PCI_STATUS] =
        (uint8_t)((f->config[PCI_STATUS] & ~STATUS_INTERRUPT) | (f->intx_wish ? STATUS_INTERRUPT : 0));
    pthread_mutex_unlock(&f->bus->intx_lock);
}

/* ---- functions ---- */

unsigned pci_add_capability(struct pci_function *f, uint8_t id, const void *body, const void *writable, unsigned len)
{
    unsigned at = f->next_free, whole = (len + 2 + 3) & ~3u;
    if (at + whole > 0x100) return 0;
    f->next_free = at + whole;
    f->config[at] = id;
    memcpy(f->config + at + 2, body, len);
    if (writable) memcpy(f->writable + at + 2, writable, len);
    f->config[f->last_cap ? f->last_cap + 1 : PCI_CAPABILITIES] = (uint8_t)at;
    f->last_cap = at;
    f->config[PCI_STATUS] |= STATUS_CAPABILITIES;
    memcpy(f->reset_value + at, f->config + at, whole);
    return at;
}

/* A root complex integrated endpoint (PCIe 3.0 7.8): no link, function level reset. */
static bool add_express(struct pci_function *f)
{
    uint8_t body[58] = {0}, writable[58] = {0};
    pci_put16(body, 0x0092);         /* version 2, type 9 */
    pci_put32(body + 2, 0x10008000); /* function level reset, role-based error reporting */
    pci_put16(body + 6, 0x2810);     /* requests of 512 bytes, relaxed order, no snoop */
    pci_put16(writable + 6, 0xf81f); /* these, what errors to report, and the start of a reset */
    f->express = pci_add_capability(f, CAP_EXPRESS, body, writable, sizeof body);
    return f->express;
}

static int check_bars(const struct pci_desc *d, struct nerr *e)
{
    for (unsigned n = 0; n < PCI_BARS; n++) {
        const struct pci_bar *b = &d->bar[n];
        if (b->kind == PCI_BAR_NONE) continue;
        if (b->size & (b->size - 1) || b->size < (b->kind == PCI_BAR_IO ? 4 : 16))
            return nerr_set(e, -EINVAL, "%s: BAR %u cannot have %" PRIu64 " bytes", d->name, n, b->size);
        if (b->kind == PCI_BAR_MEM64 && (n + 1 == PCI_BARS || d->bar[n + 1].kind != PCI_BAR_NONE))
            return nerr_set(e, -EINVAL, "%s: the BAR behind 64-bit BAR %u is not free", d->name, n);
    }
    return 0;
}

static struct pci_window *window_for(struct pci_bus *b, const struct pci_bar *bar)
{
    if (bar->kind == PCI_BAR_IO) return &b->window[WINDOW_IO];
    return &b->window[bar->kind == PCI_BAR_MEM64 && bar->prefetchable ? WINDOW_MEM64 : WINDOW_MEM];
}

/* The end of a BAR of `f` that has its home within [at, at + len) of this kind of address, or 0. */
static uint64_t taken_until(const struct pci_function *f, bool io, uint64_t at, uint64_t len)
{
    for (unsigned n = 0; f && n < PCI_BARS; n++)
        if (f->room[n] && (f->d.bar[n].kind == PCI_BAR_IO) == io && f->home[n] < at + len &&
            at < f->home[n] + f->room[n])
            return f->home[n] + f->room[n];
    return 0;
}

/* The first aligned place that is nobody's home. Functions come and go, so what is free follows from those that are there. */
static bool find_home(const struct pci_function *f, const struct pci_window *w, uint64_t size, uint64_t *at)
{
    for (uint64_t a = w->base, end = 1; end;) {
        a = (a + size - 1) & ~(size - 1);
        if (a < w->base || a - w->base >= w->size || size > w->size - (a - w->base)) return false;
        end = taken_until(f, w->space == BUS_PIO, a, size);
        for (unsigned i = 0; i < PCI_SLOTS && !end; i++)
            end = taken_until(f->bus->function[i], w->space == BUS_PIO, a, size);
        *at = a;
        a = end;
    }
    return true;
}

/* Our part of a firmware's work: every BAR gets an address, memory BARs pages of their own. */
static int place_bar(struct pci_function *f, unsigned n, struct nerr *e)
{
    const struct pci_bar *b = &f->d.bar[n];
    if (b->kind == PCI_BAR_NONE) return 0;
    uint64_t align = b->kind != PCI_BAR_IO && b->size < PAGE_SIZE ? PAGE_SIZE : b->size, at;
    if (!find_home(f, window_for(f->bus, b), align, &at))
        return nerr_set(e, -ENOSPC, "%s: no room for BAR %u of %" PRIu64 " bytes; use fewer or smaller devices",
                        f->d.name, n, b->size);
    f->home[n] = at;
    f->room[n] = align; /* never smaller than the BAR */
    uint32_t kind = b->kind == PCI_BAR_IO ? 1u : (b->kind == PCI_BAR_MEM64 ? 4u : 0u) | (b->prefetchable ? 8u : 0u);
    uint64_t mask = ~(b->size - 1);
    pci_put32(f->config + PCI_BAR(n), (uint32_t)at | kind);
    pci_put32(f->writable + PCI_BAR(n), (uint32_t)mask);
    if (b->kind != PCI_BAR_MEM64) return 0;
    pci_put32(f->config + PCI_BAR(n + 1), (uint32_t)(at >> 32));
    pci_put32(f->writable + PCI_BAR(n + 1), (uint32_t)(mask >> 32));
    return 0;
}

static int place_bars(struct pci_function *f, struct nerr *e)
{
    int r = 0;
    for (unsigned n = 0; n < PCI_BARS && !r; n++) {
        f->bar_at[n] = PCI_NOWHERE;
        r = place_bar(f, n, e);
    }
    return r;
}

static void fill_header(struct pci_function *f)
{
    const struct pci_desc *d = &f->d;
    uint8_t *c = f->config;
    uint16_t command = COMMAND_MASTER | COMMAND_PARITY | COMMAND_SERR | (d->intx ? COMMAND_INTX_OFF : 0);
    for (unsigned n = 0; n < PCI_BARS; n++) {
        if (d->bar[n].kind == PCI_BAR_IO) command |= COMMAND_IO;
        if (d->bar[n].kind > PCI_BAR_IO) command |= COMMAND_MEMORY;
    }
    pci_put16(c + PCI_VENDOR, d->vendor);
    pci_put16(c + PCI_VENDOR + 2, d->device);
    pci_put32(c + PCI_REVISION, d->class_code << 8 | d->revision);
    pci_put16(c + PCI_SUBSYSTEM, d->subsystem_vendor);
    pci_put16(c + PCI_SUBSYSTEM + 2, d->subsystem);
    c[PCI_INTERRUPT_PIN] = d->intx ? 1 : 0;
    c[PCI_INTERRUPT_LINE] = d->intx ? (uint8_t)pci_isa_irq(f->slot) : 0;
    pci_put16(f->writable + PCI_COMMAND, command);
    f->writable[PCI_CACHE_LINE] = 0xff;
    f->writable[PCI_INTERRUPT_LINE] = d->intx ? 0xff : 0;
}

static int init_function(struct pci_function *f, bool bridge, struct nerr *e)
{
    struct pci_desc *d = &f->d;
    if (d->msix_vectors > MSIX_MAX || (d->msix_vectors && d->msix_bar >= PCI_BARS))
        return nerr_set(e, -EINVAL, "%s: %u MSI-X vectors in BAR %u are not possible", d->name, d->msix_vectors,
                        d->msix_bar);
    if (d->msix_vectors && d->bar[d->msix_bar].kind == PCI_BAR_NONE)
        d->bar[d->msix_bar] = (struct pci_bar){.kind = PCI_BAR_MEM32, .size = pci_msix_size(d->msix_vectors)};
    int r = check_bars(d, e);
    if (!r && d->msix_vectors &&
        (d->bar[d->msix_bar].kind == PCI_BAR_IO || d->bar[d->msix_bar].size < pci_msix_size(d->msix_vectors)))
        r = nerr_set(e, -EINVAL, "%s: BAR %u is too small for %u MSI-X vectors", d->name, d->msix_bar, d->msix_vectors);
    if (r) return r;
    fill_header(f);
    r = place_bars(f, e);
    if (!r && !bridge && !add_express(f)) r = -ENOSPC;
    if (!r) r = pci_message_init(f, e);
    if (r) return r;
    memcpy(f->reset_value, f->config, sizeof f->reset_value);
    pci_message_reset(f);
    return 0;
}

static int pick_slot(const struct pci_bus *b, int slot)
{
    if (slot >= 0) return slot < PCI_SLOTS && !b->function[slot] ? slot : -1;
    for (int i = 0; i < PCI_SLOTS; i++)
        if (!b->function[i]) return i;
    return -1;
}

void pci_free(struct pci_function *f)
{
    if (!f) return;
    pci_message_fini(f);
    pthread_mutex_destroy(&f->message_lock);
    free(f);
}

static int add(struct pci_bus *b, int slot, const struct pci_desc *d, bool bridge, struct pci_function **out,
               struct nerr *e)
{
    int at = pick_slot(b, slot);
    if (at < 0) return nerr_set(e, -ENOSPC, "%s: no PCI slot is free; use fewer devices", d->name);
    struct pci_function *f = calloc(1, sizeof *f);
    if (!f) return nerr_set(e, -ENOMEM, "%s: out of memory", d->name);
    pthread_mutex_init(&f->message_lock, NULL);
    f->bus = b;
    f->d = *d;
    f->slot = (unsigned)at;
    f->next_free = PCI_FIRST_CAPABILITY;
    f->stats.name = d->name;
    f->stats.kind = d->kind ? d->kind : "pci";
    int r = init_function(f, bridge, e);
    if (r) {
        pci_free(f);
        return r;
    }
    pthread_mutex_lock(&b->config_lock);
    b->function[at] = f;
    pthread_mutex_unlock(&b->config_lock);
    if (out) *out = f;
    return 0;
}

int pci_add(struct pci_bus *b, int slot, const struct pci_desc *d, struct pci_function **out, struct nerr *e)
{
    return add(b, slot, d, false, out, e);
}

uint8_t *pci_config(struct pci_function *f)
{
    return f->config;
}

bool pci_bus_master(const struct pci_function *f)
{
    return atomic_load_explicit(&f->command, memory_order_acquire) & COMMAND_MASTER;
}

const struct dma_space *pci_dma(const struct pci_function *f)
{
    return &f->bus->cfg.dma;
}

struct bus *pci_bar_bus(const struct pci_function *f)
{
    return f->bus->cfg.bus;
}

struct device_stats *pci_stats(struct pci_function *f)
{
    return &f->stats;
}

unsigned pci_slot(const struct pci_function *f)
{
    return f->slot;
}

unsigned pci_functions(struct pci_bus *b, struct pci_function **out, unsigned max)
{
    unsigned n = 0;
    for (unsigned i = 1; i < PCI_SLOTS && n < max; i++)
        if (b->function[i] && !pci_unplugged(b->function[i])) out[n++] = b->function[i];
    return n;
}

/* ---- life ---- */

static int add_bridge(struct pci_bus *b, struct nerr *e)
{
    static const struct pci_ops none = {0};
    struct pci_desc d = {
        .name = "PCI host bridge",
        .kind = "bridge",
        .vendor = BRIDGE_VENDOR,
        .device = BRIDGE_DEVICE,
        .class_code = CLASS_HOST_BRIDGE,
        .ops = &none,
    };
    return add(b, 0, &d, true, NULL, e);
}

static void set_window(struct pci_bus *b, unsigned n, enum bus_space space, uint64_t base, uint64_t size)
{
    b->window[n] = (struct pci_window){.bus = b, .space = space, .base = base, .size = size};
}

int pci_bus_create(const struct pci_config *cfg, struct pci_bus **out, struct nerr *e)
{
    static const struct bus_handler ecam = {ecam_read, ecam_write};
    struct pci_bus *b = calloc(1, sizeof *b);
    if (!b) return nerr_set(e, -ENOMEM, "out of memory for the PCI bus");
    b->cfg = *cfg;
    pci_layout_init(&b->layout, cfg->ram_size, cfg->taken_port);
    set_window(b, WINDOW_IO, BUS_PIO, b->layout.io_base, b->layout.io_size);
    set_window(b, WINDOW_MEM, BUS_MMIO, b->layout.mem_base, b->layout.mem_size);
    set_window(b, WINDOW_MEM64, BUS_MMIO, b->layout.mem64_base, b->layout.mem64_size);
    pthread_mutex_init(&b->config_lock, NULL);
    pthread_mutex_init(&b->intx_lock, NULL);
    pci_map_init(&b->map);
    int r = add_bridge(b, e);
    if (!r) r = pci_windows_attach(b, e);
    if (!r) r = bus_add(cfg->bus, BUS_MMIO, b->layout.ecam_base, b->layout.ecam_size, &ecam, b, "pci-ecam", e);
    if (r) {
        pci_bus_destroy(b);
        return r;
    }
    *out = b;
    return 0;
}

void pci_bus_destroy(struct pci_bus *b)
{
    if (!b) return;
    for (unsigned i = 0; i < PCI_SLOTS; i++) pci_free(b->function[i]);
    pci_map_fini(&b->map);
    pthread_mutex_destroy(&b->intx_lock);
    pthread_mutex_destroy(&b->config_lock);
    free(b);
}

void pci_bus_reset(struct pci_bus *b)
{
    pthread_mutex_lock(&b->config_lock);
    b->address = 0;
    for (unsigned i = 0; i < PCI_SLOTS; i++)
        if (b->function[i]) pci_function_reset(b->function[i], false);
    pthread_mutex_unlock(&b->config_lock);
}

static void tell_bars(const struct pci_function *f, bool gone)
{
    for (unsigned n = 0; n < PCI_BARS && f->d.ops->bar_moved; n++)
        if (f->bar_at[n] != PCI_NOWHERE) f->d.ops->bar_moved(f->d.dev, n, gone ? PCI_NOWHERE : f->bar_at[n]);
}

void pci_bus_leave_engine(struct pci_bus *b)
{
    pthread_mutex_lock(&b->config_lock);
    for (unsigned i = 0; i < PCI_SLOTS; i++) {
        struct pci_function *f = b->function[i];
        if (!f) continue;
        tell_bars(f, true);
        pthread_mutex_lock(&f->message_lock);
        pci_irqfd_drop(f);
        pthread_mutex_unlock(&f->message_lock);
    }
    pthread_mutex_unlock(&b->config_lock);
}

void pci_bus_enter_engine(struct pci_bus *b)
{
    pthread_mutex_lock(&b->config_lock);
    for (unsigned i = 0; i < PCI_SLOTS; i++)
        if (b->function[i]) tell_bars(b->function[i], false);
    pthread_mutex_unlock(&b->config_lock);
}
