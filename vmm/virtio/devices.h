/* The virtio devices there are. Each is created on a bus before vCPUs run, and destroyed by its owner when they don't any more (NULL is
 * fine), before the bus and before what it was given. */
#ifndef NACELLE_VMM_VIRTIO_DEVICES_H
#define NACELLE_VMM_VIRTIO_DEVICES_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

struct block;
struct event_loop;
struct pci_bus;

/* ---- disk ---- */
struct virtio_blk;

struct virtio_blk_config {
    const char *name;    /* for messages and statistics; outlives the device */
    struct block *block; /* the device's own once it is created, closed with it */
    const char *serial;  /* up to 20 bytes; copied */
    unsigned queues;     /* 1..16; one per vCPU is best */
    bool split_ring;     /* don't offer packed rings */
};
int virtio_blk_create(struct pci_bus *b, int slot, const struct virtio_blk_config *cfg, struct virtio_blk **out,
                      struct nerr *e);
void virtio_blk_destroy(struct virtio_blk *d);
/* The back end changed its size: tells the guest. Any thread. */
void virtio_blk_resized(struct virtio_blk *d);

/* ---- entropy ---- */
struct virtio_rng;

struct virtio_rng_config {
    const char *name;
    struct event_loop *loop;
    uint64_t rate; /* bytes per second, 0: no limit */
};
int virtio_rng_create(struct pci_bus *b, int slot, const struct virtio_rng_config *cfg, struct virtio_rng **out,
                      struct nerr *e);
void virtio_rng_destroy(struct virtio_rng *d);

#endif
