/* Model-specific registers and the counters read by instructions of their own (SDM vol. 4; vol. 3 11.11 for MTRRs, 17.17 for the
 * TSC). An MSR that isn't listed here is #GP, as on hardware; stock kernels probe those they can do without. */
#include "vmm/engine/soft/pvclock.h"
#include "vmm/engine/soft/system.h"

enum {
    MSR_P5_MC_ADDR = 0x0,
    MSR_P5_MC_TYPE = 0x1,
    MSR_TSC = 0x10,
    MSR_PLATFORM_ID = 0x17,
    MSR_APIC_BASE = 0x1b,
    MSR_EBL_CR_POWERON = 0x2a,
    MSR_FEATURE_CONTROL = 0x3a,
    MSR_TSC_ADJUST = 0x3b,
    MSR_SPEC_CTRL = 0x48,
    MSR_PRED_CMD = 0x49,
    MSR_BIOS_UPDT_TRIG = 0x79,
    MSR_BIOS_SIGN_ID = 0x8b,
    MSR_FSB_FREQ = 0xcd,
    MSR_PLATFORM_INFO = 0xce,
    MSR_MTRRCAP = 0xfe,
    MSR_ARCH_CAPABILITIES = 0x10a,
    MSR_SYSENTER_CS = 0x174,
    MSR_SYSENTER_ESP = 0x175,
    MSR_SYSENTER_EIP = 0x176,
    MSR_MCG_CAP = 0x179,
    MSR_MCG_STATUS = 0x17a,
    MSR_PERF_STATUS = 0x198,
    MSR_PERF_CTL = 0x199,
    MSR_MISC_ENABLE = 0x1a0,
    MSR_DEBUGCTL = 0x1d9,
    MSR_MTRR_VAR = 0x200,
    MSR_MTRR_VAR_END = 0x20f,
    MSR_MTRR_FIX64K = 0x250,
    MSR_MTRR_FIX16K = 0x258,
    MSR_MTRR_FIX4K = 0x268,
    MSR_PAT = 0x277,
    MSR_MTRR_DEF = 0x2ff,
    MSR_TSC_DEADLINE = 0x6e0,
    MSR_X2APIC = 0x800,
    MSR_X2APIC_END = 0x8ff,
    MSR_XSS = 0xda0,
    MSR_PVCLOCK_TIME = 0x4b564d01,
};
enum msr_high {
    MSR_EFER = 0xc0000080,
    MSR_STAR,
    MSR_LSTAR,
    MSR_CSTAR,
    MSR_SFMASK,
    MSR_FS_BASE = 0xc0000100,
    MSR_GS_BASE,
    MSR_KERNEL_GS_BASE,
    MSR_TSC_AUX,
    MSR_PERF_EVTSEL0 = 0xc0010000,
    MSR_PERF_CTR3 = 0xc0010007,
    MSR_SYSCFG = 0xc0010010,
    MSR_HWCR = 0xc0010015,
    MSR_TOP_MEM = 0xc001001a,
    MSR_TOP_MEM2 = 0xc001001d,
    MSR_NB_CFG = 0xc001001f,
    MSR_PATCH_LOADER = 0xc0010020,
    MSR_INT_PENDING = 0xc0010055,
    MSR_LS_CFG = 0xc0011020,
    MSR_IC_CFG = 0xc0011021,
    MSR_DC_CFG = 0xc0011022,
    MSR_DE_CFG = 0xc0011029,
};

#define MTRRCAP 0x508ull /* 8 variable ranges, fixed ranges, write-combining */
#define PHYS_MASK ((1ull << SOFT_PHYS_BITS) - 1)
#define MISC_ENABLE_FIXED 0x1800ull /* no BTS, no PEBS */
#define MISC_ENABLE_WRITABLE \
    0x400c50089ull               /* fast strings, thermal, EIST, MONITOR, CPUID limit, XD disable: stored only */
#define HWCR_TSC_P0 (1ull << 24) /* the TSC counts at the P0 frequency; Linux warns without it */
#define DE_CFG_LFENCE 2ull       /* LFENCE serializes */
/* RDCL_NO IBRS_ALL SKIP_L1DFL SSB_NO MDS_NO PSCHANGE_MC_NO TAA_NO SBDR_SSDP_NO FBSDP_NO PSDP_NO BHI_NO PBRSB_NO GDS_NO RFDS_NO ITS_NO: see cpuid.c
 * for why they are true of a translated CPU. */
#define ARCH_CAPS 0x400000000d10e17bull

