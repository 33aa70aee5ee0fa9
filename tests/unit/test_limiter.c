/* The token bucket in simulated time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "vmm/backend/limiter.h"

#define SECOND 1000000000ull
#define START (12345 * SECOND)

/* Takes requests of `size` as fast as the limit allows, with timers late by up to `lateness`, and gives the units that passed. */
static uint64_t run(struct limiter *l, uint64_t from, uint64_t ns, uint64_t size, uint64_t lateness)
{
    uint64_t now = from, units = 0, turn = 0;
    while (now < from + ns) {
        uint64_t wait = limiter_wait(l, now);
        if (wait) {
            now += wait + (lateness ? (turn++ * 7919003) % lateness : 0);
            continue;
        }
        limiter_charge(l, size, now);
        units += size;
        now += 50; /* a request takes some time */
    }
    return units;
}

static void assert_within(uint64_t got, uint64_t want, double percent)
{
    double off = ((double)got - (double)want) / (double)want * 100;
    if (off > percent || off < -percent)
        fail_msg("%llu is %.2f %% off %llu", (unsigned long long)got, off, (unsigned long long)want);
}

static void test_accuracy(void **state)
{
    (void)state;
    const struct {
        uint64_t rate, size, lateness;
    } c[] = {
        {10 << 20, 4096, 0},
        {10 << 20, 4096, 3000000},
        {10 << 20, 1 << 20, 0},
        {10 << 20, 1 << 20, 5000000},
        {1000, 1, 0},
        {1000, 1, 5000000},
        {100, 1, 20000000},
        {200, 1, 150000000}, /* as on a busy host: later than the bucket is deep */
        {4 << 20, 16384, 180000000},
        {50000, 1, 1000000},
        {3ull << 28, 64, 0},
        {3ull << 30, 4096, 1000000},
        {40ull << 30, 1 << 20, 1000000},
        {100000000, 1514 * 8, 100000},
        {10000000000, 65536 * 8, 100000},
    };
    for (unsigned i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
        struct limiter l = {.active = false};
        limiter_set(&l, &(struct limiter_rate){.avg = c[i].rate}, START);
        uint64_t units = run(&l, START, 10 * SECOND, c[i].size, c[i].lateness);
        double percent = 1.0 +
                         100.0 * (double)c[i].size / ((double)c[i].rate * 10) + /* one request in debt at the end */
                         100.0 * (double)c[i].lateness / (10 * SECOND); /* and one timer that did not come any more */
        assert_within(units, c[i].rate * 10, percent);
    }
}

/* The same bytes pass whatever the size of the requests. */
static void test_size_does_not_evade(void **state)
{
    (void)state;
    uint64_t rate = 5 << 20, first = 0;
    for (uint64_t size = 512; size <= 8 << 20; size *= 4) {
        struct limiter l = {.active = false};
        limiter_set(&l, &(struct limiter_rate){.avg = rate}, START);
        uint64_t units = run(&l, START, 100 * SECOND, size, 0);
        if (!first) first = units;
        assert_within(units, first, 2.0);
    }
}

static void test_burst_and_peak(void **state)
{
    (void)state;
    struct limiter l = {.active = false};
    const uint64_t avg = 1000000, peak = 4000000, burst = 2000000;
    limiter_set(&l, &(struct limiter_rate){avg, peak, burst}, START);
    /* It begins without credit. */
    assert_within(run(&l, START, 10 * SECOND, 100, 0), avg * 10, 1.0);
    /* An hour unused accrues the burst and no more; it is spent at the peak: at 4/s against 1/s coming in, in 2/3 s. */
    uint64_t later = START + 3600 * SECOND;
    uint64_t fast = run(&l, later, SECOND / 2, 100, 0);
    assert_within(fast, peak / 2, 3.0);
    uint64_t rest = run(&l, later + SECOND / 2, 19 * SECOND / 2, 100, 0);
    assert_within(fast + rest, burst + avg * 10, 1.0);
    /* Without a peak the burst goes at once. */
    limiter_set(&l, &(struct limiter_rate){avg, 0, burst}, START);
    limiter_set(&l, &(struct limiter_rate){.avg = 0}, START);
    limiter_set(&l, &(struct limiter_rate){avg, 0, burst}, START);
    assert_true(run(&l, START + 100 * SECOND, SECOND / 100, 100, 0) >= burst);
}

