/* Network back ends: a tap that is a socket pair, user networking against servers on the loopback, limits, link. */
#include "tests/unit/device_fixture.h"
#include "tests/unit/net_frames.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <linux/if_tun.h>
#include <net/if.h>

#include "vmm/backend/net.h"
#include "vmm/backend/offload.h"

#define GUEST_IP 0x0a00020fu
#define HOST_IP 0x0a000202u
#define MAX_GOT 4096

/* A NIC: keeps the frames that come. */
struct nic {
    struct bench *b;
    struct net *net;
    pthread_mutex_t lock;
    bool full, count_only;
    unsigned got, refused, ends, writable, links;
    bool link;
    struct {
        struct net_header h;
        uint8_t *data;
        size_t len;
    } frame[MAX_GOT];
    uint64_t bytes;
    unsigned looked; /* frames that the test has seen */
};

static bool nic_receive(void *ctx, const struct iovec *iov, unsigned iovs)
{
    struct nic *n = ctx;
    bool taken = false;
    assert_true(iovs >= 2 && iov[0].iov_len == sizeof(struct net_header));
    pthread_mutex_lock(&n->lock);
    if (n->count_only) {
        for (unsigned i = 1; i < iovs; i++) n->bytes += iov[i].iov_len;
        n->bytes -= 14; /* as limits count */
        taken = true;
    } else if (n->full || n->got == MAX_GOT) {
        __atomic_fetch_add(&n->refused, 1, __ATOMIC_RELAXED);
    } else {
        size_t len = 0;
        for (unsigned i = 1; i < iovs; i++) len += iov[i].iov_len;
        uint8_t *p = malloc(len);
        n->frame[n->got].data = p;
        n->frame[n->got].len = len;
        memcpy(&n->frame[n->got].h, iov[0].iov_base, sizeof(struct net_header));
        for (unsigned i = 1; i < iovs; p += iov[i].iov_len, i++) memcpy(p, iov[i].iov_base, iov[i].iov_len);
        n->got++;
        taken = true;
    }
    pthread_mutex_unlock(&n->lock);
    return taken;
}

static void nic_end(void *ctx)
{
    __atomic_fetch_add(&((struct nic *)ctx)->ends, 1, __ATOMIC_RELAXED);
}

static void nic_link(void *ctx, bool up)
{
    struct nic *n = ctx;
    n->links++;
    n->link = up;
}

static void nic_writable(void *ctx)
{
    __atomic_fetch_add(&((struct nic *)ctx)->writable, 1, __ATOMIC_RELAXED);
}

static struct nic *nic_new(const struct net_config *cfg)
{
    struct nerr e;
    struct nic *n = calloc(1, sizeof *n);
    assert_non_null(n);
    pthread_mutex_init(&n->lock, NULL);
    n->b = bench_new();
    struct net_port port = {.ctx = n, .receive = nic_receive, .receive_end = nic_end, .link_changed = nic_link};
    if (net_open(cfg, n->b->loop, &port, &n->net, &e)) fail_msg("%s", e.text);
    net_on_writable(n->net, nic_writable, n);
    return n;
}

static void nic_free(struct nic *n)
{
    bench_stop(n->b);
    net_close(n->net);
    bench_free(n->b);
    for (unsigned i = 0; i < n->got; i++) free(n->frame[i].data);
    pthread_mutex_destroy(&n->lock);
    free(n);
}

static unsigned nic_got(struct nic *n)
{
    pthread_mutex_lock(&n->lock);
    unsigned got = n->got;
    pthread_mutex_unlock(&n->lock);
    return got;
}

static void wait_got(struct nic *n, unsigned want)
{
    for (int i = 0; i < 10000 && nic_got(n) < want; i++) sleep_us(500);
    assert_true(nic_got(n) >= want);
}

/* What is received is counted on the loop's thread when it has arrived. */
static void wait_counted(const struct nic *n, struct net_stats *s, uint64_t bytes)
{
    net_get_stats(n->net, s);
    for (int i = 0; i < 10000 && s->bytes[0] < bytes; i++) {
        sleep_us(500);
        net_get_stats(n->net, s);
    }
}

