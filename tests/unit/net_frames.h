/* Frames for tests of the network: built from fields, checked with a checksum routine that is slow and obvious. */
#ifndef NACELLE_TESTS_NET_FRAMES_H
#define NACELLE_TESTS_NET_FRAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FRAME_TCP 6
#define FRAME_UDP 17
#define FRAME_SYN 0x02
#define FRAME_PSH 0x08
#define FRAME_ACK 0x10

static inline unsigned frame_get16(const uint8_t *p)
{
    return (unsigned)p[0] << 8 | p[1];
}
static inline void frame_put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}
static inline uint32_t frame_get32(const uint8_t *p)
{
    return (uint32_t)frame_get16(p) << 16 | frame_get16(p + 2);
}
static inline void frame_put32(uint8_t *p, uint32_t v)
{
    frame_put16(p, v >> 16);
    frame_put16(p + 2, v & 0xffff);
}

/* Sum of big-endian words, not folded. */
static inline uint32_t frame_sum(const uint8_t *p, size_t n)
{
    uint32_t s = 0;
    for (size_t i = 0; i < n; i++) s += i & 1 ? p[i] : (uint32_t)p[i] << 8;
    return s;
}
static inline uint16_t frame_fold(uint32_t s)
{
    while (s >> 16) s = (s & 0xffff) + (s >> 16);
    return (uint16_t)s;
}

/* 0xffff when an IPv4 header's checksum is right. */
static inline uint16_t frame_ip4_check(const uint8_t *ip)
{
    return frame_fold(frame_sum(ip, (ip[0] & 15u) * 4));
}

/* The sum over pseudo header, header and payload: 0xffff when the checksum is right. */
static inline uint16_t frame_l4_check(const uint8_t *ip, unsigned proto)
{
    unsigned v6 = ip[0] >> 4 == 6, at = v6 ? 40 : (ip[0] & 15u) * 4;
    unsigned len = v6 ? frame_get16(ip + 4) : frame_get16(ip + 2) - at;
    uint32_t s = v6 ? frame_sum(ip + 8, 32) : frame_sum(ip + 12, 8);
    return frame_fold(s + proto + len + frame_fold(frame_sum(ip + at, len)));
}

struct frame {
    uint8_t b[70000];
    size_t len;
    unsigned l3, l4, payload; /* offsets */
};

struct frame_spec {
    bool v6;
    bool vlan;
    uint8_t proto;
    uint8_t flags;
    uint16_t sport, dport;
    uint32_t seq, ack, src, dst; /* IPv4 addresses */
    const uint8_t *options;      /* of TCP, a multiple of 4 bytes */
    unsigned options_len;
    const void *data;
    size_t data_len;
};

static inline void frame_ip(struct frame *f, const struct frame_spec *s, size_t l4_len)
{
    uint8_t *ip = f->b + f->l3;
    if (s->v6) {
        ip[0] = 0x60;
        frame_put16(ip + 4, (unsigned)l4_len);
        ip[6] = s->proto;
        ip[7] = 64;
        for (int i = 8; i < 40; i++) ip[i] = (uint8_t)(i * 7);
        return;
    }
    ip[0] = 0x45;
    frame_put16(ip + 2, (unsigned)(20 + l4_len));
    frame_put16(ip + 4, 0x1234);
    ip[8] = 64;
    ip[9] = s->proto;
    frame_put32(ip + 12, s->src);
    frame_put32(ip + 16, s->dst);
    frame_put16(ip + 10, (uint16_t)~frame_ip4_check(ip));
}

/* A whole frame with right checksums. */
static inline void frame_make(struct frame *f, const struct frame_spec *s)
{
    memset(f->b, 0, 128);
    memcpy(f->b, "\x52\x55\x0a\x00\x02\x02\x52\x54\x00\x12\x34\x56", 12);
    unsigned at = 12;
    if (s->vlan) {
        frame_put16(f->b + 12, 0x8100);
        frame_put16(f->b + 14, 0x0123);
        at = 16;
    }
    frame_put16(f->b + at, s->v6 ? 0x86dd : 0x0800);
    f->l3 = at + 2;
    f->l4 = f->l3 + (s->v6 ? 40 : 20);
    unsigned head = s->proto == FRAME_TCP ? 20 + s->options_len : 8;
    f->payload = f->l4 + head;
    f->len = f->payload + s->data_len;
    frame_ip(f, s, head + s->data_len);
    uint8_t *t = f->b + f->l4;
    frame_put16(t, s->sport);
    frame_put16(t + 2, s->dport);
    if (s->proto == FRAME_TCP) {
        frame_put32(t + 4, s->seq);
        frame_put32(t + 8, s->ack);
        t[12] = (uint8_t)(head / 4 << 4);
        t[13] = s->flags;
        frame_put16(t + 14, 65535);
        if (s->options_len) memcpy(t + 20, s->options, s->options_len);
    } else {
        frame_put16(t + 4, (unsigned)(8 + s->data_len));
    }
    if (s->data_len) memcpy(f->b + f->payload, s->data, s->data_len);
    frame_put16(t + (s->proto == FRAME_TCP ? 16 : 6), (uint16_t)~frame_l4_check(f->b + f->l3, s->proto));
}

#endif
