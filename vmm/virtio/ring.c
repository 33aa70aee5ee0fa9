/* What split and packed rings have in common: chains, their memory, the way in and out. */
#include "vmm/virtio/virtio_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- chains ---- */

static size_t round16(size_t n)
{
    return (n + 15) & ~(size_t)15;
}

/* One block: the chain, the device's part, buffers, their guest addresses. */
static struct virtio_chain *chain_new(struct virtio_queue *q)
{
    size_t priv = round16(sizeof(struct virtio_chain)), iov = priv + round16(q->desc.priv_size);
    size_t gpa = iov + q->desc.max_segments * sizeof(struct iovec);
    uint8_t *p = malloc(gpa + q->desc.max_segments * sizeof(gpa_t));
    if (!p) return NULL;
    struct virtio_chain *c = (struct virtio_chain *)p;
    c->priv = p + priv;
    c->iov = (struct iovec *)(p + iov);
    c->gpa = (gpa_t *)(p + gpa);
    c->queue = q;
    return c;
}

struct virtio_chain *virtio_chain_get(struct virtio_queue *q)
{
    struct virtio_chain *c = q->free;
    if (c)
        q->free = c->next_free;
    else if (!(c = chain_new(q)))
        return NULL;
    c->readables = c->writables = 0;
    c->readable_bytes = c->writable_bytes = 0;
    c->generation = q->generation;
    c->slots = 1;
    return c;
}

void virtio_chain_put(struct virtio_queue *q, struct virtio_chain *c)
{
    c->next_free = q->free;
    q->free = c;
}

const char *virtio_chain_add(struct virtio_queue *q, struct virtio_chain *c, uint64_t addr, uint32_t len, bool write)
{
    if (!len) return NULL;
    unsigned n = c->readables + c->writables;
    if (n >= q->desc.max_segments) return "a chain has more buffers than the device takes";
    if (!write && c->writables) return "a buffer to read follows one to write";
    void *p = dma_ptr(q->device->transport.dma, GPA(addr), len, write);
    if (!p) return "a buffer is not in RAM";
    c->iov[n] = (struct iovec){p, len};
    c->gpa[n] = GPA(addr);
    if (write) {
        c->writables++;
        c->writable_bytes += len;
    } else {
        c->readables++;
        c->readable_bytes += len;
    }
    /* 1.2, 2.7.4.1: at most 2^32 bytes in a chain; the length in a used element is 32 bits. */
    return c->readable_bytes + c->writable_bytes > UINT32_MAX ? "a chain is longer than 4 GiB" : NULL;
}

/* An indirect table (1.2, 2.7.5.3 and 2.8.7): chained by `next` in a split ring, in order in a packed one. */
const char *virtio_chain_add_indirect(struct virtio_queue *q, struct virtio_chain *c, uint64_t addr, uint32_t len)
{
    unsigned entries = len / sizeof(struct vring_desc), i = 0;
    if (!q->indirect) return "indirect descriptors were not negotiated";
    if (!len || len % sizeof(struct vring_desc)) return "an indirect table's length is no multiple of 16";
    /* Tables longer than any chain we take would only keep us busy. */
    if (q->packed && entries > VIRTIO_MAX_SEGMENTS) return "an indirect table is too long";
    const uint8_t *table = dma_ptr(q->device->transport.dma, GPA(addr), len, false);
    if (!table) return "an indirect table is not in RAM";
    for (unsigned n = 0;; n++) {
        if (n >= entries || n >= VIRTIO_MAX_SEGMENTS) return "an indirect chain is too long, or a loop";
        struct virtio_descriptor d = shared_descriptor(table + (size_t)i * sizeof(struct vring_desc));
        uint16_t flags = q->packed ? d.next : d.flags;
        if (flags & VRING_DESC_F_INDIRECT) return "an indirect table within an indirect table";
        const char *why = virtio_chain_add(q, c, d.addr, d.len, flags & VRING_DESC_F_WRITE);
        if (why) return why;
        if (q->packed) {
            if (++i == entries) return NULL;
            continue;
        }
        if (!(flags & VRING_DESC_F_NEXT)) return NULL;
        i = d.next;
        if (i >= entries) return "an indirect chain leaves its table";
    }
}

/* ---- start and stop ---- */

/* A guest area of `len` bytes; NULL when it is no RAM or misaligned. */
static uint8_t *area(struct virtio_queue *q, uint64_t addr, uint64_t len, unsigned align, bool write)
{
    return addr % align ? NULL : dma_ptr(q->device->transport.dma, GPA(addr), len, write);
}

static const char *start_split(struct virtio_queue *q)
{
    unsigned n = q->size, event = q->event_idx ? 2 : 0;
    if (n & (n - 1)) return "the queue's size is no power of two";
    q->ring = area(q, q->desc_addr, 16ull * n, 16, false);
    q->driver_area = area(q, q->driver_addr, 4 + 2ull * n + event, 2, false);
    q->device_area = area(q, q->device_addr, 4 + 8ull * n + event, 4, true);
    if (!q->ring || !q->driver_area || !q->device_area) return "a ring is not in RAM or not aligned";
    shared_store16(q->device_area, 0);
    if (q->event_idx) shared_store16(q->device_area + 4 + 8u * n, 0);
    dma_written(q->device->transport.dma, GPA(q->device_addr), 4 + 8ull * n + event);
    return NULL;
}

