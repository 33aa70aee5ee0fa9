// REP string instructions: page faults in the middle leave exact registers and restart; timer interrupts in the middle
// lose nothing; DF, address sizes, overlap, zero counts, REPE/REPNE ends.
#include "kernel.h"

#define TIMER 0x40
CODE(movsb, "rep movsb");
CODE(movsq, "rep movsq");
CODE(stosb, "rep stosb");
CODE(stosl, "rep stosl");
CODE(lodsw, "rep lodsw");
CODE(cmpsb, "repe cmpsb");
CODE(scasb, "repne scasb");
CODE(scasq, "repe scasq");
CODE(movsb_back, "std; rep movsb; cld");
CODE(movsb_a32, "addr32 rep movsb");
CODE(stos_big, "sti; rep stosb; cli");
CODE(movs_big, "sti; rep movsb; cli");

static struct ctx c;
static u8 *frame; /* 4 frames behind TEST_VA.. */

static void prepare(u8 *code, u64 rsi, u64 rdi, u64 count)
{
    ctx_kernel(&c, code);
    c.gpr[RSI] = rsi, c.gpr[RDI] = rdi, c.gpr[RCX] = count;
}

static void unmap(unsigned page)
{
    *pte_of(TEST_VA + page * PAGE, 1) = 0;
    invlpg(TEST_VA + page * PAGE);
}

static void map(unsigned page)
{
    map_page(TEST_VA + page * PAGE, (u64)frame + page * PAGE, PTE_W | PTE_U);
}

static void faulting(void)
{
    for (int u = 0; u < 2; u++) {
        /* Destination's second page is missing: 100 bytes fit. */
        for (unsigned i = 0; i < 4096; i++) frame[i] = (u8)(i * 7), frame[3 * PAGE + i] = 0;
        unmap(2);
        prepare(movsb, TEST_VA, TEST_VA + 2 * PAGE - 100, 300);
        if (u) {
            struct ctx k = c;
            ctx_user(&c, movsb);
            c.gpr[RSI] = k.gpr[RSI], c.gpr[RDI] = k.gpr[RDI], c.gpr[RCX] = 300;
        }
        u64 start = c.rip;
        CHECK_EQ(ctx_run(&c), PF);
        CHECK_EQ(c.rip, start);
        CHECK_EQ(c.error, PF_W | (u ? PF_U : 0));
        CHECK_EQ(c.cr2, TEST_VA + 2 * PAGE);
        CHECK_EQ(c.gpr[RCX], 200);
        CHECK_EQ(c.gpr[RSI], TEST_VA + 100);
        CHECK_EQ(c.gpr[RDI], TEST_VA + 2 * PAGE);
        CHECK(memcmp(frame + 2 * PAGE - 100, frame, 100) == 0);
        map(2);
        CHECK_EQ(ctx_run(&c), END); /* restarts where it was */
        CHECK_EQ(c.gpr[RCX], 0);
        CHECK(memcmp(frame + 2 * PAGE - 100, frame, 300) == 0);

        /* Source missing. */
        unmap(1);
        prepare(movsq, TEST_VA + PAGE - 64, TEST_VA + 3 * PAGE, 20);
        CHECK_EQ(ctx_run(&c), PF);
        CHECK_EQ(c.cr2, TEST_VA + PAGE);
        CHECK_EQ(c.error, 0);
        CHECK_EQ(c.gpr[RCX], 12);
        CHECK_EQ(c.gpr[RDI], TEST_VA + 3 * PAGE + 64);
        map(1);
        CHECK_EQ(ctx_run(&c), END);
        CHECK(memcmp(frame + PAGE - 64, frame + 3 * PAGE, 160) == 0);

        /* An item over the boundary: it is not done at all. */
        unmap(2);
        prepare(stosl, 0, TEST_VA + 2 * PAGE - 10, 10);
        CHECK_EQ(ctx_run(&c), PF);
        CHECK_EQ(c.cr2, TEST_VA + 2 * PAGE);
        CHECK_EQ(c.gpr[RCX], 8);
        CHECK_EQ(c.gpr[RDI], TEST_VA + 2 * PAGE - 2);
        map(2);
        CHECK_EQ(ctx_run(&c), END);
    }
    unmap(1); /* downwards */
    prepare(movsb_back, TEST_VA + 3 * PAGE + 500, TEST_VA + 2 * PAGE + 49, 100);
    CHECK_EQ(ctx_run(&c), PF);
    CHECK_EQ(c.rip, movsb_back + 1);
    CHECK_EQ(c.cr2, TEST_VA + 2 * PAGE - 1);
    CHECK_EQ(c.gpr[RCX], 50);
    CHECK_EQ(c.gpr[RDI], TEST_VA + 2 * PAGE - 1);
    CHECK_EQ(c.gpr[RSI], TEST_VA + 3 * PAGE + 450);
    CHECK(c.rflags & FL_DF);
    map(1);
    CHECK_EQ(ctx_run(&c), END);
    prepare(stosb, 0, TEST_VA + 0x10000000, 0); /* nothing to do: no access */
    COMPLETES(&c);
    prepare(lodsw, TEST_VA + 0x10000000, 0, 0);
    COMPLETES(&c);
}

