/* What one device cost and did, for --stats and the control socket. The PCI bus owns one per function and counts accesses and interrupts
 * itself; the device counts the rest (pci_stats()).
 *
 * Threads: any. Counters are relaxed atomics that only grow; they say nothing about order. */
#ifndef NACELLE_VMM_DEVICE_STATS_H
#define NACELLE_VMM_DEVICE_STATS_H

#include <stdatomic.h>
#include <stdint.h>

struct device_stats {
    const char *name;                /* the user's or ours ("disk0"); outlives the device */
    const char *kind;                /* static string: "virtio-blk", "ahci", "e1000" */
    _Atomic uint64_t requests;       /* disk commands, frames, buffers of other queues: completed ones */
    _Atomic uint64_t notifications;  /* doorbells: register writes (or signalled eventfds) that asked for work */
    _Atomic uint64_t accesses;       /* register accesses that exited to us, doorbells among them */
    _Atomic uint64_t interrupts;     /* messages sent, and level interrupts that rose */
    _Atomic uint64_t irqfd;          /* of these, messages that went by an eventfd which the engine takes */
    _Atomic uint64_t bytes_in;       /* to the guest: read from the disk, received from the network */
    _Atomic uint64_t bytes_out;      /* from the guest */
    _Atomic uint64_t copies, copied; /* data (not descriptors) copied in the VMM: how often, and bytes */
    _Atomic uint64_t errors;         /* requests that failed, or that made no sense */
};

static inline void device_count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline uint64_t device_counted(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

#endif
