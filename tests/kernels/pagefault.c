// #PF: error code, CR2, RIP, for every kind of access and every reason, at every level of the page tables.
#include "kernel.h"

CODE(load, "mov (%rbx), %rax");
CODE(load_byte, "mov (%rbx), %al");
CODE(store, "mov %rax, (%rbx)");
CODE(rmw, "add %rax, (%rbx)");
CODE(xchg_, "xchg %rax, (%rbx)");
CODE(cmpxchg_, "cmpxchg %rcx, (%rbx)");
CODE(push_, "push %rax");
CODE(pop_mem, "pop (%rbx)");
CODE(call_, "call *%rbx");
CODE(jump, "jmp *%rbx");
CODE(sse_load, "movups (%rbx), %xmm0");
CODE(sse_store, "movups %xmm0, (%rbx)");
CODE(x87_store, "fstpt (%rbx)");
CODE(adc_, "adc %rcx, (%rbx)");
CODE(inc_, "incq (%rbx)");
CODE(shift, "shlq %cl, (%rbx)");
CODE(rotate, "rolq $3, (%rbx)");
CODE(bit_test, "btsq $5, (%rbx)");
CODE(not_, "notq (%rbx)");
CODE(cmov, "cmovc (%rbx), %rax");
CODE(compare, "cmp %rcx, (%rbx)");
CODE(load_adc, "mov (%rbx), %rax\n adc %rcx, %rax");
CODE(load_add, "mov (%rbx), %rax\n add %rcx, %rax");
CODE(add_load_add, "add %rcx, %rdx\n add_load: mov (%rbx), %rax\n add %rcx, %rax");
LABEL(add_load);
CODE(two_loads, "mov (%rbx), %rax\n cmp %rdx, %rcx\n second_load: mov 8(%rbx), %rsi");
LABEL(second_load);

static struct ctx c;
static u64 page;
static bool pushes_rf;   /* faults push RF as 1 (SDM vol. 3 17.3.1.1) */
static bool reads_first; /* this CPU faults on the read of an instruction that reads and writes, and says so */

/* RFLAGS in the pushed image. The soft engine promises all of it, but for arithmetic flags that nobody reads any more
 * because the faulting instruction, or the ones that follow it in its block, overwrite all of them
 * (docs/design/0002-soft-engine.md, "What is not precise"). Here that is: */
static u64 loose_flags(const u8 *code)
{
    bool overwritten = code == rmw || code == cmpxchg_ || code == compare || code == load_add;
    return overwritten ? FL_ARITH : 0;
}

static const u64 flag_patterns[] = {2, 2 | FL_ARITH | FL_DF | FL_IOPL | FL_AC | FL_ID, 2 | FL_CF,
                                    2 | FL_OF | FL_ZF | FL_AF};

static bool reads_and_writes(const u8 *code)
{
    return code == rmw || code == xchg_ || code == cmpxchg_ || code == adc_ || code == inc_ || code == shift ||
           code == rotate || code == bit_test || code == not_;
}

/* One access at `va` must fault with `error` and this CR2, whatever the flags. */
static void faults(u8 *code, bool from_user, u64 va, u64 error, u64 want_cr2)
{
    if (reads_first && reads_and_writes(code)) return;
    for (unsigned i = 0; i < sizeof flag_patterns / sizeof *flag_patterns; i++) {
        from_user ? ctx_user(&c, code) : ctx_kernel(&c, code);
        c.gpr[RBX] = va;
        c.rflags = flag_patterns[i];
        if (!FAULTS_BUT_FLAGS(&c, PF, error | (from_user ? PF_U : 0), loose_flags(code)) || !CHECK_EQ(c.cr2, want_cr2))
            print("    va %lx, user %u, flags %lx, code at %p\n", va, from_user, flag_patterns[i], (void *)code);
    }
}

static void completes(u8 *code, bool from_user, u64 va)
{
    from_user ? ctx_user(&c, code) : ctx_kernel(&c, code);
    c.gpr[RBX] = va;
    if (!COMPLETES(&c)) print("    va %lx, user %u\n", va, from_user);
}

static void every_access(u64 va, bool from_user, u64 why, bool only_writes)
{
    if (!only_writes) {
        faults(load, from_user, va, why, va);
        faults(load_byte, from_user, va, why, va);
        faults(sse_load, from_user, va, why, va);
    }
    /* An instruction that reads and writes reports a write (SDM vol. 3 4.7). */
    faults(store, from_user, va, why | PF_W, va);
    faults(xchg_, from_user, va, why | PF_W, va);
    faults(rmw, from_user, va, why | PF_W, va);
    faults(cmpxchg_, from_user, va, why | PF_W, va);
    faults(sse_store, from_user, va, why | PF_W, va);
    faults(x87_store, from_user, va, why | PF_W, va);
    faults(pop_mem, from_user, va, why | PF_W, va); /* RSP is not changed */
}

