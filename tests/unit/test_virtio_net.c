/* The virtio network device, seen by a driver in miniature; behind it a tap that is a socket pair. */
#include "tests/unit/virtio_rig.h"

#include <pthread.h>

#include <linux/virtio_net.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/event.h"
#include "vmm/backend/offload.h"
#include "vmm/virtio/net.h"

#define VERSION_1 VIRTIO_BIT(VIRTIO_F_VERSION_1)
#define BIT(name) VIRTIO_BIT(VIRTIO_NET_F_##name)
#define USUAL                                                                                              \
    (VERSION_1 | BIT(MAC) | BIT(STATUS) | BIT(CSUM) | BIT(GUEST_CSUM) | BIT(HOST_TSO4) | BIT(GUEST_TSO4) | \
     BIT(MRG_RXBUF) | BIT(CTRL_VQ) | BIT(CTRL_RX) | BIT(CTRL_MAC_ADDR) | BIT(CTRL_GUEST_OFFLOADS) |        \
     BIT(GUEST_ANNOUNCE))
#define HEADER sizeof(struct net_header)

struct fixture {
    struct rig *r;
    struct event_loop *loop;
    pthread_t thread;
    struct virtio_net *v;
    int peer;
    uint64_t buffers; /* GPA */
};

static void *loop_main(void *arg)
{
    struct nerr e;
    event_loop_run(arg, &e);
    return NULL;
}

static struct fixture make(unsigned pairs, const struct net_limits *limits)
{
    struct nerr e;
    struct fixture t = {.r = rig_new(), .loop = event_loop_create(&e)};
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    struct virtio_net_options o = {.name = "net0",
                                   .mac = {2, 0, 0, 0, 0, 1},
                                   .pairs = pairs,
                                   .net = {.kind = NET_TAP, .tap = {.by_fd = true, .fd = pair[0]}}};
    if (limits) o.net.limits = *limits;
    if (virtio_net_create(t.r->pci, -1, &o, t.loop, &t.v, &e)) fail_msg("%s", e.text);
    t.peer = pair[1];
    pthread_create(&t.thread, NULL, loop_main, t.loop);
    rig_probe(t.r, true);
    return t;
}

static void end(struct fixture *t)
{
    event_loop_stop(t->loop);
    pthread_join(t->thread, NULL);
    virtio_net_destroy(t->v);
    event_loop_destroy(t->loop);
    rig_free(t->r);
    close(t->peer);
}

static void start(struct fixture *t, uint64_t features, unsigned queues, unsigned size)
{
    assert_true(rig_negotiate(t->r, features));
    for (unsigned i = 0; i < queues; i++) rig_queue_setup(t->r, i, size, features);
    rig_go(t->r);
    t->buffers = rig_alloc(t->r, 1 << 20);
}

static int give_buffer(struct fixture *t, unsigned queue, unsigned i, uint32_t len)
{
    struct rig_buffer b = {t->buffers + i * 4096ull, len, true};
    return rig_add(t->r, &t->r->q[queue], &b, 1, 0);
}

static void fill(uint8_t *p, size_t n, unsigned seed)
{
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)(seed + i * 3);
}

static void peer_send(struct fixture *t, const struct net_header *h, const uint8_t *frame, size_t n)
{
    uint8_t b[70000];
    memcpy(b, h, HEADER);
    memcpy(b + HEADER, frame, n);
    assert_int_equal(send(t->peer, b, HEADER + n, 0), HEADER + n);
}

static void send_frame(struct fixture *t, unsigned queue, const struct net_header *h, const uint8_t *frame, size_t n,
                       bool indirect)
{
    uint64_t a = t->buffers + (512 << 10), table = t->buffers + (900 << 10);
    memcpy(rig_ptr(t->r, a), h, HEADER);
    memcpy(rig_ptr(t->r, a + HEADER), frame, n);
    /* Header and frame in one, split in odd places. */
    struct rig_buffer b[3] = {
        {a, 5, false}, {a + 5, (uint32_t)HEADER, false}, {a + 5 + HEADER, (uint32_t)n - 5, false}};
    assert_true(rig_add(t->r, &t->r->q[queue], b, 3, indirect ? table : 0) >= 0);
    rig_kick(t->r, &t->r->q[queue]);
}

