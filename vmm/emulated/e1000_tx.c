/* The transmit ring: legacy and extended descriptors, checksum and segmentation contexts (3.3, 3.5). A large frame goes to the back end in
 * one piece, with a header that says how to cut it. */
#include <string.h>

#include "vmm/backend/offload.h"
#include "vmm/emulated/e1000_internal.h"

#define TCTL_EN 0x2u

/* Command bits, in the descriptor's third dword: the same places in all kinds of descriptor. */
#define CMD_EOP 0x01000000u
#define CMD_IC 0x04000000u  /* legacy: insert checksum */
#define CMD_TSE 0x04000000u /* extended: segmentation */
#define CMD_RS 0x08000000u
#define CMD_DEXT 0x20000000u
#define CMD_VLE 0x40000000u
#define TYPE_CONTEXT 0u
#define TUCMD_TCP 0x01000000u
#define TUCMD_IP4 0x02000000u
#define STATUS_DD 0x1u
#define POPTS_IXSM 0x1u
#define POPTS_TXSM 0x2u

/* What one access of the guest may make us do; the rest is done from the loop's thread. */
#define SHARE_DESCRIPTORS 1024u
#define SHARE_BYTES (8u << 20)

#define HEADER_MAX 256u /* bytes of a frame that are changed here: headers of a large frame at most */

struct descriptor {
    uint64_t addr;
    uint32_t lower, upper;
};

/* ---- from descriptors to a frame ---- */

static void load_context(struct e1000_tx *t, const struct descriptor *x)
{
    struct e1000_context *c = x->lower & CMD_TSE ? &t->tso : &t->context;
    *c = (struct e1000_context){
        .ipcss = (uint8_t)x->addr,
        .ipcso = (uint8_t)(x->addr >> 8),
        .ipcse = (uint16_t)(x->addr >> 16),
        .tucss = (uint8_t)(x->addr >> 32),
        .tucso = (uint8_t)(x->addr >> 40),
        .tucse = (uint16_t)(x->addr >> 48),
        .header_len = (uint8_t)(x->upper >> 8),
        .mss = (uint16_t)(x->upper >> 16),
        .ip4 = x->lower & TUCMD_IP4,
        .tcp = x->lower & TUCMD_TCP,
    };
}

static void start_frame(struct e1000 *d, const struct descriptor *x)
{
    struct e1000_tx *t = &d->tx;
    bool extended = x->lower & CMD_DEXT;
    t->first = false;
    t->is_tso = extended && x->lower & CMD_TSE;
    t->options = extended ? (uint8_t)(x->upper >> 8) : 0;
    if (!extended && x->lower & CMD_IC) {
        uint8_t start = (uint8_t)(x->upper >> 8), at = (uint8_t)(x->lower >> 16);
        t->options = POPTS_TXSM;
        t->context = (struct e1000_context){.tucss = start, .tucso = at};
    }
}

static void end_frame(struct e1000_tx *t)
{
    t->pieces = 0;
    t->bytes = 0;
    t->too_long = false;
    t->vlan = false;
    t->first = true;
}

/* The first bytes of the frame, as many as may be changed, from guest memory. */
static uint32_t read_headers(const struct dma_space *dma, const struct e1000_tx *t, uint8_t *to)
{
    uint32_t done = 0, want = t->bytes < HEADER_MAX ? t->bytes : HEADER_MAX;
    for (unsigned i = 0; i < t->pieces && done < want; i++) {
        uint32_t n = t->piece[i].len < want - done ? t->piece[i].len : want - done;
        if (!dma_read(dma, GPA(t->piece[i].gpa), to + done, n)) return 0;
        done += n;
    }
    return done;
}

/* What the headers leave: where the guest has it. Returns the number of vectors, 0 when some of it is not in RAM. */
static unsigned rest_iov(const struct dma_space *dma, const struct e1000_tx *t, uint32_t skip, struct iovec *iov,
                         unsigned n)
{
    for (unsigned i = 0; i < t->pieces; i++) {
        uint32_t len = t->piece[i].len;
        if (skip >= len) {
            skip -= len;
            continue;
        }
        void *p = dma_ptr(dma, GPA(t->piece[i].gpa + skip), len - skip, false);
        if (!p || n == NET_MAX_SEGMENTS) return 0;
        iov[n++] = (struct iovec){p, len - skip};
        skip = 0;
    }
    return n;
}

