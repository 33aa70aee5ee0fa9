/* The virtio console, seen by a driver in miniature; behind it a socket. */
#include "tests/unit/virtio_rig.h"

#include <pthread.h>
#include <unistd.h>

#include "common/event.h"
#include "vmm/backend/unix.h"
#include "vmm/virtio/devices.h"

#define FEATURES VIRTIO_BIT(VIRTIO_F_VERSION_1)
#define SOCKET "console-test-socket"

struct fixture {
    struct rig *r;
    struct event_loop *loop;
    pthread_t thread;
    struct virtio_console *d;
    uint64_t buffers;
    int peer;
};

static void *loop_main(void *arg)
{
    struct nerr e;
    event_loop_run(arg, &e);
    return NULL;
}

static void start(struct fixture *t)
{
    assert_true(rig_negotiate(t->r, FEATURES));
    for (unsigned i = 0; i < 2; i++) rig_queue_setup(t->r, i, 16, FEATURES);
    rig_go(t->r);
}

static struct fixture make(void)
{
    struct nerr e;
    struct fixture t = {.r = rig_new(), .loop = event_loop_create(&e)};
    unlink(SOCKET);
    struct virtio_console_options o = {.name = "console0", .loop = t.loop, .kind = CHAR_SOCKET, .path = SOCKET};
    if (virtio_console_create(t.r->pci, -1, &o, &t.d, &e)) fail_msg("%s", e.text);
    pthread_create(&t.thread, NULL, loop_main, t.loop);
    rig_probe(t.r, true);
    start(&t);
    t.buffers = rig_alloc(t.r, 65536);
    t.peer = unix_connect(SOCKET);
    assert_true(t.peer >= 0);
    return t;
}

static void end(struct fixture *t)
{
    event_loop_stop(t->loop);
    pthread_join(t->thread, NULL);
    virtio_console_destroy(t->d);
    event_loop_destroy(t->loop);
    rig_free(t->r);
    close(t->peer);
}

static void give(struct fixture *t, unsigned i, uint32_t len, bool writable)
{
    struct rig_buffer b = {t->buffers + i * 4096ull, len, writable};
    assert_true(rig_add(t->r, &t->r->q[0], &b, 1, 0) >= 0);
}

static void test_input(void **state)
{
    (void)state;
    struct fixture t = make();
    uint32_t len;
    give(&t, 0, 4, true);
    give(&t, 1, 100, true);
    rig_kick(t.r, &t.r->q[0]);
    assert_int_equal(write(t.peer, "0123456789", 10), 10);
    rig_wait_used(t.r, &t.r->q[0], &len);
    assert_int_equal(len, 4);
    rig_wait_used(t.r, &t.r->q[0], &len);
    assert_int_equal(len, 6);
    assert_memory_equal(rig_ptr(t.r, t.buffers + 4096), "456789", 6);
    end(&t);
}

/* Buffers that take nothing could be added for ever, while the loop's thread looks for one that does. */
static void test_no_room(void **state)
{
    (void)state;
    struct fixture t = make();
    give(&t, 0, 100, false);
    give(&t, 1, 100, true);
    rig_kick(t.r, &t.r->q[0]);
    assert_int_equal(write(t.peer, "abc", 3), 3);
    for (int i = 0; i < 10000 && !(rig_status(t.r) & VIRTIO_CONFIG_S_NEEDS_RESET); i++) usleep(500);
    assert_true(rig_status(t.r) & VIRTIO_CONFIG_S_NEEDS_RESET);
    start(&t);
    give(&t, 0, 100, true); /* what came waits for a driver that takes it */
    rig_kick(t.r, &t.r->q[0]);
    uint32_t len;
    rig_wait_used(t.r, &t.r->q[0], &len);
    assert_int_equal(len, 3);
    assert_memory_equal(rig_ptr(t.r, t.buffers), "abc", 3);
    end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_input), cmocka_unit_test(test_no_room)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
