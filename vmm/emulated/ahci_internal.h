/* Private header of the AHCI controller: ahci.c has the controller's registers and life, ahci_port.c a port's registers, its command
 * list and what it tells the driver, ahci_ata.c the disk behind a port.
 *
 * Locks: a port's, then the controller's, then those of the PCI bus. */
#ifndef NACELLE_VMM_AHCI_INTERNAL_H
#define NACELLE_VMM_AHCI_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "vmm/backend/block.h"
#include "vmm/emulated/ahci.h"

#define AHCI_SLOTS 32
#define AHCI_PORT_BASE 0x100u
#define AHCI_PORT_SIZE 0x80u
#define AHCI_IOVS 256u      /* descriptors per request to the back end; longer commands take several */
#define AHCI_TRIM_BLOCKS 8u /* 512-byte blocks of ranges per DATA SET MANAGEMENT */
#define AHCI_TRIM_RANGES (AHCI_TRIM_BLOCKS * 64u)

/* PxIS (AHCI 1.3.1, 3.3.5) */
#define IS_DHR (1u << 0) /* device to host register FIS */
#define IS_PS (1u << 1)  /* PIO setup FIS */
#define IS_SDB (1u << 3) /* set device bits FIS */
#define IS_DP (1u << 5)  /* a descriptor with its interrupt bit is done */
#define IS_PC (1u << 6)  /* port connect change: follows SERR.X */
#define IS_PRC (1u << 22)
#define IS_OF (1u << 24)  /* more data than descriptors */
#define IS_IF (1u << 27)  /* interface fatal error */
#define IS_HBD (1u << 28) /* data are no memory */
#define IS_HBF (1u << 29) /* command list or table are no memory */
#define IS_TFE (1u << 30) /* the disk reported an error */
#define IS_ALL 0xfdc000ffu

/* PxCMD (3.3.7) */
#define CMD_ST (1u << 0)
#define CMD_SUD (1u << 1)
#define CMD_POD (1u << 2)
#define CMD_CLO (1u << 3)
#define CMD_FRE (1u << 4)
#define CMD_FR (1u << 14)
#define CMD_CR (1u << 15)

/* ATA status and error (ACS-3 6.2, 6.3) */
#define ATA_BSY 0x80u
#define ATA_DRDY 0x40u
#define ATA_DF 0x20u
#define ATA_DSC 0x10u
#define ATA_DRQ 0x08u
#define ATA_ERR 0x01u
#define ATA_UNC 0x40u
#define ATA_IDNF 0x10u
#define ATA_ABRT 0x04u

/* A register FIS from the host (SATA 3.1 10.3.4), decoded. */
struct ata_command {
    uint8_t command, device, control;
    uint16_t feature, count;
    uint64_t lba; /* 48 bits; for 28-bit commands see ata.c */
};

struct ahci_slot {
    struct block_request request;
    struct ahci_port *port;
    unsigned n;
    bool active; /* taken by the disk, its end not yet told */
    bool queued; /* NCQ: ends with a set device bits FIS */
    bool write, pio;
    uint32_t epoch; /* of the port when it began: an older one's end is told to nobody */
    struct ata_command ata;
    /* What is left of its data. */
    uint64_t offset, left; /* bytes */
    uint32_t moved;        /* bytes so far */
    /* Where in the physical region descriptor table. Each descriptor is read once: [prd_addr, +prd_left) is what is left of the last one. */
    uint64_t table, prd_addr;
    uint32_t prd_left, prd_next, prds;
    bool prd_interrupt;
    /* Pieces of guest memory: [0, used) are the back end's, [used, iovs) and before them `rest` come next. */
    struct iovec iov[AHCI_IOVS], rest;
    uint64_t gpa[AHCI_IOVS], rest_gpa;
    unsigned iovs, used;
    /* DATA SET MANAGEMENT */
    unsigned range, ranges;
    uint64_t trim[AHCI_TRIM_RANGES];
};

struct ahci_port {
    struct ahci *hba;
    unsigned n;
    struct block *block;
    pthread_mutex_t lock; /* guards all below */
    /* Registers */
    uint32_t clb, clbu, fb, fbu, is, ie, cmd, tfd, sig, ssts, sctl, serr, sact, ci;
    /* State */
    uint32_t epoch;     /* grows with every stop and reset */
    unsigned in_flight; /* slots that a back end holds, older ones' too */
    bool busy;          /* with a command that is not queued */
    bool failed;        /* stopped at an error until ST is cleared */
    bool link_wanted;   /* a reset has ended: the link comes up when nothing is in flight any more */
    bool srst;          /* software reset: the first of its two FISes came */
    unsigned next;      /* where the search for the next command begins */
    /* The disk */
    char serial[21];
    uint64_t sectors;
    uint32_t sector, physical; /* bytes */
    bool readonly, can_trim;
    bool write_cache, look_ahead, smart;
    uint8_t multiple;    /* sectors per PIO block */
    uint8_t ncq_log[16]; /* how the last queued command failed: the start of log page 10h */
    struct ahci_slot *slot;
};

struct ahci {
    struct pci_function *pci;
    unsigned ports;
    atomic_uint in_flight; /* over all ports */
    pthread_mutex_t lock;  /* guards ghc, is, pending, resetting */
    uint32_t ghc, is;
    uint32_t pending; /* ports with PxIS & PxIE */
    bool resetting;   /* HBA reset: reads so until nothing is in flight */
    struct ahci_port port[];
};

/* ahci.c: PxIS or PxIE changed. With the port's lock. */
void ahci_port_irq(struct ahci_port *p);

/* ahci_port.c */
int ahci_port_init(struct ahci_port *p, struct ahci *a, unsigned n, const struct ahci_disk *d, struct nerr *e);
void ahci_port_fini(struct ahci_port *p);
uint32_t ahci_port_read(struct ahci_port *p, unsigned reg);
void ahci_port_write(struct ahci_port *p, unsigned reg, uint32_t v);
/* Power-on or HBA reset. What is in flight goes on, untold; the link comes up behind it. */
void ahci_port_reset(struct ahci_port *p);

/* Called by ahci_ata.c for a command that has not gone to the back end, or has come back; with the port's lock. */
void ahci_slot_done(struct ahci_slot *s, uint8_t error); /* error register; 0: it went well */
/* The same with count and LBA that the command returns. */
void ahci_slot_done_with(struct ahci_slot *s, uint8_t code, uint16_t count, uint64_t lba);
void ahci_slot_fatal(struct ahci_slot *s, uint32_t is_bit);
/* Hands the slot's next data to the back end: request.op, `offset` and `left` say what. May fail the command at once. */
void ahci_slot_submit(struct ahci_slot *s);
/* A request without data: request.op, `offset`. */
void ahci_slot_submit_bare(struct ahci_slot *s, uint64_t length);
/* Copies a small answer into the guest, or data from it: false when that is no memory (told as fatal already). */
bool ahci_slot_copy(struct ahci_slot *s, void *buf, unsigned len, bool to_guest);

/* ahci_ata.c: begins a command: it is done, or submitted, when this returns. */
void ata_execute(struct ahci_slot *s);
/* The next piece of a trim: true when it was submitted or its failure told; false when there is none. */
bool ata_next_range(struct ahci_slot *s);
void ata_power_on(struct ahci_port *p);

#endif
