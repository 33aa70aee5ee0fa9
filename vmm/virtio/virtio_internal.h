/* Private header of vmm/virtio: the ring, the core and the transport share these. Devices use virtio.h. */
#ifndef NACELLE_VMM_VIRTIO_INTERNAL_H
#define NACELLE_VMM_VIRTIO_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "vmm/virtio/virtio.h"

#define VIRTIO_NO_VECTOR 0xffffu /* 1.2, 4.1.5.1.2: the event has no MSI-X vector */

#ifndef VIRTIO_F_RING_RESET
#define VIRTIO_F_RING_RESET 40
#endif

struct virtio_queue {
    struct virtio_device *device;
    unsigned index;
    struct virtio_queue_desc desc;
    pthread_mutex_t lock;

    /* What the driver set. The device's lock; read by the ring when it starts. */
    uint16_t size;
    uint64_t desc_addr, driver_addr,
        device_addr; /* split: table, available, used; packed: ring, driver's and device's event suppression */
    bool enabled;

    _Atomic uint16_t vector;

    /* The running ring; this queue's lock. */
    bool running, packed, event_idx, indirect;
    uint8_t *ring, *driver_area, *device_area; /* the three addresses, looked up once */
    uint16_t num;                              /* size, as it was at the start */
    uint16_t next_avail, next_used;            /* split: free-running; packed: slots */
    uint16_t shown;                            /* next_used at the last flush */
    bool avail_wrap, used_wrap, shown_wrap;    /* packed */
    uint16_t first_flags;       /* packed: flags of the first element after `shown`, kept back until the flush */
    bool suppressed;            /* notifications are off */
    uint32_t generation;        /* bumped whenever the ring stops: chains of before are dead */
    struct virtio_chain *free;  /* pool; grows up to `num` chains */
    bool sharing, posted;       /* within notify(); more of it waits on the loop */
    unsigned share;             /* chains that may still be popped */
    _Atomic uint32_t in_flight; /* popped and not pushed, dead ones too */
};

/* How the core reaches the guest. Any thread, with any lock of virtio's held. */
struct virtio_transport {
    void (*interrupt)(void *ctx, uint16_t vector); /* a queue's used-buffer notification */
    void (*config_interrupt)(void *ctx);
    bool (*may_dma)(void *ctx); /* false while the function must not reach memory */
    const struct dma_space *dma;
    struct device_stats *stats;
    void (*destroy)(void *ctx); /* by virtio_destroy(); may be NULL */
    void *ctx;
};

struct virtio_device {
    const struct virtio_ops *ops;
    void *dev;
    const char *name;
    struct virtio_transport transport;
    struct event_loop *loop;
    uint64_t offered;

    pthread_mutex_t lock;
    uint64_t driver_features;  /* as the driver writes them, half by half */
    _Atomic uint64_t accepted; /* at FEATURES_OK */
    _Atomic uint8_t status;
    bool resetting; /* status 0 was written, and is shown when nothing is in flight any more */

    pthread_mutex_t config_lock;
    uint8_t *config, *config_writable;
    unsigned config_size;
    _Atomic uint8_t config_generation;

    unsigned queues;
    struct virtio_queue *queue;
    _Atomic unsigned complaints;
};

/* ---- device.c: the life cycle. These take the device's lock themselves. ---- */
int virtio_device_create(const struct virtio_desc *d, const struct virtio_transport *t, struct virtio_device **out,
                         struct nerr *e);
uint8_t virtio_status_get(struct virtio_device *v);
void virtio_status_set(struct virtio_device *v, uint8_t status);
void virtio_driver_features_set(struct virtio_device *v, unsigned half, uint32_t bits);
void virtio_queue_size_set(struct virtio_device *v, unsigned n, uint16_t size);
/* `which`: 0 descriptors, 1 driver area, 2 device area. Replaces the bits of `mask`. */
void virtio_queue_address_set(struct virtio_device *v, unsigned n, unsigned which, uint64_t value, uint64_t mask);
void virtio_queue_enable(struct virtio_device *v, unsigned n);
void virtio_queue_reset(struct virtio_device *v, unsigned n);
bool virtio_queue_resetting(struct virtio_device *v, unsigned n);
/* Power-on state: waits for the back end. */
void virtio_machine_reset(struct virtio_device *v);
void virtio_notified(struct virtio_device *v, unsigned n);
void virtio_config_written(struct virtio_device *v, unsigned off, unsigned len, uint64_t value);

/* ---- ring*.c; with the queue's lock ---- */
/* Looks the rings up in guest memory. NULL, or why not: not (wholly) RAM, misaligned, an impossible size. */
const char *virtio_ring_start(struct virtio_queue *q);
void virtio_ring_stop(struct virtio_queue *q);
void virtio_ring_free(struct virtio_queue *q);

/* A descriptor, copied out of guest memory. */
struct virtio_descriptor {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next; /* in a packed ring the two are the buffer ID and the flags */
};

struct virtio_chain *virtio_chain_get(struct virtio_queue *q);
void virtio_chain_put(struct virtio_queue *q, struct virtio_chain *c);
/* These give NULL, or what is wrong with the driver's chain. */
const char *virtio_chain_add(struct virtio_queue *q, struct virtio_chain *c, uint64_t addr, uint32_t len, bool write);
const char *virtio_chain_add_indirect(struct virtio_queue *q, struct virtio_chain *c, uint64_t addr, uint32_t len);

/* NULL with *why set: broken; NULL without: empty. */
struct virtio_chain *virtio_split_pop(struct virtio_queue *q, const char **why);
struct virtio_chain *virtio_packed_pop(struct virtio_queue *q, const char **why);
void virtio_split_push(struct virtio_queue *q, const struct virtio_chain *c, uint32_t written);
void virtio_packed_push(struct virtio_queue *q, const struct virtio_chain *c, uint32_t written);
/* Shows what was pushed; true when the driver wants an interrupt for it. */
bool virtio_split_flush(struct virtio_queue *q);
bool virtio_packed_flush(struct virtio_queue *q);

/* ---- memory shared with the driver: every access once, and atomic ---- */
static inline uint16_t shared_load16(const void *p)
{
    return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE);
}
static inline void shared_store16(void *p, uint16_t v)
{
    __atomic_store_n((uint16_t *)p, v, __ATOMIC_RELEASE);
}
static inline void shared_store32(void *p, uint32_t v)
{
    __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELEASE);
}
/* Both sides write their own word, then read the other's: the one place where x86 needs a barrier (1.2, 2.7.13.4.1). */
static inline void shared_barrier(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
/* Descriptors lie at any alignment in indirect tables. */
struct virtio_words {
    uint64_t w[2];
} __attribute__((packed, may_alias, aligned(1)));

static inline struct virtio_descriptor shared_descriptor(const uint8_t *p)
{
    const volatile struct virtio_words *s = (const volatile struct virtio_words *)p;
    uint64_t addr = s->w[0], rest = s->w[1];
    return (struct virtio_descriptor){addr, (uint32_t)rest, (uint16_t)(rest >> 32), (uint16_t)(rest >> 48)};
}

#endif
