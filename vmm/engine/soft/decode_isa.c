/* Which instruction sets this CPU lacks. User-mode instructions run natively and the guest is offered what the host has (cpuid.c), so
 * the host's CPUID decides; what no guest is ever offered is missing on every host. Instructions that C handlers execute are left to them. */
#include "vmm/engine/soft/decode.h"

#define BIT(n) (1u << (n))

/* Where a feature bit is found. */
enum { L1C, L1D, L7B, L7C, L7D, L71A, X1C, X1D, NEVER, LEAVES };
static uint32_t leaf[LEAVES];
static bool avx_enabled, avx512_enabled;
static bool missing[ZYDIS_ISA_SET_MAX_VALUE + 1];

static void cpuid(uint32_t n, uint32_t sub, uint32_t r[4])
{
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(n), "c"(sub));
}

struct need {
    uint16_t first, last; /* of enum ZydisISASet */
    uint8_t where;
    uint32_t bit;
};
#define SET(name, where, bit)                                  \
    {                                                          \
        ZYDIS_ISA_SET_##name, ZYDIS_ISA_SET_##name, where, bit \
    }
#define SETS(first, last, where, bit)                           \
    {                                                           \
        ZYDIS_ISA_SET_##first, ZYDIS_ISA_SET_##last, where, bit \
    }

static const struct need needs[] = {
    SET(ADOX_ADCX, L7B, BIT(19)),
    SET(AES, L1C, BIT(25)),
    SET(AMD3DNOW, X1D, BIT(31)),
    SET(AVX, L1C, BIT(28)),
    SET(AVX2, L7B, BIT(5)),
    SET(AVX2GATHER, L7B, BIT(5)),
    SET(AVXAES, L1C, BIT(25)),
    SET(AVX_GFNI, L7C, BIT(8)),
    SET(AVX_VNNI, L71A, BIT(4)),
    SETS(AVX512BW_128, AVX512BW_KOP, L7B, BIT(30)),
    SETS(AVX512CD_128, AVX512CD_512, L7B, BIT(28)),
    SETS(AVX512DQ_128, AVX512DQ_SCALAR, L7B, BIT(17)),
    SETS(AVX512F_128, AVX512F_SCALAR, L7B, BIT(16)),
    SETS(AVX512ER_512, AVX512ER_SCALAR, NEVER, 1),
    SET(AVX512PF_512, NEVER, 1),
    SETS(AVX512_4FMAPS_512, AVX512_4VNNIW_512, NEVER, 1),
    SETS(AVX512_BF16_128, AVX512_BF16_512, L71A, BIT(5)),
    SETS(AVX512_BITALG_128, AVX512_BITALG_512, L7C, BIT(12)),
    SETS(AVX512_FP16_128, AVX512_FP16_SCALAR, L7D, BIT(23)),
    SETS(AVX512_GFNI_128, AVX512_GFNI_512, L7C, BIT(8)),
    SETS(AVX512_IFMA_128, AVX512_IFMA_512, L7B, BIT(21)),
    SETS(AVX512_VAES_128, AVX512_VAES_512, L7C, BIT(9)),
    SETS(AVX512_VBMI2_128, AVX512_VBMI2_512, L7C, BIT(6)),
    SETS(AVX512_VBMI_128, AVX512_VBMI_512, L7C, BIT(1)),
    SETS(AVX512_VNNI_128, AVX512_VNNI_512, L7C, BIT(11)),
    SETS(AVX512_VP2INTERSECT_128, AVX512_VP2INTERSECT_512, L7D, BIT(8)),
    SETS(AVX512_VPCLMULQDQ_128, AVX512_VPCLMULQDQ_512, L7C, BIT(10)),
    SETS(AVX512_VPOPCNTDQ_128, AVX512_VPOPCNTDQ_512, L7C, BIT(14)),
    SET(BMI1, L7B, BIT(3)),
    SET(BMI2, L7B, BIT(8)),
    SET(CLFLUSHOPT, L7B, BIT(23)),
    SET(CLWB, L7B, BIT(24)),
    SET(CMPXCHG16B, L1C, BIT(13)),
    SET(F16C, L1C, BIT(29)),
    SET(FMA, L1C, BIT(12)),
    SET(FMA4, X1C, BIT(16)),
    SET(GFNI, L7C, BIT(8)),
    SETS(KNCE, KNC_PF_HINT, NEVER, 1),
    SET(LAHF, X1C, BIT(0)),
    SET(LWP, NEVER, 1),
    SET(MOVBE, L1C, BIT(22)),
    SETS(PADLOCK_ACE, PADLOCK_RNG, NEVER, 1),
    SET(PCLMULQDQ, L1C, BIT(1)),
    SET(POPCNT, L1C, BIT(23)),
    SET(RDRAND, L1C, BIT(30)),
    SET(RDSEED, L7B, BIT(18)),
    SET(RTM, NEVER, 1),
    SET(SHA, L7B, BIT(29)),
    SETS(SSE4, SSE4, L1C, BIT(19)),
    SET(SSE42, L1C, BIT(20)),
    SET(SSE4A, X1C, BIT(6)),
    SETS(SSSE3, SSSE3MMX, L1C, BIT(9)),
    SET(TBM, X1C, BIT(21)),
    SET(VAES, L7C, BIT(9)),
    SET(VPCLMULQDQ, L7C, BIT(10)),
    SET(XOP, X1C, BIT(11)),
};

