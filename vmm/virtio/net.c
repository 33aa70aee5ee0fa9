/* The network device. Locks: a transmit queue's, then the back end's, then a receive queue's (vmm/backend/net.h); `lock` is a leaf. */
#include "vmm/virtio/net.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>

#include "vmm/backend/offload.h"

#define QUEUE_SIZE 256
#define CONTROL_SIZE 64
#define PCI_CLASS_ETHERNET 0x020000
#define MAC_TABLE 64 /* addresses per kind; more of them and the filter opens */
/* The longest command: class and number, then two tables of addresses of 6 bytes, each behind its count. Tables of up to four times what we keep
 * open the filter; longer ones are the driver's error. */
#define LONGEST_COMMAND (2 + 2 * (4 + 4 * MAC_TABLE * 6))
#define FLOWS 256  /* entries of the table that leads a flow's frames to the queue that sends it */
#define HEADERS 96 /* bytes of a frame that are looked at to find its flow */
/* Buffers of one frame: enough for the largest one in buffers of 1500 bytes; smaller ones are the driver's own fault. */
#define MERGE_MAX 64

enum { QUEUE_RX, QUEUE_TX }; /* by index modulo 2 */

struct mac_filter {
    bool promisc, allmulti, alluni, nomulti, nouni, nobcast;
    bool any_unicast, any_multicast; /* the table was too long for us */
    unsigned unicasts, multicasts;
    uint8_t unicast[MAC_TABLE][6], multicast[MAC_TABLE][6];
};

struct virtio_net {
    struct virtio_device *device;
    struct net *net;
    unsigned max_pairs;

    _Atomic unsigned pairs;   /* in use */
    _Atomic uint64_t driver;  /* accepted features while active */
    _Atomic uint32_t blocked; /* transmit queues (by pair) that wait for the back end */
    _Atomic uint8_t flow[FLOWS];
    _Atomic uint32_t touched; /* receive queues (by pair) to flush at the end of a batch */

    pthread_mutex_t lock;       /* below */
    uint8_t mac[6], own_mac[6]; /* set by the driver; of the configuration */
    struct mac_filter filter;
    uint16_t status;
};

static bool has(const struct virtio_net *v, unsigned bit)
{
    return atomic_load_explicit(&v->driver, memory_order_relaxed) & VIRTIO_BIT(bit);
}

/* ---- flows: which queue pair ---- */

/* The same for both directions of a flow: addresses and ports are added up. */
static unsigned flow_of(const uint8_t *frame, size_t len)
{
    if (len < 34) return 0;
    uint32_t sum = 0;
    unsigned l3 = 14, words, at;
    if (frame[12] == 8 && frame[13] == 0) {
        words = 4, at = l3 + 12;
    } else if (frame[12] == 0x86 && frame[13] == 0xdd && len >= 54) {
        words = 16, at = l3 + 8;
    } else {
        return 0;
    }
    unsigned l4 = words == 4 ? l3 + (frame[l3] & 15u) * 4 : l3 + 40, end = at + words * 2;
    for (; at < end; at += 2) sum += (uint32_t)frame[at] << 8 | frame[at + 1];
    if (l4 + 4 <= len)
        sum += ((uint32_t)frame[l4] << 8 | frame[l4 + 1]) + ((uint32_t)frame[l4 + 2] << 8 | frame[l4 + 3]);
    return (sum * 0x9e3779b1u) >> 24;
}

static void learn_flow(struct virtio_net *v, const struct virtio_chain *c, unsigned pair)
{
    uint8_t head[HEADERS];
    if (atomic_load_explicit(&v->pairs, memory_order_relaxed) < 2) return;
    size_t n = virtio_read(c, sizeof(struct net_header), head, sizeof head);
    atomic_store_explicit(&v->flow[flow_of(head, n)], (uint8_t)pair, memory_order_relaxed);
}

static unsigned pair_for(struct virtio_net *v, const uint8_t *frame, size_t len)
{
    unsigned pairs = atomic_load_explicit(&v->pairs, memory_order_relaxed);
    if (pairs < 2) return 0;
    return atomic_load_explicit(&v->flow[flow_of(frame, len)], memory_order_relaxed) % pairs;
}

/* ---- receive ---- */

static bool in_table(const uint8_t table[][6], unsigned n, const uint8_t *mac)
{
    for (unsigned i = 0; i < n; i++)
        if (memcmp(table[i], mac, 6) == 0) return true;
    return false;
}

