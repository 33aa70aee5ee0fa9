/* msr.c: model-specific registers and the time stamp counter. */
#include "tests/unit/soft_sys_rig.h"

static void set(uint32_t n, uint64_t v)
{
    rig.cpu->gpr[R_RCX] = n;
    rig.cpu->gpr[R_RAX] = 0xdead00000000 | (uint32_t)v; /* the upper half is ignored */
    rig.cpu->gpr[R_RDX] = 0xdead00000000 | v >> 32;
}
static void good(uint32_t n, uint64_t v)
{
    set(n, v);
    EXEC_OK(0x0f, 0x30);
}
static void bad(uint32_t n, uint64_t v)
{
    set(n, v);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x30);
}
static uint64_t get(uint32_t n)
{
    rig.cpu->gpr[R_RCX] = n;
    EXEC_OK(0x0f, 0x32);
    assert_int_equal((rig.cpu->gpr[R_RAX] | rig.cpu->gpr[R_RDX]) >> 32, 0);
    return rig.cpu->gpr[R_RDX] << 32 | rig.cpu->gpr[R_RAX];
}
static void bad_read(uint32_t n)
{
    rig.cpu->gpr[R_RCX] = n;
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x32);
}

static void addresses_must_be_canonical(void **state)
{
    (void)state;
    static const uint32_t n[] = {0xc0000082, 0xc0000083, 0xc0000100, 0xc0000101, 0xc0000102, 0x175, 0x176};
    for (unsigned i = 0; i < sizeof n / sizeof n[0]; i++) {
        good(n[i], 0xffff800000001234);
        assert_int_equal(get(n[i]), 0xffff800000001234);
        bad(n[i], 0x0000800000000000);
        bad(n[i], 0xffff7fffffffffff);
        assert_int_equal(get(n[i]), 0xffff800000001234);
    }
    assert_int_equal(rig.cpu->seg[SEG_FS].base, 0xffff800000001234);
}

static void plain(void **state)
{
    (void)state;
    good(0xc0000081, 0x23001000000000);
    assert_int_equal(rig.cpu->star, 0x23001000000000);
    good(0xc0000084, 0xffffffff00047700);
    assert_int_equal(get(0xc0000084), 0x47700);
    good(0xc0000103, 7);
    bad(0xc0000103, 1ull << 32);
    EXEC_OK(0xf3, 0x0f, 0xc7, 0xf8); /* rdpid rax */
    assert_int_equal(rig.cpu->gpr[R_RAX], 7);
    good(0x1a0, ~0ull);
    assert_int_equal(get(0x1a0) & 0x1800, 0x1800);
    assert_int_equal(get(0x179), 0); /* no machine check banks */
}

static void efer(void **state)
{
    (void)state;
    uint64_t v = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
    good(0xc0000080, v);
    assert_int_equal(rig.cpu->efer, v);
    bad(0xc0000080, v & ~(uint64_t)EFER_LME); /* paging is on */
    bad(0xc0000080, v | 1u << 12);            /* SVME */
    unsigned flushes = rig.translation_flushes;
    good(0xc0000080, EFER_LME); /* LMA stays whatever is written */
    assert_int_equal(rig.cpu->efer, EFER_LME | EFER_LMA);
    assert_true(rig.translation_flushes > flushes);
    if (rig.cpu->cpuid.amd)
        good(0xc0000080, EFER_LME | 1u << 21);
    else
        bad(0xc0000080, EFER_LME | 1u << 21);
    sys_protected32(0);
    good(0xc0000080, EFER_LMA);
    assert_int_equal(rig.cpu->efer, 0);
}

static void memory_types(void **state)
{
    (void)state;
    good(0x277, 0x0007040600070406);
    bad(0x277, 0x0007040600070402);
    bad(0x277, 0x0807040600070406);
    assert_int_equal(get(0xfe) & 0xff, 8);
    good(0x2ff, 0xc06);
    bad(0x2ff, 0xc02);
    bad(0x2ff, 0x1006);
    good(0x200, 0xc0000006);
    bad(0x200, 0xc0000106);
    bad(0x200, 1ull << SOFT_PHYS_BITS);
    good(0x201, 0x3fffc0000800);
    bad(0x201, 0x400);
    good(0x20f, 0);
    bad(0x210, 0);
    good(0x26f, 0x0606060606060606);
    assert_int_equal(get(0x26f), 0x0606060606060606);
    bad(0x250, 0x0606060606060607);
}

static void tsc(void **state)
{
    (void)state;
    good(0x10, 1000000);
    uint64_t t = get(0x10);
    assert_in_range(t, 1000000, 1000000000000);
    assert_int_equal(fake_apic.tsc_offset, rig.cpu->tsc_offset); /* the deadline timer is told */
    uint64_t adjust = get(0x3b);
    good(0x3b, adjust + (1ull << 40));
    assert_true(get(0x10) >= t + (1ull << 40));
    EXEC_OK(0x0f, 0x31);
    uint64_t a = rig.cpu->gpr[R_RDX] << 32 | rig.cpu->gpr[R_RAX];
    rig.cpu->tsc_aux = 3;
    EXEC_OK(0x0f, 0x01, 0xf9);
    assert_true((rig.cpu->gpr[R_RDX] << 32 | rig.cpu->gpr[R_RAX]) > a);
    assert_int_equal(rig.cpu->gpr[R_RCX], 3);
    sys_ring(3);
    EXEC_OK(0x0f, 0x31);
    rig.cpu->cr4 |= CR4_TSD;
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x31);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x01, 0xf9);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x33); /* rdpmc */
}

