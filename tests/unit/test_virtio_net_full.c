/* The virtio network device and a back end that is full, and has room again at the worst moments. The back end is here: what a program defines
 * itself is not taken from the archive. */
#include "tests/unit/virtio_rig.h"

#include "vmm/backend/net.h"
#include "vmm/virtio/net.h"

#define FEATURES VIRTIO_BIT(VIRTIO_F_VERSION_1)
#define HEADER sizeof(struct net_header)

struct net {
    void (*writable)(void *ctx);
    void *ctx;
    unsigned refuse;     /* this many sends, then all are taken */
    bool writable_early; /* there is room before the device has heard that there was none */
    unsigned tried, taken;
};

static struct net backend;

int net_open(const struct net_config *cfg, struct event_loop *loop, const struct net_port *port, struct net **out,
             struct nerr *e)
{
    (void)cfg, (void)loop, (void)port, (void)e;
    backend = (struct net){.refuse = 0};
    *out = &backend;
    return 0;
}

void net_close(struct net *n)
{
    (void)n;
}

void net_info(const struct net *n, struct net_info *out)
{
    (void)n;
    *out = (struct net_info){.mtu = 1500, .link = true, .kind = "none"};
}

bool net_send(struct net *n, const struct iovec *iov, unsigned iovs)
{
    assert_true(iovs == 2 && iov[0].iov_len == HEADER);
    n->tried++;
    if (!n->refuse) {
        n->taken++;
        return true;
    }
    n->refuse--;
    /* As when the loop's thread runs the timer, or sees EPOLLOUT, while this one is held up here. */
    if (n->writable_early) n->writable(n->ctx);
    n->writable_early = false;
    return false;
}

void net_send_end(struct net *n)
{
    (void)n;
}

void net_on_writable(struct net *n, void (*fn)(void *ctx), void *ctx)
{
    n->writable = fn;
    n->ctx = ctx;
}

void net_receive_ready(struct net *n)
{
    (void)n;
}

void net_forget(struct net *n)
{
    (void)n;
}

void net_set_guest_offloads(struct net *n, bool csum, bool tso4, bool tso6, bool ecn)
{
    (void)n, (void)csum, (void)tso4, (void)tso6, (void)ecn;
}

void net_count_into(struct net *n, struct device_stats *s)
{
    (void)n, (void)s;
}

struct fixture {
    struct rig *r;
    struct virtio_net *v;
    uint64_t buffer;
};

static struct fixture make(void)
{
    struct nerr e;
    struct fixture t = {.r = rig_new()};
    struct virtio_net_options o = {.name = "net0", .mac = {2, 0, 0, 0, 0, 1}, .pairs = 1};
    if (virtio_net_create(t.r->pci, -1, &o, NULL, &t.v, &e)) fail_msg("%s", e.text);
    rig_probe(t.r, true);
    assert_true(rig_negotiate(t.r, FEATURES));
    for (unsigned i = 0; i < 2; i++) rig_queue_setup(t.r, i, 16, FEATURES);
    rig_go(t.r);
    t.buffer = rig_alloc(t.r, 4096);
    return t;
}

static void end(struct fixture *t)
{
    virtio_net_destroy(t->v);
    rig_free(t->r);
}

static void offer(struct fixture *t)
{
    struct rig_buffer b = {t->buffer, HEADER + 100, false};
    memset(rig_ptr(t->r, t->buffer), 0, HEADER + 100);
    assert_true(rig_add(t->r, &t->r->q[1], &b, 1, 0) >= 0);
    rig_kick(t->r, &t->r->q[1]);
}

/* The word that there is room comes once. A device that learns only afterwards that it was to wait for it would wait for ever. */
static void test_room_before_the_wait(void **state)
{
    (void)state;
    struct fixture t = make();
    backend.refuse = 1;
    backend.writable_early = true;
    offer(&t);
    assert_int_equal(backend.taken, 1);
    assert_true(rig_used(t.r, &t.r->q[1], NULL) >= 0);
    end(&t);
}

static void test_room_later(void **state)
{
    (void)state;
    struct fixture t = make();
    backend.refuse = UINT32_MAX;
    offer(&t);
    offer(&t);
    assert_int_equal(backend.taken, 0);
    unsigned tried = backend.tried;
    backend.refuse = 0;
    backend.writable(backend.ctx);
    assert_int_equal(backend.taken, 2);
    assert_int_equal(backend.tried, tried + 2);
    assert_true(rig_used(t.r, &t.r->q[1], NULL) >= 0);
    assert_true(rig_used(t.r, &t.r->q[1], NULL) >= 0);
    backend.writable(backend.ctx); /* nobody waits any more */
    assert_int_equal(backend.tried, tried + 2);
    end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_room_before_the_wait), cmocka_unit_test(test_room_later)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
