/* Tap devices: frames to and from an interface of the host, checksums and segmentation left to the kernel where the guest's driver can do
 * without (IFF_VNET_HDR). */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/if_tun.h>
#include <net/if.h>

#include "common/log.h"
#include "vmm/backend/net_internal.h"

/* How many frames one wake-up reads before other descriptors have their turn. */
#define FRAMES_AT_ONCE 64

struct tap {
    struct net net;
    int fd;
    bool device; /* a tap device and no socket that stands for one */
    bool watched;
    bool reading; /* EPOLLIN is wanted; n->lock */
    bool full;    /* EPOLLOUT is wanted: a frame of the guest waits; n->lock */
    uint8_t buffer[sizeof(struct net_header) + NET_MAX_FRAME];
};

static struct tap *tap_of(struct net *n)
{
    return (struct tap *)n; /* net is the first member */
}

/* With n->lock. */
static void watch(struct tap *t)
{
    event_fd_modify(t->net.loop, t->fd, (t->reading ? EPOLLIN : 0u) | (t->full ? EPOLLOUT : 0u));
}

/* False when there is nothing at the other end any more. */
static bool read_frames(struct tap *t)
{
    for (int i = 0; i < FRAMES_AT_ONCE && t->reading; i++) {
        ssize_t n = read(t->fd, t->buffer, sizeof t->buffer);
        if (n <= 0) return n < 0; /* nothing there now; 0: never again */
        if ((size_t)n <= sizeof(struct net_header)) continue;
        struct net_header h;
        memcpy(&h, t->buffer, sizeof h);
        struct iovec iov = {t->buffer + sizeof h, (size_t)n - sizeof h};
        if (!net_deliver(&t->net, &h, &iov, 1) && t->net.first) {
            t->reading = false;
            watch(t);
        }
    }
    return true;
}

static void on_tap(void *ctx, uint32_t events)
{
    struct tap *t = ctx;
    bool writable = false, alive = true;
    pthread_mutex_lock(t->net.lock);
    if (events & EPOLLIN) alive = read_frames(t);
    net_deliver_end(&t->net);
    if (t->full && events & EPOLLOUT) {
        t->full = false;
        writable = true;
        watch(t);
    }
    if (!alive || (events & (EPOLLERR | EPOLLHUP) && !(events & EPOLLIN))) {
        /* The interface is gone: the descriptor would wake us for ever. */
        event_fd_remove(t->net.loop, t->fd);
        t->watched = false;
    }
    pthread_mutex_unlock(t->net.lock);
    if (writable && t->net.writable) t->net.writable(t->net.writable_ctx);
}

static void tap_resume(struct net *n)
{
    struct tap *t = tap_of(n);
    if (t->reading) return;
    t->reading = true;
    watch(t);
}

static enum net_sent tap_send(struct net *n, const struct iovec *iov, unsigned iovs, size_t len)
{
    struct tap *t = tap_of(n);
    (void)len;
    if (writev(t->fd, iov, (int)iovs) >= 0) return NET_SENT;
    /* Refused by the kernel: a header that makes no sense, or an interface that is down. */
    if (errno != EAGAIN) return NET_DROPPED;
    pthread_mutex_lock(n->lock);
    t->full = true;
    watch(t);
    pthread_mutex_unlock(n->lock);
    return NET_FULL;
}

static void tap_offloads(struct net *n, unsigned guest)
{
    struct tap *t = tap_of(n);
    if (!t->device) return;
    unsigned f = (guest & GUEST_CSUM ? TUN_F_CSUM : 0u) | (guest & GUEST_TSO4 ? TUN_F_TSO4 : 0u) |
                 (guest & GUEST_TSO6 ? TUN_F_TSO6 : 0u) | (guest & GUEST_ECN ? TUN_F_TSO_ECN : 0u);
    if (ioctl(t->fd, TUNSETOFFLOAD, f)) nc_debug("tap: the kernel refuses offloads %#x: %s", f, strerror(errno));
}

static void tap_close(struct net *n)
{
    struct tap *t = tap_of(n);
    if (t->watched) event_fd_remove(n->loop, t->fd);
    if (t->fd >= 0) close(t->fd);
}

static const struct net_ops tap_ops = {
    .kind = "tap",
    .send = tap_send,
    .resume = tap_resume,
    .offloads = tap_offloads,
    .close = tap_close,
};

