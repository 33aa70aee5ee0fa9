#include "vmm/backend/offload.h"

#include <string.h>

#define ETH_LEN 14u
#define TYPE_VLAN 0x8100
#define TYPE_QINQ 0x88a8
#define TYPE_IP4 0x0800
#define TYPE_IP6 0x86dd

#define TCP_MIN 20u
#define UDP_LEN 8u
#define IP6_LEN 40u
#define IP6_FRAGMENT 44
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_PSH 0x08
#define TCP_CWR 0x80

/* The longest headers that are copied in front of a piece: Ethernet with two tags, IP, TCP with options, IPv6 fragment header. */
#define HEADERS_MAX (ETH_LEN + 8 + 256)

static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static void put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static void put32(uint8_t *p, uint32_t v)
{
    put16(p, v >> 16);
    put16(p + 2, v & 0xffff);
}

/* ---- finding the headers ---- */

static bool parse_ip4(const uint8_t *frame, size_t have, size_t len, struct offload_frame *f)
{
    const uint8_t *ip = frame + f->l3;
    if (have - f->l3 < 20 || ip[0] >> 4 != 4) return false;
    unsigned header = (ip[0] & 15u) * 4, total = get16(ip + 2);
    if (header < 20 || total < header || total > len - f->l3) return false;
    f->version = 4;
    f->proto = ip[9];
    f->fragment = (get16(ip + 6) & 0x3fff) != 0; /* more fragments, or an offset */
    f->l4 = (uint16_t)(f->l3 + header);
    f->end = f->l3 + total;
    return true;
}

/* Hop-by-hop options, routing and destination options (RFC 8200, 4) lie between the header and what it carries. */
static bool parse_ip6(const uint8_t *frame, size_t have, size_t len, struct offload_frame *f)
{
    const uint8_t *ip = frame + f->l3;
    if (have - f->l3 < IP6_LEN || ip[0] >> 4 != 6) return false;
    unsigned payload = get16(ip + 4);
    if (payload > len - f->l3 - IP6_LEN) return false;
    uint32_t at = f->l3 + IP6_LEN;
    f->version = 6;
    f->proto = ip[6];
    f->end = at + payload;
    for (int i = 0; i < 4 && (f->proto == 0 || f->proto == 43 || f->proto == 60); i++) {
        if (f->end - at < 8 || have < at + 8) return false;
        unsigned size = (frame[at + 1] + 1u) * 8;
        if (size > f->end - at || at + size > HEADERS_MAX - 80) return false;
        f->proto = frame[at];
        at += size;
    }
    f->fragment = f->proto == IP6_FRAGMENT;
    f->l4 = (uint16_t)at;
    return true;
}

static void parse_transport(const uint8_t *frame, size_t have, struct offload_frame *f)
{
    uint32_t room = f->end - f->l4;
    if (f->fragment) return;
    if (f->proto == NET_IP_UDP && room >= UDP_LEN) f->l4_len = UDP_LEN;
    if (f->proto != NET_IP_TCP || room < TCP_MIN || have < f->l4 + TCP_MIN) return;
    unsigned header = (frame[f->l4 + 12] >> 4) * 4u;
    if (header >= TCP_MIN && header <= room) f->l4_len = (uint16_t)header;
}

bool offload_parse_head(const uint8_t *frame, size_t have, size_t len, struct offload_frame *f)
{
    *f = (struct offload_frame){0};
    if (have > len) have = len;
    if (have < ETH_LEN || len > NET_MAX_FRAME) return false;
    uint16_t at = ETH_LEN - 2;
    uint16_t type = get16(frame + at);
    for (int i = 0; i < 2 && (type == TYPE_VLAN || type == TYPE_QINQ); i++) {
        at += 4;
        if (have < at + 2u) return false;
        type = get16(frame + at);
    }
    f->l3 = (uint16_t)(at + 2);
    bool known = type == TYPE_IP4 ? parse_ip4(frame, have, len, f) : type == TYPE_IP6 && parse_ip6(frame, have, len, f);
    if (!known) {
        *f = (struct offload_frame){0};
        return false;
    }
    parse_transport(frame, have, f);
    return true;
}

bool offload_parse(const uint8_t *frame, size_t len, struct offload_frame *f)
{
    return offload_parse_head(frame, len, len, f);
}

/* ---- checksums (RFC 1071) ---- */

/* Sums of 32-bit words in 64 bits can't overflow below 16 GiB, so carries are folded only once; compilers make vector code of it. The order of
 * bytes in memory is kept: a ones' complement sum is the same in either order, bytes swapped. */
