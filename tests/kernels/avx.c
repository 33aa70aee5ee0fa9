// AVX2 and, where CPUID has it, AVX-512: results, masks, gathers with faults in the middle, state kept over interrupts.
#include "kernel.h"

CODE(gather,
     "vpcmpeqd %ymm1, %ymm1, %ymm1; vmovdqu (%rcx), %ymm2\n gather_here: vpgatherdd %ymm1, (%rbx, %ymm2, 4), %ymm0");
CODE(masked_load, "vmovdqu (%rcx), %ymm1; vmaskmovps (%rbx), %ymm1, %ymm0");
CODE(masked_store, "vmovdqu (%rcx), %ymm1; vpcmpeqd %ymm0, %ymm0, %ymm0; vmaskmovps %ymm0, %ymm1, (%rbx)");
CODE(zmm, "vmovdqu64 (%rbx), %zmm1; vpaddd %zmm1, %zmm1, %zmm31; vmovdqu64 %zmm31, (%rbx)");
CODE(
    opmask,
    "mov $0x00ff, %eax; kmovw %eax, %k1; vpxord %zmm2, %zmm2, %zmm2; vmovdqu32 (%rbx), %zmm2{%k1}{z}; vmovdqu64 %zmm2, (%rcx)");
CODE(masked_fault, "mov $0x000f, %eax; kmovw %eax, %k1; vmovdqu32 (%rbx), %zmm3{%k1}{z}; vmovdqu32 %zmm3, (%rbx){%k1}");
CODE(embedded, "vpaddd (%rbx){1to16}, %zmm1, %zmm4; vmovdqu64 %zmm4, (%rcx)");
LABEL(gather_here);

static struct ctx c;
static u32 index[16] __attribute__((aligned(64))), buffer[32] __attribute__((aligned(64)));

static void run(u8 *code, u64 rbx, void *rcx)
{
    ctx_kernel(&c, code);
    c.gpr[RBX] = rbx;
    c.gpr[RCX] = (u64)rcx;
    ctx_run(&c);
}

static void avx2(void)
{
    u32 *table = page_alloc();
    map_page(TEST_VA, (u64)table, PTE_W);
    *pte_of(TEST_VA + PAGE, 1) = 0;
    invlpg(TEST_VA + PAGE);
    for (unsigned i = 0; i < 1024; i++) table[i] = i * 3;
    for (unsigned i = 0; i < 8; i++) index[i] = 1000 + i * 4; /* elements 6 and 7 are in the missing page */
    run(gather, TEST_VA, index);
    CHECK_EQ(c.vector, PF);
    CHECK_EQ(c.rip, gather_here);
    CHECK_EQ(c.cr2, TEST_VA + 4 * index[6]);
    u32 got[8], mask[8];
    __asm__ volatile("vmovdqu %%ymm0, %0; vmovdqu %%ymm1, %1" : "=m"(got), "=m"(mask));
    for (unsigned i = 0; i < 6; i++) CHECK(mask[i] != 0 || got[i] == index[i] * 3); /* done elements are in place */
    CHECK_EQ(mask[6], 0xffffffff);
    u32 *second = page_alloc();
    for (unsigned i = 0; i < 1024; i++) second[i] = (1024 + i) * 3;
    map_page(TEST_VA + PAGE, (u64)second, PTE_W);
    CHECK_EQ(ctx_run(&c), END); /* restart */
    __asm__ volatile("vmovdqu %%ymm0, %0; vmovdqu %%ymm1, %1" : "=m"(got), "=m"(mask));
    for (unsigned i = 0; i < 8; i++) CHECK_EQ(got[i], index[i] * 3), CHECK_EQ(mask[i], 0);

    /* Masked-out elements don't fault. */
    *pte_of(TEST_VA + PAGE, 1) = 0;
    invlpg(TEST_VA + PAGE);
    for (unsigned i = 0; i < 8; i++) index[i] = i < 4 ? 0x80000000 : 0;
    if (!left_out(TCG, "elements that VMASKMOVPS does not load")) {
        run(masked_load, TEST_VA + PAGE - 16, index);
        CHECK_EQ(c.vector, END);
        __asm__ volatile("vmovdqu %%ymm0, %0" : "=m"(got));
        CHECK_EQ(got[3], 1023 * 3);
        CHECK_EQ(got[4], 0);
    }
    run(masked_store, TEST_VA + PAGE - 16, index);
    CHECK_EQ(c.vector, END);
    CHECK_EQ(table[1023], 0xffffffff);
    CHECK_EQ(table[1019], 1019 * 3);
    index[4] = 0x80000000;
    run(masked_store, TEST_VA + PAGE - 16, index);
    CHECK_EQ(c.vector, PF);
    CHECK_EQ(c.cr2, TEST_VA + PAGE);
    CHECK_EQ(c.error, PF_W);
}

