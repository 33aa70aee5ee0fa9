/* Eventfds that send messages, where the controllers are in user space: the event loop waits for them. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "vmm/irq/chip.h"

void irqfd_init(struct irqchip *c)
{
    pthread_mutex_init(&c->irqfd_lock, NULL);
}

static struct irqfd *find(struct irqchip *c, int fd)
{
    struct irqfd *i = c->irqfd;
    while (i && i->fd != fd) i = i->next;
    return i;
}

/* The entry may have been removed, or be another fd's by now, so nothing is read that could block. */
static bool take_signal(const struct irqfd *i)
{
    uint64_t n;
    struct pollfd p = {.fd = i->fd, .events = POLLIN};
    return i->fd >= 0 && poll(&p, 1, 0) == 1 && p.revents & POLLIN && read(i->fd, &n, sizeof n) == sizeof n;
}

static void on_signal(void *ctx, uint32_t events)
{
    struct irqfd *i = ctx;
    (void)events;
    pthread_mutex_lock(&i->chip->irqfd_lock);
    bool send = take_signal(i);
    uint64_t addr = i->addr;
    uint32_t data = i->data;
    pthread_mutex_unlock(&i->chip->irqfd_lock);
    if (send) irqchip_msi(i->chip, addr, data);
}

static int watch(struct irqchip *c, int fd, uint64_t addr, uint32_t data, struct nerr *e)
{
    struct irqfd *i = find(c, -1);
    if (!i) {
        i = calloc(1, sizeof *i);
        if (!i) return nerr_set(e, -ENOMEM, "irqfd: out of memory");
        i->chip = c;
        i->fd = -1;
        i->next = c->irqfd;
        c->irqfd = i;
    }
    int r = event_fd_add(c->loop, fd, EPOLLIN, on_signal, i, e);
    if (r) return r;
    i->fd = fd;
    i->addr = addr;
    i->data = data;
    return 0;
}

int irqfd_add(struct irqchip *c, int fd, uint64_t addr, uint32_t data, struct nerr *e)
{
    int r = 0;
    if (fd < 0) return nerr_set(e, -EBADF, "irqfd: %d is no file descriptor", fd);
    pthread_mutex_lock(&c->irqfd_lock);
    struct irqfd *i = find(c, fd);
    if (i) {
        i->addr = addr;
        i->data = data;
    } else {
        r = watch(c, fd, addr, data, e);
    }
    pthread_mutex_unlock(&c->irqfd_lock);
    return r;
}

void irqfd_remove(struct irqchip *c, int fd)
{
    if (fd < 0) return;
    pthread_mutex_lock(&c->irqfd_lock);
    struct irqfd *i = find(c, fd);
    if (i) {
        event_fd_remove(c->loop, fd);
        i->fd = -1;
    }
    pthread_mutex_unlock(&c->irqfd_lock);
}

void irqfd_fini(struct irqchip *c)
{
    for (struct irqfd *i = c->irqfd, *next; i; i = next) {
        next = i->next;
        if (i->fd >= 0) event_fd_remove(c->loop, i->fd);
        free(i);
    }
    pthread_mutex_destroy(&c->irqfd_lock);
}
