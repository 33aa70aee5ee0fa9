/* CPUID: the host's own answers, cut down to what works here, plus what the engine itself provides (SDM vol. 2 CPUID, AMD APM vol. 3
 * appendix E).
 *
 * User-mode instruction sets run natively, so they are the host's. System features are the engine's, whatever the host has.
 *
 * Speculation: guest code of all rings runs translated, in one address space of one host process. A guest's retpolines or
 * IBRS writes change nothing about how the host predicts the translator's own branches, so they would cost time and protect nothing;
 * isolation of the VM from other processes is the host kernel's. So the guest is told what makes a stock kernel choose no software
 * mitigation: "enhanced/automatic IBRS", and the *_NO bits. */
#include "vmm/engine/soft/pvclock.h"
#include "vmm/engine/soft/system.h"

#define XCR0_AVX 0x6ull
#define XCR0_AVX512 0xe0ull
#define BIT(n) (1u << (n))

static void host(uint32_t leaf, uint32_t sub, uint32_t r[4])
{
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}

static void put(uint32_t r[4], uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    r[0] = a;
    r[1] = b;
    r[2] = c;
    r[3] = d;
}

/* What of the host decides the rest. */
struct host_info {
    uint32_t max, max_ext;
    uint64_t xcr0;
    bool avx, avx512, amd, intel;
    unsigned cpus, shift; /* the guest's vCPUs; bits of the APIC id that number them */
};

static uint64_t read_xcr0(void)
{
    uint32_t a, d;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (uint64_t)d << 32 | a;
}

static struct host_info probe(const struct soft_cpu *cpu)
{
    struct host_info h = {.cpus = cpu->vcpus ? cpu->vcpus : 1};
    uint32_t r[4];
    host(0, 0, r);
    h.max = r[0];
    h.amd = r[1] == 0x68747541 || r[1] == 0x6f677948; /* "Auth"enticAMD, "Hygo"nGenuine */
    h.intel = r[1] == 0x756e6547;                     /* "Genu"ineIntel */
    host(0x80000000, 0, r);
    h.max_ext = r[0];
    host(1, 0, r);
    if (r[2] & BIT(27)) h.xcr0 = read_xcr0();
    h.avx = (h.xcr0 & XCR0_AVX) == XCR0_AVX && (r[2] & BIT(28));
    h.avx512 = h.avx && (h.xcr0 & XCR0_AVX512) == XCR0_AVX512;
    while ((1u << h.shift) < h.cpus) h.shift++;
    return h;
}

/* ---- leaf 1 ---- */

#define LEAF1_ECX_ENGINE \
    (BIT(17) /* PCID */ | BIT(21) /* x2APIC */ | BIT(24) /* TSC deadline */ | BIT(31) /* hypervisor */)
/* SSE3 PCLMUL SSSE3 CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE RDRAND */
#define LEAF1_ECX_HOST \
    (BIT(0) | BIT(1) | BIT(9) | BIT(13) | BIT(19) | BIT(20) | BIT(22) | BIT(23) | BIT(25) | BIT(26) | BIT(30))
#define LEAF1_ECX_AVX (BIT(12) /* FMA */ | BIT(28) | BIT(29) /* F16C */)
/* DE PSE TSC MSR PAE MCE APIC SEP MTRR PGE MCA PAT */
#define LEAF1_EDX_ENGINE \
    (BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(9) | BIT(11) | BIT(12) | BIT(13) | BIT(14) | BIT(16))
/* FPU CX8 CMOV CLFLUSH MMX FXSR SSE SSE2 */
#define LEAF1_EDX_HOST (BIT(0) | BIT(8) | BIT(15) | BIT(19) | BIT(23) | BIT(24) | BIT(25) | BIT(26))

static void make_leaf1(struct soft_cpu *cpu, const struct host_info *h)
{
    uint32_t r[4], *g = cpu->cpuid.basic[1];
    host(1, 0, r);
    g[0] = r[0];
    g[1] = (r[1] & 0xff00) | (1u << h->shift) << 16 | cpu->id << 24;
    g[2] = (r[2] & (LEAF1_ECX_HOST | (h->avx ? LEAF1_ECX_AVX : 0))) | LEAF1_ECX_ENGINE;
    g[3] = (r[3] & LEAF1_EDX_HOST) | LEAF1_EDX_ENGINE | (h->cpus > 1 ? BIT(28) : 0);
}

