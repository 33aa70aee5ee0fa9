/* The guest's x87/SSE/AVX state stays in the host's registers while guest code and the FPU-free C code run. It is parked in memory
 * before anything else runs on this thread that may use those registers. */
#include "vmm/engine/soft/xlat.h"

#define XSAVE_MASK 0xe7u /* x87, SSE, AVX, the three AVX-512 parts */

static uint32_t host_mask;

void soft_fpu_init(void)
{
    uint32_t a, b, c, d;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(1), "c"(0));
    if (!(c & 1u << 27)) return; /* no XSAVE: FXSAVE then */
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    host_mask = a & XSAVE_MASK;
}

uint32_t soft_fpu_host_mask(void)
{
    return host_mask;
}

void soft_fpu_park(struct soft_cpu *cpu)
{
    static const uint32_t default_mxcsr = 0x1f80;
    if (!cpu->fpu_live) return;
    if (host_mask)
        __asm__ volatile("xsave64 (%0)" ::"r"(cpu->xsave), "a"(host_mask), "d"(0) : "memory");
    else
        __asm__ volatile("fxsave64 (%0)" ::"r"(cpu->xsave) : "memory");
    /* C code must not run with the guest's rounding modes or unmasked exceptions. */
    __asm__ volatile("fninit; ldmxcsr %0" ::"m"(default_mxcsr));
    cpu->fpu_live = false;
    cpu->stat[ST_PARK]++;
}

void soft_fpu_resume(struct soft_cpu *cpu)
{
    if (cpu->fpu_live) return;
    if (host_mask)
        __asm__ volatile("xrstor64 (%0)" ::"r"(cpu->xsave), "a"(host_mask), "d"(0) : "memory");
    else
        __asm__ volatile("fxrstor64 (%0)" ::"r"(cpu->xsave) : "memory");
    cpu->fpu_live = true;
}