static bool nic_send(struct nic *n, const struct net_header *h, const void *data, size_t len)
{
    struct net_header none = {0};
    /* In pieces, as guests send. */
    size_t first = len > 60 ? 54 : len;
    struct iovec iov[3] = {
        {(void *)(h ? h : &none), sizeof none}, {(void *)data, first}, {(uint8_t *)data + first, len - first}};
    bool sent = net_send(n->net, iov, len > first ? 3 : 2);
    net_send_end(n->net);
    return sent;
}

/* ---- tap, by a socket pair ---- */

static struct nic *tap_new(int *peer, const struct net_limits *limits)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    struct net_config cfg = {.kind = NET_TAP, .tap = {.by_fd = true, .fd = pair[0]}};
    if (limits) cfg.limits = *limits;
    *peer = pair[1];
    return nic_new(&cfg);
}

static void test_tap(void **state)
{
    (void)state;
    int peer;
    struct nic *n = tap_new(&peer, NULL);
    struct net_info info;
    net_info(n->net, &info);
    assert_string_equal(info.kind, "tap");
    assert_true(info.link && info.offloads);
    net_set_guest_offloads(n->net, true, true, true, true);
    uint8_t frame[200], buffer[70000];
    for (unsigned i = 0; i < sizeof frame; i++) frame[i] = (uint8_t)i;
    struct net_header h = {
        .flags = 1, .gso_type = 1, .hdr_len = 54, .gso_size = 100, .csum_start = 34, .csum_offset = 16};
    assert_true(nic_send(n, &h, frame, sizeof frame));
    assert_int_equal(recv(peer, buffer, sizeof buffer, 0), sizeof h + sizeof frame);
    assert_memory_equal(buffer, &h, sizeof h);
    assert_memory_equal(buffer + sizeof h, frame, sizeof frame);
    /* The other way, header and all. */
    memcpy(buffer, &h, sizeof h);
    memcpy(buffer + sizeof h, frame, sizeof frame);
    assert_int_equal(send(peer, buffer, sizeof h + sizeof frame, 0), sizeof h + sizeof frame);
    wait_got(n, 1);
    assert_int_equal(n->frame[0].len, sizeof frame);
    assert_memory_equal(&n->frame[0].h, &h, sizeof h);
    assert_memory_equal(n->frame[0].data, frame, sizeof frame);
    /* Runts, giants and headers alone do no harm. */
    assert_true(nic_send(n, NULL, frame, 5));
    struct iovec giant[2] = {{&h, sizeof h}, {buffer, NET_MAX_FRAME + 1}};
    assert_true(net_send(n->net, giant, 2));
    assert_true(net_send(n->net, giant, 1));
    assert_int_equal(send(peer, buffer, 3, 0), 3);
    struct net_stats s;
    wait_counted(n, &s, sizeof frame);
    assert_int_equal(s.frames[0], 1);
    assert_int_equal(s.frames[1], 1);
    assert_int_equal(s.bytes[0], sizeof frame);
    assert_int_equal(s.bytes[1], sizeof frame);
    assert_int_equal(s.dropped[1], 3);
    /* The other end goes away: no endless wake-ups, sends are dropped. */
    close(peer);
    sleep_us(20000);
    assert_true(nic_send(n, NULL, frame, sizeof frame));
    net_get_stats(n->net, &s);
    assert_int_equal(s.dropped[1], 4);
    assert_int_equal(s.frames[1], 1);
    nic_free(n);
}

static void test_no_room(void **state)
{
    (void)state;
    int peer;
    struct nic *n = tap_new(&peer, NULL);
    uint8_t frame[12 + 100] = {0};
    n->full = true;
    for (unsigned i = 0; i < 20; i++) {
        frame[12] = (uint8_t)i;
        assert_int_equal(send(peer, frame, sizeof frame, 0), sizeof frame);
    }
    for (int i = 0; i < 2000 && !__atomic_load_n(&n->refused, __ATOMIC_RELAXED); i++) sleep_us(500);
    sleep_us(10000);
    assert_int_equal(nic_got(n), 0);
    pthread_mutex_lock(&n->lock);
    n->full = false;
    pthread_mutex_unlock(&n->lock);
    net_receive_ready(n->net);
    wait_got(n, 20);
    for (unsigned i = 0; i < 20; i++) assert_int_equal(n->frame[i].data[0], i); /* all, in order */
    assert_true(__atomic_load_n(&n->ends, __ATOMIC_RELAXED) > 0);
    /* A full other end: not taken, then writable. */
    unsigned sent = 0;
    while (nic_send(n, NULL, frame, 60) && sent < 100000) sent++;
    assert_true(sent > 1 && sent < 100000);
    uint8_t buffer[200];
    while (recv(peer, buffer, sizeof buffer, MSG_DONTWAIT) > 0) {
    }
    for (int i = 0; i < 4000 && !__atomic_load_n(&n->writable, __ATOMIC_RELAXED); i++) sleep_us(500);
    assert_true(__atomic_load_n(&n->writable, __ATOMIC_RELAXED) > 0);
    assert_true(nic_send(n, NULL, frame, 60));
    nic_free(n);
    close(peer);
}