static void semantics(void)
{
    u8 *p = (u8 *)TEST_VA;
    memset(p, 0, PAGE);
    memcpy(p, "abcdefgh", 8);
    prepare(movsb, TEST_VA, TEST_VA + 1, 100); /* overlapping: spreads the first byte */
    COMPLETES(&c);
    CHECK_EQ(p[100], 'a');
    for (unsigned i = 0; i < 100; i++) p[i] = (u8)i;
    prepare(movsb, TEST_VA, TEST_VA + 3, 50); /* a pattern of 3 */
    COMPLETES(&c);
    CHECK_EQ(p[51], 51 % 3);
    prepare(movsq, TEST_VA, TEST_VA + 4, 8); /* items overlap by half */
    COMPLETES(&c);
    memcpy(p, "hello, world", 13);
    prepare(scasb, 0, TEST_VA, 100);
    c.gpr[RAX] = 'w';
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RDI], TEST_VA + 8);
    CHECK_EQ(c.gpr[RCX], 92);
    CHECK(c.rflags & FL_ZF);
    memcpy(p + 200, "hello, there", 13);
    prepare(cmpsb, TEST_VA, TEST_VA + 200, 13);
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RSI], TEST_VA + 8);
    CHECK_EQ(c.gpr[RCX], 5);
    CHECK_EQ(c.rflags & (FL_ZF | FL_CF), 0);   /* 'w' > 't' */
    prepare(cmpsb, TEST_VA, TEST_VA + 200, 0); /* flags are untouched */
    c.rflags |= FL_ZF | FL_CF | FL_OF;
    COMPLETES(&c);
    CHECK_EQ(c.rflags & FL_ARITH, FL_ZF | FL_CF | FL_OF);
    memset(p, 0x77, 800);
    prepare(scasq, 0, TEST_VA, 101);
    c.gpr[RAX] = 0x7777777777777777ul;
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RCX], 0);
    CHECK(!(c.rflags & FL_ZF));
    prepare(lodsw, TEST_VA, 0, 3);
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RAX] & 0xffff, 0x7777);
    CHECK_EQ(c.gpr[RSI], TEST_VA + 6);
    /* 32-bit addresses: upper halves are ignored on the way in and zero on the way out. */
    prepare(movsb_a32, 0xabcd00000000ul | TEST_VA, 0xffff00000000ul | (TEST_VA + 2048), 0x100000000ul + 16);
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RCX], 0);
    CHECK_EQ(c.gpr[RSI], TEST_VA + 16);
    CHECK_EQ(c.gpr[RDI], TEST_VA + 2064);
    CHECK_EQ(p[2063], 0x77);
}

CODE(cmpsb_back, "std; repe cmpsb; cld");
CODE(stosq, "rep stosq");

static u8 model[4 * PAGE];

/* Four pages that follow each other in memory, or do not: who does several at a time must look. */
static void over_pages(void)
{
    static const u8 order[4][4] = {{0, 1, 2, 3}, {0, 1, 3, 2}, {3, 2, 1, 0}, {1, 2, 2, 3}};
    u8 *p = (u8 *)TEST_VA;
    for (unsigned o = 0; o < 4; o++) {
        for (unsigned i = 0; i < 4; i++)
            map_page(TEST_VA + i * PAGE, (u64)frame + order[o][i] * PAGE, PTE_W | PTE_U), invlpg(TEST_VA + i * PAGE);
        for (unsigned warm = 0; warm < 2; warm++) {
            for (unsigned i = 0; i < 4 * PAGE; i++) p[i] = (u8)(i * 13 + i / PAGE + o);
            for (unsigned i = 0; i < 4 * PAGE; i++) model[i] = frame[i];
            for (unsigned i = 0; i < 2 * PAGE; i++) /* to between 1 and 3, from the end of 0 on */
                model[order[o][(PAGE + 5 + i) / PAGE] * PAGE + (5 + i) % PAGE] =
                    model[order[o][(100 + i) / PAGE] * PAGE + (100 + i) % PAGE];
            prepare(movsb, TEST_VA + 100, TEST_VA + PAGE + 5, 2 * PAGE);
            COMPLETES(&c);
            CHECK(memcmp(frame, model, 4 * PAGE) == 0);
            for (unsigned i = 2 * PAGE; i-- > 0;) /* downwards */
                model[order[o][(PAGE + 9 + i) / PAGE] * PAGE + (9 + i) % PAGE] =
                    model[order[o][(50 + i) / PAGE] * PAGE + (50 + i) % PAGE];
            prepare(movsb_back, TEST_VA + 50 + 2 * PAGE - 1, TEST_VA + 9 + 3 * PAGE - 1, 2 * PAGE);
            COMPLETES(&c);
            CHECK(memcmp(frame, model, 4 * PAGE) == 0);
            for (unsigned i = 0; i < 3 * PAGE; i++)
                model[order[o][(PAGE - 3 + i) / PAGE] * PAGE + (PAGE - 3 + i) % PAGE] = 0x5a;
            prepare(stosq, 0, TEST_VA + PAGE - 3, 3 * PAGE / 8); /* items lie across the borders */
            c.gpr[RAX] = 0x5a5a5a5a5a5a5a5aul;
            COMPLETES(&c);
            CHECK_EQ(c.gpr[RDI], TEST_VA + 4 * PAGE - 3);
            CHECK(memcmp(frame, model, 4 * PAGE) == 0);
            p[2 * PAGE + 77] = 1;
            prepare(cmpsb_back, (u64)p + 4 * PAGE - 4, (u64)p + 4 * PAGE - 5, 3 * PAGE - 8);
            COMPLETES(&c);
            CHECK_EQ(c.gpr[RDI], TEST_VA + 2 * PAGE + 76);
        }
    }
    for (unsigned i = 0; i < 4; i++) map(i), invlpg(TEST_VA + i * PAGE);
}

