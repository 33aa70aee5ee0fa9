/* Software offloads: against a slow checksum, by putting the pieces together again, and with frames that lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>

#include "tests/unit/net_frames.h"
#include "vmm/backend/offload.h"

static struct frame f;
static uint8_t payload[66000];

static int setup(void **state)
{
    (void)state;
    srand(7);
    for (size_t i = 0; i < sizeof payload; i++) payload[i] = (uint8_t)rand();
    return 0;
}

static struct frame_spec tcp(bool v6, size_t n)
{
    return (struct frame_spec){.v6 = v6,
                               .proto = FRAME_TCP,
                               .flags = FRAME_ACK | FRAME_PSH,
                               .sport = 1000,
                               .dport = 80,
                               .seq = 0xfffffff0,
                               .src = 0x0a00020f,
                               .dst = 0x0a000202,
                               .data = payload,
                               .data_len = n};
}

static void test_sum(void **state)
{
    (void)state;
    for (size_t n = 0; n < 300; n++) {
        uint16_t fast = offload_sum(payload + n % 5, n, 0);
        uint8_t b[2];
        memcpy(b, &fast, 2);
        assert_int_equal(frame_get16(b), frame_fold(frame_sum(payload + n % 5, n)));
    }
    /* All ones: where carries are most. */
    uint8_t ones[4096];
    memset(ones, 0xff, sizeof ones);
    assert_int_equal(offload_sum(ones, sizeof ones, 0), 0xffff);
    assert_int_equal(offload_sum(ones, sizeof ones, 0xffff), 0xffff);
}

static void test_parse(void **state)
{
    (void)state;
    struct offload_frame o;
    for (int v6 = 0; v6 < 2; v6++) {
        for (int vlan = 0; vlan < 2; vlan++) {
            struct frame_spec s = tcp(v6, 100);
            s.vlan = vlan;
            frame_make(&f, &s);
            assert_true(offload_parse(f.b, f.len + 6, &o)); /* padding behind it */
            assert_int_equal(o.l3, f.l3);
            assert_int_equal(o.l4, f.l4);
            assert_int_equal(o.version, v6 ? 6 : 4);
            assert_int_equal(o.proto, NET_IP_TCP);
            assert_int_equal(o.l4_len, 20);
            assert_int_equal(o.end, f.len);
            assert_false(o.fragment);
            assert_false(offload_parse(f.b, f.len - 1, &o));
            assert_true(offload_parse_head(f.b, f.payload, f.len, &o));
            assert_int_equal(o.l4_len, 20);
            assert_true(offload_parse_head(f.b, f.l4 + 5, f.len, &o));
            assert_int_equal(o.l4_len, 0);
            assert_false(offload_parse_head(f.b, f.l3 + 10, f.len, &o));
        }
    }
    /* Pieces have no transport header; extension headers are stepped over. */
    struct frame_spec s = tcp(false, 100);
    frame_make(&f, &s);
    f.b[f.l3 + 6] = 0x20;
    assert_true(offload_parse(f.b, f.len, &o));
    assert_true(o.fragment);
    assert_int_equal(o.l4_len, 0);
    s = tcp(true, 100);
    frame_make(&f, &s);
    memmove(f.b + f.l4 + 8, f.b + f.l4, f.len - f.l4);
    memset(f.b + f.l4, 0, 8);
    f.b[f.l4] = NET_IP_TCP;
    f.b[f.l3 + 6] = 60;
    frame_put16(f.b + f.l3 + 4, (unsigned)(f.len - f.l4 + 8));
    assert_true(offload_parse(f.b, f.len + 8, &o));
    assert_int_equal(o.proto, NET_IP_TCP);
    assert_int_equal(o.l4, f.l4 + 8);
    assert_int_equal(o.l4_len, 20);
    assert_false(offload_parse((const uint8_t *)"not an IP frame", 15, &o));
}

