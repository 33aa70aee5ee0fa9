/* Rings, life cycle and PCI transport, seen by a driver: an echo device on a bus. */
#include "tests/unit/virtio_rig.h"

#include <errno.h>
#include <unistd.h>

#include "common/event.h"

#define VERSION_1 VIRTIO_BIT(VIRTIO_F_VERSION_1)
#define PACKED VIRTIO_BIT(VIRTIO_F_RING_PACKED)
#define EVENT VIRTIO_BIT(VIRTIO_RING_F_EVENT_IDX)
#define INDIRECT VIRTIO_BIT(VIRTIO_RING_F_INDIRECT_DESC)
#define RING_RESET VIRTIO_BIT(RIG_RESET_BIT)
#define OWN_FEATURE 5
#define QUEUES 3
#define QUEUE_SIZE 64
#define SEGMENTS 16
#define KEEP_MAX 64

/* Copies what it reads to where it may write; or keeps chains until release(). */
struct echo {
    struct virtio_device *virtio;
    bool keep;
    struct virtio_chain *kept[KEEP_MAX];
    unsigned keeps, notifies, resets, queue_resets, activations;
    unsigned config_off, config_len;
    /* For the test of a driver that never stops. */
    struct rig *endless;
    unsigned endless_left;
};

struct echo_config {
    uint32_t fixed, changeable;
};

static void echo_one(struct virtio_chain *c)
{
    uint8_t data[8192];
    size_t n = virtio_read(c, 0, data, sizeof(data));
    virtio_push(c, virtio_write(c, 0, data, n));
}

static void echo_notify(void *dev, struct virtio_queue *q)
{
    struct echo *d = dev;
    struct virtio_chain *c;
    d->notifies++;
    while ((c = virtio_pop(q))) {
        if (d->keep) {
            assert_true(d->keeps < KEEP_MAX);
            d->kept[d->keeps++] = c;
            continue;
        }
        echo_one(c);
        if (d->endless && d->endless_left) {
            uint32_t len;
            struct rig_queue *rq = &d->endless->q[virtio_queue_index(q)];
            struct rig_buffer b = {rq->desc, 4, false};
            virtio_flush(q);
            while (rig_used(d->endless, rq, &len) >= 0) {
            }
            assert_true(rig_add(d->endless, rq, &b, 1, 0) >= 0);
            d->endless_left--;
        }
    }
}

static void release(struct echo *d)
{
    for (unsigned i = 0; i < d->keeps; i++) {
        struct virtio_queue *q = d->kept[i]->queue;
        virtio_queue_lock(q);
        echo_one(d->kept[i]);
        virtio_flush(q);
        virtio_queue_unlock(q);
    }
    d->keeps = 0;
}

static void echo_activate(void *dev)
{
    ((struct echo *)dev)->activations++;
}
static void echo_reset(void *dev)
{
    ((struct echo *)dev)->resets++;
}
static void echo_queue_reset(void *dev, struct virtio_queue *q)
{
    (void)q;
    ((struct echo *)dev)->queue_resets++;
}
static void echo_drain(void *dev)
{
    release(dev);
}
static void echo_config(void *dev, unsigned off, unsigned len, uint8_t *config)
{
    struct echo *d = dev;
    d->config_off = off;
    d->config_len = len;
    config[off] &= 0x7f;
}

static const struct virtio_ops echo_ops = {.kind = "echo",
                                           .id = 42,
                                           .class_code = 0xff0000,
                                           .activate = echo_activate,
                                           .notify = echo_notify,
                                           .reset = echo_reset,
                                           .queue_reset = echo_queue_reset,
                                           .drain = echo_drain,
                                           .config_written = echo_config};

static struct rig *echo_rig(struct echo *d, struct event_loop *loop, bool msix)
{
    struct nerr e;
    struct rig *r = rig_new();
    static const struct echo_config config = {0x12345678, 0};
    static const uint8_t writable[sizeof(config)] = {0, 0, 0, 0, 1, 1, 1, 1};
    struct virtio_queue_desc q[QUEUES] = {
        {QUEUE_SIZE, SEGMENTS, 16}, {QUEUE_SIZE, SEGMENTS, 16}, {QUEUE_SIZE, SEGMENTS, 16}};
    struct virtio_desc desc = {.ops = &echo_ops,
                               .dev = d,
                               .name = "echo0",
                               .features = VIRTIO_BIT(OWN_FEATURE),
                               .loop = loop,
                               .queues = QUEUES,
                               .queue = q,
                               .config = &config,
                               .config_writable = writable,
                               .config_size = sizeof(config)};
    memset(d, 0, sizeof(*d));
    if (virtio_pci_create(r->pci, 1, &desc, &d->virtio, &e)) fail_msg("%s", e.text);
    rig_probe(r, msix);
    return r;
}

