/* Split rings (virtio 1.2, 2.7): a descriptor table, the driver's ring of available heads, the device's ring of used ones. */
#include "vmm/virtio/virtio_internal.h"

/* struct vring_avail: flags, idx, ring[num], used_event. struct vring_used: flags, idx, ring[num] of {id, len}, avail_event. */
#define RING_FLAGS 0
#define RING_IDX 2
#define RING_ENTRIES 4

static uint8_t *avail_event(const struct virtio_queue *q)
{
    return q->device_area + RING_ENTRIES + 8u * q->num;
}

static const uint8_t *used_event(const struct virtio_queue *q)
{
    return q->driver_area + RING_ENTRIES + 2u * q->num;
}

/* With the event index nothing need be written to suppress: the driver notifies only when it passes the index that is there. */
static void suppress(struct virtio_queue *q)
{
    if (q->suppressed) return;
    q->suppressed = true;
    if (q->event_idx) return;
    shared_store16(q->device_area + RING_FLAGS, VRING_USED_F_NO_NOTIFY);
    dma_written(q->device->transport.dma, GPA(q->device_addr), 2);
}

static void unsuppress(struct virtio_queue *q)
{
    q->suppressed = false;
    uint8_t *p = q->event_idx ? avail_event(q) : q->device_area + RING_FLAGS;
    shared_store16(p, q->event_idx ? q->next_avail : 0);
    dma_written(q->device->transport.dma, GPA(q->device_addr + (uint64_t)(p - q->device_area)), 2);
    shared_barrier();
}

/* How many heads wait; notifications are on when it says 0. */
static uint16_t available(struct virtio_queue *q)
{
    for (;;) {
        uint16_t n = (uint16_t)(shared_load16(q->driver_area + RING_IDX) - q->next_avail);
        if (n || !q->suppressed) return n;
        unsuppress(q);
    }
}

static const char *collect(struct virtio_queue *q, struct virtio_chain *c, uint16_t head)
{
    uint16_t i = head;
    for (unsigned n = 0; n < q->num; n++) {
        if (i >= q->num) return "a descriptor's index is outside of the table";
        struct virtio_descriptor d = shared_descriptor(q->ring + 16u * i);
        if (d.flags & VRING_DESC_F_INDIRECT) {
            if (d.flags & VRING_DESC_F_NEXT) return "a descriptor is both indirect and followed by another";
            return virtio_chain_add_indirect(q, c, d.addr, d.len);
        }
        const char *why = virtio_chain_add(q, c, d.addr, d.len, d.flags & VRING_DESC_F_WRITE);
        if (why || !(d.flags & VRING_DESC_F_NEXT)) return why;
        i = d.next;
    }
    return "a chain is longer than the queue, or a loop";
}

struct virtio_chain *virtio_split_pop(struct virtio_queue *q, const char **why)
{
    uint16_t n = available(q);
    if (!n) return NULL;
    if (n > q->num || atomic_load_explicit(&q->in_flight, memory_order_relaxed) >= q->num) {
        *why = "more is available than the queue holds";
        return NULL;
    }
    uint16_t head = shared_load16(q->driver_area + RING_ENTRIES + 2u * (q->next_avail & (q->num - 1u)));
    struct virtio_chain *c = virtio_chain_get(q);
    *why = c ? collect(q, c, head) : "the host is out of memory";
    if (*why) {
        if (c) virtio_chain_put(q, c);
        return NULL;
    }
    c->id = head;
    q->next_avail++;
    suppress(q);
    return c;
}

void virtio_split_push(struct virtio_queue *q, const struct virtio_chain *c, uint32_t written)
{
    uint8_t *element = q->device_area + RING_ENTRIES + 8u * (q->next_used & (q->num - 1u));
    shared_store32(element, c->id);
    shared_store32(element + 4, written);
    q->next_used++;
}

bool virtio_split_flush(struct virtio_queue *q)
{
    uint16_t old = q->shown;
    shared_store16(q->device_area + RING_IDX, q->next_used);
    q->shown = q->next_used;
    dma_written(q->device->transport.dma, GPA(q->device_addr), RING_ENTRIES + 8ull * q->num);
    shared_barrier();
    if (q->event_idx) return vring_need_event(shared_load16(used_event(q)), q->next_used, old);
    return !(shared_load16(q->driver_area + RING_FLAGS) & VRING_AVAIL_F_NO_INTERRUPT);
}
