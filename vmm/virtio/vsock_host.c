/* The host's side of virtio-vsock: local sockets, what waits for them, flow control. */
#define _GNU_SOURCE
#include "vmm/virtio/vsock_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/event.h"

static void on_socket(void *ctx, uint32_t events);

/* ---- connections ---- */

struct vsock_connection *vsock_new(struct virtio_vsock *d, int fd, enum vsock_state state)
{
    for (unsigned i = 0; i < VSOCK_CONNECTIONS; i++) {
        struct vsock_connection *k = &d->connection[i];
        struct nerr e;
        if (k->state != VSOCK_FREE) continue;
        *k = (struct vsock_connection){.device = d, .state = state, .fd = fd};
        if (event_fd_add(d->loop, fd, 0, on_socket, k, &e)) {
            k->state = VSOCK_FREE;
            return NULL;
        }
        return k;
    }
    return NULL;
}

struct vsock_connection *vsock_find(struct virtio_vsock *d, uint32_t host_port, uint32_t guest_port)
{
    for (unsigned i = 0; i < VSOCK_CONNECTIONS; i++) {
        struct vsock_connection *k = &d->connection[i];
        if (k->state >= VSOCK_REQUESTED && k->host_port == host_port && k->guest_port == guest_port) return k;
    }
    return NULL;
}

/* A callback of the loop may be on its way: it finds the place free, or another connection there that it does no harm. */
void vsock_free(struct virtio_vsock *d, struct vsock_connection *k)
{
    if (!k->hung_up) event_fd_remove(d->loop, k->fd);
    close(k->fd);
    free(k->buffer);
    *k = (struct vsock_connection){.device = d, .fd = -1};
}

void vsock_free_all(struct virtio_vsock *d)
{
    for (unsigned i = 0; i < VSOCK_CONNECTIONS; i++)
        if (d->connection[i].state != VSOCK_FREE) vsock_free(d, &d->connection[i]);
}

/* A program may be there before the guest's driver is. */
void vsock_free_known(struct virtio_vsock *d)
{
    for (unsigned i = 0; i < VSOCK_CONNECTIONS; i++) {
        struct vsock_connection *k = &d->connection[i];
        if (k->state != VSOCK_FREE && k->state != VSOCK_HANDSHAKE && !(k->owed & OWED_REQUEST)) vsock_free(d, k);
    }
}

uint32_t vsock_credit(const struct vsock_connection *k)
{
    uint32_t unread = k->sent - k->peer_forwarded;
    return unread < k->peer_alloc ? k->peer_alloc - unread : 0;
}

void vsock_watch(struct virtio_vsock *d, struct vsock_connection *k)
{
    uint32_t events = 0;
    if (k->state == VSOCK_FREE || k->hung_up) return;
    if (k->state == VSOCK_HANDSHAKE) events = EPOLLIN;
    /* Data is read when the guest has both room and a buffer for it; that there is some need be said once only. */
    if (k->state == VSOCK_OPEN && !k->ended && !(k->owed & OWED_DATA) && vsock_credit(k)) events |= EPOLLIN;
    if (k->used) events |= EPOLLOUT;
    if (events != k->events) event_fd_modify(d->loop, k->fd, events);
    k->events = events;
}

/* ---- host to guest ---- */

bool vsock_read(struct virtio_vsock *d, struct vsock_connection *k, struct virtio_chain *c, struct virtio_vsock_hdr *h)
{
    struct iovec iov[64];
    uint64_t skip = sizeof(*h), room = vsock_credit(k);
    size_t asked = 0;
    unsigned n = 0;
    if (room > VSOCK_PACKET) room = VSOCK_PACKET;
    for (unsigned i = 0; i < c->writables && n < 64 && room; i++) {
        struct iovec v = virtio_writable(c)[i];
        size_t cut = skip < v.iov_len ? (size_t)skip : v.iov_len;
        skip -= cut;
        if (cut == v.iov_len) continue;
        size_t len = v.iov_len - cut < room ? v.iov_len - cut : (size_t)room;
        iov[n++] = (struct iovec){(uint8_t *)v.iov_base + cut, len};
        asked += len;
        room -= len;
    }
    ssize_t got = n ? readv(k->fd, iov, (int)n) : -1;
    if (got == 0 || (got < 0 && n && errno != EAGAIN && errno != EINTR)) {
        k->ended = true;
        k->owed |= OWED_SHUTDOWN;
    }
    /* That was all of it: the loop tells when there is more. After a hang-up it doesn't. */
    if (k->ended || (!k->hung_up && got < (ssize_t)asked)) k->owed &= ~OWED_DATA;
    if (got > 0) k->sent += (uint32_t)got;
    vsock_watch(d, k);
    if (got <= 0) return false;
    h->op = VIRTIO_VSOCK_OP_RW;
    h->len = (uint32_t)got;
    k->told = k->forwarded;
    k->owed &= ~OWED_CREDIT;
    device_count(&virtio_stats(d->virtio)->bytes_in, (uint64_t)got);
    return true;
}

