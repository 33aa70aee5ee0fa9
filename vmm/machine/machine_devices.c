/* The PCI devices that a configuration asks for, in one explicit list. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "vmm/emulated/ahci.h"
#include "vmm/machine/machine_internal.h"
#include "vmm/virtio/devices.h"

/* Bytes per second of the host's entropy: a guest wants a few hundred, and must not keep the host busy with the rest. */
#define RNG_RATE (1u << 20)

/* Guest memory that a device wrote may hold code that the engine has translated. */
static void dma_was_written(void *ctx, gpa_t a, uint64_t len)
{
    struct machine *m = ctx;
    if (m->engine && m->ops->memory_written) m->ops->memory_written(m->engine, a, len);
}

struct machine_device *machine_device_add(struct machine *m, const char *id, void *dev, void (*destroy)(void *dev))
{
    unsigned i = 0;
    while (i < m->devices && m->device[i].id[0]) i++;
    if (i == MACHINE_MAX_DEVICES) return NULL;
    if (i == m->devices) m->devices++;
    struct machine_device *d = &m->device[i];
    *d = (struct machine_device){.machine = m, .life = MACHINE_DISK_HERE, .dev = dev, .destroy = destroy};
    snprintf(d->id, sizeof(d->id), "%s", id);
    return d;
}

struct machine_device *machine_device_claim(struct machine *m, const char *option, const char *id, struct nerr *e)
{
    if (machine_device_find(m, id)) {
        nerr_set(e, -EEXIST, "%s: there are two devices called %s; give each its own id=", option, id);
        return NULL;
    }
    struct machine_device *d = machine_device_add(m, id, NULL, NULL);
    if (!d) nerr_set(e, -ENOSPC, "%s: more than %d devices are not possible", option, MACHINE_MAX_DEVICES);
    return d;
}

struct machine_device *machine_device_find(struct machine *m, const char *id)
{
    for (unsigned i = 0; i < m->devices && id[0]; i++)
        if (strcmp(m->device[i].id, id) == 0) return &m->device[i];
    return NULL;
}

void machine_device_destroy(struct machine_device *d)
{
    if (d->destroy && d->dev) d->destroy(d->dev);
    if (d->life == MACHINE_DISK_CLOSING) pci_free(d->function); /* else the bus has it still */
    *d = (struct machine_device){0};
}

static void virtio_disk_resized(void *dev)
{
    virtio_blk_resized(dev);
}

static void destroy_virtio_blk(void *dev)
{
    virtio_blk_destroy(dev);
}

int machine_virtio_disk_create(struct machine *m, const struct machine_disk *disk, struct machine_device *slot,
                               struct nerr *e)
{
    struct virtio_blk *d;
    struct virtio_blk_config cfg = {.name = slot->id,
                                    .loop = m->loop,
                                    .block = slot->block,
                                    .serial = disk->serial[0] ? disk->serial : slot->id,
                                    .queues = m->cpus,
                                    .split_ring = disk->split_ring};
    int r = virtio_blk_create(m->pci, -1, &cfg, &d, e);
    if (r) return r;
    slot->dev = d;
    slot->destroy = destroy_virtio_blk;
    slot->resized = virtio_disk_resized;
    slot->function = pci_find(m->pci, slot->id);
    pci_set_removable(slot->function);
    return 0;
}

/* On the loop's thread. The first one is worth a line; the rest is counted. */
static void disk_failed(void *ctx, const struct block_error *error, bool first)
{
    struct machine_device *d = ctx;
    struct machine *m = d->machine;
    if (first)
        nc_warn("disk %s: %s at byte %llu: %s; the guest gets an I/O error (nacelle ctl %s status counts them)", d->id,
                block_op_name(error->op), (unsigned long long)error->offset, strerror(-error->error), m->name);
    if (m->disk_observer.failed) m->disk_observer.failed(m->disk_observer.ctx, d->id, error);
}

void machine_disk_opened(struct machine_device *d, struct block *b)
{
    d->block = b;
    block_observe_errors(b, disk_failed, d);
}

static void destroy_block(void *dev)
{
    block_close(dev);
}

static int add_disks(struct machine *m, const struct machine_config *c, struct nerr *e)
{
    for (unsigned i = 0; i < c->ndisks; i++) {
        const struct machine_disk *disk = &c->disks[i];
        struct machine_device *slot = machine_device_claim(m, "--disk", disk->id, e);
        if (!slot) return -EEXIST;
        struct block *b;
        memcpy(slot->serial, disk->serial, sizeof(slot->serial));
        int r = block_open(&disk->block, m->loop, &b, e);
        if (r) return r;
        machine_disk_opened(slot, b);
        switch (disk->model) {
        case MACHINE_DISK_VIRTIO: r = machine_virtio_disk_create(m, disk, slot, e); break;
        case MACHINE_DISK_AHCI: /* later: all of them share one controller */
            slot->dev = slot->block;
            slot->destroy = destroy_block;
            break;
        }
        if (!r) continue;
        block_close(slot->block);
        slot->block = NULL;
        return r;
    }
    return 0;
}