void soft_msr_reset(struct soft_cpu *cpu)
{
    soft_zero(&cpu->msr, sizeof cpu->msr);
    cpu->msr.misc_enable = MISC_ENABLE_FIXED | 1;
    cpu->msr.hwcr = HWCR_TSC_P0;
    cpu->msr.decfg = DE_CFG_LFENCE;
    cpu->cpuid.apic_off = false;
}

/* ---- time ---- */

static uint64_t guest_tsc(const struct soft_cpu *cpu)
{
    uint32_t a, d;
    __asm__ volatile("rdtsc" : "=a"(a), "=d"(d));
    return ((uint64_t)d << 32 | a) + cpu->tsc_offset;
}

static void shift_tsc(struct soft_cpu *cpu, uint64_t delta)
{
    cpu->tsc_offset += delta;
    cpu->msr.tsc_adjust += delta;
    soft_fpu_park(cpu);
    if (cpu->port->set_tsc_offset) cpu->port->set_tsc_offset(cpu->port->ctx, cpu->tsc_offset);
    if (cpu->pvclock.system_msr & 1) soft_pvclock_write(cpu, MSR_PVCLOCK_TIME, cpu->pvclock.system_msr);
}

/* ---- memory types ---- */

static bool memory_type(uint64_t t, bool pat)
{
    return t == 0 || t == 1 || t == 4 || t == 5 || t == 6 || (pat && t == 7);
}

static bool memory_types(uint64_t v, bool pat)
{
    for (unsigned i = 0; i < 8; i++)
        if (!memory_type(v >> (8 * i) & 0xff, pat)) return false;
    return true;
}

static uint64_t *mtrr_slot(struct soft_cpu *cpu, uint32_t n)
{
    if (n >= MSR_MTRR_VAR && n <= MSR_MTRR_VAR_END) return &cpu->msr.mtrr_var[n - MSR_MTRR_VAR];
    if (n == MSR_MTRR_FIX64K) return &cpu->msr.mtrr_fixed[0];
    if (n == MSR_MTRR_FIX16K || n == MSR_MTRR_FIX16K + 1) return &cpu->msr.mtrr_fixed[1 + n - MSR_MTRR_FIX16K];
    if (n >= MSR_MTRR_FIX4K && n < MSR_MTRR_FIX4K + 8) return &cpu->msr.mtrr_fixed[3 + n - MSR_MTRR_FIX4K];
    if (n == MSR_MTRR_DEF) return &cpu->msr.mtrr_def;
    return NULL;
}

static bool mtrr_value_good(uint32_t n, uint64_t v)
{
    if (n == MSR_MTRR_DEF) return !(v & ~0xcffull) && memory_type(v & 0xff, false);
    if (n > MSR_MTRR_VAR_END) return memory_types(v, false);
    if (v & ~PHYS_MASK) return false;
    return n & 1 ? !(v & 0x7ff) : !(v & 0xf00) && memory_type(v & 0xff, false);
}

static bool write_mtrr(uint64_t *slot, uint32_t n, uint64_t v)
{
    if (!mtrr_value_good(n, v)) return false;
    *slot = v;
    return true;
}

/* ---- EFER ---- */

static bool write_efer(struct soft_cpu *cpu, uint64_t v)
{
    uint64_t lma = cpu->efer & EFER_LMA;
    if (v & ~(cpu->cpuid.efer_mask | EFER_LMA)) return false;
    if ((cpu->cr0 & CR0_PG) && ((v ^ cpu->efer) & EFER_LME)) return false;
    uint64_t next = (v & ~(uint64_t)EFER_LMA) | lma; /* LMA can't be written, whatever is asked */
    bool nxe = (next ^ cpu->efer) & EFER_NXE;
    cpu->efer = next;
    if (nxe) soft_tlb_flush_all(cpu);
    soft_update_mode(cpu);
    return true;
}

/* ---- registers that struct soft_cpu holds as plain words ---- */

static uint64_t *plain_slot(struct soft_cpu *cpu, uint32_t n)
{
    switch (n) {
    case MSR_STAR: return &cpu->star;
    case MSR_LSTAR: return &cpu->lstar;
    case MSR_CSTAR: return &cpu->cstar;
    case MSR_SFMASK: return &cpu->sfmask;
    case MSR_FS_BASE: return &cpu->seg[SEG_FS].base;
    case MSR_GS_BASE: return &cpu->seg[SEG_GS].base;
    case MSR_KERNEL_GS_BASE: return &cpu->kernel_gs_base;
    case MSR_TSC_AUX: return &cpu->tsc_aux;
    case MSR_SYSENTER_CS: return &cpu->sysenter_cs;
    case MSR_SYSENTER_ESP: return &cpu->sysenter_esp;
    case MSR_SYSENTER_EIP: return &cpu->sysenter_eip;
    case MSR_PAT: return &cpu->pat;
    default: return NULL;
    }
}