static const char *start_packed(struct virtio_queue *q)
{
    q->ring = area(q, q->desc_addr, 16ull * q->size, 16, true);
    q->driver_area = area(q, q->driver_addr, 4, 4, false);
    q->device_area = area(q, q->device_addr, 4, 4, true);
    if (!q->ring || !q->driver_area || !q->device_area) return "a ring is not in RAM or not aligned";
    q->avail_wrap = q->used_wrap = q->shown_wrap = true;
    shared_store32(q->device_area, VRING_PACKED_EVENT_FLAG_ENABLE << 16);
    dma_written(q->device->transport.dma, GPA(q->device_addr), 4);
    return NULL;
}

const char *virtio_ring_start(struct virtio_queue *q)
{
    uint64_t f = virtio_features(q->device);
    q->packed = f & VIRTIO_BIT(VIRTIO_F_RING_PACKED);
    q->event_idx = f & VIRTIO_BIT(VIRTIO_RING_F_EVENT_IDX);
    q->indirect = f & VIRTIO_BIT(VIRTIO_RING_F_INDIRECT_DESC);
    if (!q->size || q->size > q->desc.size) return "the queue's size is impossible";
    q->num = q->size;
    q->next_avail = q->next_used = q->shown = 0;
    q->suppressed = false;
    const char *why = q->packed ? start_packed(q) : start_split(q);
    q->running = !why;
    return why;
}

void virtio_ring_stop(struct virtio_queue *q)
{
    q->running = false;
    q->generation++;
}

void virtio_ring_free(struct virtio_queue *q)
{
    while (q->free) {
        struct virtio_chain *c = q->free;
        q->free = c->next_free;
        free(c);
    }
}

/* ---- pop, push, flush ---- */

bool virtio_queue_running(const struct virtio_queue *q)
{
    uint8_t s = atomic_load_explicit(&q->device->status, memory_order_acquire);
    return q->running && (s & VIRTIO_CONFIG_S_DRIVER_OK) && !(s & VIRTIO_CONFIG_S_NEEDS_RESET);
}

struct virtio_chain *virtio_pop(struct virtio_queue *q)
{
    const char *why = NULL;
    if (!virtio_queue_running(q) || !q->device->transport.may_dma(q->device->transport.ctx)) return NULL;
    if (q->sharing && !q->share) return NULL;
    struct virtio_chain *c = q->packed ? virtio_packed_pop(q, &why) : virtio_split_pop(q, &why);
    if (!c) {
        if (why) virtio_broken(q->device, why);
        return NULL;
    }
    atomic_fetch_add_explicit(&q->in_flight, 1, memory_order_relaxed);
    if (q->sharing) q->share--;
    return c;
}

void virtio_unpop(struct virtio_chain *c)
{
    struct virtio_queue *q = c->queue;
    if (c->generation == q->generation) {
        if (!q->packed) {
            q->next_avail--;
        } else if (q->next_avail < c->slots) {
            q->next_avail += q->num - c->slots;
            q->avail_wrap = !q->avail_wrap;
        } else {
            q->next_avail -= c->slots;
        }
    }
    virtio_chain_put(q, c);
    atomic_fetch_sub_explicit(&q->in_flight, 1, memory_order_release);
}

/* Guest memory that a device wrote may hold translated code. */
static void mark_written(const struct virtio_queue *q, const struct virtio_chain *c, uint64_t written)
{
    for (unsigned i = c->readables; written && i < c->readables + c->writables; i++) {
        uint64_t n = c->iov[i].iov_len < written ? c->iov[i].iov_len : written;
        dma_written(q->device->transport.dma, c->gpa[i], n);
        written -= n;
    }
}

void virtio_push(struct virtio_chain *c, uint64_t written)
{
    struct virtio_queue *q = c->queue;
    if (written > c->writable_bytes) written = c->writable_bytes;
    mark_written(q, c, written);
    if (c->generation == q->generation) {
        device_count(&q->device->transport.stats->requests, 1);
        if (q->packed)
            virtio_packed_push(q, c, (uint32_t)written);
        else
            virtio_split_push(q, c, (uint32_t)written);
    }
    virtio_chain_put(q, c);
    /* Release: whoever sees 0 sees the last of what was written, too. */
    atomic_fetch_sub_explicit(&q->in_flight, 1, memory_order_release);
}

void virtio_flush(struct virtio_queue *q)
{
    if (!q->running || (q->next_used == q->shown && q->used_wrap == q->shown_wrap)) return;
    if (q->packed ? virtio_packed_flush(q) : virtio_split_flush(q))
        q->device->transport.interrupt(q->device->transport.ctx, atomic_load(&q->vector));
}

/* ---- copies ---- */

/* Walks `n` buffers from byte `off` on. */
static size_t copy(const struct iovec *iov, unsigned n, uint64_t off, uint8_t *p, size_t len, bool to_guest)
{
    size_t done = 0;
    for (unsigned i = 0; i < n && done < len; i++) {
        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        size_t part = iov[i].iov_len - off;
        if (part > len - done) part = len - done;
        uint8_t *guest = (uint8_t *)iov[i].iov_base + off;
        memcpy(to_guest ? guest : p + done, to_guest ? p + done : guest, part);
        done += part;
        off = 0;
    }
    return done;
}

size_t virtio_read(const struct virtio_chain *c, uint64_t off, void *dst, size_t len)
{
    return copy(c->iov, c->readables, off, dst, len, false);
}

size_t virtio_write(struct virtio_chain *c, uint64_t off, const void *src, size_t len)
{
    return copy(c->iov + c->readables, c->writables, off, (uint8_t *)(uintptr_t)src, len, true);
}
