/* Private header of the e1000: registers (chapter 13), and what its files share.
 *
 * Locks: tx_lock, then the network back end's, then rx_lock (vmm/backend/net.h); irq_lock is a leaf. Single registers are atomics, read without
 * a lock; a lock is held where several must agree. */
#ifndef NACELLE_VMM_E1000_INTERNAL_H
#define NACELLE_VMM_E1000_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/event.h"
#include "vmm/backend/net.h"
#include "vmm/bus/device_stats.h"
#include "vmm/emulated/e1000.h"

#define E1000_BAR_SIZE 0x20000u
#define E1000_REGS (0x6000u / 4) /* all that have state */
#define E1000_MAX_FRAME 16384u

enum e1000_reg {
    E1000_CTRL = 0x0000,
    E1000_STATUS = 0x0008,
    E1000_EECD = 0x0010,
    E1000_EERD = 0x0014,
    E1000_MDIC = 0x0020,
    E1000_VET = 0x0038,
    E1000_ICR = 0x00c0,
    E1000_ITR = 0x00c4,
    E1000_ICS = 0x00c8,
    E1000_IMS = 0x00d0,
    E1000_IMC = 0x00d8,
    E1000_RCTL = 0x0100,
    E1000_TCTL = 0x0400,
    E1000_PBA = 0x1000,
    E1000_RDBAL = 0x2800,
    E1000_RDBAH = 0x2804,
    E1000_RDLEN = 0x2808,
    E1000_RDH = 0x2810,
    E1000_RDT = 0x2818,
    E1000_TDBAL = 0x3800,
    E1000_TDBAH = 0x3804,
    E1000_TDLEN = 0x3808,
    E1000_TDH = 0x3810,
    E1000_TDT = 0x3818,
    E1000_STATISTICS = 0x4000, /* 64 of them, cleared by reading */
    E1000_MPC = 0x4010,
    E1000_GPRC = 0x4074,
    E1000_BPRC = 0x4078,
    E1000_MPRC = 0x407c,
    E1000_GPTC = 0x4080,
    E1000_GORCL = 0x4088,
    E1000_GOTCL = 0x4090,
    E1000_ROC = 0x40ac,
    E1000_TORL = 0x40c0,
    E1000_TOTL = 0x40c8,
    E1000_TPR = 0x40d0,
    E1000_TPT = 0x40d4,
    E1000_STATISTICS_END = 0x4100,
    E1000_RXCSUM = 0x5000,
    E1000_MTA = 0x5200,
    E1000_RAL = 0x5400,
    E1000_RAH = 0x5404,
    E1000_VFTA = 0x5600,
};

#define CTRL_FD 0x1u
#define CTRL_SLU 0x40u
#define CTRL_RST 0x04000000u
#define CTRL_VME 0x40000000u
#define CTRL_PHY_RST 0x80000000u
#define STATUS_FD 0x1u
#define STATUS_LU 0x2u
#define STATUS_1000 0x80u
#define RAH_VALID 0x80000000u

#define CAUSE_TXDW 0x01u
#define CAUSE_TXQE 0x02u
#define CAUSE_LSC 0x04u
#define CAUSE_RXDMT0 0x10u
#define CAUSE_RXT0 0x80u
#define CAUSE_MDAC 0x200u

#define EEPROM_WORDS 64
#define PHY_REGS 32

struct e1000_eeprom { /* a 93C46 behind four wires */
    uint16_t word[EEPROM_WORDS];
    unsigned bits; /* shifted in since the start bit; 0: waiting for it */
    uint32_t in;
    uint16_t out;
    int left; /* bits of `out` still to come */
    bool data_out;
};

struct e1000_piece {
    uint64_t gpa;
    uint32_t len;
};

struct e1000_context { /* 3.3.6 */
    uint8_t ipcss, ipcso, tucss, tucso, header_len;
    uint16_t ipcse, tucse, mss;
    bool ip4, tcp;
};

struct e1000_tx {
    struct e1000_piece piece[NET_MAX_SEGMENTS]; /* of the frame that is being collected */
    unsigned pieces;
    uint32_t bytes;
    bool too_long;
    struct e1000_context context, tso; /* without and with segmentation */
    bool is_tso, vlan, first;
    uint8_t options; /* POPTS of the frame's first data descriptor */
    uint16_t tag;
    uint32_t work;   /* bytes sent in this run */
    bool blocked;    /* the back end is full */
    bool continuing; /* the rest has been posted to the loop */
};

struct e1000 {
    struct pci_function *function;
    struct device_stats *stats;
    struct net *net;
    struct event_loop *loop;
    uint8_t mac[6];
    _Atomic uint32_t reg[E1000_REGS];
    _Atomic bool link;

    pthread_mutex_t tx_lock;
    struct e1000_tx tx;

    pthread_mutex_t rx_lock;
    _Atomic bool received; /* causes wait for the end of the batch */

    pthread_mutex_t irq_lock;
    uint32_t icr, ims;
    bool line;
    uint64_t quiet_until; /* moderation (13.4.18) */
    struct event_timer itr_timer;

    pthread_mutex_t wire_lock; /* EEPROM and PHY; a leaf */
    struct e1000_eeprom eeprom;
    uint16_t phy[PHY_REGS];
    uint32_t io_address; /* the I/O BAR's window */
};

static inline uint32_t e1000_get(const struct e1000 *d, enum e1000_reg r)
{
    return atomic_load_explicit(&d->reg[r / 4], memory_order_relaxed);
}
static inline void e1000_put(struct e1000 *d, enum e1000_reg r, uint32_t v)
{
    atomic_store_explicit(&d->reg[r / 4], v, memory_order_relaxed);
}
static inline void e1000_add(struct e1000 *d, enum e1000_reg r, uint32_t by)
{
    atomic_fetch_add_explicit(&d->reg[r / 4], by, memory_order_relaxed);
}
/* Counters of octets: two registers. */
void e1000_add64(struct e1000 *d, enum e1000_reg low, uint64_t by);

void e1000_raise(struct e1000 *d, uint32_t causes); /* any lock may be held */

/* ---- e1000_wires.c ---- */
void e1000_wires_reset(struct e1000 *d);
void e1000_eeprom_init(struct e1000 *d);
void e1000_phy_link(struct e1000 *d, bool up);
void e1000_eecd_write(struct e1000 *d, uint32_t v);
uint32_t e1000_eecd_read(struct e1000 *d);
void e1000_eerd_write(struct e1000 *d, uint32_t v);
void e1000_mdic_write(struct e1000 *d, uint32_t v);

/* ---- e1000_tx.c ---- */
void e1000_tx_run(struct e1000 *d); /* with tx_lock */
void e1000_tx_writable(void *ctx);

/* ---- e1000_rx.c ---- */
bool e1000_receive(void *ctx, const struct iovec *iov, unsigned iovs);
void e1000_receive_end(void *ctx);

#endif
