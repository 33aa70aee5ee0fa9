// Code that reads here and there in a large page, often enough for an engine to take that page's address for granted: what it reads must be
// right after each kind of change to what is mapped there, too.
#include "kernel.h"

#define LARGE 0x200000ul
#define ADDRESSES 1500u /* enough for whatever is measured before the code is made faster */

// RSI: the addresses; RCX: how many; RBX: added to them (0); the sum in RAX.
CODE(plain, "1: mov (%rsi), %rdx; add (%rdx), %rax; add $8, %rsi; dec %rcx; jnz 1b");
CODE(indexed, "1: mov (%rsi), %rdx; add (%rbx,%rdx), %rax; lea 8(%rsi), %rsi; dec %rcx; jnz 1b");
CODE(merged, "1: mov (%rsi), %rdx; add (%rdx), %rax; xor 8(%rdx), %r8; xor 24(%rdx), %r9; mov %rdx, %r10; add $8, %rsi;"
             "dec %rcx; jnz 1b");
CODE(with_flags, "1: mov (%rsi), %rdx; stc; mov (%rdx), %rdi; adc %rdi, %rax; lea 8(%rsi), %rsi; dec %rcx; jnz 1b");

// An array from RDI on, RCX items of 24 bytes, 12 of them read: over small borders in the page, and over its end.
CODE(stream, "1: add 4(%rdi), %rax; add 8(%rdi), %rax; lea 24(%rdi), %rdi; dec %rcx; jnz 1b");
CODE(downwards, "1: add 4(%rdi), %rax; add 8(%rdi), %rax; lea -24(%rdi), %rdi; dec %rcx; jnz 1b");

static u8 *const walks[] = {plain, indexed, merged, with_flags};
static u64 list[ADDRESSES], seed = 0x6a09e667;
static u64 *pde;
static u8 *ram; /* 4 MiB */
static struct ctx c;

static u64 walk(u8 *code, unsigned n)
{
    ctx_kernel(&c, code);
    c.gpr[RSI] = (u64)list;
    c.gpr[RCX] = n;
    c.gpr[RBX] = c.gpr[RAX] = c.gpr[R8] = c.gpr[R9] = 0;
    return ctx_run(&c);
}

static u64 value_at(const u8 *where)
{
    u64 v = 0;
    for (unsigned i = 0; i < 8; i++) v |= (u64)where[i] << 8 * i;
    return v;
}

static u64 shown; /* where in `ram` each page of the range at TEST_VA is, when not where it was first */
static u64 moved_page, moved_to;

/* The bytes behind an address in the large page at TEST_VA, as the tables have them now. */
static const u8 *behind(u64 va)
{
    u64 off = va - TEST_VA;
    if (moved_page && off / PAGE == moved_page) return ram + moved_to + off % PAGE;
    return ram + (off ^ shown);
}

/* All kinds of code, over addresses all over the range; each sum as C makes it by way of other addresses. */
static void check_walks(u64 range)
{
    for (unsigned k = 0; k < sizeof walks / sizeof *walks; k++) {
        u64 sum = 0, eights = 0, more = 0;
        for (unsigned i = 0; i < ADDRESSES; i++) {
            list[i] = TEST_VA + random64(&seed) % (range - 64);
            if ((list[i] & (PAGE - 1)) > PAGE - 64) list[i] &= ~63ul; /* pages may lie apart */
            sum += value_at(behind(list[i]));
            eights ^= value_at(behind(list[i] + 8));
            more ^= value_at(behind(list[i] + 24));
        }
        if (walks[k] == with_flags) sum += ADDRESSES;
        CHECK_EQ(walk(walks[k], ADDRESSES), END);
        CHECK_EQ(c.gpr[RAX], sum);
        if (walks[k] != merged) continue;
        CHECK_EQ(c.gpr[R8], eights);
        CHECK_EQ(c.gpr[R9], more);
    }
}

static void map_both(void)
{
    pde[0] = ((u64)ram + shown) | PTE_PS | PTE_P | PTE_W;
    pde[1] = ((u64)ram + (LARGE - shown)) | PTE_PS | PTE_P | PTE_W;
}

static void check_stream(u8 *code, u64 from, unsigned items)
{
    u64 sum = 0;
    for (unsigned i = 0; i < items; i++) {
        u64 at = code == stream ? from + i * 24ul : from - i * 24ul;
        for (unsigned n = 0; n < 8; n++) {
            sum += (u64)*behind(at + 4 + n) << 8 * n;
            sum += (u64)*behind(at + 8 + n) << 8 * n;
        }
    }
    ctx_kernel(&c, code);
    c.gpr[RDI] = from;
    c.gpr[RCX] = items;
    c.gpr[RAX] = 0;
    CHECK_EQ(ctx_run(&c), END);
    CHECK_EQ(c.gpr[RAX], sum);
}

