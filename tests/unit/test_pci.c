/* The PCI bus: configuration space, BARs, interrupts, resets; and BARs that move under accesses. */
#include <pthread.h>

#include "pci_rig.h"
#include "vmm/irq/irq.h"

/* A device that remembers: every BAR reads as what was last written, with its number on top. */
struct toy {
    struct pci_function *f;
    _Atomic uint32_t value[PCI_BARS];
    atomic_uint reads, writes, resets, moves;
    _Atomic uint64_t at[PCI_BARS];
    unsigned written_off, written_size;
};

static uint64_t toy_read(void *dev, unsigned bar, uint64_t off, unsigned size)
{
    struct toy *t = dev;
    (void)size;
    t->reads++;
    return (bar + 1) << 24 | (off & 0xfff) << 8 | (t->value[bar] & 0xff);
}

static void toy_write(void *dev, unsigned bar, uint64_t off, unsigned size, uint64_t value)
{
    struct toy *t = dev;
    (void)off;
    (void)size;
    t->value[bar] = (uint32_t)value;
    t->writes++;
}

static void toy_config(void *dev, unsigned off, unsigned size)
{
    struct toy *t = dev;
    t->written_off = off;
    t->written_size = size;
}

static void toy_moved(void *dev, unsigned bar, uint64_t addr)
{
    struct toy *t = dev;
    t->at[bar] = addr;
    t->moves++;
}

static void toy_reset(void *dev)
{
    struct toy *t = dev;
    t->resets++;
}

static const struct pci_ops toy_ops = {.bar_read = toy_read,
                                       .bar_write = toy_write,
                                       .config_written = toy_config,
                                       .bar_moved = toy_moved,
                                       .reset = toy_reset};

/* BAR 0 I/O, 1 memory, 2 and 3 64-bit prefetchable, 4 MSI-X. */
static struct toy *toy_new(struct pci_rig *r, int slot)
{
    struct nerr e;
    struct toy *t = calloc(1, sizeof *t);
    assert_non_null(t);
    struct pci_desc d = {
        .name = "toy",
        .vendor = 0x1234,
        .device = 0x5678,
        .subsystem_vendor = 0x9abc,
        .subsystem = 0xdef0,
        .class_code = 0xff0102,
        .revision = 7,
        .intx = true,
        .msi = true,
        .msix_vectors = 70,
        .msix_bar = 4,
        .bar = {{PCI_BAR_IO, false, 64}, {PCI_BAR_MEM32, false, 0x200}, {PCI_BAR_MEM64, true, 0x4000}},
        .ops = &toy_ops,
        .dev = t,
    };
    for (unsigned i = 0; i < PCI_BARS; i++) t->at[i] = UINT64_MAX;
    assert_int_equal(pci_add(r->pci, slot, &d, &t->f, &e), 0);
    return t;
}

static void test_header(void **state)
{
    (void)state;
    struct pci_rig *r = pci_rig_new();
    struct toy *t = toy_new(r, -1);
    assert_int_equal(pci_slot(t->f), 1);
    assert_int_equal(cfg_read(r, 0, 8, 4) >> 16, 0x0600); /* the host bridge */
    assert_int_equal(cfg_read(r, 1, 0, 4), 0x56781234);
    assert_int_equal(cfg_read(r, 1, 0, 2), 0x1234);
    assert_int_equal(cfg_read(r, 1, 3, 1), 0x56);
    assert_int_equal(cfg_read(r, 1, 8, 4), 0xff010207);
    assert_int_equal(cfg_read(r, 1, 0x2c, 4), 0xdef09abc);
    assert_int_equal(cfg_read(r, 1, 0x0e, 1), 0); /* one function */
    assert_int_equal(cfg_read(r, 1, 0x3d, 1), 1);
    /* Read-only stays, what may be written does. */
    for (unsigned reg = 0; reg < 0x10; reg += 4) cfg_write(r, 1, reg, 4, 0xffffffff);
    assert_int_equal(cfg_read(r, 1, 0, 4), 0x56781234);
    assert_int_equal(cfg_read(r, 1, CFG_COMMAND, 2), 0x0547);
    assert_int_equal(cfg_read(r, 1, 8, 4), 0xff010207);
    /* Nobody there: other functions, other slots, behind the end. */
    assert_int_equal(mem_read(r, rig_ecam(r, 1, 0) + 0x1000, 4), 0xffffffff);
    assert_int_equal(cfg_read(r, 2, 0, 4), 0xffffffff);
    assert_int_equal(cfg_read(r, 1, 0x100, 4), 0); /* no extended capabilities */
    assert_int_equal(cfg_read(r, 1, 0xffe, 4), 0xffffffff);
    free(t);
    pci_rig_free(r);
}

