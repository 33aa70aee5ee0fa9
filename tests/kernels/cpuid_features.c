// CPUID advertises what works: for each feature bit, one instruction of it runs; where the bit is off, kernels don't try.
// Also what must be consistent between leaves.
#include "kernel.h"

static struct ctx c;
static u8 buffer[256] __attribute__((aligned(64)));

/* clang-format off */
#define BITS(X)                                                                                                       \
    X(fpu, 1, 0, d, 0, "fld1; fstp %st(0)")                                                                           \
    X(tsc, 1, 0, d, 4, "rdtsc")                                                                                       \
    X(msr, 1, 0, d, 5, "mov $0x1b, %ecx; rdmsr")                                                                      \
    X(cx8, 1, 0, d, 8, "lock cmpxchg8b (%rbx)")                                                                       \
    X(sep, 1, 0, d, 11, "mov $0x174, %ecx; rdmsr")                                                                    \
    X(cmov, 1, 0, d, 15, "cmovz %eax, %ecx")                                                                          \
    X(clflush, 1, 0, d, 19, "clflush (%rbx)")                                                                         \
    X(mmx, 1, 0, d, 23, "paddb %mm0, %mm1; emms")                                                                     \
    X(fxsr, 1, 0, d, 24, "fninit; movaps %xmm0, %xmm1")                                                               \
    X(sse, 1, 0, d, 25, "addps %xmm0, %xmm1")                                                                         \
    X(sse2, 1, 0, d, 26, "paddq %xmm0, %xmm1")                                                                        \
    X(sse3, 1, 0, c, 0, "lddqu (%rbx), %xmm0")                                                                        \
    X(pclmul, 1, 0, c, 1, "pclmulqdq $0, %xmm0, %xmm1")                                                               \
    X(monitor, 1, 0, c, 3, "mov %rbx, %rax; xor %ecx, %ecx; xor %edx, %edx; monitor")                                 \
    X(ssse3, 1, 0, c, 9, "pshufb %xmm0, %xmm1")                                                                       \
    X(fma, 1, 0, c, 12, "vfmadd231pd %ymm0, %ymm1, %ymm2")                                                            \
    X(cx16, 1, 0, c, 13, "lock cmpxchg16b (%rbx)")                                                                    \
    X(sse41, 1, 0, c, 19, "ptest %xmm0, %xmm1")                                                                       \
    X(sse42, 1, 0, c, 20, "crc32l %eax, %ecx")                                                                        \
    X(x2apic, 1, 0, c, 21, "nop")                                                                                     \
    X(movbe, 1, 0, c, 22, "movbe (%rbx), %eax")                                                                       \
    X(popcnt, 1, 0, c, 23, "popcnt %eax, %ecx")                                                                       \
    X(aes, 1, 0, c, 25, "aesenc %xmm0, %xmm1")                                                                        \
    X(avx, 1, 0, c, 28, "vaddps %ymm0, %ymm1, %ymm2")                                                                 \
    X(f16c, 1, 0, c, 29, "vcvtph2ps %xmm0, %ymm1")                                                                    \
    X(rdrand, 1, 0, c, 30, "rdrand %rax")                                                                             \
    X(fsgsbase, 7, 0, b, 0, "rdfsbase %rax")                                                                          \
    X(bmi1, 7, 0, b, 3, "andn %eax, %ecx, %edx; tzcnt %eax, %ecx")                                                    \
    X(avx2, 7, 0, b, 5, "vpaddb %ymm0, %ymm1, %ymm2")                                                                 \
    X(bmi2, 7, 0, b, 8, "mulx %rax, %rcx, %rdx; pdep %rax, %rcx, %rdx")                                               \
    X(erms, 7, 0, b, 9, "mov %rbx, %rdi; mov $8, %ecx; rep stosb")                                                    \
    X(invpcid, 7, 0, b, 10, "movq $0, (%rbx); movq $0, 8(%rbx); mov $2, %eax; invpcid (%rbx), %rax")                  \
    X(avx512f, 7, 0, b, 16, "vpaddd %zmm0, %zmm1, %zmm2")                                                             \
    X(avx512dq, 7, 0, b, 17, "vpmullq %zmm0, %zmm1, %zmm2")                                                           \
    X(rdseed, 7, 0, b, 18, "rdseed %rax")                                                                             \
    X(adx, 7, 0, b, 19, "adcx %eax, %ecx; adox %eax, %ecx")                                                           \
    X(smap, 7, 0, b, 20, "stac; clac")                                                                                \
    X(clflushopt, 7, 0, b, 23, "clflushopt (%rbx)")                                                                   \
    X(clwb, 7, 0, b, 24, "clwb (%rbx)")                                                                               \
    X(avx512cd, 7, 0, b, 28, "vplzcntd %zmm0, %zmm1")                                                                 \
    X(sha, 7, 0, b, 29, "sha1nexte %xmm0, %xmm1")                                                                     \
    X(avx512bw, 7, 0, b, 30, "vpaddb %zmm0, %zmm1, %zmm2")                                                            \
    X(avx512vl, 7, 0, b, 31, "vpaddd %ymm0, %ymm1, %ymm20")                                                           \
    X(vbmi, 7, 0, c, 1, "vpermb %zmm0, %zmm1, %zmm2")                                                                 \
    X(pku, 7, 0, c, 3, "nop")                                                                                         \
    X(vbmi2, 7, 0, c, 6, "vpcompressb %zmm0, %zmm1{%k1}{z}")                                                          \
    X(gfni, 7, 0, c, 8, "gf2p8mulb %xmm0, %xmm1")                                                                     \
    X(vaes, 7, 0, c, 9, "vaesenc %ymm0, %ymm1, %ymm2")                                                                \
    X(vpclmul, 7, 0, c, 10, "vpclmulqdq $0, %ymm0, %ymm1, %ymm2")                                                     \
    X(vnni, 7, 0, c, 11, "vpdpbusd %zmm0, %zmm1, %zmm2")                                                              \
    X(bitalg, 7, 0, c, 12, "vpopcntb %zmm0, %zmm1")                                                                   \
    X(vpopcntdq, 7, 0, c, 14, "vpopcntd %zmm0, %zmm1")                                                                \
    X(rdpid, 7, 0, c, 22, "rdpid %rax")                                                                               \
    X(serialize, 7, 0, d, 14, ".byte 0x0f, 0x01, 0xe8")                                                               \
    X(xsaveopt, 0xd, 1, a, 0, "xor %eax, %eax; xor %edx, %edx; xsaveopt (%rbx)")                                      \
    X(xgetbv1, 0xd, 1, a, 2, "mov $1, %ecx; xgetbv")                                                                  \
    X(lahf, 0x80000001, 0, c, 0, "lahf; sahf")                                                                        \
    X(lzcnt, 0x80000001, 0, c, 5, "lzcnt %eax, %ecx")                                                                 \
    X(sse4a, 0x80000001, 0, c, 6, "extrq %xmm0, %xmm1")                                                               \
    X(prefetchw, 0x80000001, 0, c, 8, "prefetchw (%rbx)")                                                             \
    X(fma4, 0x80000001, 0, c, 16, "vfmaddpd %ymm0, %ymm1, %ymm2, %ymm3")                                              \
    X(tbm, 0x80000001, 0, c, 21, "blsfill %eax, %ecx")                                                                \
    X(xop, 0x80000001, 0, c, 11, "vphaddbd %xmm0, %xmm1")                                                             \
    X(rdtscp, 0x80000001, 0, d, 27, "rdtscp")                                                                         \
    X(now3d, 0x80000001, 0, d, 31, "pfadd %mm0, %mm1; femms")                                                         \
    X(clzero, 0x80000008, 0, b, 0, "mov %rbx, %rax; clzero")                                                          \
    X(wbnoinvd, 0x80000008, 0, b, 9, "wbnoinvd")
