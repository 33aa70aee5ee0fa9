/* The MC146818: the host's time in every format, setting it, alarms, periodic and update interrupts. */
#include "device_fixture.h"

#define GSI 8

static struct rtc *rtc_new(struct bench *b)
{
    struct nerr e;
    struct rtc *r;
    assert_int_equal(rtc_create(b->loop, bench_irq(b, GSI), 64ull << 20, &r, &e), 0);
    assert_int_equal(rtc_attach(r, &b->bus, &e), 0);
    return r;
}

static void rtc_end(struct bench *b, struct rtc *r)
{
    bench_stop(b);
    rtc_destroy(r);
    bench_free(b);
}

static uint8_t rd(struct bench *b, uint8_t reg)
{
    out(b, 0x70, reg | 0x80u); /* the NMI bit does not matter */
    return in(b, 0x71);
}

static void wr(struct bench *b, uint8_t reg, uint8_t v)
{
    out(b, 0x70, reg);
    out(b, 0x71, v);
}

static int bcd(uint8_t v)
{
    return (v >> 4) * 10 + (v & 0xf);
}

/* The way kernels read it: wait for the end of an update, read, and check that the seconds stayed. */
static time_t read_bcd_time(struct bench *b)
{
    for (;;) {
        while (rd(b, 10) & 0x80) sleep_us(100);
        struct tm t = {0};
        t.tm_sec = bcd(rd(b, 0));
        t.tm_min = bcd(rd(b, 2));
        t.tm_hour = bcd(rd(b, 4));
        t.tm_mday = bcd(rd(b, 7));
        t.tm_mon = bcd(rd(b, 8)) - 1;
        t.tm_year = bcd(rd(b, 9)) + (bcd(rd(b, 0x32)) - 19) * 100;
        if (bcd(rd(b, 0)) == t.tm_sec) return timegm(&t);
    }
}

static void test_time(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    struct rtc *r = rtc_new(b);
    assert_int_equal(rd(b, 13), 0x80);
    assert_int_equal(rd(b, 11) & 6, 2); /* BCD, 24 hours */
    time_t before = time(NULL), t = read_bcd_time(b), after = time(NULL);
    assert_true(t >= before - 1 && t <= after + 1);
    struct tm tm;
    gmtime_r(&t, &tm);
    assert_int_equal(rd(b, 6), tm.tm_wday + 1);
    rtc_end(b, r);
}

static void set(struct bench *b, const uint8_t v[6])
{
    static const uint8_t reg[6] = {0, 2, 4, 7, 8, 9};
    uint8_t mode = rd(b, 11);
    wr(b, 11, mode | 0x80);
    for (int i = 0; i < 6; i++) wr(b, reg[i], v[i]);
    for (int i = 0; i < 6; i++) assert_int_equal(rd(b, reg[i]), v[i]); /* it stands while SET is on */
    wr(b, 11, mode & 0x7f);
}

static void test_set_and_formats(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    struct rtc *r = rtc_new(b);
    wr(b, 0x32, 0x20);
    set(b, (const uint8_t[6]){0x10, 0x59, 0x23, 0x28, 0x02, 0x24}); /* 2024-02-28 23:59:10 */
    time_t t = read_bcd_time(b);
    assert_true(t >= 1709164750 && t < 1709164760);
    wr(b, 11, 0x00);                  /* 12 hours */
    assert_int_equal(rd(b, 4), 0x91); /* 11 pm */
    wr(b, 11, 0x06);                  /* binary, 24 hours */
    assert_int_equal(rd(b, 4), 23);
    assert_int_equal(rd(b, 2), 59);
    set(b, (const uint8_t[6]){59, 59, 23, 28, 2, 24});
    for (int i = 0; i < 3000 && rd(b, 7) == 28; i++) sleep_us(1000);
    assert_int_equal(rd(b, 7), 29); /* a leap year */
    assert_int_equal(rd(b, 4), 0);
    wr(b, 11, 0x04);
    assert_int_equal(rd(b, 4), 12); /* midnight is 12 am */
    wr(b, 4, 0x80 | 1);             /* without SET: at once */
    assert_int_equal(rd(b, 4), 0x81);
    wr(b, 11, 0x02);
    assert_int_equal(rd(b, 4), 0x13);
    rtc_end(b, r);
}

static void test_update_interrupt(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    struct rtc *r = rtc_new(b);
    (void)rd(b, 12);
    wr(b, 11, 0x12);
    assert_true(wait_count(&b->edges[GSI], 1));
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    assert_true(now.tv_nsec < 900000000); /* on the second, not before it */
    assert_true(b->level[GSI]);
    uint8_t c = rd(b, 12);
    assert_int_equal(c & 0x90, 0x90);
    assert_false(b->level[GSI]); /* reading C takes it away */
    assert_int_equal(rd(b, 12) & 0x80, 0);
    assert_true(wait_count(&b->edges[GSI], 2));
    rtc_end(b, r);
}