static bool plain_value_good(uint32_t n, uint64_t v)
{
    switch (n) {
    case MSR_STAR: return true;
    case MSR_SFMASK:
    case MSR_SYSENTER_CS: return true; /* the upper half is dropped */
    case MSR_TSC_AUX: return !(v >> 32);
    case MSR_PAT: return memory_types(v, true);
    default: return soft_canonical(v);
    }
}

static bool write_plain(uint64_t *slot, uint32_t n, uint64_t v)
{
    if (!plain_value_good(n, v)) return false;
    *slot = n == MSR_SFMASK || n == MSR_SYSENTER_CS ? (uint32_t)v : v;
    return true;
}

/* ---- AMD's own ---- */

static bool read_amd(const struct soft_cpu *cpu, uint32_t n, uint64_t *v)
{
    if (!cpu->cpuid.amd) return false;
    /* Four counters are architectural on AMD, without a CPUID bit to deny them: they are there but don't count, which
     * Linux notices by itself. */
    if (n >= MSR_PERF_EVTSEL0 && n <= MSR_PERF_CTR3) return true;
    switch (n) {
    case MSR_SYSCFG: *v = cpu->msr.syscfg; return true;
    case MSR_HWCR: *v = cpu->msr.hwcr; return true;
    case MSR_TOP_MEM: *v = cpu->msr.tom; return true;
    case MSR_TOP_MEM2: *v = cpu->msr.tom2; return true;
    case MSR_DE_CFG: *v = cpu->msr.decfg; return true;
    case MSR_NB_CFG:
    case MSR_INT_PENDING:
    case MSR_LS_CFG:
    case MSR_IC_CFG:
    case MSR_DC_CFG: *v = 0; return true;
    default: return false;
    }
}

static bool write_amd(struct soft_cpu *cpu, uint32_t n, uint64_t v)
{
    if (!cpu->cpuid.amd) return false;
    if (n >= MSR_PERF_EVTSEL0 && n <= MSR_PERF_CTR3) return true;
    switch (n) {
    case MSR_SYSCFG: cpu->msr.syscfg = v & 0x7fffff; return true;
    case MSR_HWCR: cpu->msr.hwcr = (v & 0xffffff) | HWCR_TSC_P0; return true;
    case MSR_TOP_MEM: cpu->msr.tom = v & PHYS_MASK; return true;
    case MSR_TOP_MEM2: cpu->msr.tom2 = v & PHYS_MASK; return true;
    case MSR_DE_CFG: cpu->msr.decfg = v | DE_CFG_LFENCE; return true;
    case MSR_PATCH_LOADER:
    case MSR_NB_CFG:
    case MSR_INT_PENDING:
    case MSR_LS_CFG:
    case MSR_IC_CFG:
    case MSR_DC_CFG: return true; /* chicken bits of hardware that isn't there */
    default: return false;
    }
}

/* ---- the local APIC's ---- */

static bool is_apic(uint32_t n)
{
    return n == MSR_APIC_BASE || n == MSR_TSC_DEADLINE || (n >= MSR_X2APIC && n <= MSR_X2APIC_END);
}

static bool write_apic(struct soft_cpu *cpu, uint32_t n, uint64_t v)
{
    soft_tell_cr8(cpu);
    cpu->cr8.known = false; /* it may be the task priority that is written */
    soft_fpu_park(cpu);
    if (!cpu->port->msr_write(cpu->port->ctx, n, v)) return false;
    if (n == MSR_APIC_BASE) cpu->cpuid.apic_off = !(v & 1u << 11);
    return true;
}

/* ---- the rest, which both vendors' kernels look at ---- */

static bool read_intel_only(const struct soft_cpu *cpu, uint32_t n, uint64_t *v)
{
    if (cpu->cpuid.amd) return false;
    if (n == MSR_ARCH_CAPABILITIES) *v = ARCH_CAPS;
    if (n == MSR_SPEC_CTRL) *v = cpu->msr.spec_ctrl;
    return n == MSR_ARCH_CAPABILITIES || n == MSR_SPEC_CTRL;
}

