/* User networking: libslirp ends the guest's connections here and makes sockets of them, so no privilege is needed.
 *
 * libslirp has no offloads, but takes and makes IP packets up to 64 KiB. So we let both sides use large ones: the guest's TSO frames go in
 * whole, the MSS in the guest's SYN is raised so that libslirp answers with large segments, and those go to the guest as GSO frames, or are cut
 * here when its driver (or e1000) can't take them.
 *
 * libslirp keeps some state in globals: one lock for all instances. Its sockets sit in an epoll instance of our own, which the
 * event loop watches as one descriptor; after each call into libslirp that may have changed what it wants to know, sync_polls() brings that
 * instance up to date. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <slirp/libslirp.h>

#include "common/clock.h"
#include "common/log.h"
#include "vmm/backend/net_internal.h"

#define IP_MAX 65521u      /* libslirp's largest MTU */
#define SEGMENT_MAX 32768u /* its largest TCP segment */
#define MAX_FD 65536
#define EVENTS_AT_ONCE 64

static pthread_mutex_t slirp_lock = PTHREAD_MUTEX_INITIALIZER;

struct polled {
    uint32_t events;  /* in the epoll instance; 0: not in it */
    uint32_t wanted;  /* by the fill that runs */
    uint32_t revents; /* what epoll said; cleared after each poll */
    uint32_t fill;    /* number of the last fill that named it */
};

struct user_timer {
    struct event_timer timer;
    struct user *user;
    SlirpTimerId id;
    void *opaque;
};

struct user {
    struct net net;
    Slirp *slirp;
    int epoll_fd;
    bool watched;
    bool dirty; /* sync_polls() is due */
    struct polled *polled;
    int polled_room, highest; /* entries [0, highest] may be in use */
    uint32_t fill;
    struct event_timer timer; /* libslirp's own time-outs */
    uint32_t fragment_id;
    uint8_t scratch[NET_MAX_FRAME];
};

static struct user *user_of(struct net *n)
{
    return (struct user *)n; /* net is the first member */
}

/* ---- what libslirp asks to poll ---- */

static uint32_t to_epoll(int events)
{
    return (events & SLIRP_POLL_IN ? EPOLLIN : 0u) | (events & SLIRP_POLL_OUT ? EPOLLOUT : 0u) |
           (events & SLIRP_POLL_PRI ? EPOLLPRI : 0u);
}

static int from_epoll(uint32_t e)
{
    return (e & EPOLLIN ? SLIRP_POLL_IN : 0) | (e & EPOLLOUT ? SLIRP_POLL_OUT : 0) |
           (e & EPOLLPRI ? SLIRP_POLL_PRI : 0) | (e & EPOLLERR ? SLIRP_POLL_ERR : 0) |
           (e & EPOLLHUP ? SLIRP_POLL_HUP : 0);
}

static bool polled_reserve(struct user *u, int fd)
{
    if (fd < u->polled_room) return true;
    if (fd >= MAX_FD) return false;
    int room = u->polled_room ? u->polled_room : 64;
    while (room <= fd) room *= 2;
    struct polled *p = realloc(u->polled, (size_t)room * sizeof *p);
    if (!p) return false;
    memset(p + u->polled_room, 0, (size_t)(room - u->polled_room) * sizeof *p);
    u->polled = p;
    u->polled_room = room;
    return true;
}

static int on_add_poll(int fd, int events, void *opaque)
{
    struct user *u = opaque;
    if (fd < 0 || !polled_reserve(u, fd)) return -1;
    struct polled *p = &u->polled[fd];
    p->wanted = p->fill == u->fill ? p->wanted | to_epoll(events) : to_epoll(events);
    p->fill = u->fill;
    if (fd > u->highest) u->highest = fd;
    return fd; /* the index that on_get_revents() gets */
}

static int on_get_revents(int fd, void *opaque)
{
    struct user *u = opaque;
    return fd >= 0 && fd < u->polled_room ? from_epoll(u->polled[fd].revents) : 0;
}

static void poll_update(struct user *u, int fd, uint32_t events)
{
    struct polled *p = &u->polled[fd];
    struct epoll_event ev = {.events = events | EPOLLERR | EPOLLHUP, .data.fd = fd};
    int op = p->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    int r = epoll_ctl(u->epoll_fd, op, fd, &ev);
    /* A socket may have been closed and its number used again behind our back: then the kernel knows better. */
    if (r && errno == ENOENT) r = epoll_ctl(u->epoll_fd, EPOLL_CTL_ADD, fd, &ev);
    if (r && errno == EEXIST) r = epoll_ctl(u->epoll_fd, EPOLL_CTL_MOD, fd, &ev);
    p->events = r ? 0 : events;
}

