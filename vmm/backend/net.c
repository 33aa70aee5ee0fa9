/* What all network back ends share: limits, frames that wait for room or for their turn, link state, statistics; and the back end "none". */
#include "vmm/backend/net_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

size_t net_iov_bytes(const struct iovec *iov, unsigned iovs)
{
    size_t n = 0;
    for (unsigned i = 0; i < iovs; i++) n += iov[i].iov_len;
    return n;
}

/* Limits count what IP sees, so that a limit means the same with small and with large frames (Ethernet headers would be up to 20 % of small
 * ones, and large frames carry one for many). */
static uint64_t limited_bits(size_t len)
{
    return len > NET_ETHERNET ? (uint64_t)(len - NET_ETHERNET) * 8 : 0;
}

/* ---- to the guest ---- */

/* Does the driver take such a frame? What was made for an earlier one, or before it changed its mind, may be of another kind. */
static bool acceptable(const struct net *n, const struct net_header *h)
{
    unsigned guest = atomic_load_explicit(&n->guest, memory_order_relaxed);
    unsigned need = h->flags & NET_HDR_NEEDS_CSUM ? GUEST_CSUM : 0;
    switch (h->gso_type & ~NET_GSO_ECN) {
    case NET_GSO_NONE: break;
    case NET_GSO_TCPV4: need |= GUEST_TSO4; break;
    case NET_GSO_TCPV6: need |= GUEST_TSO6; break;
    default: return false;
    }
    if (h->gso_type & NET_GSO_ECN) need |= GUEST_ECN;
    return !(need & ~guest);
}

static bool give(struct net *n, const struct net_header *h, const struct iovec *frame, unsigned iovs, size_t len)
{
    struct iovec iov[8];
    if (!acceptable(n, h)) {
        net_count_drop(n, 0);
        return true;
    }
    iov[0] = (struct iovec){(void *)h, sizeof *h};
    if (iovs > 7) iovs = 7;
    memcpy(iov + 1, frame, iovs * sizeof *iov);
    if (!n->port.receive(n->port.ctx, iov, iovs + 1)) return false;
    n->delivered = true;
    struct net_direction *s = &n->stats[0];
    net_count(&s->frames, 1);
    net_count(&s->bytes, len);
    device_count(&n->device->bytes_in, len);
    net_count_copy(n, len);
    return true;
}

static bool keep(struct net *n, const struct net_header *h, const struct iovec *iov, unsigned iovs, size_t len)
{
    struct net_waiting *w = NULL;
    if (n->waiting_bytes + len <= NET_WAITING_BYTES) w = malloc(sizeof *w + len);
    if (!w) {
        net_count_drop(n, 0);
        return false;
    }
    w->next = NULL;
    w->header = *h;
    w->len = (uint32_t)len;
    size_t at = 0;
    for (unsigned i = 0; i < iovs; i++) {
        memcpy(w->data + at, iov[i].iov_base, iov[i].iov_len);
        at += iov[i].iov_len;
    }
    net_count_copy(n, len);
    *n->last = w;
    n->last = &w->next;
    n->waiting_bytes += (uint32_t)len;
    atomic_store(&n->waiting, true);
    return true;
}

/* May a frame pass now? Else the timer is armed. */
static bool in_passes(struct net *n, uint64_t now)
{
    uint64_t wait = limiter_wait(&n->in, now);
    if (!wait) {
        if (n->in_since) net_count(&n->stats[0].throttled_ns, now - n->in_since);
        n->in_since = 0;
        return true;
    }
    if (!n->in_since) n->in_since = now;
    event_timer_arm(&n->in_timer, now + wait, 0);
    return false;
}