/* What waits when the driver is reset was for the one before; and what a driver has not agreed to is not given to it. */
static void test_forget(void **state)
{
    (void)state;
    int peer;
    struct nic *n = tap_new(&peer, NULL);
    uint8_t frame[12 + 100] = {0};
    n->full = true;
    frame[12] = 1;
    assert_int_equal(send(peer, frame, sizeof frame, 0), sizeof frame);
    /* Refused twice (net_deliver() looks again), then it waits. */
    for (int i = 0; i < 4000 && __atomic_load_n(&n->refused, __ATOMIC_RELAXED) < 2; i++) sleep_us(500);
    net_forget(n->net);
    pthread_mutex_lock(&n->lock);
    n->full = false;
    pthread_mutex_unlock(&n->lock);
    net_receive_ready(n->net);
    struct net_header large = {.gso_type = NET_GSO_TCPV4, .gso_size = 50, .flags = NET_HDR_NEEDS_CSUM};
    memcpy(frame, &large, sizeof large);
    frame[12] = 2;
    assert_int_equal(send(peer, frame, sizeof frame, 0), sizeof frame);
    memset(frame, 0, sizeof large);
    frame[12] = 3;
    assert_int_equal(send(peer, frame, sizeof frame, 0), sizeof frame);
    wait_got(n, 1);
    assert_int_equal(n->frame[0].data[0], 3);
    struct net_stats s;
    wait_counted(n, &s, 1);
    assert_int_equal(s.dropped[0], 2);
    assert_int_equal(s.frames[0], 1);
    nic_free(n);
    close(peer);
}

static void test_link(void **state)
{
    (void)state;
    int peer;
    struct nic *n = tap_new(&peer, NULL);
    uint8_t frame[12 + 100] = {0};
    n->full = true;
    assert_int_equal(send(peer, frame, sizeof frame, 0), sizeof frame);
    for (int i = 0; i < 2000 && !__atomic_load_n(&n->refused, __ATOMIC_RELAXED); i++) sleep_us(500);
    net_set_link(n->net, false);
    net_set_link(n->net, false);
    assert_int_equal(n->links, 1);
    assert_false(n->link);
    pthread_mutex_lock(&n->lock);
    n->full = false;
    pthread_mutex_unlock(&n->lock);
    assert_int_equal(send(peer, frame, sizeof frame, 0), sizeof frame);
    assert_true(nic_send(n, NULL, frame, 60));
    sleep_us(20000);
    assert_int_equal(nic_got(n), 0);
    assert_int_equal(recv(peer, frame, sizeof frame, MSG_DONTWAIT), -1);
    net_set_link(n->net, true);
    assert_int_equal(n->links, 2);
    assert_true(n->link);
    assert_int_equal(send(peer, frame, sizeof frame, 0), sizeof frame);
    wait_got(n, 1);
    nic_free(n);
    close(peer);
    struct nic *none = nic_new(&(struct net_config){.kind = NET_NONE});
    struct net_info info;
    net_info(none->net, &info);
    assert_false(info.link);
    assert_true(nic_send(none, NULL, frame, 60));
    nic_free(none);
}