void soft_isa_init(void)
{
    uint32_t r[4], max, max_ext, xcr0 = 0, d;
    cpuid(0, 0, r);
    max = r[0];
    cpuid(0x80000000, 0, r);
    max_ext = r[0];
    cpuid(1, 0, r);
    leaf[L1C] = r[2];
    leaf[L1D] = r[3];
    if (leaf[L1C] & BIT(27)) __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(d) : "c"(0));
    avx_enabled = (xcr0 & 6) == 6;
    avx512_enabled = (xcr0 & 0xe6) == 0xe6;
    if (max >= 7) {
        cpuid(7, 0, r);
        leaf[L7B] = r[1];
        leaf[L7C] = r[2];
        leaf[L7D] = r[3];
        if (r[0] >= 1) {
            cpuid(7, 1, r);
            leaf[L71A] = r[0];
        }
    }
    if (max_ext >= 0x80000001) {
        cpuid(0x80000001, 0, r);
        leaf[X1C] = r[2];
        leaf[X1D] = r[3];
    }
    for (unsigned i = 0; i < sizeof needs / sizeof *needs; i++)
        for (unsigned set = needs[i].first; set <= needs[i].last; set++)
            missing[set] = !(leaf[needs[i].where] & needs[i].bit);
}

bool soft_isa_missing(const ZydisDecodedInstruction *z)
{
    if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_3DNOW && !(leaf[X1D] & BIT(31))) return true;
    bool vex = z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX || z->encoding == ZYDIS_INSTRUCTION_ENCODING_XOP;
    if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_MVEX ||
        (z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && !avx512_enabled))
        return true;
    if (vex && !avx_enabled && z->meta.isa_ext != ZYDIS_ISA_EXT_BMI1 && z->meta.isa_ext != ZYDIS_ISA_EXT_BMI2)
        return true;
    return missing[z->meta.isa_set];
}

/* SDM vol. 1 14.9 (VEX), vol. 2 2.8 (exception types): legacy vector operands of 16 bytes are aligned but for a few; with VEX and EVEX none
 * are but for a few. AMD's misaligned mode (MXCSR.MM) frees the legacy ones that aren't explicitly aligned moves (APM vol. 1 4.3.2). */
