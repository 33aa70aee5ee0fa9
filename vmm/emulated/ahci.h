/* AHCI 1.3.1 controller with one SATA disk per port, for guests without virtio drivers: every stock system drives it.
 *
 * Threads: created and destroyed while no vCPU runs, on the event loop's thread. Registers are accessed on vCPU threads; the disks' back ends
 * complete on the loop's thread, or on a vCPU's that has just submitted. */
#ifndef NACELLE_VMM_AHCI_H
#define NACELLE_VMM_AHCI_H

#include "common/error.h"
#include "vmm/bus/pci.h"

struct ahci;
struct block;

#define AHCI_MAX_DISKS 32

struct ahci_disk {
    struct block *block; /* the caller's, who closes it after ahci_destroy() */
    const char *serial;  /* up to 20 printable characters; copied */
};

/* slot -1: the next free one. `name` outlives the controller. */
int ahci_create(struct pci_bus *b, int slot, const char *name, const struct ahci_disk *disks, unsigned n,
                struct ahci **out, struct nerr *e);
/* No vCPU runs. Waits for requests in flight. NULL is fine. */
void ahci_destroy(struct ahci *a);

#endif