static uint32_t port(struct pci_rig *r, bool write, uint64_t off, unsigned size, uint32_t v)
{
    if (write) pci_config_ports.write(r->pci, off, size, v);
    return (uint32_t)(pci_config_ports.read(r->pci, off, size) & (0xffffffffull >> (32 - 8 * size)));
}

static void test_ports(void **state)
{
    (void)state;
    struct pci_rig *r = pci_rig_new();
    struct toy *t = toy_new(r, 3);
    assert_int_equal(port(r, true, 0, 4, 0x80001800), 0x80001800);
    assert_int_equal(port(r, false, 4, 4, 0), 0x56781234);
    assert_int_equal(port(r, false, 6, 2, 0), 0x5678);
    assert_int_equal(port(r, false, 7, 1, 0), 0x56);
    port(r, true, 3, 1, 0x01); /* how systems look for type 1: no 32-bit access, no effect */
    assert_int_equal(port(r, false, 0, 4, 0), 0x80001800);
    assert_int_equal(port(r, true, 0, 4, 0x80001804), 0x80001804);
    port(r, true, 4, 2, CMD_MASTER);
    assert_int_equal(cfg_read(r, 3, CFG_COMMAND, 2), CMD_MASTER);
    port(r, true, 5, 1, 0x04);
    assert_int_equal(cfg_read(r, 3, CFG_COMMAND, 2), CMD_MASTER | CMD_INTX_OFF);
    static const uint32_t nobody[] = {0x00001800, 0x80011800, 0x80001900, 0x80002000};
    for (unsigned i = 0; i < 4; i++) {
        port(r, true, 0, 4, nobody[i]);
        assert_int_equal(port(r, false, 4, 4, 0), 0xffffffff);
    }
    free(t);
    pci_rig_free(r);
}

static uint64_t bar_at(struct pci_rig *r, unsigned slot, unsigned n)
{
    uint32_t low = cfg_read(r, slot, CFG_BAR(n), 4);
    if (low & 1) return low & ~3u;
    uint64_t high = (low & 6) == 4 ? cfg_read(r, slot, CFG_BAR(n + 1), 4) : 0;
    return (low & ~0xfu) | high << 32;
}

