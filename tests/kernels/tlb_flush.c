// What INVLPG, MOV CR3, MOV CR4, global pages, PCID and INVPCID drop. Only what MUST be gone is checked: a TLB may always forget.
// Global and other-PCID entries may be kept, so these tests see to it that keeping or dropping them both pass,
// and that flushes which include them do drop them.
#include "kernel.h"

static u64 a, b; /* two physical pages, holding 1 and 2 */

static u64 peek(u64 va)
{
    return *(volatile u64 *)va;
}

static void point(u64 va, u64 pa, u64 flags)
{
    *(volatile u64 *)pte_of(va, 1) = pa | flags | PTE_P | PTE_W;
}

static void invpcid(u64 type, u64 pcid, u64 va)
{
    u64 d[2] = {pcid, va};
    __asm__ volatile("invpcid %0, %1" ::"m"(d), "r"(type) : "memory");
}

/* `flush` must make a changed entry visible, global or not. */
#define MUST_SEE(va, flags, flush) \
    do {                           \
        point(va, a, flags);       \
        invlpg(va);                \
        CHECK_EQ(peek(va), 1);     \
        point(va, b, flags);       \
        flush;                     \
        CHECK_EQ(peek(va), 2);     \
    } while (0)

static void toggle_pge(void)
{
    set_cr4(cr4() ^ CR4_PGE);
    set_cr4(cr4() ^ CR4_PGE);
}

static void pcids(void)
{
    if (!HAS_PCID) {
        skip("PCID");
        return;
    }
    u64 base = cr3();
    set_cr4(cr4() | CR4_PCIDE);
    u64 *other = page_alloc();
    memcpy(other, boot_pml4, PAGE);
    u64 va = TEST_VA;

    /* Two address spaces with their own PCIDs that map va differently. */
    u64 *pdpt = page_alloc(), *pd = page_alloc(), *pt = page_alloc();
    memcpy(pdpt, phys(boot_pml4[0] & PTE_ADDR), PAGE);
    other[0] = (u64)pdpt | 7;
    pdpt[1] = (u64)pd | 7;
    pd[0] = (u64)pt | 7;
    pt[0] = b | 3;
    point(va, a, 0);
    invlpg(va);
    const u64 keep = 1ul << 63;
    set_cr3(base | 1);
    set_cr3((u64)other | 2);
    for (unsigned i = 0; i < 4; i++) {
        set_cr3(base | 1 | keep);
        CHECK_EQ(peek(va), 1);
        set_cr3((u64)other | 2 | keep);
        CHECK_EQ(peek(va), 2);
    }
    /* MOV CR3 without bit 63 drops that PCID's entries. */
    set_cr3(base | 1 | keep);
    CHECK_EQ(peek(va), 1);
    point(va, b, 0);
    set_cr3((u64)other | 2 | keep);
    set_cr3(base | 1);
    CHECK_EQ(peek(va), 2);
    CHECK_EQ(cr3(), base | 1); /* bit 63 is not stored */
    /* INVLPG works on the current PCID. */
    point(va, a, 0);
    invlpg(va);
    CHECK_EQ(peek(va), 1);
    if (HAS_INVPCID) {
        MUST_SEE(va, 0, invpcid(0, 1, va));
        MUST_SEE(va, 0, invpcid(1, 1, 0));
        MUST_SEE(va, 0, invpcid(2, 0, 0));
        MUST_SEE(va, PTE_G, invpcid(2, 0, 0));
        MUST_SEE(va, 0, invpcid(3, 0, 0));
        /* For another PCID than the current one. */
        point(va, a, 0);
        invlpg(va);
        CHECK_EQ(peek(va), 1);
        set_cr3((u64)other | 2 | keep);
        point(va, b, 0); /* in the other tables: nothing of ours */
        u64 *mine = phys(boot_pml4[0] & PTE_ADDR);
        mine = phys(mine[1] & PTE_ADDR);
        mine = phys(mine[0] & PTE_ADDR);
        mine[0] = b | 3;
        invpcid(0, 1, va);
        set_cr3(base | 1 | keep);
        CHECK_EQ(peek(va), 2);
    } else {
        skip("INVPCID");
    }
    set_cr3(base);
    set_cr4(cr4() & ~CR4_PCIDE);
}

