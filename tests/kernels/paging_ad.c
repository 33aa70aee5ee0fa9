// Accessed and dirty bits: set when the manual says so, at every level, and never when the access faults.
#include "kernel.h"

CODE(load, "mov (%rbx), %rax");
CODE(store, "mov %rax, (%rbx)");
CODE(failed_cmpxchg, "cmpxchg %rcx, (%rbx)"); /* writes the old value back: D is set */
CODE(jump, "jmp *%rbx");
CODE(call_through, "call *8(%rbx)"); /* reads there, and writes to the stack */
CODE(push_from, "push 8(%rbx); pop %rax");
CODE(prefetch, "prefetcht0 (%rbx)");

static struct ctx c;
static u8 *page;

static void go(u8 *code, bool from_user, u64 vector)
{
    from_user ? ctx_user(&c, code) : ctx_kernel(&c, code);
    c.gpr[RBX] = TEST_VA;
    CHECK_EQ(ctx_run(&c), vector);
}

static void clear(void)
{
    for (unsigned level = 1; level <= 3; level++) *pte_of(TEST_VA, level) &= ~(PTE_A | PTE_D);
    invlpg(TEST_VA);
}

/* The bits of the three upper entries (D only means something in the leaf). */
static void expect(u64 leaf, u64 upper)
{
    CHECK_EQ(*pte_of(TEST_VA, 1) & (PTE_A | PTE_D), leaf);
    CHECK_EQ(*pte_of(TEST_VA, 2) & PTE_A, upper);
    CHECK_EQ(*pte_of(TEST_VA, 3) & PTE_A, upper);
}

int main(void)
{
    page = page_alloc();
    memcpy(page, "\xcd\x81", 2);
    *(u64 *)(page + 8) = TEST_VA;
    map_page(TEST_VA, (u64)page, PTE_W | PTE_U);
    for (int u = 0; u < 2; u++) {
        clear();
        go(load, u, END);
        expect(PTE_A, PTE_A);
        go(store, u, END); /* without INVLPG between: a clean page's first write must walk again */
        expect(PTE_A | PTE_D, PTE_A);
        clear();
        go(store, u, END);
        expect(PTE_A | PTE_D, PTE_A);
        clear();
        go(failed_cmpxchg, u, END);
        expect(PTE_A | PTE_D, PTE_A);
        memcpy(page, "\xcd\x81", 2);
        clear();
        go(jump, u, END);
        expect(PTE_A, PTE_A);
        clear();
        go(call_through, u, END);
        expect(PTE_A, PTE_A);
        clear();
        go(push_from, u, END);
        expect(PTE_A, PTE_A);
        /* D again after it was cleared and flushed. */
        go(store, u, END);
        expect(PTE_A | PTE_D, PTE_A);
        memcpy(page, "\xcd\x81", 2);
    }

    /* Faulting accesses set nothing in the entry that stopped them. */
    clear();
    *pte_of(TEST_VA, 1) &= ~PTE_P;
    invlpg(TEST_VA);
    go(store, true, PF);
    CHECK_EQ(*pte_of(TEST_VA, 1) & (PTE_A | PTE_D), 0);
    *pte_of(TEST_VA, 1) |= PTE_P;
    *pte_of(TEST_VA, 1) &= ~PTE_W;
    invlpg(TEST_VA);
    go(store, true, PF);
    CHECK_EQ(*pte_of(TEST_VA, 1) & PTE_D, 0);
    *pte_of(TEST_VA, 1) |= PTE_W;
    invlpg(TEST_VA);

    /* A 2 MiB leaf has its bits in the PDE. */
    u64 *pde = pte_of(TEST_VA, 2), old = *pde;
    *pde = 0x2000000 | PTE_PS | PTE_P | PTE_W | PTE_U;
    invlpg(TEST_VA);
    go(load, true, END);
    CHECK_EQ(*pde & (PTE_A | PTE_D), PTE_A);
    go(store, true, END);
    CHECK_EQ(*pde & (PTE_A | PTE_D), PTE_A | PTE_D);
    *pde = old;
    invlpg(TEST_VA);

    /* The CPU writes A and D itself: CR0.WP and the mapping of the table play no part. */
    clear();
    go(prefetch, false, END); /* may set A, must not fault */
    u64 table = (u64)pte_of(TEST_VA, 1) & PTE_ADDR;
    map_page(TEST_VA + PAGE, table, PTE_U); /* the page table seen through itself, read-only */
    clear();
    go(store, true, END);
    expect(PTE_A | PTE_D, PTE_A);
    return done();
}
