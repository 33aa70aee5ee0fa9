/* Intel 82540EM Gigabit Ethernet controller (e1000), for guests without virtio drivers. Section numbers in the sources are those of Intel's
 * "PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual".
 *
 * Threads: created and destroyed while neither vCPUs nor the loop run; registers are accessed on vCPU threads, frames for the guest come on the
 * loop's thread, or on the one that has just sent (net.h). */
#ifndef NACELLE_VMM_E1000_H
#define NACELLE_VMM_E1000_H

#include "vmm/backend/net.h"
#include "vmm/bus/pci.h"

struct e1000;
struct event_loop;

struct e1000_options {
    const char *name; /* "net0"; outlives the device */
    uint8_t mac[6];
    struct net_config net;
};

int e1000_create(struct pci_bus *b, int slot, const struct e1000_options *o, struct event_loop *loop,
                 struct e1000 **out, struct nerr *e);
/* NULL is fine. */
void e1000_destroy(struct e1000 *d);
/* For link state, limits and statistics; the card's own, which it closes. */
struct net *e1000_backend(struct e1000 *d);

#endif