bool soft_needs_alignment(const ZydisDecodedInstruction *z, unsigned mem_size, bool *unless_mm)
{
    *unless_mm = false;
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_VMOVAPS:
    case ZYDIS_MNEMONIC_VMOVAPD:
    case ZYDIS_MNEMONIC_VMOVDQA:
    case ZYDIS_MNEMONIC_VMOVDQA32:
    case ZYDIS_MNEMONIC_VMOVDQA64:
    case ZYDIS_MNEMONIC_VMOVNTPS:
    case ZYDIS_MNEMONIC_VMOVNTPD:
    case ZYDIS_MNEMONIC_VMOVNTDQ:
    case ZYDIS_MNEMONIC_VMOVNTDQA:
    case ZYDIS_MNEMONIC_MOVAPS:
    case ZYDIS_MNEMONIC_MOVAPD:
    case ZYDIS_MNEMONIC_MOVDQA:
    case ZYDIS_MNEMONIC_MOVNTPS:
    case ZYDIS_MNEMONIC_MOVNTPD:
    case ZYDIS_MNEMONIC_MOVNTDQ:
    case ZYDIS_MNEMONIC_MOVNTDQA:
    case ZYDIS_MNEMONIC_CMPXCHG16B: return true;
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM: return false;
    default: break;
    }
    if (z->meta.isa_set == ZYDIS_ISA_SET_SHA) return false; /* AMD's don't care */
    *unless_mm = true;
    return z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && mem_size == 16;
}

bool soft_checks_mf(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FNINIT:
    case ZYDIS_MNEMONIC_FNCLEX: return false;
    default: break;
    }
    if (z->meta.isa_ext == ZYDIS_ISA_EXT_X87 || z->mnemonic == ZYDIS_MNEMONIC_FISTTP) return true;
    for (unsigned i = 0; i < z->operand_count_visible; i++)
        if (ops[i].type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(ops[i].reg.value) == ZYDIS_REGCLASS_MMX)
            return true;
    return false;
}

bool soft_ignores_w(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_ANDN:
    case ZYDIS_MNEMONIC_BEXTR:
    case ZYDIS_MNEMONIC_BLSI:
    case ZYDIS_MNEMONIC_BLSMSK:
    case ZYDIS_MNEMONIC_BLSR:
    case ZYDIS_MNEMONIC_BZHI:
    case ZYDIS_MNEMONIC_MULX:
    case ZYDIS_MNEMONIC_PDEP:
    case ZYDIS_MNEMONIC_PEXT:
    case ZYDIS_MNEMONIC_RORX:
    case ZYDIS_MNEMONIC_SARX:
    case ZYDIS_MNEMONIC_SHLX:
    case ZYDIS_MNEMONIC_SHRX:
    case ZYDIS_MNEMONIC_VMOVD:
    case ZYDIS_MNEMONIC_VPEXTRD:
    case ZYDIS_MNEMONIC_VPINSRD:
    case ZYDIS_MNEMONIC_VCVTSS2SI:
    case ZYDIS_MNEMONIC_VCVTSD2SI:
    case ZYDIS_MNEMONIC_VCVTTSS2SI:
    case ZYDIS_MNEMONIC_VCVTTSD2SI:
    case ZYDIS_MNEMONIC_VCVTSS2USI:
    case ZYDIS_MNEMONIC_VCVTSD2USI:
    case ZYDIS_MNEMONIC_VCVTTSS2USI:
    case ZYDIS_MNEMONIC_VCVTTSD2USI:
    case ZYDIS_MNEMONIC_VCVTSI2SS:
    case ZYDIS_MNEMONIC_VCVTSI2SD:
    case ZYDIS_MNEMONIC_VCVTUSI2SS:
    case ZYDIS_MNEMONIC_VCVTUSI2SD:
    case ZYDIS_MNEMONIC_VPCMPESTRI:
    case ZYDIS_MNEMONIC_VPCMPESTRM: return true;
    case ZYDIS_MNEMONIC_VPBROADCASTD:
        return z->opcode == 0x7c && ops[z->operand_count_visible - 1].type == ZYDIS_OPERAND_TYPE_REGISTER;
    default: return false;
    }
}