/* What passes in a second and a half under a limit, both ways at once. Large frames and small ones cost in proportion. */
static void check_rates(size_t size, const struct net_limits *l)
{
    int peer;
    struct nic *n = tap_new(&peer, l);
    n->count_only = true;
    static uint8_t frame[sizeof(struct net_header) + 65000];
    uint64_t start = clock_mono_ns(), out = 0, sent_in = 0, now;
    fcntl(peer, F_SETFL, O_NONBLOCK);
    do {
        while (nic_send(n, NULL, frame, size)) {
        }
        while (send(peer, frame, sizeof(struct net_header) + size, 0) > 0) sent_in++;
        for (ssize_t r; (r = recv(peer, frame, sizeof frame, 0)) > 0;)
            out += (uint64_t)r - sizeof(struct net_header) - 14;
        sleep_us(500);
        now = clock_mono_ns();
    } while (now - start < 1500000000ull);
    pthread_mutex_lock(&n->lock);
    uint64_t in = n->bytes;
    pthread_mutex_unlock(&n->lock);
    double seconds = (double)(now - start) / 1e9;
    double want_in = (double)l->avg_in / 8 * seconds, want_out = (double)l->avg_out / 8 * seconds;
    assert_true(sent_in > 0);
    /* The default burst is 50 ms: 3.3 % of this time; the rest is for a machine that is busy. */
    if ((double)in > want_in * 1.06 || (double)in < want_in * 0.7) fail_msg("in: %.0f of %.0f", (double)in, want_in);
    if ((double)out > want_out * 1.06 || (double)out < want_out * 0.7)
        fail_msg("out: %.0f of %.0f", (double)out, want_out);
    struct net_stats s;
    net_get_stats(n->net, &s);
    assert_true(s.throttled_ns[0] > 500000000 && s.throttled_ns[1] > 500000000);
    nic_free(n);
    close(peer);
}

static void test_limits(void **state)
{
    (void)state;
    check_rates(1514, &(struct net_limits){.avg_in = 40000000, .avg_out = 20000000});
    check_rates(60014, &(struct net_limits){.avg_in = 100000000, .avg_out = 200000000});
}

static void test_change_limits(void **state)
{
    (void)state;
    int peer;
    struct nerr e;
    struct net_limits slow = {.avg_in = 8000, .avg_out = 8000}, none = {0}, got;
    struct nic *n = tap_new(&peer, &slow);
    uint8_t frame[sizeof(struct net_header) + 1500] = {0};
    /* A frame or two pass, then it is over for more than a second each. */
    for (int i = 0; i < 5; i++) assert_int_equal(send(peer, frame, sizeof frame, 0), sizeof frame);
    for (int i = 0; i < 5; i++) nic_send(n, NULL, frame, 1500);
    sleep_us(50000);
    assert_true(nic_got(n) < 3);
    assert_false(nic_send(n, NULL, frame, 1500));
    net_get_limits(n->net, &got);
    assert_memory_equal(&got, &slow, sizeof got);
    assert_int_equal(net_set_limits(n->net, &(struct net_limits){.peak_in = 1000000}, &e), -EINVAL);
    net_get_limits(n->net, &got);
    assert_memory_equal(&got, &slow, sizeof got);
    assert_int_equal(net_set_limits(n->net, &none, &e), 0);
    wait_got(n, 5);
    for (int i = 0; i < 2000 && !__atomic_load_n(&n->writable, __ATOMIC_RELAXED); i++) sleep_us(500);
    assert_true(__atomic_load_n(&n->writable, __ATOMIC_RELAXED) > 0);
    assert_true(nic_send(n, NULL, frame, 1500));
    nic_free(n);
    close(peer);
}

/* ---- tap, the real one ---- */

static void test_tap_errors(void **state)
{
    (void)state;
    struct nerr e;
    struct net *net;
    struct bench *b = bench_new();
    struct net_port port = {.receive = nic_receive};
    struct net_config cfg = {.kind = NET_TAP, .tap.name = "lo"};
    assert_true(net_open(&cfg, b->loop, &port, &net, &e) < 0);
    assert_null(net);
    assert_non_null(strstr(e.text, "tap=lo"));
    cfg.tap.name[0] = 0;
    assert_int_equal(net_open(&cfg, b->loop, &port, &net, &e), -EINVAL);
    cfg = (struct net_config){.kind = NET_NONE, .mtu = 10};
    assert_int_equal(net_open(&cfg, b->loop, &port, &net, &e), -EINVAL);
    bench_stop(b);
    bench_free(b);
}