/* The driver leaves lengths and the IP checksum of a large frame to us (3.5.4), and the TCP checksum without the length. */
static bool make_gso(const struct e1000_tx *t, uint8_t *head, uint32_t n, struct net_header *h)
{
    const struct e1000_context *c = &t->tso;
    uint32_t ip_bytes = t->bytes - c->ipcss;
    if (!c->tcp || !c->mss || c->header_len > n || c->header_len >= t->bytes || c->tucss + 20u > c->header_len ||
        c->ipcss + (c->ip4 ? 20u : 40u) > c->tucss || ip_bytes > 65535)
        return false;
    uint8_t *ip = head + c->ipcss;
    uint32_t length = c->ip4 ? ip_bytes : ip_bytes - 40;
    ip[c->ip4 ? 2 : 4] = (uint8_t)(length >> 8);
    ip[c->ip4 ? 3 : 5] = (uint8_t)length;
    if (c->ip4) {
        memset(ip + 10, 0, 2);
        uint16_t sum = (uint16_t)~offload_sum(ip, c->tucss - c->ipcss, 0);
        memcpy(ip + 10, &sum, 2);
    }
    struct offload_frame f = {
        .l3 = c->ipcss, .l4 = c->tucss, .version = c->ip4 ? 4 : 6, .proto = NET_IP_TCP, .l4_len = 20, .end = t->bytes};
    offload_partial_checksum(head, &f);
    *h = (struct net_header){.flags = NET_HDR_NEEDS_CSUM,
                             .gso_type = c->ip4 ? NET_GSO_TCPV4 : NET_GSO_TCPV6,
                             .hdr_len = c->header_len,
                             .gso_size = c->mss,
                             .csum_start = c->tucss,
                             .csum_offset = 16};
    return true;
}

static void make_checksums(const struct e1000_tx *t, uint8_t *head, uint32_t n, struct net_header *h)
{
    const struct e1000_context *c = &t->context;
    if (t->options & POPTS_IXSM && c->ipcse < n && c->ipcse > c->ipcss && c->ipcso + 2u <= n) {
        uint16_t sum = (uint16_t)~offload_sum(head + c->ipcss, c->ipcse + 1u - c->ipcss, 0);
        memcpy(head + c->ipcso, &sum, 2);
    }
    if (t->options & POPTS_TXSM && c->tucso >= c->tucss && c->tucso + 2u <= t->bytes) {
        h->flags = NET_HDR_NEEDS_CSUM;
        h->csum_start = c->tucss;
        h->csum_offset = (uint16_t)(c->tucso - c->tucss);
    }
}

/* Puts an 802.1Q tag behind the addresses; `head` has room for it. */
static uint32_t insert_tag(const struct e1000 *d, uint8_t *head, uint32_t n, struct net_header *h)
{
    uint16_t type = (uint16_t)e1000_get(d, E1000_VET);
    memmove(head + 16, head + 12, n - 12);
    head[12] = (uint8_t)(type >> 8);
    head[13] = (uint8_t)type;
    head[14] = (uint8_t)(d->tx.tag >> 8);
    head[15] = (uint8_t)d->tx.tag;
    if (h->csum_start) h->csum_start = (uint16_t)(h->csum_start + 4);
    if (h->hdr_len) h->hdr_len = (uint16_t)(h->hdr_len + 4);
    return n + 4;
}

static void count_frame(struct e1000 *d, uint32_t bytes)
{
    e1000_add(d, E1000_GPTC, 1);
    e1000_add(d, E1000_TPT, 1);
    e1000_add64(d, E1000_GOTCL, bytes);
    e1000_add64(d, E1000_TOTL, bytes);
    device_count(&d->stats->requests, 1);
}

/* False: the back end is full. */
static bool send_frame(struct e1000 *d, const struct dma_space *dma)
{
    struct e1000_tx *t = &d->tx;
    uint8_t head[HEADER_MAX + 4];
    struct net_header h = {0};
    struct iovec iov[NET_MAX_SEGMENTS];
    uint32_t n = t->too_long ? 0 : read_headers(dma, t, head);
    if (n < 14 || (t->is_tso && !make_gso(t, head, n, &h))) {
        device_count(&d->stats->errors, 1);
        return true;
    }
    if (!t->is_tso) make_checksums(t, head, n, &h);
    uint32_t skip = n;
    if (t->vlan) n = insert_tag(d, head, n, &h);
    iov[0] = (struct iovec){&h, sizeof h};
    iov[1] = (struct iovec){head, n};
    unsigned iovs = rest_iov(dma, t, skip, iov, 2);
    if (!iovs) {
        device_count(&d->stats->errors, 1);
        return true;
    }
    if (!net_send(d->net, iov, iovs)) return false;
    count_frame(d, t->bytes);
    t->work += t->bytes;
    return true;
}