static void negatives(void)
{
    CODE(to_cr3, "mov %rax, %cr3");
    CODE(to_cr4, "mov %rax, %cr4");
    CODE(do_invpcid, "invpcid (%rbx), %rax");
    struct ctx c;
    static u64 d[2];
    ctx_kernel(&c, to_cr3); /* bit 63 without PCIDE */
    c.gpr[RAX] = cr3() | 1ul << 63;
    if (!left_out(TCG | LAB, "reserved bits of CR3")) FAULTS(&c, GP, 0); /* hangs it */
    if (!HAS_PCID) return;
    set_cr3(cr3() | PTE_PCD); /* PCIDE may be set only with CR3[11:0] = 0 */
    ctx_kernel(&c, to_cr4);
    c.gpr[RAX] = cr4() | CR4_PCIDE;
    FAULTS(&c, GP, 0);
    set_cr3(cr3() & PTE_ADDR);
    if (!HAS_INVPCID) return;
    ctx_kernel(&c, do_invpcid);
    c.gpr[RBX] = (u64)d;
    c.gpr[RAX] = 4; /* no such type */
    FAULTS(&c, GP, 0);
    d[0] = 0x1000; /* reserved bits of the descriptor */
    c.gpr[RAX] = 1;
    ctx_kernel(&c, do_invpcid);
    c.gpr[RBX] = (u64)d;
    c.gpr[RAX] = 1;
    FAULTS(&c, GP, 0);
    d[0] = 1; /* another PCID than 0 while CR4.PCIDE = 0 */
    ctx_kernel(&c, do_invpcid);
    c.gpr[RBX] = (u64)d;
    c.gpr[RAX] = 1;
    FAULTS(&c, GP, 0);
    d[0] = 0, d[1] = 1ul << 63;
    ctx_kernel(&c, do_invpcid);
    c.gpr[RBX] = (u64)d;
    c.gpr[RAX] = 0;
    FAULTS(&c, GP, 0);
}

int main(void)
{
    a = (u64)page_alloc();
    b = (u64)page_alloc();
    *(u64 *)a = 1;
    *(u64 *)b = 2;
    set_cr4(cr4() | CR4_PGE);
    MUST_SEE(TEST_VA, 0, invlpg(TEST_VA));
    MUST_SEE(TEST_VA, PTE_G, invlpg(TEST_VA + 0xfff));
    MUST_SEE(TEST_VA, 0, set_cr3(cr3()));
    MUST_SEE(TEST_VA, PTE_G, toggle_pge());
    /* From not present to present needs no flush. */
    *pte_of(TEST_VA, 1) = 0;
    invlpg(TEST_VA);
    point(TEST_VA, a, 0);
    CHECK_EQ(peek(TEST_VA), 1);
    /* Nor does a change of the tables above, once flushed by INVLPG (paging-structure caches). */
    u64 *pde = pte_of(TEST_VA, 2), old = *pde, *other = page_alloc();
    other[0] = b | PTE_P;
    *pde = (u64)other | PTE_P;
    invlpg(TEST_VA);
    CHECK_EQ(peek(TEST_VA), 2);
    *pde = old;
    invlpg(TEST_VA);
    /* INVLPG of a non-canonical address does nothing; of an unmapped one neither. */
    invlpg(0x800000000000ul);
    invlpg(TEST_VA + 0x10000000);
    negatives();
    pcids();
    if (HAS_INVPCID) MUST_SEE(TEST_VA, PTE_G, invpcid(2, 0, 0)); /* also allowed without PCIDE */
    return done();
}
