/* The PCI bus itself: several functions of every shape, whose configuration space, BARs, interrupts and resets are used in any order, and that are plugged in
 * and out meanwhile, by the guest or by us. */
#include "fuzz.h"
#include "vmm/bus/pci_internal.h"
#include "vmm/platform/platform.h"

const char *const fuzz_name = "fuzz_pci";

#define TOYS 5

struct toy {
    struct fuzz_rig *r;
    struct pci_function *f;
    unsigned slot;
    uint64_t size[PCI_BARS];
    uint64_t at[PCI_BARS];
    bool intx;
    bool quiet; /* it has left the bus and was stopped: nobody may call it */
};

/* Hot plug's registers, and what they hold of their event. */
static struct slots *slots;
static bool event;
static uint32_t ejected; /* slots that the guest ejected and that went */

void pm_gpe_set(struct pm *p, unsigned n, bool level)
{
    (void)p;
    fuzz_check(n == PLATFORM_GPE_SLOTS);
    event = level;
}

static void on_eject(void *ctx, uint32_t mask)
{
    struct fuzz_rig *r = ctx;
    for (unsigned s = 0; s < PCI_SLOTS; s++) {
        if (!(mask >> s & 1)) continue;
        const struct pci_function *f = r->pci->function[s];
        bool may = f && f->removable && !f->unplugged, went = pci_unplug(r->pci, s);
        fuzz_check(went == may);
        if (went) ejected |= 1u << s;
    }
}

static uint64_t toy_read(void *dev, unsigned bar, uint64_t off, unsigned size)
{
    struct toy *t = dev;
    fuzz_check(!t->quiet && bar < PCI_BARS && off < t->size[bar] && size <= t->size[bar] - off);
    if (fuzz_one_in(8)) pci_msix_notify(t->f, (unsigned)fuzz_odd_number());
    return fuzz_bits();
}

static void toy_write(void *dev, unsigned bar, uint64_t off, unsigned size, uint64_t value)
{
    struct toy *t = dev;
    toy_read(dev, bar, off, size);
    if (value & 1) pci_intx_set(t->f, t->intx = value & 2);
}

static void toy_moved(void *dev, unsigned bar, uint64_t addr)
{
    struct toy *t = dev;
    fuzz_check(!t->quiet && t->at[bar] != addr);
    fuzz_check(addr == UINT64_MAX || addr % t->size[bar] == 0);
    t->at[bar] = addr;
}

static void toy_config(void *dev, unsigned off, unsigned size)
{
    fuzz_check(!((struct toy *)dev)->quiet && off + size <= PCI_CONFIG_SIZE);
}

static void toy_reset(void *dev)
{
    struct toy *t = dev;
    fuzz_check(!t->quiet);
    t->intx = false;
    pci_intx_set(t->f, false);
}

static const struct pci_ops ops = {.bar_read = toy_read,
                                   .bar_write = toy_write,
                                   .config_written = toy_config,
                                   .config_reading = toy_config,
                                   .bar_moved = toy_moved,
                                   .reset = toy_reset};