/* One data or legacy descriptor. False: the frame that it ends can't be sent now; nothing has changed. */
static bool take_data(struct e1000 *d, const struct dma_space *dma, const struct descriptor *x)
{
    struct e1000_tx *t = &d->tx;
    uint32_t len = x->lower & (x->lower & CMD_DEXT ? 0xfffffu : 0xffffu);
    if (t->first) start_frame(d, x);
    unsigned before = t->pieces;
    uint32_t bytes_before = t->bytes;
    if (len && t->pieces < NET_MAX_SEGMENTS - 2 && t->bytes + len <= NET_MAX_FRAME) {
        t->piece[t->pieces++] = (struct e1000_piece){x->addr, len};
        t->bytes += len;
    } else if (len) {
        t->too_long = true;
    }
    if (!(x->lower & CMD_EOP)) return true;
    t->vlan = x->lower & CMD_VLE && e1000_get(d, E1000_CTRL) & CTRL_VME;
    t->tag = (uint16_t)(x->upper >> 16);
    if (!send_frame(d, dma)) {
        t->pieces = before;
        t->bytes = bytes_before;
        return false;
    }
    end_frame(t);
    return true;
}

/* ---- the ring ---- */

static void go_on(void *ctx)
{
    struct e1000 *d = ctx;
    pthread_mutex_lock(&d->tx_lock);
    d->tx.continuing = false;
    e1000_tx_run(d);
    pthread_mutex_unlock(&d->tx_lock);
}

/* Processes one descriptor. False: stop before it. */
static bool run_one(struct e1000 *d, const struct dma_space *dma, uint64_t at, uint32_t *causes)
{
    struct descriptor x;
    if (!dma_read(dma, GPA(at), &x, sizeof x)) return true; /* nothing there: skipped */
    if ((x.lower & CMD_DEXT) && (x.lower >> 20 & 15) == TYPE_CONTEXT)
        load_context(&d->tx, &x);
    else if (!take_data(d, dma, &x))
        return false;
    if (x.lower & CMD_RS) {
        uint8_t status = (uint8_t)(x.upper | STATUS_DD);
        dma_write(dma, GPA(at + 12), &status, 1);
        *causes |= CAUSE_TXDW;
    }
    return true;
}

void e1000_tx_run(struct e1000 *d)
{
    struct e1000_tx *t = &d->tx;
    if (!(e1000_get(d, E1000_TCTL) & TCTL_EN) || !pci_bus_master(d->function) || t->continuing) return;
    const struct dma_space *dma = pci_dma(d->function);
    uint64_t base = (uint64_t)e1000_get(d, E1000_TDBAH) << 32 | e1000_get(d, E1000_TDBAL);
    uint32_t size = e1000_get(d, E1000_TDLEN) / 16, head = e1000_get(d, E1000_TDH), tail = e1000_get(d, E1000_TDT);
    if (head >= size || tail >= size || head == tail) return;
    uint32_t causes = 0, budget = SHARE_DESCRIPTORS;
    t->blocked = false;
    t->work = 0;
    while (head != tail && budget && t->work < SHARE_BYTES) {
        if (!run_one(d, dma, base + head * 16ull, &causes)) {
            t->blocked = true;
            break;
        }
        budget--;
        head = head + 1 == size ? 0 : head + 1;
    }
    e1000_put(d, E1000_TDH, head);
    net_send_end(d->net);
    if (head == tail)
        causes |= CAUSE_TXQE;
    else if (!t->blocked)
        t->continuing = event_loop_post(d->loop, go_on, d) == 0;
    if (causes) e1000_raise(d, causes);
}

void e1000_tx_writable(void *ctx)
{
    struct e1000 *d = ctx;
    pthread_mutex_lock(&d->tx_lock);
    if (d->tx.blocked) e1000_tx_run(d);
    pthread_mutex_unlock(&d->tx_lock);
}
