/* Messages by eventfd: where the engine keeps the interrupt controllers, a vector that is in use gets an eventfd that the kernel turns into its
 * message. The eventfd is used by this process alone, behind the same checks as every message (masks, bus master), so a mask needs no change of
 * routes. Routes follow the table when a vector sends, not when its registers are written: a driver that moves an interrupt
 * writes four registers, and pays for one update of the host's routes, or none. */
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vmm/bus/pci_internal.h"
#include "vmm/irq/irq.h"

/* What a vector must have sent in a row before its route is worth a system call that waits for all of KVM's readers. A driver that keeps
 * changing its messages has to send more each time. */
#define WORTH_IT 8u
#define WORTH_IT_MAX 8192u

int pci_irqfd_init(struct pci_function *f)
{
    f->irqfds = f->d.msix_vectors + 1;
    f->irqfd = calloc(f->irqfds, sizeof(f->irqfd[0]));
    if (!f->irqfd) return -1;
    for (unsigned i = 0; i < f->irqfds; i++) f->irqfd[i] = (struct pci_irqfd){.fd = -1, .worth_it = WORTH_IT};
    return 0;
}

static void drop(const struct pci_function *f, struct pci_irqfd *i)
{
    if (i->fd >= 0) {
        irqchip_irqfd_remove(f->bus->cfg.irqchip, i->fd);
        close(i->fd);
    }
    *i = (struct pci_irqfd){.fd = -1, .worth_it = WORTH_IT};
}

void pci_irqfd_drop(struct pci_function *f)
{
    for (unsigned i = 0; f->irqfd && i < f->irqfds; i++) drop(f, &f->irqfd[i]);
}

void pci_irqfd_fini(struct pci_function *f)
{
    pci_irqfd_drop(f);
    free(f->irqfd);
}

static bool same(const struct pci_irqfd *i, uint64_t addr, uint32_t data)
{
    return i->addr == addr && i->data == data;
}

/* Whether the vector has sent this message often enough; keeps count. */
static bool is_worth_it(struct pci_irqfd *i, uint64_t addr, uint32_t data)
{
    if (!same(i, addr, data)) {
        i->addr = addr;
        i->data = data;
        i->routed = false;
        i->sent = 0;
    }
    return ++i->sent > i->worth_it;
}

static bool route(const struct pci_function *f, struct pci_irqfd *i)
{
    struct nerr e;
    if (i->fd < 0) i->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (i->fd < 0 || irqchip_irqfd_add(f->bus->cfg.irqchip, i->fd, i->addr, i->data, &e)) {
        drop(f, i);
        i->refused = true;
        return false;
    }
    i->routed = true;
    if (i->worth_it < WORTH_IT_MAX) i->worth_it *= 2;
    return true;
}

bool pci_irqfd_send(struct pci_function *f, unsigned n, uint64_t addr, uint32_t data)
{
    static const uint64_t one = 1;
    struct pci_irqfd *i = &f->irqfd[n];
    if (i->refused || !irqchip_irqfd_direct(f->bus->cfg.irqchip)) return false;
    if ((!i->routed || !same(i, addr, data)) && (!is_worth_it(i, addr, data) || !route(f, i))) return false;
    if (write(i->fd, &one, sizeof(one)) != (ssize_t)sizeof(one)) return false;
    device_count(&f->stats.irqfd, 1);
    return true;
}