/* Frames wait for the guest: its sockets are left alone meanwhile, so that TCP holds the senders back. */
static uint32_t wanted_now(const struct user *u, uint32_t wanted)
{
    return u->net.first ? wanted & ~(uint32_t)(EPOLLIN | EPOLLPRI) : wanted;
}

/* Brings the epoll instance and the timer in line with what libslirp wants now. With the lock. */
static void sync_polls(struct user *u)
{
    uint32_t timeout = UINT32_MAX;
    u->dirty = false;
    u->fill++;
    slirp_pollfds_fill(u->slirp, &timeout, on_add_poll, u);
    int highest = -1;
    for (int fd = 0; fd <= u->highest; fd++) {
        struct polled *p = &u->polled[fd];
        uint32_t want = p->fill == u->fill ? wanted_now(u, p->wanted) : 0;
        if (want && want != p->events) {
            poll_update(u, fd, want);
        } else if (!want && p->events) {
            epoll_ctl(u->epoll_fd, EPOLL_CTL_DEL, fd, NULL); /* fails when it is closed: fine */
            p->events = 0;
        }
        if (p->events) highest = fd;
    }
    u->highest = highest;
    if (timeout == UINT32_MAX)
        event_timer_cancel(&u->timer);
    else
        event_timer_arm(&u->timer, clock_mono_ns() + timeout * 1000000ull, 0);
}

static void poll_slirp(struct user *u, struct epoll_event *ev, int n)
{
    for (int i = 0; i < n; i++)
        if (ev[i].data.fd < u->polled_room) u->polled[ev[i].data.fd].revents = ev[i].events;
    slirp_pollfds_poll(u->slirp, 0, on_get_revents, u);
    for (int i = 0; i < n; i++)
        if (ev[i].data.fd < u->polled_room) u->polled[ev[i].data.fd].revents = 0;
    sync_polls(u);
    net_deliver_end(&u->net);
}

static void on_sockets(void *ctx, uint32_t events)
{
    struct user *u = ctx;
    (void)events;
    struct epoll_event ev[EVENTS_AT_ONCE];
    pthread_mutex_lock(&slirp_lock);
    int n = epoll_wait(u->epoll_fd, ev, EVENTS_AT_ONCE, 0);
    poll_slirp(u, ev, n > 0 ? n : 0);
    pthread_mutex_unlock(&slirp_lock);
}

static void on_timeout(void *ctx)
{
    struct user *u = ctx;
    pthread_mutex_lock(&slirp_lock);
    poll_slirp(u, NULL, 0);
    pthread_mutex_unlock(&slirp_lock);
}

/* ---- callbacks of libslirp, all of them with the lock ---- */

static int64_t on_clock(void *opaque)
{
    (void)opaque;
    return (int64_t)clock_mono_ns();
}

static void on_guest_error(const char *message, void *opaque)
{
    (void)opaque;
    nc_debug("user network: the guest: %s", message);
}

static void on_user_timer(void *ctx)
{
    struct user_timer *t = ctx;
    pthread_mutex_lock(&slirp_lock);
    slirp_handle_timer(t->user->slirp, t->id, t->opaque);
    net_deliver_end(&t->user->net);
    pthread_mutex_unlock(&slirp_lock);
}

static void *on_timer_new(SlirpTimerId id, void *cb_opaque, void *opaque)
{
    struct user *u = opaque;
    struct user_timer *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    *t = (struct user_timer){.user = u, .id = id, .opaque = cb_opaque};
    event_timer_init(&t->timer, u->net.loop, on_user_timer, t);
    return t;
}

static void on_timer_free(void *timer, void *opaque)
{
    struct user_timer *t = timer;
    (void)opaque;
    if (t) event_timer_destroy(&t->timer);
    free(t);
}

static void on_timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
    struct user_timer *t = timer;
    (void)opaque;
    if (t) event_timer_arm(&t->timer, expire_ms > 0 ? (uint64_t)expire_ms * 1000000ull : 0, 0);
}

static void on_register(int fd, void *opaque)
{
    (void)fd, (void)opaque; /* the next fill names it */
}

