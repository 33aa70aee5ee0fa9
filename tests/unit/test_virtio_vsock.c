/* virtio-vsock at its limits, seen by a driver in miniature: as many connections as there may be, a process without descriptors, a guest that
 * causes resets and takes none. (Conversations are for tests/guest/virtio.sh, lies for the fuzzer.) */
#include "tests/unit/virtio_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_vsock.h>
#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/event.h"
#include "vmm/backend/unix.h"
#include "vmm/virtio/devices.h"

#define FEATURES VIRTIO_BIT(VIRTIO_F_VERSION_1)
#define PATH "vsock-test-socket"
#define CID 5u
#define RING 64u
#define MOST 256u  /* connections */
#define RESETS 64u /* that wait for the guest */
#define PATIENCE_MS 60000

static struct {
    struct rig *r;
    struct event_loop *loop;
    pthread_t thread;
    struct virtio_vsock *d;
    uint64_t in, out; /* buffers of the receive queue, of the transmit queue */
    unsigned given;   /* receive buffers */
} t;

static void *loop_main(void *arg)
{
    struct nerr e;
    event_loop_run(arg, &e);
    return NULL;
}

static int setup(void **state)
{
    (void)state;
    struct nerr e;
    memset(&t, 0, sizeof(t));
    t.r = rig_new();
    t.loop = event_loop_create(&e);
    unlink(PATH);
    struct virtio_vsock_options o = {.name = "vsock0", .loop = t.loop, .cid = CID, .path = PATH};
    if (virtio_vsock_create(t.r->pci, -1, &o, &t.d, &e)) fail_msg("%s", e.text);
    pthread_create(&t.thread, NULL, loop_main, t.loop);
    rig_probe(t.r, true);
    assert_true(rig_negotiate(t.r, FEATURES));
    for (unsigned i = 0; i < 3; i++) rig_queue_setup(t.r, i, i < 2 ? RING : 4, FEATURES);
    rig_go(t.r);
    t.in = rig_alloc(t.r, RING * 256ull);
    t.out = rig_alloc(t.r, RING * sizeof(struct virtio_vsock_hdr));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    event_loop_stop(t.loop);
    pthread_join(t.thread, NULL);
    virtio_vsock_destroy(t.d);
    event_loop_destroy(t.loop);
    rig_free(t.r);
    return 0;
}

/* ---- the guest ---- */

static void give(unsigned n)
{
    for (; n--; t.given++) {
        struct rig_buffer b = {t.in + t.given % RING * 256ull, 256, true};
        assert_true(rig_add(t.r, &t.r->q[0], &b, 1, 0) >= 0);
    }
    rig_kick(t.r, &t.r->q[0]);
}

static unsigned taken;

static struct virtio_vsock_hdr next_packet(void)
{
    struct virtio_vsock_hdr h;
    uint32_t len;
    rig_wait_used(t.r, &t.r->q[0], &len);
    assert_true(len >= sizeof(h));
    memcpy(&h, rig_ptr(t.r, t.in + taken++ % RING * 256ull), sizeof(h));
    assert_true(h.dst_cid == CID && h.src_cid == 2);
    return h;
}

/* False: the ring is full. */
static bool say(unsigned i, uint16_t op, uint32_t guest_port, uint32_t host_port)
{
    struct virtio_vsock_hdr h = {.src_cid = CID,
                                 .dst_cid = 2,
                                 .src_port = guest_port,
                                 .dst_port = host_port,
                                 .type = VIRTIO_VSOCK_TYPE_STREAM,
                                 .op = op,
                                 .buf_alloc = 65536};
    if (!t.r->q[1].free_count) return false;
    struct rig_buffer b = {t.out + i % RING * sizeof(h), sizeof(h), false};
    memcpy(rig_ptr(t.r, b.addr), &h, sizeof(h));
    return rig_add(t.r, &t.r->q[1], &b, 1, 0) >= 0;
}

/* ---- programs of the host ---- */

static int program(void)
{
    int fd;
    uint64_t until = clock_mono_ns() + PATIENCE_MS * 1000000ull;
    /* (Few may wait to be accepted.) */
    while ((fd = unix_connect(PATH)) == -EAGAIN && clock_mono_ns() < until) usleep(1000);
    if (fd < 0) fail_msg("%s", strerror(-fd));
    fcntl(fd, F_SETFL, 0);
    return fd;
}

static void ask_for(int fd, unsigned port)
{
    char text[32];
    int n = snprintf(text, sizeof(text), "CONNECT %u\n", port);
    assert_int_equal(send(fd, text, (size_t)n, MSG_NOSIGNAL), n);
}

static bool ends(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char byte;
    if (poll(&p, 1, PATIENCE_MS) != 1) fail_msg("nothing happens");
    return recv(fd, &byte, 1, 0) <= 0;
}

/* ---- tests ---- */

static void test_as_many_as_there_may_be(void **state)
{
    (void)state;
    int fd[MOST];
    taken = 0;
    give(8);
    for (unsigned i = 0; i < MOST; i++) fd[i] = program();
    /* One more is let go at once; those that are there are not disturbed. */
    int more = program();
    assert_true(ends(more));
    close(more);
    ask_for(fd[MOST - 1], 1000);
    struct virtio_vsock_hdr h = next_packet();
    assert_true(h.op == VIRTIO_VSOCK_OP_REQUEST && h.dst_port == 1000);
    /* The guest gets no more, either. */
    assert_true(say(0, VIRTIO_VSOCK_OP_REQUEST, 7, 8));
    rig_kick(t.r, &t.r->q[1]);
    h = next_packet();
    assert_true(h.op == VIRTIO_VSOCK_OP_RST && h.dst_port == 7);
    /* One that goes makes room for another. */
    close(fd[0]);
    for (uint64_t until = clock_mono_ns() + PATIENCE_MS * 1000000ull;;) {
        struct pollfd p = {.fd = program(), .events = POLLIN};
        fd[0] = p.fd;
        if (poll(&p, 1, 50) == 0) break; /* it stays */
        close(fd[0]);
        assert_true(clock_mono_ns() < until);
    }
    ask_for(fd[0], 1001);
    h = next_packet();
    assert_true(h.op == VIRTIO_VSOCK_OP_REQUEST && h.dst_port == 1001);
    for (unsigned i = 0; i < MOST; i++) close(fd[i]);
}

