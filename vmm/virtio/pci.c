/* The PCI transport (virtio 1.2, 4.1), modern only. One memory BAR has the four structures, each on a page of its own so that
 * notifications can be mapped apart; MSI-X has another. */
#include "vmm/virtio/virtio_internal.h"

#include <errno.h>
#include <linux/virtio_pci.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/event.h"

#define VIRTIO_VENDOR 0x1af4
#define VIRTIO_DEVICE_BASE 0x1040
#define VIRTIO_SUBSYSTEM_BASE 0x1100 /* 4.1.2.1: 0x40 or higher */

#define MSIX_BAR 1
#define BAR 4
#define BAR_SIZE 0x4000u
#define COMMON_OFFSET 0x0000u
#define ISR_OFFSET 0x1000u
#define CONFIG_OFFSET 0x2000u
#define NOTIFY_OFFSET 0x3000u
#define REGION_SIZE 0x1000u
#define NOTIFY_MULTIPLIER 4u

#define COMMON_SIZE 64u
#define ISR_QUEUE 1u
#define ISR_CONFIG 2u

/* Offsets that the header does not name. */
#define COMMON_QUEUE_NOTIFY_DATA 56
#define COMMON_QUEUE_RESET 58

/* A queue's doorbell as an eventfd, where the engine can signal one without an exit. */
struct doorbell {
    struct virtio_pci *pci;
    unsigned queue;
    int fd; /* -1: none */
    bool armed;
    struct bus_ioeventfd io;
};

struct virtio_pci {
    struct virtio_device *device;
    struct pci_function *function;
    _Atomic uint16_t config_vector;
    unsigned vectors;
    pthread_mutex_t isr_lock; /* the register and the line together */
    uint8_t isr;
    pthread_mutex_t lock; /* the selectors */
    uint32_t device_feature_select, driver_feature_select;
    uint16_t queue_select;
    unsigned cfg_window;                         /* offset of the configuration access capability */
    struct doorbell doorbell[VIRTIO_MAX_QUEUES]; /* the bus's configuration lock */
};

/* ---- interrupts ---- */

static void interrupt(struct virtio_pci *p, uint16_t vector, uint8_t isr)
{
    if (pci_msix_enabled(p->function)) {
        if (vector != VIRTIO_NO_VECTOR) pci_msix_notify(p->function, vector);
        return;
    }
    pthread_mutex_lock(&p->isr_lock);
    p->isr |= isr;
    pci_intx_set(p->function, true);
    pthread_mutex_unlock(&p->isr_lock);
}

static void queue_interrupt(void *ctx, uint16_t vector)
{
    interrupt(ctx, vector, ISR_QUEUE);
}

static void config_interrupt(void *ctx)
{
    struct virtio_pci *p = ctx;
    interrupt(p, atomic_load(&p->config_vector), ISR_CONFIG);
}

static bool may_dma(void *ctx)
{
    return pci_bus_master(((struct virtio_pci *)ctx)->function);
}

static uint8_t isr_take(struct virtio_pci *p)
{
    pthread_mutex_lock(&p->isr_lock);
    uint8_t v = p->isr;
    p->isr = 0;
    pci_intx_set(p->function, false);
    pthread_mutex_unlock(&p->isr_lock);
    return v;
}

/* ---- common configuration (4.1.4.3) ---- */

static uint64_t queue_register(struct virtio_pci *p, unsigned off)
{
    struct virtio_queue *q = virtio_queue(p->device, p->queue_select);
    if (!q) return 0; /* a size of 0 says that there is no such queue */
    switch (off) {
    case VIRTIO_PCI_COMMON_Q_SIZE: return q->size;
    case VIRTIO_PCI_COMMON_Q_MSIX: return atomic_load(&q->vector);
    case VIRTIO_PCI_COMMON_Q_ENABLE: return q->enabled;
    case VIRTIO_PCI_COMMON_Q_NOFF: return q->index;
    case VIRTIO_PCI_COMMON_Q_DESCLO: return (uint32_t)q->desc_addr;
    case VIRTIO_PCI_COMMON_Q_DESCHI: return q->desc_addr >> 32;
    case VIRTIO_PCI_COMMON_Q_AVAILLO: return (uint32_t)q->driver_addr;
    case VIRTIO_PCI_COMMON_Q_AVAILHI: return q->driver_addr >> 32;
    case VIRTIO_PCI_COMMON_Q_USEDLO: return (uint32_t)q->device_addr;
    case VIRTIO_PCI_COMMON_Q_USEDHI: return q->device_addr >> 32;
    case COMMON_QUEUE_NOTIFY_DATA: return q->index;
    case COMMON_QUEUE_RESET: return virtio_queue_resetting(p->device, q->index);
    default: return 0;
    }
}