/* clang-format on */

#define DEFINE(name, leaf, sub, reg, bit, text) CODE(use_##name, text);
BITS(DEFINE)

static void try(const char *name, bool advertised, u8 *code)
{
    if (!advertised) {
        print("%s- ", name);
        return;
    }
    ctx_kernel(&c, code);
    c.gpr[RBX] = (u64)buffer;
    if (!COMPLETES(&c)) print("    CPUID has %s\n", name);
}

/* Whether it uses more than XCR0 has at reset. */
static bool strstr_ymm(const char *text)
{
    for (; *text; text++)
        if ((text[0] == 'y' || text[0] == 'z') && text[1] == 'm' && text[2] == 'm') return true;
    return false;
}

static u32 maximum(u32 leaf)
{
    return cpuid(leaf & 0x80000000, 0).a;
}

static void consistent(void)
{
    u32 bits = cpuid(0x80000008, 0).a;
    CHECK((bits & 0xff) >= 36 && (bits & 0xff) <= 52);
    CHECK_EQ(bits >> 8 & 0xff, HAS_7C(16) ? 57 : 48);
    CHECK(HAS_XD(29) && HAS_XD(20) && HAS_XD(11)); /* long mode, NX, SYSCALL: we have used them */
    CHECK(HAS_1D(6) && HAS_1D(13) && HAS_1D(9));   /* PAE, PGE, APIC */
    if (HAS_AVX) CHECK(HAS_XSAVE);
    if (HAS_AVX2 || HAS_1C(12)) CHECK(HAS_AVX);
    if (HAS_AVX512F) CHECK(HAS_AVX2 && (cpuid(0xd, 0).a & 0xe0) == 0xe0);
    if (HAS_INVPCID && !HAS_PCID) print("(INVPCID without PCID) ");
    CHECK_EQ(cpuid(1, 0).b >> 24, 0); /* the boot CPU's APIC id */
    CHECK_EQ(apic_read(0x20) >> 24, 0);
    /* Each subleaf of 0xd that XCR0 may have is inside the total, and they don't overlap. */
    if (HAS_XSAVE) {
        u32 mask = cpuid(0xd, 0).a, total = cpuid(0xd, 0).c, at = 576;
        for (unsigned i = 2; i < 32; i++) {
            if (!(mask >> i & 1)) continue;
            struct cpuid s = cpuid(0xd, i);
            CHECK(s.a && s.b >= at && s.b + s.a <= total);
            at = s.b + s.a;
        }
    }
    /* Reserved CR4 bits follow CPUID: what isn't advertised can't be set. */
    CODE(to_cr4, "mov %rax, %cr4");
    static const struct {
        u64 bit;
        int present;
    } pairs[] = {{CR4_SMEP, 0}, {CR4_SMAP, 1},    {CR4_FSGSBASE, 2}, {CR4_PCIDE, 3},
                 {CR4_UMIP, 4}, {CR4_OSXSAVE, 5}, {1ul << 22, 6},    {1ul << 12, 7}};
    int has[8] = {HAS_SMEP, HAS_SMAP, HAS_FSGSBASE, HAS_PCID, HAS_UMIP, HAS_XSAVE, HAS_7C(3), HAS_7C(16)};
    u64 plain = cr4();
    for (unsigned i = 0; i < 7 && !left_out(TCG, "reserved bits of CR4"); i++) {
        ctx_kernel(&c, to_cr4);
        c.gpr[RAX] = plain | pairs[i].bit;
        if (has[pairs[i].present])
            COMPLETES(&c);
        else
            FAULTS(&c, GP, 0);
        set_cr4(plain);
    }
    /* EFER's reserved bits. */
    CODE(to_efer, "wrmsr");
    ctx_kernel(&c, to_efer);
    c.gpr[RCX] = MSR_EFER, c.gpr[RAX] = (u32)rdmsr(MSR_EFER) | 1u << 19, c.gpr[RDX] = 0;
    if (!left_out(TCG, "reserved bits of EFER")) FAULTS(&c, GP, 0);
    /* APIC base MSR agrees with where the LAPIC answered. */
    CHECK_EQ(rdmsr(MSR_APIC_BASE) & ~0xd00ul, LAPIC);
    CHECK_EQ(rdmsr(MSR_APIC_BASE) >> 8 & 1, 1); /* BSP */
}

int main(void)
{
    set_cr4(cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT | (HAS_FSGSBASE ? CR4_FSGSBASE : 0) | (HAS_SMAP ? CR4_SMAP : 0));
    bool xsetbv_seen = !left_out(LAB, "XSETBV: under KVM it is not seen");
    if (HAS_XSAVE) {
        set_cr4(cr4() | CR4_OSXSAVE);
        xsetbv(0, cpuid(0xd, 0).a & 0xe7);
    }
    print("not there: ");
#define TRY(name, leaf, sub, reg, bit, text) \
    if (xsetbv_seen || !strstr_ymm(text))    \
        try(#name, maximum(leaf) >= leaf && (cpuid(leaf, sub).reg >> bit & 1), use_##name);
    BITS(TRY)
    print("\n");
    consistent();
    return done();
}
