/* Push, pop, call and their relatives in 16, 32 and 64-bit code with 16, 32 and 64-bit stacks. */
#include "tests/unit/soft_rig.h"
#include "vmm/engine/soft/xlat.h"

static struct xinsn insn;

static unsigned code_size;

/* Pages 0x20 to 0x30, GPA = GVA + 0x200000; the last one for what runs over the end of 64 KiB. */
#define STACK 0x20000ull
#define DATA 0x40000ull

static void setup_mode(unsigned code, unsigned stack)
{
    struct soft_cpu *c = rig.cpu;
    soft_decode_init();
    code_size = code;
    c->seg[SEG_CS].attr = 0x9b | SEG_ATTR_G | (code == 8 ? SEG_ATTR_L : code == 4 ? SEG_ATTR_DB : 0);
    c->seg[SEG_SS].attr = 0x93 | SEG_ATTR_G | (stack == 4 ? SEG_ATTR_DB : 0);
    for (uint64_t i = 0; i < 17; i++) rig_map(STACK + i * PAGE_SIZE, STACK + 0x200000 + i * PAGE_SIZE, RP_P | RP_W);
    rig_map(DATA, DATA + 0x200000, RP_P | RP_W);
    c->seg[SEG_SS].base = code == 8 ? 0 : STACK; /* so that a 16-bit SP reaches all of it */
    memset(rig_ram(STACK + 0x200000), 0xcc, 16 * PAGE_SIZE);
    for (unsigned i = 0; i < 16; i++) c->gpr[i] = code == 8 ? 0x1111111111111111ull * i : 0x11111111u * i;
}

static void set_sp(uint64_t v)
{
    rig.cpu->gpr[R_RSP] = code_size == 8 ? STACK + v : v;
}

static uint64_t sp(void)
{
    return code_size == 8 ? rig.cpu->gpr[R_RSP] - STACK : rig.cpu->gpr[R_RSP];
}

static uint64_t peek(uint64_t off, unsigned size)
{
    uint64_t v = 0;
    memcpy(&v, rig_ram(STACK + 0x200000 + off), size);
    return v;
}

static void poke(uint64_t off, uint64_t v, unsigned size)
{
    memcpy(rig_ram(STACK + 0x200000 + off), &v, size);
}

static enum soft_result exec_bytes(const uint8_t *bytes, unsigned n)
{
    uint8_t padded[16] = {0};
    memcpy(padded, bytes, n);
    rig.cpu->rip = 0x1000;
    rig.cpu->exc.pending = false;
    assert_int_equal(soft_decode(padded, 15, code_size, 0x1000, &insn), 0);
    assert_int_equal(insn.in.len, n);
    soft_io_begin(rig.cpu);
    return soft_general_insn(rig.cpu, &insn.in);
}
#define EXEC(...) exec_bytes((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static uint64_t cut(uint64_t v, unsigned size)
{
    return size == 8 ? v : v & ((1ull << size * 8) - 1);
}

static const struct {
    unsigned code, stack;
} modes[] = {{2, 2}, {2, 4}, {4, 2}, {4, 4}, {8, 8}};
#define FOR_MODES for (unsigned mi = 0; mi < 5; mi++)

