/* The life cycle of a virtio device (1.2, chapters 2 and 3): status, features, queues, configuration space, reset. */
#include "vmm/virtio/virtio_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/event.h"
#include "common/log.h"

#define MAX_COMPLAINTS 4 /* a guest that breaks its rings all day must not fill the log */

#define RING_FEATURES                                                                                                 \
    (VIRTIO_BIT(VIRTIO_F_VERSION_1) | VIRTIO_BIT(VIRTIO_RING_F_INDIRECT_DESC) | VIRTIO_BIT(VIRTIO_RING_F_EVENT_IDX) | \
     VIRTIO_BIT(VIRTIO_F_RING_RESET))

/* ---- creation ---- */

static int create_queues(struct virtio_device *v, const struct virtio_desc *d, struct nerr *e)
{
    v->queue = calloc(d->queues, sizeof(*v->queue));
    if (!v->queue) return nerr_set(e, -ENOMEM, "%s: out of memory", d->name);
    for (unsigned i = 0; i < d->queues; i++) {
        struct virtio_queue *q = &v->queue[i];
        q->device = v;
        q->index = i;
        q->desc = d->queue[i];
        q->size = q->desc.size;
        atomic_init(&q->vector, VIRTIO_NO_VECTOR);
        pthread_mutex_init(&q->lock, NULL);
    }
    v->queues = d->queues;
    return 0;
}

static int create_config(struct virtio_device *v, const struct virtio_desc *d, struct nerr *e)
{
    v->config_size = d->config_size;
    v->config = calloc(2, d->config_size + 1);
    if (!v->config) return nerr_set(e, -ENOMEM, "%s: out of memory", d->name);
    v->config_writable = v->config + d->config_size;
    if (d->config_size) memcpy(v->config, d->config, d->config_size);
    if (d->config_writable) memcpy(v->config_writable, d->config_writable, d->config_size);
    return 0;
}

static bool possible(const struct virtio_desc *d)
{
    if (d->queues < 1 || d->queues > VIRTIO_MAX_QUEUES) return false;
    for (unsigned i = 0; i < d->queues; i++) {
        const struct virtio_queue_desc *q = &d->queue[i];
        if (q->size < 1 || q->size > VIRTIO_MAX_QUEUE_SIZE || (q->size & (q->size - 1))) return false;
        if (q->max_segments < 1 || q->max_segments > VIRTIO_MAX_SEGMENTS) return false;
    }
    return true;
}

int virtio_device_create(const struct virtio_desc *d, const struct virtio_transport *t, struct virtio_device **out,
                         struct nerr *e)
{
    *out = NULL;
    if (!possible(d)) return nerr_set(e, -EINVAL, "%s: impossible queues; this is a mistake in the device", d->name);
    struct virtio_device *v = calloc(1, sizeof(*v));
    if (!v) return nerr_set(e, -ENOMEM, "%s: out of memory", d->name);
    v->ops = d->ops;
    v->dev = d->dev;
    v->name = d->name;
    v->transport = *t;
    v->loop = d->loop;
    v->offered = d->features | RING_FEATURES | (d->no_packed ? 0 : VIRTIO_BIT(VIRTIO_F_RING_PACKED));
    pthread_mutex_init(&v->lock, NULL);
    pthread_mutex_init(&v->config_lock, NULL);
    int r = create_queues(v, d, e);
    if (!r) r = create_config(v, d, e);
    if (r) {
        v->transport.destroy = NULL; /* the caller keeps it */
        virtio_destroy(v);
        return r;
    }
    *out = v;
    return 0;
}

void virtio_destroy(struct virtio_device *v)
{
    if (!v) return;
    for (unsigned i = 0; i < v->queues; i++) {
        virtio_ring_free(&v->queue[i]);
        pthread_mutex_destroy(&v->queue[i].lock);
    }
    pthread_mutex_destroy(&v->lock);
    pthread_mutex_destroy(&v->config_lock);
    if (v->transport.destroy) v->transport.destroy(v->transport.ctx);
    free(v->queue);
    free(v->config);
    free(v);
}

/* ---- queues ---- */

struct virtio_queue *virtio_queue(struct virtio_device *v, unsigned n)
{
    return n < v->queues ? &v->queue[n] : NULL;
}

unsigned virtio_queue_index(const struct virtio_queue *q)
{
    return q->index;
}

void virtio_queue_lock(struct virtio_queue *q)
{
    pthread_mutex_lock(&q->lock);
}

void virtio_queue_unlock(struct virtio_queue *q)
{
    pthread_mutex_unlock(&q->lock);
}

/* On the loop's thread. */
static void go_on(void *ctx)
{
    struct virtio_queue *q = ctx;
    pthread_mutex_lock(&q->lock);
    q->posted = false;
    pthread_mutex_unlock(&q->lock);
    virtio_queue_kick(q);
}