/* ---- leaf 7 ---- */

/* FSGSBASE TSC_ADJUST SMEP INVPCID SMAP */
#define LEAF7_EBX_ENGINE (BIT(0) | BIT(1) | BIT(7) | BIT(10) | BIT(20))
/* BMI1 FDP_EXCPTN_ONLY BMI2 ERMS ZERO_FCS_FDS RDSEED ADX CLFLUSHOPT CLWB SHA */
#define LEAF7_EBX_HOST (BIT(3) | BIT(6) | BIT(8) | BIT(9) | BIT(13) | BIT(18) | BIT(19) | BIT(23) | BIT(24) | BIT(29))
/* F DQ IFMA CD BW VL */
#define LEAF7_EBX_AVX512 (BIT(16) | BIT(17) | BIT(21) | BIT(28) | BIT(30) | BIT(31))
#define LEAF7_ECX_ENGINE (BIT(2) /* UMIP */ | BIT(22) /* RDPID */)
#define LEAF7_ECX_AVX (BIT(9) /* VAES */ | BIT(10) /* VPCLMULQDQ */)
/* VBMI VBMI2 VNNI BITALG VPOPCNTDQ */
#define LEAF7_ECX_AVX512 (BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14))
#define LEAF7_EDX_AVX512 (BIT(8) /* VP2INTERSECT */ | BIT(23) /* FP16 */)
/* Without SERIALIZE, Linux synchronizes each patch of its text by an IRET to itself: over 100,000 of them in a boot. */
#define LEAF7_EDX_ENGINE BIT(14)
#define LEAF7_EDX_INTEL (BIT(26) /* SPEC_CTRL */ | BIT(29) /* ARCH_CAPABILITIES */)

static void make_leaf7(struct soft_cpu *cpu, const struct host_info *h)
{
    uint32_t r[4] = {0, 0, 0, 0}, (*g)[4] = cpu->cpuid.feature;
    if (h->max >= 7) host(7, 0, r);
    uint32_t avx = h->avx ? ~0u : 0, avx512 = h->avx512 ? ~0u : 0;
    bool more = r[0] >= 1;
    g[0][0] = more ? 1 : 0;
    g[0][1] = (r[1] & (LEAF7_EBX_HOST | (avx & BIT(5)) | (avx512 & LEAF7_EBX_AVX512))) | LEAF7_EBX_ENGINE;
    g[0][2] = (r[2] & (BIT(8) /* GFNI */ | (avx & LEAF7_ECX_AVX) | (avx512 & LEAF7_ECX_AVX512))) | LEAF7_ECX_ENGINE;
    g[0][3] = (r[3] & (BIT(4) /* FSRM */ | (avx512 & LEAF7_EDX_AVX512))) | LEAF7_EDX_ENGINE |
              (h->intel ? LEAF7_EDX_INTEL : 0);
    if (!more) return;
    host(7, 1, r);
    /* AVX-VNNI, AVX512-BF16, and the fast string bits */
    put(g[1], r[0] & ((avx & BIT(4)) | (avx512 & BIT(5)) | BIT(10) | BIT(11) | BIT(12)), 0, 0, 0);
}

/* ---- leaf 0xd ---- */

static void make_xsave(struct soft_cpu *cpu, const struct host_info *h)
{
    struct soft_cpuid *c = &cpu->cpuid;
    uint32_t r[4];
    if (!(c->basic[1][2] & BIT(26)) || h->max < 0xd) {
        c->basic[1][2] &= ~(BIT(26) | LEAF1_ECX_AVX);
        return;
    }
    c->xcr0_mask = h->xcr0 & (3 | (h->avx ? XCR0_AVX : 0) | (h->avx512 ? XCR0_AVX512 : 0));
    uint32_t top = 576;
    for (unsigned i = 2; i < CPUID_XSAVE; i++) {
        if (!(c->xcr0_mask >> i & 1)) continue;
        host(0xd, i, r);
        put(c->xsave[i], r[0], r[1], r[2] & 2, 0);
        if (r[0] + r[1] > top) top = r[0] + r[1];
    }
    put(c->xsave[0], (uint32_t)c->xcr0_mask, 0, top, 0);
    host(0xd, 1, r);
    /* XSAVEOPT, XSAVEC, XGETBV(1), XSAVES; the last is made of XSAVEC */
    uint32_t f = r[0] & 0xf;
    if (!(f & 2)) f &= ~8u;
    put(c->xsave[1], f, 0, 0, 0);
}