/* PUSH r, PUSH SP, PUSH imm, POP r, POP SP; plain and with an operand size prefix. */
static void test_push_pop(void **state)
{
    (void)state;
    struct soft_cpu *c = rig.cpu;
    FOR_MODES for (unsigned prefix = 0; prefix < 2; prefix++)
    {
        unsigned code = modes[mi].code, size = prefix ? (code == 2 ? 4 : 2) : code;
        uint8_t b[4] = {0x66};
        unsigned n = prefix;
        setup_mode(code, modes[mi].stack);
        set_sp(0x8000);
        b[n] = 0x53; /* push (e/r)bx */
        assert_int_equal(exec_bytes(b, n + 1), SOFT_OK);
        assert_int_equal(sp(), 0x8000 - size);
        assert_int_equal(peek(0x8000 - size, size), cut(c->gpr[R_RBX], size));
        assert_int_equal(peek(0x8000 - size - 1, 1), 0xcc);
        assert_int_equal(peek(0x8000, 1), 0xcc);
        assert_int_equal(c->rip, 0x1000 + n + 1);
        uint64_t before = c->gpr[R_RSP];
        b[n] = 0x54; /* push (e/r)sp: the value before */
        assert_int_equal(exec_bytes(b, n + 1), SOFT_OK);
        assert_int_equal(peek(0x8000 - 2 * size, size), cut(before, size));
        b[n] = 0x6a; /* push -2 */
        b[n + 1] = 0xfe;
        assert_int_equal(exec_bytes(b, n + 2), SOFT_OK);
        assert_int_equal(peek(0x8000 - 3 * size, size), cut(-2ull, size));
        assert_int_equal(sp(), 0x8000 - 3 * size);
        b[n] = 0x59; /* pop (e/r)cx */
        uint64_t rcx = c->gpr[R_RCX];
        assert_int_equal(exec_bytes(b, n + 1), SOFT_OK);
        assert_int_equal(c->gpr[R_RCX], size == 2 ? (rcx & ~0xffffull) | 0xfffe : cut(-2ull, size));
        assert_int_equal(sp(), 0x8000 - 2 * size);
        poke(0x8000 - 2 * size, 0x123456789abcdef0, size);
        before = c->gpr[R_RSP] + size;
        b[n] = 0x5c; /* pop (e/r)sp: the value popped */
        assert_int_equal(exec_bytes(b, n + 1), SOFT_OK);
        uint64_t want = cut(0x123456789abcdef0, size);
        if (size == 2) want |= before & ~0xffffull;
        assert_int_equal(c->gpr[R_RSP], want);
    }
}

/* A 16-bit SP wraps inside its 64 KiB and leaves the upper half of ESP alone. */
static void test_sp_wrap(void **state)
{
    (void)state;
    setup_mode(4, 2);
    rig.cpu->gpr[R_RSP] = 0xabcd0002;
    assert_int_equal(EXEC(0x53), SOFT_OK);
    assert_int_equal(rig.cpu->gpr[R_RSP], 0xabcdfffe);
    assert_int_equal(peek(0xfffe, 2), 0x3333); /* the item itself runs on to the next bytes */
    rig.cpu->seg[SEG_SS].limit = 0xffff;
    rig.cpu->gpr[R_RSP] = 0xabcd0002;
    assert_int_equal(EXEC(0x53), SOFT_FAULT);
    assert_fault(EXC_SS, 0);
    assert_int_equal(rig.cpu->gpr[R_RSP], 0xabcd0002);
    rig.cpu->gpr[R_RSP] = 0xabcd0000;
    assert_int_equal(EXEC(0x53), SOFT_OK);
    assert_int_equal(rig.cpu->gpr[R_RSP], 0xabcdfffc);
}