void virtio_queue_kick(struct virtio_queue *q)
{
    const struct virtio_device *v = q->device;
    pthread_mutex_lock(&q->lock);
    bool run = virtio_queue_running(q);
    if (run) {
        q->sharing = v->loop;
        q->share = 2u * q->num;
        v->ops->notify(v->dev, q);
        virtio_flush(q);
        if (q->sharing && !q->share && !q->posted) q->posted = !event_loop_post(v->loop, go_on, q);
        q->sharing = false;
    }
    pthread_mutex_unlock(&q->lock);
    if (run && v->ops->notified) v->ops->notified(v->dev, q);
}

void virtio_notified(struct virtio_device *v, unsigned n)
{
    if (n >= v->queues) return;
    device_count(&v->transport.stats->notifications, 1);
    virtio_queue_kick(&v->queue[n]);
}

static bool in_flight(const struct virtio_queue *q)
{
    return atomic_load_explicit(&q->in_flight, memory_order_acquire) != 0;
}

/* The ring stops here; chains that are still out are dead. */
static void stop_queue(struct virtio_queue *q)
{
    pthread_mutex_lock(&q->lock);
    virtio_ring_stop(q);
    pthread_mutex_unlock(&q->lock);
    q->enabled = false;
    q->size = q->desc.size;
    q->desc_addr = q->driver_addr = q->device_addr = 0;
}

/* Registers of a queue that is enabled, or that still drains after a reset, don't change. */
static struct virtio_queue *settable(struct virtio_device *v, unsigned n)
{
    struct virtio_queue *q = virtio_queue(v, n);
    return q && !q->enabled && !v->resetting ? q : NULL;
}

void virtio_queue_size_set(struct virtio_device *v, unsigned n, uint16_t size)
{
    pthread_mutex_lock(&v->lock);
    struct virtio_queue *q = settable(v, n);
    if (q) q->size = size;
    pthread_mutex_unlock(&v->lock);
}

void virtio_queue_address_set(struct virtio_device *v, unsigned n, unsigned which, uint64_t value, uint64_t mask)
{
    pthread_mutex_lock(&v->lock);
    struct virtio_queue *q = settable(v, n);
    if (q) {
        uint64_t *a = which == 0 ? &q->desc_addr : which == 1 ? &q->driver_addr : &q->device_addr;
        *a = (*a & ~mask) | (value & mask);
    }
    pthread_mutex_unlock(&v->lock);
}

void virtio_queue_enable(struct virtio_device *v, unsigned n)
{
    bool kick = false;
    const char *why = NULL;
    pthread_mutex_lock(&v->lock);
    struct virtio_queue *q = settable(v, n);
    uint8_t s = atomic_load(&v->status);
    if (q && (s & VIRTIO_CONFIG_S_FEATURES_OK) && !in_flight(q)) {
        pthread_mutex_lock(&q->lock);
        why = virtio_ring_start(q);
        pthread_mutex_unlock(&q->lock);
        q->enabled = !why;
        kick = q->enabled && (s & VIRTIO_CONFIG_S_DRIVER_OK);
    }
    pthread_mutex_unlock(&v->lock);
    if (why) virtio_broken(v, why);
    if (kick) virtio_queue_kick(q); /* it was reset and comes back: there may be buffers already */
}

void virtio_queue_reset(struct virtio_device *v, unsigned n)
{
    pthread_mutex_lock(&v->lock);
    struct virtio_queue *q = virtio_queue(v, n);
    if (q && q->enabled && virtio_has(v, VIRTIO_F_RING_RESET)) {
        stop_queue(q);
        if (v->ops->queue_reset) v->ops->queue_reset(v->dev, q);
    }
    pthread_mutex_unlock(&v->lock);
}

bool virtio_queue_resetting(struct virtio_device *v, unsigned n)
{
    struct virtio_queue *q = virtio_queue(v, n);
    pthread_mutex_lock(&v->lock);
    bool r = q && !q->enabled && in_flight(q);
    pthread_mutex_unlock(&v->lock);
    return r;
}

/* ---- features and status ---- */

uint64_t virtio_features(const struct virtio_device *v)
{
    return atomic_load_explicit(&v->accepted, memory_order_acquire);
}

void virtio_driver_features_set(struct virtio_device *v, unsigned half, uint32_t bits)
{
    pthread_mutex_lock(&v->lock);
    if (half < 2 && !(atomic_load(&v->status) & VIRTIO_CONFIG_S_FEATURES_OK)) {
        uint64_t mask = 0xffffffffull << (32 * half);
        v->driver_features = (v->driver_features & ~mask) | (uint64_t)bits << (32 * half);
    }
    pthread_mutex_unlock(&v->lock);
}

/* A driver that wants what was not offered, or is of before 1.0, finds FEATURES_OK unset when it looks (2.2.2, 6.1). */
static bool features_fine(const struct virtio_device *v)
{
    return !(v->driver_features & ~v->offered) && (v->driver_features & VIRTIO_BIT(VIRTIO_F_VERSION_1));
}

static bool device_in_flight(const struct virtio_device *v)
{
    for (unsigned i = 0; i < v->queues; i++)
        if (in_flight(&v->queue[i])) return true;
    return false;
}

/* With the device's lock. Nothing that came before can be seen in memory or in an interrupt once status reads 0. */
static void finish_reset(struct virtio_device *v)
{
    if (!v->resetting || device_in_flight(v)) return;
    v->resetting = false;
    atomic_store(&v->accepted, 0);
    v->driver_features = 0;
    atomic_store(&v->status, 0);
}

