/* Jumps, loops, BCD arithmetic and the other leftovers. */
#include "tests/unit/soft_rig.h"
#include "vmm/engine/soft/xlat.h"

static struct xinsn insn;
static unsigned code_size;

static void mode(unsigned size)
{
    soft_decode_init();
    code_size = size;
    rig.cpu->seg[SEG_CS].attr = 0x9b | SEG_ATTR_G | (size == 8 ? SEG_ATTR_L : size == 4 ? SEG_ATTR_DB : 0);
}

static enum soft_result exec_at(uint64_t rip, const uint8_t *bytes, unsigned n)
{
    uint8_t padded[16] = {0};
    memcpy(padded, bytes, n);
    rig.cpu->rip = rip;
    rig.cpu->exc.pending = false;
    assert_int_equal(soft_decode(padded, 15, code_size, rip, &insn), 0);
    assert_int_equal(insn.in.len, n);
    soft_io_begin(rig.cpu);
    return soft_general_insn(rig.cpu, &insn.in);
}
#define EXEC(...) exec_at(0x1000, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

/* Asks the host CPU whether SETcc is true under these flags. */
#define HOST_CC(n, cc) \
    case n: __asm__("push %1\n\tpopf\n\tset" cc " %0" : "=r"(v) : "r"(fl | 2) : "cc", "memory"); break;
static bool __attribute__((noinline)) host_condition(unsigned cc, uint64_t fl)
{
    uint8_t v = 0;
    __asm__ volatile("sub $256, %%rsp" ::: "memory"); /* past the red zone */
    switch (cc) {
        /* clang-format off */
        HOST_CC(0, "o")
        HOST_CC(1, "no")
        HOST_CC(2, "b")
        HOST_CC(3, "ae")
        HOST_CC(4, "e")
        HOST_CC(5, "ne")
        HOST_CC(6, "be")
        HOST_CC(7, "a")
        HOST_CC(8, "s")
        HOST_CC(9, "ns")
        HOST_CC(10, "p")
        HOST_CC(11, "np")
        HOST_CC(12, "l")
        HOST_CC(13, "ge")
        HOST_CC(14, "le")
        HOST_CC(15, "g")
        /* clang-format on */
    }
    __asm__ volatile("add $256, %%rsp" ::: "memory");
    return v;
}

static void test_conditions(void **state)
{
    (void)state;
    static const uint64_t bits[] = {FL_CF, FL_PF, FL_AF, FL_ZF, FL_SF, FL_OF};
    mode(4);
    for (unsigned cc = 0; cc < 16; cc++)
        for (unsigned set = 0; set < 64; set++) {
            uint64_t fl = 0;
            for (unsigned i = 0; i < 6; i++)
                if (set >> i & 1) fl |= bits[i];
            rig.cpu->rflags = fl | FL_1;
            bool taken = host_condition(cc, fl);
            assert_int_equal(EXEC((uint8_t)(0x70 | cc), 0x80), SOFT_OK);
            assert_int_equal(rig.cpu->rip, taken ? 0x1002 - 0x80 : 0x1002);
            assert_int_equal(EXEC(0x0f, (uint8_t)(0x80 | cc), 0, 0x10, 0, 0), SOFT_OK);
            assert_int_equal(rig.cpu->rip, taken ? 0x2006 : 0x1006);
        }
}

/* Targets are cut to the operand size and checked against the limit. */
static void test_jump_targets(void **state)
{
    (void)state;
    mode(2);
    assert_int_equal(exec_at(0xfff0, (const uint8_t[]){0xe9, 0x20, 0x00}, 3), SOFT_OK);
    assert_int_equal(rig.cpu->rip, 0x0013);
    assert_int_equal(exec_at(0x10, (const uint8_t[]){0xeb, 0x80}, 2), SOFT_OK);
    assert_int_equal(rig.cpu->rip, 0xff92);
    rig.cpu->seg[SEG_CS].limit = 0xfff;
    assert_int_equal(exec_at(0x800, (const uint8_t[]){0xe9, 0x00, 0x10}, 3), SOFT_FAULT);
    assert_fault(EXC_GP, 0);
    assert_int_equal(rig.cpu->rip, 0x800);
    mode(4);
    rig.cpu->seg[SEG_CS].limit = 0xffffffff;
    rig.cpu->gpr[R_RAX] = 0x89abcdef;
    assert_int_equal(EXEC(0xff, 0xe0), SOFT_OK);
    assert_int_equal(rig.cpu->rip, 0x89abcdef);
    assert_int_equal(EXEC(0x66, 0xff, 0xe0), SOFT_OK);
    assert_int_equal(rig.cpu->rip, 0xcdef);
    mode(8);
    rig.cpu->gpr[R_RAX] = 0x0000900000000000;
    assert_int_equal(EXEC(0xff, 0xe0), SOFT_FAULT);
    assert_fault(EXC_GP, 0);
    rig.cpu->gpr[R_RAX] = 0xffff800000000000;
    assert_int_equal(EXEC(0xff, 0xe0), SOFT_OK);
    assert_int_equal(rig.cpu->rip, 0xffff800000000000);
    assert_int_equal(EXEC(0xff, 0x28), SOFT_NOT_MINE); /* far */
}