/* Does the driver want a frame to this address (5.1.6.5.1, 5.1.6.5.2)? */
static bool wanted(struct virtio_net *v, const uint8_t *to)
{
    static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    pthread_mutex_lock(&v->lock);
    const struct mac_filter *f = &v->filter;
    bool yes;
    if (f->promisc)
        yes = true;
    else if (memcmp(to, broadcast, 6) == 0)
        yes = !f->nobcast;
    else if (to[0] & 1)
        yes = !f->nomulti && (f->allmulti || f->any_multicast || in_table(f->multicast, f->multicasts, to));
    else
        yes = !f->nouni &&
              (f->alluni || f->any_unicast || memcmp(to, v->mac, 6) == 0 || in_table(f->unicast, f->unicasts, to));
    pthread_mutex_unlock(&v->lock);
    return yes;
}

/* Where a frame is read from. */
struct source {
    const struct iovec *iov;
    unsigned iovs;
    size_t at; /* in iov[0] */
};

static size_t copy_out(struct source *s, struct virtio_chain *c, size_t skip)
{
    size_t done = 0;
    const struct iovec *to = virtio_writable(c);
    for (unsigned i = 0; i < c->writables && s->iovs; i++) {
        if (skip >= to[i].iov_len) {
            skip -= to[i].iov_len;
            continue;
        }
        uint8_t *p = (uint8_t *)to[i].iov_base + skip;
        size_t room = to[i].iov_len - skip;
        skip = 0;
        while (room && s->iovs) {
            size_t n = s->iov->iov_len - s->at;
            if (n > room) n = room;
            memcpy(p, (const uint8_t *)s->iov->iov_base + s->at, n);
            p += n, room -= n, done += n, s->at += n;
            if (s->at == s->iov->iov_len) s->iov++, s->iovs--, s->at = 0;
        }
    }
    return done;
}

/* Chains with room for the frame and its header, 0 when the driver has not given enough yet. */
static unsigned take_buffers(struct virtio_net *v, struct virtio_queue *q, size_t need, struct virtio_chain **chain)
{
    unsigned n = 0;
    uint64_t room = 0;
    unsigned limit = has(v, VIRTIO_NET_F_MRG_RXBUF) ? MERGE_MAX : 1;
    while (room < need && n < limit) {
        struct virtio_chain *c = virtio_pop(q);
        if (!c) break;
        chain[n++] = c;
        room += c->writable_bytes;
    }
    if (room >= need) return n;
    if (n == limit) { /* it would never fit: these buffers are used up with nothing in them, the frame is lost */
        for (unsigned i = 0; i < n; i++) virtio_push(chain[i], 0);
        return UINT32_MAX;
    }
    while (n) virtio_unpop(chain[--n]);
    return 0;
}

static bool put_frame(struct virtio_net *v, struct virtio_queue *q, const struct iovec *iov, unsigned iovs, size_t len)
{
    struct virtio_chain *chain[MERGE_MAX];
    struct net_header h;
    memcpy(&h, iov[0].iov_base, sizeof h);
    unsigned n = take_buffers(v, q, len + sizeof h, chain);
    if (!n) return false;
    if (n == UINT32_MAX) return true;
    if (chain[0]->writable_bytes < sizeof h) {
        for (unsigned i = 0; i < n; i++) virtio_push(chain[i], 0);
        virtio_broken(v->device, "a receive buffer is smaller than the header");
        return true;
    }
    h.num_buffers = (uint16_t)n;
    if (!has(v, VIRTIO_NET_F_GUEST_CSUM)) h.flags &= (uint8_t)~NET_HDR_DATA_VALID;
    virtio_write(chain[0], 0, &h, sizeof h);
    struct source s = {iov + 1, iovs - 1, 0};
    for (unsigned i = 0; i < n; i++) {
        size_t skip = i ? 0 : sizeof h;
        virtio_push(chain[i], skip + copy_out(&s, chain[i], skip));
    }
    return true;
}