static void start_reset(struct virtio_device *v)
{
    for (unsigned i = 0; i < v->queues; i++) {
        stop_queue(&v->queue[i]);
        atomic_store(&v->queue[i].vector, VIRTIO_NO_VECTOR);
    }
    /* Not 0 yet: a driver that reads 0 may use its memory for something else. */
    atomic_store(&v->status, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    if (v->ops->reset) v->ops->reset(v->dev);
    v->resetting = true;
    finish_reset(v);
}

uint8_t virtio_status_get(struct virtio_device *v)
{
    pthread_mutex_lock(&v->lock);
    finish_reset(v);
    uint8_t s = atomic_load(&v->status);
    pthread_mutex_unlock(&v->lock);
    return s;
}

/* Bits can only be added, but by reset (2.1.1). True when DRIVER_OK is new. */
static bool add_status(struct virtio_device *v, uint8_t wanted)
{
    uint8_t old = atomic_load(&v->status);
    uint8_t added = wanted & (uint8_t)~old & (uint8_t)~VIRTIO_CONFIG_S_NEEDS_RESET;
    if (added & VIRTIO_CONFIG_S_FEATURES_OK) {
        if (features_fine(v))
            atomic_store(&v->accepted, v->driver_features);
        else
            added &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;
    }
    if (!((old | added) & VIRTIO_CONFIG_S_FEATURES_OK)) added &= (uint8_t)~VIRTIO_CONFIG_S_DRIVER_OK;
    bool go = added & VIRTIO_CONFIG_S_DRIVER_OK;
    if (go && v->ops->activate) v->ops->activate(v->dev);
    atomic_fetch_or(&v->status, added);
    return go;
}

void virtio_status_set(struct virtio_device *v, uint8_t status)
{
    bool go = false;
    pthread_mutex_lock(&v->lock);
    finish_reset(v);
    if (!status)
        start_reset(v);
    else if (!v->resetting)
        go = add_status(v, status);
    pthread_mutex_unlock(&v->lock);
    /* Drivers fill queues, and may notify, before DRIVER_OK. */
    for (unsigned i = 0; go && i < v->queues; i++) virtio_queue_kick(&v->queue[i]);
}

void virtio_machine_reset(struct virtio_device *v)
{
    pthread_mutex_lock(&v->lock);
    start_reset(v);
    pthread_mutex_unlock(&v->lock);
    if (v->ops->drain) v->ops->drain(v->dev);
    pthread_mutex_lock(&v->lock);
    finish_reset(v);
    if (v->resetting && atomic_fetch_add(&v->complaints, 1) < MAX_COMPLAINTS)
        nc_warn("%s: requests are in flight after a reset", v->name);
    pthread_mutex_unlock(&v->lock);
}

void virtio_broken(struct virtio_device *v, const char *why)
{
    uint8_t old = atomic_fetch_or(&v->status, VIRTIO_CONFIG_S_NEEDS_RESET);
    if (old & VIRTIO_CONFIG_S_NEEDS_RESET) return;
    device_count(&v->transport.stats->errors, 1);
    if (atomic_fetch_add(&v->complaints, 1) < MAX_COMPLAINTS)
        nc_warn("%s: the guest's driver broke the rules: %s; the device waits to be reset", v->name, why);
    if (old & VIRTIO_CONFIG_S_DRIVER_OK) v->transport.config_interrupt(v->transport.ctx);
}

/* ---- configuration space ---- */

void virtio_config_set(struct virtio_device *v, unsigned off, const void *data, unsigned len)
{
    if (off > v->config_size || len > v->config_size - off) return;
    pthread_mutex_lock(&v->config_lock);
    memcpy(v->config + off, data, len);
    atomic_fetch_add(&v->config_generation, 1);
    pthread_mutex_unlock(&v->config_lock);
    if (atomic_load(&v->status) & VIRTIO_CONFIG_S_DRIVER_OK) v->transport.config_interrupt(v->transport.ctx);
}

void virtio_config_get(struct virtio_device *v, unsigned off, void *data, unsigned len)
{
    memset(data, 0, len);
    if (off >= v->config_size) return;
    if (len > v->config_size - off) len = v->config_size - off;
    pthread_mutex_lock(&v->config_lock);
    memcpy(data, v->config + off, len);
    pthread_mutex_unlock(&v->config_lock);
}

/* All of the bytes are writable, or nothing happens. */
void virtio_config_written(struct virtio_device *v, unsigned off, unsigned len, uint64_t value)
{
    if (len > sizeof(value) || off > v->config_size || len > v->config_size - off) return;
    for (unsigned i = 0; i < len; i++)
        if (!v->config_writable[off + i]) return;
    pthread_mutex_lock(&v->config_lock);
    memcpy(v->config + off, &value, len);
    if (v->ops->config_written) v->ops->config_written(v->dev, off, len, v->config);
    pthread_mutex_unlock(&v->config_lock);
}

struct device_stats *virtio_stats(struct virtio_device *v)
{
    return v->transport.stats;
}
