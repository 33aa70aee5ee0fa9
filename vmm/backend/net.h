/* Network back ends: where a NIC's frames go (tap device, user networking by libslirp, nowhere).
 *
 * Frames carry a struct net_header in front that says what is left to do (checksum, segmentation), with the layout and meaning of virtio's
 * (virtio 1.2, 5.1.6), so that tap passes it through; a back end that can't do offloads says so in its capabilities and the front end
 * doesn't offer them to the guest.
 *
 * Threads: net_send() from any thread; the receive callback comes on the event loop's thread. */
#ifndef NACELLE_VMM_NET_H
#define NACELLE_VMM_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/error.h"

struct event_loop;
struct net;

#define NET_MAX_FRAME 65562u /* largest GSO frame with Ethernet and VLAN headers */

struct net_header { /* little endian; virtio_net_hdr with num_buffers */
    uint8_t flags, gso_type;
    uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};

/* Averages and peaks in bits per second, bursts in bytes; 0 is "no limit". `in` is towards the guest. peak >= avg when both are set. */
struct net_limits {
    uint64_t avg_in, peak_in, burst_in;
    uint64_t avg_out, peak_out, burst_out;
};

struct net_port { /* the front end's side */
    void *ctx;
    /* A frame for the guest (header included). Returns false when there is no room: the back end keeps it, stops reading and goes on after
     * net_receive_ready(). The data may be used during the call only. */
    bool (*receive)(void *ctx, const struct iovec *iov, unsigned iovs);
    void (*link_changed)(void *ctx, bool up); /* may be NULL */
};

struct net_config {
    const char *spec; /* "user,...", "tap=NAME", "none" with the back end's own options (see --net) */
    struct net_limits limits;
};

struct net_info {
    bool offloads; /* takes and gives partial checksums and GSO frames */
    unsigned mtu;
    bool link;
    const char *kind; /* static: "user", "tap", "none" */
};

struct net_stats {
    uint64_t frames[2], bytes[2], dropped[2]; /* [0] to the guest, [1] from it */
    uint64_t throttled_ns[2];
};

int net_open(const struct net_config *cfg, struct event_loop *loop, const struct net_port *port, struct net **out,
             struct nerr *e);
void net_close(struct net *n);
void net_info(const struct net *n, struct net_info *out);
/* The frame is taken (or dropped, as networks do) before it returns; header first. False: limited or full, try again after `writable` says so. */
bool net_send(struct net *n, const struct iovec *iov, unsigned iovs);
/* Called (on the loop's thread) when net_send() may succeed again. */
void net_on_writable(struct net *n, void (*fn)(void *ctx), void *ctx);
void net_receive_ready(struct net *n); /* any thread: the guest made room */
/* What the guest's driver accepts to receive (virtio feature bits GUEST_CSUM, GUEST_TSO4 ...). */
void net_set_guest_offloads(struct net *n, bool csum, bool tso4, bool tso6, bool ecn, bool ufo);
int net_set_limits(struct net *n, const struct net_limits *l, struct nerr *e);
void net_get_limits(const struct net *n, struct net_limits *l);
void net_get_stats(const struct net *n, struct net_stats *s);

#endif
