/* Packed rings (virtio 1.2, 2.8): one ring of descriptors that driver and device write in turn; whose turn it is, the AVAIL and USED
 * flags say together with a wrap counter on either side. */
#include "vmm/virtio/virtio_internal.h"

#define AVAIL_BIT (1u << VRING_PACKED_DESC_F_AVAIL)
#define USED_BIT (1u << VRING_PACKED_DESC_F_USED)
#define FLAGS_OFFSET 14

static uint8_t *slot(const struct virtio_queue *q, uint16_t i)
{
    return q->ring + 16u * i;
}

static bool is_available(const struct virtio_queue *q)
{
    uint16_t f = shared_load16(slot(q, q->next_avail) + FLAGS_OFFSET);
    return !!(f & AVAIL_BIT) == q->avail_wrap && !!(f & USED_BIT) != q->avail_wrap;
}

/* The device's event suppression area: an offset with the wrap counter on top, then flags. One 32-bit store writes both. */
static void set_events(struct virtio_queue *q, uint32_t flags, uint16_t off_wrap)
{
    shared_store32(q->device_area, flags << 16 | off_wrap);
    dma_written(q->device->transport.dma, GPA(q->device_addr), 4);
}

static void suppress(struct virtio_queue *q)
{
    if (q->suppressed) return;
    q->suppressed = true;
    set_events(q, VRING_PACKED_EVENT_FLAG_DISABLE, 0);
}

static void unsuppress(struct virtio_queue *q)
{
    uint16_t here = (uint16_t)(q->next_avail | (q->avail_wrap ? 1u << VRING_PACKED_EVENT_F_WRAP_CTR : 0));
    q->suppressed = false;
    set_events(q, q->event_idx ? VRING_PACKED_EVENT_FLAG_DESC : VRING_PACKED_EVENT_FLAG_ENABLE, here);
    shared_barrier();
}

static bool look(struct virtio_queue *q)
{
    for (;;) {
        if (is_available(q)) return true;
        if (!q->suppressed) return false;
        unsuppress(q);
    }
}

/* A chain lies in the ring in order; its buffer ID is in the last element (2.8.6). */
static const char *collect(struct virtio_queue *q, struct virtio_chain *c)
{
    uint16_t i = q->next_avail;
    for (unsigned n = 1; n <= q->num; n++) {
        struct virtio_descriptor d = shared_descriptor(slot(q, i));
        uint16_t flags = d.next;
        const char *why;
        c->id = d.flags;
        c->slots = (uint16_t)n;
        if (flags & VRING_DESC_F_INDIRECT) {
            if (flags & VRING_DESC_F_NEXT) return "a descriptor is both indirect and followed by another";
            return virtio_chain_add_indirect(q, c, d.addr, d.len);
        }
        why = virtio_chain_add(q, c, d.addr, d.len, flags & VRING_DESC_F_WRITE);
        if (why || !(flags & VRING_DESC_F_NEXT)) return why;
        if (++i == q->num) i = 0;
    }
    return "a chain is longer than the queue";
}

static void advance(const struct virtio_queue *q, uint16_t *index, bool *wrap, uint16_t by)
{
    unsigned n = (unsigned)*index + by;
    if (n >= q->num) {
        n -= q->num;
        *wrap = !*wrap;
    }
    *index = (uint16_t)n;
}

struct virtio_chain *virtio_packed_pop(struct virtio_queue *q, const char **why)
{
    if (!look(q)) return NULL;
    if (atomic_load_explicit(&q->in_flight, memory_order_relaxed) >= q->num) {
        *why = "more is available than the queue holds";
        return NULL;
    }
    struct virtio_chain *c = virtio_chain_get(q);
    *why = c ? collect(q, c) : "the host is out of memory";
    if (*why) {
        if (c) virtio_chain_put(q, c);
        return NULL;
    }
    advance(q, &q->next_avail, &q->avail_wrap, c->slots);
    suppress(q);
    return c;
}

void virtio_packed_push(struct virtio_queue *q, const struct virtio_chain *c, uint32_t written)
{
    uint16_t flags = (uint16_t)((q->used_wrap ? AVAIL_BIT | USED_BIT : 0) | (c->writables ? VRING_DESC_F_WRITE : 0));
    uint8_t *p = slot(q, q->next_used);
    shared_store32(p + 8, written);
    shared_store16(p + 12, c->id);
    /* The driver looks at elements in order: what follows the first one stays unseen until that one's flags are written. */
    if (q->next_used == q->shown && q->used_wrap == q->shown_wrap)
        q->first_flags = flags;
    else
        shared_store16(p + FLAGS_OFFSET, flags);
    advance(q, &q->next_used, &q->used_wrap, c->slots);
}

bool virtio_packed_flush(struct virtio_queue *q)
{
    uint16_t old = q->shown;
    shared_store16(slot(q, q->shown) + FLAGS_OFFSET, q->first_flags);
    if (q->used_wrap != q->shown_wrap) old = (uint16_t)(old - q->num);
    q->shown = q->next_used;
    q->shown_wrap = q->used_wrap;
    dma_written(q->device->transport.dma, GPA(q->desc_addr), 16ull * q->num);
    shared_barrier();
    uint16_t off_wrap = shared_load16(q->driver_area), flags = shared_load16(q->driver_area + 2);
    if (flags == VRING_PACKED_EVENT_FLAG_DISABLE) return false;
    if (flags != VRING_PACKED_EVENT_FLAG_DESC || !q->event_idx) return true;
    uint16_t event = off_wrap & ~(1u << VRING_PACKED_EVENT_F_WRAP_CTR);
    if ((off_wrap >> VRING_PACKED_EVENT_F_WRAP_CTR) != q->used_wrap) event = (uint16_t)(event - q->num);
    return vring_need_event(event, q->next_used, old);
}