/* A page that must not be written, and one with code that was executed, behind pages that may be. */
static void stopped(void)
{
    u8 *p = (u8 *)TEST_VA;
    memset(p, 0, 4 * PAGE);
    map_page(TEST_VA + 2 * PAGE, (u64)frame + 2 * PAGE, PTE_U); /* read-only */
    invlpg(TEST_VA + 2 * PAGE);
    (void)*(volatile u8 *)(p + 2 * PAGE);
    prepare(stosb, 0, TEST_VA + 5, 4 * PAGE - 5);
    c.gpr[RAX] = 0x11;
    CHECK_EQ(ctx_run(&c), PF);
    CHECK_EQ(c.cr2, TEST_VA + 2 * PAGE);
    CHECK_EQ(c.gpr[RCX], 2 * PAGE);
    CHECK(p[2 * PAGE - 1] == 0x11 && p[2 * PAGE] == 0);
    map(2), invlpg(TEST_VA + 2 * PAGE);
    for (unsigned round = 1; round < 4; round++) {
        static const u8 ret_n[8] = {0xb8, 0, 0, 0, 0, 0xc3, 0x90, 0x90}; /* mov eax, n; ret */
        u64 pattern;
        memcpy(&pattern, ret_n, 8);
        pattern |= (u64)round << 8;
        prepare(stosq, 0, TEST_VA, 4 * PAGE / 8);
        c.gpr[RAX] = pattern;
        COMPLETES(&c);
        for (unsigned page = 0; page < 4; page++)
            if (page == 2 || round == 3) CHECK_EQ(((u32(*)(void))(TEST_VA + page * PAGE + 8))(), round);
    }
}

static volatile u32 ticks, in_the_middle;
static u64 watched_rip;

static void on_timer(struct frame *f)
{
    ticks++;
    if (f->rip == watched_rip && f->gpr[RCX]) {
        in_the_middle++;
        /* What was counted down is done, and no more than that: the item at RDI still has its old value. */
        u8 *at = (u8 *)f->gpr[RDI];
        CHECK(at[-1] == (u8)f->gpr[RAX] || at == (u8 *)f->gpr[RDX]);
    }
    apic_eoi();
}

/* 8 MiB under a fast timer. */
static void interrupted(void)
{
    u64 size = 8ul << 20;
    u8 *big = pages_alloc(2 * size / PAGE, PAGE);
    on_vector(TIMER, on_timer);
    apic_enable();
    apic_write(0x3e0, 0xb);
    apic_write(0x320, 0x20000 | TIMER);
    apic_write(0x380, 50000);
    for (u64 round = 1; round < 6; round++) {
        prepare(stos_big, 0, (u64)big, size);
        c.gpr[RAX] = round;
        c.gpr[RDX] = (u64)big;
        watched_rip = (u64)stos_big + 1;
        COMPLETES(&c);
        CHECK_EQ(c.gpr[RCX], 0);
        CHECK_EQ(c.gpr[RDI], big + size);
        watched_rip = 0;
        prepare(movs_big, (u64)big, (u64)big + size, size);
        COMPLETES(&c);
        CHECK_EQ(c.gpr[RCX], 0);
        CHECK_EQ(c.gpr[RSI], big + size);
        u64 bad = 0;
        for (u64 i = 0; i < size / 4; i++) bad += ((u64 *)big)[i] != round * 0x0101010101010101ul;
        CHECK_EQ(bad, 0);
    }
    apic_write(0x380, 0);
    CHECK(ticks > 0);
    print("%u timer interrupts, %u in the middle of REP\n", ticks, in_the_middle);
}

int main(void)
{
    frame = pages_alloc(4, PAGE);
    for (unsigned i = 0; i < 4; i++) map(i);
    faulting();
    semantics();
    over_pages();
    stopped();
    interrupted();
    return done();
}
