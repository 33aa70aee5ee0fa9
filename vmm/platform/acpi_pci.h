/* The PCI part of the DSDT. Private to vmm/platform. */
#ifndef NACELLE_VMM_PLATFORM_ACPI_PCI_H
#define NACELLE_VMM_PLATFORM_ACPI_PCI_H

#include "vmm/bus/pci.h"
#include "vmm/platform/aml.h"

/* Device(PCI0), inside \_SB */
void acpi_pci_bridge(struct aml *a, const struct pci_layout *p, uint32_t changing_slots);
/* Hot plug: what goes into PCI0, and the event's method at the root. */
void acpi_slots(struct aml *a, uint32_t changing_slots);
void acpi_slots_event(struct aml *a);
/* \_PIC, which PCI0's routing asks; at the root. */
void acpi_pci_mode(struct aml *a);

#endif