static void echo_free(struct rig *r, struct echo *d)
{
    release(d);
    virtio_destroy(d->virtio);
    rig_free(r);
}

static void start(struct rig *r, uint64_t features)
{
    assert_true(rig_negotiate(r, features | VERSION_1));
    for (unsigned n = 0; n < QUEUES; n++) rig_queue_setup(r, n, QUEUE_SIZE, features);
    rig_go(r);
    assert_int_equal(rig_status(r), 0xf);
}

/* ---- negotiation ---- */

static void test_features(void **state)
{
    (void)state;
    struct echo d;
    struct rig *r = echo_rig(&d, NULL, true);
    uint64_t offered = rig_offered(r);
    assert_int_equal(offered, VERSION_1 | PACKED | EVENT | INDIRECT | RING_RESET | VIRTIO_BIT(OWN_FEATURE));
    rig_set(r, VIRTIO_PCI_COMMON_DFSELECT, 4, 2);
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_DF, 4), 0);
    assert_false(rig_negotiate(r, EVENT));                     /* a legacy driver */
    assert_false(rig_negotiate(r, VERSION_1 | VIRTIO_BIT(6))); /* not offered */
    assert_false(rig_negotiate(r, VERSION_1 | VIRTIO_BIT(63)));
    rig_add_status(r, VIRTIO_CONFIG_S_DRIVER_OK);
    assert_false(rig_status(r) & VIRTIO_CONFIG_S_DRIVER_OK);
    assert_int_equal(virtio_features(d.virtio), 0);
    assert_true(rig_negotiate(r, VERSION_1 | EVENT));
    rig_set(r, VIRTIO_PCI_COMMON_GF, 4, 0); /* too late */
    assert_int_equal(virtio_features(d.virtio), VERSION_1 | EVENT);
    rig_go(r);
    assert_int_equal(d.activations, 1);
    rig_go(r);
    assert_int_equal(d.activations, 1);
    rig_set(r, VIRTIO_PCI_COMMON_STATUS, 1, 1); /* bits cannot be taken back */
    assert_int_equal(rig_status(r), 0xf);
    echo_free(r, &d);
}

static void test_registers(void **state)
{
    (void)state;
    struct echo d;
    struct rig *r = echo_rig(&d, NULL, true);
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_NUMQ, 2), QUEUES);
    rig_set(r, VIRTIO_PCI_COMMON_Q_SELECT, 2, 1);
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_Q_SIZE, 2), QUEUE_SIZE);
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_Q_NOFF, 2), 1);
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_Q_MSIX, 2), 0xffff);
    rig_set(r, VIRTIO_PCI_COMMON_Q_MSIX, 2, QUEUES); /* the last vector */
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_Q_MSIX, 2), QUEUES);
    rig_set(r, VIRTIO_PCI_COMMON_Q_MSIX, 2, QUEUES + 1);
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_Q_MSIX, 2), 0xffff);
    rig_set(r, VIRTIO_PCI_COMMON_Q_DESCLO, 4, 0x89abcdef);
    rig_set(r, VIRTIO_PCI_COMMON_Q_DESCHI, 4, 0x01234567);
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_Q_DESCLO, 8), 0x0123456789abcdefull);
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_Q_DESCLO + 1, 1), 0xcd); /* a part */
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_STATUS, 4), 1u << 16);   /* several: status, generation, select */
    for (unsigned reg = 0; reg < 64; reg++)
        for (unsigned i = 0; i < 8; i++)
            assert_int_equal(rig_get(r, reg, 8) >> 8 * i & 0xff, reg + i < 64 ? rig_get(r, reg + i, 1) : 0);
    rig_set(r, VIRTIO_PCI_COMMON_Q_SIZE, 1, 3); /* not the register's width */
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_Q_SIZE, 2), QUEUE_SIZE);
    rig_set(r, VIRTIO_PCI_COMMON_Q_SELECT, 2, QUEUES);
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_Q_SIZE, 2), 0);
    rig_set(r, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
    for (unsigned n = 0; n < 0x1000; n += 2) rig_out(r, r->notify_base + n, 2, n); /* nobody listens */
    assert_int_equal(d.notifies, 0);
    echo_free(r, &d);
}

