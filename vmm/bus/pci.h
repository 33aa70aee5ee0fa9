/* PCI: one root bus (0) of up to 32 slots, configuration by ECAM and by ports 0xcf8/0xcfc, BARs that the guest may move, INTx, MSI and
 * MSI-X. A device describes itself with a struct pci_desc; everything in configuration space that is the same for all of them
 * (command, BARs, capabilities list, MSI-X table, function level reset) is kept here. The host bridge in slot 0 is the bus's own.
 *
 * Threads: functions are added and removed by the event loop's thread while no vCPU runs: before they start, or parked. BAR callbacks come on
 * vCPU threads (any of them, several at once), with no lock held: each device locks itself. config_written, config_reading, bar_moved and
 * reset come one at a time, with the bus's configuration lock held; they may take the device's lock. So nobody may access configuration space
 * through the bus with a device's lock held, and nothing here does but for the guest. pci_msix_notify(), pci_msi_notify(), pci_intx_set(),
 * pci_bus_master() and pci_msi*_enabled() may be called from any thread, with the device's lock held. */
#ifndef NACELLE_VMM_PCI_H
#define NACELLE_VMM_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "vmm/bus/bus.h"
#include "vmm/bus/device_stats.h"
#include "vmm/memory/dma.h"

struct irqchip;
struct pci_bus;
struct pci_function;

#define PCI_SLOTS 32
#define PCI_BARS 6

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MEM32, PCI_BAR_MEM64 /* takes this and the next index */ };

struct pci_bar {
    enum pci_bar_kind kind;
    bool prefetchable;
    uint64_t size; /* bytes, a power of two: at least 4 (I/O) or 16 */
};

struct pci_ops {
    /* Accesses to BARs: `off` is below the BAR's size and the access does not cross its end; size 1, 2, 4 (8 for memory). */
    uint64_t (*bar_read)(void *dev, unsigned bar, uint64_t off, unsigned size);
    void (*bar_write)(void *dev, unsigned bar, uint64_t off, unsigned size, uint64_t value);
    /* A capability's bytes that pci_add_capability() made writable were written: [off, off + size) of configuration space. May be NULL. */
    void (*config_written)(void *dev, unsigned off, unsigned size);
    /* Bytes of a capability that are made when they are read (virtio's PCI configuration access window). May be NULL. */
    void (*config_reading)(void *dev, unsigned off, unsigned size);
    /* The guest moved or enabled a BAR (for ioeventfd and direct maps); `addr` is UINT64_MAX when it decodes nothing now. May be NULL. */
    void (*bar_moved)(void *dev, unsigned bar, uint64_t addr);
    /* Power-on state: machine reset, or a function level reset. When it returns, the device makes no more use of guest memory and of
     * interrupts for what it was told before. */
    void (*reset)(void *dev);
};

struct pci_desc {
    const char *name; /* for messages and statistics; outlives the function */
    const char *kind; /* static string for statistics ("ahci"), or NULL */
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint32_t class_code; /* 24 bits: class, subclass, programming interface */
    uint8_t revision;
    bool intx;             /* has interrupt pin INTA# */
    bool msi;              /* one message-signalled interrupt without a table, for drivers that know no MSI-X */
    unsigned msix_vectors; /* 0: no MSI-X; else at most 2048, table and PBA in msix_bar */
    unsigned msix_bar;     /* a memory BAR of its own, sized by the bus when bar[msix_bar].kind is PCI_BAR_NONE */
    struct pci_bar bar[PCI_BARS];
    const struct pci_ops *ops;
    void *dev;
};

/* `slot` -1: the next free one. */
int pci_add(struct pci_bus *b, int slot, const struct pci_desc *d, struct pci_function **out, struct nerr *e);
/* Appends a capability (`body` without its two-byte header). Bits set in `writable` (same length, or NULL for none) may be written by the guest.
 * Returns its offset in configuration space, 0 when there is no room. */
unsigned pci_add_capability(struct pci_function *f, uint8_t id, const void *body, const void *writable, unsigned len);
/* The function's configuration space as the guest reads it (4096 bytes), for capabilities with state. */
uint8_t *pci_config(struct pci_function *f);

bool pci_bus_master(const struct pci_function *f); /* may it reach memory and send MSIs? */
bool pci_msix_enabled(const struct pci_function *f);
/* Sends (or keeps pending while masked) vector n. Nothing while MSI-X is disabled. */
void pci_msix_notify(struct pci_function *f, unsigned vector);
bool pci_msi_enabled(const struct pci_function *f);
void pci_msi_notify(struct pci_function *f); /* as pci_msix_notify() */
/* The device's wish; what reaches the GSI is masked by the command register, and nothing while MSI or MSI-X is enabled. */
void pci_intx_set(struct pci_function *f, bool level);
/* Guest memory for this function's DMA. The function must check pci_bus_master() first. */
const struct dma_space *pci_dma(const struct pci_function *f);
/* The bus that the BARs are on, for bus_ioeventfd_add(). */
struct bus *pci_bar_bus(const struct pci_function *f);
/* The function's counters: the device counts all but `accesses` (to BARs) and `interrupts`. */
struct device_stats *pci_stats(struct pci_function *f);

