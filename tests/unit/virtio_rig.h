/* A virtio driver in miniature: guest memory, a PCI bus, register accesses as a guest makes them, split and packed rings from the driver's
 * side. For unit tests and fuzzers, which may break its rules at will. */
#ifndef NACELLE_TESTS_VIRTIO_RIG_H
#define NACELLE_TESTS_VIRTIO_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vmm/virtio/virtio.h"

#define RIG_MEMORY (4ull << 20)
#define RIG_QUEUES 64
#define RIG_RESET_BIT 40 /* VIRTIO_F_RING_RESET */

struct rig_queue {
    unsigned n, size;
    bool packed, event;
    uint64_t desc, driver, device, notify; /* GPAs */
    /* split */
    uint16_t free[1024], free_count, avail_idx, used_idx;
    uint16_t chain_len[1024];
    /* packed */
    uint16_t next, used_next;
    bool wrap, used_wrap;
    uint16_t ids[1024], id_count, slots;
};

struct rig {
    struct bus bus;
    struct pci_bus *pci;
    struct pci_irq_sink sink;
    struct guest_memory memory;
    uint64_t alloc; /* next free GPA */
    uint64_t ecam, bar, common, notify_base, config, isr;
    unsigned notify_multiplier, msix_cap, cfg_cap;
    uint64_t written; /* bytes that the device said it wrote */
    atomic_uint msi[RIG_QUEUES + 1], line;
    struct rig_queue q[RIG_QUEUES];
};

/* ---- the board ---- */

static inline void rig_msi(void *ctx, uint64_t addr, uint32_t data)
{
    struct rig *r = ctx;
    if (addr == 0xfee00000) atomic_fetch_add(&r->msi[data % (RIG_QUEUES + 1)], 1);
}

static inline void rig_line(void *ctx, unsigned gsi, bool level)
{
    struct rig *r = ctx;
    (void)gsi;
    atomic_store(&r->line, level);
}

static inline void rig_written(void *ctx, gpa_t a, uint64_t len)
{
    struct rig *r = ctx;
    (void)a;
    __atomic_fetch_add(&r->written, len, __ATOMIC_RELAXED);
}

static inline struct rig *rig_new(void)
{
    struct nerr e;
    struct rig *r = calloc(1, sizeof(*r));
    assert_non_null(r);
    if (guest_memory_create(&r->memory, RIG_MEMORY, &e)) fail_msg("%s", e.text);
    r->sink = (struct pci_irq_sink){.ctx = r, .msi = rig_msi, .line = rig_line};
    struct pci_config cfg = {.bus = &r->bus,
                             .sink = &r->sink,
                             .ram_size = RIG_MEMORY,
                             .dma = {.memory = &r->memory, .written = rig_written, .ctx = r}};
    struct pci_layout layout;
    pci_layout_init(&layout, RIG_MEMORY, 0);
    r->ecam = layout.ecam_base;
    r->alloc = 0x10000;
    if (pci_bus_create(&cfg, &r->pci, &e)) fail_msg("%s", e.text);
    return r;
}

/* After the device is destroyed. */
static inline void rig_free(struct rig *r)
{
    pci_bus_destroy(r->pci);
    guest_memory_destroy(&r->memory);
    free(r);
}

static inline uint64_t rig_alloc(struct rig *r, uint64_t size)
{
    uint64_t a = (r->alloc + 15) & ~15ull;
    r->alloc = a + size;
    assert_true(r->alloc <= RIG_MEMORY);
    memset(guest_memory_ptr(&r->memory, GPA(a), size, true), 0, size);
    return a;
}

static inline void *rig_ptr(struct rig *r, uint64_t a)
{
    void *p = guest_memory_ptr(&r->memory, GPA(a), 1, true);
    assert_non_null(p);
    return p;
}

/* ---- registers ---- */

static inline uint64_t rig_in(struct rig *r, uint64_t a, unsigned size)
{
    return bus_read(&r->bus, BUS_MMIO, a, size);
}
static inline void rig_out(struct rig *r, uint64_t a, unsigned size, uint64_t v)
{
    bus_write(&r->bus, BUS_MMIO, a, size, v);
}
static inline uint64_t rig_get(struct rig *r, unsigned reg, unsigned size)
{
    return rig_in(r, r->common + reg, size);
}
static inline void rig_set(struct rig *r, unsigned reg, unsigned size, uint64_t v)
{
    rig_out(r, r->common + reg, size, v);
}
static inline uint8_t rig_status(struct rig *r)
{
    return (uint8_t)rig_get(r, VIRTIO_PCI_COMMON_STATUS, 1);
}
static inline void rig_add_status(struct rig *r, uint8_t bits)
{
    rig_set(r, VIRTIO_PCI_COMMON_STATUS, 1, rig_status(r) | bits);
}