static void test_config(void **state)
{
    (void)state;
    struct echo d;
    struct rig *r = echo_rig(&d, NULL, true);
    start(r, 0);
    assert_int_equal(rig_in(r, r->config, 4), 0x12345678);
    assert_int_equal(rig_in(r, r->config + 1, 2), 0x3456);
    assert_int_equal(rig_in(r, r->config + 100, 4), 0);
    rig_out(r, r->config, 4, 1); /* read-only */
    rig_out(r, r->config + 2, 4, 1);
    assert_int_equal(d.config_len, 0);
    assert_int_equal(rig_in(r, r->config, 4), 0x12345678);
    rig_out(r, r->config + 4, 2, 0xffff);
    assert_int_equal(rig_in(r, r->config + 4, 4), 0xff7f); /* the device had a say */
    assert_int_equal(d.config_off, 4);
    assert_int_equal(d.config_len, 2);
    uint64_t generation = rig_get(r, VIRTIO_PCI_COMMON_CFGGENERATION, 1);
    uint32_t value = 77;
    virtio_config_set(d.virtio, 0, &value, 4);
    assert_int_equal(rig_in(r, r->config, 4), 77);
    assert_int_not_equal(rig_get(r, VIRTIO_PCI_COMMON_CFGGENERATION, 1), generation);
    assert_int_equal(atomic_load(&r->msi[0]), 1);
    echo_free(r, &d);
}

/* The BAR through configuration space. */
static void test_window(void **state)
{
    (void)state;
    struct echo d;
    struct rig *r = echo_rig(&d, NULL, true);
    uint64_t cap = r->ecam + (1u << 15) + r->cfg_cap;
    rig_out(r, cap + VIRTIO_PCI_CAP_BAR, 1, 4);
    rig_out(r, cap + VIRTIO_PCI_CAP_OFFSET, 4, VIRTIO_PCI_COMMON_NUMQ);
    rig_out(r, cap + VIRTIO_PCI_CAP_LENGTH, 4, 2);
    assert_int_equal(rig_in(r, cap + 16, 2), QUEUES);
    rig_out(r, cap + VIRTIO_PCI_CAP_OFFSET, 4, VIRTIO_PCI_COMMON_STATUS);
    rig_out(r, cap + VIRTIO_PCI_CAP_LENGTH, 4, 1);
    rig_out(r, cap + 16, 1, 3);
    assert_int_equal(rig_status(r), 3);
    /* Outside, misaligned, another BAR: nothing, and the VMM lives. */
    static const struct {
        uint32_t bar, off, len;
    } bad[] = {{4, 0x4000, 4}, {4, 0xfffffffc, 4}, {4, 0x3fff, 4}, {4, 1, 2},
               {1, 0, 4},      {4, 0, 0},          {4, 0, 3},      {4, 0, 0x80000000}};
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        rig_out(r, cap + VIRTIO_PCI_CAP_BAR, 1, bad[i].bar);
        rig_out(r, cap + VIRTIO_PCI_CAP_OFFSET, 4, bad[i].off);
        rig_out(r, cap + VIRTIO_PCI_CAP_LENGTH, 4, bad[i].len);
        rig_out(r, cap + 16, 4, 0);
        rig_in(r, cap + 16, 4);
    }
    assert_int_equal(rig_status(r), 3);
    echo_free(r, &d);
}

/* ---- data ---- */

#define FLIGHT 24

struct flight {
    uint64_t in, out, table;
    unsigned len, parts;
    int id;
};

static void send(struct rig *r, struct rig_queue *q, struct flight *f, bool indirect)
{
    struct rig_buffer b[SEGMENTS];
    unsigned parts = 1 + (unsigned)rand() % 3, n = 0;
    f->len = parts * (1 + (unsigned)rand() % 200);
    for (unsigned i = 0; i < f->len; i++) ((uint8_t *)rig_ptr(r, f->out))[i] = (uint8_t)rand();
    memset(rig_ptr(r, f->in), 0, f->len);
    for (unsigned i = 0; i < parts; i++)
        b[n++] = (struct rig_buffer){f->out + f->len / parts * i, f->len / parts, false};
    if (rand() % 4 == 0) b[n++] = (struct rig_buffer){f->out, 0, false}; /* empty buffers are fine */
    for (unsigned i = 0; i < parts; i++) b[n++] = (struct rig_buffer){f->in + f->len / parts * i, f->len / parts, true};
    f->id = rig_add(r, q, b, n, indirect && rand() % 2 ? f->table : 0);
}

static void receive(struct rig *r, struct rig_queue *q, struct flight *f)
{
    uint32_t len;
    int id = rig_used(r, q, &len);
    assert_true(id >= 0);
    for (unsigned i = 0; i < FLIGHT; i++) {
        if (f[i].id != id) continue;
        assert_int_equal(len, f[i].len);
        assert_memory_equal(rig_ptr(r, f[i].in), rig_ptr(r, f[i].out), len);
        f[i].id = -1;
        return;
    }
    fail_msg("a used chain that was not sent");
}