static uint64_t feature_half(uint64_t features, uint32_t select)
{
    return select < 2 ? (uint32_t)(features >> (32 * select)) : 0;
}

static uint64_t common_register(struct virtio_pci *p, unsigned off)
{
    struct virtio_device *v = p->device;
    switch (off) {
    case VIRTIO_PCI_COMMON_DFSELECT: return p->device_feature_select;
    case VIRTIO_PCI_COMMON_DF: return feature_half(v->offered, p->device_feature_select);
    case VIRTIO_PCI_COMMON_GFSELECT: return p->driver_feature_select;
    case VIRTIO_PCI_COMMON_GF: return feature_half(v->driver_features, p->driver_feature_select);
    case VIRTIO_PCI_COMMON_MSIX: return atomic_load(&p->config_vector);
    case VIRTIO_PCI_COMMON_NUMQ: return v->queues;
    case VIRTIO_PCI_COMMON_STATUS: return virtio_status_get(v);
    case VIRTIO_PCI_COMMON_CFGGENERATION: return atomic_load(&v->config_generation);
    case VIRTIO_PCI_COMMON_Q_SELECT: return p->queue_select;
    default: return queue_register(p, off);
    }
}

/* The width in bytes of the register that begins at an offset; 0: none does. Each is aligned to its width. */
static const uint8_t register_width[COMMON_SIZE] = {
    [VIRTIO_PCI_COMMON_DFSELECT] = 4,  [VIRTIO_PCI_COMMON_DF] = 4,
    [VIRTIO_PCI_COMMON_GFSELECT] = 4,  [VIRTIO_PCI_COMMON_GF] = 4,
    [VIRTIO_PCI_COMMON_MSIX] = 2,      [VIRTIO_PCI_COMMON_NUMQ] = 2,
    [VIRTIO_PCI_COMMON_STATUS] = 1,    [VIRTIO_PCI_COMMON_CFGGENERATION] = 1,
    [VIRTIO_PCI_COMMON_Q_SELECT] = 2,  [VIRTIO_PCI_COMMON_Q_SIZE] = 2,
    [VIRTIO_PCI_COMMON_Q_MSIX] = 2,    [VIRTIO_PCI_COMMON_Q_ENABLE] = 2,
    [VIRTIO_PCI_COMMON_Q_NOFF] = 2,    [VIRTIO_PCI_COMMON_Q_DESCLO] = 4,
    [VIRTIO_PCI_COMMON_Q_DESCHI] = 4,  [VIRTIO_PCI_COMMON_Q_AVAILLO] = 4,
    [VIRTIO_PCI_COMMON_Q_AVAILHI] = 4, [VIRTIO_PCI_COMMON_Q_USEDLO] = 4,
    [VIRTIO_PCI_COMMON_Q_USEDHI] = 4,  [COMMON_QUEUE_NOTIFY_DATA] = 2,
    [COMMON_QUEUE_RESET] = 2,
};

/* 4.1.3.1: drivers use the register's own width. Others read a register's part or several as memory would. */
static uint64_t common_read(struct virtio_pci *p, unsigned off, unsigned size)
{
    uint64_t v = 0;
    unsigned end = off + size < COMMON_SIZE ? off + size : COMMON_SIZE;
    pthread_mutex_lock(&p->lock);
    for (unsigned at = off & ~3u, width; at < end; at += width ? width : 1) {
        width = register_width[at];
        if (!width) continue;
        uint64_t r = common_register(p, at) & (~0ull >> (64 - 8 * width));
        v |= at < off ? r >> (8 * (off - at)) : r << (8 * (at - off));
    }
    pthread_mutex_unlock(&p->lock);
    return v & (~0ull >> (64 - 8 * size));
}

/* A vector that does not exist is refused by reading back as none (4.1.5.1.2.1). */
static uint16_t vector_of(const struct virtio_pci *p, uint64_t value)
{
    return value < p->vectors ? (uint16_t)value : VIRTIO_NO_VECTOR;
}

static void address_write(struct virtio_pci *p, unsigned off, uint64_t value)
{
    unsigned word = (off - VIRTIO_PCI_COMMON_Q_DESCLO) / 4, shift = 32 * (word & 1);
    virtio_queue_address_set(p->device, p->queue_select, word / 2, value << shift, 0xffffffffull << shift);
}