/* Size of an image with the components in `mask`: standard, or compacted. */
static uint32_t xsave_size(const struct soft_cpuid *c, uint64_t mask, bool compact)
{
    uint32_t size = 576;
    for (unsigned i = 2; i < CPUID_XSAVE; i++) {
        if (!(mask >> i & 1)) continue;
        const uint32_t *x = c->xsave[i];
        if (compact)
            size = (x[2] & 2 ? (size + 63) & ~63u : size) + x[0];
        else if (x[0] + x[1] > size)
            size = x[0] + x[1];
    }
    return size;
}

/* ---- topology and caches: one socket of single-threaded cores ---- */

static void make_topology(struct soft_cpu *cpu, const struct host_info *h)
{
    struct soft_cpuid *c = &cpu->cpuid;
    put(c->topology[0], 0, 1, 0x100, cpu->id);
    put(c->topology[1], h->shift, h->cpus, 0x201, cpu->id);
}

/* Level 3 is shared by all cores, the others by none. */
static uint32_t cache_sharing(uint32_t eax, const struct host_info *h)
{
    uint32_t shared = (eax >> 5 & 7) >= 3 ? (1u << h->shift) - 1 : 0;
    return (eax & ~(0xfffu << 14)) | shared << 14;
}

static void make_caches(struct soft_cpu *cpu, const struct host_info *h)
{
    struct soft_cpuid *c = &cpu->cpuid;
    uint32_t cores = (1u << h->shift) - 1;
    for (unsigned i = 0; i < 4 && h->intel && h->max >= 4; i++) {
        host(4, i, c->cache[i]);
        if (!(c->cache[i][0] & 0x1f)) break;
        c->cache[i][0] = (cache_sharing(c->cache[i][0], h) & 0x03ffffffu) | (cores > 63 ? 63 : cores) << 26;
    }
    for (unsigned i = 0; i < 5 && h->amd && h->max_ext >= 0x8000001d; i++) {
        host(0x8000001d, i, c->amd_cache[i]);
        if (!(c->amd_cache[i][0] & 0x1f)) break;
        c->amd_cache[i][0] = cache_sharing(c->amd_cache[i][0], h);
    }
}

/* ---- other basic leaves ---- */

static void make_basic(struct soft_cpu *cpu, const struct host_info *h)
{
    struct soft_cpuid *c = &cpu->cpuid;
    host(0, 0, c->basic[0]);
    c->basic[0][0] = h->intel ? 0x16 : 0xd;
    make_leaf1(cpu, h);
    if (h->intel && h->max >= 2) host(2, 0, c->basic[2]);
    c->basic[6][0] = BIT(2); /* ARAT: the APIC timer never stops */
    if (!h->intel || !cpu->tsc_khz) return;
    /* Crystal = the APIC timer's 1 GHz, which is what Linux derives its frequency from. */
    uint32_t khz = (uint32_t)cpu->tsc_khz, mhz = khz / 1000;
    put(c->basic[0x15], 1000000, khz, 1000000000, 0);
    put(c->basic[0x16], mhz, mhz, 100, 0);
}

static void make_hypervisor(struct soft_cpu *cpu)
{
    struct soft_cpuid *c = &cpu->cpuid;
    /* The KVM paravirtual interface, since stock kernels know it: its clock spares them measuring the TSC against a timer, which goes wrong
     * on a busy host (pvclock.c). */
    put(c->hyper[0], 0x40000010, 0x4b4d564b, 0x564b4d56, 0x0000004d); /* "KVMKVMKVM" */
    put(c->hyper[1], PVCLOCK_FEATURES, 0, 0, 0);
    put(c->hyper[2], (uint32_t)cpu->tsc_khz, 1000000 /* APIC timer, kHz */, 0, 0);
}

