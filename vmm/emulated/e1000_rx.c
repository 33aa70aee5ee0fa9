/* The receive ring and its filters (3.2). */
#include <string.h>

#include "vmm/backend/offload.h"
#include "vmm/emulated/e1000_internal.h"

#define RCTL_EN 0x2u
#define RCTL_UPE 0x8u
#define RCTL_MPE 0x10u
#define RCTL_LPE 0x20u
#define RCTL_BAM 0x8000u
#define RCTL_VFE 0x40000u
#define RCTL_BSEX 0x2000000u
#define RCTL_SECRC 0x4000000u
#define RXCSUM_TUOFL 0x200u

#define RX_DD 0x01u
#define RX_EOP 0x02u
#define RX_IXSM 0x04u
#define RX_VP 0x08u
#define RX_TCPCS 0x20u
#define RX_IPCS 0x40u
#define RX_PIF 0x80u

#define FCS 4u
#define SHORTEST 60u

/* The second half of a descriptor, which we write: length and checksum, status and errors, tag. In one store, behind the data: the driver
 * looks at it from another CPU. */
static void complete(const struct dma_space *dma, uint64_t at, uint32_t length, uint8_t status, uint16_t special)
{
    uint64_t *p = dma_ptr(dma, GPA(at + 8), 8, true);
    if (!p) return;
    __atomic_store_n(p, length | (uint64_t)status << 32 | (uint64_t)special << 48, __ATOMIC_RELEASE);
    dma_written(dma, GPA(at + 8), 8);
}

/* ---- filters (3.2.1) ---- */

static bool exact_match(const struct e1000 *d, const uint8_t *to)
{
    uint32_t low = (uint32_t)to[0] | (uint32_t)to[1] << 8 | (uint32_t)to[2] << 16 | (uint32_t)to[3] << 24;
    uint32_t high = (uint32_t)to[4] | (uint32_t)to[5] << 8;
    for (unsigned i = 0; i < 16; i++) {
        uint32_t rah = e1000_get(d, E1000_RAH + i * 8);
        if (rah & RAH_VALID && (rah & 0xffff) == high && e1000_get(d, E1000_RAL + i * 8) == low) return true;
    }
    return false;
}

/* Twelve bits of the address, chosen by RCTL.MO, pick a bit of the multicast table (13.5.1). */
static bool hash_match(const struct e1000 *d, const uint8_t *to, uint32_t rctl)
{
    static const unsigned shift[4] = {4, 3, 2, 0};
    unsigned hash = ((unsigned)to[4] | (unsigned)to[5] << 8) >> shift[rctl >> 12 & 3] & 0xfff;
    return e1000_get(d, E1000_MTA + (hash >> 5) * 4) >> (hash & 31) & 1;
}

static bool wanted(const struct e1000 *d, const uint8_t *frame, bool *inexact)
{
    static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    uint32_t rctl = e1000_get(d, E1000_RCTL);
    if (rctl & RCTL_VFE && (frame[12] << 8 | frame[13]) == (int)(e1000_get(d, E1000_VET) & 0xffff)) {
        unsigned vlan = (unsigned)(frame[14] << 8 | frame[15]) & 0xfff;
        if (!(e1000_get(d, E1000_VFTA + (vlan >> 5) * 4) >> (vlan & 31) & 1)) return false;
    }
    if (memcmp(frame, broadcast, 6) == 0 && rctl & RCTL_BAM) return true;
    if (exact_match(d, frame)) return true;
    if (!(frame[0] & 1)) return rctl & RCTL_UPE;
    if (rctl & RCTL_MPE) return true;
    *inexact = true;
    return hash_match(d, frame, rctl);
}

static uint32_t buffer_size(uint32_t rctl)
{
    uint32_t size = 2048u >> (rctl >> 16 & 3);
    return rctl & RCTL_BSEX ? size * 16 : size;
}

/* ---- the ring ---- */

