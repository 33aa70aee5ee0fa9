/* The controller: its own registers, interrupts, life (AHCI 1.3.1 3.1, 10). */
#include "vmm/emulated/ahci_internal.h"

#include <errno.h>
#include <stdlib.h>

/* The id of a widespread controller, for systems that go by ids and not by class. */
#define ICH9_VENDOR 0x8086
#define ICH9_AHCI 0x2922
#define CLASS_AHCI 0x010601
#define ABAR 5
#define ABAR_SIZE 0x2000u

enum { REG_CAP = 0x00, REG_GHC = 0x04, REG_IS = 0x08, REG_PI = 0x0c, REG_VS = 0x10 };

#define CAP_64BIT (1u << 31)
#define CAP_NCQ (1u << 30)
#define CAP_CLO (1u << 24)
#define CAP_GEN3 (3u << 20)
#define CAP_AHCI_ONLY (1u << 18)
#define CAP_SLOTS ((AHCI_SLOTS - 1u) << 8)

#define GHC_RESET (1u << 0)
#define GHC_INTERRUPT (1u << 1)
#define GHC_AHCI (1u << 31)

/* ---- interrupts: IS has a bit per port, set whenever the port has one pending, also right after the driver cleared it ---- */

/* `fresh`: bits that were just set. One message covers all bits that are set when the driver looks. */
static void settle(struct ahci *a, uint32_t fresh)
{
    bool on = a->ghc & GHC_INTERRUPT;
    pci_intx_set(a->pci, on && a->is);
    if (on && fresh) pci_msi_notify(a->pci);
}

void ahci_port_irq(struct ahci_port *p)
{
    struct ahci *a = p->hba;
    uint32_t bit = 1u << p->n;
    pthread_mutex_lock(&a->lock);
    bool was = a->pending & bit, now = p->is & p->ie;
    if (now != was) a->pending ^= bit;
    if (now && !(a->is & bit)) {
        a->is |= bit;
        settle(a, bit);
    }
    pthread_mutex_unlock(&a->lock);
}

static void clear_is(struct ahci *a, uint32_t v)
{
    a->is &= ~v;
    uint32_t fresh = a->pending & ~a->is;
    a->is |= fresh;
    settle(a, fresh);
}

/* ---- registers ---- */

static void hba_reset(struct ahci *a)
{
    pthread_mutex_lock(&a->lock);
    a->resetting = true;
    a->ghc = GHC_AHCI;
    pthread_mutex_unlock(&a->lock);
    for (unsigned i = 0; i < a->ports; i++) ahci_port_reset(&a->port[i]);
    pthread_mutex_lock(&a->lock);
    a->is = a->pending = 0;
    settle(a, 0);
    pthread_mutex_unlock(&a->lock);
}

static uint32_t read_ghc(struct ahci *a)
{
    if (a->resetting && atomic_load(&a->in_flight) == 0) a->resetting = false;
    return a->ghc | (a->resetting ? GHC_RESET : 0);
}

static uint32_t hba_read(struct ahci *a, unsigned reg)
{
    uint32_t v = 0;
    pthread_mutex_lock(&a->lock);
    switch (reg) {
    case REG_CAP: v = CAP_64BIT | CAP_NCQ | CAP_CLO | CAP_GEN3 | CAP_AHCI_ONLY | CAP_SLOTS | (a->ports - 1); break;
    case REG_GHC: v = read_ghc(a); break;
    case REG_IS: v = a->is; break;
    case REG_PI: v = (uint32_t)((1ull << a->ports) - 1); break;
    case REG_VS: v = 0x00010301; break;
    default: break;
    }
    pthread_mutex_unlock(&a->lock);
    return v;
}

static void write_ghc(struct ahci *a, uint32_t v)
{
    uint32_t old = a->ghc;
    a->ghc = GHC_AHCI | (v & GHC_INTERRUPT);
    settle(a, a->ghc & ~old & GHC_INTERRUPT ? a->is : 0);
}

static void hba_write(struct ahci *a, unsigned reg, uint32_t v)
{
    if (reg == REG_GHC && v & GHC_RESET) {
        hba_reset(a);
        return;
    }
    pthread_mutex_lock(&a->lock);
    if (reg == REG_GHC) write_ghc(a, v);
    if (reg == REG_IS) clear_is(a, v);
    pthread_mutex_unlock(&a->lock);
}

