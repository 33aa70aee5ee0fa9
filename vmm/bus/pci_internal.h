/* Private header of the PCI bus (vmm/bus/pci*.c).
 *
 * Locks, in the order in which they may be taken: config_lock of the bus, a device's own, then one of: map.lock, intx_lock, a
 * function's message_lock. The last three are leaves but for the interrupt chip's. */
#ifndef NACELLE_VMM_PCI_INTERNAL_H
#define NACELLE_VMM_PCI_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "vmm/bus/pci.h"

#define PCI_CONFIG_SIZE 4096u
#define PCI_NOWHERE UINT64_MAX

/* Registers of a type 0 header (PCI 3.0 6.1) */
#define PCI_VENDOR 0x00
#define PCI_COMMAND 0x04
#define PCI_STATUS 0x06
#define PCI_REVISION 0x08
#define PCI_CACHE_LINE 0x0c
#define PCI_BAR(n) (0x10u + 4 * (n))
#define PCI_SUBSYSTEM 0x2c
#define PCI_CAPABILITIES 0x34
#define PCI_INTERRUPT_LINE 0x3c
#define PCI_INTERRUPT_PIN 0x3d
#define PCI_FIRST_CAPABILITY 0x40

#define COMMAND_IO 0x0001u
#define COMMAND_MEMORY 0x0002u
#define COMMAND_MASTER 0x0004u
#define COMMAND_PARITY 0x0040u
#define COMMAND_SERR 0x0100u
#define COMMAND_INTX_OFF 0x0400u
#define STATUS_INTERRUPT 0x08u /* low byte */
#define STATUS_CAPABILITIES 0x10u

#define CAP_MSI 0x05
#define CAP_EXPRESS 0x10
#define CAP_MSIX 0x11

#define MSIX_MAX 2048u
#define MSIX_ENTRY 16u
#define MSIX_MASKED 1u /* of an entry's vector control */

/* A vector's eventfd (pci_irqfd.c). */
struct pci_irqfd {
    int fd;        /* -1: none */
    bool routed;   /* the engine turns signals of `fd` into this message */
    bool refused;  /* by the engine or the host: not tried again before the next reset */
    uint32_t data; /* the message that was sent last */
    uint64_t addr;
    unsigned sent, worth_it; /* how often in a row, and after how many it is worth a route */
};

struct pci_function {
    struct pci_bus *bus;
    struct pci_desc d;
    unsigned slot;
    struct device_stats stats;

    /* Configuration space: config_lock. */
    uint8_t config[PCI_CONFIG_SIZE];
    uint8_t writable[PCI_CONFIG_SIZE];
    uint8_t reset_value[PCI_CONFIG_SIZE]; /* config[] at power-on, with the BARs where we put them */
    unsigned last_cap, next_free;         /* offsets: of the last capability (0: none), of the first free byte */
    unsigned express, msi, msix;          /* offsets of these capabilities, 0: none */
    uint64_t bar_at[PCI_BARS];            /* what each BAR decodes now, PCI_NOWHERE: nothing */
    uint64_t home[PCI_BARS];              /* where place_bars() put each, ... */
    uint64_t room[PCI_BARS];              /* ... and how many bytes it keeps there (0: none) */
    bool removable;
    atomic_bool unplugged; /* written with config_lock */

    /* Read without a lock, written with config_lock. */
    _Atomic uint16_t command;
    atomic_bool msi_on, msix_on;

    bool intx_wish, intx; /* intx_lock: the device's wish; what reaches the line */

    pthread_mutex_t message_lock; /* guards all below */
    bool msi_pending, msi_masked, msix_all_masked;
    uint64_t msi_address;
    uint32_t msi_data;
    struct pci_irqfd *irqfd; /* one per MSI-X vector, then one for MSI */
    unsigned irqfds;
    uint8_t *table; /* MSIX_ENTRY bytes per vector */
    uint64_t pba[MSIX_MAX / 64];
};