/* Random chains in random batches: what comes back is what was sent, kicks and interrupts come when they must and seldom else. */
static void echo_rounds(uint64_t features, bool keep)
{
    struct echo d;
    struct rig *r = echo_rig(&d, NULL, true);
    struct flight f[FLIGHT];
    struct rig_queue *q = &r->q[1];
    unsigned sent = 0, kicks = 0;
    start(r, features);
    d.keep = keep;
    srand((unsigned)features + keep);
    for (unsigned i = 0; i < FLIGHT; i++)
        f[i] = (struct flight){rig_alloc(r, 1024), rig_alloc(r, 1024), rig_alloc(r, 16 * SEGMENTS), 0, 0, -1};
    for (unsigned round = 0; round < 600; round++) {
        unsigned batch = 1 + (unsigned)rand() % 8, waiting = 0, before = atomic_load(&r->msi[2]);
        uint16_t slots = q->packed ? q->slots : 0;
        bool irq = rand() % 4;
        rig_want_interrupt(r, q, irq);
        for (unsigned i = 0; i < batch; i++) {
            send(r, q, &f[i], features & INDIRECT);
            if (f[i].id < 0) break;
            waiting++;
        }
        assert_true(waiting > 0);
        sent += waiting;
        uint16_t added = q->packed ? (uint16_t)(slots - q->slots) : (uint16_t)waiting;
        assert_true(rig_wants_notify(r, q, added)); /* the device is idle: it must ask */
        rig_kick(r, q);
        kicks++;
        if (keep) {
            assert_int_equal(rig_used(r, q, NULL), -1);
            release(&d);
        }
        assert_int_equal(atomic_load(&r->msi[2]) != before, irq);
        /* One decision for a batch. */
        if (irq && !keep) assert_int_equal(atomic_load(&r->msi[2]), before + 1);
        if (irq && features & EVENT) assert_int_equal(atomic_load(&r->msi[2]), before + 1);
        for (unsigned i = 0; i < waiting; i++) receive(r, q, f);
        assert_int_equal(rig_used(r, q, NULL), -1);
        if (q->packed) {
            assert_int_equal(q->slots, q->size);
        } else {
            assert_int_equal(q->free_count, q->size);
        }
    }
    assert_int_equal(device_counted(&virtio_stats(d.virtio)->requests), sent);
    assert_int_equal(device_counted(&virtio_stats(d.virtio)->notifications), kicks);
    assert_true(r->written > sent);
    assert_int_equal(rig_status(r), 0xf);
    echo_free(r, &d);
}

static void test_echo(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 16; i++)
        echo_rounds((i & 1 ? PACKED : 0) | (i & 2 ? EVENT : 0) | (i & 4 ? INDIRECT : 0), i & 8);
}

/* While chains are being taken no notification is asked for; before an empty ring is left it is. */
static void test_suppression(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        uint64_t features = (i & 1 ? PACKED : 0) | (i & 2 ? EVENT : 0);
        struct echo d;
        struct rig *r = echo_rig(&d, NULL, true);
        start(r, features);
        struct rig_queue *q = &r->q[0];
        struct rig_buffer b = {rig_alloc(r, 64), 64, true};
        struct virtio_queue *dq = virtio_queue(d.virtio, 0);
        virtio_queue_lock(dq);
        rig_add(r, q, &b, 1, 0);
        assert_true(rig_wants_notify(r, q, 1));
        struct virtio_chain *c = virtio_pop(dq);
        assert_non_null(c);
        rig_add(r, q, &b, 1, 0);
        assert_false(rig_wants_notify(r, q, 1));
        struct virtio_chain *c2 = virtio_pop(dq);
        assert_non_null(c2);
        assert_null(virtio_pop(dq));
        rig_add(r, q, &b, 1, 0);
        assert_true(rig_wants_notify(r, q, 1));
        struct virtio_chain *c3 = virtio_pop(dq);
        assert_non_null(c3);
        assert_null(virtio_pop(dq));
        /* Taken back in reverse order, they come again. */
        uint16_t id2 = c2->id;
        virtio_unpop(c3);
        virtio_unpop(c2);
        c2 = virtio_pop(dq);
        assert_int_equal(c2->id, id2);
        c3 = virtio_pop(dq);
        assert_non_null(c3);
        assert_null(virtio_pop(dq));
        virtio_push(c3, 1);
        virtio_push(c, 2);
        assert_int_equal(rig_used(r, q, NULL), -1); /* nothing is seen before the flush */
        virtio_push(c2, 100000);                    /* more than it holds */
        virtio_flush(dq);
        virtio_queue_unlock(dq);
        uint32_t len;
        assert_true(rig_used(r, q, &len) >= 0 && len == 1);
        assert_true(rig_used(r, q, &len) >= 0 && len == 2);
        assert_true(rig_used(r, q, &len) >= 0 && len == 64);
        assert_int_equal(rig_used(r, q, &len), -1);
        echo_free(r, &d);
    }
}

