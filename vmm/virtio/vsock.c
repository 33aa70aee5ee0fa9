/* virtio-vsock (1.2, 5.10): stream sockets between guest and host, as local sockets on the host's side, the way Firecracker and Cloud
 * Hypervisor have it and their users know it:
 *
 *   host to guest: connect to PATH, say "CONNECT port\n", be answered "OK port\n", talk
 *   guest to host: a connection to port N of CID 2 comes in at the socket PATH_N
 *
 * That, not vhost-vsock, since it needs no kernel module, no privilege and no CID that is unique on the host, and file permissions say who
 * may talk to a guest.
 *
 * Locks: this device's own guards all connections. It is taken after a queue's. Sockets never block. Packets to the guest are not queued:
 * each connection says what it owes (`owed`), and the receive queue's turn sends it, so that a guest without buffers costs no memory. */
#define _GNU_SOURCE
#include "vmm/virtio/vsock_internal.h"

#include <errno.h>
#include <linux/virtio_ids.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/event.h"
#include "vmm/backend/unix.h"

#define QUEUE_SIZE 128
#define SEGMENTS_MAX 64

/* ---- packets to the guest; the receive queue's lock and the device's ---- */

static bool put_header(struct virtio_vsock *d, struct virtio_chain *c, struct virtio_vsock_hdr *h)
{
    h->src_cid = VSOCK_HOST_CID;
    h->dst_cid = d->cid;
    h->type = VIRTIO_VSOCK_TYPE_STREAM;
    return virtio_write(c, 0, h, sizeof(*h)) == sizeof(*h);
}

static void send_reset(struct virtio_vsock *d, struct virtio_chain *c, uint32_t host_port, uint32_t guest_port)
{
    struct virtio_vsock_hdr h = {.src_port = host_port, .dst_port = guest_port, .op = VIRTIO_VSOCK_OP_RST};
    virtio_push(c, put_header(d, c, &h) ? sizeof(h) : 0);
}

/* One of the packets that a connection owes. False: it had none after all, and `c` was not used. */
static bool send_owed(struct virtio_vsock *d, struct vsock_connection *k, struct virtio_chain *c)
{
    struct virtio_vsock_hdr h = {
        .src_port = k->host_port, .dst_port = k->guest_port, .buf_alloc = VSOCK_BUFFER, .fwd_cnt = k->forwarded};
    if (k->owed & OWED_RESET) {
        send_reset(d, c, k->host_port, k->guest_port);
        vsock_free(d, k);
        return true;
    }
    if (k->owed & OWED_REQUEST) {
        h.op = VIRTIO_VSOCK_OP_REQUEST;
        k->owed &= ~OWED_REQUEST;
    } else if (k->owed & OWED_RESPONSE) {
        h.op = VIRTIO_VSOCK_OP_RESPONSE;
        k->owed &= ~OWED_RESPONSE;
    } else if (k->owed & OWED_DATA && vsock_credit(k)) {
        if (c->writable_bytes <= sizeof(h)) {
            virtio_push(c, 0); /* of no use for anything */
            return true;
        }
        if (!vsock_read(d, k, c, &h)) return false;
        virtio_push(c, put_header(d, c, &h) ? sizeof(h) + h.len : 0);
        return true;
    } else if (k->owed & OWED_SHUTDOWN && !(k->owed & OWED_DATA)) {
        h.op = VIRTIO_VSOCK_OP_SHUTDOWN;
        h.flags = k->hung_up ? VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND : VIRTIO_VSOCK_SHUTDOWN_SEND;
        k->owed &= ~OWED_SHUTDOWN;
    } else if (k->owed & OWED_CREDIT) {
        h.op = VIRTIO_VSOCK_OP_CREDIT_UPDATE;
    } else {
        return false;
    }
    k->owed &= ~OWED_CREDIT; /* every header tells */
    k->told = k->forwarded;
    virtio_push(c, put_header(d, c, &h) ? sizeof(h) : 0);
    return true;
}

/* The next connection that owes something that can be sent now, in turn. */
static struct vsock_connection *next_owing(struct virtio_vsock *d)
{
    for (unsigned i = 0; i < VSOCK_CONNECTIONS; i++) {
        struct vsock_connection *k = &d->connection[(d->turn + i) % VSOCK_CONNECTIONS];
        if (k->state == VSOCK_FREE || k->state == VSOCK_HANDSHAKE) continue;
        if (k->owed & ~(unsigned)(OWED_DATA | OWED_SHUTDOWN) || (k->owed & OWED_DATA && vsock_credit(k)) ||
            (k->owed & OWED_SHUTDOWN && !(k->owed & OWED_DATA))) {
            d->turn = (unsigned)(k - d->connection) + 1;
            return k;
        }
    }
    return NULL;
}