static bool read_misc(struct soft_cpu *cpu, uint32_t n, uint64_t *v)
{
    *v = 0;
    switch (n) {
    case MSR_TSC: *v = guest_tsc(cpu); return true;
    case MSR_TSC_ADJUST: *v = cpu->msr.tsc_adjust; return true;
    case MSR_EFER: *v = cpu->efer; return true;
    case MSR_MTRRCAP: *v = MTRRCAP; return true;
    case MSR_MISC_ENABLE: *v = cpu->msr.misc_enable; return true;
    case MSR_DEBUGCTL: *v = cpu->msr.debugctl; return true;
    case MSR_MCG_STATUS: *v = cpu->msr.mcg_status; return true;
    case MSR_FEATURE_CONTROL: *v = 1; return true; /* locked, nothing enabled */
    case MSR_BIOS_SIGN_ID: *v = cpu->cpuid.amd ? 0x01000065 : 0x100000000ull; return true;
    case MSR_XSS: return cpu->cpuid.xsave[1][0] & 8;
    case MSR_P5_MC_ADDR:
    case MSR_P5_MC_TYPE:
    case MSR_PLATFORM_ID:
    case MSR_EBL_CR_POWERON:
    case MSR_FSB_FREQ:
    case MSR_PLATFORM_INFO:
    case MSR_PERF_STATUS:
    case MSR_PERF_CTL:
    case MSR_MCG_CAP: return true;
    default: return read_intel_only(cpu, n, v) || read_amd(cpu, n, v) || soft_pvclock_read(cpu, n, v);
    }
}

static bool write_misc(struct soft_cpu *cpu, uint32_t n, uint64_t v)
{
    switch (n) {
    case MSR_TSC: shift_tsc(cpu, v - guest_tsc(cpu)); return true;
    case MSR_TSC_ADJUST: shift_tsc(cpu, v - cpu->msr.tsc_adjust); return true;
    case MSR_EFER: return write_efer(cpu, v);
    case MSR_MISC_ENABLE: cpu->msr.misc_enable = (v & MISC_ENABLE_WRITABLE) | MISC_ENABLE_FIXED; return true;
    case MSR_DEBUGCTL:
        if (v & ~3ull) return false;
        cpu->msr.debugctl = v;
        return true;
    case MSR_MCG_STATUS:
        if (v) return false;
        cpu->msr.mcg_status = 0;
        return true;
    case MSR_XSS: return (cpu->cpuid.xsave[1][0] & 8) && !v;
    case MSR_SPEC_CTRL:
        if (cpu->cpuid.amd || v & ~3ull) return false;
        cpu->msr.spec_ctrl = v;
        return true;
    case MSR_PRED_CMD: return !cpu->cpuid.amd && !(v & ~1ull);
    case MSR_P5_MC_ADDR:
    case MSR_P5_MC_TYPE:
    case MSR_BIOS_UPDT_TRIG:
    case MSR_BIOS_SIGN_ID:
    case MSR_PERF_CTL: return true;
    default: return write_amd(cpu, n, v) || soft_pvclock_write(cpu, n, v);
    }
}

bool msr_read(struct soft_cpu *cpu, uint32_t n, uint64_t *v)
{
    uint64_t *slot = plain_slot(cpu, n);
    if (!slot) slot = mtrr_slot(cpu, n);
    if (slot) {
        *v = *slot;
        return true;
    }
    if (!is_apic(n)) return read_misc(cpu, n, v);
    soft_tell_cr8(cpu);
    soft_fpu_park(cpu);
    return cpu->port->msr_read(cpu->port->ctx, n, v);
}

bool msr_write(struct soft_cpu *cpu, uint32_t n, uint64_t v)
{
    uint64_t *slot = plain_slot(cpu, n);
    if (slot) return write_plain(slot, n, v);
    slot = mtrr_slot(cpu, n);
    if (slot) return write_mtrr(slot, n, v);
    return is_apic(n) ? write_apic(cpu, n, v) : write_misc(cpu, n, v);
}

/* ---- as state ---- */

static const uint32_t as_state[] = {
    MSR_TSC_ADJUST,      MSR_SPEC_CTRL,      MSR_MCG_STATUS,     MSR_MISC_ENABLE,
    MSR_DEBUGCTL,        MSR_MTRR_DEF,       MSR_MTRR_FIX64K,    MSR_MTRR_FIX16K,
    MSR_MTRR_FIX16K + 1, MSR_MTRR_FIX4K,     MSR_MTRR_FIX4K + 1, MSR_MTRR_FIX4K + 2,
    MSR_MTRR_FIX4K + 3,  MSR_MTRR_FIX4K + 4, MSR_MTRR_FIX4K + 5, MSR_MTRR_FIX4K + 6,
    MSR_MTRR_FIX4K + 7,  MSR_SYSCFG,         MSR_HWCR,           MSR_TOP_MEM,
    MSR_TOP_MEM2,        MSR_DE_CFG,         MSR_PVCLOCK_TIME,
};