/* Nothing moves when the access faults. */
static void test_faults(void **state)
{
    (void)state;
    setup_mode(8, 8);
    struct soft_cpu *c = rig.cpu;
    *rig_leaf(STACK + 0x7000, 12) = 0;
    set_sp(0x8000);
    static const uint8_t pushes[][6] = {
        {1, 0x53}, {2, 0x6a, 1}, {5, 0xe8, 0, 0, 0, 0}, {2, 0xff, 0xd3}, {4, 0xc8, 0, 0, 0}};
    c->gpr[R_RBX] = 0x7777;
    for (unsigned i = 0; i < 5; i++) {
        uint64_t rbp = c->gpr[R_RBP];
        assert_int_equal(exec_bytes(pushes[i] + 1, pushes[i][0]), SOFT_FAULT);
        assert_int_equal(c->exc.cr2, STACK + 0x7ff8);
        assert_fault(EXC_PF, PF_W);
        assert_int_equal(sp(), 0x8000);
        assert_int_equal(c->gpr[R_RBP], rbp);
        assert_int_equal(c->rip, 0x1000);
    }
    set_sp(0x7ff8);
    static const uint8_t pops[][4] = {{1, 0x5b}, {2, 0x8f, 0x03}, {1, 0xc3}, {3, 0xc2, 8, 0}};
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(exec_bytes(pops[i] + 1, pops[i][0]), SOFT_FAULT);
        assert_fault(EXC_PF, 0);
        assert_int_equal(sp(), 0x7ff8);
        assert_int_equal(c->rip, 0x1000);
        assert_int_equal(c->gpr[R_RBX], 0x7777);
    }
    set_sp(0x9000);
    c->gpr[R_RBX] = 0x99990000; /* pop [rbx], with nothing mapped there */
    assert_int_equal(EXEC(0x8f, 0x03), SOFT_FAULT);
    assert_int_equal(c->exc.cr2, 0x99990000);
    assert_fault(EXC_PF, PF_W);
    assert_int_equal(sp(), 0x9000);
    c->gpr[R_RSP] = 0x800000000000; /* not canonical: #SS */
    assert_int_equal(EXEC(0x5b), SOFT_FAULT);
    assert_fault(EXC_SS, 0);
    set_sp(0x9000);
    poke(0x9000, 0x8000000000000000, 8); /* RET to nowhere: #GP, still before the RET */
    assert_int_equal(EXEC(0xc3), SOFT_FAULT);
    assert_fault(EXC_GP, 0);
    assert_int_equal(sp(), 0x9000);
    c->gpr[R_RBX] = 1ull << 62;
    assert_int_equal(EXEC(0xff, 0xd3), SOFT_FAULT); /* CALL to nowhere pushes nothing */
    assert_fault(EXC_GP, 0);
    assert_int_equal(sp(), 0x9000);
    assert_int_equal(peek(0x8ff8, 8), 0xcccccccccccccccc);
}

static void test_memory_operands(void **state)
{
    (void)state;
    setup_mode(8, 8);
    struct soft_cpu *c = rig.cpu;
    uint64_t v = 0x0102030405060708;
    set_sp(0x8000);
    poke(0x8010, v, 8);
    assert_int_equal(EXEC(0xff, 0x74, 0x24, 0x10), SOFT_OK); /* push [rsp+16]: old RSP */
    assert_int_equal(peek(0x7ff8, 8), v);
    assert_int_equal(EXEC(0x8f, 0x44, 0x24, 0x20), SOFT_OK); /* pop [rsp+32]: new RSP */
    assert_int_equal(peek(0x8020, 8), v);
    assert_int_equal(sp(), 0x8000);
    c->gpr[R_RBX] = STACK + 0x8ffc; /* operands across pages */
    poke(0x8ffc, 0x1122334455667788, 8);
    assert_int_equal(EXEC(0xff, 0x33), SOFT_OK);
    assert_int_equal(peek(0x7ff8, 8), 0x1122334455667788);
    poke(0x8ffc, 0x4000, 8);
    assert_int_equal(EXEC(0xff, 0x13), SOFT_OK); /* call [rbx] */
    assert_int_equal(c->rip, 0x4000);
    assert_int_equal(peek(0x7ff0, 8), 0x1002);
    assert_int_equal(EXEC(0xff, 0x23), SOFT_OK); /* jmp [rbx] */
    assert_int_equal(c->rip, 0x4000);
}