static void receive(struct virtio_vsock *d, struct virtio_queue *q)
{
    pthread_mutex_lock(&d->lock);
    for (;;) {
        struct vsock_connection *k = d->resets ? NULL : next_owing(d);
        if (!d->resets && !k) break;
        struct virtio_chain *c = virtio_pop(q);
        if (!c) break;
        if (d->resets) {
            struct vsock_ports p = d->reset[--d->resets];
            send_reset(d, c, p.host, p.guest);
        } else if (!send_owed(d, k, c)) {
            virtio_unpop(c);
        }
    }
    bool more = d->tx_waits && d->resets < VSOCK_RESETS;
    if (more) d->tx_waits = false;
    d->tx_again |= more;
    pthread_mutex_unlock(&d->lock);
}

/* ---- packets from the guest; the transmit queue's lock ---- */

/* A packet that fits no connection is answered with a reset, but a reset never. With the device's lock. */
static void refuse(struct virtio_vsock *d, const struct virtio_vsock_hdr *h)
{
    if (h->op != VIRTIO_VSOCK_OP_RST && d->resets < VSOCK_RESETS)
        d->reset[d->resets++] = (struct vsock_ports){h->dst_port, h->src_port};
}

static void open_from_guest(struct virtio_vsock *d, const struct virtio_vsock_hdr *h)
{
    char path[sizeof(d->path) + 16];
    snprintf(path, sizeof(path), "%s_%u", d->path, h->dst_port);
    int fd = unix_connect(path);
    struct vsock_connection *k = fd >= 0 ? vsock_new(d, fd, VSOCK_OPEN) : NULL;
    if (!k) {
        if (fd >= 0) close(fd);
        refuse(d, h);
        return;
    }
    k->host_port = h->dst_port;
    k->guest_port = h->src_port;
    k->peer_alloc = h->buf_alloc;
    k->peer_forwarded = h->fwd_cnt;
    k->owed = OWED_RESPONSE;
    vsock_watch(d, k);
}

static void opened_by_guest(struct virtio_vsock *d, struct vsock_connection *k)
{
    if (k->state != VSOCK_REQUESTED) {
        k->owed |= OWED_RESET;
        return;
    }
    k->state = VSOCK_OPEN;
    vsock_answer(d, k);
    vsock_watch(d, k);
}

static void packet(struct virtio_vsock *d, struct vsock_connection *k, const struct virtio_vsock_hdr *h,
                   struct virtio_chain *c)
{
    k->peer_alloc = h->buf_alloc;
    k->peer_forwarded = h->fwd_cnt;
    switch (h->op) {
    case VIRTIO_VSOCK_OP_RESPONSE: opened_by_guest(d, k); break;
    case VIRTIO_VSOCK_OP_RST: vsock_free(d, k); return;
    case VIRTIO_VSOCK_OP_SHUTDOWN: vsock_shutdown(d, k, h->flags); return;
    case VIRTIO_VSOCK_OP_RW: vsock_write(d, k, c, h->len); return;
    case VIRTIO_VSOCK_OP_CREDIT_REQUEST: k->owed |= OWED_CREDIT; break;
    case VIRTIO_VSOCK_OP_CREDIT_UPDATE: break;
    default: k->owed |= OWED_RESET;
    }
    vsock_watch(d, k); /* there may be credit now */
}

static void take(struct virtio_vsock *d, struct virtio_chain *c)
{
    struct virtio_vsock_hdr h;
    if (virtio_read(c, 0, &h, sizeof(h)) < sizeof(h) || h.len > c->readable_bytes - sizeof(h)) {
        device_count(&virtio_stats(d->virtio)->errors, 1);
        return; /* dropped: there is nobody to answer */
    }
    struct vsock_connection *k = vsock_find(d, h.dst_port, h.src_port);
    if (h.src_cid != d->cid || h.dst_cid != VSOCK_HOST_CID || h.type != VIRTIO_VSOCK_TYPE_STREAM)
        refuse(d, &h);
    else if (k && h.op != VIRTIO_VSOCK_OP_REQUEST)
        packet(d, k, &h, c);
    else if (!k && h.op == VIRTIO_VSOCK_OP_REQUEST)
        open_from_guest(d, &h);
    else
        refuse(d, &h);
}