/* Takes `bit` away at each level in turn. */
static void each_level(u64 bit, u64 error, bool from_user, bool only_writes)
{
    for (unsigned level = 1; level <= 3; level++) {
        u64 *e = pte_of(TEST_VA, level), old = *e;
        *e = old & ~bit;
        invlpg(TEST_VA);
        every_access(TEST_VA + 0x123, from_user, error, only_writes);
        *e = old;
        invlpg(TEST_VA);
        completes(store, from_user, TEST_VA + 0x123);
    }
}

/* An operand over a page boundary: CR2 is the first byte that can't be reached, and nothing is written. */
static void crossing(void)
{
    u64 *data = phys(page), edge = TEST_VA + PAGE;
    *pte_of(edge, 1) = 0;
    invlpg(edge);
    data[511] = 0x1122334455667788ul;
    for (int user_too = 0; user_too < 2; user_too++) {
        faults(load, user_too, edge - 3, 0, edge);
        faults(store, user_too, edge - 3, PF_W, edge);
        faults(rmw, user_too, edge - 1, PF_W, edge);
        faults(sse_store, user_too, edge - 9, PF_W, edge);
        faults(pop_mem, user_too, edge - 5, PF_W, edge);
    }
    bool whole = !left_out(TCG | LAB, "a store over a page border that faults writes nothing");
    if (whole) CHECK_EQ(data[511], 0x1122334455667788ul);
    data[511] = 0x1122334455667788ul;
    /* Two accesses that could share a check: only the second faults, with the flags of the CMP between them. */
    ctx_user(&c, two_loads);
    c.gpr[RBX] = edge - 8;
    CHECK_EQ(ctx_run(&c), PF);
    CHECK_EQ(c.rip, user(second_load));
    CHECK_EQ(c.cr2, edge);
    CHECK_EQ(c.gpr[RAX], data[511]);
    CHECK_EQ(c.rflags | (pushes_rf ? 0 : FL_RF), 2 | FL_RF | FL_CF | FL_SF | FL_AF | FL_PF); /* 0x1111... - 0x1212... */
    map_page(edge, page + PAGE, PTE_W | PTE_U);
    map_page(TEST_VA, page, PTE_U); /* now the first page can't be written */
    faults(store, true, edge - 3, PF_P | PF_W, edge - 3);
    if (whole) CHECK_EQ(data[511], 0x1122334455667788ul);
    CHECK_EQ(data[512], 0);
    map_page(TEST_VA, page, PTE_W | PTE_U);
}

/* Whatever the pushed flags are: code that faults, is given its page and goes on ends like code that never faulted. */
static void restarts(u8 *code, u64 rflags)
{
    u64 *data = phys(page), value = 0xfedcba9876543210ul;
    *data = value;
    ctx_user(&c, code);
    c.gpr[RBX] = TEST_VA;
    c.rflags = rflags;
    CHECK_EQ(ctx_run(&c), END);
    struct ctx want = c;
    u64 want_data = *data;

    *data = value;
    *pte_of(TEST_VA, 1) = 0;
    invlpg(TEST_VA);
    ctx_user(&c, code);
    c.gpr[RBX] = TEST_VA;
    c.rflags = rflags;
    CHECK_EQ(ctx_run(&c), PF);
    CHECK_EQ(*data, value);
    map_page(TEST_VA, page, PTE_W | PTE_U);
    bool ok = CHECK_EQ(ctx_run(&c), END) && CHECK_EQ(c.rflags, want.rflags) && CHECK_EQ(c.rip, want.rip);
    ok = CHECK_EQ(*data, want_data) && ok;
    for (unsigned i = 0; i < 16; i++) ok = CHECK_EQ(c.gpr[i], want.gpr[i]) && ok;
    if (!ok) print("    flags %lx, code at %p\n", rflags, (void *)code);
}

