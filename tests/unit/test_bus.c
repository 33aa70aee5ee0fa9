/* The bus: overlap refusal, look-up, splitting of wide port accesses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "vmm/bus/bus.h"

struct dev {
    uint64_t off, value;
    unsigned size, writes;
    uint64_t answer;
};

static uint64_t dev_read(void *ctx, uint64_t off, unsigned size)
{
    struct dev *d = ctx;
    d->off = off;
    d->size = size;
    return d->answer + off;
}

static void dev_write(void *ctx, uint64_t off, unsigned size, uint64_t value)
{
    struct dev *d = ctx;
    d->off = off;
    d->size = size;
    d->value = value;
    d->writes++;
}

static const struct bus_handler handler = {dev_read, dev_write};
static const struct bus_handler silent = {NULL, NULL};

static int add(struct bus *b, enum bus_space s, uint64_t base, uint64_t size, struct dev *d)
{
    struct nerr e;
    return bus_add(b, s, base, size, &handler, d, "dev", &e);
}

static void test_overlap(void **state)
{
    (void)state;
    static struct bus b;
    struct dev d = {0};
    memset(&b, 0, sizeof b);
    assert_int_equal(add(&b, BUS_PIO, 0x100, 0x10, &d), 0);
    assert_true(add(&b, BUS_PIO, 0x100, 0x10, &d) < 0);
    assert_true(add(&b, BUS_PIO, 0x10f, 1, &d) < 0);
    assert_true(add(&b, BUS_PIO, 0xff, 2, &d) < 0);
    assert_true(add(&b, BUS_PIO, 0xf0, 0x100, &d) < 0);
    assert_int_equal(add(&b, BUS_PIO, 0x110, 1, &d), 0);
    assert_int_equal(add(&b, BUS_PIO, 0xff, 1, &d), 0);
    assert_int_equal(add(&b, BUS_MMIO, 0x100, 0x10, &d), 0); /* the spaces are apart */
    assert_true(add(&b, BUS_PIO, 0x200, 0, &d) < 0);
    assert_true(add(&b, BUS_PIO, 0xffff, 2, &d) < 0);
    assert_int_equal(add(&b, BUS_PIO, 0xffff, 1, &d), 0);
    assert_true(add(&b, BUS_MMIO, ~0ull, 2, &d) < 0);
    assert_int_equal(add(&b, BUS_MMIO, ~0ull, 1, &d), 0);
    struct nerr e;
    assert_true(bus_add(&b, BUS_PIO, 0x108, 4, &handler, &d, "newcomer", &e) < 0);
    assert_non_null(strstr(e.text, "newcomer"));
    assert_non_null(strstr(e.text, "0x108"));
}

static void test_full(void **state)
{
    (void)state;
    static struct bus b;
    struct dev d = {0};
    memset(&b, 0, sizeof b);
    for (unsigned i = 0; i < BUS_MAX_REGIONS; i++)
        assert_int_equal(add(&b, BUS_MMIO, (i * 37 % BUS_MAX_REGIONS) * 0x1000ull, 0x1000, &d), 0);
    assert_true(add(&b, BUS_MMIO, 0x10000000, 1, &d) < 0);
    for (unsigned i = 0; i < BUS_MAX_REGIONS; i++) assert_int_equal(b.region[BUS_MMIO][i].base, i * 0x1000ull);
}

static void test_lookup(void **state)
{
    (void)state;
    static struct bus b;
    struct dev a = {.answer = 0xa0}, c = {.answer = 0x1122334455667788};
    memset(&b, 0, sizeof b);
    add(&b, BUS_MMIO, 0xfee00000, 0x1000, &c);
    add(&b, BUS_PIO, 0x60, 1, &a);
    assert_int_equal(bus_read(&b, BUS_PIO, 0x60, 1), 0xa0);
    assert_int_equal(bus_read(&b, BUS_PIO, 0x61, 1), 0xff);
    assert_int_equal(bus_read(&b, BUS_PIO, 0x5f, 4), 0xffffffff - 0xff00 + 0xa000);
    assert_true(bus_read(&b, BUS_MMIO, 0xfee00010, 8) == 0x1122334455667798);
    assert_int_equal(c.off, 0x10);
    assert_int_equal(bus_read(&b, BUS_MMIO, 0xfee00010, 2), 0x7798); /* cut to the size */
    assert_true(bus_read(&b, BUS_MMIO, 0xfee00ffc, 8) == ~0ull);     /* leaves the region */
    assert_true(bus_read(&b, BUS_MMIO, 0xfedfffff, 8) == ~0ull);
    assert_int_equal(bus_read(&b, BUS_MMIO, 0xfee01000, 4), 0xffffffff);
    bus_write(&b, BUS_MMIO, 0xfee00008, 4, 0xffffffff12345678);
    assert_int_equal(c.value, 0x12345678);
    bus_write(&b, BUS_MMIO, 0, 4, 1); /* nobody: dropped */
    assert_int_equal(c.writes, 1);
    bus_write(&b, BUS_PIO, 0x5e, 4, 0x44332211);
    assert_int_equal(a.writes, 1);
    assert_int_equal(a.value, 0x33);
    assert_int_equal(a.size, 1);
    bus_write(&b, BUS_PIO, 0xffff, 4, 0); /* past the last port */
    assert_int_equal(bus_read(&b, BUS_PIO, 0xffff, 4), 0xffffffff);
}

static void test_no_handlers(void **state)
{
    (void)state;
    static struct bus b;
    struct nerr e;
    memset(&b, 0, sizeof b);
    assert_int_equal(bus_add(&b, BUS_PIO, 0x10, 4, &silent, NULL, "silent", &e), 0);
    assert_int_equal(bus_read(&b, BUS_PIO, 0x10, 4), 0xffffffff);
    assert_int_equal(bus_read(&b, BUS_PIO, 0x0f, 2), 0xffff);
    bus_write(&b, BUS_PIO, 0x10, 4, 0);
    bus_write(&b, BUS_PIO, 0x0f, 2, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_overlap),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_lookup),
        cmocka_unit_test(test_no_handlers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