/* With the lock. */
static void queue_write(struct virtio_pci *p, unsigned off, uint64_t value)
{
    struct virtio_queue *q = virtio_queue(p->device, p->queue_select);
    if (!q) return;
    switch (off) {
    case VIRTIO_PCI_COMMON_Q_SIZE: virtio_queue_size_set(p->device, q->index, (uint16_t)value); break;
    case VIRTIO_PCI_COMMON_Q_MSIX: atomic_store(&q->vector, vector_of(p, value)); break;
    case VIRTIO_PCI_COMMON_Q_ENABLE:
        if (value == 1) virtio_queue_enable(p->device, q->index);
        break;
    case COMMON_QUEUE_RESET:
        if (value == 1) virtio_queue_reset(p->device, q->index);
        break;
    default:
        if (off >= VIRTIO_PCI_COMMON_Q_DESCLO && off <= VIRTIO_PCI_COMMON_Q_USEDHI) address_write(p, off, value);
    }
}

static void status_write(struct virtio_pci *p, uint8_t value)
{
    if (!value) {
        atomic_store(&p->config_vector, VIRTIO_NO_VECTOR);
        isr_take(p);
    }
    virtio_status_set(p->device, value);
}

static void common_write(struct virtio_pci *p, unsigned off, unsigned size, uint64_t value)
{
    /* Linux writes 64-bit addresses as two words, others may do it at once. */
    if (size == 8 && off >= VIRTIO_PCI_COMMON_Q_DESCLO && off <= VIRTIO_PCI_COMMON_Q_USEDLO && off % 8 == 0) {
        common_write(p, off, 4, (uint32_t)value);
        common_write(p, off + 4, 4, value >> 32);
        return;
    }
    if (size != register_width[off]) return;
    pthread_mutex_lock(&p->lock);
    switch (off) {
    case VIRTIO_PCI_COMMON_DFSELECT: p->device_feature_select = (uint32_t)value; break;
    case VIRTIO_PCI_COMMON_GFSELECT: p->driver_feature_select = (uint32_t)value; break;
    case VIRTIO_PCI_COMMON_GF: virtio_driver_features_set(p->device, p->driver_feature_select, (uint32_t)value); break;
    case VIRTIO_PCI_COMMON_MSIX: atomic_store(&p->config_vector, vector_of(p, value)); break;
    case VIRTIO_PCI_COMMON_STATUS: status_write(p, (uint8_t)value); break;
    case VIRTIO_PCI_COMMON_Q_SELECT: p->queue_select = (uint16_t)value; break;
    default: queue_write(p, off, value);
    }
    pthread_mutex_unlock(&p->lock);
}

/* ---- the BAR ---- */

static uint64_t config_read(struct virtio_device *v, unsigned off, unsigned size)
{
    uint64_t value = 0;
    virtio_config_get(v, off, &value, size);
    return value;
}

static uint64_t bar_read(void *dev, unsigned bar, uint64_t off, unsigned size)
{
    struct virtio_pci *p = dev;
    unsigned in = (unsigned)off % REGION_SIZE;
    if (bar != BAR) return 0;
    switch (off - in) {
    case COMMON_OFFSET: return in < COMMON_SIZE ? common_read(p, in, size) : 0;
    case ISR_OFFSET: return in == 0 ? isr_take(p) : 0;
    case CONFIG_OFFSET: return config_read(p->device, in, size);
    default: return 0;
    }
}

static void bar_write(void *dev, unsigned bar, uint64_t off, unsigned size, uint64_t value)
{
    struct virtio_pci *p = dev;
    unsigned in = (unsigned)off % REGION_SIZE;
    if (bar != BAR) return;
    if (off >= NOTIFY_OFFSET) {
        if (in % NOTIFY_MULTIPLIER == 0) virtio_notified(p->device, in / NOTIFY_MULTIPLIER);
        return;
    }
    if (off - in == COMMON_OFFSET && in < COMMON_SIZE)
        common_write(p, in, size, value);
    else if (off - in == CONFIG_OFFSET)
        virtio_config_written(p->device, in, size, value);
}

/* ---- the configuration access window (4.1.4.9): the BAR for who cannot map it ---- */