static bool add_toy(struct fuzz_rig *r, struct toy *t)
{
    struct nerr e;
    memset(t, 0, sizeof *t);
    struct pci_desc d = {.name = "toy", .vendor = 1, .device = 2, .ops = &ops, .dev = t};
    d.intx = fuzz_one_in(2);
    d.msi = fuzz_one_in(2);
    d.msix_vectors = fuzz_one_in(2) ? 1 + (unsigned)fuzz_below(200) : 0;
    d.msix_bar = 5;
    for (unsigned n = 0; n < 5; n++) {
        enum pci_bar_kind kind = (enum pci_bar_kind)fuzz_below(4);
        if (kind == PCI_BAR_MEM64 && n == 4) continue;
        d.bar[n] = (struct pci_bar){kind, fuzz_one_in(2), 16ull << fuzz_below(kind == PCI_BAR_IO ? 5 : 17)};
        if (kind == PCI_BAR_MEM64) n++;
    }
    for (unsigned n = 0; n < PCI_BARS; n++) {
        t->size[n] = d.bar[n].size;
        t->at[n] = UINT64_MAX;
    }
    t->r = r;
    if (pci_add(r->pci, -1, &d, &t->f, &e)) return false;
    t->slot = pci_slot(t->f);
    t->size[5] = t->f->d.bar[5].size; /* the MSI-X table's, by the bus */
    uint8_t body[20], mask[20];
    for (unsigned i = 0; i < sizeof body; i++) {
        body[i] = (uint8_t)fuzz_bits();
        mask[i] = (uint8_t)fuzz_bits();
    }
    while (fuzz_one_in(2)) pci_add_capability(t->f, 9, body, mask, 1 + (unsigned)fuzz_below(sizeof body));
    return true;
}

/* What the map says is what the registers say, and no two BARs answer at one place. */
static void check_map(const struct fuzz_rig *r)
{
    const struct pci_map *m = &r->pci->map;
    for (unsigned s = 0; s < 2; s++)
        for (unsigned i = 0; i < m->count[s]; i++) {
            const struct pci_map_entry *t = &m->entry[s][i];
            const struct pci_function *f = r->pci->function[t->target / 8];
            fuzz_check(f && !f->unplugged && f->bar_at[t->target % 8] == t->base);
            fuzz_check(t->last - t->base + 1 == f->d.bar[t->target % 8].size);
            if (i) fuzz_check(t[-1].last < t->base);
        }
}

static void check_lines(const struct fuzz_rig *r)
{
    for (unsigned g = 0; g < PCI_FIRST_GSI + PCI_GSIS; g++) {
        uint32_t want = 0;
        for (unsigned s = 0; s < PCI_SLOTS; s++) {
            const struct pci_function *f = r->pci->function[s];
            if (f && !f->unplugged && f->d.intx && (pci_gsi(s) == g || pci_isa_irq(s) == g) && f->intx_wish &&
                !f->msi_on && !f->msix_on && !(f->command & COMMAND_INTX_OFF))
                want |= 1u << s;
        }
        fuzz_check(r->pci->asserting[g] == want);
        fuzz_check(r->line[g] == (want != 0));
    }
}

static void use_bar(struct fuzz_rig *r, const struct toy *t)
{
    unsigned bar = (unsigned)fuzz_below(PCI_BARS);
    const struct pci_bar *b = &t->f->d.bar[bar];
    if (b->kind == PCI_BAR_NONE) return;
    uint64_t at = fuzz_bar(r, t->slot, bar, fuzz_one_in(4));
    unsigned size = 1u << fuzz_below(4);
    enum bus_space space = b->kind == PCI_BAR_IO ? BUS_PIO : BUS_MMIO;
    if (space == BUS_PIO) {
        at &= 0xfffc;
        if (size == 8) size = 4;
    }
    at += fuzz_below(b->size + 8);
    if (fuzz_one_in(2))
        bus_read(&r->bus, space, at, size);
    else
        bus_write(&r->bus, space, at, size, fuzz_odd_number());
}

/* The user's side: a new device is announced, an old one asked for; what was ejected leaves the bus and ends. */
static void plug(struct fuzz_rig *r, struct toy *t)
{
    if (!t->f) {
        if (!add_toy(r, t)) return;
        if (!fuzz_one_in(8)) pci_set_removable(t->f);
        pci_hot_added(t->f);
        for (unsigned n = 0; n < PCI_BARS; n++) fuzz_check(!(fuzz_config_read(r, t->slot, 0x10 + 4 * n, 4) & ~0xfu));
        slots_added(slots, t->slot);
    } else if (!pci_unplugged(t->f)) {
        slots_ask(slots, t->slot);
    } else {
        struct pci_function *f = t->f;
        fuzz_check(ejected >> t->slot & 1);
        ejected &= ~(1u << t->slot);
        slots_empty(slots, t->slot);
        pci_remove(f);
        pci_quiesce(f);
        t->quiet = true;
        t->f = NULL;
        pci_free(f);
    }
}