static uint64_t reset_value(uint32_t n)
{
    switch (n) {
    case MSR_MISC_ENABLE: return MISC_ENABLE_FIXED | 1;
    case MSR_HWCR: return HWCR_TSC_P0;
    case MSR_DE_CFG: return DE_CFG_LFENCE;
    default: return 0;
    }
}

static unsigned add_changed(struct soft_cpu *cpu, uint32_t n, struct cpu_msr *out)
{
    uint64_t v;
    if (!msr_read(cpu, n, &v) || v == reset_value(n)) return 0;
    out->index = n;
    out->value = v;
    return 1;
}

unsigned soft_get_msrs(struct soft_cpu *cpu, struct cpu_msr *out)
{
    unsigned n = 0;
    for (unsigned i = 0; i < sizeof as_state / sizeof as_state[0]; i++) n += add_changed(cpu, as_state[i], out + n);
    for (uint32_t i = MSR_MTRR_VAR; i <= MSR_MTRR_VAR_END; i++) n += add_changed(cpu, i, out + n);
    return n;
}

/* The guest's write of TSC_ADJUST would move its TSC, of whose offset the state has a field. */
static bool set_as_state(struct soft_cpu *cpu, uint32_t n, uint64_t v)
{
    bool known = n >= MSR_MTRR_VAR && n <= MSR_MTRR_VAR_END;
    for (unsigned i = 0; i < sizeof as_state / sizeof as_state[0] && !known; i++) known = as_state[i] == n;
    if (!known) return false;
    if (n != MSR_TSC_ADJUST) return msr_write(cpu, n, v);
    cpu->msr.tsc_adjust = v;
    return true;
}

unsigned soft_set_msrs(struct soft_cpu *cpu, const struct cpu_msr *in, unsigned n)
{
    bool apic_off = cpu->cpuid.apic_off;
    soft_msr_reset(cpu);
    cpu->cpuid.apic_off = apic_off;
    cpu->pvclock.system_msr = 0;
    for (unsigned i = 0; i < n; i++)
        if (!set_as_state(cpu, in[i].index, in[i].value)) return i;
    return n;
}

/* ---- instructions ---- */

static void set_edx_eax(struct soft_cpu *cpu, uint64_t v)
{
    cpu->gpr[R_RAX] = (uint32_t)v;
    cpu->gpr[R_RDX] = v >> 32;
}

static enum soft_result rdmsr(struct soft_cpu *cpu, const struct insn *in)
{
    uint64_t v = 0;
    if (sys_privileged(cpu)) return SOFT_FAULT;
    if (!msr_read(cpu, (uint32_t)cpu->gpr[R_RCX], &v)) return sys_gp0(cpu);
    set_edx_eax(cpu, v);
    return sys_done(cpu, in);
}

static enum soft_result wrmsr(struct soft_cpu *cpu, const struct insn *in)
{
    if (sys_privileged(cpu)) return SOFT_FAULT;
    uint64_t v = cpu->gpr[R_RDX] << 32 | (uint32_t)cpu->gpr[R_RAX];
    if (!msr_write(cpu, (uint32_t)cpu->gpr[R_RCX], v)) return sys_gp0(cpu);
    return sys_done(cpu, in);
}

static enum soft_result rdtsc(struct soft_cpu *cpu, const struct insn *in, bool with_aux)
{
    if ((cpu->cr4 & CR4_TSD) && cpu->cpl) return sys_gp0(cpu);
    set_edx_eax(cpu, guest_tsc(cpu));
    if (with_aux) cpu->gpr[R_RCX] = (uint32_t)cpu->tsc_aux;
    return sys_done(cpu, in);
}

enum soft_result msr_insn(struct soft_cpu *cpu, const struct insn *in)
{
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_RDMSR: return rdmsr(cpu, in);
    case ZYDIS_MNEMONIC_WRMSR: return wrmsr(cpu, in);
    case ZYDIS_MNEMONIC_RDTSC: return rdtsc(cpu, in, false);
    case ZYDIS_MNEMONIC_RDTSCP: return rdtsc(cpu, in, true);
    case ZYDIS_MNEMONIC_RDPMC: return sys_gp0(cpu); /* no counters */
    case ZYDIS_MNEMONIC_RDPID: cpu->gpr[in->op[0].reg & 15] = (uint32_t)cpu->tsc_aux; return sys_done(cpu, in);
    default: return SOFT_NOT_MINE;
    }
}