static bool on_receive(void *ctx, const struct iovec *iov, unsigned iovs)
{
    struct virtio_net *v = ctx;
    size_t len = 0;
    for (unsigned i = 1; i < iovs; i++) len += iov[i].iov_len;
    if (iovs < 2 || iov[1].iov_len < 14 || !wanted(v, iov[1].iov_base)) return true;
    unsigned pair = pair_for(v, iov[1].iov_base, iov[1].iov_len);
    struct virtio_queue *q = virtio_queue(v->device, pair * 2 + QUEUE_RX);
    bool taken = true; /* a driver that has not set up its queues misses frames */
    virtio_queue_lock(q);
    if (virtio_queue_running(q)) taken = put_frame(v, q, iov, iovs, len);
    virtio_queue_unlock(q);
    atomic_fetch_or_explicit(&v->touched, 1u << pair, memory_order_relaxed);
    return taken;
}

static void on_receive_end(void *ctx)
{
    struct virtio_net *v = ctx;
    uint32_t touched = atomic_exchange_explicit(&v->touched, 0, memory_order_relaxed);
    for (unsigned pair = 0; touched; pair++, touched >>= 1) {
        if (!(touched & 1)) continue;
        struct virtio_queue *q = virtio_queue(v->device, pair * 2 + QUEUE_RX);
        virtio_queue_lock(q);
        virtio_flush(q);
        virtio_queue_unlock(q);
    }
}

/* ---- transmit ---- */

/* Keeps of the driver's header what it may ask for (5.1.6.2). */
static bool clean_header(const struct virtio_net *v, struct net_header *h)
{
    h->num_buffers = 0;
    h->flags &= has(v, VIRTIO_NET_F_CSUM) ? NET_HDR_NEEDS_CSUM : 0;
    switch (h->gso_type & ~NET_GSO_ECN) {
    case NET_GSO_NONE:
        h->gso_type = NET_GSO_NONE;
        h->gso_size = h->hdr_len = 0;
        return true;
    case NET_GSO_TCPV4: return has(v, VIRTIO_NET_F_HOST_TSO4) && h->flags && h->gso_size;
    case NET_GSO_TCPV6: return has(v, VIRTIO_NET_F_HOST_TSO6) && h->flags && h->gso_size;
    default: return false;
    }
}

/* The chain as net_send() wants it: our copy of the header, then the frame where the driver has it. 0: not possible. */
static unsigned frame_iov(const struct virtio_chain *c, struct net_header *h, struct iovec *iov)
{
    size_t skip = sizeof *h;
    unsigned n = 1;
    if (virtio_read(c, 0, h, sizeof *h) < sizeof *h) return 0;
    iov[0] = (struct iovec){h, sizeof *h};
    for (unsigned i = 0; i < c->readables; i++) {
        if (skip >= c->iov[i].iov_len) {
            skip -= c->iov[i].iov_len;
            continue;
        }
        if (n == NET_MAX_SEGMENTS) return 0;
        iov[n++] = (struct iovec){(uint8_t *)c->iov[i].iov_base + skip, c->iov[i].iov_len - skip};
        skip = 0;
    }
    return n < 2 ? 0 : n;
}

/* False: the back end is full, and on_writable() comes back to the queue. */
static bool send_chain(struct virtio_net *v, struct virtio_chain *c, unsigned pair)
{
    struct net_header h;
    struct iovec iov[NET_MAX_SEGMENTS];
    unsigned n = frame_iov(c, &h, iov);
    if (!n || !clean_header(v, &h)) return true;
    learn_flow(v, c, pair);
    if (net_send(v->net, iov, n)) return true;
    /* Room that was made since then was made before on_writable() could see that this queue waits. */
    atomic_fetch_or(&v->blocked, 1u << pair);
    if (!net_send(v->net, iov, n)) return false;
    atomic_fetch_and(&v->blocked, ~(1u << pair));
    return true;
}

static void notify_tx(struct virtio_net *v, struct virtio_queue *q, unsigned pair)
{
    struct virtio_chain *c;
    bool sent = false;
    while ((c = virtio_pop(q))) {
        sent = true;
        if (!send_chain(v, c, pair)) {
            virtio_unpop(c);
            break;
        }
        virtio_push(c, 0);
    }
    if (sent) net_send_end(v->net);
}

static void on_writable(void *ctx)
{
    struct virtio_net *v = ctx;
    uint32_t blocked = atomic_exchange(&v->blocked, 0);
    for (unsigned pair = 0; blocked; pair++, blocked >>= 1)
        if (blocked & 1) virtio_queue_kick(virtio_queue(v->device, pair * 2 + QUEUE_TX));
}

