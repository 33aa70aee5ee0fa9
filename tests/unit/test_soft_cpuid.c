/* cpuid.c: the guest is told what works, and no more than the host can run. */
#include <cpuid.h>

#include "tests/unit/soft_sys_rig.h"

static uint32_t reg(uint32_t leaf, uint32_t sub, unsigned r)
{
    uint32_t v[4];
    cpuid_query(rig.cpu, leaf, sub, v);
    return v[r];
}
static bool has(uint32_t leaf, unsigned r, unsigned bit)
{
    return reg(leaf, 0, r) >> bit & 1;
}
enum { A, B, C, D };

static void user_mode_sets_are_the_hosts(void **state)
{
    (void)state;
    uint32_t a, b, c, d;
    __cpuid(1, a, b, c, d);
    static const uint8_t leaf1_ecx[] = {0, 1, 9, 13, 19, 20, 22, 23, 25, 30};
    for (unsigned i = 0; i < sizeof leaf1_ecx; i++) assert_int_equal(has(1, C, leaf1_ecx[i]), c >> leaf1_ecx[i] & 1);
    static const uint8_t avx_bits[] = {12, 28, 29};
    for (unsigned i = 0; i < sizeof avx_bits; i++)
        if (has(1, C, avx_bits[i])) assert_true(c >> avx_bits[i] & 1);
    __cpuid_count(7, 0, a, b, c, d);
    static const uint8_t leaf7_ebx[] = {3, 8, 9, 18, 19, 23, 24, 29};
    for (unsigned i = 0; i < sizeof leaf7_ebx; i++) assert_int_equal(has(7, B, leaf7_ebx[i]), b >> leaf7_ebx[i] & 1);
    if (has(7, B, 16)) assert_int_equal(rig.cpu->cpuid.xcr0_mask & 0xe6, 0xe6);
}

static void engine_features(void **state)
{
    (void)state;
    static const struct {
        uint32_t leaf, r, bit;
    } yes[] = {{1, C, 17},         {1, C, 21},          {1, C, 24},          {1, C, 31},          {1, D, 6},
               {1, D, 9},          {1, D, 12},          {7, B, 0},           {7, B, 1},           {7, B, 7},
               {7, B, 10},         {7, B, 20},          {7, C, 2},           {7, C, 22},          {7, D, 14},
               {6, A, 2},          {0x80000001, D, 11}, {0x80000001, D, 20}, {0x80000001, D, 26}, {0x80000001, D, 27},
               {0x80000001, D, 29}},
      no[] = {{1, C, 3},  {1, C, 5},  {1, C, 6},  {1, D, 1},          {1, D, 17},        {7, B, 4},
              {7, B, 11}, {7, B, 14}, {7, B, 25}, {7, C, 3},          {7, C, 5},         {7, C, 7},
              {7, C, 16}, {7, D, 20}, {7, D, 24}, {0x80000001, C, 2}, {0x80000001, C, 9}};
    for (unsigned i = 0; i < sizeof yes / sizeof yes[0]; i++) assert_true(has(yes[i].leaf, yes[i].r, yes[i].bit));
    for (unsigned i = 0; i < sizeof no / sizeof no[0]; i++) assert_false(has(no[i].leaf, no[i].r, no[i].bit));
    assert_int_equal(reg(0xa, 0, A), 0);
    assert_int_equal(reg(0x80000008, 0, A), SOFT_PHYS_BITS | 48 << 8);
}

static void vendor_is_the_hosts(void **state)
{
    (void)state;
    uint32_t a, b, c, d;
    __cpuid(0, a, b, c, d);
    assert_int_equal(reg(0, 0, B), b);
    assert_int_equal(reg(0, 0, C), c);
    __cpuid(1, a, b, c, d);
    assert_int_equal(reg(1, 0, A), a);
    assert_int_equal(reg(0x40000000, 0, B), 0x4b4d564b); /* the KVM interface, of which the clock is there */
    assert_int_equal(reg(0x40000001, 0, A), 1u << 1 | 1u << 3 | 1u << 24);
    assert_true(reg(0x40000000, 0, A) >= 0x40000010);
    assert_int_equal(reg(0x40000010, 0, A), 2600000);
}