static void apic(void **state)
{
    (void)state;
    assert_int_equal(get(0x1b), 0xfee00900);
    assert_true(fake_apic.parks > 0);
    good(0x80b, 0);
    assert_int_equal(fake_apic.last_msr, 0x80b);
    bad(0x80d, 0);
    bad_read(0x810);
    uint32_t r[4];
    cpuid_query(rig.cpu, 1, 0, r);
    assert_true(r[3] & 1u << 9);
    good(0x1b, 0xfee00100);
    cpuid_query(rig.cpu, 1, 0, r);
    assert_false(r[3] & 1u << 9);
}

static void unknown_and_unprivileged(void **state)
{
    (void)state;
    static const uint32_t n[] = {0x3,   0x400,      0x8d,       0x186,      0x345,     0x480,
                                 0x570, 0xc0010117, 0x40000000, 0x4b564d02, 0xffffffff};
    for (unsigned i = 0; i < sizeof n / sizeof n[0]; i++) {
        bad_read(n[i]);
        bad(n[i], 0);
    }
    bad(0xfe, 0); /* read-only */
    bad(0x8000, 0);
    sys_ring(3);
    bad_read(0x10);
    bad(0x10, 0);
}

static void vendors_own(void **state)
{
    (void)state;
    if (rig.cpu->cpuid.amd) {
        assert_int_equal(get(0xc0010015) & 1u << 24, 1u << 24);
        good(0xc0011029, 0);
        assert_int_equal(get(0xc0011029), 2); /* LFENCE serializes for good */
        bad_read(0x10a);
        bad_read(0x48);
    } else {
        bad_read(0xc0010015);
        assert_true(get(0x10a) & 2);
        good(0x48, 1);
        assert_int_equal(get(0x48), 1);
        bad(0x48, 0x100);
        good(0x49, 1);
        bad_read(0x49);
    }
}

static void pvclock(void **state)
{
    (void)state;
    rig.cpu->tsc_offset = 0x1000;
    rig.cpu->pvclock.tsc_base = 0x2000;
    rig.cpu->pvclock.wall_base_ns = 1700000000000000005ull;
    good(0x4b564d01, SYS_DATA | 1);
    assert_int_equal(get(0x4b564d01), SYS_DATA | 1);
    uint32_t version = ram32(SYS_DATA);
    assert_int_equal(version & 1, 0);
    assert_int_equal(ram64(SYS_DATA + 8), 0x3000);
    assert_int_equal(ram64(SYS_DATA + 16), 0);
    assert_int_equal(ram32(SYS_DATA + 24), (1000000ull << 32) / 2600000);
    assert_int_equal(ram16(SYS_DATA + 28), 1 << 8); /* shift 0, stable */
    good(0x3b, 0x100);                              /* the TSC moves: so does the page */
    assert_int_equal(ram64(SYS_DATA + 8), 0x3100);
    assert_true(ram32(SYS_DATA) > version);
    good(0x4b564d00, SYS_DATA + 0x100);
    assert_int_equal(ram32(SYS_DATA + 0x104), 1700000000);
    assert_int_equal(ram32(SYS_DATA + 0x108), 5);
    bad(0x4b564d01, RIG_MMIO | 1);
    bad(0x4b564d01, RIG_ROM_BASE | 1);
    bad(0x4b564d01, (RIG_RAM - 8) | 1); /* its end isn't RAM */
    bad(0x4b564d01, ~0ull);
    bad(0x4b564d00, RIG_MMIO);
    good(0x4b564d01, 0);
    assert_int_equal(get(0x4b564d01), 0);
    rig.cpu->tsc_khz = 500000; /* slower than 1 GHz: shifted up */
    good(0x4b564d01, SYS_DATA | 1);
    assert_int_equal(ram16(SYS_DATA + 28) & 0xff, 2);
    assert_int_equal(ram32(SYS_DATA + 24), 1u << 31);
}

static void reset(void **state)
{
    (void)state;
    good(0x2ff, 0xc06);
    good(0x1b, 0);
    soft_msr_reset(rig.cpu);
    assert_int_equal(get(0x2ff), 0);
    assert_false(rig.cpu->cpuid.apic_off);
}

#define T(f) cmocka_unit_test_setup_teardown(f, sys_setup, rig_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(addresses_must_be_canonical), T(plain),       T(efer),    T(memory_types), T(tsc), T(apic),
        T(unknown_and_unprivileged),    T(vendors_own), T(pvclock), T(reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