/* ---- control queue (5.1.6.5) ---- */

struct command {
    uint8_t class, command;
    const uint8_t *data;
    size_t len;
};

static bool rx_mode(struct virtio_net *v, const struct command *c)
{
    if (c->len < 1) return false;
    bool on = c->data[0] & 1;
    struct mac_filter *f = &v->filter;
    switch (c->command) {
    case VIRTIO_NET_CTRL_RX_PROMISC: f->promisc = on; return true;
    case VIRTIO_NET_CTRL_RX_ALLMULTI: f->allmulti = on; return true;
    case VIRTIO_NET_CTRL_RX_ALLUNI: f->alluni = on; return true;
    case VIRTIO_NET_CTRL_RX_NOMULTI: f->nomulti = on; return true;
    case VIRTIO_NET_CTRL_RX_NOUNI: f->nouni = on; return true;
    case VIRTIO_NET_CTRL_RX_NOBCAST: f->nobcast = on; return true;
    default: return false;
    }
}

/* A table of addresses at *at. An overlong one opens the filter, as the specification allows. */
static bool mac_table(const struct command *c, size_t *at, uint8_t table[][6], unsigned *n, bool *open)
{
    uint32_t entries;
    if (c->len - *at < 4) return false;
    memcpy(&entries, c->data + *at, 4);
    *at += 4;
    if (entries > (c->len - *at) / 6) return false;
    *open = entries > MAC_TABLE;
    *n = *open ? 0 : entries;
    if (*n) memcpy(table, c->data + *at, *n * 6ul);
    *at += entries * 6ul;
    return true;
}

static bool set_mac(struct virtio_net *v, const struct command *c)
{
    struct mac_filter *f = &v->filter;
    if (c->command == VIRTIO_NET_CTRL_MAC_ADDR_SET) {
        if (c->len != 6 || c->data[0] & 1) return false;
        memcpy(v->mac, c->data, 6);
        return true;
    }
    if (c->command != VIRTIO_NET_CTRL_MAC_TABLE_SET) return false;
    struct mac_filter new = *f;
    size_t at = 0;
    if (!mac_table(c, &at, new.unicast, &new.unicasts, &new.any_unicast) ||
        !mac_table(c, &at, new.multicast, &new.multicasts, &new.any_multicast))
        return false;
    *f = new;
    return true;
}

static bool set_pairs(struct virtio_net *v, const struct command *c)
{
    uint16_t pairs;
    if (c->command != VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET || c->len < 2 || !has(v, VIRTIO_NET_F_MQ)) return false;
    memcpy(&pairs, c->data, 2);
    if (pairs < 1 || pairs > v->max_pairs) return false;
    atomic_store(&v->pairs, pairs);
    return true;
}

static void apply_offloads(struct virtio_net *v, uint64_t f)
{
    net_set_guest_offloads(v->net, f & VIRTIO_BIT(VIRTIO_NET_F_GUEST_CSUM), f & VIRTIO_BIT(VIRTIO_NET_F_GUEST_TSO4),
                           f & VIRTIO_BIT(VIRTIO_NET_F_GUEST_TSO6), f & VIRTIO_BIT(VIRTIO_NET_F_GUEST_ECN));
}

static bool set_offloads(struct virtio_net *v, const struct command *c)
{
    uint64_t f;
    if (c->command != VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET || c->len < 8 || !has(v, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS))
        return false;
    memcpy(&f, c->data, 8);
    if (f & ~atomic_load(&v->driver)) return false;
    apply_offloads(v, f);
    return true;
}

static bool run_command(struct virtio_net *v, const struct command *c)
{
    bool good = false;
    switch (c->class) {
    case VIRTIO_NET_CTRL_RX:
    case VIRTIO_NET_CTRL_MAC:
        pthread_mutex_lock(&v->lock);
        good = c->class == VIRTIO_NET_CTRL_RX ? rx_mode(v, c) : set_mac(v, c);
        pthread_mutex_unlock(&v->lock);
        break;
    case VIRTIO_NET_CTRL_ANNOUNCE:
        pthread_mutex_lock(&v->lock);
        v->status &= (uint16_t)~VIRTIO_NET_S_ANNOUNCE;
        pthread_mutex_unlock(&v->lock);
        good = c->command == VIRTIO_NET_CTRL_ANNOUNCE_ACK;
        break;
    case VIRTIO_NET_CTRL_MQ: good = set_pairs(v, c); break;
    case VIRTIO_NET_CTRL_GUEST_OFFLOADS: good = set_offloads(v, c); break;
    default: break;
    }
    return good;
}