/* ---- guest to host ---- */

/* The guest learns of room when half of the buffer is free that it thinks is full, not for every packet. */
static void forwarded(struct vsock_connection *k, uint32_t n)
{
    k->forwarded += n;
    if (k->forwarded - k->told >= VSOCK_BUFFER / 2) k->owed |= OWED_CREDIT;
}

/* When nothing waits any more, what the guest wants closed is closed. */
static void close_sides(struct vsock_connection *k)
{
    if (k->used) return;
    if (k->closing & VIRTIO_VSOCK_SHUTDOWN_SEND) shutdown(k->fd, SHUT_WR);
    if (k->closing == (VIRTIO_VSOCK_SHUTDOWN_SEND | VIRTIO_VSOCK_SHUTDOWN_RCV)) k->owed |= OWED_RESET;
}

static void flush(struct vsock_connection *k)
{
    while (k->used) {
        uint32_t at = k->first % VSOCK_BUFFER, n = VSOCK_BUFFER - at < k->used ? VSOCK_BUFFER - at : k->used;
        ssize_t w = send(k->fd, k->buffer + at, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (w < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (w < 0) {
            k->owed |= OWED_RESET;
            return;
        }
        k->first += (uint32_t)w;
        k->used -= (uint32_t)w;
        forwarded(k, (uint32_t)w);
    }
    close_sides(k);
}

/* False: more than the guest had credit for. */
static bool keep(struct vsock_connection *k, const uint8_t *p, size_t len)
{
    if (len > VSOCK_BUFFER - k->used) return false;
    if (!k->buffer && !(k->buffer = malloc(VSOCK_BUFFER))) return false;
    while (len) {
        uint32_t at = (k->first + k->used) % VSOCK_BUFFER;
        size_t n = VSOCK_BUFFER - at < len ? VSOCK_BUFFER - at : len;
        memcpy(k->buffer + at, p, n);
        k->used += (uint32_t)n;
        p += n;
        len -= n;
    }
    return true;
}

void vsock_write(struct virtio_vsock *d, struct vsock_connection *k, struct virtio_chain *c, uint32_t len)
{
    size_t skip = sizeof(struct virtio_vsock_hdr);
    struct device_stats *s = virtio_stats(d->virtio);
    if (k->state != VSOCK_OPEN || k->closing & VIRTIO_VSOCK_SHUTDOWN_SEND || len > VSOCK_BUFFER) {
        k->owed |= OWED_RESET;
        return;
    }
    device_count(&s->bytes_out, len);
    for (unsigned i = 0; i < c->readables && len; i++) {
        const uint8_t *p = c->iov[i].iov_base;
        size_t cut = skip < c->iov[i].iov_len ? skip : c->iov[i].iov_len, n = c->iov[i].iov_len - cut;
        skip -= cut;
        if (n > len) n = len;
        ssize_t w = k->used || !n ? 0 : send(k->fd, p + cut, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (w < 0 && errno != EAGAIN && errno != EINTR) {
            k->owed |= OWED_RESET;
            return;
        }
        size_t done = w > 0 ? (size_t)w : 0;
        forwarded(k, (uint32_t)done);
        if (done < n) {
            device_count(&s->copies, 1);
            device_count(&s->copied, n - done);
            if (!keep(k, p + cut + done, n - done)) {
                k->owed |= OWED_RESET;
                return;
            }
        }
        len -= (uint32_t)n;
    }
    vsock_watch(d, k);
}

void vsock_shutdown(struct virtio_vsock *d, struct vsock_connection *k, uint32_t flags)
{
    k->closing |= flags & (VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND);
    if (k->hung_up && k->closing & VIRTIO_VSOCK_SHUTDOWN_RCV) k->owed |= OWED_RESET;
    if (k->closing & VIRTIO_VSOCK_SHUTDOWN_RCV) {
        k->ended = true; /* it takes no more */
        k->owed &= ~(OWED_DATA | OWED_SHUTDOWN);
    }
    close_sides(k);
    vsock_watch(d, k);
}

/* ---- programs of the host ---- */

void vsock_answer(struct virtio_vsock *d, struct vsock_connection *k)
{
    char line[32];
    int n = snprintf(line, sizeof(line), "OK %u\n", k->host_port);
    (void)d;
    if (send(k->fd, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) != n) k->owed |= OWED_RESET;
}

/* A port of the host's end that no connection has. */
static uint32_t free_port(struct virtio_vsock *d, uint32_t guest_port)
{
    uint32_t port;
    do {
        port = d->next_port++;
        if (d->next_port == UINT32_MAX) d->next_port = VSOCK_FIRST_PORT;
    } while (vsock_find(d, port, guest_port));
    return port;
}

/* "CONNECT port\n", byte by byte: what follows is the guest's. False: the program wants something else, or went away. */
static bool handshake(struct virtio_vsock *d, struct vsock_connection *k)
{
    for (;;) {
        char *at = k->line + k->line_len, *end;
        ssize_t n = read(k->fd, at, 1);
        if (n < 0) return errno == EAGAIN || errno == EINTR;
        if (n == 0 || k->line_len + 2 > sizeof(k->line)) return false;
        if (*at != '\n') {
            k->line_len++;
            continue;
        }
        *at = 0;
        if (strncmp(k->line, "CONNECT ", 8) != 0 || k->line[8] < '0' || k->line[8] > '9') return false;
        errno = 0;
        unsigned long port = strtoul(k->line + 8, &end, 10);
        if (*end || errno || port > UINT32_MAX) return false;
        k->guest_port = (uint32_t)port;
        k->host_port = free_port(d, k->guest_port);
        k->state = VSOCK_REQUESTED;
        k->owed = OWED_REQUEST;
        vsock_watch(d, k);
        return true;
    }
}

/* Both directions are closed, or broken. What can still be read goes to the guest first. */
static void hang_up(struct virtio_vsock *d, struct vsock_connection *k)
{
    if (k->owed & OWED_REQUEST) {
        vsock_free(d, k); /* the guest never heard of it */
        return;
    }
    event_fd_remove(d->loop, k->fd); /* or it would be reported again and again */
    k->hung_up = true;
    k->used = 0;
    if (k->state != VSOCK_OPEN || k->closing & VIRTIO_VSOCK_SHUTDOWN_RCV)
        k->owed |= OWED_RESET;
    else if (!k->ended)
        k->owed |= OWED_DATA; /* reading on finds the end */
    else
        k->owed |= OWED_SHUTDOWN;
}

/* What is so with the socket now: the events of a callback may be those of a socket that had the place before. */
static uint32_t events_now(const struct vsock_connection *k)
{
    struct pollfd p = {.fd = k->fd, .events = POLLIN | POLLOUT};
    if (poll(&p, 1, 0) <= 0) return 0;
    return (p.revents & POLLIN ? EPOLLIN : 0) | (p.revents & POLLOUT ? EPOLLOUT : 0) |
           (p.revents & (POLLHUP | POLLERR) ? EPOLLHUP : 0);
}

/* The loop's thread. */
static void on_socket(void *ctx, uint32_t events)
{
    struct vsock_connection *k = ctx;
    struct virtio_vsock *d = k->device;
    pthread_mutex_lock(&d->lock);
    events = k->state == VSOCK_FREE ? 0 : events_now(k);
    if (k->state == VSOCK_HANDSHAKE) {
        if (!handshake(d, k)) vsock_free(d, k);
    } else if (k->state != VSOCK_FREE && !k->hung_up) {
        if (events & EPOLLOUT) flush(k);
        if (events & EPOLLIN && !k->ended) k->owed |= OWED_DATA;
        if (events & EPOLLHUP)
            hang_up(d, k);
        else
            vsock_watch(d, k);
    }
    pthread_mutex_unlock(&d->lock);
    virtio_queue_kick(virtio_queue(d->virtio, VSOCK_RX));
}

void vsock_listen_again(void *ctx)
{
    struct virtio_vsock *d = ctx;
    event_listen(d->loop, d->listener);
}

void vsock_accept(void *ctx, uint32_t events)
{
    struct virtio_vsock *d = ctx;
    (void)events;
    int fd = event_accept(d->loop, d->listener, &d->listen_timer);
    if (fd < 0) return;
    pthread_mutex_lock(&d->lock);
    struct vsock_connection *k = vsock_new(d, fd, VSOCK_HANDSHAKE);
    if (k)
        vsock_watch(d, k);
    else
        close(fd);
    pthread_mutex_unlock(&d->lock);
}
