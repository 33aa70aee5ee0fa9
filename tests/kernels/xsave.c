// XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR(S), FXSAVE: images bit by bit, the init and modified optimisations as far as
// software may rely on them, what is refused. CPUID leaf 0xd must agree with the images.
#include "kernel.h"

static u8 area[4096] __attribute__((aligned(64))), area2[4096] __attribute__((aligned(64)));
static u8 pattern[3][32] __attribute__((aligned(32)));
static struct ctx c;

#define DEF(insn)                                                                                      \
    static void insn##_to(void *p, u64 mask)                                                           \
    {                                                                                                  \
        __asm__ volatile(#insn "64 (%0)" ::"r"(p), "a"((u32)mask), "d"((u32)(mask >> 32)) : "memory"); \
    }
DEF(xsave)
DEF(xsaveopt)
DEF(xsavec)
DEF(xsaves)
DEF(xrstor)
DEF(xrstors)

static void load_patterns(void)
{
    __asm__ volatile(
        "fninit; fldpi; fld1; vmovdqu %0, %%ymm0; vmovdqu %1, %%ymm7; vmovdqu %2, %%ymm15" ::"m"(pattern[0]),
        "m"(pattern[1]), "m"(pattern[2]));
}

static void wipe(void)
{
    __asm__ volatile("fninit; vpxor %xmm0, %xmm0, %xmm0; vpcmpeqb %ymm7, %ymm7, %ymm7; vzeroall");
}

static bool have_patterns(void)
{
    u8 now[3][32];
    __asm__ volatile("vmovdqu %%ymm0, %0; vmovdqu %%ymm7, %1; vmovdqu %%ymm15, %2"
                     : "=m"(now[0]), "=m"(now[1]), "=m"(now[2]));
    return memcmp(now, pattern, sizeof now) == 0;
}

static u64 header(const u8 *a, unsigned i)
{
    return *(const u64 *)(a + 512 + 8 * i);
}

static void standard_form(u32 avx_offset)
{
    load_patterns();
    memset(area, 0xcc, sizeof area);
    memset(area + 512, 0, 64);
    xsave_to(area, 7);
    CHECK_EQ(header(area, 0) & 7, 7);
    CHECK_EQ(header(area, 1), 0);
    CHECK(memcmp(area + 160, pattern[0], 16) == 0);
    CHECK(memcmp(area + 160 + 15 * 16, pattern[2], 16) == 0);
    CHECK(memcmp(area + avx_offset + 7 * 16, pattern[1] + 16, 16) == 0);
    CHECK_EQ(*(u16 *)area, 0x37f);                       /* FCW */
    CHECK_EQ(*(u16 *)(area + 2) >> 11 & 7, 6);           /* FSW.TOP: two pushes */
    CHECK_EQ(area[4], 0xc0);                             /* abridged FTW */
    CHECK_EQ(*(u64 *)(area + 32), 0x8000000000000000ul); /* ST0 = 1.0 */
    CHECK_EQ(*(u32 *)(area + 24), 0x1f80);
    CHECK_EQ(area[464], 0xcc); /* the bytes software may use stay as they are */
    wipe();
    CHECK(!have_patterns());
    xrstor_to(area, 7);
    CHECK(have_patterns());
    u16 sw;
    __asm__ volatile("fnstsw %0" : "=a"(sw));
    CHECK_EQ(sw >> 11 & 7, 6);

    /* Only AVX: the SSE half in memory is not touched, XSTATE_BV keeps the other bits. */
    memset(area, 0xcc, sizeof area);
    memset(area + 512, 0, 64);
    *(u64 *)(area + 512) = 1;
    xsave_to(area, 4);
    CHECK_EQ(header(area, 0) & 7, 5);
    CHECK_EQ(area[160], 0xcc);
    /* A component whose bit is clear in XSTATE_BV is initialised, one not asked for stays. */
    load_patterns();
    *(u64 *)(area + 512) = 0;
    xrstor_to(area, 4);
    u8 y[32];
    __asm__ volatile("vmovdqu %%ymm7, %0" : "=m"(y));
    CHECK(memcmp(y, pattern[1], 16) == 0);
    CHECK_EQ(*(u64 *)(y + 16) | *(u64 *)(y + 24), 0);
    /* MXCSR comes with SSE or AVX, also when XSTATE_BV has neither. */
    *(u32 *)(area + 24) = 0x1fa0;
    xrstor_to(area, 4);
    u32 mxcsr;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    if (!left_out(TCG, "MXCSR with XRSTOR of AVX alone")) CHECK_EQ(mxcsr, 0x1fa0);
    *(u32 *)(area + 24) = 0x1f80;
    xrstor_to(area, 4);
}

/* XSTATE_BV says which components are in their initial state, if the CPU tracks it: then XSAVEOPT need not write them. */
static void init_tracking(void)
{
    memset(area, 0, sizeof area);
    wipe();
    *(u64 *)(area + 512) = 0;
    xrstor_to(area, 7); /* everything initial */
    if (cpuid(0xd, 1).a & 4) {
        load_patterns();
        CHECK_EQ(xgetbv(1) & 7, 7);
    }
    load_patterns();
    xsaveopt_to(area, 7);
    CHECK_EQ(header(area, 0) & 7, 7);
    wipe();
    xrstor_to(area, 7);
    CHECK(have_patterns());
}

static void compacted(void)
{
    load_patterns();
    memset(area, 0xcc, sizeof area);
    memset(area + 512, 0, 64);
    xsavec_to(area, 7);
    CHECK_EQ(header(area, 1), 1ul << 63 | 7);
    CHECK_EQ(header(area, 0) & 7, 7);
    CHECK(memcmp(area + 576 + 7 * 16, pattern[1] + 16, 16) == 0);
    wipe();
    xrstor_to(area, 7);
    CHECK(have_patterns());
    /* XCOMP_BV that names what XCR0 has not, reserved header bytes, a compacted bit without the mask: #GP. */
    CODE(do_xrstor, "xrstor64 (%rbx)");
    ctx_kernel(&c, do_xrstor);
    c.gpr[RAX] = 7, c.gpr[RDX] = 0, c.gpr[RBX] = (u64)area;
    struct ctx keep = c;
    *(u64 *)(area + 520) = 1ul << 63 | 7 | 1ul << 62;
    FAULTS(&c, GP, 0);
    *(u64 *)(area + 520) = 1ul << 63 | 3; /* XSTATE_BV has AVX, XCOMP_BV has not */
    c = keep;
    FAULTS(&c, GP, 0);
    *(u64 *)(area + 520) = 1ul << 63 | 7;
    area[512 + 63] = 1;
    c = keep;
    FAULTS(&c, GP, 0);
    area[512 + 63] = 0;
    c = keep;
    COMPLETES(&c);
}

static void supervisor(void)
{
    CODE(do_xsaves, "xsaves64 (%rbx)");
    wrmsr(MSR_XSS, 0);
    load_patterns();
    memset(area2, 0, sizeof area2);
    xsaves_to(area2, 7);
    CHECK_EQ(header(area2, 1), 1ul << 63 | 7);
    wipe();
    xrstors_to(area2, 7);
    CHECK(have_patterns());
    ctx_user(&c, do_xsaves);
    c.gpr[RBX] = (u64)user(area2);
    FAULTS(&c, GP, 0);
}

static void refusals(void)
{
    CODE(do_xsave, "xsave64 (%rbx)");
    CODE(do_fxsave, "fxsave64 (%rbx)");
    CODE(do_fxrstor, "fxrstor64 (%rbx)");
    CODE(do_xrstor2, "xrstor64 (%rbx)");
    ctx_kernel(&c, do_xsave);
    c.gpr[RBX] = (u64)area + 8; /* not on 64 */
    FAULTS(&c, GP, 0);
    ctx_kernel(&c, do_fxsave);
    c.gpr[RBX] = (u64)area + 8; /* not on 16 */
    FAULTS(&c, GP, 0);
    memset(area, 0, sizeof area);
    *(u64 *)(area + 512) = 1ul << 63; /* XSTATE_BV has what XCR0 has not */
    ctx_kernel(&c, do_xrstor2);
    c.gpr[RAX] = 7, c.gpr[RDX] = 0, c.gpr[RBX] = (u64)area;
    FAULTS(&c, GP, 0);
    *(u64 *)(area + 512) = 2;
    *(u32 *)(area + 24) = 0x80001f80; /* reserved MXCSR bit */
    if (!left_out(TCG, "reserved bits of MXCSR")) {
        ctx_kernel(&c, do_xrstor2);
        c.gpr[RAX] = 7, c.gpr[RDX] = 0, c.gpr[RBX] = (u64)area;
        FAULTS(&c, GP, 0);
        ctx_kernel(&c, do_fxrstor);
        c.gpr[RBX] = (u64)area;
        FAULTS(&c, GP, 0);
    }
    /* A missing page in the middle: #PF; after it is there, the restart completes. */
    u8 *frames = pages_alloc(2, PAGE);
    map_page(TEST_VA, (u64)frames, PTE_W);
    *pte_of(TEST_VA + PAGE, 1) = 0;
    invlpg(TEST_VA + PAGE);
    load_patterns();
    ctx_kernel(&c, do_xsave);
    c.gpr[RAX] = 7, c.gpr[RDX] = 0, c.gpr[RBX] = TEST_VA + PAGE - 256;
    FAULTS(&c, PF, PF_W);
    CHECK_EQ(c.cr2 & ~0xffful, TEST_VA + PAGE);
    map_page(TEST_VA + PAGE, (u64)frames + PAGE, PTE_W);
    COMPLETES(&c);
    wipe();
    xrstor_to((void *)(TEST_VA + PAGE - 256), 7);
    CHECK(have_patterns());
}

int main(void)
{
    set_cr4(cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
    if (!HAS_XSAVE || !HAS_AVX) {
        skip("XSAVE");
        return done();
    }
    if (left_out(LAB, "XSETBV: under KVM it is not seen")) return done();
    CHECK_EQ(cpuid(1, 0).c >> 27 & 1, 0);
    set_cr4(cr4() | CR4_OSXSAVE);
    CHECK_EQ(cpuid(1, 0).c >> 27 & 1, 1); /* CPUID.OSXSAVE mirrors CR4 */
    xsetbv(0, 7);
    CHECK_EQ(xgetbv(0), 7);
    struct cpuid leaf = cpuid(0xd, 0), sub = cpuid(0xd, 1), avx = cpuid(0xd, 2);
    CHECK_EQ(leaf.a & 7, 7);
    CHECK_EQ(leaf.b, avx.b + avx.a); /* the size for what XCR0 has now */
    CHECK_EQ(avx.a, 256);
    xsetbv(0, 3);
    CHECK_EQ(cpuid(0xd, 0).b, 576);
    xsetbv(0, 7);
    for (unsigned i = 0; i < sizeof pattern; i++) ((u8 *)pattern)[i] = (u8)(i * 5 + 1);
    standard_form(avx.b);
    if (sub.a & 1)
        init_tracking();
    else
        skip("XSAVEOPT");
    if (sub.a & 2)
        compacted();
    else
        skip("XSAVEC");
    if (sub.a & 8)
        supervisor();
    else
        skip("XSAVES");
    refusals();
    return done();
}