/* Makes an interface, as root: frames of the host's stack come, ours reach it. */
static void test_tap_device(void **state)
{
    (void)state;
    int probe = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    struct ifreq r = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    strcpy(r.ifr_name, "nctest%d");
    bool possible = probe >= 0 && ioctl(probe, TUNSETIFF, &r) == 0;
    if (probe >= 0) close(probe);
    if (!possible) {
        print_message("no tap device possible here (%s): not tested\n", strerror(errno));
        skip();
    }
    struct net_config cfg = {.kind = NET_TAP};
    snprintf(cfg.tap.name, sizeof cfg.tap.name, "nct%u", (unsigned)getpid() % 1000000);
    struct nic *n = nic_new(&cfg);
    net_set_guest_offloads(n->net, true, true, true, true);
    /* It is up: the host looks for routers and neighbours by itself (IPv6), or says nothing without IPv6; a packet socket makes sure. */
    int s = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    assert_true(s >= 0);
    struct ifreq i = {0};
    memcpy(i.ifr_name, cfg.tap.name, sizeof cfg.tap.name);
    assert_int_equal(ioctl(s, SIOCGIFINDEX, &i), 0);
    struct {
        uint16_t family, protocol;
        int index;
        uint16_t hatype;
        uint8_t type, halen, addr[8];
    } to = {.family = AF_PACKET, .protocol = htons(0x88b5), .index = i.ifr_ifindex, .halen = 6};
    assert_int_equal(bind(s, (struct sockaddr *)&to, sizeof to), 0);
    uint8_t frame[100];
    memset(frame, 0xff, 6);
    memset(frame + 6, 2, 6);
    frame[12] = 0x88, frame[13] = 0xb5;
    memset(frame + 14, 0x5a, sizeof frame - 14);
    assert_int_equal(sendto(s, frame, sizeof frame, 0, (struct sockaddr *)&to, sizeof to), sizeof frame);
    bool found = false;
    for (int k = 0; k < 4000 && !found; k++) {
        sleep_us(500);
        pthread_mutex_lock(&n->lock);
        for (unsigned f = 0; f < n->got; f++)
            found |= n->frame[f].len == sizeof frame && !memcmp(n->frame[f].data, frame, sizeof frame);
        pthread_mutex_unlock(&n->lock);
    }
    assert_true(found);
    frame[20] = 0xa5;
    assert_true(nic_send(n, NULL, frame, sizeof frame));
    uint8_t buffer[2000];
    struct pollfd p = {.fd = s, .events = POLLIN};
    bool back = false;
    while (!back && poll(&p, 1, 2000) > 0) {
        ssize_t got = recv(s, buffer, sizeof buffer, 0);
        back = got == sizeof frame && !memcmp(buffer, frame, sizeof frame);
    }
    assert_true(back);
    close(s);
    /* Taken by us: a second one gets a clear refusal. */
    struct nerr e;
    struct net *second;
    struct net_port port = {.receive = nic_receive};
    assert_int_equal(net_open(&cfg, n->b->loop, &port, &second, &e), -EBUSY);
    assert_non_null(strstr(e.text, "in use"));
    nic_free(n);
}

/* ---- user networking: the test is the guest's TCP/IP ---- */

static struct frame f;

static void user_arp(struct nic *n)
{
    static const uint8_t arp[42] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0,    0x12, 0x34, 0x56, 8,    6,
                                    0,    1,    8,    0,    6,    4,    0,    1,    0x52, 0x54, 0,    0x12, 0x34, 0x56,
                                    10,   0,    2,    15,   0,    0,    0,    0,    0,    0,    10,   0,    2,    2};
    assert_true(nic_send(n, NULL, arp, sizeof arp));
    wait_got(n, 1);
}

static int listen_on(int type, uint16_t *port)
{
    int s = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    assert_true(s >= 0);
    assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof a), 0);
    if (type == SOCK_STREAM) assert_int_equal(listen(s, 4), 0);
    assert_int_equal(getsockname(s, (struct sockaddr *)&a, &len), 0);
    *port = ntohs(a.sin_port);
    return s;
}

/* The next frame of TCP (or UDP) for the guest, whose checksum is checked (or is partial). NULL when none comes. */
static const uint8_t *next_ip(struct nic *n, uint8_t proto, struct offload_frame *o, struct net_header *h)
{
    for (int i = 0; i < 10000; i++) {
        pthread_mutex_lock(&n->lock);
        unsigned at = n->looked, got = n->got;
        if (at < got) n->looked++;
        pthread_mutex_unlock(&n->lock);
        if (at == got) {
            sleep_us(500);
            continue;
        }
        const uint8_t *d = n->frame[at].data;
        if (!offload_parse(d, n->frame[at].len, o) || o->proto != proto || o->version != 4) continue;
        *h = n->frame[at].h;
        assert_int_equal(frame_ip4_check(d + o->l3), 0xffff);
        if (!(h->flags & NET_HDR_NEEDS_CSUM) && !o->fragment)
            assert_int_equal(frame_l4_check(d + o->l3, proto), 0xffff);
        return d;
    }
    fail_msg("no frame came");
    return NULL;
}