static void test_bars(void **state)
{
    (void)state;
    struct pci_rig *r = pci_rig_new();
    struct toy *t = toy_new(r, -1);
    /* Placed, inside the windows, of the right kinds; sizes as systems find them out. */
    static const uint32_t kind[] = {1, 0, 0xc}, size[] = {64, 0x200, 0x4000};
    for (unsigned n = 0; n < 3; n++) {
        uint32_t was = cfg_read(r, 1, CFG_BAR(n), 4);
        assert_int_equal(was & 0xf, kind[n]);
        assert_true(bar_at(r, 1, n) % size[n] == 0);
        cfg_write(r, 1, CFG_BAR(n), 4, 0xffffffff);
        uint32_t all = cfg_read(r, 1, CFG_BAR(n), 4);
        assert_int_equal(~(all & (n ? ~0xfu : ~3u)) + 1, size[n]);
        cfg_write(r, 1, CFG_BAR(n), 4, was);
    }
    assert_in_range(bar_at(r, 1, 0), r->layout.io_base, r->layout.io_base + r->layout.io_size - 64);
    assert_in_range(bar_at(r, 1, 1), r->layout.mem_base, r->layout.mem_base + r->layout.mem_size - 0x200);
    assert_in_range(bar_at(r, 1, 2), r->layout.mem64_base, r->layout.mem64_base + r->layout.mem64_size - 0x4000);
    /* Nothing answers before the command register says so. */
    uint64_t at = bar_at(r, 1, 1);
    assert_int_equal(mem_read(r, at, 4), 0xffffffff);
    cfg_write(r, 1, CFG_COMMAND, 2, CMD_MEMORY);
    assert_true(t->at[1] == at && t->at[0] == UINT64_MAX);
    assert_int_equal(mem_read(r, at + 0x10, 4), 0x02001000);
    assert_int_equal(mem_read(r, at + 0x1fc, 4), 0x0201fc00);
    assert_int_equal(mem_read(r, at + 0x1fe, 4), 0xffffffff); /* over the end */
    assert_int_equal(mem_read(r, at + 0x200, 4), 0xffffffff);
    assert_int_equal(mem_read(r, bar_at(r, 1, 2) + 4, 4), 0x03000400);
    uint16_t io = (uint16_t)bar_at(r, 1, 0);
    assert_int_equal((uint32_t)bus_read(&r->bus, BUS_PIO, io, 4), 0xffffffff);
    cfg_write(r, 1, CFG_COMMAND, 2, CMD_MEMORY | CMD_IO);
    assert_int_equal(bus_read(&r->bus, BUS_PIO, io + 8u, 4), 0x01000800);
    /* Moved: in two halves, as the bus does it. */
    uint64_t there = r->layout.mem64_base + (3ull << 30), old = bar_at(r, 1, 2);
    cfg_write(r, 1, CFG_BAR(2), 4, (uint32_t)there);
    cfg_write(r, 1, CFG_BAR(3), 4, (uint32_t)(there >> 32));
    assert_int_equal(mem_read(r, there + 4, 4), 0x03000400);
    assert_int_equal(mem_read(r, old + 4, 4), 0xffffffff);
    assert_true(t->at[2] == there);
    /* Below 4 GiB, too; outside of the windows it is gone. */
    cfg_write(r, 1, CFG_BAR(3), 4, 0);
    cfg_write(r, 1, CFG_BAR(2), 4, (uint32_t)r->layout.mem_base + 0x10000000);
    assert_int_equal(mem_read(r, r->layout.mem_base + 0x10000004, 4), 0x03000400);
    cfg_write(r, 1, CFG_BAR(2), 4, 0x00100000);
    assert_true(t->at[2] == UINT64_MAX);
    cfg_write(r, 1, CFG_BAR(2), 4, 0xfee00000);
    assert_true(t->at[2] == UINT64_MAX);
    free(t);
    pci_rig_free(r);
}

static void test_overlap(void **state)
{
    (void)state;
    struct pci_rig *r = pci_rig_new();
    struct toy *a = toy_new(r, 4), *b = toy_new(r, 5);
    cfg_write(r, 4, CFG_COMMAND, 2, CMD_MEMORY);
    cfg_write(r, 5, CFG_COMMAND, 2, CMD_MEMORY);
    uint64_t at = bar_at(r, 4, 1), own = bar_at(r, 5, 1);
    cfg_write(r, 5, CFG_BAR(1), 4, (uint32_t)at);
    mem_write(r, at, 4, 1);
    assert_int_equal(a->writes, 1); /* the lower slot wins */
    assert_int_equal(b->writes, 0);
    cfg_write(r, 4, CFG_COMMAND, 2, 0);
    mem_write(r, at, 4, 1);
    assert_int_equal(a->writes, 1);
    assert_int_equal(b->writes, 1);
    cfg_write(r, 4, CFG_COMMAND, 2, CMD_MEMORY);
    cfg_write(r, 5, CFG_BAR(1), 4, (uint32_t)own);
    mem_write(r, own, 4, 1);
    assert_int_equal(b->writes, 2);
    free(a);
    free(b);
    pci_rig_free(r);
}