/* What is unplugged looks as if it had never been there. */
static void check_unplugged(struct fuzz_rig *r, const struct toy *t)
{
    fuzz_check(fuzz_config_read(r, t->slot, (unsigned)fuzz_below(1024) * 4, 4) == 0xffffffff);
    fuzz_check(!pci_bus_master(t->f));
    for (unsigned n = 0; n < PCI_BARS; n++) fuzz_check(t->at[n] == UINT64_MAX);
    uint64_t before = r->msis;
    pci_msix_notify(t->f, (unsigned)fuzz_below(4));
    pci_msi_notify(t->f);
    fuzz_check(r->msis == before);
}

static void use_registers(struct fuzz_rig *r)
{
    uint64_t at = PLATFORM_SLOTS_BASE + fuzz_below(PLATFORM_SLOTS_LEN);
    unsigned size = 1u << fuzz_below(3);
    if (fuzz_one_in(2))
        bus_read(&r->bus, BUS_PIO, at, size);
    else
        bus_write(&r->bus, BUS_PIO, at, size, fuzz_one_in(2) ? 1u << fuzz_below(32) : fuzz_odd_number());
    bool told =
        bus_read(&r->bus, BUS_PIO, PLATFORM_SLOTS_BASE, 4) | bus_read(&r->bus, BUS_PIO, PLATFORM_SLOTS_BASE + 4, 4);
    fuzz_check(told == event);
}

static void step(struct fuzz_rig *r, struct toy *t)
{
    if (fuzz_one_in(12)) use_registers(r);
    if (fuzz_one_in(20)) plug(r, t);
    if (!t->f) return;
    if (pci_unplugged(t->f)) check_unplugged(r, t);
    switch (fuzz_below(12)) {
    case 0: pci_intx_set(t->f, t->intx = fuzz_one_in(2)); break;
    case 1: {
        uint64_t before = r->msis;
        bool on = pci_msix_enabled(t->f);
        pci_msix_notify(t->f, (unsigned)fuzz_below(t->f->d.msix_vectors + 2ull));
        fuzz_check(on ? r->msis <= before + 1 : r->msis == before);
        break;
    }
    case 2: {
        uint64_t before = r->msis;
        bool on = pci_msi_enabled(t->f);
        pci_msi_notify(t->f);
        fuzz_check(on ? r->msis <= before + 1 : r->msis == before);
        break;
    }
    case 3:
    case 4:
    case 5:
    case 6: use_bar(r, t); break;
    case 7:
        if (fuzz_one_in(20)) pci_bus_reset(r->pci);
        break;
    default: fuzz_config_access(r, fuzz_one_in(10) ? (unsigned)fuzz_below(32) : t->slot); break;
    }
}

void fuzz_case(void)
{
    struct toy toy[TOYS];
    struct nerr e;
    struct fuzz_rig *r = fuzz_rig_new();
    struct slots_config c = {.eject = on_eject, .ctx = r};
    event = false;
    ejected = 0;
    fuzz_check(slots_create(&c, &slots, &e) == 0 && slots_attach(slots, &r->bus, &e) == 0);
    memset(toy, 0, sizeof toy);
    for (unsigned i = 0; i < TOYS; i++)
        if (add_toy(r, &toy[i]) && fuzz_one_in(2)) pci_set_removable(toy[i].f);
    for (unsigned i = 0; i < 400; i++) {
        step(r, &toy[fuzz_below(TOYS)]);
        if (i % 16 == 0) check_map(r);
        check_lines(r);
    }
    check_map(r);
    slots_destroy(slots);
    fuzz_rig_free(r);
}