/* ---- extended leaves ---- */

/* SYSCALL NX 1-GiB pages RDTSCP LM */
#define EXT1_EDX_ENGINE (BIT(11) | BIT(20) | BIT(26) | BIT(27) | BIT(29))
#define EXT1_EDX_HOST (BIT(22) /* MMXEXT */ | BIT(30) | BIT(31) /* 3DNow! */)
/* On AMD, bits 0-9, 12-17, 23 and 24 repeat leaf 1. */
#define EXT1_EDX_LEAF1 0x0183f3ffu
/* LAHF LZCNT SSE4A MISALIGNSSE 3DNOWPREFETCH */
#define EXT1_ECX_HOST (BIT(0) | BIT(5) | BIT(6) | BIT(7) | BIT(8))
#define EXT1_ECX_AVX (BIT(11) /* XOP */ | BIT(16) /* FMA4 */)
#define EXT1_ECX_TBM BIT(21)
#define EXT8_EBX_AMD (BIT(26) /* SSB_NO */ | BIT(29) /* BTC_NO */)
/* LFENCE serializes, null selectors clear the base, automatic IBRS, SRSO_NO */
#define EXT21_EAX_AMD (BIT(2) | BIT(6) | BIT(8) | BIT(29))
#define EXT21_ECX_AMD (BIT(1) /* TSA_SQ_NO */ | BIT(2) /* TSA_L1_NO */)

static void make_ext_amd(struct soft_cpu *cpu, const struct host_info *h)
{
    uint32_t(*e)[4] = cpu->cpuid.ext, r[4] = {0, 0, 0, 0};
    host(0x80000001, 0, r);
    e[1][1] = r[1];
    e[1][2] |= BIT(22) /* TOPOEXT */ | (h->cpus > 1 ? BIT(1) /* CMP_LEGACY */ : 0);
    e[1][3] |= cpu->cpuid.basic[1][3] & EXT1_EDX_LEAF1;
    uint32_t pointers = 0;
    if (h->max_ext >= 0x80000008) {
        host(0x80000008, 0, r);
        pointers = r[1] & BIT(2); /* XSAVEERPTR */
    }
    e[8][1] = EXT8_EBX_AMD | pointers;
    e[8][2] = (h->cpus - 1) | h->shift << 12;
    if (h->max_ext >= 0x8000001a) {
        host(0x80000019, 0, e[0x19]);
        host(0x8000001a, 0, e[0x1a]);
    }
    put(e[0x1e], cpu->id, cpu->id & 0xff, 0, 0);
    put(e[0x21], EXT21_EAX_AMD, 0, EXT21_ECX_AMD, 0);
    e[0][0] = 0x80000021;
}

static void make_ext(struct soft_cpu *cpu, const struct host_info *h)
{
    uint32_t(*e)[4] = cpu->cpuid.ext, r[4];
    host(0x80000000, 0, e[0]);
    e[0][0] = 0x80000008;
    host(0x80000001, 0, r);
    e[1][0] = r[0];
    e[1][2] = r[2] & (EXT1_ECX_HOST | EXT1_ECX_TBM | (h->avx ? EXT1_ECX_AVX : 0));
    e[1][3] = (r[3] & EXT1_EDX_HOST) | EXT1_EDX_ENGINE;
    for (unsigned i = 2; i <= 6; i++)
        if (h->max_ext >= 0x80000000u + i) host(0x80000000u + i, 0, e[i]);
    if (h->max_ext >= 0x80000007) host(0x80000007, 0, r);
    e[7][3] = h->max_ext >= 0x80000007 ? r[3] & BIT(8) /* invariant TSC */ : 0;
    e[8][0] = SOFT_PHYS_BITS | 48 << 8;
    if (h->amd) make_ext_amd(cpu, h);
}

/* ---- what follows from it ---- */