/* Reads what the window points at from configuration space; false when it is no access the BAR takes. */
static bool window(struct virtio_pci *p, uint32_t *off, unsigned *size, uint8_t **data)
{
    uint8_t *cap = pci_config(p->function) + p->cfg_window;
    uint32_t len;
    memcpy(off, cap + VIRTIO_PCI_CAP_OFFSET, 4);
    memcpy(&len, cap + VIRTIO_PCI_CAP_LENGTH, 4);
    *data = cap + sizeof(struct virtio_pci_cap);
    *size = len;
    return cap[VIRTIO_PCI_CAP_BAR] == BAR && (len == 1 || len == 2 || len == 4) && *off % len == 0 && *off < BAR_SIZE &&
           len <= BAR_SIZE - *off;
}

static bool touches_window(const struct virtio_pci *p, unsigned off, unsigned size)
{
    unsigned data = p->cfg_window + (unsigned)sizeof(struct virtio_pci_cap);
    return p->cfg_window && off < data + 4 && off + size > data;
}

static void pci_config_written(void *dev, unsigned off, unsigned size)
{
    struct virtio_pci *p = dev;
    uint32_t at, value = 0;
    uint8_t *data;
    if (!touches_window(p, off, size) || !window(p, &at, &size, &data)) return;
    memcpy(&value, data, size);
    bar_write(p, BAR, at, size, value);
}

static void pci_config_reading(void *dev, unsigned off, unsigned size)
{
    struct virtio_pci *p = dev;
    uint32_t at;
    uint8_t *data;
    if (!touches_window(p, off, size) || !window(p, &at, &size, &data)) return;
    uint64_t value = bar_read(p, BAR, at, size);
    memcpy(data, &value, size);
}

/* ---- doorbells ---- */

/* On the loop's thread. */
static void on_doorbell(void *ctx, uint32_t events)
{
    struct doorbell *b = ctx;
    uint64_t count;
    (void)events;
    if (read(b->fd, &count, sizeof(count)) == (ssize_t)sizeof(count)) virtio_notified(b->pci->device, b->queue);
}

/* Without the engine's or the host's help the write just goes on as an exit. */
static void arm(struct doorbell *b, uint64_t bar)
{
    struct virtio_pci *p = b->pci;
    struct nerr e;
    if (b->fd < 0) {
        b->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (b->fd < 0) return;
        if (event_fd_add(p->device->loop, b->fd, EPOLLIN, on_doorbell, b, &e)) {
            close(b->fd);
            b->fd = -1;
            return;
        }
    }
    /* The address alone says which queue it is; what is written does not matter, but Linux and the others write 16 bits. */
    b->io = (struct bus_ioeventfd){.space = BUS_MMIO,
                                   .addr = bar + NOTIFY_OFFSET + NOTIFY_MULTIPLIER * b->queue,
                                   .len = 2,
                                   .any = true,
                                   .fd = b->fd};
    b->armed = bus_ioeventfd_add(pci_bar_bus(p->function), &b->io) == 0;
}

static void disarm(struct doorbell *b)
{
    if (b->armed) bus_ioeventfd_remove(pci_bar_bus(b->pci->function), &b->io);
    b->armed = false;
}

static void bar_moved(void *dev, unsigned bar, uint64_t addr)
{
    struct virtio_pci *p = dev;
    if (bar != BAR || !p->device->loop || !pci_bar_bus(p->function)->eventfd.add) return;
    for (unsigned i = 0; i < p->device->queues; i++) {
        disarm(&p->doorbell[i]);
        if (addr != UINT64_MAX) arm(&p->doorbell[i], addr);
    }
}

static void close_doorbells(struct virtio_pci *p)
{
    for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++) {
        struct doorbell *b = &p->doorbell[i];
        if (b->fd < 0) continue;
        disarm(b);
        event_fd_remove(p->device->loop, b->fd);
        close(b->fd);
    }
}

static void pci_reset(void *dev)
{
    struct virtio_pci *p = dev;
    virtio_machine_reset(p->device);
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->config_vector, VIRTIO_NO_VECTOR);
    p->device_feature_select = p->driver_feature_select = 0;
    p->queue_select = 0;
    pthread_mutex_unlock(&p->lock);
    isr_take(p);
}

static const struct pci_ops pci_ops = {
    .bar_read = bar_read,
    .bar_write = bar_write,
    .config_written = pci_config_written,
    .config_reading = pci_config_reading,
    .bar_moved = bar_moved,
    .reset = pci_reset,
};

/* ---- creation ---- */

