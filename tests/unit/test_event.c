/* The event loop: order and time of timers, posts from other threads, watchers that vanish while their event is at hand. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/event.h"

static struct event_loop *new_loop(void)
{
    struct nerr e;
    struct event_loop *l = event_loop_create(&e);
    assert_non_null(l);
    return l;
}

static void run(struct event_loop *l)
{
    struct nerr e;
    assert_int_equal(event_loop_run(l, &e), 0);
}

struct mark {
    struct event_loop *loop;
    char *out;
    char c;
    uint64_t at;
};

static void mark(void *ctx)
{
    struct mark *m = ctx;
    size_t n = strlen(m->out);
    m->out[n] = m->c;
    m->at = clock_mono_ns();
    if (m->c == '.') event_loop_stop(m->loop);
}

static void test_timer_order(void **state)
{
    (void)state;
    struct event_loop *l = new_loop();
    char out[16] = "";
    struct mark m[4] = {{l, out, 'c', 0}, {l, out, 'a', 0}, {l, out, 'b', 0}, {l, out, '.', 0}};
    struct event_timer t[4];
    uint64_t now = clock_mono_ns();
    static const unsigned ms[4] = {30, 10, 20, 40};
    for (int i = 0; i < 4; i++) {
        event_timer_init(&t[i], l, mark, &m[i]);
        event_timer_arm(&t[i], now + ms[i] * 1000000ull, 0);
    }
    run(l);
    assert_string_equal(out, "abc.");
    for (int i = 0; i < 4; i++) {
        assert_true(m[i].at >= now + ms[i] * 1000000ull);
        event_timer_destroy(&t[i]);
    }
    event_loop_destroy(l);
}

static void test_timer_rearm_and_cancel(void **state)
{
    (void)state;
    struct event_loop *l = new_loop();
    char out[16] = "";
    struct mark m[3] = {{l, out, 'a', 0}, {l, out, 'b', 0}, {l, out, '.', 0}};
    struct event_timer t[3];
    for (int i = 0; i < 3; i++) event_timer_init(&t[i], l, mark, &m[i]);
    uint64_t now = clock_mono_ns();
    event_timer_arm(&t[0], now + 5000000, 0);
    event_timer_arm(&t[0], now + 60000000, 0); /* later: the stale timerfd must not run it early */
    event_timer_arm(&t[1], now + 10000000, 0);
    event_timer_cancel(&t[1]);
    event_timer_arm(&t[2], now + 90000000, 0);
    event_timer_arm(&t[2], now + 80000000, 0); /* earlier */
    run(l);
    assert_string_equal(out, "a.");
    assert_true(m[0].at >= now + 60000000);
    assert_true(m[2].at >= now + 80000000);
    for (int i = 0; i < 3; i++) event_timer_destroy(&t[i]);
    event_loop_destroy(l);
}

static void test_timer_many(void **state)
{
    (void)state;
    enum { N = 600 }; /* more than the heap's first room */
    struct event_loop *l = new_loop();
    static struct event_timer t[N];
    static struct mark m[N];
    static char out[N + 2];
    uint64_t now = clock_mono_ns();
    srand(7);
    for (int i = 0; i < N; i++) {
        m[i] = (struct mark){l, out, 'x', 0};
        event_timer_init(&t[i], l, mark, &m[i]);
        event_timer_arm(&t[i], now + (uint64_t)(rand() % 20000) * 1000, 0);
    }
    for (int i = 0; i < N; i += 3) event_timer_cancel(&t[i]);
    struct mark end = {l, out, '.', 0};
    struct event_timer te;
    event_timer_init(&te, l, mark, &end);
    event_timer_arm(&te, now + 40000000, 0);
    run(l);
    assert_int_equal(strlen(out), N - N / 3 + 1);
    assert_int_equal(out[N - N / 3], '.');
    for (int i = 0; i < N; i++) event_timer_destroy(&t[i]);
    event_timer_destroy(&te);
    event_loop_destroy(l);
}