static void stop_loop(void *ctx)
{
    event_loop_stop(ctx);
}

/* A driver on another CPU that adds a buffer for each that comes back: a notification ends all the same, and the loop goes on. */
static void test_endless_driver(void **state)
{
    (void)state;
    struct nerr e;
    struct echo d;
    struct event_loop *loop = event_loop_create(&e);
    struct rig *r = echo_rig(&d, loop, true);
    start(r, EVENT);
    d.endless = r;
    d.endless_left = 5 * QUEUE_SIZE;
    struct rig_buffer b = {r->q[0].desc, 4, false};
    rig_add(r, &r->q[0], &b, 1, 0);
    rig_kick(r, &r->q[0]);
    assert_int_equal(d.endless_left, 3 * QUEUE_SIZE);
    for (int i = 0; i < 4; i++) {
        event_loop_post(loop, stop_loop, loop);
        event_loop_run(loop, &e);
    }
    assert_int_equal(d.endless_left, 0);
    assert_int_equal(device_counted(&virtio_stats(d.virtio)->requests), 5 * QUEUE_SIZE + 1);
    assert_int_equal(device_counted(&virtio_stats(d.virtio)->notifications), 1);
    echo_free(r, &d);
    event_loop_destroy(loop);
}

/* ---- doorbells that do not exit ---- */

static struct bus_ioeventfd bell[QUEUES];
static unsigned bells;

static int add_bell(void *ctx, const struct bus_ioeventfd *io)
{
    (void)ctx;
    if (bells == QUEUES) return -ENOSPC;
    bell[bells++] = *io;
    return 0;
}

static void remove_bell(void *ctx, const struct bus_ioeventfd *io)
{
    (void)ctx;
    assert_true(bells > 0);
    assert_int_equal(bell[0].addr, io->addr);
    memmove(bell, bell + 1, --bells * sizeof(bell[0]));
}

static void test_doorbells(void **state)
{
    (void)state;
    struct nerr e;
    struct echo d;
    uint64_t one = 1;
    struct event_loop *loop = event_loop_create(&e);
    struct rig *r = echo_rig(&d, loop, true);
    uint64_t command = r->ecam + (1u << 15) + 4;
    rig_out(r, command, 2, 4); /* the engine learns to do it while the BAR decodes nothing */
    r->bus.eventfd.add = add_bell;
    r->bus.eventfd.remove = remove_bell;
    rig_out(r, command, 2, 6);
    assert_int_equal(bells, QUEUES);
    start(r, EVENT);
    for (unsigned n = 0; n < QUEUES; n++) {
        assert_int_equal(bell[n].addr, r->q[n].notify); /* an address per queue, whatever is written */
        assert_true(bell[n].any && bell[n].len == 2 && bell[n].space == BUS_MMIO);
    }
    struct rig_buffer b = {rig_alloc(r, 64), 64, true};
    rig_add(r, &r->q[1], &b, 1, 0);
    assert_int_equal(write(bell[1].fd, &one, 8), 8); /* as the engine does when the guest writes */
    for (int i = 0; i < 3; i++) {
        event_loop_post(loop, stop_loop, loop);
        event_loop_run(loop, &e);
    }
    assert_true(rig_used(r, &r->q[1], NULL) >= 0);
    assert_int_equal(device_counted(&virtio_stats(d.virtio)->notifications), 1);
    rig_out(r, command, 2, 4);
    assert_int_equal(bells, 0);
    rig_out(r, command, 2, 6);
    assert_int_equal(bells, QUEUES);
    release(&d);
    virtio_destroy(d.virtio);
    assert_int_equal(bells, 0);
    rig_free(r);
    event_loop_destroy(loop);
}

/* ---- interrupts without MSI-X ---- */

static void test_intx(void **state)
{
    (void)state;
    struct echo d;
    struct rig *r = echo_rig(&d, NULL, false);
    start(r, 0);
    struct rig_buffer b = {rig_alloc(r, 64), 64, true};
    rig_add(r, &r->q[0], &b, 1, 0);
    rig_kick(r, &r->q[0]);
    assert_true(atomic_load(&r->line));
    assert_int_equal(rig_in(r, r->isr, 1), 1);
    assert_false(atomic_load(&r->line));
    assert_int_equal(rig_in(r, r->isr, 1), 0);
    uint32_t v = 1;
    virtio_config_set(d.virtio, 0, &v, 4);
    assert_true(atomic_load(&r->line));
    assert_int_equal(rig_in(r, r->isr, 1), 2);
    virtio_config_set(d.virtio, 0, &v, 4);
    rig_set(r, VIRTIO_PCI_COMMON_STATUS, 1, 0);
    assert_false(atomic_load(&r->line));
    echo_free(r, &d);
}