bool net_deliver(struct net *n, const struct net_header *h, const struct iovec *iov, unsigned iovs)
{
    size_t len = net_iov_bytes(iov, iovs);
    if (!atomic_load_explicit(&n->link, memory_order_relaxed)) {
        net_count_drop(n, 0);
        return true;
    }
    uint64_t now = n->in.active ? clock_mono_ns() : 0;
    if (!n->first && !n->held && (!n->in.active || in_passes(n, now))) {
        bool given = give(n, h, iov, iovs, len);
        if (!given) {
            /* Room that the guest made since then was made before it could see that we wait for it. */
            atomic_store(&n->waiting, true);
            given = give(n, h, iov, iovs, len);
        }
        if (given) {
            atomic_store(&n->waiting, false);
            limiter_charge(&n->in, limited_bits(len), now);
            return true;
        }
    }
    keep(n, h, iov, iovs, len);
    return false;
}

void net_deliver_end(struct net *n)
{
    if (n->delivered && n->port.receive_end) n->port.receive_end(n->port.ctx);
    n->delivered = false;
}

static void drop_first(struct net *n)
{
    struct net_waiting *w = n->first;
    n->first = w->next;
    if (!n->first) n->last = &n->first;
    n->waiting_bytes -= w->len;
    free(w);
}

static void drop_all(struct net *n)
{
    while (n->first) {
        drop_first(n);
        net_count_drop(n, 0);
    }
}

/* Frames that waited, as far as they go now. On the loop's thread. */
static void drain(void *ctx)
{
    struct net *n = ctx;
    pthread_mutex_lock(n->lock);
    atomic_store(&n->draining, false);
    bool had = n->first != NULL;
    if (atomic_exchange(&n->forget, false)) drop_all(n);
    while (n->first && !n->held) {
        struct net_waiting *w = n->first;
        uint64_t now = n->in.active ? clock_mono_ns() : 0;
        if (n->in.active && !in_passes(n, now)) break;
        struct iovec iov = {w->data, w->len};
        if (!give(n, &w->header, &iov, 1, w->len)) break;
        limiter_charge(&n->in, limited_bits(w->len), now);
        drop_first(n);
    }
    atomic_store(&n->waiting, n->first != NULL);
    if (had && !n->first && n->ops->resume) n->ops->resume(n);
    net_deliver_end(n);
    pthread_mutex_unlock(n->lock);
}

static void post_drain(struct net *n)
{
    if (atomic_exchange(&n->draining, true)) return;
    if (event_loop_post(n->loop, drain, n)) atomic_store(&n->draining, false);
}

void net_forget(struct net *n)
{
    atomic_store(&n->forget, true);
    post_drain(n);
}

void net_receive_ready(struct net *n)
{
    if (atomic_load(&n->waiting)) post_drain(n);
}

/* ---- from the guest ---- */

static void out_ready(void *ctx)
{
    struct net *n = ctx;
    if (n->writable) n->writable(n->writable_ctx);
}

/* Charges the frame when it may pass. */
static bool out_passes(struct net *n, size_t len)
{
    pthread_mutex_lock(&n->out_lock);
    uint64_t now = clock_mono_ns(), wait = limiter_wait(&n->out, now);
    if (!wait) {
        if (n->out_since) net_count(&n->stats[1].throttled_ns, now - n->out_since);
        n->out_since = 0;
        limiter_charge(&n->out, limited_bits(len), now);
    } else {
        if (!n->out_since) n->out_since = now;
        event_timer_arm(&n->out_timer, now + wait, 0);
    }
    pthread_mutex_unlock(&n->out_lock);
    return !wait;
}

bool net_send(struct net *n, const struct iovec *iov, unsigned iovs)
{
    struct net_direction *s = &n->stats[1];
    size_t len = net_iov_bytes(iov + 1, iovs - 1);
    if (iovs < 2 || iovs > NET_MAX_SEGMENTS || iov[0].iov_len != sizeof(struct net_header) || len < NET_ETHERNET ||
        len > NET_MAX_FRAME || !atomic_load_explicit(&n->link, memory_order_relaxed)) {
        net_count_drop(n, 1);
        return true;
    }
    if (atomic_load_explicit(&n->out_limited, memory_order_relaxed) && !out_passes(n, len)) return false;
    enum net_sent sent = n->ops->send(n, iov, iovs, len);
    if (sent == NET_FULL) return false;
    if (sent == NET_DROPPED) {
        net_count_drop(n, 1);
        return true;
    }
    net_count(&s->frames, 1);
    net_count(&s->bytes, len);
    device_count(&n->device->bytes_out, len);
    return true;
}