static void flags(void)
{
    u8 *const all[] = {load, store,  rmw,      xchg_, cmpxchg_, pop_mem,  adc_,     inc_,        shift,
                       not_, rotate, bit_test, cmov,  compare,  load_adc, load_add, add_load_add};
    u8 *const keep[] = {adc_, inc_, shift, rotate, bit_test, not_, load_adc};
    for (unsigned p = 0; p < sizeof flag_patterns / sizeof *flag_patterns; p++)
        for (unsigned i = 0; i < sizeof all / sizeof *all; i++) restarts(all[i], flag_patterns[p]);
    *pte_of(TEST_VA, 1) = 0;
    invlpg(TEST_VA);
    for (unsigned i = 0; i < sizeof keep / sizeof *keep; i++) {
        bool reads_only = keep[i] == load_adc;
        for (int u = 0; u < 2; u++) faults(keep[i], u, TEST_VA + 8, reads_only ? 0 : PF_W, TEST_VA + 8);
    }
    for (int u = 0; u < 2; u++) {
        faults(cmov, u, TEST_VA, 0, TEST_VA);
        faults(compare, u, TEST_VA, 0, TEST_VA);
        faults(load_add, u, TEST_VA, 0, TEST_VA);
    }
    /* The ADD in front is done, once; the other bits of RFLAGS are exact. */
    ctx_user(&c, add_load_add);
    c.gpr[RBX] = TEST_VA;
    c.rflags = flag_patterns[1];
    u64 sum = c.gpr[RDX] + c.gpr[RCX];
    CHECK_EQ(ctx_run(&c), PF);
    CHECK_EQ(c.rip, user(add_load));
    CHECK_EQ(c.gpr[RDX], sum);
    CHECK_EQ((c.rflags | (pushes_rf ? 0 : FL_RF)) & ~FL_ARITH, (flag_patterns[1] & ~FL_ARITH) | FL_RF);
    map_page(TEST_VA, page, PTE_W | PTE_U);
}

/* Fetches: RIP is the target, CR2 the byte that can't be fetched. */
static void fetches(void)
{
    u64 nx_bit = PF_I; /* EFER.NXE is on, so fetches are told apart */
    u8 *code = phys(page);
    for (int u = 0; u < 2; u++) {
        u ? ctx_user(&c, jump) : ctx_kernel(&c, jump);
        c.gpr[RBX] = TEST_VA + 0x100000;
        CHECK_EQ(ctx_run(&c), PF);
        CHECK_EQ(c.error, nx_bit | (u ? PF_U : 0));
        CHECK_EQ(c.cr2, TEST_VA + 0x100000);
        CHECK_EQ(c.rip, TEST_VA + 0x100000);
        /* An instruction that begins in a good page and ends in a missing one: RIP is its begin. */
        memcpy(code + 0xffd, "\x48\xb8\x00", 3); /* mov $imm64, %rax */
        *pte_of(TEST_VA + PAGE, 1) = 0;
        invlpg(TEST_VA + PAGE);
        u ? ctx_user(&c, jump) : ctx_kernel(&c, jump);
        c.gpr[RBX] = TEST_VA + 0xffd;
        CHECK_EQ(ctx_run(&c), PF);
        CHECK_EQ(c.error, nx_bit | (u ? PF_U : 0));
        CHECK_EQ(c.cr2, TEST_VA + PAGE);
        CHECK_EQ(c.rip, TEST_VA + 0xffd);
        map_page(TEST_VA + PAGE, page + PAGE, PTE_W | PTE_U);
    }
    /* A call to a missing page pushes its return address first. */
    ctx_user(&c, call_);
    c.gpr[RBX] = TEST_VA + 0x100000;
    u64 rsp = c.gpr[RSP];
    CHECK_EQ(ctx_run(&c), PF);
    CHECK_EQ(c.gpr[RSP], rsp - 8);
    /* A push to a missing stack: RSP as before. */
    ctx_user(&c, push_);
    c.gpr[RSP] = TEST_VA + 0x100008;
    FAULTS(&c, PF, PF_W | PF_U);
    CHECK_EQ(c.cr2, TEST_VA + 0x100000);
}

int main(void)
{
    pushes_rf = !left_out(TCG | LAB, "RF in what faults push");
    reads_first = left_out(TCG | LAB, "faults of instructions that read and write");
    set_cr4(cr4() | CR4_OSFXSR);
    __asm__ volatile("fninit; fld1");
    page = (u64)pages_alloc(2, PAGE);
    map_page(TEST_VA, page, PTE_W | PTE_U);
    map_page(TEST_VA + PAGE, page + PAGE, PTE_W | PTE_U);
    each_level(PTE_P, 0, false, false);
    each_level(PTE_P, 0, true, false);
    each_level(PTE_W, PF_P, false, true); /* CR0.WP is on */
    each_level(PTE_W, PF_P, true, true);
    each_level(PTE_U, PF_P, true, false);
    crossing();
    flags();
    fetches();
    return done();
}
