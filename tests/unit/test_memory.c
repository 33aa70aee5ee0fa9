/* Guest memory: the accessor's bounds, the hole, and that untouched memory costs nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "vmm/memory/memory.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)

static uint64_t resident_pages(void)
{
    unsigned long size, rss;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%lu %lu", &size, &rss), 2);
    fclose(f);
    return rss;
}

static void test_small(void **state)
{
    (void)state;
    struct guest_memory m;
    struct nerr e;
    assert_int_equal(guest_memory_create(&m, 16 * MIB, &e), 0);
    assert_int_equal(m.slots, 1);
    assert_int_equal(m.ram_size, 16 * MIB);
    assert_int_equal((uintptr_t)m.slot[0].host % (2 * MIB), 0);
    assert_ptr_equal(guest_memory_ptr(&m, GPA(0), 16 * MIB, true), m.slot[0].host);
    assert_ptr_equal(guest_memory_ptr(&m, GPA(16 * MIB - 1), 1, true), m.slot[0].host + 16 * MIB - 1);
    assert_null(guest_memory_ptr(&m, GPA(16 * MIB - 1), 2, true));
    assert_null(guest_memory_ptr(&m, GPA(16 * MIB), 1, false));
    assert_null(guest_memory_ptr(&m, GPA(16 * MIB), 0, false));
    assert_null(guest_memory_ptr(&m, GPA(4), UINT64_MAX, false));
    assert_null(guest_memory_ptr(&m, GPA(UINT64_MAX), 2, false));
    assert_null(guest_memory_ptr(&m, GPA(UINT64_MAX - 3), 8, false));
    guest_memory_destroy(&m);
    assert_int_equal(m.slots, 0);
}

static void test_hole(void **state)
{
    (void)state;
    struct guest_memory m;
    struct nerr e;
    uint64_t before = resident_pages();
    assert_int_equal(guest_memory_create(&m, 64 * GIB, &e), 0);
    assert_int_equal(m.slots, 2);
    assert_int_equal(m.slot[1].base.v, 4 * GIB);
    assert_int_equal(m.slot[0].size + m.slot[1].size, 64 * GIB);
    assert_true(resident_pages() - before < 256); /* page tables and the like, not gigabytes */
    assert_null(guest_memory_ptr(&m, GPA(GUEST_LOW_RAM_END), 1, false));
    assert_null(guest_memory_ptr(&m, GPA(4 * GIB - 1), 2, false));
    assert_null(guest_memory_ptr(&m, GPA(GUEST_LOW_RAM_END - 1), 2, false)); /* never over two slots */
    assert_ptr_equal(guest_memory_ptr(&m, GPA(4 * GIB), 8, true), m.slot[1].host);
    assert_non_null(guest_memory_ptr(&m, GPA(65 * GIB - 8), 8, true));
    assert_null(guest_memory_ptr(&m, GPA(65 * GIB - 7), 8, true));
    guest_memory_destroy(&m);
}

static void test_exact_hole(void **state)
{
    (void)state;
    struct guest_memory m;
    struct nerr e;
    assert_int_equal(guest_memory_create(&m, GUEST_LOW_RAM_END, &e), 0);
    assert_int_equal(m.slots, 1);
    guest_memory_destroy(&m);
    assert_int_equal(guest_memory_create(&m, GUEST_LOW_RAM_END + PAGE_SIZE, &e), 0);
    assert_int_equal(m.slots, 2);
    assert_int_equal(m.slot[1].size, PAGE_SIZE);
    guest_memory_destroy(&m);
}

static void test_copies(void **state)
{
    (void)state;
    struct guest_memory m;
    struct nerr e;
    char in[8] = "nacelle", out[8] = "";
    assert_int_equal(guest_memory_create(&m, 2 * MIB, &e), 0);
    assert_true(guest_memory_write(&m, GPA(2 * MIB - 8), in, 8));
    assert_true(guest_memory_read(&m, GPA(2 * MIB - 8), out, 8));
    assert_string_equal(out, "nacelle");
    assert_false(guest_memory_write(&m, GPA(2 * MIB - 7), "XXXXXXXX", 8));
    assert_memory_equal(m.slot[0].host + 2 * MIB - 7, "acelle", 7); /* nothing of it was written */
    strcpy(out, "same");
    assert_false(guest_memory_read(&m, GPA(2 * MIB - 7), out, 8));
    assert_string_equal(out, "same");
    m.slot[0].readonly = true;
    assert_false(guest_memory_write(&m, GPA(0), in, 8));
    assert_true(guest_memory_read(&m, GPA(0), out, 8));
    guest_memory_destroy(&m);
}

static void test_bad_sizes(void **state)
{
    (void)state;
    struct guest_memory m;
    const uint64_t bad[] = {0, 1, PAGE_SIZE, MIB - PAGE_SIZE, MIB + 1, UINT64_MAX, UINT64_MAX & PAGE_MASK, 1ull << 63};
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct nerr e = {""};
        assert_true(guest_memory_create(&m, bad[i], &e) < 0);
        assert_true(e.text[0] != 0);
        assert_int_equal(m.slots, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),  cmocka_unit_test(test_hole),      cmocka_unit_test(test_exact_hole),
        cmocka_unit_test(test_copies), cmocka_unit_test(test_bad_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