/* Finds the function in slot 1: its capabilities and BARs; switches on memory, bus mastering and (if asked for) MSI-X. */
static inline void rig_probe(struct rig *r, bool msix)
{
    uint64_t f = r->ecam + (1u << 15);
    assert_int_equal(rig_in(r, f, 2), 0x1af4);
    rig_out(r, f + 4, 2, 0x0006);
    r->bar = (rig_in(r, f + 0x20, 4) & ~15u) | rig_in(r, f + 0x24, 4) << 32;
    uint64_t table = rig_in(r, f + 0x14, 4) & ~15u;
    for (unsigned c = (unsigned)rig_in(r, f + 0x34, 1); c; c = (unsigned)rig_in(r, f + c + 1, 1)) {
        unsigned id = (unsigned)rig_in(r, f + c, 1), type = (unsigned)rig_in(r, f + c + 3, 1);
        uint64_t at = r->bar + rig_in(r, f + c + 8, 4);
        if (id == 0x11) r->msix_cap = c;
        if (id != 0x09) continue;
        if (type == VIRTIO_PCI_CAP_COMMON_CFG) r->common = at;
        if (type == VIRTIO_PCI_CAP_ISR_CFG) r->isr = at;
        if (type == VIRTIO_PCI_CAP_DEVICE_CFG) r->config = at;
        if (type == VIRTIO_PCI_CAP_PCI_CFG) r->cfg_cap = c;
        if (type == VIRTIO_PCI_CAP_NOTIFY_CFG) {
            r->notify_base = at;
            r->notify_multiplier = (unsigned)rig_in(r, f + c + 16, 4);
        }
    }
    assert_true(r->common && r->notify_base && r->isr && r->msix_cap && r->cfg_cap);
    unsigned vectors = (unsigned)(rig_in(r, f + r->msix_cap + 2, 2) & 0x7ff) + 1;
    for (unsigned i = 0; msix && i < vectors; i++) {
        rig_out(r, table + 16 * i, 4, 0xfee00000);
        rig_out(r, table + 16 * i + 4, 4, 0);
        rig_out(r, table + 16 * i + 8, 4, i);
        rig_out(r, table + 16 * i + 12, 4, 0);
    }
    if (msix) rig_out(r, f + r->msix_cap + 2, 2, 0x8000);
}

static inline uint64_t rig_offered(struct rig *r)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < 2; i++) {
        rig_set(r, VIRTIO_PCI_COMMON_DFSELECT, 4, i);
        v |= rig_get(r, VIRTIO_PCI_COMMON_DF, 4) << (32 * i);
    }
    return v;
}