/* A frame on its way into buffers. */
struct incoming {
    const struct iovec *iov; /* what is left of `part` */
    unsigned iovs;
    size_t at;      /* in iov[0] */
    uint32_t left;  /* bytes of the frame, without its FCS */
    uint32_t tail;  /* padding and FCS behind it: zeros, nobody looks at them */
    uint8_t status; /* of its last descriptor */
    uint16_t tag;
    struct iovec part[NET_MAX_SEGMENTS + 1];
};

/* Up to `room` bytes to `gpa`; what isn't RAM swallows them, as on the bus. */
static uint32_t put_bytes(const struct dma_space *dma, struct incoming *in, uint64_t gpa, uint32_t room)
{
    static const uint8_t zeros[SHORTEST + FCS];
    uint32_t done = 0;
    while (done < room && in->left) {
        size_t n = in->iov->iov_len - in->at;
        if (n > room - done) n = room - done;
        if (n > in->left) n = in->left;
        dma_write(dma, GPA(gpa + done), (const uint8_t *)in->iov->iov_base + in->at, n);
        done += (uint32_t)n;
        in->left -= (uint32_t)n;
        in->at += n;
        if (in->at == in->iov->iov_len) in->iov++, in->iovs--, in->at = 0;
    }
    uint32_t n = room - done < in->tail ? room - done : in->tail;
    if (n) dma_write(dma, GPA(gpa + done), zeros, n);
    in->tail -= n;
    return done + n;
}

static uint8_t checksum_status(const struct e1000 *d, const struct net_header *h, const struct iovec *frame,
                               uint32_t len)
{
    struct offload_frame f;
    if (!(h->flags & NET_HDR_DATA_VALID) || !(e1000_get(d, E1000_RXCSUM) & RXCSUM_TUOFL)) return RX_IXSM;
    if (!offload_parse_head(frame->iov_base, frame->iov_len, len, &f) || !f.l4_len || f.version != 4) return RX_IXSM;
    return RX_IPCS | RX_TCPCS;
}

static uint32_t ring_free(uint32_t head, uint32_t tail, uint32_t size)
{
    return tail >= head ? tail - head : tail + size - head;
}

static void count_frame(struct e1000 *d, const uint8_t *to, uint32_t bytes)
{
    e1000_add(d, E1000_GPRC, 1);
    e1000_add(d, E1000_TPR, 1);
    e1000_add64(d, E1000_GORCL, bytes);
    e1000_add64(d, E1000_TORL, bytes);
    if (to[0] & 1) e1000_add(d, to[0] == 0xff ? E1000_BPRC : E1000_MPRC, 1);
    device_count(&d->stats->requests, 1);
}

/* What goes into buffers of a frame in iov[1] and on: a VLAN tag may move from its bytes 12 to 15 to the descriptor. */
static void take_apart(const struct e1000 *d, const struct iovec *iov, unsigned iovs, uint32_t len, struct incoming *in)
{
    const uint8_t *frame = iov[1].iov_base;
    bool tagged = e1000_get(d, E1000_CTRL) & CTRL_VME && len > 18 && iov[1].iov_len >= 18 &&
                  (frame[12] << 8 | frame[13]) == (int)(e1000_get(d, E1000_VET) & 0xffff);
    in->iov = in->part;
    in->iovs = 0;
    in->at = 0;
    in->left = tagged ? len - 4 : len;
    in->tail = (in->left < SHORTEST ? SHORTEST - in->left : 0) + (e1000_get(d, E1000_RCTL) & RCTL_SECRC ? 0 : FCS);
    in->status = checksum_status(d, iov[0].iov_base, &iov[1], len) | (tagged ? RX_VP : 0);
    in->tag = tagged ? (uint16_t)(frame[14] << 8 | frame[15]) : 0;
    if (tagged) {
        in->part[in->iovs++] = (struct iovec){(void *)frame, 12};
        in->part[in->iovs++] = (struct iovec){(void *)(frame + 16), iov[1].iov_len - 16};
    } else {
        in->part[in->iovs++] = iov[1];
    }
    for (unsigned i = 2; i < iovs && in->iovs <= NET_MAX_SEGMENTS; i++)
        if (iov[i].iov_len) in->part[in->iovs++] = iov[i];
}

