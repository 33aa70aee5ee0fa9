/* The PCI part of the DSDT. Private to vmm/platform. */
#ifndef NACELLE_VMM_PLATFORM_ACPI_PCI_H
#define NACELLE_VMM_PLATFORM_ACPI_PCI_H

#include "vmm/bus/pci.h"
#include "vmm/platform/aml.h"

void acpi_pci_bridge(struct aml *a, const struct pci_layout *p); /* Device(PCI0), inside \_SB */

#endif
