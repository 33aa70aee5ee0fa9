/* virtio 1.2 devices: what a device file needs. The ring (split and packed, indirect, event index), the transport (PCI) and the life
 * cycle (features, status, reset) are kept behind this header; a device is a const table, an instance struct, and code that
 * pops chains and pushes them back.
 *
 *     static void notify(void *dev, struct virtio_queue *q)    // with q's lock held
 *     {
 *         struct virtio_chain *c;
 *         while ((c = virtio_pop(q))) {
 *             ... c->iov[0..c->readables) is what the driver wrote, c->iov[c->readables..+c->writables) is for us ...
 *             virtio_push(c, bytes_written);
 *         }
 *     }                                                         // the caller flushes: one interrupt decision per batch
 *
 * Asynchronous devices keep the chain, and later, on any thread:
 *     virtio_queue_lock(q); virtio_push(c, n); virtio_flush(q); virtio_queue_unlock(q);
 *
 * Every popped chain must be pushed exactly once (or un-popped), also after a reset: memory of a chain popped before a reset may still be
 * written until it is pushed (the driver is told that the reset is done only then), and pushing it then just frees it.
 *
 * Locks: one mutex per queue (pop, push, flush and notify() hold it), one per device (registers; taken before a queue's, never after).
 * A device that has state shared by queues brings its own lock. Nothing here waits for the guest, and only
 * virtio_machine_reset() for I/O. */
#ifndef NACELLE_VMM_VIRTIO_H
#define NACELLE_VMM_VIRTIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/error.h"
#include "vmm/bus/device_stats.h"
#include "vmm/bus/pci.h"

struct event_loop;
struct virtio_device;
struct virtio_queue;

#define VIRTIO_MAX_QUEUES 64
#define VIRTIO_MAX_QUEUE_SIZE 1024
#define VIRTIO_MAX_SEGMENTS 1024 /* what readv() and friends take */
#define VIRTIO_BIT(n) (1ull << (n))

/* One request: buffers of the driver, checked to be guest RAM. The contents are the guest's to change at any time. */
struct virtio_chain {
    struct virtio_queue *queue;
    struct iovec *iov; /* first the readable ones, then the writable ones; none is empty */
    unsigned readables, writables;
    uint64_t readable_bytes, writable_bytes;
    void *priv; /* virtio_queue_desc.priv_size bytes for the device, aligned to 16, not cleared */
    /* The ring's own. */
    gpa_t *gpa;
    struct virtio_chain *next_free;
    uint32_t generation;
    uint16_t id, slots;
};

struct virtio_queue_desc {
    uint16_t size;         /* largest (and default) number of descriptors: a power of two up to VIRTIO_MAX_QUEUE_SIZE */
    uint16_t max_segments; /* longest chain taken, up to VIRTIO_MAX_SEGMENTS; longer ones break the device */
    size_t priv_size;
};

/* The interface of a device. Callbacks may come on any thread. */
struct virtio_ops {
    const char *kind;    /* "blk"; for messages and statistics */
    uint16_t id;         /* virtio device ID (1.2, chapter 5) */
    uint32_t class_code; /* PCI class */
    /* The driver said DRIVER_OK; virtio_features() is settled. Every queue is notified once afterwards. May be NULL. */
    void (*activate)(void *dev);
    /* The driver made buffers available (or may have: an empty queue is fine). With the queue's lock; the caller flushes. */
    void (*notify)(void *dev, struct virtio_queue *q);
    /* After notify(), on the same thread, with the queue's lock released. May be NULL. */
    void (*notified)(void *dev, struct virtio_queue *q);
    /* The driver wrote bytes [off, off + len) of configuration space, all of them in virtio_desc.config_writable. `config` is the new
     * contents. May be NULL. With the device's configuration lock: don't call virtio_config_*. */
    void (*config_written)(void *dev, unsigned off, unsigned len, uint8_t *config);
    /* The driver reset the device. All queues are dead already (virtio_pop() gives nothing). Push chains that no back end holds, forget all
     * state. No lock of a queue is held. May be NULL. */
    void (*reset)(void *dev);
    /* The driver reset this queue alone, which is dead already: push chains of it that no back end holds. May be NULL. */
    void (*queue_reset)(void *dev, struct virtio_queue *q);
    /* Waits until the back end has given back all chains (machine reset): they have been pushed when it returns. NULL when no
     * back end ever holds any. */
    void (*drain)(void *dev);
};