/* ---- reset ---- */

static void test_reset_in_flight(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct echo d;
        struct rig *r = echo_rig(&d, NULL, true);
        start(r, i ? PACKED : 0);
        d.keep = true;
        uint64_t out = rig_alloc(r, 8), in = rig_alloc(r, 8);
        memcpy(rig_ptr(r, out), "written", 8);
        struct rig_buffer b[2] = {{out, 8, false}, {in, 8, true}};
        rig_add(r, &r->q[0], b, 2, 0);
        rig_kick(r, &r->q[0]);
        assert_int_equal(d.keeps, 1);
        struct rig_queue before = r->q[0];
        unsigned resets = d.resets;
        rig_set(r, VIRTIO_PCI_COMMON_STATUS, 1, 0);
        assert_int_equal(d.resets, resets + 1);
        assert_int_not_equal(rig_status(r), 0); /* the back end may still write */
        rig_set(r, VIRTIO_PCI_COMMON_STATUS, 1, 1);
        rig_set(r, VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
        rig_set(r, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1); /* not now */
        assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
        release(&d);
        assert_int_equal(rig_status(r), 0);
        assert_int_equal(rig_used(r, &before, NULL), -1); /* nothing in the ring after a reset */
        assert_int_equal(atomic_load(&r->msi[1]), 0);
        /* And it works again. */
        d.keep = false;
        start(r, i ? PACKED : 0);
        rig_add(r, &r->q[0], b, 2, 0);
        rig_kick(r, &r->q[0]);
        assert_true(rig_used(r, &r->q[0], NULL) >= 0);
        assert_string_equal(rig_ptr(r, in), "written");
        echo_free(r, &d);
    }
}

static void test_machine_reset(void **state)
{
    (void)state;
    struct echo d;
    struct rig *r = echo_rig(&d, NULL, true);
    start(r, EVENT);
    d.keep = true;
    struct rig_buffer b = {rig_alloc(r, 8), 8, true};
    rig_add(r, &r->q[0], &b, 1, 0);
    rig_kick(r, &r->q[0]);
    assert_int_equal(d.keeps, 1);
    pci_bus_reset(r->pci); /* drains */
    assert_int_equal(d.keeps, 0);
    rig_probe(r, true);
    assert_int_equal(rig_status(r), 0);
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_MSIX, 2), 0xffff);
    echo_free(r, &d);
}