static void test_checksum(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 2, 3, 100, 1459, 1460, 32767, 65000};
    for (int i = 0; i < 36; i++) {
        struct frame_spec s = tcp(i & 1, sizes[i / 4]);
        if (i & 2) s.proto = FRAME_UDP;
        frame_make(&f, &s);
        unsigned at = f.l4 + (s.proto == FRAME_TCP ? 16 : 6);
        struct net_header h = {
            .flags = NET_HDR_NEEDS_CSUM, .csum_start = (uint16_t)f.l4, .csum_offset = (uint16_t)(at - f.l4)};
        frame_put16(f.b + at, 0xdead); /* whatever the guest left there */
        assert_true(offload_checksum(&h, f.b, f.len));
        assert_int_equal(frame_l4_check(f.b + f.l3, s.proto), 0xffff);
        /* What another stack would make of our partial checksum. */
        struct offload_frame o;
        assert_true(offload_parse(f.b, f.len, &o));
        offload_partial_checksum(f.b, &o);
        uint16_t whole = (uint16_t)~frame_fold(frame_sum(f.b + f.l4, f.len - f.l4));
        frame_put16(f.b + at, whole);
        assert_int_equal(frame_l4_check(f.b + f.l3, s.proto), 0xffff);
    }
    /* A protocol that we don't know: from the start to the end, on top of what is there. */
    struct net_header h = {.flags = NET_HDR_NEEDS_CSUM, .csum_start = 20, .csum_offset = 4};
    uint8_t raw[64];
    memcpy(raw, payload, sizeof raw);
    raw[12] = 0x12;
    assert_true(offload_checksum(&h, raw, sizeof raw));
    uint8_t expect[64];
    memcpy(expect, payload, sizeof expect);
    assert_int_equal(frame_get16(raw + 24), (uint16_t)~frame_fold(frame_sum(expect + 20, 44)));
    /* Outside of the frame. */
    h.csum_offset = 43;
    assert_false(offload_checksum(&h, raw, sizeof raw));
    h.csum_start = 64, h.csum_offset = 0;
    assert_false(offload_checksum(&h, raw, sizeof raw));
    h.csum_start = 0xffff, h.csum_offset = 0xffff;
    assert_false(offload_checksum(&h, raw, sizeof raw));
    h.flags = 0;
    assert_true(offload_checksum(&h, raw, sizeof raw));
}

static void test_mss(void **state)
{
    (void)state;
    /* MSS at even and odd places, among other options. */
    static const uint8_t options[][12] = {{2, 4, 5, 0xb4, 1, 3, 3, 7, 4, 2, 1, 1},
                                          {1, 2, 4, 5, 0xb4, 1, 3, 3, 7, 4, 2, 0},
                                          {3, 3, 7, 2, 4, 5, 0xb4, 1, 1, 1, 1, 1}};
    static const unsigned where[] = {2, 3, 5};
    for (int v6 = 0; v6 < 2; v6++) {
        for (int i = 0; i < 3; i++) {
            struct frame_spec s = tcp(v6, 0);
            struct offload_frame o;
            s.flags = FRAME_SYN;
            s.options = options[i];
            s.options_len = 12;
            frame_make(&f, &s);
            assert_true(offload_parse(f.b, f.len, &o));
            offload_raise_mss(f.b, &o, 32768, false);
            assert_int_equal(frame_get16(f.b + f.l4 + 20 + where[i]), 32768);
            assert_int_equal(frame_l4_check(f.b + f.l3, FRAME_TCP), 0xffff);
            offload_raise_mss(f.b, &o, 1000, false); /* never lowered */
            assert_int_equal(frame_get16(f.b + f.l4 + 20 + where[i]), 32768);
            f.b[f.l4 + 13] = FRAME_ACK; /* only in a SYN */
            offload_raise_mss(f.b, &o, 60000, false);
            assert_int_equal(frame_get16(f.b + f.l4 + 20 + where[i]), 32768);
        }
    }
    /* Options that end early, have no length, or reach behind the header. */
    static const uint8_t bad[][4] = {{0, 2, 4, 5}, {5, 0, 2, 4}, {5, 1, 2, 4}, {1, 1, 2, 4}, {2, 9, 5, 5}};
    for (unsigned i = 0; i < 5; i++) {
        struct frame_spec s = tcp(false, 0);
        struct offload_frame o;
        struct frame before;
        s.flags = FRAME_SYN;
        s.options = bad[i];
        s.options_len = 4;
        frame_make(&f, &s);
        before = f;
        assert_true(offload_parse(f.b, f.len, &o));
        offload_raise_mss(f.b, &o, 32768, false);
        assert_memory_equal(f.b, before.b, f.len);
    }
}