static void test_intx(void **state)
{
    (void)state;
    struct pci_rig *r = pci_rig_new();
    struct toy *a = toy_new(r, 2), *b = toy_new(r, 2 + PCI_GSIS); /* the same line */
    unsigned gsi = pci_gsi(2);
    pci_intx_set(a->f, true);
    assert_true(r->line[gsi]);
    assert_int_equal(cfg_read(r, 2, CFG_STATUS, 2) & 8, 8);
    pci_intx_set(b->f, true);
    pci_intx_set(a->f, false);
    assert_true(r->line[gsi]); /* b holds it */
    assert_int_equal(cfg_read(r, 2, CFG_STATUS, 2) & 8, 0);
    cfg_write(r, 2 + PCI_GSIS, CFG_COMMAND, 2, CMD_INTX_OFF);
    assert_false(r->line[gsi]);
    assert_int_equal(cfg_read(r, 2 + PCI_GSIS, CFG_STATUS, 2) & 8, 8); /* still wished for */
    cfg_write(r, 2 + PCI_GSIS, CFG_COMMAND, 2, 0);
    assert_true(r->line[gsi]);
    unsigned msix = cfg_capability(r, 2 + PCI_GSIS, 0x11);
    cfg_write(r, 2 + PCI_GSIS, msix + 2, 2, 0x8000);
    assert_false(r->line[gsi]); /* messages take its place */
    cfg_write(r, 2 + PCI_GSIS, msix + 2, 2, 0);
    assert_true(r->line[gsi]);
    pci_bus_reset(r->pci);
    assert_false(r->line[gsi]);
    free(a);
    free(b);
    pci_rig_free(r);
}

/* The same pin at the 8259s: as the interrupt line register says before anybody writes it, which is all that a system without ACPI has. */
static void test_intx_isa(void **state)
{
    (void)state;
    struct pci_rig *r = pci_rig_new();
    struct toy *a = toy_new(r, 2), *b = toy_new(r, 4), *c = toy_new(r, 3); /* a and b share */
    unsigned irq = cfg_read(r, 2, CFG_INTERRUPT_LINE, 1), other = cfg_read(r, 3, CFG_INTERRUPT_LINE, 1);
    assert_int_equal(irq, pci_isa_irq(2));
    assert_int_equal(irq, cfg_read(r, 4, CFG_INTERRUPT_LINE, 1));
    assert_int_not_equal(irq, other);
    assert_true(IRQ_ISA_PCI >> irq & 1 && IRQ_ISA_PCI >> other & 1);
    assert_false(IRQ_ISA_PCI >> 11 & 1);       /* see irq.h */
    cfg_write(r, 2, CFG_INTERRUPT_LINE, 1, 7); /* a note for systems, no router */
    pci_intx_set(a->f, true);
    pci_intx_set(b->f, true);
    pci_intx_set(a->f, false);
    assert_true(r->line[irq] && r->line[pci_gsi(4)] && !r->line[pci_gsi(2)] && !r->line[other]);
    pci_intx_set(c->f, true);
    assert_true(r->line[other]);
    cfg_write(r, 4, CFG_COMMAND, 2, CMD_INTX_OFF);
    assert_false(r->line[irq]);
    pci_bus_reset(r->pci);
    assert_false(r->line[other]);
    assert_int_equal(cfg_read(r, 2, CFG_INTERRUPT_LINE, 1), irq);
    free(a);
    free(b);
    free(c);
    pci_rig_free(r);
}