static void test_queue_reset(void **state)
{
    (void)state;
    struct echo d;
    struct rig *r = echo_rig(&d, NULL, true);
    uint64_t features = RING_RESET | EVENT;
    start(r, features);
    d.keep = true;
    struct rig_buffer b = {rig_alloc(r, 8), 8, true};
    rig_add(r, &r->q[0], &b, 1, 0);
    rig_add(r, &r->q[1], &b, 1, 0);
    rig_kick(r, &r->q[0]);
    rig_kick(r, &r->q[1]);
    rig_set(r, VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
    rig_set(r, 58, 2, 1);
    assert_int_equal(d.queue_resets, 1);
    assert_int_equal(rig_get(r, 58, 2), 1);
    assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
    release(&d);
    assert_int_equal(rig_get(r, 58, 2), 0);
    assert_true(rig_used(r, &r->q[1], NULL) >= 0); /* the other one was left alone */
    d.keep = false;
    rig_queue_setup(r, 0, 16, features);
    rig_add(r, &r->q[0], &b, 1, 0);
    rig_kick(r, &r->q[0]);
    assert_true(rig_used(r, &r->q[0], NULL) >= 0);
    assert_int_equal(rig_status(r), 0xf);
    echo_free(r, &d);
}

/* ---- drivers that break the rules ---- */

enum damage {
    OUTSIDE_RAM,
    WRAPS,
    READ_AFTER_WRITE,
    TOO_MANY,
    BAD_NEXT,
    LOOP,
    INDIRECT_TWICE,
    INDIRECT_NEXT,
    INDIRECT_LENGTH,
    INDIRECT_OUTSIDE,
    INDIRECT_LOOP,
    BAD_HEAD,
    BAD_INDEX,
    TOO_LONG,
    DAMAGES
};

static void break_split(struct rig *r, struct rig_queue *q, enum damage what)
{
    uint64_t buf = rig_alloc(r, 64), table = rig_alloc(r, 16 * 64);
    struct vring_desc d[SEGMENTS + 2] = {{buf, 64, 0, 0}};
    unsigned n = 1, head = 0, idx = 1;
    switch (what) {
    case OUTSIDE_RAM: d[0].addr = RIG_MEMORY - 32; break;
    case WRAPS: d[0].addr = UINT64_MAX - 8; break;
    case READ_AFTER_WRITE:
        d[0] = (struct vring_desc){buf, 8, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1};
        d[n++] = (struct vring_desc){buf, 8, 0, 0};
        break;
    case TOO_MANY:
        for (n = 0; n <= SEGMENTS; n++) d[n] = (struct vring_desc){buf, 1, VRING_DESC_F_NEXT, (uint16_t)(n + 1)};
        d[n - 1].flags = 0;
        break;
    case BAD_NEXT: d[0] = (struct vring_desc){buf, 8, VRING_DESC_F_NEXT, QUEUE_SIZE}; break;
    case LOOP: d[0] = (struct vring_desc){buf, 0, VRING_DESC_F_NEXT, 0}; break;
    case INDIRECT_TWICE:
        d[0] = (struct vring_desc){table, 16, VRING_DESC_F_INDIRECT, 0};
        rig_store_desc(r, table, (struct vring_desc){table, 16, VRING_DESC_F_INDIRECT, 0});
        break;
    case INDIRECT_NEXT: d[0] = (struct vring_desc){table, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 1}; break;
    case INDIRECT_LENGTH: d[0] = (struct vring_desc){table, 24, VRING_DESC_F_INDIRECT, 0}; break;
    case INDIRECT_OUTSIDE: d[0] = (struct vring_desc){RIG_MEMORY - 16, 32, VRING_DESC_F_INDIRECT, 0}; break;
    case INDIRECT_LOOP:
        d[0] = (struct vring_desc){table, 0x3ffff0, VRING_DESC_F_INDIRECT, 0};
        d[0].len = 32;
        rig_store_desc(r, table, (struct vring_desc){buf, 0, VRING_DESC_F_NEXT, 1});
        rig_store_desc(r, table + 16, (struct vring_desc){buf, 0, VRING_DESC_F_NEXT, 0});
        break;
    case BAD_HEAD: head = QUEUE_SIZE; break;
    case BAD_INDEX: idx = QUEUE_SIZE + 1; break;
    default:
        d[0] = (struct vring_desc){0, (uint32_t)RIG_MEMORY, VRING_DESC_F_INDIRECT, 0};
        memset(rig_ptr(r, 0), 0, 4096); /* 262144 empty entries, but for what else lies in memory */
        rig_store_desc(r, 0, (struct vring_desc){buf, 0, VRING_DESC_F_NEXT, 0});
    }
    for (unsigned i = 0; i < n; i++) rig_store_desc(r, q->desc + 16 * i, d[i]);
    rig_store(r, q->driver + 4, (uint16_t)head);
    rig_store(r, q->driver + 2, (uint16_t)idx);
}

static void break_packed(struct rig *r, struct rig_queue *q, enum damage what)
{
    uint64_t buf = rig_alloc(r, 64), table = rig_alloc(r, 16 * 64);
    uint16_t avail = 1u << VRING_PACKED_DESC_F_AVAIL;
    struct vring_packed_desc d[QUEUE_SIZE] = {{buf, 64, 0, avail}};
    unsigned n = 1;
    switch (what) {
    case WRAPS: d[0].addr = UINT64_MAX - 8; break;
    case READ_AFTER_WRITE:
        d[0].flags |= VRING_DESC_F_WRITE | VRING_DESC_F_NEXT;
        d[n++] = (struct vring_packed_desc){buf, 8, 0, avail};
        break;
    case TOO_MANY:
        for (n = 0; n <= SEGMENTS; n++) d[n] = (struct vring_packed_desc){buf, 1, 0, avail | VRING_DESC_F_NEXT};
        d[n - 1].flags = avail;
        break;
    case LOOP:
        for (n = 0; n < QUEUE_SIZE; n++) d[n] = (struct vring_packed_desc){buf, 0, 0, avail | VRING_DESC_F_NEXT};
        break;
    case INDIRECT_TWICE:
        d[0] = (struct vring_packed_desc){table, 16, 0, avail | VRING_DESC_F_INDIRECT};
        rig_store_desc(r, table, (struct vring_desc){table, 16, 0, VRING_DESC_F_INDIRECT});
        break;
    case INDIRECT_NEXT:
        d[0] = (struct vring_packed_desc){table, 16, 0, avail | VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT};
        break;
    case INDIRECT_LENGTH: d[0] = (struct vring_packed_desc){table, 0, 0, avail | VRING_DESC_F_INDIRECT}; break;
    case INDIRECT_OUTSIDE: d[0] = (struct vring_packed_desc){RIG_MEMORY, 16, 0, avail | VRING_DESC_F_INDIRECT}; break;
    case TOO_LONG: d[0] = (struct vring_packed_desc){0, (uint32_t)RIG_MEMORY, 0, avail | VRING_DESC_F_INDIRECT}; break;
    default: d[0].addr = RIG_MEMORY - 32;
    }
    for (unsigned i = 0; i < n; i++) memcpy(rig_ptr(r, q->desc + 16 * i), &d[i], 16);
}

static void test_broken(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct echo d;
        struct rig *r = echo_rig(&d, NULL, true);
        uint64_t features = INDIRECT | (packed ? PACKED : 0), keep = r->alloc;
        for (unsigned what = 0; what < DAMAGES; what++) {
            unsigned before = atomic_load(&r->msi[0]);
            r->alloc = keep;
            start(r, features);
            (packed ? break_packed : break_split)(r, &r->q[0], (enum damage)what);
            rig_kick(r, &r->q[0]);
            if (rig_status(r) != (0xf | VIRTIO_CONFIG_S_NEEDS_RESET))
                fail_msg("damage %u, packed %u: no reset is asked for", what, packed);
            assert_int_equal(atomic_load(&r->msi[0]), before + 1);
            assert_int_equal(rig_used(r, &r->q[0], NULL), -1);
            /* All of the device stands still until then. */
            struct rig_buffer b = {rig_alloc(r, 8), 8, true};
            rig_add(r, &r->q[1], &b, 1, 0);
            rig_kick(r, &r->q[1]);
            assert_int_equal(rig_used(r, &r->q[1], NULL), -1);
            start(r, features);
            rig_add(r, &r->q[1], &b, 1, 0);
            rig_kick(r, &r->q[1]);
            assert_true(rig_used(r, &r->q[1], NULL) >= 0);
        }
        echo_free(r, &d);
    }
}