static uint32_t read32(struct ahci *a, unsigned off)
{
    if (off < AHCI_PORT_BASE) return hba_read(a, off);
    unsigned n = (off - AHCI_PORT_BASE) / AHCI_PORT_SIZE;
    return n < a->ports ? ahci_port_read(&a->port[n], off % AHCI_PORT_SIZE) : 0;
}

static void write32(struct ahci *a, unsigned off, uint32_t v)
{
    if (off < AHCI_PORT_BASE) {
        hba_write(a, off, v);
        return;
    }
    unsigned n = (off - AHCI_PORT_BASE) / AHCI_PORT_SIZE;
    if (n < a->ports) ahci_port_write(&a->port[n], off % AHCI_PORT_SIZE, v);
}

/* Registers are 32 bits wide. Narrower reads get their part; wider ones are two. */
static uint64_t bar_read(void *dev, unsigned bar, uint64_t off, unsigned size)
{
    struct ahci *a = dev;
    (void)bar;
    unsigned at = (unsigned)off & ~3u;
    uint64_t v = read32(a, at);
    if ((off & 3) + size > 4) v |= (uint64_t)read32(a, at + 4) << 32;
    return v >> (off & 3) * 8;
}

/* Systems write whole registers only (3): other writes have no defined effect, and here none. */
static void bar_write(void *dev, unsigned bar, uint64_t off, unsigned size, uint64_t value)
{
    struct ahci *a = dev;
    (void)bar;
    if (off & 3 || size < 4) return;
    write32(a, (unsigned)off, (uint32_t)value);
    if (size == 8) write32(a, (unsigned)off + 4, (uint32_t)(value >> 32));
}

/* ---- life ---- */

/* Power-on: nobody may be told later of what is in flight, so it is waited for. */
static void reset(void *dev)
{
    struct ahci *a = dev;
    hba_reset(a);
    for (unsigned i = 0; i < a->ports; i++) block_drain(a->port[i].block);
    hba_reset(a);
}

static const struct pci_ops ops = {.bar_read = bar_read, .bar_write = bar_write, .reset = reset};

static int add_function(struct ahci *a, struct pci_bus *b, int slot, const char *name, struct nerr *e)
{
    struct pci_desc d = {
        .name = name,
        .kind = "ahci",
        .vendor = ICH9_VENDOR,
        .device = ICH9_AHCI,
        .subsystem_vendor = ICH9_VENDOR,
        .subsystem = ICH9_AHCI,
        .class_code = CLASS_AHCI,
        .revision = 2,
        .intx = true,
        .msi = true,
        .bar = {[ABAR] = {.kind = PCI_BAR_MEM32, .size = ABAR_SIZE}},
        .ops = &ops,
        .dev = a,
    };
    return pci_add(b, slot, &d, &a->pci, e);
}

int ahci_create(struct pci_bus *b, int slot, const char *name, const struct ahci_disk *disks, unsigned n,
                struct ahci **out, struct nerr *e)
{
    if (n < 1 || n > AHCI_MAX_DISKS)
        return nerr_set(e, -EINVAL, "%s: %u disks are not possible; give 1 to %d", name, n, AHCI_MAX_DISKS);
    struct ahci *a = calloc(1, sizeof *a + n * sizeof a->port[0]);
    if (!a) return nerr_set(e, -ENOMEM, "%s: out of memory", name);
    a->ports = n;
    pthread_mutex_init(&a->lock, NULL);
    int r = add_function(a, b, slot, name, e);
    for (unsigned i = 0; i < n && !r; i++) r = ahci_port_init(&a->port[i], a, i, &disks[i], e);
    if (r) {
        ahci_destroy(a);
        return r;
    }
    for (unsigned i = 0; i < n; i++) block_count_into(a->port[i].block, pci_stats(a->pci));
    hba_reset(a);
    *out = a;
    return 0;
}

void ahci_destroy(struct ahci *a)
{
    if (!a) return;
    for (unsigned i = 0; i < a->ports; i++) {
        if (!a->port[i].hba) continue;
        ahci_port_reset(&a->port[i]);
        block_drain(a->port[i].block);
        ahci_port_fini(&a->port[i]);
    }
    pthread_mutex_destroy(&a->lock);
    free(a);
}