static void transmit(uint64_t features)
{
    struct fixture t = make(1, NULL);
    uint8_t frame[3000], got[70000];
    start(&t, features, 3, 64);
    for (int i = 0; i < 200; i++) {
        fill(frame, sizeof frame, (unsigned)i);
        struct net_header h = {.flags = 1 | 0x80,
                               .gso_type = NET_GSO_TCPV4,
                               .hdr_len = 54,
                               .gso_size = 1460,
                               .csum_start = 34,
                               .csum_offset = 16,
                               .num_buffers = 99};
        send_frame(&t, 1, &h, frame, 100 + (size_t)i * 10, features & VIRTIO_BIT(VIRTIO_RING_F_INDIRECT_DESC));
        assert_int_equal(recv(t.peer, got, sizeof got, 0), HEADER + 100 + i * 10);
        h.flags = 1; /* only what is defined goes on */
        h.num_buffers = 0;
        assert_memory_equal(got, &h, HEADER);
        assert_memory_equal(got + HEADER, frame, 100 + (size_t)i * 10);
        rig_wait_used(t.r, &t.r->q[1], NULL);
    }
    assert_true(atomic_load(&t.r->msi[2]) > 0);
    struct net_stats s;
    net_get_stats(virtio_net_backend(t.v), &s);
    assert_int_equal(s.frames[1], 200);
    end(&t);
}

static void test_transmit(void **state)
{
    (void)state;
    transmit(USUAL);
    transmit(USUAL | VIRTIO_BIT(VIRTIO_F_RING_PACKED) | VIRTIO_BIT(VIRTIO_RING_F_EVENT_IDX));
    transmit(USUAL | VIRTIO_BIT(VIRTIO_RING_F_INDIRECT_DESC));
}

/* What the driver may not ask for is not sent; nothing breaks. */
static void test_bad_transmit(void **state)
{
    (void)state;
    struct fixture t = make(1, NULL);
    uint8_t frame[200] = {0}, got[1000];
    start(&t, VERSION_1 | BIT(MAC), 2, 64);
    struct net_header h = {.gso_type = NET_GSO_TCPV4, .gso_size = 100, .flags = 1};
    send_frame(&t, 1, &h, frame, 100, false); /* segmentation that was not negotiated */
    rig_wait_used(t.r, &t.r->q[1], NULL);
    h = (struct net_header){.flags = 1, .csum_start = 3};
    send_frame(&t, 1, &h, frame, 100, false); /* a checksum that was not: the flag is dropped */
    assert_int_equal(recv(t.peer, got, sizeof got, 0), HEADER + 100);
    assert_int_equal(((struct net_header *)got)->flags, 0);
    rig_wait_used(t.r, &t.r->q[1], NULL);
    struct rig_buffer shorter = {t.buffers, 5, false};
    assert_true(rig_add(t.r, &t.r->q[1], &shorter, 1, 0) >= 0);
    struct rig_buffer wrong = {t.buffers, 100, true};
    assert_true(rig_add(t.r, &t.r->q[1], &wrong, 1, 0) >= 0);
    rig_kick(t.r, &t.r->q[1]);
    rig_wait_used(t.r, &t.r->q[1], NULL);
    rig_wait_used(t.r, &t.r->q[1], NULL);
    assert_int_equal(recv(t.peer, got, sizeof got, MSG_DONTWAIT), -1);
    send_frame(&t, 1, &(struct net_header){0}, frame, 100, false);
    assert_int_equal(recv(t.peer, got, sizeof got, 0), HEADER + 100);
    end(&t);
}