static void test_msix(void **state)
{
    (void)state;
    struct pci_rig *r = pci_rig_new();
    struct toy *t = toy_new(r, 1);
    unsigned cap = cfg_capability(r, 1, 0x11);
    assert_int_equal(cfg_read(r, 1, cap + 2, 2), 69);
    uint32_t where = cfg_read(r, 1, cap + 4, 4), pending = cfg_read(r, 1, cap + 8, 4);
    assert_int_equal(where & 7, 4);
    uint64_t table = bar_at(r, 1, 4) + (where & ~7u), pba = bar_at(r, 1, 4) + (pending & ~7u);
    cfg_write(r, 1, CFG_COMMAND, 2, CMD_MEMORY | CMD_MASTER);
    assert_int_equal(mem_read(r, table + 12, 4), 1); /* masked at first */
    mem_write(r, table + 65 * 16, 4, 0xfee01000);
    mem_write(r, table + 65 * 16 + 8, 4, 0x4321);
    assert_int_equal(mem_read(r, table + 65 * 16, 4), 0xfee01000);
    pci_msix_notify(t->f, 65);
    assert_int_equal(r->msis, 0); /* not enabled: nothing, and nothing pending */
    assert_int_equal(mem_read(r, pba + 8, 4), 0);
    cfg_write(r, 1, cap + 2, 2, 0x8000);
    assert_true(pci_msix_enabled(t->f));
    pci_msix_notify(t->f, 65);
    assert_int_equal(r->msis, 0); /* masked: pending */
    assert_int_equal(mem_read(r, pba + 8, 4), 2);
    mem_write(r, pba + 8, 4, 0);
    assert_int_equal(mem_read(r, pba + 8, 4), 2); /* read-only */
    mem_write(r, table + 65 * 16 + 12, 4, 0);
    assert_int_equal(r->msis, 1);
    assert_int_equal(r->msi_addr, 0xfee01000);
    assert_int_equal(r->msi_data, 0x4321);
    assert_int_equal(mem_read(r, pba + 8, 4), 0);
    cfg_write(r, 1, cap + 2, 2, 0xc000); /* all masked */
    pci_msix_notify(t->f, 65);
    pci_msix_notify(t->f, 65);
    assert_int_equal(r->msis, 1);
    cfg_write(r, 1, cap + 2, 2, 0x8000);
    assert_int_equal(r->msis, 2); /* one for both */
    cfg_write(r, 1, CFG_COMMAND, 2, CMD_MEMORY);
    pci_msix_notify(t->f, 65);
    assert_int_equal(r->msis, 2);
    cfg_write(r, 1, CFG_COMMAND, 2, CMD_MEMORY | CMD_MASTER);
    assert_int_equal(r->msis, 3);
    pci_msix_notify(t->f, 70); /* no such vector */
    pci_msix_notify(t->f, ~0u);
    assert_int_equal(r->msis, 3);
    /* Two registers at once, and odd ends of the table. */
    bus_write(&r->bus, BUS_MMIO, table + 69 * 16, 8, 0x1fee02000ull);
    assert_int_equal(mem_read(r, table + 69 * 16 + 4, 4), 1);
    bus_write(&r->bus, BUS_MMIO, table + 70 * 16 - 4, 8, ~0ull);
    assert_int_equal(mem_read(r, table + 70 * 16 - 4, 4), 1);
    assert_int_equal(mem_read(r, pba, 4), 0);
    assert_int_equal(device_counted(&pci_stats(t->f)->interrupts), 3);
    free(t);
    pci_rig_free(r);
}

static void test_msi(void **state)
{
    (void)state;
    struct pci_rig *r = pci_rig_new();
    struct toy *t = toy_new(r, 1);
    unsigned cap = cfg_capability(r, 1, 0x05);
    assert_int_equal(cfg_read(r, 1, cap + 2, 2), 0x0180);
    cfg_write(r, 1, CFG_COMMAND, 2, CMD_MASTER);
    cfg_write(r, 1, cap + 4, 4, 0xfee03003);
    cfg_write(r, 1, cap + 12, 2, 0x0042);
    assert_int_equal(cfg_read(r, 1, cap + 4, 4), 0xfee03000);
    pci_msi_notify(t->f);
    assert_int_equal(r->msis, 0);
    cfg_write(r, 1, cap + 2, 2, 0x0071); /* more messages than there are */
    assert_int_equal(cfg_read(r, 1, cap + 2, 2), 0x0181);
    assert_true(pci_msi_enabled(t->f));
    pci_msi_notify(t->f);
    assert_int_equal(r->msis, 1);
    assert_int_equal(r->msi_addr, 0xfee03000);
    assert_int_equal(r->msi_data, 0x42);
    cfg_write(r, 1, cap + 16, 4, 0xffffffff);
    assert_int_equal(cfg_read(r, 1, cap + 16, 4), 1);
    pci_msi_notify(t->f);
    assert_int_equal(cfg_read(r, 1, cap + 20, 4), 1);
    assert_int_equal(r->msis, 1);
    cfg_write(r, 1, cap + 16, 4, 0);
    assert_int_equal(r->msis, 2);
    assert_int_equal(cfg_read(r, 1, cap + 20, 4), 0);
    free(t);
    pci_rig_free(r);
}

