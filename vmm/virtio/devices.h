/* The virtio devices there are. Each is created on a bus before vCPUs run, and destroyed by its owner when they don't any more (NULL is
 * fine), before the bus and before what it was given. Disks may come and go while they run: pci.h, hot plug, says how. */
#ifndef NACELLE_VMM_VIRTIO_DEVICES_H
#define NACELLE_VMM_VIRTIO_DEVICES_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "vmm/backend/char.h"

struct block;
struct event_loop;
struct pci_bus;

/* ---- disk ---- */
struct virtio_blk;

struct virtio_blk_config {
    const char *name; /* for messages and statistics; outlives the device */
    struct event_loop *loop;
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

/* ---- console ---- */
struct virtio_console;

struct virtio_console_options {
    const char *name;
    struct event_loop *loop;
    enum char_kind kind;
    const char *path; /* see struct char_config */
};
int virtio_console_create(struct pci_bus *b, int slot, const struct virtio_console_options *cfg,
                          struct virtio_console **out, struct nerr *e);
void virtio_console_destroy(struct virtio_console *d);

/* ---- sockets between guest and host ---- */
struct virtio_vsock;

struct virtio_vsock_options {
    const char *name;
    struct event_loop *loop;
    uint64_t cid;     /* the guest's address: 3 to 2^32 - 2 */
    const char *path; /* the host's socket, and the start of the names of those that the guest connects to; copied */
};
int virtio_vsock_create(struct pci_bus *b, int slot, const struct virtio_vsock_options *cfg, struct virtio_vsock **out,
                        struct nerr *e);
void virtio_vsock_destroy(struct virtio_vsock *d);

#endif