static void receive(uint64_t features)
{
    struct fixture t = make(1, NULL);
    uint8_t frame[20000];
    start(&t, features, 3, 64);
    unsigned next = 0;
    for (unsigned i = 0; i < 40; i++) assert_true(give_buffer(&t, 0, i, 1500) >= 0);
    rig_kick(t.r, &t.r->q[0]);
    static const size_t sizes[] = {60, 1487, 1488, 1489, 1500, 4000, 20000};
    for (unsigned i = 0; i < 7; i++) {
        fill(frame, sizes[i], i);
        struct net_header h = {.flags = NET_HDR_NEEDS_CSUM,
                               .gso_type = sizes[i] > 1514 ? 1 : 0,
                               .gso_size = 1460,
                               .csum_start = 34,
                               .csum_offset = 16};
        peer_send(&t, &h, frame, sizes[i]);
        size_t at = 0;
        unsigned count = 0, want = 0;
        do {
            uint32_t len;
            rig_wait_used(t.r, &t.r->q[0], &len);
            const uint8_t *p = rig_ptr(t.r, t.buffers + next++ * 4096ull);
            if (!count) {
                struct net_header got;
                memcpy(&got, p, HEADER);
                want = got.num_buffers;
                assert_int_equal(want, (sizes[i] + HEADER + 1499) / 1500);
                got.num_buffers = 0;
                assert_memory_equal(&got, &h, HEADER);
                p += HEADER;
                len -= (uint32_t)HEADER;
            }
            assert_memory_equal(p, frame + at, len);
            at += len;
        } while (++count < want);
        assert_int_equal(at, sizes[i]);
    }
    end(&t);
}

static void test_receive(void **state)
{
    (void)state;
    receive(USUAL);
    receive(USUAL | VIRTIO_BIT(VIRTIO_F_RING_PACKED));
    receive(USUAL | VIRTIO_BIT(VIRTIO_RING_F_EVENT_IDX));
}

/* Frames wait for buffers, and for the driver to begin with; without mergeable buffers one that doesn't fit is lost. */
static void test_no_buffers(void **state)
{
    (void)state;
    struct fixture t = make(1, NULL);
    uint8_t frame[3000];
    struct net_header h = {0};
    uint32_t len;
    start(&t, VERSION_1 | BIT(MAC), 2, 64);
    fill(frame, sizeof frame, 1);
    for (unsigned i = 0; i < 5; i++) {
        frame[12] = (uint8_t)i;
        peer_send(&t, &h, frame, 100);
    }
    usleep(30000);
    assert_int_equal(rig_used(t.r, &t.r->q[0], NULL), -1);
    for (unsigned i = 0; i < 3; i++) assert_true(give_buffer(&t, 0, i, 1000) >= 0);
    rig_kick(t.r, &t.r->q[0]);
    for (unsigned i = 0; i < 3; i++) {
        rig_wait_used(t.r, &t.r->q[0], &len);
        assert_int_equal(len, HEADER + 100);
        assert_int_equal(((uint8_t *)rig_ptr(t.r, t.buffers + i * 4096ull))[HEADER + 12], i);
        assert_int_equal(((struct net_header *)rig_ptr(t.r, t.buffers + i * 4096ull))->num_buffers, 1);
    }
    for (unsigned i = 3; i < 8; i++) assert_true(give_buffer(&t, 0, i, 1000) >= 0);
    rig_kick(t.r, &t.r->q[0]);
    for (unsigned i = 3; i < 5; i++) rig_wait_used(t.r, &t.r->q[0], &len);
    peer_send(&t, &h, frame, 2000); /* too large: its buffer comes back empty */
    rig_wait_used(t.r, &t.r->q[0], &len);
    assert_int_equal(len, 0);
    peer_send(&t, &h, frame, 200);
    rig_wait_used(t.r, &t.r->q[0], &len);
    assert_int_equal(len, HEADER + 200);
    end(&t);
}

/* A receive buffer without room for the header breaks the device; a reset mends it. */
static void test_small_buffer(void **state)
{
    (void)state;
    struct fixture t = make(1, NULL);
    uint8_t frame[100] = {0};
    start(&t, USUAL, 3, 64);
    assert_true(give_buffer(&t, 0, 0, 8) >= 0);
    assert_true(give_buffer(&t, 0, 1, 2000) >= 0);
    rig_kick(t.r, &t.r->q[0]);
    peer_send(&t, &(struct net_header){0}, frame, sizeof frame);
    for (int i = 0; i < 4000 && !(rig_status(t.r) & VIRTIO_CONFIG_S_NEEDS_RESET); i++) usleep(500);
    assert_true(rig_status(t.r) & VIRTIO_CONFIG_S_NEEDS_RESET);
    start(&t, USUAL, 3, 64);
    assert_true(give_buffer(&t, 0, 0, 2000) >= 0);
    rig_kick(t.r, &t.r->q[0]);
    peer_send(&t, &(struct net_header){0}, frame, sizeof frame);
    rig_wait_used(t.r, &t.r->q[0], NULL);
    end(&t);
}