static void test_bad_rings(void **state)
{
    (void)state;
    struct echo d;
    struct rig *r = echo_rig(&d, NULL, true);
    static const struct {
        uint64_t desc, driver, device;
        unsigned size;
    } bad[] = {
        {RIG_MEMORY - 16, 0x1000, 0x2000, 64}, {0x1000, RIG_MEMORY, 0x2000, 64},   {0x1000, 0x2000, RIG_MEMORY - 4, 64},
        {0x1008, 0x2000, 0x3000, 64},          {0x1000, 0x2001, 0x3000, 64},       {0x1000, 0x2000, 0x3002, 64},
        {0x1000, 0x2000, 0x3000, 0},           {0x1000, 0x2000, 0x3000, 48},       {0x1000, 0x2000, 0x3000, 128},
        {~0ull & ~15ull, 0x2000, 0x3000, 64},  {0x1000, ~0ull & ~1ull, 0x3000, 64}};
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_true(rig_negotiate(r, VERSION_1));
        rig_set(r, VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
        rig_set(r, VIRTIO_PCI_COMMON_Q_SIZE, 2, bad[i].size);
        rig_set(r, VIRTIO_PCI_COMMON_Q_DESCLO, 8, bad[i].desc);
        rig_set(r, VIRTIO_PCI_COMMON_Q_AVAILLO, 8, bad[i].driver);
        rig_set(r, VIRTIO_PCI_COMMON_Q_USEDLO, 8, bad[i].device);
        rig_set(r, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
        assert_int_equal(rig_get(r, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
        assert_true(rig_status(r) & VIRTIO_CONFIG_S_NEEDS_RESET);
    }
    echo_free(r, &d);
}

/* Without bus mastering a device reaches no memory. */
static void test_no_master(void **state)
{
    (void)state;
    struct echo d;
    struct rig *r = echo_rig(&d, NULL, true);
    start(r, 0);
    struct rig_buffer b = {rig_alloc(r, 8), 8, true};
    rig_out(r, r->ecam + (1u << 15) + 4, 2, 2);
    rig_add(r, &r->q[0], &b, 1, 0);
    rig_kick(r, &r->q[0]);
    assert_int_equal(rig_used(r, &r->q[0], NULL), -1);
    rig_out(r, r->ecam + (1u << 15) + 4, 2, 6);
    rig_kick(r, &r->q[0]);
    assert_true(rig_used(r, &r->q[0], NULL) >= 0);
    echo_free(r, &d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_features),
        cmocka_unit_test(test_registers),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_echo),
        cmocka_unit_test(test_suppression),
        cmocka_unit_test(test_endless_driver),
        cmocka_unit_test(test_intx),
        cmocka_unit_test(test_reset_in_flight),
        cmocka_unit_test(test_machine_reset),
        cmocka_unit_test(test_queue_reset),
        cmocka_unit_test(test_broken),
        cmocka_unit_test(test_bad_rings),
        cmocka_unit_test(test_no_master),
        cmocka_unit_test(test_doorbells),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