uint16_t offload_sum(const void *data, size_t len, uint32_t sum)
{
    const uint8_t *p = data;
    uint64_t total = sum;
    for (; len >= 64; len -= 64, p += 64) {
        uint32_t w[16];
        memcpy(w, p, sizeof w);
        uint64_t part = 0;
        for (int i = 0; i < 16; i++) part += w[i];
        total += part;
    }
    for (; len >= 4; len -= 4, p += 4) {
        uint32_t w;
        memcpy(&w, p, sizeof w);
        total += w;
    }
    if (len) {
        uint32_t w = 0;
        memcpy(&w, p, len);
        total += w;
    }
    total = (total & 0xffffffff) + (total >> 32);
    total = (total & 0xffffffff) + (total >> 32);
    uint32_t folded = (uint32_t)total;
    folded = (folded & 0xffff) + (folded >> 16);
    return (uint16_t)((folded & 0xffff) + (folded >> 16));
}

/* Stored as it comes: offload_sum() keeps memory's byte order. */
static void store_sum(uint8_t *p, uint16_t sum)
{
    memcpy(p, &sum, 2);
}

/* The pseudo header of TCP and UDP over IPv4 (RFC 9293, 3.1) or IPv6 (RFC 8200, 8.1), summed. */
static uint16_t pseudo_sum(const uint8_t *ip, unsigned version, uint8_t proto, uint32_t l4_bytes)
{
    uint8_t tail[8] = {0};
    put32(tail, l4_bytes);
    tail[7] = proto;
    uint16_t sum = version == 4 ? offload_sum(ip + 12, 8, 0) : offload_sum(ip + 8, 32, 0);
    return offload_sum(tail, sizeof tail, sum);
}

static unsigned checksum_offset(uint8_t proto)
{
    return proto == NET_IP_TCP ? 16 : 6;
}

bool offload_checksum(const struct net_header *h, uint8_t *frame, size_t len)
{
    if (!(h->flags & NET_HDR_NEEDS_CSUM)) return true;
    uint32_t start = h->csum_start, at = start + h->csum_offset;
    if (start >= len || at + 2 > len) return false;
    struct offload_frame f;
    /* Guests differ in what they put under the checksum of a large frame: we make the whole of it where we know the protocol. */
    if (offload_parse(frame, len, &f) && f.l4_len && f.l4 == start && h->csum_offset == checksum_offset(f.proto)) {
        uint16_t seed = pseudo_sum(frame + f.l3, f.version, f.proto, f.end - f.l4);
        store_sum(frame + at, 0);
        uint16_t sum = (uint16_t)~offload_sum(frame + f.l4, f.end - f.l4, seed);
        store_sum(frame + at, sum == 0 && f.proto == NET_IP_UDP ? 0xffff : sum);
        return true;
    }
    store_sum(frame + at, (uint16_t)~offload_sum(frame + start, len - start, 0));
    return true;
}

void offload_partial_checksum(uint8_t *frame, const struct offload_frame *f)
{
    if (!f->l4_len) return;
    uint16_t seed = pseudo_sum(frame + f->l3, f->version, f->proto, f->end - f->l4);
    store_sum(frame + f->l4 + checksum_offset(f->proto), seed);
}

static void ip4_checksum(uint8_t *ip, unsigned header)
{
    store_sum(ip + 10, 0);
    store_sum(ip + 10, (uint16_t)~offload_sum(ip, header, 0));
}

/* ---- the SYN's maximum segment size ---- */

/* RFC 1624: HC' = ~(~HC + ~m + m'). */
static void checksum_replace(uint8_t *at, uint16_t old, uint16_t new)
{
    uint32_t sum = (uint16_t)~get16(at) + (uint32_t)(uint16_t)~old + new;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    put16(at, (uint16_t)~sum);
}

void offload_raise_mss(uint8_t *frame, const struct offload_frame *f, uint16_t mss, bool partial)
{
    if (!f->l3 || f->proto != NET_IP_TCP || !f->l4_len || !(frame[f->l4 + 13] & TCP_SYN)) return;
    uint8_t *tcp = frame + f->l4;
    for (unsigned i = TCP_MIN; i + 4 <= f->l4_len;) {
        if (tcp[i] == 0) return; /* end of options */
        if (tcp[i] == 1) {
            i++;
            continue;
        }
        if (tcp[i + 1] < 2) return;
        if (tcp[i] == 2 && tcp[i + 1] == 4) {
            uint16_t old = get16(tcp + i + 2);
            if (old >= mss) return;
            put16(tcp + i + 2, mss);
            /* The option may start at an odd offset, where its bytes count the other way round. */
            bool odd = i & 1;
            if (!partial)
                checksum_replace(tcp + 16, odd ? (uint16_t)(old << 8 | old >> 8) : old,
                                 odd ? (uint16_t)(mss << 8 | mss >> 8) : mss);
            return;
        }
        i += tcp[i + 1];
    }
}