static uint8_t control(struct fixture *t, unsigned queue, uint8_t class, uint8_t command, const void *data, size_t n)
{
    uint64_t a = t->buffers + (800 << 10);
    uint8_t *p = rig_ptr(t->r, a);
    p[0] = class, p[1] = command, p[2] = 0x55;
    if (n) memcpy(p + 16, data, n);
    struct rig_buffer b[3] = {{a, 2, false}, {a + 16, (uint32_t)n, false}, {a + 2, 1, true}};
    if (!n) b[1] = b[2];
    assert_true(rig_add(t->r, &t->r->q[queue], b, n ? 3 : 2, 0) >= 0);
    rig_kick(t->r, &t->r->q[queue]);
    rig_wait_used(t->r, &t->r->q[queue], NULL);
    return p[2];
}

static bool comes_in(struct fixture *t, const char *to)
{
    static unsigned next;
    uint8_t frame[100] = {0};
    memcpy(frame, to, 6);
    frame[20] = 0;
    assert_true(give_buffer(t, 0, next % 64, 2000) >= 0);
    rig_kick(t->r, &t->r->q[0]);
    peer_send(t, &(struct net_header){0}, frame, sizeof frame);
    /* A broadcast behind it always comes: whether one or two have come says it all. */
    memset(frame, 0xff, 6);
    frame[20] = 1;
    assert_true(give_buffer(t, 0, (next + 1) % 64, 2000) >= 0);
    rig_kick(t->r, &t->r->q[0]);
    peer_send(t, &(struct net_header){0}, frame, sizeof frame);
    unsigned at = next % 64;
    rig_wait_used(t->r, &t->r->q[0], NULL);
    bool came = ((uint8_t *)rig_ptr(t->r, t->buffers + at * 4096ull))[HEADER + 20] == 0;
    if (came) {
        rig_wait_used(t->r, &t->r->q[0], NULL);
        next += 2;
    } else { /* the other buffer stays: use it up */
        peer_send(t, &(struct net_header){0}, frame, sizeof frame);
        rig_wait_used(t->r, &t->r->q[0], NULL);
        next += 2;
    }
    return came;
}

