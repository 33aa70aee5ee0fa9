/* A loop on a thread of its own, a bus, and a record of interrupt lines; for tests of single devices. */
#ifndef NACELLE_TESTS_DEVICE_FIXTURE_H
#define NACELLE_TESTS_DEVICE_FIXTURE_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/event.h"
#include "vmm/platform/platform.h"

struct bench {
    struct event_loop *loop;
    struct bus bus;
    atomic_bool level[64];
    atomic_uint edges[64]; /* 0 -> 1 */
    pthread_t thread;
};

static void bench_line(void *ctx, unsigned gsi, bool level)
{
    struct bench *b = ctx;
    if (gsi >= 64) return;
    if (!atomic_exchange(&b->level[gsi], level) && level) atomic_fetch_add(&b->edges[gsi], 1);
}

static inline struct irq_line bench_irq(struct bench *b, unsigned gsi)
{
    return (struct irq_line){bench_line, b, gsi};
}

static void *bench_loop(void *arg)
{
    struct nerr e;
    struct bench *b = arg;
    return event_loop_run(b->loop, &e) ? arg : NULL;
}

static inline struct bench *bench_new(void)
{
    struct nerr e;
    struct bench *b = calloc(1, sizeof *b);
    assert_non_null(b);
    b->loop = event_loop_create(&e);
    assert_non_null(b->loop);
    assert_int_equal(pthread_create(&b->thread, NULL, bench_loop, b), 0);
    return b;
}

/* Before the devices are destroyed, so that no callback runs any more. */
static inline void bench_stop(struct bench *b)
{
    void *failed;
    event_loop_stop(b->loop);
    pthread_join(b->thread, &failed);
    assert_null(failed);
}

static inline void bench_free(struct bench *b)
{
    event_loop_destroy(b->loop);
    free(b);
}

static inline void out(struct bench *b, uint16_t port, uint32_t v)
{
    bus_write(&b->bus, BUS_PIO, port, 1, v);
}
static inline uint8_t in(struct bench *b, uint16_t port)
{
    return (uint8_t)bus_read(&b->bus, BUS_PIO, port, 1);
}
static inline void sleep_us(unsigned us)
{
    struct timespec t = {us / 1000000, (long)(us % 1000000) * 1000};
    nanosleep(&t, NULL);
}
/* Up to two seconds for `*n` to reach `want`. */
static inline bool wait_count(atomic_uint *n, unsigned want)
{
    for (int i = 0; i < 4000 && atomic_load(n) < want; i++) sleep_us(500);
    return atomic_load(n) >= want;
}

/* Random accesses of every width to ports [first, last]. */
static inline void fuzz_ports(struct bench *b, uint16_t first, uint16_t last, unsigned seed, int n)
{
    srand(seed);
    for (int i = 0; i < n; i++) {
        uint16_t port = (uint16_t)(first + (unsigned)rand() % (unsigned)(last - first + 1));
        unsigned size = 1u << (rand() % 8 ? 0 : rand() % 3);
        uint64_t v = (uint64_t)rand() ^ (uint64_t)rand() << 16;
        if (rand() & 1)
            bus_write(&b->bus, BUS_PIO, port, size, v);
        else
            assert_true(size == 4 || bus_read(&b->bus, BUS_PIO, port, size) >> (8 * size) == 0);
    }
}

#endif