struct pieces {
    uint8_t data[70000];
    size_t got;
    unsigned count, limit, proto;
    size_t largest;
    uint32_t seq;
    unsigned last_flags, first_flags;
};

/* The pieces of a frame together; returns its length. */
static size_t take_whole(const struct iovec *iov, unsigned iovs, uint8_t *frame, size_t room, struct offload_frame *o)
{
    size_t n = 0;
    for (unsigned i = 0; i < iovs; i++) {
        assert_true(iov[i].iov_len <= room - n);
        memcpy(frame + n, iov[i].iov_base, iov[i].iov_len);
        n += iov[i].iov_len;
    }
    assert_true(offload_parse(frame, n, o));
    return n;
}

static bool take_segment(void *ctx, const struct iovec *iov, unsigned iovs)
{
    struct pieces *p = ctx;
    uint8_t frame[70000];
    struct offload_frame o;
    size_t n = take_whole(iov, iovs, frame, sizeof frame, &o);
    assert_int_equal(o.end, n);
    if (o.version == 4) assert_int_equal(frame_ip4_check(frame + o.l3), 0xffff);
    assert_int_equal(frame_l4_check(frame + o.l3, FRAME_TCP), 0xffff);
    assert_int_equal(frame_get32(frame + o.l4 + 4), p->seq + (uint32_t)p->got);
    size_t head = o.l4 + o.l4_len;
    memcpy(p->data + p->got, frame + head, n - head);
    p->got += n - head;
    if (n - head > p->largest) p->largest = n - head;
    if (!p->count++) p->first_flags = frame[o.l4 + 13];
    p->last_flags = frame[o.l4 + 13];
    return p->count != p->limit;
}

static void test_segment(void **state)
{
    (void)state;
    static struct pieces p;
    static const size_t sizes[] = {0, 1, 1460, 1461, 32768, 65000};
    for (int i = 0; i < 24; i++) {
        struct frame_spec s = tcp(i & 1, sizes[i / 4]);
        static const uint8_t stamps[12] = {1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8};
        s.options = stamps;
        s.options_len = 12;
        s.vlan = i & 2;
        s.flags = FRAME_ACK | FRAME_PSH | 0x80 | 0x01;
        frame_make(&f, &s);
        struct offload_frame o;
        assert_true(offload_parse(f.b, f.len, &o));
        memset(&p, 0, sizeof p);
        p.seq = s.seq;
        assert_true(offload_segment(f.b, &o, 1448, take_segment, &p));
        assert_int_equal(p.got, s.data_len);
        assert_memory_equal(p.data, payload, s.data_len);
        assert_int_equal(p.count, s.data_len ? (s.data_len + 1447) / 1448 : 1);
        assert_true(p.largest <= 1448);
        assert_int_equal(p.last_flags & 0x09, 0x09);
        assert_int_equal(p.first_flags & 0x80, 0x80);
        if (p.count > 1) {
            assert_int_equal(p.first_flags & 0x09, 0);
            assert_int_equal(p.last_flags & 0x80, 0);
        }
    }
    /* It stops when told, and does not begin with what it can't cut. */
    struct frame_spec s = tcp(false, 10000);
    struct offload_frame o;
    frame_make(&f, &s);
    assert_true(offload_parse(f.b, f.len, &o));
    memset(&p, 0, sizeof p);
    p.seq = s.seq;
    p.limit = 2;
    assert_false(offload_segment(f.b, &o, 1448, take_segment, &p));
    assert_int_equal(p.count, 2);
    assert_false(offload_segment(f.b, &o, 0, take_segment, &p));
    o.proto = NET_IP_UDP;
    assert_false(offload_segment(f.b, &o, 1448, take_segment, &p));
}