/* Before the socket is closed: what is polled under this number is forgotten. */
static void on_unregister(int fd, void *opaque)
{
    struct user *u = opaque;
    if (fd < 0 || fd >= u->polled_room) return;
    if (u->polled[fd].events) epoll_ctl(u->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    u->polled[fd].events = u->polled[fd].revents = 0;
}

static void on_notify(void *opaque)
{
    ((struct user *)opaque)->dirty = true;
}

/* ---- to the guest ---- */

static bool emit(void *ctx, const struct iovec *iov, unsigned iovs)
{
    struct user *u = ctx;
    struct net_header h = {.flags = NET_HDR_DATA_VALID}; /* libslirp makes them whole */
    net_deliver(&u->net, &h, iov, iovs);
    return true;
}

/* A TCP segment larger than the guest's MTU, as one GSO frame: libslirp's checksum is replaced by a partial one, since the pieces have
 * others. */
static void deliver_gso(struct user *u, uint8_t *frame, const struct offload_frame *f, unsigned mss)
{
    struct net_header h = {.flags = NET_HDR_NEEDS_CSUM,
                           .gso_type = f->version == 4 ? NET_GSO_TCPV4 : NET_GSO_TCPV6,
                           .hdr_len = (uint16_t)(f->l4 + f->l4_len),
                           .gso_size = (uint16_t)mss,
                           .csum_start = f->l4,
                           .csum_offset = 16};
    offload_partial_checksum(frame, f);
    struct iovec iov = {frame, f->end};
    net_deliver(&u->net, &h, &iov, 1);
}

static ssize_t on_packet(const void *data, size_t len, void *opaque)
{
    struct user *u = opaque;
    struct offload_frame f;
    struct iovec whole = {(void *)data, len};
    if (len > NET_MAX_FRAME) return (ssize_t)len;
    bool known = len > u->net.mtu + NET_ETHERNET && offload_parse(data, len, &f);
    if (!known || f.end - f.l3 <= u->net.mtu) {
        emit(u, &whole, 1);
        return (ssize_t)len;
    }
    unsigned guest = atomic_load(&u->net.guest);
    unsigned mss = u->net.mtu - (f.l4 - f.l3) - f.l4_len;
    if (f.proto != NET_IP_TCP || !f.l4_len) {
        if (!offload_fragment(data, &f, u->net.mtu, u->fragment_id++, emit, u)) emit(u, &whole, 1);
    } else if (guest & (f.version == 4 ? GUEST_TSO4 : GUEST_TSO6)) {
        deliver_gso(u, (uint8_t *)data, &f, mss); /* libslirp gives a buffer of its own and is done with it */
    } else {
        offload_segment(data, &f, (uint16_t)mss, emit, u);
    }
    return (ssize_t)len;
}

/* ---- from the guest ---- */

static enum net_sent user_send(struct net *n, const struct iovec *iov, unsigned iovs, size_t len)
{
    struct user *u = user_of(n);
    const struct net_header *h = iov[0].iov_base;
    struct offload_frame f;
    pthread_mutex_lock(&slirp_lock);
    /* libslirp wants one piece, and must not see it change: this is the one copy. */
    size_t at = 0;
    for (unsigned i = 1; i < iovs; i++) {
        memcpy(u->scratch + at, iov[i].iov_base, iov[i].iov_len);
        at += iov[i].iov_len;
    }
    net_count_copy(n, len);
    bool ip = offload_parse(u->scratch, len, &f);
    bool good = !(ip && f.end - f.l3 > IP_MAX) && offload_checksum(h, u->scratch, len);
    if (good) {
        if (ip) offload_raise_mss(u->scratch, &f, SEGMENT_MAX, false);
        slirp_input(u->slirp, u->scratch, (int)len);
        u->dirty = true;
    }
    pthread_mutex_unlock(&slirp_lock);
    return good ? NET_SENT : NET_DROPPED;
}

static void user_send_end(struct net *n)
{
    struct user *u = user_of(n);
    pthread_mutex_lock(&slirp_lock);
    if (u->dirty) sync_polls(u);
    net_deliver_end(n);
    pthread_mutex_unlock(&slirp_lock);
}

static void user_resume(struct net *n)
{
    sync_polls(user_of(n));
}

/* ---- opening ---- */

static const SlirpCb callbacks = {
    .send_packet = on_packet,
    .guest_error = on_guest_error,
    .clock_get_ns = on_clock,
    .timer_free = on_timer_free,
    .timer_mod = on_timer_mod,
    .register_poll_fd = on_register,
    .unregister_poll_fd = on_unregister,
    .notify = on_notify,
    .timer_new_opaque = on_timer_new,
};

static int check_network(const struct net_user_config *c, uint32_t net, uint32_t mask, struct nerr *e)
{
    uint32_t host = ~mask;
    char text[INET_ADDRSTRLEN] = "";
    inet_ntop(AF_INET, &c->network, text, sizeof text);
    if (host & (host + 1) || host < 31 || host > 0xffffff)
        return nerr_set(e, -EINVAL, "--net: user: %s has an impossible prefix; give /8 to /27", text);
    if (net & host)
        return nerr_set(e, -EINVAL, "--net: user: %s has bits set behind its prefix; give the network's own address",
                        text);
    return 0;
}

static int start_slirp(struct user *u, const struct net_user_config *c, struct nerr *e)
{
    uint32_t net = c->network.s_addr ? ntohl(c->network.s_addr) : 0x0a000200;
    uint32_t mask = c->mask.s_addr ? ntohl(c->mask.s_addr) : 0xffffff00;
    int r = check_network(c, net, mask, e);
    if (r) return r;
    SlirpConfig s = {
        .version = 4,
        .restricted = c->restricted,
        .in_enabled = true,
        .vnetwork.s_addr = htonl(net),
        .vnetmask.s_addr = htonl(mask),
        .vhost.s_addr = htonl(net | 2),
        .vdhcp_start.s_addr = htonl(net | 15),
        .vnameserver.s_addr = c->dns.s_addr ? c->dns.s_addr : htonl(net | 3),
        .in6_enabled = !c->no_ipv6,
        .vprefix_len = 64,
        .vhostname = c->hostname,
        .vdomainname = c->domain,
        .if_mtu = IP_MAX,
        .if_mru = IP_MAX,
    };
    inet_pton(AF_INET6, "fec0::", &s.vprefix_addr6);
    inet_pton(AF_INET6, "fec0::2", &s.vhost6);
    inet_pton(AF_INET6, "fec0::3", &s.vnameserver6);
    if ((s.vnameserver.s_addr & s.vnetmask.s_addr) != s.vnetwork.s_addr || s.vnameserver.s_addr == s.vhost.s_addr)
        return nerr_set(e, -EINVAL, "--net: user: the name server is not an address of its own within the network");
    for (unsigned i = 0; i < c->forwards; i++)
        if (c->forward[i].guest.s_addr && (c->forward[i].guest.s_addr & s.vnetmask.s_addr) != s.vnetwork.s_addr)
            return nerr_set(e, -EINVAL,
                            "--net: hostfwd leads to an address outside of the guest's network; leave it out, "
                            "or give one of net=");
    u->slirp = slirp_new(&s, &callbacks, u);
    return u->slirp ? 0 : nerr_set(e, -EINVAL, "--net: user: libslirp does not start with these settings");
}

static int add_forward(struct user *u, const struct net_forward *f, struct nerr *e)
{
    if (!slirp_add_hostfwd(u->slirp, f->udp, f->host, f->host_port, f->guest, f->guest_port)) return 0;
    int err = errno ? errno : EINVAL;
    char host[INET_ADDRSTRLEN] = "";
    inet_ntop(AF_INET, &f->host, host, sizeof host);
    return nerr_set(e, -err, "--net: cannot listen on %s port %s:%u: %s; choose another hostfwd",
                    f->udp ? "UDP" : "TCP", host, f->host_port, strerror(err));
}

static void user_close(struct net *n)
{
    struct user *u = user_of(n);
    if (u->watched) event_fd_remove(n->loop, u->epoll_fd);
    pthread_mutex_lock(&slirp_lock);
    if (u->slirp) slirp_cleanup(u->slirp);
    u->slirp = NULL;
    pthread_mutex_unlock(&slirp_lock);
    event_timer_destroy(&u->timer);
    if (u->epoll_fd >= 0) close(u->epoll_fd);
    free(u->polled);
}

static const struct net_ops user_ops = {
    .kind = "user",
    .send = user_send,
    .send_end = user_send_end,
    .resume = user_resume,
    .close = user_close,
};

int net_user_open(const struct net_config *cfg, struct event_loop *loop, const struct net_port *port, struct net **out,
                  struct nerr *e)
{
    struct user *u = calloc(1, sizeof *u);
    if (!u) return nerr_set(e, -ENOMEM, "--net: user: out of memory");
    net_init(&u->net, &user_ops, loop, port);
    u->net.lock = &slirp_lock;
    u->net.offloads = true;
    u->highest = -1;
    event_timer_init(&u->timer, loop, on_timeout, u);
    u->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int r = u->epoll_fd < 0 ? nerr_set(e, -errno, "--net: user: %s", strerror(errno)) : 0;
    pthread_mutex_lock(&slirp_lock);
    if (!r) r = start_slirp(u, &cfg->user, e);
    for (unsigned i = 0; i < cfg->user.forwards && !r; i++) r = add_forward(u, &cfg->user.forward[i], e);
    if (!r) sync_polls(u);
    pthread_mutex_unlock(&slirp_lock);
    if (!r) r = event_fd_add(loop, u->epoll_fd, EPOLLIN, on_sockets, u, e);
    u->watched = !r;
    if (r)
        net_close(&u->net);
    else
        *out = &u->net;
    return r;
}