static void test_pusha(void **state)
{
    (void)state;
    struct soft_cpu *c = rig.cpu;
    for (unsigned mi = 0; mi < 4; mi++)
        for (unsigned prefix = 0; prefix < 2; prefix++) {
            unsigned code = modes[mi].code, size = prefix ? 6 - code : code;
            uint8_t b[2] = {0x66};
            setup_mode(code, modes[mi].stack);
            set_sp(0x8000);
            b[prefix] = 0x60;
            assert_int_equal(exec_bytes(b, prefix + 1), SOFT_OK);
            assert_int_equal(sp(), 0x8000 - 8 * size);
            for (unsigned i = 0; i < 8; i++)
                assert_int_equal(peek(0x8000 - (i + 1) * size, size), i == R_RSP ? 0x8000 : cut(c->gpr[i], size));
            uint64_t old[8];
            for (unsigned i = 0; i < 8; i++) {
                poke(0x8000 - (i + 1) * size, 0xdead0000 + i * 3, size);
                old[i] = c->gpr[i];
            }
            b[prefix] = 0x61;
            assert_int_equal(exec_bytes(b, prefix + 1), SOFT_OK);
            for (unsigned i = 0; i < 8; i++) {
                uint64_t want = cut(0xdead0000 + i * 3, size) | (size == 2 ? old[i] & ~0xffffull : 0);
                assert_int_equal(c->gpr[i], i == R_RSP ? 0x8000 : want);
            }
            /* The fifth push faults: none of the others is seen. */
            *rig_leaf(STACK + 0x7000, 12) = 0;
            soft_tlb_flush_all(c);
            set_sp(0x8000 + 4 * size);
            poke(0x8000, 0xaaaa, 2);
            b[prefix] = 0x60;
            assert_int_equal(exec_bytes(b, prefix + 1), SOFT_FAULT);
            assert_fault(EXC_PF, PF_W);
            assert_int_equal(sp(), 0x8000 + 4 * size);
            assert_int_equal(peek(0x8000, 2), 0xaaaa);
        }
}

/* ENTER as the manual's pseudo code does it, on a copy of the stack. */
static void model_enter(unsigned size, unsigned level, unsigned frame_size, uint64_t *model_sp, uint64_t *model_bp,
                        uint8_t *mem)
{
    uint64_t s = *model_sp, bp = *model_bp;
    s -= size;
    memcpy(mem + s, &bp, size);
    uint64_t frame = s;
    if (level > 0) {
        for (unsigned i = 1; i < level; i++) {
            bp -= size;
            s -= size;
            memmove(mem + s, mem + bp, size);
        }
        s -= size;
        memcpy(mem + s, &frame, size);
    }
    *model_bp = frame;
    *model_sp = s - frame_size;
}

static void test_enter_leave(void **state)
{
    (void)state;
    static uint8_t mem[16 * 4096];
    struct soft_cpu *c = rig.cpu;
    FOR_MODES for (unsigned level = 0; level < 34; level++) for (unsigned overlap = 0; overlap < 2; overlap++)
    {
        unsigned code = modes[mi].code, size = code;
        setup_mode(code, modes[mi].stack);
        for (unsigned i = 0; i < 16 * 4096; i += 2) poke(i, rig_random(), 2);
        memcpy(mem, rig_ram(STACK + 0x200000), sizeof(mem));
        if (code == 8) /* there the frame pointers are whole addresses: keep them apart from the model's offsets */
            memset(mem, 0, sizeof(mem)), memset(rig_ram(STACK + 0x200000), 0, sizeof(mem));
        uint64_t s = 0x8000 + 6, bp = overlap ? s + 3 * size : 0xa000;
        set_sp(s);
        c->gpr[R_RBP] = code == 8 ? STACK + bp : bp;
        assert_int_equal(EXEC(0xc8, 0x24, 0x01, (uint8_t)level), SOFT_OK);
        if (code == 8) {
            assert_int_equal(sp(), s - size - (level & 31) * size - 0x124);
            assert_int_equal(c->gpr[R_RBP], STACK + s - size);
            assert_int_equal(peek(s - size, 8), STACK + bp);
            if (level & 31) assert_int_equal(peek(s - size - (level & 31) * size, 8), STACK + s - size);
        } else {
            model_enter(size, level & 31, 0x124, &s, &bp, mem);
            assert_int_equal(sp(), s);
            assert_int_equal(c->gpr[R_RBP], bp);
            assert_memory_equal(mem, rig_ram(STACK + 0x200000), sizeof(mem));
        }
        assert_int_equal(EXEC(0xc9), SOFT_OK);
        assert_int_equal(sp(), 0x8006);
    }
}