static void avx512(void)
{
    if (!HAS_AVX512F || (cpuid(0xd, 0).a & 0xe0) != 0xe0) {
        skip("AVX-512");
        return;
    }
    run(zmm, (u64)buffer, NULL);
    CHECK_EQ(c.vector, UD); /* XCR0 has not got it yet */
    xsetbv(0, 0xe7);
    for (unsigned i = 0; i < 16; i++) buffer[i] = i + 1;
    run(zmm, (u64)buffer, NULL);
    CHECK_EQ(c.vector, END);
    for (unsigned i = 0; i < 16; i++) CHECK_EQ(buffer[i], 2 * i + 2);
    run(opmask, (u64)buffer, buffer + 16);
    CHECK_EQ(c.vector, END);
    CHECK_EQ(buffer[16 + 7], 16);
    CHECK_EQ(buffer[16 + 8], 0);
    run(masked_fault, TEST_VA + PAGE - 16, NULL); /* twelve masked-out elements lie in the missing page */
    CHECK_EQ(c.vector, END);
    buffer[0] = 1000;
    run(embedded, (u64)buffer, buffer + 16);
    CHECK_EQ(c.vector, END);
    CHECK_EQ(buffer[16 + 2], 1000 + 3); /* zmm1 still has 1, 2, 3 .. */
    /* Over a page boundary, unaligned. */
    u8 *frames = pages_alloc(3, PAGE);
    map_page(TEST_VA, (u64)frames + 2 * PAGE, PTE_W);
    map_page(TEST_VA + PAGE, (u64)frames, PTE_W);
    for (unsigned before = 1; before < 64; before += 9) {
        u32 *at = (u32 *)(TEST_VA + PAGE - before);
        for (unsigned i = 0; i < 16; i++) at[i] = i;
        run(zmm, (u64)at, NULL);
        CHECK_EQ(c.vector, END);
        for (unsigned i = 0; i < 16; i++) CHECK_EQ(at[i], 2 * i);
    }
}

static volatile u32 ticks;

static void on_timer(struct frame *f)
{
    (void)f;
    ticks++;
    apic_eoi();
}

/* Interrupts whose handler uses no vector registers must not change any. */
static void over_interrupts(void)
{
    on_vector(0x40, on_timer);
    apic_enable();
    apic_write(0x3e0, 0xb);
    apic_write(0x320, 0x20000 | 0x40);
    apic_write(0x380, 100000);
    for (unsigned i = 0; i < 32; i++) buffer[i] = i * 0x01010101;
    __asm__ volatile("vmovdqu %0, %%ymm5; vmovdqu %0, %%ymm14; fninit; fldpi" ::"m"(*(u8(*)[32])buffer));
    sti();
    while (ticks < 50) pause();
    cli();
    u8 a[32], b[32];
    double pi;
    __asm__ volatile("vmovdqu %%ymm5, %0; vmovdqu %%ymm14, %1; fstpl %2" : "=m"(a), "=m"(b), "=m"(pi));
    CHECK(memcmp(a, buffer, 32) == 0);
    CHECK(memcmp(b, buffer, 32) == 0);
    CHECK_EQ(*(u64 *)&pi, 0x400921fb54442d18ul);
}

int main(void)
{
    set_cr4(cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
    if (!HAS_AVX2 || !HAS_XSAVE) {
        skip("AVX2");
        return done();
    }
    if (left_out(LAB, "XSETBV: under KVM it is not seen")) return done();
    set_cr4(cr4() | CR4_OSXSAVE);
    xsetbv(0, 7);
    avx2();
    over_interrupts();
    avx512();
    return done();
}
