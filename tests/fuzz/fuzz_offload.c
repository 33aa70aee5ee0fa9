/* Software offloads with frames that lie: lengths and offsets stay within the frame, pieces put together give the frame again, checksums are
 * right. Number of cases in make test: 20000. */
#include "fuzz.h"
#include "vmm/backend/offload.h"

const char *const fuzz_name = "fuzz_offload";

struct pieces {
    const uint8_t *frame; /* what is cut */
    const struct offload_frame *f;
    size_t done; /* payload bytes seen */
    unsigned largest, count;
    bool segments;
};

static void put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v >> 8), p[1] = (uint8_t)v;
}

/* Sum of the pseudo header and what follows: all ones when the checksum is right. */
static uint16_t whole_sum(const uint8_t *frame, const struct offload_frame *f)
{
    uint32_t l4 = f->end - f->l4;
    uint8_t tail[8] = {(uint8_t)(l4 >> 24), (uint8_t)(l4 >> 16), (uint8_t)(l4 >> 8), (uint8_t)l4, 0, 0, 0, f->proto};
    uint16_t sum = f->version == 4 ? offload_sum(frame + f->l3 + 12, 8, 0) : offload_sum(frame + f->l3 + 8, 32, 0);
    return offload_sum(frame + f->l4, l4, offload_sum(tail, 8, sum));
}

static bool take(void *ctx, const struct iovec *iov, unsigned iovs)
{
    struct pieces *p = ctx;
    static uint8_t piece[NET_MAX_FRAME + 8];
    struct offload_frame f;
    size_t len = 0;
    fuzz_check(iovs >= 1 && iovs <= 2);
    for (unsigned i = 0; i < iovs; i++) {
        fuzz_check(iov[i].iov_len > 0 && len + iov[i].iov_len <= sizeof piece);
        memcpy(piece + len, iov[i].iov_base, iov[i].iov_len);
        len += iov[i].iov_len;
    }
    fuzz_check(offload_parse(piece, len, &f) && f.end == len && f.l3 == p->f->l3);
    if (f.version == 4) fuzz_check(offload_sum(piece + f.l3, f.l4 - f.l3, 0) == 0xffff);
    size_t head = p->segments ? f.l4 + f.l4_len : f.version == 6 ? f.l4 + 8u : f.l4;
    size_t from = p->segments ? p->f->l4 + p->f->l4_len : p->f->l4;
    if (p->segments) fuzz_check(f.l4_len == p->f->l4_len && whole_sum(piece, &f) == 0xffff);
    fuzz_check(head <= len && from + p->done + (len - head) <= p->f->end);
    fuzz_check(memcmp(piece + head, p->frame + from + p->done, len - head) == 0);
    fuzz_check((p->segments ? len - head : len - f.l3) <= p->largest);
    p->done += len - head;
    p->count++;
    return true;
}

static size_t make(uint8_t *b)
{
    bool v6 = fuzz_one_in(2), vlan = fuzz_one_in(3), tcp = !fuzz_one_in(3);
    size_t payload = fuzz_one_in(4) ? fuzz_below(65000) : fuzz_below(3000), at = 12;
    for (size_t i = 0; i < 200; i++) b[i] = (uint8_t)fuzz_bits();
    if (vlan) put16(b + at, fuzz_one_in(2) ? 0x8100 : 0x88a8), at += 4;
    put16(b + at, v6 ? 0x86dd : 0x0800);
    size_t l3 = at + 2, options = v6 ? 0 : fuzz_below(11) * 4, l4 = l3 + (v6 ? 40 : 20 + options);
    size_t head = tcp ? 20 + fuzz_below(11) * 4 : 8;
    b[l3] = v6 ? 0x60 : (uint8_t)(0x45 + options / 4);
    b[l3 + (v6 ? 6 : 9)] = tcp ? NET_IP_TCP : NET_IP_UDP;
    if (l4 - l3 + head + payload > 65535) payload = 65535 - (l4 - l3) - head;
    put16(b + l3 + (v6 ? 4 : 2), (unsigned)(head + payload + (v6 ? 0 : l4 - l3)));
    if (!v6) put16(b + l3 + 6, fuzz_one_in(2) ? 0x4000 : 0);
    if (tcp) b[l4 + 12] = (uint8_t)(head / 4 << 4);
    for (size_t i = 0; i < payload; i += 13) b[l4 + head + i] = (uint8_t)fuzz_bits();
    size_t len = l4 + head + payload;
    return len > NET_MAX_FRAME ? NET_MAX_FRAME : len;
}

void fuzz_case(void)
{
    static uint8_t big[NET_MAX_FRAME + 300];
    size_t len = make(big);
    if (fuzz_one_in(4)) len = fuzz_below(len + 1);
    /* Of exactly this size, so that one byte too far is seen. */
    uint8_t *b = malloc(len ? len : 1);
    memcpy(b, big, len);
    for (uint64_t k = fuzz_one_in(2) ? fuzz_below(6) : 0; k && len; k--)
        b[fuzz_below(len < 90 ? len : 90)] = (uint8_t)fuzz_odd_number();
    struct net_header h = {.flags = (uint8_t)fuzz_below(4),
                           .csum_start = (uint16_t)fuzz_below(100),
                           .csum_offset = (uint16_t)fuzz_below(40)};
    if (fuzz_one_in(10)) h.csum_start = (uint16_t)fuzz_odd_number(), h.csum_offset = (uint16_t)fuzz_odd_number();
    struct offload_frame f;
    if (offload_parse(b, len, &f)) {
        fuzz_check(f.end <= len && f.l3 < f.l4 && f.l4 <= f.end && f.l4 + f.l4_len <= f.end &&
                   (f.version == 4 || f.version == 6));
        if (f.l4_len) {
            struct net_header right = {
                .flags = NET_HDR_NEEDS_CSUM, .csum_start = f.l4, .csum_offset = f.proto == NET_IP_TCP ? 16 : 6};
            fuzz_check(offload_checksum(&right, b, len) && whole_sum(b, &f) == 0xffff);
            offload_raise_mss(b, &f, (uint16_t)fuzz_odd_number(), false);
            fuzz_check(whole_sum(b, &f) == 0xffff);
        }
        struct pieces p = {.frame = b, .f = &f, .largest = 1 + (unsigned)fuzz_below(3000), .segments = true};
        if (fuzz_one_in(20)) p.largest = 0;
        if (offload_segment(b, &f, (uint16_t)p.largest, take, &p))
            fuzz_check(f.l4 + f.l4_len + p.done == f.end && p.count);
        p = (struct pieces){.frame = b, .f = &f, .largest = (unsigned)fuzz_below(3000)};
        if (offload_fragment(b, &f, p.largest, 5, take, &p)) fuzz_check(f.l4 + p.done == f.end && p.count);
    }
    offload_checksum(&h, b, len);
    size_t have = fuzz_below(len + 1);
    uint8_t *part = malloc(have ? have : 1);
    memcpy(part, b, have);
    if (offload_parse_head(part, have, len + fuzz_below(100), &f))
        fuzz_check(f.l4 + f.l4_len <= f.end && (!f.l4_len || f.l4 + 8u <= f.end));
    free(part);
    free(b);
}