/* ---- cutting ---- */

static void set_ip_length(uint8_t *headers, const struct offload_frame *f, uint32_t ip_bytes)
{
    uint8_t *ip = headers + f->l3;
    if (f->version == 4)
        put16(ip + 2, ip_bytes);
    else
        put16(ip + 4, ip_bytes - IP6_LEN);
}

bool offload_segment(const uint8_t *frame, const struct offload_frame *f, uint16_t mss, offload_emit emit, void *ctx)
{
    uint8_t headers[HEADERS_MAX];
    uint32_t header = (uint32_t)f->l4 + f->l4_len, payload = f->end - header;
    if (!f->l3 || f->proto != NET_IP_TCP || !f->l4_len || !mss || header > sizeof headers) return false;
    uint32_t seq = get32(frame + f->l4 + 4);
    uint16_t id = f->version == 4 ? get16(frame + f->l3 + 4) : 0;
    uint8_t flags = frame[f->l4 + 13];
    uint32_t done = 0;
    do {
        uint32_t n = payload - done < mss ? payload - done : mss;
        bool last = done + n == payload;
        memcpy(headers, frame, header);
        uint8_t *tcp = headers + f->l4;
        set_ip_length(headers, f, header - f->l3 + n);
        if (f->version == 4) {
            put16(headers + f->l3 + 4, id++);
            ip4_checksum(headers + f->l3, f->l4 - f->l3);
        }
        put32(tcp + 4, seq + done);
        /* FIN and PSH belong to the end, CWR to the beginning (RFC 3168, 6.1.2). */
        tcp[13] = (uint8_t)(flags & ~(last ? 0 : TCP_FIN | TCP_PSH) & ~(done ? TCP_CWR : 0));
        store_sum(tcp + 16, 0);
        uint16_t sum = pseudo_sum(headers + f->l3, f->version, NET_IP_TCP, f->l4_len + n);
        sum = offload_sum(tcp, f->l4_len, sum);
        store_sum(tcp + 16, (uint16_t)~offload_sum(frame + header + done, n, sum));
        struct iovec iov[2] = {{headers, header}, {(void *)(frame + header + done), n}};
        if (!emit(ctx, iov, n ? 2 : 1)) return false;
        done += n;
    } while (done < payload);
    return true;
}

bool offload_fragment(const uint8_t *frame, const struct offload_frame *f, unsigned mtu, uint32_t id, offload_emit emit,
                      void *ctx)
{
    uint8_t headers[HEADERS_MAX + 8];
    uint32_t extra = f->version == 6 ? 8 : 0; /* the fragment header (RFC 8200, 4.5) */
    if (!f->l3 || f->fragment || f->l4 > HEADERS_MAX || mtu < f->l4 - f->l3 + extra + 8u) return false;
    uint32_t room = (mtu - (f->l4 - f->l3) - extra) & ~7u, payload = f->end - f->l4, done = 0;
    /* Only the last header before the payload is known to carry "what comes next": with extension headers we leave it. */
    if (f->version == 6 && f->l4 - f->l3 != IP6_LEN) return false;
    do {
        uint32_t n = payload - done < room ? payload - done : room;
        bool more = done + n < payload;
        memcpy(headers, frame, f->l4);
        uint8_t *ip = headers + f->l3;
        set_ip_length(headers, f, f->l4 - f->l3 + extra + n);
        if (f->version == 4) {
            put16(ip + 6, done / 8 | (more ? 0x2000u : 0));
            ip4_checksum(ip, f->l4 - f->l3);
        } else {
            ip[6] = IP6_FRAGMENT;
            headers[f->l4] = f->proto;
            headers[f->l4 + 1] = 0;
            put16(headers + f->l4 + 2, done | more);
            put32(headers + f->l4 + 4, id);
        }
        struct iovec iov[2] = {{headers, f->l4 + extra}, {(void *)(frame + f->l4 + done), n}};
        if (!emit(ctx, iov, n ? 2 : 1)) return false;
        done += n;
    } while (done < payload);
    return true;
}