/* Reset, then up to FEATURES_OK; false when the device does not accept. */
static inline bool rig_negotiate(struct rig *r, uint64_t features)
{
    rig_set(r, VIRTIO_PCI_COMMON_STATUS, 1, 0);
    for (int i = 0; i < 2000 && rig_status(r); i++) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    assert_int_equal(rig_status(r), 0);
    rig_add_status(r, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    rig_add_status(r, VIRTIO_CONFIG_S_DRIVER);
    for (unsigned i = 0; i < 2; i++) {
        rig_set(r, VIRTIO_PCI_COMMON_GFSELECT, 4, i);
        rig_set(r, VIRTIO_PCI_COMMON_GF, 4, (uint32_t)(features >> (32 * i)));
    }
    rig_add_status(r, VIRTIO_CONFIG_S_FEATURES_OK);
    rig_set(r, VIRTIO_PCI_COMMON_MSIX, 2, 0);
    return rig_status(r) & VIRTIO_CONFIG_S_FEATURES_OK;
}

static inline void rig_queue_setup(struct rig *r, unsigned n, unsigned size, uint64_t features)
{
    struct rig_queue *q = &r->q[n];
    *q = (struct rig_queue){.n = n,
                            .size = size,
                            .packed = features >> VIRTIO_F_RING_PACKED & 1,
                            .event = features >> VIRTIO_RING_F_EVENT_IDX & 1};
    q->desc = rig_alloc(r, 16ull * size);
    q->driver = rig_alloc(r, q->packed ? 4 : 6 + 2ull * size);
    q->device = rig_alloc(r, q->packed ? 4 : 6 + 8ull * size);
    for (unsigned i = 0; i < size; i++) q->free[i] = q->ids[i] = (uint16_t)(size - 1 - i);
    q->free_count = q->id_count = q->slots = (uint16_t)size;
    q->wrap = q->used_wrap = true;
    rig_set(r, VIRTIO_PCI_COMMON_Q_SELECT, 2, n);
    q->notify = r->notify_base + rig_get(r, VIRTIO_PCI_COMMON_Q_NOFF, 2) * r->notify_multiplier;
    rig_set(r, VIRTIO_PCI_COMMON_Q_SIZE, 2, size);
    rig_set(r, VIRTIO_PCI_COMMON_Q_MSIX, 2, n + 1);
    rig_set(r, VIRTIO_PCI_COMMON_Q_DESCLO, 4, (uint32_t)q->desc);
    rig_set(r, VIRTIO_PCI_COMMON_Q_DESCHI, 4, q->desc >> 32);
    rig_set(r, VIRTIO_PCI_COMMON_Q_AVAILLO, 4, (uint32_t)q->driver);
    rig_set(r, VIRTIO_PCI_COMMON_Q_AVAILHI, 4, 0);
    rig_set(r, VIRTIO_PCI_COMMON_Q_USEDLO, 4, (uint32_t)q->device);
    rig_set(r, VIRTIO_PCI_COMMON_Q_USEDHI, 4, 0);
    rig_set(r, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
}

static inline void rig_go(struct rig *r)
{
    rig_add_status(r, VIRTIO_CONFIG_S_DRIVER_OK);
}

/* ---- rings, the driver's side ---- */

struct rig_buffer {
    uint64_t addr;
    uint32_t len;
    bool write;
};

static inline void rig_store_desc(struct rig *r, uint64_t at, struct vring_desc d)
{
    memcpy(rig_ptr(r, at), &d, sizeof(d));
}

static inline uint16_t rig_load(struct rig *r, uint64_t a)
{
    return __atomic_load_n((uint16_t *)rig_ptr(r, a), __ATOMIC_ACQUIRE);
}
static inline void rig_store(struct rig *r, uint64_t a, uint16_t v)
{
    __atomic_store_n((uint16_t *)rig_ptr(r, a), v, __ATOMIC_RELEASE);
}

static inline unsigned rig_buffer_flags(const struct rig_buffer *b)
{
    return b->write ? VRING_DESC_F_WRITE : 0;
}

static inline int rig_add_split(struct rig *r, struct rig_queue *q, const struct rig_buffer *b, unsigned n,
                                uint64_t table)
{
    unsigned need = table ? 1 : n;
    if (q->free_count < need) return -1;
    uint16_t head = q->free[q->free_count - 1];
    for (unsigned i = 0; i < n; i++) {
        unsigned more = i + 1 < n ? VRING_DESC_F_NEXT : 0;
        struct vring_desc d = {b[i].addr, b[i].len, (uint16_t)(rig_buffer_flags(&b[i]) | more), 0};
        if (table) {
            d.next = (uint16_t)(i + 1);
            rig_store_desc(r, table + 16 * i, d);
        } else {
            uint16_t at = q->free[--q->free_count];
            d.next = more ? q->free[q->free_count - 1] : 0;
            rig_store_desc(r, q->desc + 16u * at, d);
        }
    }
    if (table) {
        q->free_count--;
        rig_store_desc(r, q->desc + 16u * head, (struct vring_desc){table, 16 * n, VRING_DESC_F_INDIRECT, 0});
    }
    q->chain_len[head] = (uint16_t)need;
    rig_store(r, q->driver + 4 + 2u * (q->avail_idx & (q->size - 1)), head);
    rig_store(r, q->driver + 2, ++q->avail_idx);
    return head;
}

static inline int rig_add_packed(struct rig *r, struct rig_queue *q, const struct rig_buffer *b, unsigned n,
                                 uint64_t table)
{
    unsigned need = table ? 1 : n;
    if (q->slots < need || !q->id_count) return -1;
    uint16_t id = q->ids[--q->id_count], first = q->next, first_flags = 0;
    for (unsigned i = 0; table && i < n; i++)
        rig_store_desc(r, table + 16 * i,
                       (struct vring_desc){b[i].addr, b[i].len, 0, (uint16_t)rig_buffer_flags(&b[i])});
    for (unsigned i = 0; i < need; i++) {
        struct vring_desc d = {table ? table : b[i].addr, table ? 16 * n : b[i].len, id, 0};
        unsigned flags =
            table ? VRING_DESC_F_INDIRECT : rig_buffer_flags(&b[i]) | (i + 1 < need ? VRING_DESC_F_NEXT : 0);
        flags |= 1u << (q->wrap ? VRING_PACKED_DESC_F_AVAIL : VRING_PACKED_DESC_F_USED);
        uint64_t at = q->desc + 16u * q->next;
        if (!i) {
            first_flags = (uint16_t)flags;
            d.next = rig_load(r, at + 14);
        } else {
            d.next = (uint16_t)flags;
        }
        rig_store_desc(r, at, d);
        if (++q->next == q->size) {
            q->next = 0;
            q->wrap = !q->wrap;
        }
    }
    q->slots = (uint16_t)(q->slots - need);
    q->chain_len[id] = (uint16_t)need;
    rig_store(r, q->desc + 16u * first + 14, first_flags);
    return id;
}

/* Makes a chain available; `table` is a GPA of n * 16 bytes for indirect descriptors, or 0. Returns its ID, -1 when the ring is full. */
static inline int rig_add(struct rig *r, struct rig_queue *q, const struct rig_buffer *b, unsigned n, uint64_t table)
{
    return q->packed ? rig_add_packed(r, q, b, n, table) : rig_add_split(r, q, b, n, table);
}

/* Whether the device asks to be notified of what was added since `old` (a count of chains for split, of slots for packed). */
static inline bool rig_wants_notify(struct rig *r, struct rig_queue *q, uint16_t added)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!q->packed) {
        if (!q->event) return !(rig_load(r, q->device) & VRING_USED_F_NO_NOTIFY);
        return vring_need_event(rig_load(r, q->device + 4 + 8u * q->size), q->avail_idx,
                                (uint16_t)(q->avail_idx - added));
    }
    uint16_t off = rig_load(r, q->device), flags = rig_load(r, q->device + 2);
    if (flags != VRING_PACKED_EVENT_FLAG_DESC) return flags == VRING_PACKED_EVENT_FLAG_ENABLE;
    uint16_t event = off & 0x7fff;
    if ((off >> 15) != q->wrap) event = (uint16_t)(event - q->size);
    return vring_need_event(event, q->next, (uint16_t)(q->next - added));
}