static void test_capabilities(void **state)
{
    (void)state;
    struct pci_rig *r = pci_rig_new();
    struct toy *t = toy_new(r, 1);
    static const uint8_t body[6] = {1, 2, 3, 4, 5, 6}, writable[6] = {0, 0, 0xff, 0x0f, 0, 0};
    unsigned at = pci_add_capability(t->f, 0x09, body, writable, sizeof body);
    assert_int_equal(cfg_capability(r, 1, 0x09), at);
    cfg_write(r, 1, at + 4, 4, 0xffffffff);
    assert_int_equal(cfg_read(r, 1, at, 4) >> 16, 0x0201);
    assert_int_equal(cfg_read(r, 1, at + 4, 4), 0x06050fff);
    assert_int_equal(t->written_off, at + 4);
    assert_int_equal(t->written_size, 4);
    pci_bus_reset(r->pci);
    assert_int_equal(cfg_read(r, 1, at + 4, 4), 0x06050403);
    /* There is an end. */
    static const uint8_t large[200];
    assert_int_equal(pci_add_capability(t->f, 0x09, large, NULL, sizeof large), 0);
    assert_int_equal(cfg_capability(r, 1, 0x09), at);
    free(t);
    pci_rig_free(r);
}

static void test_resets(void **state)
{
    (void)state;
    struct pci_rig *r = pci_rig_new();
    struct toy *t = toy_new(r, 1);
    uint64_t at = bar_at(r, 1, 1);
    unsigned express = cfg_capability(r, 1, 0x10), msix = cfg_capability(r, 1, 0x11);
    assert_true(cfg_read(r, 1, express + 4, 4) >> 28 & 1); /* function level reset */
    cfg_write(r, 1, CFG_COMMAND, 2, CMD_MEMORY | CMD_MASTER);
    cfg_write(r, 1, msix + 2, 2, 0x8000);
    pci_intx_set(t->f, true);
    cfg_write(r, 1, express + 8, 2, 0x8000 | 0x2810);
    assert_int_equal(t->resets, 1);
    assert_int_equal(cfg_read(r, 1, express + 8, 2), 0x2810);
    assert_int_equal(cfg_read(r, 1, CFG_COMMAND, 2), 0);
    assert_int_equal(bar_at(r, 1, 1), 0);
    assert_false(pci_msix_enabled(t->f));
    assert_true(t->at[1] == UINT64_MAX);
    assert_int_equal(r->rises, 0); /* (MSI-X was on) */
    assert_int_equal(mem_read(r, at, 4), 0xffffffff);
    /* The machine's reset puts BARs back to where the machine's start put them. */
    pci_bus_reset(r->pci);
    assert_int_equal(t->resets, 2);
    assert_true(bar_at(r, 1, 1) == at);
    cfg_write(r, 1, CFG_COMMAND, 2, CMD_MEMORY);
    assert_int_equal(mem_read(r, at, 4), 0x02000000);
    free(t);
    pci_rig_free(r);
}

static void test_refusals(void **state)
{
    (void)state;
    struct nerr e;
    struct pci_rig *r = pci_rig_new();
    struct pci_desc good = {.name = "x", .vendor = 1, .ops = &toy_ops}, d;
    d = good;
    d.bar[0] = (struct pci_bar){PCI_BAR_MEM32, false, 0x300};
    assert_true(pci_add(r->pci, -1, &d, NULL, &e) < 0);
    d.bar[0] = (struct pci_bar){PCI_BAR_MEM32, false, 8};
    assert_true(pci_add(r->pci, -1, &d, NULL, &e) < 0);
    d.bar[0] = (struct pci_bar){PCI_BAR_MEM32, false, 1ull << 31};
    assert_true(pci_add(r->pci, -1, &d, NULL, &e) < 0);
    assert_non_null(strstr(e.text, "no room"));
    d = good;
    d.bar[5] = (struct pci_bar){PCI_BAR_MEM64, false, 0x1000};
    assert_true(pci_add(r->pci, -1, &d, NULL, &e) < 0);
    d = good;
    d.msix_vectors = 2049;
    assert_true(pci_add(r->pci, -1, &d, NULL, &e) < 0);
    d = good;
    d.msix_vectors = 2048;
    assert_int_equal(pci_add(r->pci, 31, &d, NULL, &e), 0);
    assert_true(pci_add(r->pci, 31, &good, NULL, &e) < 0);
    assert_true(pci_add(r->pci, 32, &good, NULL, &e) < 0);
    for (unsigned i = 1; i < 31; i++) assert_int_equal(pci_add(r->pci, -1, &good, NULL, &e), 0);
    assert_true(pci_add(r->pci, -1, &good, NULL, &e) < 0);
    assert_non_null(strstr(e.text, "slot"));
    pci_rig_free(r);
}

