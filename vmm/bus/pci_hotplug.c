/* Functions that come and go while the machine runs: the bus's part. What the guest is told, and how it ejects, is ACPI's (vmm/platform/slots.c). */
#include <string.h>

#include "vmm/bus/pci_internal.h"

struct pci_function *pci_find(struct pci_bus *b, const char *name)
{
    for (unsigned i = 1; i < PCI_SLOTS; i++)
        if (b->function[i] && !strcmp(b->function[i]->d.name, name)) return b->function[i];
    return NULL;
}

void pci_set_removable(struct pci_function *f)
{
    pthread_mutex_lock(&f->bus->config_lock);
    f->removable = true;
    pthread_mutex_unlock(&f->bus->config_lock);
}

/* Our own idea of free addresses knows nothing of where the system has moved BARs, so it is the system that must place them. */
void pci_hot_added(struct pci_function *f)
{
    pthread_mutex_lock(&f->bus->config_lock);
    pci_registers_reset(f, true);
    pthread_mutex_unlock(&f->bus->config_lock);
}

bool pci_unplug(struct pci_bus *b, unsigned slot)
{
    if (slot >= PCI_SLOTS) return false;
    pthread_mutex_lock(&b->config_lock);
    struct pci_function *f = b->function[slot];
    bool goes = f && f->removable && !atomic_exchange(&f->unplugged, true);
    if (goes) pci_registers_reset(f, true);
    pthread_mutex_unlock(&b->config_lock);
    return goes;
}

bool pci_unplugged(struct pci_function *f)
{
    return atomic_load_explicit(&f->unplugged, memory_order_acquire);
}

void pci_remove(struct pci_function *f)
{
    struct pci_bus *b = f->bus;
    pthread_mutex_lock(&b->config_lock);
    if (b->function[f->slot] == f) b->function[f->slot] = NULL;
    pthread_mutex_unlock(&b->config_lock);
}

/* Without the configuration lock: vCPUs that use other functions don't wait for this one's back end. */
void pci_quiesce(struct pci_function *f)
{
    if (f->d.ops->reset) f->d.ops->reset(f->d.dev);
}

uint32_t pci_changing_slots(struct pci_bus *b)
{
    uint32_t mask = 0;
    pthread_mutex_lock(&b->config_lock);
    for (unsigned i = 1; i < PCI_SLOTS; i++)
        if (!b->function[i] || b->function[i]->removable) mask |= 1u << i;
    pthread_mutex_unlock(&b->config_lock);
    return mask;
}