static inline void rig_kick(struct rig *r, struct rig_queue *q)
{
    rig_out(r, q->notify, 2, q->n);
}

/* The next used chain: its ID, -1 when there is none. */
static inline int rig_used(struct rig *r, struct rig_queue *q, uint32_t *len)
{
    if (!q->packed) {
        if (rig_load(r, q->device + 2) == q->used_idx) return -1;
        uint32_t e[2];
        memcpy(e, rig_ptr(r, q->device + 4 + 8u * (q->used_idx & (q->size - 1))), 8);
        assert_true(e[0] < q->size);
        q->used_idx++;
        if (len) *len = e[1];
        uint16_t i = (uint16_t)e[0];
        for (unsigned n = q->chain_len[e[0]]; n; n--) {
            struct vring_desc d;
            q->free[q->free_count++] = i;
            memcpy(&d, rig_ptr(r, q->desc + 16u * i), sizeof(d));
            i = d.next;
        }
        return (int)e[0];
    }
    uint64_t at = q->desc + 16u * q->used_next;
    uint16_t flags = rig_load(r, at + 14);
    bool avail = flags >> VRING_PACKED_DESC_F_AVAIL & 1, used = flags >> VRING_PACKED_DESC_F_USED & 1;
    if (avail != used || used != q->used_wrap) return -1;
    struct vring_packed_desc d;
    memcpy(&d, rig_ptr(r, at), sizeof(d));
    assert_true(d.id < q->size);
    if (len) *len = d.len;
    q->used_next = (uint16_t)(q->used_next + q->chain_len[d.id]);
    q->slots = (uint16_t)(q->slots + q->chain_len[d.id]);
    q->ids[q->id_count++] = d.id;
    if (q->used_next >= q->size) {
        q->used_next = (uint16_t)(q->used_next - q->size);
        q->used_wrap = !q->used_wrap;
    }
    return d.id;
}

/* Asks for an interrupt at the next used chain (event index), or for all or none. */
static inline void rig_want_interrupt(struct rig *r, struct rig_queue *q, bool on)
{
    if (!q->packed) {
        if (q->event)
            rig_store(r, q->driver + 4 + 2u * q->size, on ? q->used_idx : (uint16_t)(q->used_idx - 1));
        else
            rig_store(r, q->driver, on ? 0 : VRING_AVAIL_F_NO_INTERRUPT);
        return;
    }
    rig_store(r, q->driver, (uint16_t)(q->used_next | q->used_wrap << 15));
    rig_store(r, q->driver + 2,
              !on        ? VRING_PACKED_EVENT_FLAG_DISABLE
              : q->event ? VRING_PACKED_EVENT_FLAG_DESC
                         : VRING_PACKED_EVENT_FLAG_ENABLE);
}

/* Waits up to five seconds for a used chain. */
static inline int rig_wait_used(struct rig *r, struct rig_queue *q, uint32_t *len)
{
    for (int i = 0; i < 10000; i++) {
        int id = rig_used(r, q, len);
        if (id >= 0) return id;
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
    }
    fail_msg("no used chain");
    return -1;
}

#endif