static void topology(void **state)
{
    (void)state;
    assert_int_equal(reg(1, 0, B) >> 24, 2);
    assert_int_equal(reg(1, 0, B) >> 16 & 0xff, 4);
    assert_int_equal(reg(0xb, 0, B), 1);
    assert_int_equal(reg(0xb, 1, A), 2);
    assert_int_equal(reg(0xb, 1, B), 4);
    assert_int_equal(reg(0xb, 1, C), 0x201);
    assert_int_equal(reg(0xb, 1, D), 2);
    assert_int_equal(reg(0xb, 2, C), 2);
    assert_int_equal(reg(0xb, 2, D), 2);
    if (rig.cpu->cpuid.amd) {
        assert_int_equal(reg(0x80000008, 0, C), 3 | 2 << 12);
        assert_int_equal(reg(0x8000001e, 0, A), 2);
    }
    rig.cpu->vcpus = 3; /* not a power of two */
    soft_cpuid_init(rig.cpu);
    assert_int_equal(reg(0xb, 1, A), 2);
    assert_int_equal(reg(0xb, 1, B), 3);
    rig.cpu->vcpus = 1;
    soft_cpuid_init(rig.cpu);
    assert_int_equal(reg(0xb, 1, A), 0);
    assert_false(has(1, D, 28));
}

static void live_bits(void **state)
{
    (void)state;
    assert_false(has(1, C, 27));
    rig.cpu->cr4 |= CR4_OSXSAVE;
    assert_true(has(1, C, 27));
    rig.cpu->xcr0 = 1;
    assert_int_equal(reg(0xd, 0, B), 576);
    if (rig.cpu->cpuid.xcr0_mask & 4) {
        rig.cpu->xcr0 = 7;
        assert_int_equal(reg(0xd, 0, B), 832);
        assert_int_equal(reg(0xd, 2, A), 256);
    }
    rig.cpu->xcr0 = rig.cpu->cpuid.xcr0_mask;
    assert_int_equal(reg(0xd, 0, B), reg(0xd, 0, C));
    assert_true(reg(0xd, 0, C) <= CPU_XSAVE_SIZE);
    assert_int_equal(reg(0xd, 0, A), rig.cpu->cpuid.xcr0_mask);
}

static void out_of_range(void **state)
{
    (void)state;
    static const uint32_t leaf[] = {0x17,       0x1f,       0x20,       0x20000000, 0x40000002,
                                    0x40000011, 0x8000002a, 0xc0000000, 0xffffffff};
    for (unsigned i = 0; i < sizeof leaf / sizeof leaf[0]; i++)
        for (unsigned r = 0; r < 4; r++) assert_int_equal(reg(leaf[i], 0xffffffff, r), 0);
    for (unsigned r = 0; r < 4; r++) {
        assert_int_equal(reg(0xd, 0xffffffff, r), 0);
        assert_int_equal(reg(7, 2, r), 0);
        assert_int_equal(reg(4, 9, r), 0);
    }
}

static void instruction(void **state)
{
    (void)state;
    sys_ring(3);
    rig.cpu->gpr[R_RAX] = 0xffffffff00000000;
    rig.cpu->gpr[R_RBX] = rig.cpu->gpr[R_RDX] = ~0ull;
    EXEC_OK(0x0f, 0xa2);
    assert_int_equal(rig.cpu->gpr[R_RBX], reg(0, 0, B));
    assert_int_equal(rig.cpu->gpr[R_RAX], reg(0, 0, A));
    assert_int_equal(rig.cpu->gpr[R_RDX], reg(0, 0, D));
    assert_int_equal(rig.cpu->rip, SYS_CODE + 2);
}

#define T(f) cmocka_unit_test_setup_teardown(f, sys_setup, rig_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(user_mode_sets_are_the_hosts),
        T(engine_features),
        T(vendor_is_the_hosts),
        T(topology),
        T(live_bits),
        T(out_of_range),
        T(instruction),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