static void transmit(struct virtio_vsock *d, struct virtio_queue *q)
{
    for (;;) {
        pthread_mutex_lock(&d->lock);
        /* The guest must take its resets before it may cause more of them. */
        struct virtio_chain *c = NULL;
        d->tx_waits = d->resets == VSOCK_RESETS;
        if (!d->tx_waits && (c = virtio_pop(q))) take(d, c);
        pthread_mutex_unlock(&d->lock);
        if (!c) return;
        virtio_push(c, 0);
    }
}

/* ---- the device ---- */

static void notify(void *dev, struct virtio_queue *q)
{
    switch (virtio_queue_index(q)) {
    case VSOCK_RX: receive(dev, q); break;
    case VSOCK_TX: transmit(dev, q); break;
    default:; /* events: only a migration would have one to send */
    }
}

/* On the loop's thread: by a call from here the two queues could call each other as long as a guest likes. */
static void transmit_again(void *ctx)
{
    struct virtio_vsock *d = ctx;
    virtio_queue_kick(virtio_queue(d->virtio, VSOCK_TX));
}

/* What the transmit queue caused is sent when its lock is free again. */
static void notified(void *dev, struct virtio_queue *q)
{
    struct virtio_vsock *d = dev;
    if (virtio_queue_index(q) == VSOCK_TX) {
        virtio_queue_kick(virtio_queue(d->virtio, VSOCK_RX));
        return;
    }
    pthread_mutex_lock(&d->lock);
    bool again = d->tx_again;
    d->tx_again = false;
    pthread_mutex_unlock(&d->lock);
    if (again) event_loop_post(d->loop, transmit_again, d);
}

static void reset(void *dev)
{
    struct virtio_vsock *d = dev;
    pthread_mutex_lock(&d->lock);
    vsock_free_known(d);
    d->resets = 0;
    d->tx_waits = d->tx_again = false;
    pthread_mutex_unlock(&d->lock);
}

static const struct virtio_ops ops = {
    .kind = "virtio-vsock",
    .id = VIRTIO_ID_VSOCK,
    .class_code = 0x028000,
    .notify = notify,
    .notified = notified,
    .reset = reset,
};

int virtio_vsock_create(struct pci_bus *b, int slot, const struct virtio_vsock_options *cfg, struct virtio_vsock **out,
                        struct nerr *e)
{
    *out = NULL;
    if (strlen(cfg->path) >= VSOCK_PATH_MAX)
        return nerr_set(e, -ENAMETOOLONG, "--vsock: the path %.40s... is too long; give at most %d characters",
                        cfg->path, VSOCK_PATH_MAX - 1);
    struct virtio_vsock *d = calloc(1, sizeof(*d));
    if (!d) return nerr_set(e, -ENOMEM, "%s: out of memory", cfg->name);
    static const struct virtio_queue_desc queues[VSOCK_QUEUES] = {
        {QUEUE_SIZE, SEGMENTS_MAX, 0}, {QUEUE_SIZE, SEGMENTS_MAX, 0}, {4, 4, 0}};
    struct virtio_vsock_config space = {.guest_cid = cfg->cid};
    struct virtio_desc desc = {.ops = &ops,
                               .dev = d,
                               .name = cfg->name,
                               .loop = cfg->loop,
                               .queues = VSOCK_QUEUES,
                               .queue = queues,
                               .config = &space,
                               .config_size = sizeof(space)};
    d->cid = cfg->cid;
    d->loop = cfg->loop;
    d->listener = -1;
    d->next_port = VSOCK_FIRST_PORT;
    strcpy(d->path, cfg->path);
    pthread_mutex_init(&d->lock, NULL);
    event_timer_init(&d->listen_timer, d->loop, vsock_listen_again, d);
    for (unsigned i = 0; i < VSOCK_CONNECTIONS; i++) d->connection[i].device = d;
    int r = virtio_pci_create(b, slot, &desc, &d->virtio, e);
    if (!r) r = unix_listen("--vsock", d->path, &d->listener, e);
    if (!r) r = event_fd_add(d->loop, d->listener, EPOLLIN, vsock_accept, d, e);
    if (r)
        virtio_vsock_destroy(d);
    else
        *out = d;
    return r;
}

void virtio_vsock_destroy(struct virtio_vsock *d)
{
    if (!d) return;
    pthread_mutex_lock(&d->lock);
    vsock_free_all(d);
    pthread_mutex_unlock(&d->lock);
    event_timer_destroy(&d->listen_timer);
    if (d->listener >= 0) {
        event_fd_remove(d->loop, d->listener);
        close(d->listener);
        unlink(d->path);
    }
    virtio_destroy(d->virtio);
    pthread_mutex_destroy(&d->lock);
    free(d);
}