static void make_masks(struct soft_cpu *cpu)
{
    struct soft_cpuid *c = &cpu->cpuid;
    c->cr4_mask = CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT |
                  CR4_UMIP | CR4_FSGSBASE | CR4_PCIDE | CR4_SMEP | CR4_SMAP;
    if (c->basic[1][2] & BIT(26)) c->cr4_mask |= CR4_OSXSAVE;
    c->efer_mask = EFER_SCE | EFER_LME | EFER_NXE | (c->amd ? 1ull << 21 /* AIBRSE */ : 0);
}

void soft_cpuid_init(struct soft_cpu *cpu)
{
    soft_zero(&cpu->cpuid, sizeof cpu->cpuid);
    struct host_info h = probe(cpu);
    cpu->cpuid.amd = h.amd;
    make_basic(cpu, &h);
    make_leaf7(cpu, &h);
    make_xsave(cpu, &h);
    make_topology(cpu, &h);
    make_caches(cpu, &h);
    make_hypervisor(cpu);
    make_ext(cpu, &h);
    make_masks(cpu);
    soft_msr_reset(cpu);
}

/* ---- the instruction ---- */

static void copy(uint32_t out[4], const uint32_t r[4])
{
    put(out, r[0], r[1], r[2], r[3]);
}

/* Bits that follow the vCPU's state. */
static void live_leaf1(const struct soft_cpu *cpu, uint32_t out[4])
{
    copy(out, cpu->cpuid.basic[1]);
    if (cpu->cr4 & CR4_OSXSAVE) out[2] |= BIT(27);
    if (cpu->cpuid.apic_off) out[3] &= ~BIT(9);
}

static void live_xsave(const struct soft_cpu *cpu, uint32_t sub, uint32_t out[4])
{
    const struct soft_cpuid *c = &cpu->cpuid;
    if (sub >= CPUID_XSAVE || !c->xcr0_mask) return;
    copy(out, c->xsave[sub]);
    if (sub == 0) out[1] = xsave_size(c, cpu->xcr0, false);
    if (sub == 1 && (out[0] & 2)) out[1] = xsave_size(c, cpu->xcr0, true);
}

static void query_basic(const struct soft_cpu *cpu, uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    const struct soft_cpuid *c = &cpu->cpuid;
    switch (leaf) {
    case 1: live_leaf1(cpu, out); return;
    case 4:
        if (sub < 4) copy(out, c->cache[sub]);
        return;
    case 7:
        if (sub < 2) copy(out, c->feature[sub]);
        return;
    case 0xb:
        if (sub < 2)
            copy(out, c->topology[sub]);
        else
            put(out, 0, 0, sub & 0xff, cpu->id);
        return;
    case 0xd: live_xsave(cpu, sub, out); return;
    default: copy(out, c->basic[leaf]);
    }
}

void cpuid_query(const struct soft_cpu *cpu, uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    const struct soft_cpuid *c = &cpu->cpuid;
    put(out, 0, 0, 0, 0);
    if (leaf <= c->basic[0][0]) {
        query_basic(cpu, leaf, sub, out);
    } else if (leaf >= 0x80000000 && leaf <= c->ext[0][0]) {
        uint32_t n = leaf - 0x80000000;
        if (n == 0x1d) {
            if (sub < 5) copy(out, c->amd_cache[sub]);
        } else {
            copy(out, c->ext[n]);
        }
    } else if (leaf == 0x40000000 || leaf == 0x40000001 || leaf == 0x40000010) {
        copy(out, c->hyper[leaf == 0x40000010 ? 2 : leaf & 1]);
    }
}

enum soft_result cpuid_insn(struct soft_cpu *cpu, const struct insn *in)
{
    if (in->mnemonic != ZYDIS_MNEMONIC_CPUID) return SOFT_NOT_MINE;
    uint32_t r[4];
    cpuid_query(cpu, (uint32_t)cpu->gpr[R_RAX], (uint32_t)cpu->gpr[R_RCX], r);
    cpu->gpr[R_RAX] = r[0];
    cpu->gpr[R_RBX] = r[1];
    cpu->gpr[R_RCX] = r[2];
    cpu->gpr[R_RDX] = r[3];
    return sys_done(cpu, in);
}
