/* What a NIC with offloads leaves to whoever comes after it, done in software: checksums, segmentation of large TCP frames (TSO),
 * fragmentation of large datagrams. Needed where the back end or the guest's driver can't.
 *
 * Frames are hostile: every length in them is checked against what is there. Pure functions, any thread. */
#ifndef NACELLE_VMM_OFFLOAD_H
#define NACELLE_VMM_OFFLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "vmm/backend/net.h"

/* Flags and types of struct net_header, as in virtio 1.2, 5.1.6. */
#define NET_HDR_NEEDS_CSUM 1
#define NET_HDR_DATA_VALID 2
#define NET_GSO_NONE 0
#define NET_GSO_TCPV4 1
#define NET_GSO_TCPV6 4
#define NET_GSO_ECN 0x80 /* a bit on top of the TCP types */

#define NET_IP_TCP 6
#define NET_IP_UDP 17

/* Where things are in a frame: Ethernet, up to two VLAN tags, IPv4 or IPv6 (with its usual extension headers), TCP or UDP. */
struct offload_frame {
    uint16_t l3;     /* offset of the IP header; 0: no IP */
    uint16_t l4;     /* offset of what IP carries */
    uint8_t version; /* 4 or 6 */
    uint8_t proto;   /* what IP carries: NET_IP_TCP, NET_IP_UDP, another number; valid when l3 != 0 */
    bool fragment;   /* a piece of a datagram: there is no (whole) transport header to look at */
    uint16_t l4_len; /* TCP and UDP: bytes of their header, all of them inside the frame; 0: not there */
    uint32_t end;    /* where the IP packet ends; what follows is padding */
};

/* False when there is nothing in it that we know, or lengths contradict each other. */
bool offload_parse(const uint8_t *frame, size_t len, struct offload_frame *f);
/* The same for a frame of which only the first `have` bytes are at hand. */
bool offload_parse_head(const uint8_t *frame, size_t have, size_t len, struct offload_frame *f);

/* Ones' complement sum of `len` bytes, folded to 16 bits, in the byte order of memory; `sum` continues an earlier one of even length. */
uint16_t offload_sum(const void *data, size_t len, uint32_t sum);

/* Does the checksum that `h` asks for. False when it asks for one outside the frame. */
bool offload_checksum(const struct net_header *h, uint8_t *frame, size_t len);

/* Puts the partial checksum under a TCP or UDP header that NET_HDR_NEEDS_CSUM stands for: that of the pseudo header alone. */
void offload_partial_checksum(uint8_t *frame, const struct offload_frame *f);

/* Raises the MSS that a TCP SYN announces to `mss` when it is lower. For a peer that may send larger segments, since we cut them. The
 * checksum is kept right (a partial one stays partial). */
void offload_raise_mss(uint8_t *frame, const struct offload_frame *f, uint16_t mss, bool partial);

/* Takes one piece: `iov[0]` is the piece's own headers, the rest is the frame's. Return false to stop. */
typedef bool (*offload_emit)(void *ctx, const struct iovec *iov, unsigned iovs);

/* Cuts a TCP frame into segments of at most `mss` bytes of payload with complete checksums. `frame` is as long as f->end at least. False
 * when it can't be cut (no TCP, fragment, mss 0), or emit said so. */
bool offload_segment(const uint8_t *frame, const struct offload_frame *f, uint16_t mss, offload_emit emit, void *ctx);

/* Cuts an IP packet larger than `mtu` into fragments. Checksums of what it carries must be complete. False as above. */
bool offload_fragment(const uint8_t *frame, const struct offload_frame *f, unsigned mtu, uint32_t id, offload_emit emit,
                      void *ctx);

#endif