static void test_filter(void **state)
{
    (void)state;
    struct fixture t = make(1, NULL);
    uint8_t on = 1, off = 0;
    start(&t, USUAL, 3, 64);
    assert_true(comes_in(&t, "\x02\0\0\0\0\x09")); /* everything until the driver says otherwise */
    assert_int_equal(control(&t, 2, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, &off, 1), VIRTIO_NET_OK);
    assert_true(comes_in(&t, "\x02\0\0\0\0\x01"));
    assert_false(comes_in(&t, "\x02\0\0\0\0\x09"));
    assert_false(comes_in(&t, "\x33\x33\0\0\0\x01"));
    assert_int_equal(control(&t, 2, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, &on, 1), VIRTIO_NET_OK);
    assert_true(comes_in(&t, "\x33\x33\0\0\0\x01"));
    assert_int_equal(control(&t, 2, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, &off, 1), VIRTIO_NET_OK);
    /* One unicast and one multicast address in tables. */
    static const uint8_t tables[] = {1, 0, 0, 0, 2, 0, 0, 0, 0, 9, 1, 0, 0, 0, 0x33, 0x33, 0, 0, 0, 1};
    assert_int_equal(control(&t, 2, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, tables, sizeof tables),
                     VIRTIO_NET_OK);
    assert_true(comes_in(&t, "\x02\0\0\0\0\x09"));
    assert_true(comes_in(&t, "\x33\x33\0\0\0\x01"));
    assert_false(comes_in(&t, "\x33\x33\0\0\0\x02"));
    /* Tables that promise more than there is change nothing. */
    assert_int_equal(control(&t, 2, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, tables, 12), VIRTIO_NET_ERR);
    assert_int_equal(control(&t, 2, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, "\xff\xff\xff\xff", 4),
                     VIRTIO_NET_ERR);
    assert_true(comes_in(&t, "\x02\0\0\0\0\x09"));
    /* A table too long for the device opens it, and the next one closes it again. */
    uint8_t many[4 + 65 * 6 + 4] = {65};
    assert_int_equal(control(&t, 2, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, many, sizeof many),
                     VIRTIO_NET_OK);
    assert_true(comes_in(&t, "\x02\0\0\0\0\x0b"));
    assert_int_equal(control(&t, 2, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, tables, sizeof tables),
                     VIRTIO_NET_OK);
    assert_false(comes_in(&t, "\x02\0\0\0\0\x0b"));
    assert_true(comes_in(&t, "\x02\0\0\0\0\x09"));
    /* A new address. */
    uint8_t mac[6];
    assert_int_equal(control(&t, 2, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, "\x02\0\0\0\0\x07", 6),
                     VIRTIO_NET_OK);
    assert_true(comes_in(&t, "\x02\0\0\0\0\x07"));
    assert_false(comes_in(&t, "\x02\0\0\0\0\x01"));
    for (unsigned i = 0; i < 6; i++) mac[i] = (uint8_t)rig_in(t.r, t.r->config + i, 1);
    assert_memory_equal(mac, "\x02\0\0\0\0\x07", 6);
    assert_int_equal(control(&t, 2, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, "\x03\0\0\0\0\x07", 6),
                     VIRTIO_NET_ERR);
    assert_int_equal(control(&t, 2, 77, 0, &on, 1), VIRTIO_NET_ERR);
    assert_int_equal(control(&t, 2, VIRTIO_NET_CTRL_RX, 0, NULL, 0), VIRTIO_NET_ERR);
    uint64_t offloads = BIT(GUEST_CSUM);
    assert_int_equal(control(&t, 2, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &offloads, 8), VIRTIO_NET_OK);
    offloads = BIT(GUEST_UFO);
    assert_int_equal(control(&t, 2, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &offloads, 8), VIRTIO_NET_ERR);
    end(&t);
}

static void test_link(void **state)
{
    (void)state;
    struct fixture t = make(1, NULL);
    start(&t, USUAL, 3, 64);
    assert_int_equal(rig_in(t.r, t.r->config + 6, 2), VIRTIO_NET_S_LINK_UP);
    unsigned before = atomic_load(&t.r->msi[0]);
    net_set_link(virtio_net_backend(t.v), false);
    assert_int_equal(rig_in(t.r, t.r->config + 6, 2), 0);
    assert_int_equal(atomic_load(&t.r->msi[0]), before + 1);
    net_set_link(virtio_net_backend(t.v), true);
    assert_int_equal(rig_in(t.r, t.r->config + 6, 2), VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE);
    assert_int_equal(atomic_load(&t.r->msi[0]), before + 2);
    assert_int_equal(control(&t, 2, VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, NULL, 0), VIRTIO_NET_OK);
    assert_int_equal(rig_in(t.r, t.r->config + 6, 2), VIRTIO_NET_S_LINK_UP);
    assert_int_equal(rig_in(t.r, t.r->config + 10, 2), 1500);
    end(&t);
}