/* What BARs decode now, for look-ups without a lock: a sequence lock whose data are atomics (see pci_map.c). */
struct pci_map_entry {
    _Atomic uint64_t base, last;
    _Atomic uint32_t target; /* slot * 8 + BAR */
};
struct pci_map {
    pthread_mutex_t lock; /* writers; and readers that had no luck for too long */
    _Atomic uint32_t sequence;
    _Atomic uint32_t count[2]; /* by bus space */
    struct pci_map_entry entry[2][PCI_SLOTS * PCI_BARS];
};

struct pci_window {
    struct pci_bus *bus;
    enum bus_space space;
    uint64_t base, size;
};
enum { WINDOW_IO, WINDOW_MEM, WINDOW_MEM64, WINDOWS };

struct pci_bus {
    struct pci_config cfg;
    struct pci_layout layout;
    struct pci_window window[WINDOWS];
    struct pci_function *function[PCI_SLOTS]; /* changes with config_lock while no vCPU runs */
    struct pci_map map;
    pthread_mutex_t config_lock;                  /* guards configuration space, and address */
    uint32_t address;                             /* the register at 0xcf8 */
    pthread_mutex_t intx_lock;                    /* guards asserting */
    uint32_t asserting[PCI_FIRST_GSI + PCI_GSIS]; /* by line: which slots hold it */
};

/* pci_config.c; all with config_lock */
uint64_t pci_config_read(struct pci_function *f, unsigned off, unsigned size);
void pci_config_write(struct pci_function *f, unsigned off, unsigned size, uint64_t value);
/* Decodes command and BARs anew, tells the device of those that moved. */
void pci_update_bars(struct pci_function *f);
/* `hot`: as a function level reset, which also forgets the BARs. */
void pci_function_reset(struct pci_function *f, bool hot);
void pci_registers_reset(struct pci_function *f, bool hot); /* the same without the device */

/* pci_map.c */
void pci_map_init(struct pci_map *m);
void pci_map_fini(struct pci_map *m);
void pci_map_rebuild(struct pci_bus *b); /* config_lock */
int pci_windows_attach(struct pci_bus *b, struct nerr *e);

/* pci_message.c: MSI and MSI-X */
int pci_message_init(struct pci_function *f, struct nerr *e);
void pci_message_fini(struct pci_function *f);
void pci_message_reset(struct pci_function *f);
/* The capabilities or the command register were written: sends what is no longer held back. config_lock. */
void pci_message_update(struct pci_function *f);
void pci_message_pending(struct pci_function *f); /* brings the pending bit in configuration space up to date */
uint64_t pci_msix_size(unsigned vectors);         /* bytes of a BAR that holds table and PBA */
uint64_t pci_msix_read(struct pci_function *f, uint64_t off, unsigned size);
void pci_msix_write(struct pci_function *f, uint64_t off, unsigned size, uint64_t value);

/* pci_irqfd.c; all but init and fini with message_lock */
int pci_irqfd_init(struct pci_function *f); /* negative: out of memory */
void pci_irqfd_fini(struct pci_function *f);
/* Sends vector n's message (n = the number of vectors: MSI's) by its eventfd; false: it has none, and the message is the caller's to send. */
bool pci_irqfd_send(struct pci_function *f, unsigned n, uint64_t addr, uint32_t data);
void pci_irqfd_drop(struct pci_function *f); /* gives all back; what was signalled has arrived */

/* pci.c */
void pci_intx_update(struct pci_function *f); /* with no lock, or config_lock */
void pci_intx_status(struct pci_function *f); /* brings the status register up to date; config_lock */

static inline uint16_t pci_get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}
static inline uint32_t pci_get32(const uint8_t *p)
{
    return pci_get16(p) | (uint32_t)pci_get16(p + 2) << 16;
}
static inline void pci_put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}
static inline void pci_put32(uint8_t *p, uint32_t v)
{
    pci_put16(p, (uint16_t)v);
    pci_put16(p + 2, (uint16_t)(v >> 16));
}

#endif