static void test_loops(void **state)
{
    (void)state;
    struct soft_cpu *c = rig.cpu;
    /* mode, address size prefix, width of the counter */
    static const unsigned widths[][3] = {{2, 0, 2}, {2, 1, 4}, {4, 0, 4}, {4, 1, 2}, {8, 0, 8}, {8, 1, 4}};
    for (unsigned i = 0; i < 6; i++)
        for (unsigned k = 0; k < 4; k++)
            for (unsigned zf = 0; zf < 2; zf++)
                for (uint64_t count = 0; count < 3; count++) {
                    unsigned p = widths[i][1], w = widths[i][2];
                    uint8_t b[3] = {0x67};
                    mode(widths[i][0]);
                    uint64_t mask = w == 8 ? ~0ull : (1ull << 8 * w) - 1, high = w == 2 ? 0xabcd0000 : 0;
                    c->gpr[R_RCX] = count | high | (w == 4 && widths[i][0] == 8 ? 1ull << 40 : 0);
                    uint64_t before = c->gpr[R_RCX];
                    c->rflags = FL_1 | (zf ? FL_ZF : 0);
                    b[p] = (uint8_t)(0xe0 + k); /* LOOPNE, LOOPE, LOOP, JCXZ */
                    b[p + 1] = 0x10;
                    assert_int_equal(exec_at(0x1000, b, p + 2), SOFT_OK);
                    uint64_t left = (count - 1) & mask;
                    bool taken = k == 3 ? !count : left && (k == 2 || (k == 1) == zf);
                    assert_int_equal(c->rip, 0x1000 + p + 2 + (taken ? 0x10 : 0));
                    assert_int_equal(c->gpr[R_RCX], k == 3 ? before : left | high);
                    assert_int_equal(c->rflags, FL_1 | (zf ? FL_ZF : 0));
                }
    /* A loop whose target is beyond the limit has not counted. */
    mode(4);
    c->seg[SEG_CS].limit = 0x1001;
    c->gpr[R_RCX] = 5;
    assert_int_equal(EXEC(0xe2, 0x20), SOFT_FAULT);
    assert_int_equal(c->gpr[R_RCX], 5);
}

/* DAA and DAS by what they are for: after adding or subtracting two packed decimals, the decimal result and carry. */
static uint8_t bcd(unsigned v)
{
    return (uint8_t)(v / 10 % 10 << 4 | v % 10);
}

static void set_after(uint8_t a, uint8_t b, bool sub)
{
    unsigned r = sub ? a - b : a + b;
    bool af = sub ? (a & 15) < (b & 15) : (a & 15) + (b & 15) > 15;
    rig.cpu->rflags = FL_1 | (r > 0xff ? FL_CF : 0) | (af ? FL_AF : 0) | FL_DF;
    rig.cpu->gpr[R_RAX] = 0xffffffffffff5500 | (r & 0xff);
}