struct tcp {
    struct nic *n;
    uint16_t sport, dport;
    uint32_t seq, ack;
};

static void tcp_out(struct tcp *t, uint8_t flags, const void *data, size_t len, bool large)
{
    static const uint8_t mss[4] = {2, 4, 1460 >> 8, 1460 & 255};
    struct frame_spec s = {.proto = FRAME_TCP,
                           .flags = flags,
                           .sport = t->sport,
                           .dport = t->dport,
                           .seq = t->seq,
                           .ack = t->ack,
                           .src = GUEST_IP,
                           .dst = HOST_IP,
                           .data = data,
                           .data_len = len};
    if (flags & FRAME_SYN) s.options = mss, s.options_len = 4;
    frame_make(&f, &s);
    struct net_header h = {.flags = NET_HDR_NEEDS_CSUM, .csum_start = (uint16_t)f.l4, .csum_offset = 16};
    if (large) h.gso_type = NET_GSO_TCPV4, h.gso_size = 1460, h.hdr_len = (uint16_t)f.payload;
    frame_put16(f.b + f.l4 + 16, 0x4242); /* the checksum is left to the back end */
    assert_true(nic_send(t->n, &h, f.b, f.len));
    t->seq += (uint32_t)len + (flags & FRAME_SYN ? 1 : 0);
}

static int tcp_connect(struct tcp *t, int server)
{
    struct offload_frame o;
    struct net_header h;
    tcp_out(t, FRAME_SYN, NULL, 0, false);
    const uint8_t *d;
    do /* answers to earlier segments may still be on their way */
        d = next_ip(t->n, FRAME_TCP, &o, &h);
    while (frame_get16(d + o.l4) != t->dport || frame_get16(d + o.l4 + 2) != t->sport);
    assert_int_equal(d[o.l4 + 13] & 0x12, 0x12);
    assert_int_equal(frame_get32(d + o.l4 + 8), t->seq);
    t->ack = frame_get32(d + o.l4 + 4) + 1;
    tcp_out(t, FRAME_ACK, NULL, 0, false);
    int c = accept(server, NULL, NULL);
    assert_true(c >= 0);
    return c;
}

static void user_data(bool tso)
{
    static uint8_t data[60000], back[200000];
    struct nic *n = nic_new(&(struct net_config){.kind = NET_USER});
    struct offload_frame o;
    struct net_header h;
    uint16_t port;
    int server = listen_on(SOCK_STREAM, &port);
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 7 + (i >> 8));
    net_set_guest_offloads(n->net, tso, tso, tso, tso);
    user_arp(n);
    struct tcp t = {n, 40000, port, 1000, 0};
    int c = tcp_connect(&t, server);
    /* Out: a small segment, and a large one at once. */
    tcp_out(&t, FRAME_ACK | FRAME_PSH, data, 100, false);
    tcp_out(&t, FRAME_ACK | FRAME_PSH, data + 100, sizeof data - 100, true);
    size_t at = 0;
    for (ssize_t r; at < sizeof data && (r = recv(c, back + at, sizeof back - at, 0)) > 0;) at += (size_t)r;
    assert_int_equal(at, sizeof data);
    assert_memory_equal(back, data, sizeof data);
    /* In: large frames where the guest takes them, else none above its MTU; the same bytes in any case. */
    assert_int_equal(send(c, data, sizeof data, 0), sizeof data);
    size_t largest = 0;
    at = 0;
    while (at < sizeof data) {
        const uint8_t *d = next_ip(n, FRAME_TCP, &o, &h);
        size_t head = o.l4 + o.l4_len, len = o.end - head;
        if (!len) continue;
        assert_int_equal(frame_get32(d + o.l4 + 4), t.ack);
        memcpy(back + at, d + head, len);
        at += len;
        t.ack += (uint32_t)len;
        if (len > largest) largest = len;
        if (len > 1460) {
            assert_int_equal(h.gso_type, NET_GSO_TCPV4);
            assert_int_equal(h.gso_size, 1460);
            assert_int_equal(h.flags, NET_HDR_NEEDS_CSUM);
            assert_int_equal(h.csum_start, o.l4);
            assert_int_equal(h.csum_offset, 16);
            assert_int_equal(h.hdr_len, head);
        }
        tcp_out(&t, FRAME_ACK, NULL, 0, false);
    }
    assert_int_equal(at, sizeof data);
    assert_memory_equal(back, data, sizeof data);
    if (tso)
        assert_true(largest > 10000);
    else
        assert_int_equal(largest, 1460);
    close(c);
    close(server);
    nic_free(n);
}

