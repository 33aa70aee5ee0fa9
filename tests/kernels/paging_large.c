// 2 MiB and 1 GiB pages: reach, splitting, joining, and operands over their edges.
#include "kernel.h"

static u64 peek(u64 va)
{
    return *(volatile u64 *)va;
}

static void two_mib(void)
{
    u64 *pde = pte_of(TEST_VA, 2), old = *pde;
    u8 *ram = pages_alloc(1024, 0x200000); /* 4 MiB */
    for (u64 i = 0; i < 1024; i++) *(u64 *)(ram + i * PAGE) = i;

    pde[0] = (u64)ram | PTE_PS | PTE_P | PTE_W;
    pde[1] = ((u64)ram + 0x200000) | PTE_PS | PTE_P | PTE_W;
    for (u64 i = 0; i < 1024; i++) CHECK_EQ(peek(TEST_VA + i * PAGE), i);

    /* Swapped, with one INVLPG each: it must drop the whole large page. */
    pde[0] = ((u64)ram + 0x200000) | PTE_PS | PTE_P | PTE_W;
    pde[1] = (u64)ram | PTE_PS | PTE_P | PTE_W;
    invlpg(TEST_VA + 0x5000);
    invlpg(TEST_VA + 0x3ff000);
    for (u64 i = 0; i < 1024; i++) CHECK_EQ(peek(TEST_VA + i * PAGE), i ^ 512);

    /* A write over the edge of the two, which are not neighbours in RAM. */
    *(volatile u64 *)(TEST_VA + 0x200000 - 4) = 0x1122334455667788ul;
    CHECK_EQ(*(u32 *)(ram + 0x400000 - 4), 0x55667788);
    CHECK_EQ(*(u32 *)ram, 0x11223344);
    *(u64 *)ram = 0;

    /* Split: the same bytes through small pages, one of them elsewhere. */
    u64 *table = page_alloc();
    for (u64 i = 0; i < 512; i++) table[i] = ((u64)ram + i * PAGE) | PTE_P | PTE_W;
    table[7] = ((u64)ram + 9 * PAGE) | PTE_P | PTE_W;
    pde[0] = (u64)table | PTE_P | PTE_W;
    for (u64 i = 0; i < 512; i += 7) invlpg(TEST_VA + i * PAGE);
    set_cr3(cr3());
    for (u64 i = 0; i < 512; i++) CHECK_EQ(peek(TEST_VA + i * PAGE), i == 7 ? 9 : i);
    pde[0] = old;
    pde[1] = 0;
    set_cr3(cr3());
}

static void one_gib(void)
{
    if (!HAS_1G) {
        skip("1 GiB pages");
        return;
    }
    u64 *pdpte = pte_of(TEST_VA, 3), old = *pdpte, *word = page_alloc();
    *word = 0xfeedface;
    *pdpte = 0 | PTE_PS | PTE_P | PTE_W; /* RAM's first GiB again */
    invlpg(TEST_VA);
    CHECK_EQ(peek(TEST_VA + (u64)word), 0xfeedface);
    *(volatile u64 *)(TEST_VA + (u64)word) = 77;
    CHECK_EQ(*(volatile u64 *)word, 77);
    CHECK_EQ(*pdpte & (PTE_A | PTE_D), PTE_A | PTE_D);
    /* Reserved bits of a 1 GiB entry: 13..29. */
    CODE(load, "mov (%rbx), %rax");
    struct ctx c;
    *pdpte |= 1ul << 29;
    invlpg(TEST_VA);
    ctx_kernel(&c, load);
    c.gpr[RBX] = TEST_VA + 0x1000;
    FAULTS(&c, PF, (left_out(TCG | LAB, "P in the error code of a reserved bit") ? 0 : PF_P) | PF_RSVD);
    *pdpte = old;
    invlpg(TEST_VA);
    set_cr3(cr3());
}

int main(void)
{
    two_mib();
    one_gib();
    return done();
}
