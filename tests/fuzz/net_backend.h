/* A network back end for fuzzers of NICs: takes what comes when it likes, checks it, and gives frames of its own. What is defined here is not
 * taken from the archive. Included once per program. */
#ifndef NACELLE_TESTS_FUZZ_NET_BACKEND_H
#define NACELLE_TESTS_FUZZ_NET_BACKEND_H

#include <sys/uio.h>

#include "common/event.h"
#include "fuzz.h"
#include "seed.h"
#include "vmm/backend/net.h"
#include "vmm/backend/offload.h"

struct net {
    struct net_port port;
    void (*writable)(void *ctx);
    void *writable_ctx;
    struct device_stats *stats;
    bool open, link, full, ready;
    bool in_batch; /* net_send_end() is due */
    uint64_t sent, sent_bytes, received, refused;
    uint8_t last[NET_MAX_FRAME]; /* the last frame that was sent, for those who check it */
    size_t last_len;
    struct net_header last_header;
};

static struct net fuzz_net;
static const struct fuzz_rig *fuzz_net_rig;

int net_open(const struct net_config *cfg, struct event_loop *loop, const struct net_port *port, struct net **out,
             struct nerr *e)
{
    (void)cfg, (void)loop, (void)e;
    fuzz_net = (struct net){.port = *port, .open = true, .link = true};
    *out = &fuzz_net;
    return 0;
}

void net_close(struct net *n)
{
    if (n) n->open = false;
}

void net_info(const struct net *n, struct net_info *out)
{
    *out = (struct net_info){.offloads = true, .mtu = 1500, .link = n->link, .kind = "none"};
}

bool net_send(struct net *n, const struct iovec *iov, unsigned iovs)
{
    const uint8_t *ram = fuzz_net_rig->memory.slot[0].host;
    fuzz_check(n->open && iovs >= 2 && iovs <= NET_MAX_SEGMENTS && iov[0].iov_len == sizeof(struct net_header));
    n->in_batch = true;
    if (n->full) return false;
    const struct net_header *h = iov[0].iov_base;
    fuzz_check(!((const uint8_t *)h >= ram && (const uint8_t *)h < ram + FUZZ_RAM)); /* the NIC's own copy */
    fuzz_check(h->num_buffers == 0 && !(h->flags & ~NET_HDR_NEEDS_CSUM));
    n->last_header = *h;
    n->last_len = 0;
    for (unsigned i = 1; i < iovs; i++) {
        fuzz_check(iov[i].iov_len > 0);
        if (n->last_len + iov[i].iov_len > sizeof n->last) return true; /* as the real one: dropped */
        memcpy(n->last + n->last_len, iov[i].iov_base, iov[i].iov_len);
        n->last_len += iov[i].iov_len;
    }
    n->sent++;
    n->sent_bytes += n->last_len;
    return true;
}

void net_send_end(struct net *n)
{
    n->in_batch = false;
}

void net_on_writable(struct net *n, void (*fn)(void *ctx), void *ctx)
{
    n->writable = fn;
    n->writable_ctx = ctx;
}

void net_receive_ready(struct net *n)
{
    n->ready = true;
}

void net_forget(struct net *n)
{
    n->ready = true;
}

void net_set_guest_offloads(struct net *n, bool csum, bool tso4, bool tso6, bool ecn)
{
    (void)n, (void)csum, (void)tso4, (void)tso6, (void)ecn;
}

void net_set_link(struct net *n, bool up)
{
    if (n->link == up) return;
    n->link = up;
    if (n->port.link_changed) n->port.link_changed(n->port.ctx, up);
}

void net_count_into(struct net *n, struct device_stats *s)
{
    n->stats = s;
}

/* ---- for the fuzzers ---- */