/* Configuration space follows what a command or the link changed. (virtio_config_set() takes a leaf lock only.) */
static void publish(struct virtio_net *v)
{
    struct {
        uint8_t mac[6];
        uint16_t status;
    } __attribute__((packed)) now, before;
    pthread_mutex_lock(&v->lock);
    memcpy(now.mac, v->mac, 6);
    now.status = v->status;
    pthread_mutex_unlock(&v->lock);
    virtio_config_get(v->device, 0, &before, sizeof before);
    if (memcmp(&now, &before, sizeof now) != 0) virtio_config_set(v->device, 0, &now, sizeof now);
}

static void notify_control(struct virtio_net *v, struct virtio_queue *q)
{
    struct virtio_chain *c;
    while ((c = virtio_pop(q))) {
        uint8_t buffer[LONGEST_COMMAND], ack = VIRTIO_NET_ERR;
        size_t n = virtio_read(c, 0, buffer, sizeof buffer);
        struct command command = {buffer[0], buffer[1], buffer + 2, n - 2};
        if (n >= 2 && n == c->readable_bytes && run_command(v, &command)) ack = VIRTIO_NET_OK;
        virtio_push(c, virtio_write(c, 0, &ack, 1));
        publish(v);
    }
}

/* ---- life cycle ---- */

static void on_notify(void *dev, struct virtio_queue *q)
{
    struct virtio_net *v = dev;
    unsigned n = virtio_queue_index(q);
    /* Without several pairs negotiated the control queue comes after the first one (5.1.2). */
    unsigned control = has(v, VIRTIO_NET_F_MQ) ? v->max_pairs * 2 : 2;
    if (n == control && has(v, VIRTIO_NET_F_CTRL_VQ))
        notify_control(v, q);
    else if (n > control)
        return;
    else if (n % 2 == QUEUE_TX)
        notify_tx(v, q, n / 2);
    else
        net_receive_ready(v->net);
}

static void filter_reset(struct virtio_net *v)
{
    pthread_mutex_lock(&v->lock);
    /* Without CTRL_RX a driver can't ask for more than its own address, yet bridges in guests with such drivers work everywhere else. */
    v->filter = (struct mac_filter){.promisc = true};
    pthread_mutex_unlock(&v->lock);
}

static void on_activate(void *dev)
{
    struct virtio_net *v = dev;
    uint64_t f = virtio_features(v->device);
    atomic_store(&v->pairs, 1);
    atomic_store(&v->driver, f);
    apply_offloads(v, f);
}

static void on_reset(void *dev)
{
    struct virtio_net *v = dev;
    atomic_store(&v->driver, 0);
    atomic_store(&v->pairs, 1);
    atomic_store(&v->blocked, 0);
    apply_offloads(v, 0);
    filter_reset(v);
    pthread_mutex_lock(&v->lock);
    memcpy(v->mac, v->own_mac, 6);
    v->status &= (uint16_t)~VIRTIO_NET_S_ANNOUNCE;
    pthread_mutex_unlock(&v->lock);
    publish(v);
    net_forget(v->net);
}

static const struct virtio_ops ops = {
    .kind = "virtio-net",
    .id = VIRTIO_ID_NET,
    .class_code = PCI_CLASS_ETHERNET,
    .activate = on_activate,
    .notify = on_notify,
    .reset = on_reset,
};

static void on_link(void *ctx, bool up)
{
    struct virtio_net *v = ctx;
    pthread_mutex_lock(&v->lock);
    v->status = up ? VIRTIO_NET_S_LINK_UP : 0;
    if (up && has(v, VIRTIO_NET_F_GUEST_ANNOUNCE)) v->status |= VIRTIO_NET_S_ANNOUNCE;
    pthread_mutex_unlock(&v->lock);
    publish(v);
}