static void test_user_tcp(void **state)
{
    (void)state;
    user_data(true);
    user_data(false);
}

static void test_user_udp(void **state)
{
    (void)state;
    struct nic *n = nic_new(&(struct net_config){.kind = NET_USER});
    uint16_t port;
    int server = listen_on(SOCK_DGRAM, &port);
    uint8_t data[4000], back[5000];
    memset(data, 0x77, sizeof data);
    user_arp(n);
    struct frame_spec s = {.proto = FRAME_UDP,
                           .sport = 5000,
                           .dport = port,
                           .src = GUEST_IP,
                           .dst = HOST_IP,
                           .data = data,
                           .data_len = 900};
    frame_make(&f, &s);
    assert_true(nic_send(n, NULL, f.b, f.len));
    struct sockaddr_in from;
    socklen_t len = sizeof from;
    assert_int_equal(recvfrom(server, back, sizeof back, 0, (struct sockaddr *)&from, &len), 900);
    /* The answer is larger than the guest's MTU: it comes in fragments. */
    assert_int_equal(sendto(server, data, sizeof data, 0, (struct sockaddr *)&from, len), sizeof data);
    struct offload_frame o;
    struct net_header h;
    size_t got = 0;
    for (unsigned i = 0; got < sizeof data + 8; i++) {
        const uint8_t *d = next_ip(n, FRAME_UDP, &o, &h);
        assert_true(o.fragment);
        assert_true(o.end - o.l3 <= 1500);
        assert_int_equal((frame_get16(d + o.l3 + 6) & 0x1fff) * 8, got);
        got += o.end - o.l4;
    }
    assert_int_equal(got, sizeof data + 8);
    close(server);
    nic_free(n);
}

/* DHCPDISCOVER; the offer has our address, router and name. */
static void test_user_dhcp(void **state)
{
    (void)state;
    struct net_config cfg = {
        .kind = NET_USER,
        .user = {.hostname = "silo", .network.s_addr = htonl(0xc0a84c00), .mask.s_addr = htonl(0xffffff00)}};
    struct nic *n = nic_new(&cfg);
    uint8_t d[260] = {1, 1, 6, 0, 1, 2, 3, 4};
    memcpy(d + 28, "\x52\x54\x00\x12\x34\x56", 6);
    memcpy(d + 236, "\x63\x82\x53\x63\x35\x01\x01\xff", 8);
    struct frame_spec s = {
        .proto = FRAME_UDP, .sport = 68, .dport = 67, .src = 0, .dst = 0xffffffff, .data = d, .data_len = sizeof d};
    frame_make(&f, &s);
    memset(f.b, 0xff, 6);
    assert_true(nic_send(n, NULL, f.b, f.len));
    struct offload_frame o;
    struct net_header h;
    const uint8_t *p = next_ip(n, FRAME_UDP, &o, &h) + o.l4 + 8;
    assert_int_equal(p[0], 2);
    assert_memory_equal(p + 4, "\x01\x02\x03\x04", 4);
    assert_int_equal(frame_get32(p + 16), 0xc0a84c0f);
    bool named = false;
    for (const uint8_t *x = p + 240; x < p + 300 && *x != 255; x += 2 + x[1])
        named |= x[0] == 12 && !memcmp(x + 2, "silo", 4);
    assert_true(named);
    nic_free(n);
}