void net_send_end(struct net *n)
{
    if (n->ops->send_end) n->ops->send_end(n);
}

void net_count_into(struct net *n, struct device_stats *s)
{
    n->device = s;
}

void net_on_writable(struct net *n, void (*fn)(void *ctx), void *ctx)
{
    n->writable_ctx = ctx;
    n->writable = fn;
}

/* ---- settings ---- */

void net_set_guest_offloads(struct net *n, bool csum, bool tso4, bool tso6, bool ecn)
{
    unsigned guest = (csum ? GUEST_CSUM : 0) | (csum && tso4 ? GUEST_TSO4 : 0) | (csum && tso6 ? GUEST_TSO6 : 0) |
                     (csum && ecn ? GUEST_ECN : 0);
    atomic_store(&n->guest, guest);
    if (n->ops->offloads) n->ops->offloads(n, guest);
}

void net_set_link(struct net *n, bool up)
{
    if (atomic_exchange(&n->link, up) == up) return;
    if (!up) {
        pthread_mutex_lock(n->lock);
        drop_all(n);
        atomic_store(&n->waiting, false);
        if (n->ops->resume) n->ops->resume(n);
        pthread_mutex_unlock(n->lock);
    }
    if (n->port.link_changed) n->port.link_changed(n->port.ctx, up);
}

void net_hold(struct net *n, bool on)
{
    pthread_mutex_lock(n->lock);
    n->held = on;
    if (!on) atomic_store(&n->waiting, true); /* so that somebody looks */
    pthread_mutex_unlock(n->lock);
    if (!on) net_receive_ready(n);
}

static int check_direction(const char *way, uint64_t avg, uint64_t peak, uint64_t burst, struct nerr *e)
{
    if (peak && !avg) return nerr_set(e, -EINVAL, "network limits: peak_%s without avg_%s; give both", way, way);
    if (burst && !avg) return nerr_set(e, -EINVAL, "network limits: burst_%s without avg_%s; give both", way, way);
    if (peak && peak < avg)
        return nerr_set(e, -EINVAL, "network limits: peak_%s is below avg_%s; give at least as much", way, way);
    if (avg && avg < 8000)
        return nerr_set(e, -EINVAL, "network limits: avg_%s=%llu is less than 8K bits per second; give more", way,
                        (unsigned long long)avg);
    return 0;
}

int net_check_limits(const struct net_limits *l, struct nerr *e)
{
    int r = check_direction("in", l->avg_in, l->peak_in, l->burst_in, e);
    return r ? r : check_direction("out", l->avg_out, l->peak_out, l->burst_out, e);
}

static uint64_t bits(uint64_t bytes)
{
    return bytes > UINT64_MAX / 8 ? UINT64_MAX : bytes * 8;
}

int net_set_limits(struct net *n, const struct net_limits *l, struct nerr *e)
{
    int r = net_check_limits(l, e);
    if (r) return r;
    uint64_t now = clock_mono_ns();
    struct limiter_rate in = {l->avg_in, l->peak_in, bits(l->burst_in)};
    struct limiter_rate out = {l->avg_out, l->peak_out, bits(l->burst_out)};
    /* Who waits for a limit of before looks again. */
    pthread_mutex_lock(n->lock);
    limiter_set(&n->in, &in, now);
    if (n->in_since) event_timer_arm(&n->in_timer, now, 0);
    pthread_mutex_unlock(n->lock);
    pthread_mutex_lock(&n->out_lock);
    limiter_set(&n->out, &out, now);
    n->limits = *l;
    atomic_store(&n->out_limited, n->out.active);
    if (n->out_since) event_timer_arm(&n->out_timer, now, 0);
    pthread_mutex_unlock(&n->out_lock);
    return 0;
}