static int create_device(struct virtio_net *v, struct pci_bus *b, int slot, const struct virtio_net_options *cfg,
                         struct event_loop *loop, struct nerr *e)
{
    struct net_info info;
    net_info(v->net, &info);
    v->status = info.link ? VIRTIO_NET_S_LINK_UP : 0;
    uint64_t features = VIRTIO_BIT(VIRTIO_NET_F_MAC) | VIRTIO_BIT(VIRTIO_NET_F_STATUS) | VIRTIO_BIT(VIRTIO_NET_F_MTU) |
                        VIRTIO_BIT(VIRTIO_NET_F_MRG_RXBUF) | VIRTIO_BIT(VIRTIO_NET_F_CTRL_VQ) |
                        VIRTIO_BIT(VIRTIO_NET_F_CTRL_RX) | VIRTIO_BIT(VIRTIO_NET_F_CTRL_RX_EXTRA) |
                        VIRTIO_BIT(VIRTIO_NET_F_CTRL_MAC_ADDR) | VIRTIO_BIT(VIRTIO_NET_F_GUEST_ANNOUNCE);
    if (info.offloads)
        features |= VIRTIO_BIT(VIRTIO_NET_F_CSUM) | VIRTIO_BIT(VIRTIO_NET_F_GUEST_CSUM) |
                    VIRTIO_BIT(VIRTIO_NET_F_HOST_TSO4) | VIRTIO_BIT(VIRTIO_NET_F_HOST_TSO6) |
                    VIRTIO_BIT(VIRTIO_NET_F_HOST_ECN) | VIRTIO_BIT(VIRTIO_NET_F_GUEST_TSO4) |
                    VIRTIO_BIT(VIRTIO_NET_F_GUEST_TSO6) | VIRTIO_BIT(VIRTIO_NET_F_GUEST_ECN) |
                    VIRTIO_BIT(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
    if (v->max_pairs > 1) features |= VIRTIO_BIT(VIRTIO_NET_F_MQ);
    struct virtio_net_config config = {
        .status = v->status, .max_virtqueue_pairs = (uint16_t)v->max_pairs, .mtu = (uint16_t)info.mtu};
    memcpy(config.mac, v->mac, 6);
    struct virtio_queue_desc queue[VIRTIO_NET_MAX_PAIRS * 2 + 1];
    for (unsigned i = 0; i < v->max_pairs * 2; i++)
        queue[i] = (struct virtio_queue_desc){.size = QUEUE_SIZE, .max_segments = NET_MAX_SEGMENTS};
    queue[v->max_pairs * 2] = (struct virtio_queue_desc){.size = CONTROL_SIZE, .max_segments = NET_MAX_SEGMENTS};
    struct virtio_desc d = {
        .ops = &ops,
        .dev = v,
        .name = cfg->name,
        .features = features,
        .no_packed = cfg->split_ring,
        .loop = loop,
        .queues = v->max_pairs * 2 + 1,
        .queue = queue,
        .config = &config,
        .config_size = sizeof config,
    };
    return virtio_pci_create(b, slot, &d, &v->device, e);
}

int virtio_net_create(struct pci_bus *b, int slot, const struct virtio_net_options *cfg, struct event_loop *loop,
                      struct virtio_net **out, struct nerr *e)
{
    *out = NULL;
    struct virtio_net *v = calloc(1, sizeof *v);
    if (!v) return nerr_set(e, -ENOMEM, "%s: out of memory", cfg->name);
    pthread_mutex_init(&v->lock, NULL);
    v->max_pairs = cfg->pairs ? cfg->pairs : 1;
    if (v->max_pairs > VIRTIO_NET_MAX_PAIRS) v->max_pairs = VIRTIO_NET_MAX_PAIRS;
    atomic_init(&v->pairs, 1);
    memcpy(v->own_mac, cfg->mac, 6);
    memcpy(v->mac, cfg->mac, 6);
    v->filter.promisc = true;
    struct net_port port = {.ctx = v, .receive = on_receive, .receive_end = on_receive_end, .link_changed = on_link};
    int r = net_open(&cfg->net, loop, &port, &v->net, e);
    if (!r) {
        net_on_writable(v->net, on_writable, v);
        r = create_device(v, b, slot, cfg, loop, e);
    }
    if (!r) {
        net_count_into(v->net, virtio_stats(v->device));
        *out = v;
    } else {
        virtio_net_destroy(v);
    }
    return r;
}

void virtio_net_destroy(struct virtio_net *v)
{
    if (!v) return;
    net_close(v->net);
    virtio_destroy(v->device);
    pthread_mutex_destroy(&v->lock);
    free(v);
}

struct net *virtio_net_backend(struct virtio_net *v)
{
    return v->net;
}