static void test_packed_decimal(void **state)
{
    (void)state;
    mode(4);
    for (unsigned x = 0; x < 100; x++)
        for (unsigned y = 0; y < 100; y++)
            for (unsigned sub = 0; sub < 2; sub++) {
                set_after(bcd(x), bcd(y), sub);
                assert_int_equal(EXEC(sub ? 0x2f : 0x27), SOFT_OK);
                unsigned r = sub ? (x + 100 - y) % 100 : (x + y) % 100;
                bool carry = sub ? x < y : x + y > 99;
                assert_int_equal(rig.cpu->gpr[R_RAX], 0xffffffffffff5500 | bcd(r));
                assert_int_equal(!!(rig.cpu->rflags & FL_CF), carry);
                assert_int_equal(!!(rig.cpu->rflags & FL_ZF), r == 0);
                assert_int_equal(!!(rig.cpu->rflags & FL_SF), r >= 80);
                assert_int_equal(!!(rig.cpu->rflags & FL_PF), !__builtin_parity(bcd(r)));
                assert_true(rig.cpu->rflags & FL_DF);
            }
    /* Values no decimal addition leaves, from the manual's own rules. */
    static const struct {
        uint8_t op, al;
        bool cf, af;
        uint8_t out;
        bool cf_out, af_out;
    } odd[] = {
        {0x27, 0x9a, 0, 0, 0x00, 1, 1}, {0x27, 0xff, 0, 0, 0x65, 1, 1}, {0x27, 0x99, 0, 0, 0x99, 0, 0},
        {0x27, 0x00, 1, 1, 0x66, 1, 1}, {0x2f, 0x05, 0, 1, 0xff, 1, 1}, {0x2f, 0x9a, 0, 0, 0x34, 1, 1},
        {0x2f, 0x99, 0, 0, 0x99, 0, 0}, {0x2f, 0x00, 1, 0, 0xa0, 1, 0},
    };
    for (unsigned i = 0; i < sizeof(odd) / sizeof(*odd); i++) {
        rig.cpu->gpr[R_RAX] = odd[i].al;
        rig.cpu->rflags = FL_1 | (odd[i].cf ? FL_CF : 0) | (odd[i].af ? FL_AF : 0);
        assert_int_equal(exec_at(0x1000, &odd[i].op, 1), SOFT_OK);
        assert_int_equal(rig.cpu->gpr[R_RAX], odd[i].out);
        assert_int_equal(!!(rig.cpu->rflags & FL_CF), odd[i].cf_out);
        assert_int_equal(!!(rig.cpu->rflags & FL_AF), odd[i].af_out);
    }
}

static void test_unpacked_decimal(void **state)
{
    (void)state;
    mode(2);
    for (unsigned x = 0; x < 10; x++)
        for (unsigned y = 0; y < 10; y++)
            for (unsigned sub = 0; sub < 2; sub++) {
                set_after((uint8_t)x, (uint8_t)y, sub);
                rig.cpu->gpr[R_RAX] = (rig.cpu->gpr[R_RAX] & ~0xff00ull) | 0x0500; /* the digit above */
                assert_int_equal(EXEC(sub ? 0x3f : 0x37), SOFT_OK);
                unsigned r = sub ? 50 + x - y : 50 + x + y;
                assert_int_equal(rig.cpu->gpr[R_RAX] & 0xffff, r / 10 << 8 | r % 10);
                assert_int_equal(!!(rig.cpu->rflags & FL_CF), sub ? x < y : x + y > 9);
                assert_int_equal(!!(rig.cpu->rflags & FL_AF), sub ? x < y : x + y > 9);
            }
    for (unsigned v = 0; v < 256; v++)
        for (unsigned base = 1; base < 256; base++) {
            rig.cpu->gpr[R_RAX] = 0x7700 | v;
            assert_int_equal(EXEC(0xd4, (uint8_t)base), SOFT_OK);
            assert_int_equal(rig.cpu->gpr[R_RAX], v / base << 8 | v % base);
            assert_int_equal(!!(rig.cpu->rflags & FL_ZF), v % base == 0);
            assert_int_equal(EXEC(0xd5, (uint8_t)base), SOFT_OK); /* AAD undoes it */
            assert_int_equal(rig.cpu->gpr[R_RAX], v);
            assert_int_equal(!!(rig.cpu->rflags & FL_SF), v >> 7);
        }
    rig.cpu->gpr[R_RAX] = 0x1234;
    assert_int_equal(EXEC(0xd4, 0), SOFT_FAULT);
    assert_true(rig.cpu->exc.pending && rig.cpu->exc.vector == EXC_DE && !rig.cpu->exc.has_error);
    assert_int_equal(rig.cpu->gpr[R_RAX], 0x1234);
    rig.cpu->rflags |= FL_CF;
    assert_int_equal(EXEC(0xd6), SOFT_OK); /* SALC */
    assert_int_equal(rig.cpu->gpr[R_RAX], 0x12ff);
}