void net_get_limits(const struct net *n, struct net_limits *l)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&n->out_lock;
    pthread_mutex_lock(lock);
    *l = n->limits;
    pthread_mutex_unlock(lock);
}

void net_get_stats(const struct net *n, struct net_stats *s)
{
    for (int i = 0; i < 2; i++) {
        const struct net_direction *d = &n->stats[i];
        s->frames[i] = atomic_load_explicit(&d->frames, memory_order_relaxed);
        s->bytes[i] = atomic_load_explicit(&d->bytes, memory_order_relaxed);
        s->dropped[i] = atomic_load_explicit(&d->dropped, memory_order_relaxed);
        s->throttled_ns[i] = atomic_load_explicit(&d->throttled_ns, memory_order_relaxed);
    }
}

void net_info(const struct net *n, struct net_info *out)
{
    *out =
        (struct net_info){.offloads = n->offloads, .mtu = n->mtu, .link = atomic_load(&n->link), .kind = n->ops->kind};
}

/* ---- life cycle ---- */

void net_init(struct net *n, const struct net_ops *ops, struct event_loop *loop, const struct net_port *port)
{
    n->ops = ops;
    n->loop = loop;
    n->port = *port;
    n->mtu = NET_MTU_DEFAULT;
    n->last = &n->first;
    n->device = &n->own_device;
    n->lock = &n->own_lock;
    atomic_init(&n->link, true);
    pthread_mutex_init(&n->own_lock, NULL);
    pthread_mutex_init(&n->out_lock, NULL);
    event_timer_init(&n->in_timer, loop, drain, n);
    event_timer_init(&n->out_timer, loop, out_ready, n);
}

void net_fini(struct net *n)
{
    event_timer_destroy(&n->in_timer);
    event_timer_destroy(&n->out_timer);
    while (n->first) drop_first(n);
    pthread_mutex_destroy(&n->own_lock);
    pthread_mutex_destroy(&n->out_lock);
}

/* A card with its cable out. */
static enum net_sent none_send(struct net *n, const struct iovec *iov, unsigned iovs, size_t len)
{
    (void)n, (void)iov, (void)iovs, (void)len;
    return NET_DROPPED;
}

static const struct net_ops none_ops = {.kind = "none", .send = none_send};

static int none_open(struct event_loop *loop, const struct net_port *port, struct net **out, struct nerr *e)
{
    struct net *n = calloc(1, sizeof *n);
    if (!n) return nerr_set(e, -ENOMEM, "--net: out of memory");
    net_init(n, &none_ops, loop, port);
    n->offloads = true;
    atomic_store(&n->link, false);
    *out = n;
    return 0;
}

int net_open(const struct net_config *cfg, struct event_loop *loop, const struct net_port *port, struct net **out,
             struct nerr *e)
{
    *out = NULL;
    if (cfg->mtu && (cfg->mtu < NET_MTU_MIN || cfg->mtu > NET_MTU_MAX))
        return nerr_set(e, -EINVAL, "--net: mtu=%u is not possible; give %u to %u", cfg->mtu, NET_MTU_MIN, NET_MTU_MAX);
    int r = net_check_limits(&cfg->limits, e);
    if (r) return r;
    struct net *n = NULL;
    switch (cfg->kind) {
    case NET_USER: r = net_user_open(cfg, loop, port, &n, e); break;
    case NET_TAP: r = net_tap_open(cfg, loop, port, &n, e); break;
    default: r = none_open(loop, port, &n, e); break;
    }
    if (!n) return r;
    if (cfg->mtu) n->mtu = cfg->mtu;
    net_set_limits(n, &cfg->limits, e);
    *out = n;
    return 0;
}

void net_close(struct net *n)
{
    if (!n) return;
    if (n->ops->close) n->ops->close(n);
    net_fini(n);
    free(n);
}
