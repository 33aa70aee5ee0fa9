/* Privileged and other special instructions as inline functions. */
#ifndef KERNELS_CPU_H
#define KERNELS_CPU_H

#define CR_ACCESS(n)                                             \
    static inline u64 cr##n(void)                                \
    {                                                            \
        u64 v;                                                   \
        __asm__ volatile("mov %%cr" #n ", %0" : "=r"(v));        \
        return v;                                                \
    }                                                            \
    static inline void set_cr##n(u64 v)                          \
    {                                                            \
        __asm__ volatile("mov %0, %%cr" #n ::"r"(v) : "memory"); \
    }
CR_ACCESS(0)
CR_ACCESS(2)
CR_ACCESS(3)
CR_ACCESS(4)
CR_ACCESS(8)

#define DR_ACCESS(n)                                             \
    static inline u64 dr##n(void)                                \
    {                                                            \
        u64 v;                                                   \
        __asm__ volatile("mov %%dr" #n ", %0" : "=r"(v));        \
        return v;                                                \
    }                                                            \
    static inline void set_dr##n(u64 v)                          \
    {                                                            \
        __asm__ volatile("mov %0, %%dr" #n ::"r"(v) : "memory"); \
    }
DR_ACCESS(0)
DR_ACCESS(1)
DR_ACCESS(2)
DR_ACCESS(3)
DR_ACCESS(6)
DR_ACCESS(7)

static inline u64 rdmsr(u32 msr)
{
    u32 lo, hi;
    __asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
    return lo | (u64)hi << 32;
}
static inline void wrmsr(u32 msr, u64 v)
{
    __asm__ volatile("wrmsr" ::"c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory");
}
static inline u8 inb(u16 port)
{
    u8 v;
    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline void outb(u16 port, u8 v)
{
    __asm__ volatile("outb %0, %1" ::"a"(v), "Nd"(port));
}
static inline void outl(u16 port, u32 v)
{
    __asm__ volatile("outl %0, %1" ::"a"(v), "Nd"(port));
}
static inline u64 rdtsc(void)
{
    u32 lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi)::"memory");
    return lo | (u64)hi << 32;
}
static inline void invlpg(u64 va)
{
    __asm__ volatile("invlpg (%0)" ::"r"(va) : "memory");
}
static inline void load_tr(u16 selector)
{
    __asm__ volatile("ltr %0" ::"r"(selector) : "memory");
}
static inline void sti(void)
{
    __asm__ volatile("sti" ::: "memory");
}
static inline void cli(void)
{
    __asm__ volatile("cli" ::: "memory");
}
static inline void pause(void)
{
    __asm__ volatile("pause" ::: "memory");
}
static inline void mfence(void)
{
    __asm__ volatile("mfence" ::: "memory");
}
/* STI's shadow covers HLT: no wake-up is lost. Interrupts are off again afterwards. */
static inline void wait_interrupt(void)
{
    __asm__ volatile("sti; hlt; cli" ::: "memory");
}

struct cpuid {
    u32 a, b, c, d;
};
static inline struct cpuid cpuid(u32 leaf, u32 sub)
{
    struct cpuid r;
    __asm__ volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(sub));
    return r;
}
#define HAS_1C(bit) (cpuid(1, 0).c >> (bit)&1)
#define HAS_1D(bit) (cpuid(1, 0).d >> (bit)&1)
#define HAS_7B(bit) (cpuid(0, 0).a >= 7 && (cpuid(7, 0).b >> (bit)&1))
#define HAS_7C(bit) (cpuid(0, 0).a >= 7 && (cpuid(7, 0).c >> (bit)&1))
#define HAS_XC(bit) (cpuid(0x80000001, 0).c >> (bit)&1)
#define HAS_XD(bit) (cpuid(0x80000001, 0).d >> (bit)&1)
#define HAS_PCID HAS_1C(17)
#define HAS_X2APIC HAS_1C(21)
#define HAS_TSC_DEADLINE HAS_1C(24)
#define HAS_XSAVE HAS_1C(26)
#define HAS_AVX HAS_1C(28)
#define HAS_FSGSBASE HAS_7B(0)
#define HAS_AVX2 HAS_7B(5)
#define HAS_SMEP HAS_7B(7)
#define HAS_INVPCID HAS_7B(10)
#define HAS_AVX512F HAS_7B(16)
#define HAS_SMAP HAS_7B(20)
#define HAS_UMIP HAS_7C(2)
#define HAS_RDPID HAS_7C(22)
#define HAS_1G HAS_XD(26)
#define HAS_RDTSCP HAS_XD(27)
static inline void xsetbv(u32 i, u64 v)
{
    __asm__ volatile("xsetbv" ::"c"(i), "a"((u32)v), "d"((u32)(v >> 32)));
}
static inline u64 xgetbv(u32 i)
{
    u32 lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(i));
    return lo | (u64)hi << 32;
}

#endif