static struct rlimit take_descriptors(void)
{
    struct rlimit before, now;
    int next = dup(0);
    assert_true(next >= 0);
    close(next);
    getrlimit(RLIMIT_NOFILE, &before);
    now = before;
    now.rlim_cur = (rlim_t)next;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &now), 0);
    assert_int_equal(dup(0), -1);
    assert_int_equal(errno, EMFILE);
    return before;
}

static uint64_t cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Whoever comes meanwhile waits, and is served later; the loop does not spin. */
static void test_no_descriptors(void **state)
{
    (void)state;
    taken = 0;
    give(8);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct rlimit before = take_descriptors();
    close(fd); /* room for the program's end, and none for ours */
    fd = program();
    uint64_t cpu = cpu_ns();
    usleep(500000);
    cpu = cpu_ns() - cpu;
    /* A guest that wants to connect is told no. */
    assert_true(say(0, VIRTIO_VSOCK_OP_REQUEST, 7, 8));
    rig_kick(t.r, &t.r->q[1]);
    struct virtio_vsock_hdr h = next_packet();
    setrlimit(RLIMIT_NOFILE, &before);
    assert_true(h.op == VIRTIO_VSOCK_OP_RST && h.dst_port == 7);
    assert_true(cpu < 100000000);
    ask_for(fd, 1000);
    h = next_packet();
    assert_true(h.op == VIRTIO_VSOCK_OP_REQUEST && h.dst_port == 1000);
    close(fd);
}

/* Packets for connections that there are none of: their resets wait for buffers of the guest, up to 64, and then the guest waits. */
static void test_resets(void **state)
{
    (void)state;
    unsigned said = 0, used = 0, answered = 0;
    taken = 0;
    /* Without a buffer for answers. */
    for (;;) {
        while (said < 300 && say(said, VIRTIO_VSOCK_OP_RW, 1000 + said, 9)) said++;
        rig_kick(t.r, &t.r->q[1]);
        unsigned before = used;
        while (rig_used(t.r, &t.r->q[1], NULL) >= 0) used++;
        if (used == before) break;
    }
    assert_int_equal(used, RESETS);
    assert_int_equal(said, RESETS + RING);
    /* With buffers all of them are answered, each once, in whatever order. */
    bool seen[300] = {false};
    while (answered < 300) {
        give(answered + RING <= 300 ? RING : 300 - answered);
        for (unsigned i = 0; i < RING && answered < 300; i++, answered++) {
            struct virtio_vsock_hdr h = next_packet();
            assert_true(h.op == VIRTIO_VSOCK_OP_RST && h.src_port == 9);
            assert_in_range(h.dst_port, 1000, 1299);
            assert_false(seen[h.dst_port - 1000]);
            seen[h.dst_port - 1000] = true;
            while (rig_used(t.r, &t.r->q[1], NULL) >= 0) used++;
            while (said < 300 && say(said, VIRTIO_VSOCK_OP_RW, 1000 + said, 9)) said++;
            rig_kick(t.r, &t.r->q[1]);
        }
    }
    while (used < 300) {
        rig_wait_used(t.r, &t.r->q[1], NULL);
        used++;
    }
    /* A reset is not answered by one. */
    give(1);
    assert_true(say(0, VIRTIO_VSOCK_OP_RST, 1, 2) && say(1, VIRTIO_VSOCK_OP_RW, 3, 4));
    rig_kick(t.r, &t.r->q[1]);
    assert_int_equal(next_packet().dst_port, 3);
}

/* A driver that breaks the rules again and again does not fill the host's log. */
static void test_complaints(void **state)
{
    (void)state;
    FILE *log = tmpfile();
    int old = dup(2), lines = 0;
    assert_non_null(log);
    fflush(stderr);
    dup2(fileno(log), 2);
    for (unsigned i = 0; i < 20; i++) {
        bool good = rig_negotiate(t.r, FEATURES);
        for (unsigned n = 0; n < 2 && good; n++) rig_queue_setup(t.r, n, 16, FEATURES);
        rig_go(t.r);
        rig_store(t.r, t.r->q[1].driver + 2, 1000); /* so many can't be in a ring of 16 */
        rig_kick(t.r, &t.r->q[1]);
        for (unsigned k = 0; k < 10000 && !(rig_status(t.r) & VIRTIO_CONFIG_S_NEEDS_RESET); k++) usleep(500);
        good = good && rig_status(t.r) & VIRTIO_CONFIG_S_NEEDS_RESET;
        if (!good) break;
    }
    fflush(stderr);
    dup2(old, 2);
    close(old);
    assert_true(rig_status(t.r) & VIRTIO_CONFIG_S_NEEDS_RESET);
    rewind(log);
    for (int c; (c = fgetc(log)) != EOF;) lines += c == '\n';
    fclose(log);
    assert_int_equal(lines, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_as_many_as_there_may_be, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_descriptors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_resets, setup, teardown),
        cmocka_unit_test_setup_teardown(test_complaints, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