static void test_alarm(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    struct rtc *r = rtc_new(b);
    set(b, (const uint8_t[6]){0x58, 0x59, 0x11, 0x01, 0x01, 0x25});
    wr(b, 5, 0x12); /* alarm at 12:00:00 */
    wr(b, 3, 0x00);
    wr(b, 1, 0x00);
    (void)rd(b, 12);
    wr(b, 11, 0x22);
    assert_false(b->level[GSI]);
    for (int i = 0; i < 6000 && !b->level[GSI]; i++) sleep_us(1000);
    assert_true(b->level[GSI]);
    assert_int_equal(rd(b, 12) & 0xa0, 0xa0);
    assert_int_equal(rd(b, 4), 0x12);
    wr(b, 11, 0x02);
    /* "any" in all fields: every second, also when nobody asked for an interrupt */
    wr(b, 1, 0xff);
    wr(b, 3, 0xc0);
    wr(b, 5, 0xff);
    (void)rd(b, 12);
    sleep_us(1100000);
    assert_int_equal(rd(b, 12) & 0xb0, 0x30);
    /* an hour that never comes */
    wr(b, 5, 0x77);
    (void)rd(b, 12);
    sleep_us(1100000);
    assert_int_equal(rd(b, 12) & 0x20, 0);
    rtc_end(b, r);
}

static void test_periodic(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    struct rtc *r = rtc_new(b);
    wr(b, 10, 0x2a); /* 64 Hz */
    (void)rd(b, 12);
    wr(b, 11, 0x42);
    uint64_t t0 = clock_mono_ns();
    unsigned n = 0;
    for (int i = 0; i < 4000 && n < 20; i++) {
        if (rd(b, 12) & 0x40) n++;
        sleep_us(1000);
    }
    assert_int_equal(n, 20);
    assert_true(clock_mono_ns() - t0 >= 19 * 15625000ull - 15625000ull);
    assert_true(b->edges[GSI] >= 15);
    wr(b, 10, 0x20); /* rate 0: off */
    (void)rd(b, 12);
    sleep_us(50000);
    assert_int_equal(rd(b, 12) & 0x40, 0);
    wr(b, 10, 0x21); /* 256 Hz */
    sleep_us(50000);
    assert_int_equal(rd(b, 12) & 0x40, 0x40);
    /* nobody acknowledges: one interrupt, no storm */
    wr(b, 10, 0x23);
    sleep_us(5000);
    unsigned edges = b->edges[GSI];
    sleep_us(50000);
    assert_true(b->edges[GSI] <= edges + 1);
    rtc_reset(r);
    assert_false(b->level[GSI]);
    assert_int_equal(rd(b, 11) & 0x70, 0);
    rtc_end(b, r);
}

static void test_cmos(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    struct rtc *r = rtc_new(b);
    assert_int_equal(rd(b, 0x15) | rd(b, 0x16) << 8, 640);
    assert_int_equal(rd(b, 0x34) | rd(b, 0x35) << 8, (64 - 16) * 16);
    assert_int_equal(rd(b, 0x17) | rd(b, 0x18) << 8, 63 * 1024);
    wr(b, 0x0f, 0x0a);
    assert_int_equal(rd(b, 0x0f), 0x0a);
    wr(b, 13, 0);
    assert_int_equal(rd(b, 13), 0x80);
    wr(b, 12, 0xff);
    assert_int_equal(rd(b, 12) & 0x8f, 0);
    rtc_end(b, r);
}

static void test_fuzz(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    struct rtc *r = rtc_new(b);
    srand(5);
    for (int i = 0; i < 100000; i++) {
        uint8_t reg = (uint8_t)(rand() & 1 ? rand() % 14 : rand());
        if (rand() & 1)
            wr(b, reg, (uint8_t)rand());
        else
            (void)rd(b, reg);
        if (i % 1000 == 0) sleep_us(500);
    }
    fuzz_ports(b, 0x6f, 0x72, 5, 20000);
    wr(b, 11, 0x82);
    wr(b, 10, 0x26);
    wr(b, 0x32, 0x20);
    set(b, (const uint8_t[6]){0x01, 0x02, 0x03, 0x04, 0x05, 0x06});
    time_t t = read_bcd_time(b);
    assert_true(t >= 1146711721 && t < 1146711740); /* 2006-05-04 03:02:01 */
    rtc_end(b, r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_time),  cmocka_unit_test(test_set_and_formats), cmocka_unit_test(test_update_interrupt),
        cmocka_unit_test(test_alarm), cmocka_unit_test(test_periodic),        cmocka_unit_test(test_cmos),
        cmocka_unit_test(test_fuzz),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
