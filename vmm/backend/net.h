/* Network back ends: where a NIC's frames go (tap device, user networking by libslirp, nowhere).
 *
 * Frames carry a struct net_header in front that says what is left to do (checksum, segmentation), with the layout and meaning of virtio's
 * (virtio 1.2, 5.1.6), so that tap passes it through. Every back end takes such frames from the guest; towards the guest it makes them only
 * as far as net_set_guest_offloads() allows, and does the rest in software (offload.h) or has the kernel do it.
 *
 * Threads: functions may be called from any thread but open and close. Locks go one way: front end's transmit side, back end, front end's
 * receive side. net_send() may call port->receive() (answers of the user network come at once): the transmit side's lock may be held then,
 * the receive side's not. */
#ifndef NACELLE_VMM_NET_H
#define NACELLE_VMM_NET_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/error.h"

struct device_stats;
struct event_loop;
struct net;

#define NET_MAX_FRAME 65562u /* largest GSO frame with Ethernet and VLAN headers */
#define NET_MAX_SEGMENTS 64u /* longest iovec net_send() takes, header included; longer ones are dropped */
#define NET_MTU_DEFAULT 1500u
#define NET_MTU_MIN 1280u /* what IPv6 asks for */
#define NET_MTU_MAX 65521u
#define NET_MAX_FORWARDS 32u
#define NET_NAME_MAX 15u /* of a host interface: IFNAMSIZ - 1 */

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
    /* A frame for the guest, header first: iov[0] is a struct net_header, the rest the frame. Returns false when there is no room: the back
     * end keeps it, stops reading and goes on after net_receive_ready(). The data may be used during the call only. Never two calls at
     * once. */
    bool (*receive)(void *ctx, const struct iovec *iov, unsigned iovs);
    /* The last receive() of a batch is over: tell the guest. May be NULL. */
    void (*receive_end)(void *ctx);
    void (*link_changed)(void *ctx, bool up); /* may be NULL */
};

enum net_kind { NET_NONE, NET_USER, NET_TAP };

struct net_forward { /* a port of the host that leads into the guest */
    bool udp;
    struct in_addr host, guest; /* 0.0.0.0: all of the host's addresses; the guest's first address by DHCP */
    uint16_t host_port, guest_port;
};

struct net_user_config {
    bool restricted; /* the guest reaches nothing but what is forwarded, and DHCP */
    bool no_ipv6;
    const char *hostname, *domain; /* given by DHCP, or NULL */
    struct in_addr network, mask;  /* 0.0.0.0: 10.0.2.0/24. The host is .2, the name server .3, the guest from .15 on */
    struct in_addr dns;            /* 0.0.0.0: the network's .3 */
    struct net_forward forward[NET_MAX_FORWARDS];
    unsigned forwards;
};

struct net_tap_config {
    char name[NET_NAME_MAX + 1]; /* of an interface that exists, or may be created */
    bool by_fd;                  /* use `fd` (taken over): a tap device, or in tests a datagram socket */
    int fd;
};

struct net_config { /* strings are used during net_open() only */
    enum net_kind kind;
    unsigned mtu; /* bytes; 0: NET_MTU_DEFAULT (tap: the interface's) */
    struct net_limits limits;
    struct net_user_config user;
    struct net_tap_config tap;
};

struct net_info {
    bool offloads; /* a checksum or segmentation left to it costs less than one done by the guest */
    unsigned mtu;
    bool link;
    const char *kind; /* static: "user", "tap", "none" */
};

struct net_stats { /* [0] to the guest, [1] from it */
    uint64_t frames[2], bytes[2], dropped[2];
    uint64_t throttled_ns[2]; /* time that frames had to wait for a limit */
};

int net_open(const struct net_config *cfg, struct event_loop *loop, const struct net_port *port, struct net **out,
             struct nerr *e);
/* The loop must not run any more, or this is the loop's thread. NULL is fine. */
void net_close(struct net *n);
void net_info(const struct net *n, struct net_info *out);
/* iov[0] is a struct net_header of the caller's own memory; the rest is the frame and may be the guest's memory. True: the frame was taken (or
 * dropped, as networks do). False: limited or full, try again after `writable` says so. */
bool net_send(struct net *n, const struct iovec *iov, unsigned iovs);
/* The last net_send() of a batch is over. After every batch, with the same locks as net_send(). */
void net_send_end(struct net *n);
/* Called (on the loop's thread, no lock held) when net_send() may succeed again. Before the first net_send(). */
void net_on_writable(struct net *n, void (*fn)(void *ctx), void *ctx);
/* The guest made room. Cheap when nothing waits; receive() comes later on the loop's thread. Any lock may be held. */
void net_receive_ready(struct net *n);
/* The driver was reset: frames that wait are dropped, they were for the one before. Any lock may be held. */
void net_forget(struct net *n);
/* Counts bytes, copies and errors there too. Before the first frame. */
void net_count_into(struct net *n, struct device_stats *s);
/* What the guest's driver accepts to receive (virtio feature bits GUEST_CSUM, GUEST_TSO4 ...). Nothing until this is called. */
void net_set_guest_offloads(struct net *n, bool csum, bool tso4, bool tso6, bool ecn);
/* Plugs the cable out or in: frames are dropped while it is out. Not with a lock of the front end held. */
void net_set_link(struct net *n, bool up);
/* While held, frames for the guest wait as when it has no room. Not with a lock of the front end held. */
void net_hold(struct net *n, bool on);
int net_check_limits(const struct net_limits *l, struct nerr *e);
int net_set_limits(struct net *n, const struct net_limits *l, struct nerr *e);
void net_get_limits(const struct net *n, struct net_limits *l);
void net_get_stats(const struct net *n, struct net_stats *s);

#endif