/* What a late timer left is for who waited: it is gone when nobody comes for it, or when the timer was later than any is. */
static void test_late(void **state)
{
    (void)state;
    const uint64_t rate = 1000000, depth = rate / 20;
    struct limiter l = {.active = false};
    limiter_set(&l, &(struct limiter_rate){.avg = rate}, START);
    limiter_charge(&l, 1000, START);
    uint64_t due = START + limiter_wait(&l, START);
    assert_int_equal(limiter_wait(&l, due + SECOND / 10), 0);
    assert_within(run(&l, due + SECOND / 10, 100000, 1000, 0), rate / 10, 2.0);
    /* Nobody takes it for a while. */
    limiter_charge(&l, 1000, due + SECOND);
    due += SECOND + limiter_wait(&l, due + SECOND);
    assert_int_equal(limiter_wait(&l, due + SECOND / 10), 0);
    assert_within(run(&l, due + SECOND, 100000, 1000, 0), depth, 3.0);
    /* A minute late. */
    while (!limiter_wait(&l, due + 2 * SECOND)) limiter_charge(&l, 1000, due + 2 * SECOND);
    assert_within(run(&l, due + 60 * SECOND, 100000, 1000, 0), depth, 3.0);
}

/* Peak equal to the average: no bursts at all. */
static void test_peak_is_average(void **state)
{
    (void)state;
    struct limiter l = {.active = false};
    limiter_set(&l, &(struct limiter_rate){1000000, 1000000, 5000000}, START);
    assert_within(run(&l, START + 100 * SECOND, SECOND, 100, 0), 1000000, 1.5);
}

static void test_change(void **state)
{
    (void)state;
    struct limiter l = {.active = false};
    assert_int_equal(limiter_wait(&l, START), 0);
    limiter_set(&l, &(struct limiter_rate){.avg = 1000}, START);
    limiter_charge(&l, 1000, START); /* a second's worth of debt */
    uint64_t wait = limiter_wait(&l, START);
    assert_in_range(wait, SECOND - 1000, SECOND + 1000);
    /* Setting it again forgives nothing. */
    limiter_set(&l, &(struct limiter_rate){.avg = 1000}, START);
    assert_int_equal(limiter_wait(&l, START), wait);
    /* The debt is the same time under another limit: no wait of hours. */
    limiter_set(&l, &(struct limiter_rate){.avg = 10}, START);
    assert_in_range(limiter_wait(&l, START), SECOND - 1000, SECOND + 1000);
    limiter_set(&l, &(struct limiter_rate){.avg = 0}, START);
    assert_int_equal(limiter_wait(&l, START), 0);
    assert_false(l.active);
    /* Setting it all the time gives no more than setting it once. */
    uint64_t now = START, units = 0;
    while (now < START + 10 * SECOND) {
        limiter_set(&l, &(struct limiter_rate){.avg = 1000}, now);
        if (!limiter_wait(&l, now)) {
            limiter_charge(&l, 1, now);
            units++;
        }
        now += SECOND / 5000;
    }
    assert_within(units, 10000, 1.0);
}

static void test_extremes(void **state)
{
    (void)state;
    struct limiter l = {.active = false};
    limiter_set(&l, &(struct limiter_rate){UINT64_MAX, UINT64_MAX, UINT64_MAX}, START);
    for (unsigned i = 0; i < 100; i++) limiter_charge(&l, UINT64_MAX, START);
    assert_true(limiter_wait(&l, START) > 0);
    (void)limiter_wait(&l, UINT64_MAX);
    limiter_set(&l, &(struct limiter_rate){1, 1, 1}, 0);
    limiter_charge(&l, 3, 0);
    assert_true(limiter_wait(&l, 0) > 0);
    /* A clock that goes backwards gives nothing and takes nothing. */
    memset(&l, 0, sizeof(l));
    limiter_set(&l, &(struct limiter_rate){.avg = 1000}, START);
    limiter_charge(&l, 500, START);
    uint64_t wait = limiter_wait(&l, START);
    assert_int_equal(limiter_wait(&l, START - SECOND), wait);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accuracy),        cmocka_unit_test(test_size_does_not_evade),
        cmocka_unit_test(test_burst_and_peak),  cmocka_unit_test(test_late),
        cmocka_unit_test(test_peak_is_average), cmocka_unit_test(test_change),
        cmocka_unit_test(test_extremes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