struct virtio_desc {
    const struct virtio_ops *ops;
    void *dev;
    const char *name;  /* "virtio-blk0"; outlives the device */
    uint64_t features; /* the device type's own bits; ring and transport bits are added */
    bool no_packed;    /* don't offer packed rings */
    /* Doorbells that the engine signals without an exit come in here; and a queue goes on here that has had its share of one notification's time
     * (two rings full), so that drivers which never stop adding buffers keep no vCPU from its other work. NULL (in tests): neither. */
    struct event_loop *loop;
    unsigned queues;
    const struct virtio_queue_desc *queue; /* one per queue; copied */
    /* Device configuration space; copied. The driver may write bytes where config_writable (NULL: nowhere) is not 0. */
    const void *config;
    const uint8_t *config_writable;
    unsigned config_size;
};

/* Puts a virtio PCI function on the bus. slot -1: the next free one. */
int virtio_pci_create(struct pci_bus *b, int slot, const struct virtio_desc *d, struct virtio_device **out,
                      struct nerr *e);
/* The back end must hold no chains any more, and vCPUs must not run (or the function has left the bus). NULL is fine. */
void virtio_destroy(struct virtio_device *v);

/* The features that the driver accepted; 0 before it said FEATURES_OK. */
uint64_t virtio_features(const struct virtio_device *v);
static inline bool virtio_has(const struct virtio_device *v, unsigned bit)
{
    return virtio_features(v) & VIRTIO_BIT(bit);
}
struct virtio_queue *virtio_queue(struct virtio_device *v, unsigned n);
/* Changes configuration space and tells the driver. Any thread, without a queue's lock. */
void virtio_config_set(struct virtio_device *v, unsigned off, const void *data, unsigned len);
void virtio_config_get(struct virtio_device *v, unsigned off, void *data, unsigned len);
/* The driver broke the rules: sets DEVICE_NEEDS_RESET and stops all queues until it resets the device. */
void virtio_broken(struct virtio_device *v, const char *why);

/* ---- queues ---- */

unsigned virtio_queue_index(const struct virtio_queue *q);
void virtio_queue_lock(struct virtio_queue *q);
void virtio_queue_unlock(struct virtio_queue *q);
/* Is it running? With the queue's lock; it can stop only by that lock. */
bool virtio_queue_running(const struct virtio_queue *q);
/* Runs ops->notify() as if the driver had notified: locks, calls, flushes. Any thread, without the queue's lock. */
void virtio_queue_kick(struct virtio_queue *q);

/* The next chain, or NULL when there is none (or the queue is not running, or broken). Notifications are suppressed from the first chain on and
 * asked for again (and the ring looked at again) before it returns NULL: a device that stops early must come back by itself. */
struct virtio_chain *virtio_pop(struct virtio_queue *q);
/* Takes back a pop: chains in the reverse order of their pops, with no push of them. The queue looks as before. */
void virtio_unpop(struct virtio_chain *c);
/* Gives the chain back with `written` bytes at the start of its writable part. The driver sees it after virtio_flush(). Frees `c`. */
void virtio_push(struct virtio_chain *c, uint64_t written);
/* Shows the driver all that was pushed, at once, and sends an interrupt if it asked for one. */
void virtio_flush(struct virtio_queue *q);

/* Copy from the readable part at `off`, or into the writable part: return how many bytes there were (at most len). */
size_t virtio_read(const struct virtio_chain *c, uint64_t off, void *dst, size_t len);
size_t virtio_write(struct virtio_chain *c, uint64_t off, const void *src, size_t len);
static inline const struct iovec *virtio_writable(const struct virtio_chain *c)
{
    return c->iov + c->readables;
}

/* What the device did. Requests and notifications are counted by the queues, accesses and interrupts by the bus; bytes, copies and errors are
 * the device's to count. */
struct device_stats *virtio_stats(struct virtio_device *v);

#endif