struct tick {
    struct event_loop *loop;
    unsigned n, limit;
};

static void tick(void *ctx)
{
    struct tick *t = ctx;
    if (++t->n == t->limit) event_loop_stop(t->loop);
}

static void test_timer_periodic(void **state)
{
    (void)state;
    struct event_loop *l = new_loop();
    struct tick k = {l, 0, 20};
    struct event_timer t;
    event_timer_init(&t, l, tick, &k);
    uint64_t now = clock_mono_ns();
    event_timer_arm(&t, now + 1000000, 1000000);
    run(l);
    assert_true(clock_mono_ns() - now >= 20000000);
    event_timer_destroy(&t);
    event_loop_destroy(l);
}

static struct event_timer self_timer;
static void rearm_in_the_past(void *ctx)
{
    struct tick *t = ctx;
    t->n++;
    event_timer_arm(&self_timer, 1, 0);
}

static void do_stop(void *ctx)
{
    event_loop_stop(ctx);
}

/* A timer that is always due must not keep a post from running. */
static void test_timer_storm_leaves_room(void **state)
{
    (void)state;
    struct event_loop *l = new_loop();
    struct tick storm = {l, 0, 0}, end = {l, 0, 1};
    event_timer_init(&self_timer, l, rearm_in_the_past, &storm);
    event_timer_arm(&self_timer, 0, 0);
    assert_int_equal(event_loop_post(l, tick, &end), 0);
    run(l);
    assert_int_equal(end.n, 1);
    event_timer_destroy(&self_timer);
    event_loop_destroy(l);
}

struct poster {
    struct event_loop *loop;
    struct tick *tick;
    unsigned n;
};

static void *post_many(void *arg)
{
    struct poster *p = arg;
    for (unsigned i = 0; i < p->n; i++) assert_int_equal(event_loop_post(p->loop, tick, p->tick), 0);
    return NULL;
}

static void test_posts_from_threads(void **state)
{
    (void)state;
    struct event_loop *l = new_loop();
    struct tick k = {l, 0, 4000};
    struct poster p = {l, &k, 1000};
    pthread_t th[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&th[i], NULL, post_many, &p), 0);
    run(l);
    for (int i = 0; i < 4; i++) pthread_join(th[i], NULL);
    assert_int_equal(k.n, 4000);
    event_loop_destroy(l);
}

struct armer {
    struct event_timer t;
    struct event_loop *loop;
    atomic_uint fired;
};

static void armer_fire(void *ctx)
{
    struct armer *a = ctx;
    atomic_fetch_add(&a->fired, 1);
}

static void *arm_many(void *arg)
{
    struct armer *a = arg;
    for (unsigned i = 0; i < 2000; i++) {
        event_timer_arm(&a->t, clock_mono_ns() + i % 7 * 10000, 0);
        if (i % 5 == 0) event_timer_cancel(&a->t);
    }
    while (!atomic_load(&a->fired)) {
        event_timer_arm(&a->t, 1, 0);
        struct timespec ms = {0, 1000000};
        nanosleep(&ms, NULL);
    }
    event_timer_destroy(&a->t); /* waits for a callback that runs at this moment */
    unsigned after = atomic_load(&a->fired);
    struct timespec ms = {0, 2000000};
    nanosleep(&ms, NULL);
    assert_int_equal(atomic_load(&a->fired), after);
    return NULL;
}

static void *stop_after(void *arg)
{
    struct armer *a = arg;
    pthread_t th[3];
    for (int i = 0; i < 3; i++) pthread_create(&th[i], NULL, arm_many, &a[i]);
    for (int i = 0; i < 3; i++) pthread_join(th[i], NULL);
    event_loop_stop(a->loop);
    return NULL;
}