/* ---- opening ---- */

static int open_error(const char *name, int err, struct nerr *e)
{
    switch (err) {
    case ENOENT:
    case ENXIO:
    case ENODEV:
        return nerr_set(e, -err,
                        "--net: tap=%s: this host has no /dev/net/tun; load the module 'tun', or use --net user", name);
    case EACCES:
    case EPERM:
        if (!if_nametoindex(name))
            return nerr_set(e, -err,
                            "--net: tap=%s: no such interface, and no permission to create it; "
                            "run 'ip tuntap add mode tap user $USER name %s' as root",
                            name, name);
        return nerr_set(e, -err, "--net: tap=%s: no permission; make it yours with 'ip tuntap add mode tap user ...'",
                        name);
    case EBUSY: return nerr_set(e, -err, "--net: tap=%s is in use by another process; give another", name);
    case EINVAL:
        return nerr_set(
            e, -err,
            "--net: tap=%s is an interface of another kind, or made with multi_queue; give a tap device made without",
            name);
    default: return nerr_set(e, -err, "--net: tap=%s: %s", name, strerror(err));
    }
}

/* The interface's MTU and whether it is up, as the host says. One that we made is brought up. */
static void look_up(const char *name, bool ours, unsigned *mtu, bool *up)
{
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s < 0) return;
    struct ifreq r = {0};
    memcpy(r.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
    if (!ioctl(s, SIOCGIFMTU, &r) && r.ifr_mtu >= (int)NET_MTU_MIN && r.ifr_mtu <= (int)NET_MTU_MAX)
        *mtu = (unsigned)r.ifr_mtu;
    if (!ioctl(s, SIOCGIFFLAGS, &r)) {
        *up = r.ifr_flags & IFF_UP;
        r.ifr_flags |= IFF_UP;
        if (ours && !ioctl(s, SIOCSIFFLAGS, &r)) *up = true;
    }
    close(s);
}

static int open_device(struct tap *t, const char *name, struct nerr *e)
{
    if (!name[0] || strchr(name, '/') || strchr(name, ' ') || strchr(name, '%'))
        return nerr_set(e, -EINVAL, "--net: tap='%s' is no name of an interface; give 1 to %u characters", name,
                        NET_NAME_MAX);
    t->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (t->fd < 0) return open_error(name, errno, e);
    bool existed = if_nametoindex(name);
    struct ifreq r = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    memcpy(r.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
    if (ioctl(t->fd, TUNSETIFF, &r)) return open_error(name, errno, e);
    int size = sizeof(struct net_header);
    if (ioctl(t->fd, TUNSETVNETHDRSZ, &size))
        return nerr_set(e, -errno, "--net: tap=%s: the kernel has no headers of %d bytes: %s", name, size,
                        strerror(errno));
    ioctl(t->fd, TUNSETOFFLOAD, 0u);
    t->device = true;
    bool up = true;
    look_up(name, !existed, &t->net.mtu, &up);
    if (!existed) nc_info("--net: there was no tap=%s; it is made, and goes with the machine", name);
    if (!up) nc_warn("--net: tap=%s is down; bring it up with 'ip link set %s up'", name, name);
    return 0;
}

int net_tap_open(const struct net_config *cfg, struct event_loop *loop, const struct net_port *port, struct net **out,
                 struct nerr *e)
{
    struct tap *t = calloc(1, sizeof *t);
    if (!t) return nerr_set(e, -ENOMEM, "--net: tap: out of memory");
    net_init(&t->net, &tap_ops, loop, port);
    t->net.offloads = true;
    t->reading = true;
    t->fd = -1;
    int r = 0;
    if (cfg->tap.by_fd) {
        t->fd = cfg->tap.fd;
        fcntl(t->fd, F_SETFL, fcntl(t->fd, F_GETFL) | O_NONBLOCK);
        unsigned features;
        t->device = !ioctl(t->fd, TUNGETFEATURES, &features);
    } else {
        r = open_device(t, cfg->tap.name, e);
    }
    if (!r) r = event_fd_add(loop, t->fd, EPOLLIN, on_tap, t, e);
    t->watched = !r;
    if (r)
        net_close(&t->net);
    else
        *out = &t->net;
    return r;
}