static void test_layout(void **state)
{
    (void)state;
    struct pci_layout l;
    static const uint64_t ram[] = {2ull << 20, 3ull << 30, (3ull << 30) + 4096, 64ull << 30, 1ull << 40};
    for (unsigned i = 0; i < 5; i++) {
        pci_layout_init(&l, ram[i], 0);
        uint64_t end = ram[i] > GUEST_LOW_RAM_END ? GUEST_HIGH_RAM_BASE + ram[i] - GUEST_LOW_RAM_END : 0;
        assert_true(l.mem64_base >= end && l.mem64_base >= GUEST_HIGH_RAM_BASE);
        assert_true(l.mem_base + l.mem_size <= l.ecam_base && l.ecam_base + l.ecam_size <= 0xfec00000);
    }
    for (unsigned p = 1; p < 0x10000; p += 37) {
        pci_layout_init(&l, 1u << 30, (uint16_t)p);
        assert_true(p + 3 < l.io_base || p >= l.io_base + l.io_size);
        assert_true(l.io_base + l.io_size <= 0x10000);
    }
}

/* One thread moves the BAR to and fro, others access both places: whoever is answered is answered by the right device. */
struct race {
    struct pci_rig *r;
    uint64_t a, b;
    atomic_bool stop;
    atomic_uint hits, wrong;
};

static void *race_reader(void *arg)
{
    struct race *x = arg;
    while (!x->stop) {
        for (unsigned i = 0; i < 64; i++) {
            uint32_t v = mem_read(x->r, (i & 1 ? x->a : x->b) + 0x24, 4);
            if (v == 0x02002400)
                x->hits++;
            else if (v != 0xffffffff)
                x->wrong++;
        }
        uint32_t other = mem_read(x->r, bar_at(x->r, 2, 1) + 0x24, 4);
        if (other != 0x02002400) x->wrong++;
    }
    return NULL;
}

static void test_race(void **state)
{
    (void)state;
    struct race x = {.r = pci_rig_new()};
    struct toy *t = toy_new(x.r, 1), *u = toy_new(x.r, 2);
    pthread_t thread[2];
    cfg_write(x.r, 1, CFG_COMMAND, 2, CMD_MEMORY);
    cfg_write(x.r, 2, CFG_COMMAND, 2, CMD_MEMORY);
    x.a = bar_at(x.r, 1, 1);
    x.b = x.r->layout.mem_base + (64u << 20);
    for (unsigned i = 0; i < 2; i++) assert_int_equal(pthread_create(&thread[i], NULL, race_reader, &x), 0);
    for (unsigned i = 0; i < 20000 || (x.hits < 1000 && i < 2000000); i++)
        cfg_write(x.r, 1, CFG_BAR(1), 4, (uint32_t)(i & 1 ? x.a : x.b));
    x.stop = true;
    for (unsigned i = 0; i < 2; i++) pthread_join(thread[i], NULL);
    assert_int_equal(x.wrong, 0);
    assert_true(x.hits > 0);
    free(t);
    free(u);
    pci_rig_free(x.r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header),  cmocka_unit_test(test_ports),    cmocka_unit_test(test_bars),
        cmocka_unit_test(test_overlap), cmocka_unit_test(test_intx),     cmocka_unit_test(test_intx_isa),
        cmocka_unit_test(test_msix),    cmocka_unit_test(test_msi),      cmocka_unit_test(test_capabilities),
        cmocka_unit_test(test_resets),  cmocka_unit_test(test_refusals), cmocka_unit_test(test_layout),
        cmocka_unit_test(test_race),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