/* Several pairs: an answer comes in where its flow goes out. */
static void test_pairs(void **state)
{
    (void)state;
    struct fixture t = make(4, NULL);
    uint64_t features = USUAL | BIT(MQ);
    uint8_t frame[100] = {0}, answer[100] = {0}, got[1000];
    uint16_t pairs = 4, none = 0, many = 5;
    start(&t, features, 9, 16);
    assert_int_equal(rig_in(t.r, t.r->config + 8, 2), 4);
    for (unsigned q = 0; q < 4; q++) {
        for (unsigned i = 0; i < 8; i++) assert_true(give_buffer(&t, q * 2, q * 16 + i, 2000) >= 0);
        rig_kick(t.r, &t.r->q[q * 2]);
    }
    assert_int_equal(control(&t, 8, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &none, 2), VIRTIO_NET_ERR);
    assert_int_equal(control(&t, 8, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &many, 2), VIRTIO_NET_ERR);
    assert_int_equal(control(&t, 8, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &pairs, 2), VIRTIO_NET_OK);
    for (unsigned pair = 0; pair < 4; pair++) {
        memcpy(frame, "\x02\0\0\0\0\x05\x02\0\0\0\0\x01\x08\x00\x45", 15);
        frame[23] = 6;
        memcpy(frame + 26, "\x0a\0\x02\x0f\x0a\0\x02\x02", 8);
        frame[34] = (uint8_t)(40 + pair), frame[37] = 80;
        send_frame(&t, pair * 2 + 1, &(struct net_header){0}, frame, sizeof frame, false);
        assert_int_equal(recv(t.peer, got, sizeof got, 0), HEADER + sizeof frame);
        memcpy(answer, frame, sizeof frame);
        memcpy(answer, "\x02\0\0\0\0\x01", 6);
        memcpy(answer + 26, frame + 30, 4);
        memcpy(answer + 30, frame + 26, 4);
        memcpy(answer + 34, frame + 36, 2);
        memcpy(answer + 36, frame + 34, 2);
        peer_send(&t, &(struct net_header){0}, answer, sizeof answer);
        rig_wait_used(t.r, &t.r->q[pair * 2], NULL);
    }
    end(&t);
}

/* A limit holds the ring up, and lets it go on by itself. */
static void test_limited(void **state)
{
    (void)state;
    struct fixture t = make(1, &(struct net_limits){.avg_out = 4000000});
    uint8_t frame[1514] = {0}, got[2000];
    start(&t, USUAL, 3, 64);
    for (int i = 0; i < 30; i++) {
        frame[20] = (uint8_t)i;
        send_frame(&t, 1, &(struct net_header){0}, frame, sizeof frame, false);
        /* The frame's memory is used again: wait until it has been read. */
        assert_int_equal(recv(t.peer, got, sizeof got, 0), HEADER + sizeof frame);
        assert_int_equal(got[HEADER + 20], i);
        rig_wait_used(t.r, &t.r->q[1], NULL);
    }
    struct net_stats s;
    net_get_stats(virtio_net_backend(t.v), &s);
    assert_true(s.throttled_ns[1] > 10000000);
    end(&t);
}

/* A frame that waits for a limit when the driver is reset is not given to the next one. */
static void test_reset_forgets(void **state)
{
    (void)state;
    struct fixture t = make(1, &(struct net_limits){.avg_in = 8000});
    struct nerr e;
    uint8_t frame[100];
    start(&t, USUAL, 3, 64);
    for (unsigned i = 0; i < 2; i++) assert_true(give_buffer(&t, 0, i, 1500) >= 0);
    rig_kick(t.r, &t.r->q[0]);
    fill(frame, sizeof frame, 1);
    for (int i = 0; i < 2; i++) peer_send(&t, &(struct net_header){0}, frame, sizeof frame);
    rig_wait_used(t.r, &t.r->q[0], NULL);
    struct pci_function *f;
    assert_int_equal(pci_functions(t.r->pci, &f, 1), 1);
    for (int i = 0; i < 10000 && atomic_load(&pci_stats(f)->copies) < 2; i++) usleep(500);
    assert_int_equal(atomic_load(&pci_stats(f)->copies), 2);
    start(&t, VERSION_1, 2, 64);
    assert_true(give_buffer(&t, 0, 0, 1500) >= 0);
    rig_kick(t.r, &t.r->q[0]);
    assert_int_equal(net_set_limits(virtio_net_backend(t.v), &(struct net_limits){0}, &e), 0);
    fill(frame, sizeof frame, 2);
    peer_send(&t, &(struct net_header){0}, frame, sizeof frame);
    rig_wait_used(t.r, &t.r->q[0], NULL);
    assert_memory_equal((uint8_t *)rig_ptr(t.r, t.buffers) + HEADER, frame, sizeof frame);
    end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transmit),      cmocka_unit_test(test_bad_transmit), cmocka_unit_test(test_receive),
        cmocka_unit_test(test_no_buffers),    cmocka_unit_test(test_small_buffer), cmocka_unit_test(test_filter),
        cmocka_unit_test(test_link),          cmocka_unit_test(test_pairs),        cmocka_unit_test(test_limited),
        cmocka_unit_test(test_reset_forgets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