static bool take_fragment(void *ctx, const struct iovec *iov, unsigned iovs)
{
    struct pieces *p = ctx;
    uint8_t frame[70000];
    struct offload_frame o;
    size_t n = take_whole(iov, iovs, frame, sizeof frame, &o);
    assert_true(o.fragment);
    assert_true(n - o.l3 <= 1500);
    unsigned at, more;
    size_t head = o.l4;
    if (o.version == 4) {
        assert_int_equal(frame_ip4_check(frame + o.l3), 0xffff);
        at = (frame_get16(frame + o.l3 + 6) & 0x1fff) * 8;
        more = frame_get16(frame + o.l3 + 6) >> 13 & 1;
    } else {
        assert_int_equal(frame[o.l4], FRAME_UDP);
        assert_int_equal(frame_get32(frame + o.l4 + 4), 77);
        at = frame_get16(frame + o.l4 + 2) & ~7u;
        more = frame_get16(frame + o.l4 + 2) & 1;
        head += 8;
    }
    assert_int_equal(at, p->got);
    memcpy(p->data + at, frame + head, n - head);
    p->got += n - head;
    p->count++;
    p->last_flags = more;
    return true;
}

static void test_fragment(void **state)
{
    (void)state;
    static struct pieces p;
    for (int v6 = 0; v6 < 2; v6++) {
        struct frame_spec s = tcp(v6, 20000);
        struct offload_frame o;
        s.proto = FRAME_UDP;
        frame_make(&f, &s);
        assert_true(offload_parse(f.b, f.len, &o));
        memset(&p, 0, sizeof p);
        assert_true(offload_fragment(f.b, &o, 1500, 77, take_fragment, &p));
        assert_int_equal(p.got, f.len - f.l4);
        assert_memory_equal(p.data, f.b + f.l4, p.got);
        assert_int_equal(p.last_flags, 0);
        assert_true(p.count > 13);
        assert_false(offload_fragment(f.b, &o, 20, 77, take_fragment, &p));
    }
}

static bool swallow(void *ctx, const struct iovec *iov, unsigned iovs)
{
    unsigned *left = ctx;
    volatile uint8_t x = 0;
    for (unsigned i = 0; i < iovs; i++) {
        assert_true(iov[i].iov_len > 0);
        x ^= ((const uint8_t *)iov[i].iov_base)[0];
        x ^= ((const uint8_t *)iov[i].iov_base)[iov[i].iov_len - 1];
    }
    (void)x;
    return --*left != 0;
}

/* Frames with a few bytes changed, in buffers of exactly their size: for the sanitizers. */
static void test_hostile(void **state)
{
    (void)state;
    srand(11);
    for (int i = 0; i < 20000; i++) {
        struct frame_spec s = tcp(rand() & 1, (size_t)(rand() % 3000));
        s.vlan = rand() & 1;
        if (rand() & 1) s.proto = FRAME_UDP;
        s.flags = (uint8_t)rand();
        frame_make(&f, &s);
        size_t n = rand() % 4 ? f.len : (size_t)rand() % (f.len + 1);
        uint8_t *b = malloc(n ? n : 1);
        memcpy(b, f.b, n);
        for (int k = rand() % 6; k && n; k--) b[(size_t)rand() % (n < 90 ? n : 90)] = (uint8_t)rand();
        struct net_header h = {
            .flags = 1, .csum_start = (uint16_t)(rand() % 100), .csum_offset = (uint16_t)(rand() % 40)};
        if (!(rand() % 20)) h.csum_start = (uint16_t)rand(), h.csum_offset = (uint16_t)rand();
        struct offload_frame o;
        unsigned left = 5000;
        offload_checksum(&h, b, n);
        if (offload_parse(b, n, &o)) {
            assert_true(o.end <= n && o.l4 <= o.end && o.l4 + o.l4_len <= o.end);
            offload_raise_mss(b, &o, 32768, false);
            offload_partial_checksum(b, &o);
            offload_segment(b, &o, (uint16_t)(1 + rand() % 2000), swallow, &left);
            left = 5000;
            offload_fragment(b, &o, (unsigned)(rand() % 2000), 1, swallow, &left);
        }
        offload_parse_head(b, n, n + (size_t)(rand() % 70000), &o);
        free(b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sum),     cmocka_unit_test(test_parse),   cmocka_unit_test(test_checksum),
        cmocka_unit_test(test_mss),     cmocka_unit_test(test_segment), cmocka_unit_test(test_fragment),
        cmocka_unit_test(test_hostile),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