static void test_arm_from_threads(void **state)
{
    (void)state;
    struct event_loop *l = new_loop();
    static struct armer a[3];
    for (int i = 0; i < 3; i++) {
        a[i].loop = l;
        event_timer_init(&a[i].t, l, armer_fire, &a[i]);
    }
    pthread_t th;
    assert_int_equal(pthread_create(&th, NULL, stop_after, a), 0);
    run(l);
    pthread_join(th, NULL);
    event_loop_destroy(l);
}

struct pair {
    struct event_loop *loop;
    int mine, other;
    unsigned *calls;
};

static void remove_other(void *ctx, uint32_t events)
{
    struct pair *p = ctx;
    assert_true(events & EPOLLIN);
    ++*p->calls;
    event_fd_remove(p->loop, p->other);
    event_fd_modify(p->loop, p->mine, 0);
    event_loop_post(p->loop, do_stop, p->loop);
}

/* Two descriptors are ready in the same round; whichever comes first removes the other one. */
static void test_fd_removed_in_round(void **state)
{
    (void)state;
    struct event_loop *l = new_loop();
    struct nerr e;
    int a[2], b[2];
    assert_int_equal(pipe(a) | pipe(b), 0);
    unsigned calls = 0;
    struct pair pa = {l, a[0], b[0], &calls}, pb = {l, b[0], a[0], &calls};
    assert_int_equal(event_fd_add(l, a[0], EPOLLIN, remove_other, &pa, &e), 0);
    assert_int_equal(event_fd_add(l, b[0], EPOLLIN, remove_other, &pb, &e), 0);
    assert_true(event_fd_add(l, b[0], EPOLLIN, remove_other, &pb, &e) < 0);
    assert_int_equal(write(a[1], "x", 1) + write(b[1], "x", 1), 2);
    run(l);
    assert_int_equal(calls, 1);
    event_fd_remove(l, a[0]);
    event_fd_remove(l, b[0]);
    assert_true(event_fd_modify(l, a[0], EPOLLIN) < 0);
    for (int i = 0; i < 2; i++) {
        close(a[i]);
        close(b[i]);
    }
    event_loop_destroy(l);
}

static void test_stop_before_run(void **state)
{
    (void)state;
    struct event_loop *l = new_loop();
    event_loop_stop(l);
    run(l);
    struct tick k = {l, 0, 1};
    event_loop_post(l, tick, &k);
    run(l); /* the earlier stop is used up */
    assert_int_equal(k.n, 1);
    event_loop_post(l, tick, &k); /* never run: destroy frees it */
    event_loop_destroy(l);
}

/* The TSC's frequency agrees with the clock to 0.1 %, which is what the guest's clock is promised. */
static void test_tsc_hz(void **state)
{
    (void)state;
    double hz = (double)host_tsc_hz(), best = 1;
    for (int i = 0; i < 5 && best > 0.001; i++) {
        uint64_t n0 = clock_mono_ns(), t0 = host_tsc();
        struct timespec w = {0, 100000000};
        nanosleep(&w, NULL);
        uint64_t n1 = clock_mono_ns(), t1 = host_tsc();
        double seen = (double)(t1 - t0) * 1e9 / (double)(n1 - n0);
        double off = seen > hz ? seen / hz - 1 : hz / seen - 1;
        if (off < best) best = off;
    }
    assert_true(best <= 0.001);
    assert_true(clock_muldiv(UINT64_MAX, UINT64_MAX, 1) == UINT64_MAX);
    assert_true(clock_muldiv(6000000000ull, 6000000000ull, 9000000000ull) == 4000000000ull);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_timer_order),
        cmocka_unit_test(test_timer_rearm_and_cancel),
        cmocka_unit_test(test_timer_many),
        cmocka_unit_test(test_timer_periodic),
        cmocka_unit_test(test_timer_storm_leaves_room),
        cmocka_unit_test(test_posts_from_threads),
        cmocka_unit_test(test_arm_from_threads),
        cmocka_unit_test(test_fd_removed_in_round),
        cmocka_unit_test(test_stop_before_run),
        cmocka_unit_test(test_tsc_hz),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
