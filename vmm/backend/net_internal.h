/* Private header of the network back ends: what they share (limits, frames that wait, statistics), and what each brings. */
#ifndef NACELLE_VMM_NET_INTERNAL_H
#define NACELLE_VMM_NET_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/event.h"
#include "vmm/bus/device_stats.h"
#include "vmm/backend/limiter.h"
#include "vmm/backend/net.h"
#include "vmm/backend/offload.h"

#define NET_ETHERNET 14u

/* What net_set_guest_offloads() was told, as bits. */
enum { GUEST_CSUM = 1, GUEST_TSO4 = 2, GUEST_TSO6 = 4, GUEST_ECN = 8 };

enum net_sent { NET_FULL, NET_SENT, NET_DROPPED };

struct net_ops {
    const char *kind;
    /* A frame of the guest, of at least an Ethernet header; without n->lock. NET_FULL: n's writable callback follows. */
    enum net_sent (*send)(struct net *n, const struct iovec *iov, unsigned iovs, size_t len);
    void (*send_end)(struct net *n); /* may be NULL */
    /* Frames waited and have all been delivered: read on. With n->lock. */
    void (*resume)(struct net *n);
    void (*offloads)(struct net *n, unsigned guest); /* may be NULL */
    void (*close)(struct net *n); /* frees what the back end added; n itself is freed by the caller */
};

struct net_waiting { /* a frame that could not be delivered yet */
    struct net_waiting *next;
    struct net_header header;
    uint32_t len;
    uint8_t data[];
};

/* Frames that wait use at most this much; what comes then is dropped, as by a full switch. */
#define NET_WAITING_BYTES (4u << 20)

struct net_direction {
    _Atomic uint64_t frames, bytes, dropped, throttled_ns;
};

struct net {
    const struct net_ops *ops;
    struct event_loop *loop;
    struct net_port port;
    unsigned mtu;
    bool offloads;
    _Atomic bool link;
    _Atomic unsigned guest; /* GUEST_* */

    pthread_mutex_t *lock, own_lock; /* delivery to the guest, and the back end's state */
    struct net_waiting *first, **last;
    uint32_t waiting_bytes;
    _Atomic bool waiting; /* first != NULL */
    _Atomic bool draining;
    _Atomic bool forget; /* what waits is for nobody */
    bool held;           /* nothing is delivered: the guest is paused */
    bool delivered;      /* receive_end() is due */
    struct limiter in;
    uint64_t in_since; /* a limit holds frames up since then; 0: no */
    struct event_timer in_timer;

    pthread_mutex_t out_lock; /* a leaf */
    struct limiter out;
    _Atomic bool out_limited;
    uint64_t out_since;
    struct event_timer out_timer;
    void (*writable)(void *ctx);
    void *writable_ctx;

    struct net_limits limits; /* out_lock */
    struct net_direction stats[2];
    struct device_stats *device, own_device; /* the NIC's counters; own_device until net_count_into() */
};

/* ---- net.c, for the back ends ---- */
void net_init(struct net *n, const struct net_ops *ops, struct event_loop *loop, const struct net_port *port);
void net_fini(struct net *n);
/* A frame for the guest (no header in `iov`). With n->lock. False: it waits (or was dropped); stop reading until resume(). */
bool net_deliver(struct net *n, const struct net_header *h, const struct iovec *iov, unsigned iovs);
/* The batch is over. With n->lock. */
void net_deliver_end(struct net *n);
/* The VMM copied a frame. */
static inline void net_count_copy(struct net *n, uint64_t bytes)
{
    device_count(&n->device->copies, 1);
    device_count(&n->device->copied, bytes);
}
static inline void net_count_drop(struct net *n, int way)
{
    device_count(&n->stats[way].dropped, 1);
    device_count(&n->device->errors, 1);
}
static inline void net_count(_Atomic uint64_t *c, uint64_t by)
{
    atomic_fetch_add_explicit(c, by, memory_order_relaxed);
}
size_t net_iov_bytes(const struct iovec *iov, unsigned iovs);

/* ---- back ends ---- */
int net_user_open(const struct net_config *cfg, struct event_loop *loop, const struct net_port *port, struct net **out,
                  struct nerr *e);
int net_tap_open(const struct net_config *cfg, struct event_loop *loop, const struct net_port *port, struct net **out,
                 struct nerr *e);

#endif