static void test_moffs(void **state)
{
    (void)state;
    struct soft_cpu *c = rig.cpu;
    uint64_t v = 0x8877665544332211;
    rig_map(0x5000, 0x7000, RP_P | RP_W);
    memcpy(rig.host[0] + 0x7010, &v, 8);
    mode(8);
    c->gpr[R_RAX] = ~0ull;
    assert_int_equal(EXEC(0x48, 0xa1, 0x10, 0x50, 0, 0, 0, 0, 0, 0), SOFT_OK);
    assert_int_equal(c->gpr[R_RAX], v);
    c->gpr[R_RAX] = ~0ull;
    assert_int_equal(EXEC(0xa1, 0x10, 0x50, 0, 0, 0, 0, 0, 0), SOFT_OK);
    assert_int_equal(c->gpr[R_RAX], 0x44332211);
    assert_int_equal(EXEC(0x67, 0xa0, 0x17, 0x50, 0, 0), SOFT_OK);
    assert_int_equal(c->gpr[R_RAX], 0x44332288);
    assert_int_equal(EXEC(0xa2, 0x12, 0x50, 0, 0, 0, 0, 0, 0), SOFT_OK);
    assert_int_equal(rig.host[0][0x7012], 0x88);
    assert_int_equal(EXEC(0x64, 0x66, 0xa3, 0x18, 0x40, 0, 0, 0, 0, 0, 0), SOFT_FAULT);
    c->seg[SEG_FS].base = 0x1000;
    assert_int_equal(EXEC(0x64, 0x66, 0xa3, 0x18, 0x40, 0, 0, 0, 0, 0, 0), SOFT_OK);
    assert_int_equal(*(uint32_t *)rig_ram(0x7018), 0x2288);
    assert_int_equal(EXEC(0x89, 0xc3), SOFT_NOT_MINE); /* other MOVs are the translator's */
    mode(2);
    assert_int_equal(EXEC(0xa1, 0x10, 0x50), SOFT_OK);
    assert_int_equal(c->gpr[R_RAX], 0x44332211);
}

static void test_xlat_bound_lea(void **state)
{
    (void)state;
    struct soft_cpu *c = rig.cpu;
    rig_map(0x5000, 0x7000, RP_P | RP_W);
    mode(8);
    rig.host[0][0x70ff] = 0x5a;
    c->gpr[R_RBX] = 0x5010;
    c->gpr[R_RAX] = 0xffef;
    assert_int_equal(EXEC(0xd7), SOFT_OK);
    assert_int_equal(c->gpr[R_RAX], 0xff5a);
    c->gpr[R_RBX] = 0xffffffff00005010; /* with a 32-bit address */
    c->gpr[R_RAX] = 0xef;
    assert_int_equal(EXEC(0x67, 0xd7), SOFT_OK);
    assert_int_equal(c->gpr[R_RAX], 0x5a);
    c->seg[SEG_FS].base = 0x10;
    c->gpr[R_RBX] = 0x5000;
    c->gpr[R_RAX] = 0xef;
    assert_int_equal(EXEC(0x64, 0xd7), SOFT_OK);
    assert_int_equal(c->gpr[R_RAX], 0x5a);

    mode(4);
    int32_t limits[2] = {-5, 10};
    memcpy(rig_ram(0x7020), limits, 8);
    c->gpr[R_RBX] = 0x5020;
    for (int32_t v = -7; v < 13; v++) {
        c->gpr[R_RAX] = (uint32_t)v;
        bool in = v >= -5 && v <= 10;
        assert_int_equal(EXEC(0x62, 0x03), in ? SOFT_OK : SOFT_FAULT);
        if (!in) assert_true(c->exc.pending && c->exc.vector == EXC_BR && !c->exc.has_error);
        assert_int_equal(c->rip, in ? 0x1002 : 0x1000);
    }
    c->gpr[R_RBX] = 0x12345678;
    assert_int_equal(EXEC(0x8d, 0x43, 0xf0), SOFT_OK); /* lea eax, [ebx-16] */
    assert_int_equal(c->gpr[R_RAX], 0x12345668);
    assert_int_equal(EXEC(0x66, 0x67, 0x8d, 0x47, 0x10), SOFT_OK); /* lea ax, [bx+16] */
    assert_int_equal(c->gpr[R_RAX], 0x12345688);
}

#define T(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_conditions),       T(test_jump_targets), T(test_loops),          T(test_packed_decimal),
        T(test_unpacked_decimal), T(test_moffs),        T(test_xlat_bound_lea),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