/* The whole frame must be there, also the part that ENTER doesn't write. */
static void test_enter_fault(void **state)
{
    (void)state;
    setup_mode(8, 8);
    *rig_leaf(STACK + 0x7000, 12) = 0;
    set_sp(0x8800);
    rig.cpu->gpr[R_RBP] = STACK + 0x9000;
    assert_int_equal(EXEC(0xc8, 0x00, 0x04, 0), SOFT_OK);
    set_sp(0x8800);
    assert_int_equal(EXEC(0xc8, 0x00, 0x09, 0), SOFT_FAULT);
    assert_fault(EXC_PF, PF_W);
    assert_int_equal(sp(), 0x8800);
    assert_int_equal(EXEC(0xc9), SOFT_OK); /* RBP is as the first ENTER left it */
    assert_int_equal(sp(), 0x8800);
    assert_int_equal(rig.cpu->gpr[R_RBP], STACK + 0x9000);
}

static void test_call_ret(void **state)
{
    (void)state;
    struct soft_cpu *c = rig.cpu;
    FOR_MODES
    {
        unsigned code = modes[mi].code;
        setup_mode(code, modes[mi].stack);
        set_sp(0x8000);
        if (code == 2)
            assert_int_equal(EXEC(0xe8, 0x10, 0x20), SOFT_OK);
        else
            assert_int_equal(EXEC(0xe8, 0x10, 0x20, 0, 0), SOFT_OK);
        unsigned len = code == 2 ? 3 : 5;
        assert_int_equal(c->rip, 0x1000 + len + 0x2010);
        assert_int_equal(sp(), 0x8000 - code);
        assert_int_equal(peek(0x8000 - code, code), 0x1000 + len);
        assert_int_equal(EXEC(0xc2, 0x34, 0x02), SOFT_OK);
        assert_int_equal(c->rip, 0x1000 + len);
        assert_int_equal(sp(), 0x8234);
        c->gpr[R_RAX] = 0x5678;
        assert_int_equal(EXEC(0xff, 0xd0), SOFT_OK);
        assert_int_equal(c->rip, 0x5678);
        assert_int_equal(EXEC(0xc3), SOFT_OK);
        assert_int_equal(c->rip, 0x1002);
        assert_int_equal(sp(), 0x8234);
    }
    /* A 16-bit call in 32-bit code truncates EIP and pushes a word. */
    setup_mode(4, 4);
    set_sp(0x8000);
    c->gpr[R_RAX] = 0x12345678;
    assert_int_equal(EXEC(0x66, 0xff, 0xd0), SOFT_OK);
    assert_int_equal(c->rip, 0x5678);
    assert_int_equal(sp(), 0x7ffe);
    /* Far forms belong to others. */
    assert_int_equal(EXEC(0xcb), SOFT_NOT_MINE);
    assert_int_equal(EXEC(0xff, 0x18), SOFT_NOT_MINE);
    assert_int_equal(EXEC(0x9a, 0, 0, 0, 0, 8, 0), SOFT_NOT_MINE);
    assert_int_equal(EXEC(0x1e), SOFT_NOT_MINE);       /* push ds */
    assert_int_equal(EXEC(0x0f, 0xa1), SOFT_NOT_MINE); /* pop fs */
}

#define T(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_push_pop), T(test_sp_wrap),     T(test_faults),      T(test_memory_operands),
        T(test_pusha),    T(test_enter_leave), T(test_enter_fault), T(test_call_ret),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