static void test_user_forward(void **state)
{
    (void)state;
    uint16_t port;
    int taken = listen_on(SOCK_STREAM, &port);
    struct net_config cfg = {.kind = NET_USER, .user = {.forwards = 1}};
    cfg.user.forward[0] =
        (struct net_forward){.host.s_addr = htonl(INADDR_LOOPBACK), .host_port = port, .guest_port = 22};
    struct bench *b = bench_new();
    struct nerr e;
    struct net *net;
    struct net_port none = {.receive = nic_receive};
    assert_int_equal(net_open(&cfg, b->loop, &none, &net, &e), -EADDRINUSE);
    assert_non_null(strstr(e.text, "127.0.0.1"));
    bench_stop(b);
    bench_free(b);
    close(taken);
    struct nic *n = nic_new(&cfg);
    user_arp(n);
    int c = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};
    assert_int_equal(connect(c, (struct sockaddr *)&a, sizeof a), 0);
    struct offload_frame o;
    struct net_header h;
    const uint8_t *d = next_ip(n, FRAME_TCP, &o, &h);
    assert_int_equal(d[o.l4 + 13] & 0x12, FRAME_SYN);
    assert_int_equal(frame_get16(d + o.l4 + 2), 22);
    assert_int_equal(frame_get32(d + o.l3 + 16), GUEST_IP);
    close(c);
    nic_free(n);
}

/* Restricted: a connection out is refused, though a server is there. */
static void test_user_restricted(void **state)
{
    (void)state;
    struct net_config cfg = {.kind = NET_USER, .user.restricted = true};
    struct nic *n = nic_new(&cfg);
    uint16_t port;
    int server = listen_on(SOCK_STREAM, &port);
    user_arp(n);
    struct tcp t = {n, 40000, port, 1000, 0};
    tcp_out(&t, FRAME_SYN, NULL, 0, false);
    struct pollfd p = {.fd = server, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 300), 0);
    close(server);
    nic_free(n);
}

/* Garbage, and headers that lie: nothing happens, and the network still works. */
static void test_user_hostile(void **state)
{
    (void)state;
    struct nic *n = nic_new(&(struct net_config){.kind = NET_USER});
    struct net_stats stats;
    srand(3);
    user_arp(n);
    for (int i = 0; i < 3000; i++) {
        uint8_t data[2000];
        struct frame_spec s = {.v6 = rand() & 1,
                               .proto = rand() & 1 ? FRAME_TCP : FRAME_UDP,
                               .flags = (uint8_t)rand(),
                               .sport = 1,
                               .dport = 2,
                               .src = GUEST_IP,
                               .dst = 0x0a000263,
                               .data = data,
                               .data_len = (size_t)(rand() % 2000)};
        frame_make(&f, &s);
        for (int k = rand() % 5; k; k--) {
            unsigned at = (unsigned)rand() % 80;
            if (at < 30 || at > 33) f.b[at] = (uint8_t)rand(); /* stays within the private network */
        }
        struct net_header h = {.flags = (uint8_t)(rand() & 1),
                               .gso_type = (uint8_t)(rand() % 6),
                               .gso_size = (uint16_t)rand(),
                               .csum_start = (uint16_t)(rand() % 100),
                               .csum_offset = (uint16_t)(rand() % 100)};
        assert_true(nic_send(n, &h, f.b, f.len));
        pthread_mutex_lock(&n->lock);
        while (n->got) free(n->frame[--n->got].data);
        n->looked = 0;
        pthread_mutex_unlock(&n->lock);
    }
    net_get_stats(n->net, &stats);
    assert_int_equal(stats.frames[1] + stats.dropped[1], 3001);
    assert_true(stats.frames[1] > 1000 && stats.dropped[1] > 0);
    uint16_t port;
    int server = listen_on(SOCK_STREAM, &port);
    struct tcp t = {n, 40000, port, 1000, 0};
    int c = tcp_connect(&t, server);
    close(c);
    close(server);
    nic_free(n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tap),
        cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_forget),
        cmocka_unit_test(test_link),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_change_limits),
        cmocka_unit_test(test_tap_errors),
        cmocka_unit_test(test_tap_device),
        cmocka_unit_test(test_user_tcp),
        cmocka_unit_test(test_user_udp),
        cmocka_unit_test(test_user_dhcp),
        cmocka_unit_test(test_user_forward),
        cmocka_unit_test(test_user_restricted),
        cmocka_unit_test(test_user_hostile),
    };
    signal(SIGPIPE, SIG_IGN);
    cmocka_set_test_filter(getenv("CMOCKA_TEST_FILTER")); /* of ours: which tests to run, as a pattern */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