/* Long enough, from many places, for the loops' checks to be about the large page; then over the border of the two. */
static void streams(void)
{
    for (unsigned i = 0; i < 300; i++) {
        u64 from = TEST_VA + random64(&seed) % (LARGE - 0x10000);
        check_stream(stream, from, 700);
        check_stream(downwards, from + 0xf000, 700);
    }
    for (unsigned i = 0; i < 40; i++) {
        check_stream(stream, TEST_VA + LARGE - 4096 - random64(&seed) % 12000, 1200);
        check_stream(downwards, TEST_VA + LARGE + random64(&seed) % 12000, 1200);
    }
}

static void swapped(void)
{
    shown = LARGE;
    map_both();
    invlpg(TEST_VA + 0x7000); /* any address of the page */
    invlpg(TEST_VA + LARGE + 0x1ff000);
    check_walks(2 * LARGE);
    streams();
    shown = 0;
    map_both();
    set_cr3(cr3());
    check_walks(2 * LARGE);
}

/* Over the border of the two, which are not neighbours in RAM while they are swapped. */
static void across(void)
{
    shown = LARGE;
    map_both();
    set_cr3(cr3());
    check_walks(LARGE);
    for (unsigned i = 0; i < 8; i++) {
        list[0] = TEST_VA + LARGE - 8 + i;
        CHECK_EQ(walk(plain, 1), END);
        u64 want = 0;
        for (unsigned n = 0; n < 8; n++) want |= (u64)*behind(list[0] + n) << 8 * n;
        CHECK_EQ(c.gpr[RAX], want);
    }
    shown = 0;
    map_both();
    set_cr3(cr3());
}

/* Small pages take the large one's place, one of them elsewhere; then one goes. */
static void split(void)
{
    u64 *table = page_alloc();
    for (u64 i = 0; i < 512; i++) table[i] = ((u64)ram + i * PAGE) | PTE_P | PTE_W;
    moved_page = 33;
    moved_to = LARGE + 77 * PAGE;
    table[33] = ((u64)ram + moved_to) | PTE_P | PTE_W;
    check_walks(33 * PAGE); /* by the old tables */
    pde[0] = (u64)table | PTE_P | PTE_W;
    invlpg(TEST_VA + 500 * PAGE);
    check_walks(LARGE);
    table[40] = 0;
    invlpg(TEST_VA + 40 * PAGE);
    for (unsigned i = 0; i < 300; i++) list[i] = TEST_VA + i % 40 * PAGE;
    list[300] = TEST_VA + 40 * PAGE + 48;
    CHECK_EQ(walk(plain, 400), PF);
    CHECK_EQ(c.cr2, TEST_VA + 40 * PAGE + 48);
    CHECK_EQ(c.error, 0);
    CHECK_EQ(c.gpr[RCX], 100);
    moved_page = 0;
    map_both();
    set_cr3(cr3());
    check_walks(2 * LARGE);
}

/* What another CPU, or this one by another address, writes is seen. */
static void written(void)
{
    for (u64 i = 0; i < 512; i++) {
        *(volatile u64 *)(ram + i * PAGE + 128) = i * 3;
        *(volatile u64 *)(TEST_VA + i * PAGE + 136) = i * 5;
    }
    check_walks(LARGE);
}

static void watched(void)
{
    for (unsigned i = 0; i < ADDRESSES; i++) list[i] = TEST_VA + i * 64;
    CHECK_EQ(walk(plain, ADDRESSES), END);
    set_dr0(TEST_VA + 700 * 64);
    set_dr6(0);
    set_dr7(0x400 | 2 | 3ul << 16 | 2ul << 18); /* accesses, 8 bytes */
    CHECK_EQ(walk(plain, ADDRESSES), DB);
    CHECK_EQ(c.dr6 & 0xf, 1);
    CHECK_EQ(c.gpr[RCX], ADDRESSES - 700);
    set_dr7(0x400);
    check_walks(LARGE);
}

/* A large page behind the end of RAM (the runner gives 64 MiB): reads as ones. */
static void end_of_ram(void)
{
    if (left_out(TCG, "memory that is not there reads as ones")) return;
    shown = 0;
    pde[0] = (64ul << 20) | PTE_PS | PTE_P | PTE_W;
    set_cr3(cr3());
    for (unsigned i = 0; i < ADDRESSES; i++) list[i] = TEST_VA + random64(&seed) % (LARGE / 8) * 8;
    for (unsigned k = 0; k < 2; k++) {
        CHECK_EQ(walk(walks[k], ADDRESSES), END);
        CHECK_EQ(c.gpr[RAX], -(u64)ADDRESSES);
    }
    map_both();
    set_cr3(cr3());
    check_walks(2 * LARGE);
}

int main(void)
{
    pde = pte_of(TEST_VA, 2);
    ram = pages_alloc(1024, LARGE);
    for (u64 i = 0; i < 2 * LARGE / 8; i++) ((u64 *)ram)[i] = random64(&seed);
    map_both();
    set_cr3(cr3());
    for (unsigned i = 0; i < 3; i++) check_walks(LARGE); /* first in one page: that is when it pays */
    check_walks(2 * LARGE);
    swapped();
    across();
    split();
    written();
    watched();
    end_of_ram();
    pde[0] = pde[1] = 0;
    set_cr3(cr3());
    return done();
}
