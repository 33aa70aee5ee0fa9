/* The guest's vector and mask registers as C code reads and writes them. They are live in the host's (soft.h), so one instruction with
 * the right register number does it, and nothing else in these files touches them. */
#include "vmm/engine/soft/step.h"

#define EACH_OF_8(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define EACH_OF_16(M) EACH_OF_8(M) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)
#define EACH_OF_32(M) \
    EACH_OF_16(M) M(16) M(17) M(18) M(19) M(20) M(21) M(22) M(23) M(24) M(25) M(26) M(27) M(28) M(29) M(30) M(31)

/* One case of a switch over register numbers: `insn` moves between the register and *mem. */
#define STORE(insn, reg)                                             \
    __asm__ volatile(insn " %%" reg ", (%0)" ::"r"(buf) : "memory"); \
    break;
#define LOAD(insn, reg)                                           \
    __asm__ volatile(insn " (%0), %%" reg ::"r"(buf) : "memory"); \
    break;

static void read_xmm(unsigned n, uint8_t *buf)
{
    switch (n) {
#define M(k) \
    case k: STORE("movdqu", "xmm" #k)
        EACH_OF_16(M)
#undef M
    default: break;
    }
}

static void read_ymm(unsigned n, uint8_t *buf)
{
    switch (n) {
#define M(k) \
    case k: STORE("vmovdqu", "ymm" #k)
        EACH_OF_16(M)
#undef M
    default: break;
    }
}

static void read_zmm(unsigned n, uint8_t *buf)
{
    switch (n) {
#define M(k) \
    case k: STORE("vmovdqu64", "zmm" #k)
        EACH_OF_32(M)
#undef M
    default: break;
    }
}

static void write_xmm(unsigned n, const uint8_t *buf)
{
    switch (n) {
#define M(k) \
    case k: LOAD("vmovdqu", "xmm" #k)
        EACH_OF_16(M)
#undef M
    default: break;
    }
}

static void write_ymm(unsigned n, const uint8_t *buf)
{
    switch (n) {
#define M(k) \
    case k: LOAD("vmovdqu", "ymm" #k)
        EACH_OF_16(M)
#undef M
    default: break;
    }
}

static void write_zmm(unsigned n, const uint8_t *buf)
{
    switch (n) {
#define M(k) \
    case k: LOAD("vmovdqu64", "zmm" #k)
        EACH_OF_32(M)
#undef M
    default: break;
    }
}

void soft_vec_read(struct soft_cpu *cpu, unsigned reg, unsigned bytes, uint8_t *buf)
{
    uint8_t whole[64];
    soft_fpu_resume(cpu);
    if (reg >= 16) {
        read_zmm(reg, whole);
        soft_copy(buf, whole, bytes);
    } else if (bytes == 64) {
        read_zmm(reg, buf);
    } else if (bytes == 32) {
        read_ymm(reg, buf);
    } else {
        read_xmm(reg, buf);
    }
}

void soft_vec_write(struct soft_cpu *cpu, unsigned reg, unsigned bytes, const uint8_t *buf)
{
    uint8_t whole[64];
    soft_fpu_resume(cpu);
    if (reg >= 16) {
        soft_zero(whole, sizeof whole);
        soft_copy(whole, buf, bytes);
        write_zmm(reg, whole);
    } else if (bytes == 64) {
        write_zmm(reg, buf);
    } else if (bytes == 32) {
        write_ymm(reg, buf);
    } else {
        write_xmm(reg, buf);
    }
}

void soft_vec_clear(struct soft_cpu *cpu, unsigned reg, bool upper_only)
{
    uint8_t low[16];
    if (upper_only)
        soft_vec_read(cpu, reg, 16, low);
    else
        soft_zero(low, sizeof low);
    soft_vec_write(cpu, reg, 16, low);
}

uint64_t soft_mmx_read(struct soft_cpu *cpu, unsigned reg)
{
    uint64_t v = 0, *buf = &v;
    soft_fpu_resume(cpu);
    switch (reg) {
#define M(k) \
    case k: STORE("movq", "mm" #k)
        EACH_OF_8(M)
#undef M
    default: break;
    }
    return v;
}

/* Mask registers of 64 bits came with AVX512BW; without it they have 16. */
static bool wide_masks(const struct soft_cpu *cpu)
{
    return cpu->cpuid.feature[0][1] & 1u << 30;
}

uint64_t soft_opmask_read(struct soft_cpu *cpu, unsigned reg)
{
    uint64_t v = 0, *buf = &v;
    soft_fpu_resume(cpu);
    if (wide_masks(cpu)) {
        switch (reg) {
#define M(k) \
    case k: STORE("kmovq", "k" #k)
            EACH_OF_8(M)
#undef M
        default: break;
        }
    } else {
        switch (reg) {
#define M(k) \
    case k: STORE("kmovw", "k" #k)
            EACH_OF_8(M)
#undef M
        default: break;
        }
    }
    return v;
}

void soft_opmask_write(struct soft_cpu *cpu, unsigned reg, uint64_t v)
{
    const uint64_t *buf = &v;
    soft_fpu_resume(cpu);
    if (wide_masks(cpu)) {
        switch (reg) {
#define M(k) \
    case k: LOAD("kmovq", "k" #k)
            EACH_OF_8(M)
#undef M
        default: break;
        }
    } else {
        switch (reg) {
#define M(k) \
    case k: LOAD("kmovw", "k" #k)
            EACH_OF_8(M)
#undef M
        default: break;
        }
    }
}

uint32_t soft_mxcsr_read(struct soft_cpu *cpu)
{
    uint32_t v;
    soft_fpu_resume(cpu);
    __asm__ volatile("stmxcsr %0" : "=m"(v));
    return v;
}

enum soft_result soft_pending_mf(struct soft_cpu *cpu)
{
    uint16_t fsw, fcw;
    soft_fpu_resume(cpu);
    __asm__ volatile("fnstsw %0; fnstcw %1" : "=am"(fsw), "=m"(fcw));
    return fsw & ~fcw & 0x3f ? soft_raise(cpu, EXC_MF) : SOFT_OK;
}