/* ---- hot plug ----
 *
 * Added: pci_add() and pci_hot_added() while vCPUs are parked. Removed in steps, since a vCPU (or the loop, for a doorbell) may be inside the device at
 * that moment: pci_unplug(), on any thread, and the guest finds the slot empty; pci_remove(), vCPUs parked, and nothing but the device's own
 * threads and callbacks can reach it; pci_quiesce(), vCPUs running again, which waits for its back end; then its owner destroys it (after the
 * callbacks that it had posted to the loop); pci_free(). */

/* The function with this name, or NULL. */
struct pci_function *pci_find(struct pci_bus *b, const char *name);
/* From now on the guest may eject it. */
void pci_set_removable(struct pci_function *f);
/* It was added to a running machine: BARs have no addresses, which the system will give them; the next reset of the bus does. */
void pci_hot_added(struct pci_function *f);
/* [any thread] A removable function vanishes: configuration space reads as nothing there, BARs, interrupts and DMA of new requests end. False:
 * there is none, it must stay, or it is unplugged already. */
bool pci_unplug(struct pci_bus *b, unsigned slot);
bool pci_unplugged(struct pci_function *f);
/* Frees the slot of an unplugged function. No vCPU runs. */
void pci_remove(struct pci_function *f);
/* The device's reset, on a function that was removed: all that it has in flight is over when this returns. */
void pci_quiesce(struct pci_function *f);
void pci_free(struct pci_function *f); /* after pci_remove() and the end of its device; NULL is fine */
/* A bit for each slot that may change: free ones, and those with a removable function. */
uint32_t pci_changing_slots(struct pci_bus *b);

/* Where the bus sits in the guest's address spaces: also what ACPI tells. Sizes in bytes. */
struct pci_layout {
    uint64_t ecam_base, ecam_size;
    uint64_t io_base, io_size;
    uint64_t mem_base, mem_size;     /* below 4 GiB */
    uint64_t mem64_base, mem64_size; /* above RAM */
};
/* `taken_port`: a port outside of which the I/O window must lie (the debug-exit port), or 0. */
void pci_layout_init(struct pci_layout *l, uint64_t ram_size, uint16_t taken_port);

/* GSI of INTA#, the only pin that functions here have, of a slot (as ACPI's _PRT says, once a system said that it uses the IOAPIC). */
#define PCI_FIRST_GSI 16
#define PCI_GSIS 8
static inline unsigned pci_gsi(unsigned slot)
{
    return PCI_FIRST_GSI + slot % PCI_GSIS;
}
/* The same wire's IRQ at the 8259s, for systems that use these instead: one of IRQ_ISA_PCI; in the interrupt line register from power-on. */
static inline unsigned pci_isa_irq(unsigned slot)
{
    return slot % 2 ? 5 : 10;
}

/* For tests: takes interrupts in the irqchip's place. */
struct pci_irq_sink {
    void *ctx;
    void (*msi)(void *ctx, uint64_t addr, uint32_t data);
    void (*line)(void *ctx, unsigned gsi, bool level);
};

struct pci_config {
    struct bus *bus;
    struct irqchip *irqchip; /* may be NULL when there is a sink */
    struct dma_space dma;
    uint64_t ram_size;   /* bytes: the windows for BARs lie above it */
    uint16_t taken_port; /* see pci_layout_init() */
    const struct pci_irq_sink *sink;
};
int pci_bus_create(const struct pci_config *cfg, struct pci_bus **out, struct nerr *e);
void pci_bus_destroy(struct pci_bus *b); /* the functions' devices are destroyed by their owners, before */
void pci_bus_reset(struct pci_bus *b);   /* every function's reset() too */
/* The machine goes on with another engine: before the old one's state is taken it gets its eventfds back (all that was signalled has arrived then),
 * and afterwards the new one gets them. No vCPU runs; on the loop's thread. */
void pci_bus_leave_engine(struct pci_bus *b);
void pci_bus_enter_engine(struct pci_bus *b);
/* Ports 0xcf8 to 0xcff, which the bus does not claim itself since the reset register 0xcf9 lies among them: their owner hands on
 * accesses to all others, `off` from 0xcf8. `dev` is the bus. */
extern const struct bus_handler pci_config_ports;
/* The functions in order of their slots, the host bridge left out: fills up to `max`, returns how many. */
unsigned pci_functions(struct pci_bus *b, struct pci_function **out, unsigned max);
unsigned pci_slot(const struct pci_function *f);

#endif