static void destroy_ahci(void *dev)
{
    ahci_destroy(dev);
}

static int add_ahci(struct machine *m, const struct machine_config *c, struct nerr *e)
{
    struct ahci_disk disk[MACHINE_MAX_DISKS];
    unsigned n = 0;
    for (unsigned i = 0; i < m->devices; i++) {
        const struct machine_device *d = &m->device[i];
        if (d->destroy != destroy_block) continue;
        disk[n] = (struct ahci_disk){.block = d->block, .serial = d->id};
        for (unsigned k = 0; k < c->ndisks; k++)
            if (!strcmp(c->disks[k].id, d->id) && c->disks[k].serial[0]) disk[n].serial = c->disks[k].serial;
        n++;
    }
    if (!n) return 0;
    struct ahci *a;
    struct machine_device *slot = machine_device_claim(m, "--disk", "ahci0", e);
    if (!slot) return -EEXIST;
    slot->destroy = destroy_ahci;
    int r = ahci_create(m->pci, -1, slot->id, disk, n, &a, e);
    if (!r) slot->dev = a;
    return r;
}

static void destroy_port(void *dev)
{
    virtio_console_destroy(dev);
}

static int add_ports(struct machine *m, const struct machine_config *c, struct nerr *e)
{
    int r = 0;
    for (unsigned i = 0; i < c->nports && !r; i++) {
        struct virtio_console *d;
        struct machine_device *slot = machine_device_claim(m, "--console", c->ports[i].id, e);
        if (!slot) return -EEXIST;
        slot->destroy = destroy_port;
        struct virtio_console_options o = {
            .name = slot->id, .loop = m->loop, .kind = c->ports[i].kind, .path = c->ports[i].path};
        r = virtio_console_create(m->pci, -1, &o, &d, e);
        if (!r) slot->dev = d;
    }
    return r;
}

static void destroy_vsock(void *dev)
{
    virtio_vsock_destroy(dev);
}

static int add_vsock(struct machine *m, const struct machine_config *c, struct nerr *e)
{
    if (!c->vsock.path) return 0;
    struct virtio_vsock *d;
    struct machine_device *slot = machine_device_claim(m, "--vsock", "vsock0", e);
    if (!slot) return -EEXIST;
    slot->destroy = destroy_vsock;
    struct virtio_vsock_options o = {.name = slot->id, .loop = m->loop, .cid = c->vsock.cid, .path = c->vsock.path};
    int r = virtio_vsock_create(m->pci, -1, &o, &d, e);
    if (!r) slot->dev = d;
    return r;
}

static void destroy_rng(void *dev)
{
    virtio_rng_destroy(dev);
}

/* Every machine has one: guests without entropy wait for it at boot. */
static int add_rng(struct machine *m, const struct machine_config *c, struct nerr *e)
{
    (void)c;
    struct virtio_rng *d;
    struct machine_device *slot = machine_device_claim(m, "machine", "rng0", e);
    if (!slot) return -EEXIST;
    slot->destroy = destroy_rng;
    struct virtio_rng_config cfg = {.name = slot->id, .loop = m->loop, .rate = RNG_RATE};
    int r = virtio_rng_create(m->pci, -1, &cfg, &d, e);
    if (!r) slot->dev = d;
    return r;
}

/* In the order of their slots. */
static int (*const kinds[])(struct machine *m, const struct machine_config *c,
                            struct nerr *e) = {machine_nics_create, add_disks, add_ahci, add_ports, add_vsock, add_rng};

int machine_devices_create(struct machine *m, const struct machine_config *c, struct nerr *e)
{
    if (c->ndisks > MACHINE_MAX_DISKS)
        return nerr_set(e, -EINVAL, "--disk: %u disks are not possible; give at most %d", c->ndisks, MACHINE_MAX_DISKS);
    if (c->nnics > MACHINE_MAX_NICS)
        return nerr_set(e, -EINVAL, "--net: %u NICs are not possible; give at most %d", c->nnics, MACHINE_MAX_NICS);
    if (c->nports > MACHINE_MAX_PORTS)
        return nerr_set(e, -EINVAL, "--console: %u consoles are not possible; give at most %d", c->nports,
                        MACHINE_MAX_PORTS);
    int r = 0;
    for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]) && !r; i++) r = kinds[i](m, c, e);
    return r;
}

uint16_t machine_taken_port(const struct machine_config *c)
{
    return c->debug_exit_port == MACHINE_NO_DEBUG_EXIT ? 0 : (uint16_t)c->debug_exit_port;
}

int machine_bus_create(struct machine *m, const struct machine_config *c, struct nerr *e)
{
    struct pci_config p = {
        .bus = &m->bus,
        .irqchip = m->irqchip,
        .dma = {.memory = &m->memory, .written = dma_was_written, .ctx = m},
        .ram_size = m->memory.ram_size,
        .taken_port = machine_taken_port(c),
    };
    return pci_bus_create(&p, &m->pci, e);
}

void machine_devices_destroy(struct machine *m)
{
    while (m->devices) machine_device_destroy(&m->device[--m->devices]);
    pci_bus_destroy(m->pci);
    m->pci = NULL;
}