/* A capability without its first two bytes, which the bus writes. */
static unsigned add_capability(struct virtio_pci *p, uint8_t type, uint32_t offset, uint32_t length, unsigned extra,
                               uint32_t value, bool writable)
{
    uint8_t cap[sizeof(struct virtio_pci_cap) + 4] = {0}, mask[sizeof(cap)] = {0};
    cap[VIRTIO_PCI_CAP_LEN] = (uint8_t)(sizeof(struct virtio_pci_cap) + extra);
    cap[VIRTIO_PCI_CAP_CFG_TYPE] = type;
    cap[VIRTIO_PCI_CAP_BAR] = writable ? 0 : BAR;
    memcpy(cap + VIRTIO_PCI_CAP_OFFSET, &offset, 4);
    memcpy(cap + VIRTIO_PCI_CAP_LENGTH, &length, 4);
    memcpy(cap + sizeof(struct virtio_pci_cap), &value, 4);
    mask[VIRTIO_PCI_CAP_BAR] = 0xff;
    memset(mask + VIRTIO_PCI_CAP_OFFSET, 0xff, sizeof(mask) - VIRTIO_PCI_CAP_OFFSET);
    return pci_add_capability(p->function, 0x09, cap + 2, writable ? mask + 2 : NULL, cap[VIRTIO_PCI_CAP_LEN] - 2u);
}

static bool add_capabilities(struct virtio_pci *p)
{
    unsigned queues = p->device->queues;
    p->cfg_window = add_capability(p, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, 4, 0, true);
    return p->cfg_window && add_capability(p, VIRTIO_PCI_CAP_COMMON_CFG, COMMON_OFFSET, COMMON_SIZE, 0, 0, false) &&
           add_capability(p, VIRTIO_PCI_CAP_ISR_CFG, ISR_OFFSET, 1, 0, 0, false) &&
           add_capability(p, VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY_OFFSET, queues * NOTIFY_MULTIPLIER, 4, NOTIFY_MULTIPLIER,
                          false) &&
           (!p->device->config_size ||
            add_capability(p, VIRTIO_PCI_CAP_DEVICE_CFG, CONFIG_OFFSET, p->device->config_size, 0, 0, false));
}

static int add_function(struct virtio_pci *p, struct pci_bus *b, int slot, const struct virtio_desc *d, struct nerr *e)
{
    struct pci_desc desc = {
        .name = d->name,
        .kind = d->ops->kind,
        .vendor = VIRTIO_VENDOR,
        .device = (uint16_t)(VIRTIO_DEVICE_BASE + d->ops->id),
        .subsystem_vendor = VIRTIO_VENDOR,
        .subsystem = (uint16_t)(VIRTIO_SUBSYSTEM_BASE + d->ops->id),
        .class_code = d->ops->class_code,
        .revision = 1, /* 4.1.2.1: not transitional */
        .intx = true,
        .msix_vectors = p->vectors,
        .msix_bar = MSIX_BAR,
        .bar[BAR] = {.kind = PCI_BAR_MEM64, .prefetchable = true, .size = BAR_SIZE},
        .ops = &pci_ops,
        .dev = p,
    };
    return pci_add(b, slot, &desc, &p->function, e);
}

static void destroy(void *ctx)
{
    struct virtio_pci *p = ctx;
    close_doorbells(p);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->isr_lock);
    free(p);
}

int virtio_pci_create(struct pci_bus *b, int slot, const struct virtio_desc *d, struct virtio_device **out,
                      struct nerr *e)
{
    *out = NULL;
    struct virtio_pci *p = calloc(1, sizeof(*p));
    if (!p) return nerr_set(e, -ENOMEM, "%s: out of memory", d->name);
    struct virtio_transport t = {.interrupt = queue_interrupt,
                                 .config_interrupt = config_interrupt,
                                 .may_dma = may_dma,
                                 .destroy = destroy,
                                 .ctx = p};
    pthread_mutex_init(&p->lock, NULL);
    pthread_mutex_init(&p->isr_lock, NULL);
    atomic_init(&p->config_vector, VIRTIO_NO_VECTOR);
    p->vectors = d->queues + 1;
    for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++) p->doorbell[i] = (struct doorbell){.pci = p, .queue = i, .fd = -1};
    int r = virtio_device_create(d, &t, &p->device, e);
    if (r) {
        destroy(p);
        return r;
    }
    /* From here on the bus may call us, but no vCPU runs. */
    r = add_function(p, b, slot, d, e);
    if (!r && !add_capabilities(p)) r = nerr_set(e, -ENOSPC, "%s: no room for PCI capabilities", d->name);
    if (r) {
        virtio_destroy(p->device);
        return r;
    }
    p->device->transport.dma = pci_dma(p->function);
    p->device->transport.stats = pci_stats(p->function);
    *out = p->device;
    return 0;
}
