/* What this vCPU is: CPUID tables and model-specific registers (part of struct soft_cpu; cpuid.c and msr.c own them). */
#ifndef NACELLE_SOFT_FEATURES_H
#define NACELLE_SOFT_FEATURES_H

#include <stdbool.h>
#include <stdint.h>

#define CPUID_BASIC 0x20 /* leaves 0 .. 0x1f */
#define CPUID_EXT 0x22   /* leaves 0x80000000 .. 0x80000021 */
#define CPUID_XSAVE 8    /* state components 0 .. 7 */

/* EAX, EBX, ECX, EDX of each leaf. */
struct soft_cpuid {
    uint32_t basic[CPUID_BASIC][4];
    uint32_t ext[CPUID_EXT][4];
    uint32_t cache[4][4];           /* leaf 4 */
    uint32_t feature[2][4];         /* leaf 7 */
    uint32_t topology[2][4];        /* leaf 0xb */
    uint32_t xsave[CPUID_XSAVE][4]; /* leaf 0xd */
    uint32_t amd_cache[5][4];       /* leaf 0x8000001d */
    uint32_t hyper[3][4];           /* leaves 0x40000000, 0x40000001, 0x40000010 */
    bool amd;                       /* AMD or Hygon: SYSCALL in legacy modes, their MSRs */
    bool apic_off;                  /* IA32_APIC_BASE was last written with the enable bit clear */
    uint32_t mxcsr_mask;            /* xsave.c fills it at its first use */
    uint64_t xcr0_mask;             /* state components the guest may enable */
    uint64_t cr4_mask;              /* CR4 bits that exist */
    uint64_t efer_mask;             /* EFER bits that can be written */
};

struct soft_msr {
    uint64_t tsc_adjust;
    uint64_t misc_enable;
    uint64_t mtrr_def;
    uint64_t mtrr_fixed[11]; /* 64K_00000, 16K_80000, 16K_A0000, 4K_C0000 .. 4K_F8000 */
    uint64_t mtrr_var[16];   /* base, mask pairs */
    uint64_t debugctl;
    uint64_t spec_ctrl;
    uint64_t mcg_status;
    uint64_t hwcr, syscfg, tom, tom2, decfg; /* AMD */
};

#endif