/* Into the descriptors from `head` on, of which there are enough; `room`: bytes of each one's buffer. */
static void fill(struct e1000 *d, struct incoming *in, uint32_t head, uint32_t size, uint32_t room)
{
    const struct dma_space *dma = pci_dma(d->function);
    uint64_t base = (uint64_t)e1000_get(d, E1000_RDBAH) << 32 | e1000_get(d, E1000_RDBAL);
    uint32_t total = in->left + in->tail;
    const uint8_t *to = in->part[0].iov_base;
    while (in->left + in->tail) {
        uint64_t addr, at = base + head * 16ull;
        if (!dma_read(dma, GPA(at), &addr, sizeof addr)) return;
        uint32_t n = put_bytes(dma, in, addr, room);
        bool last = !(in->left + in->tail);
        complete(dma, at, n, (uint8_t)(RX_DD | (last ? RX_EOP | in->status : 0)), last ? in->tag : 0);
        head = head + 1 == size ? 0 : head + 1;
    }
    e1000_put(d, E1000_RDH, head);
    count_frame(d, to, total);
}

/* With rx_lock. False: there are not enough descriptors yet. */
static bool put_frame(struct e1000 *d, const struct iovec *iov, unsigned iovs, uint32_t len)
{
    bool inexact = false;
    if (!wanted(d, iov[1].iov_base, &inexact)) return true;
    uint32_t room = buffer_size(e1000_get(d, E1000_RCTL));
    uint32_t size = e1000_get(d, E1000_RDLEN) / 16, head = e1000_get(d, E1000_RDH), tail = e1000_get(d, E1000_RDT);
    if (head >= size || tail >= size || !pci_bus_master(d->function)) return true; /* not set up: lost */
    struct incoming in;
    take_apart(d, iov, iovs, len, &in);
    if (inexact) in.status |= RX_PIF;
    uint32_t need = (in.left + in.tail + room - 1) / room;
    if (ring_free(head, tail, size) < need) {
        if (need < size) return false;
        e1000_add(d, E1000_MPC, 1); /* it never fits */
        return true;
    }
    fill(d, &in, head, size, room);
    return true;
}

bool e1000_receive(void *ctx, const struct iovec *iov, unsigned iovs)
{
    struct e1000 *d = ctx;
    uint32_t len = 0;
    if (iovs < 2 || iov[0].iov_len != sizeof(struct net_header) || iov[1].iov_len < 16) return true;
    for (unsigned i = 1; i < iovs; i++) len += (uint32_t)iov[i].iov_len;
    pthread_mutex_lock(&d->rx_lock);
    uint32_t rctl = e1000_get(d, E1000_RCTL);
    bool taken = true;
    if (!(rctl & RCTL_EN)) {
        e1000_add(d, E1000_MPC, 1);
    } else if (len > (rctl & RCTL_LPE ? E1000_MAX_FRAME - FCS : 1522 - FCS)) {
        e1000_add(d, E1000_ROC, 1);
    } else {
        taken = put_frame(d, iov, iovs, len);
    }
    pthread_mutex_unlock(&d->rx_lock);
    atomic_store_explicit(&d->received, true, memory_order_relaxed);
    return taken;
}

/* One interrupt for what came in one batch. */
void e1000_receive_end(void *ctx)
{
    struct e1000 *d = ctx;
    if (!atomic_exchange_explicit(&d->received, false, memory_order_relaxed)) return;
    uint32_t causes = CAUSE_RXT0;
    uint32_t size = e1000_get(d, E1000_RDLEN) / 16, threshold = e1000_get(d, E1000_RCTL) >> 8 & 3;
    uint32_t left = ring_free(e1000_get(d, E1000_RDH), e1000_get(d, E1000_RDT), size);
    if (threshold < 3 && left <= size >> (threshold + 1)) causes |= CAUSE_RXDMT0;
    e1000_raise(d, causes);
}