/* A frame for the guest, in one to four pieces. */
static inline void fuzz_net_frame(const uint8_t *frame, size_t len, const struct net_header *h)
{
    struct iovec iov[5] = {{(void *)h, sizeof *h}};
    unsigned n = 1, pieces = 1 + (unsigned)fuzz_below(4);
    size_t at = 0, first = len < 60 ? len : 54;
    while (at < len) {
        size_t part = n == pieces ? len - at : n == 1 ? first : 1 + fuzz_below(len - at);
        iov[n++] = (struct iovec){(void *)(frame + at), part};
        at += part;
    }
    if (fuzz_net.port.receive(fuzz_net.port.ctx, iov, n))
        fuzz_net.received++;
    else
        fuzz_net.refused++;
    if (fuzz_one_in(2) && fuzz_net.port.receive_end) fuzz_net.port.receive_end(fuzz_net.port.ctx);
}

static inline void fuzz_net_random_frame(void)
{
    static uint8_t frame[NET_MAX_FRAME];
    static bool filled;
    for (size_t i = 0; !filled && i < sizeof frame; i++) frame[i] = (uint8_t)(i * 31);
    filled = true;
    size_t len = fuzz_one_in(8) ? 14 + fuzz_below(sizeof frame - 14) : 14 + fuzz_below(1600);
    for (int i = 0; i < 20; i++) frame[i] = (uint8_t)fuzz_bits();
    if (fuzz_one_in(2)) memset(frame, fuzz_one_in(2) ? 0xff : 0x33, 6);
    if (fuzz_one_in(2)) frame[12] = 8, frame[13] = 0, frame[14] = 0x45;
    if (fuzz_one_in(4)) frame[12] = 0x81, frame[13] = 0;
    struct net_header h = {
        .flags = (uint8_t)fuzz_below(4), .gso_type = (uint8_t)fuzz_below(5), .gso_size = (uint16_t)fuzz_bits()};
    fuzz_net_frame(frame, len, &h);
}

/* The back end's own events: room, link, frames. */
static inline void fuzz_net_event(void)
{
    switch (fuzz_below(6)) {
    case 0: fuzz_net.full = true; break;
    case 1:
        fuzz_net.full = false;
        if (fuzz_net.writable) fuzz_net.writable(fuzz_net.writable_ctx);
        break;
    case 2: net_set_link(&fuzz_net, fuzz_one_in(2)); break;
    default: fuzz_net_random_frame(); break;
    }
}

static inline void fuzz_loop_stop(void *loop)
{
    event_loop_stop(loop);
}

/* Runs what was posted, and timers that are due. */
static inline void fuzz_loop_turn(struct event_loop *loop)
{
    struct nerr e;
    fuzz_check(event_loop_post(loop, fuzz_loop_stop, loop) == 0);
    fuzz_check(event_loop_run(loop, &e) == 0);
}

/* ---- a real driver, and what becomes of it when things go wrong ---- */

static struct event_loop *fuzz_net_replay_loop;

static inline void fuzz_net_replayed_event(void)
{
    if (fuzz_one_in(8)) fuzz_net_event();
    if (fuzz_one_in(16)) fuzz_loop_turn(fuzz_net_replay_loop);
}

static inline void fuzz_net_replayed_at_once(void)
{
    fuzz_loop_turn(fuzz_net_replay_loop);
}

/* Replays one of the seeds on the NIC in `slot`, most of the time with mistakes. */
static inline void fuzz_net_replay(struct fuzz_rig *r, unsigned slot, struct event_loop *loop,
                                   const struct fuzz_seed *seed, unsigned seeds)
{
    unsigned which = (unsigned)fuzz_below(seeds), wild = fuzz_one_in(20) ? 0 : 1u << fuzz_below(9);
    uint64_t before = fuzz_net.sent;
    fuzz_net_replay_loop = loop;
    fuzz_replay(r, slot, seed, seeds, which, wild, wild ? fuzz_net_replayed_event : fuzz_net_replayed_at_once);
    if (!wild) fuzz_check(fuzz_net.sent >= before + 8); /* the recording is still one of this device */
}

#endif
