/* The rig of soft_rig.h with descriptor tables, a TSS and stacks, for tests of system instructions. Instructions come as
 * bytes and go through the real decoder. The first 4 MiB are mapped one to one for all rings. */
#ifndef NACELLE_TESTS_SOFT_SYS_RIG_H
#define NACELLE_TESTS_SOFT_SYS_RIG_H

#include "tests/unit/soft_rig.h"

#include "vmm/engine/soft/portio.h"
#include "vmm/engine/soft/system.h"
#include "vmm/engine/soft/xlat.h"

#define SYS_GDT 0x10000ull
#define SYS_IDT 0x11000ull
#define SYS_TSS 0x12000ull
#define SYS_LDT 0x13000ull
#define SYS_DATA 0x14000ull
#define SYS_STACK 0x20000ull  /* current stack */
#define SYS_STACK0 0x24000ull /* ring 0's, from the TSS */
#define SYS_IST1 0x28000ull
#define SYS_CODE 0x30000ull
#define SYS_HANDLER 0x31000ull

/* Selectors. */
enum {
    S_CODE64 = 0x08,
    S_DATA = 0x10,
    S_CODE32 = 0x18,
    S_UCODE32 = 0x20,
    S_UDATA = 0x28,
    S_UCODE64 = 0x30,
    S_CONFORM = 0x38,
    S_ABSENT = 0x40,
    S_READONLY = 0x48,
    S_EXECONLY = 0x50,
    S_TSS = 0x58,
    S_GATE = 0x68,
    S_LDT = 0x78,
    S_EXPAND = 0x88,
    S_CODE16 = 0x90,
    S_DATA16 = 0x98,
    S_DATA1 = 0xa0,
    S_TSS2 = 0xa8,
    S_LIMIT = 0xbf,
};

static struct {
    uint8_t cr8;
    uint64_t apic_base, deadline, tsc_offset;
    unsigned parks;
    uint32_t last_msr;
} fake_apic;

__attribute__((weak)) void soft_set_rflags(struct soft_cpu *cpu, uint64_t v)
{
    cpu->rflags = v & ~(uint64_t)FL_IF;
    cpu->if_flag = (v & FL_IF) != 0;
    soft_update_mode(cpu);
}
__attribute__((weak)) void soft_fpu_park(struct soft_cpu *cpu)
{
    (void)cpu;
    fake_apic.parks++;
}
__attribute__((weak)) void soft_fpu_resume(struct soft_cpu *cpu)
{
    (void)cpu;
}

static inline uint8_t fake_get_cr8(void *ctx)
{
    (void)ctx;
    return fake_apic.cr8;
}
static inline void fake_set_cr8(void *ctx, uint8_t v)
{
    (void)ctx;
    fake_apic.cr8 = v;
}
static inline bool fake_msr_read(void *ctx, uint32_t n, uint64_t *v)
{
    (void)ctx;
    fake_apic.last_msr = n;
    *v = fake_apic.apic_base;
    return n == 0x1b || n == 0x802;
}
static inline bool fake_msr_write(void *ctx, uint32_t n, uint64_t v)
{
    (void)ctx;
    fake_apic.last_msr = n;
    if (n == 0x1b) fake_apic.apic_base = v;
    return n == 0x1b || n == 0x80b;
}
static inline void fake_tsc_offset(void *ctx, uint64_t v)
{
    (void)ctx;
    fake_apic.tsc_offset = v;
}
static const struct vcpu_irq_port fake_port = {.get_cr8 = fake_get_cr8,
                                               .set_cr8 = fake_set_cr8,
                                               .msr_read = fake_msr_read,
                                               .msr_write = fake_msr_write,
                                               .set_tsc_offset = fake_tsc_offset};

/* A descriptor: attr as in struct cpu_segment, limit in bytes or pages as G says. */
static inline uint64_t sys_desc(uint32_t base, uint32_t limit, uint32_t attr)
{
    return (limit & 0xffffull) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(attr & 0xf0ff) << 40 |
           (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)(base >> 24) << 56;
}
static inline uint64_t *sys_gdt(unsigned sel)
{
    return (uint64_t *)rig_ram(SYS_GDT + (sel & ~7u));
}
static inline uint64_t ram64(uint64_t a)
{
    uint64_t v;
    memcpy(&v, rig_ram(a), 8);
    return v;
}
static inline uint32_t ram32(uint64_t a)
{
    uint32_t v;
    memcpy(&v, rig_ram(a), 4);
    return v;
}
static inline uint16_t ram16(uint64_t a)
{
    uint16_t v;
    memcpy(&v, rig_ram(a), 2);
    return v;
}
static inline void put_ram(uint64_t a, uint64_t v, unsigned size)
{
    memcpy(rig_ram(a), &v, size);
}

static inline void sys_make_gdt(void)
{
    *sys_gdt(S_CODE64) = sys_desc(0, 0xfffff, 0xa09b);
    *sys_gdt(S_DATA) = sys_desc(0, 0xfffff, 0xc093);
    *sys_gdt(S_CODE32) = sys_desc(0, 0xfffff, 0xc09b);
    *sys_gdt(S_UCODE32) = sys_desc(0, 0xfffff, 0xc0fb);
    *sys_gdt(S_UDATA) = sys_desc(0, 0xfffff, 0xc0f3);
    *sys_gdt(S_UCODE64) = sys_desc(0, 0xfffff, 0xa0fb);
    *sys_gdt(S_CONFORM) = sys_desc(0, 0xfffff, 0xa09f);
    *sys_gdt(S_ABSENT) = sys_desc(0, 0xfffff, 0xc013);
    *sys_gdt(S_READONLY) = sys_desc(0, 0xfffff, 0xc091);
    *sys_gdt(S_EXECONLY) = sys_desc(0, 0xfffff, 0xc099);
    *sys_gdt(S_TSS) = sys_desc(SYS_TSS, 0x167, 0x0089);
    *sys_gdt(S_LDT) = sys_desc(SYS_LDT, 0x3f, 0x0082);
    *sys_gdt(S_EXPAND) = sys_desc(0, 0xffff, 0x4097);
    *sys_gdt(S_CODE16) = sys_desc(0, 0xffff, 0x009b);
    *sys_gdt(S_DATA16) = sys_desc(0, 0xffff, 0x0093);
    *sys_gdt(S_DATA1) = sys_desc(0, 0xfffff, 0xc0b3);
}

static inline void sys_load(enum cpu_seg seg, uint16_t sel)
{
    struct soft_desc d = {.raw = *sys_gdt(sel)};
    desc_unpack(&d);
    segment_set(&rig.cpu->seg[seg], sel, &d);
}

/* A 64-bit or 32-bit gate, by mode. */
static inline void sys_gate(unsigned vector, uint16_t sel, uint64_t off, unsigned type, unsigned dpl, unsigned ist)
{
    uint64_t lo = (off & 0xffff) | (uint64_t)sel << 16 | (uint64_t)ist << 32 |
                  (uint64_t)(0x80 | dpl << 5 | type) << 40 | (off >> 16 & 0xffff) << 48;
    if (soft_long_mode(rig.cpu)) {
        put_ram(SYS_IDT + vector * 16, lo, 8);
        put_ram(SYS_IDT + vector * 16 + 8, off >> 32, 8);
    } else {
        put_ram(SYS_IDT + vector * 8, lo, 8);
    }
}

static inline void sys_ring(unsigned cpl)
{
    rig.cpu->cpl = (uint8_t)cpl;
    sys_load(SEG_CS, cpl ? S_UCODE64 | 3 : S_CODE64);
    sys_load(SEG_SS, cpl ? S_UDATA | 3 : S_DATA);
    soft_update_mode(rig.cpu);
}

static inline int sys_setup(void **state)
{
    rig_setup(state);
    memset(&fake_apic, 0, sizeof fake_apic);
    fake_apic.apic_base = 0xfee00900;
    struct soft_cpu *cpu = rig.cpu;
    *rig_leaf(0, 21) = RP_P | RP_W | RP_U | RP_PS;
    *rig_leaf(0x200000, 21) = 0x200000 | RP_P | RP_W | RP_U | RP_PS;
    soft_decode_init();
    sys_make_gdt();
    cpu->port = &fake_port;
    cpu->vcpus = 4;
    cpu->id = 2;
    cpu->tsc_khz = 2600000;
    cpu->xcr0 = 1;
    soft_cpuid_init(cpu);
    cpu->gdt = (struct cpu_table){SYS_GDT, S_LIMIT};
    cpu->idt = (struct cpu_table){SYS_IDT, 0xfff};
    segment_set_null(&cpu->ldtr, 0);
    cpu->tr = (struct cpu_segment){.selector = S_TSS, .attr = 0x8b, .limit = 0x167, .base = SYS_TSS};
    put_ram(SYS_TSS + 4, SYS_STACK0, 8);
    put_ram(SYS_TSS + 36, SYS_IST1, 8);
    for (unsigned i = 0; i < SEG_COUNT; i++) sys_load((enum cpu_seg)i, S_DATA);
    sys_ring(0);
    cpu->gpr[R_RSP] = SYS_STACK;
    cpu->rip = SYS_CODE;
    cpu->dr[6] = 0xffff0ff0;
    cpu->dr[7] = 0x400;
    return 0;
}

/* 32-bit protected mode, no paging, flat. */
static inline void sys_protected32(unsigned cpl)
{
    struct soft_cpu *cpu = rig.cpu;
    cpu->cr0 = CR0_PE | CR0_ET;
    cpu->cr4 = 0;
    cpu->efer = 0;
    cpu->cpl = (uint8_t)cpl;
    for (unsigned i = 0; i < SEG_COUNT; i++) sys_load((enum cpu_seg)i, cpl ? S_UDATA | 3 : S_DATA);
    sys_load(SEG_CS, cpl ? S_UCODE32 | 3 : S_CODE32);
    put_ram(SYS_TSS + 4, SYS_STACK0, 4);
    put_ram(SYS_TSS + 8, S_DATA, 4);
    soft_tlb_flush_all(cpu);
    soft_update_mode(cpu);
}

static inline void sys_real(void)
{
    struct soft_cpu *cpu = rig.cpu;
    cpu->cr0 = CR0_ET;
    cpu->cr4 = 0;
    cpu->efer = 0;
    cpu->cpl = 0;
    for (unsigned i = 0; i < SEG_COUNT; i++) cpu->seg[i] = (struct cpu_segment){.attr = 0x93, .limit = 0xffff};
    cpu->seg[SEG_CS].attr = 0x9b;
    cpu->idt = (struct cpu_table){0, 0x3ff};
    cpu->gpr[R_RSP] = 0x8000;
    cpu->rip = 0x1000;
    soft_tlb_flush_all(cpu);
    soft_update_mode(cpu);
}

static inline enum soft_result sys_exec(const uint8_t *bytes, unsigned n)
{
    struct xinsn x;
    unsigned size = soft_code64(rig.cpu) ? 8 : rig.cpu->seg[SEG_CS].attr & SEG_ATTR_DB ? 4 : 2;
    assert_int_equal(soft_decode(bytes, n, size, rig.cpu->rip, &x), 0);
    assert_int_equal(x.in.len, n);
    rig.cpu->exc.pending = false;
    soft_io_begin(rig.cpu);
    return soft_system_insn(rig.cpu, &x.in);
}
#define EXEC(...) sys_exec((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))
#define EXEC_OK(...) assert_int_equal(EXEC(__VA_ARGS__), SOFT_OK)
/* Faults with this vector and error code, RIP and RSP untouched. */
#define EXEC_FAULT(vec, err, ...)                                 \
    do {                                                          \
        uint64_t rip_ = rig.cpu->rip, rsp_ = rig.cpu->gpr[R_RSP]; \
        assert_int_equal(EXEC(__VA_ARGS__), SOFT_FAULT);          \
        assert_fault(vec, err);                                   \
        assert_int_equal(rig.cpu->rip, rip_);                     \
        assert_int_equal(rig.cpu->gpr[R_RSP], rsp_);              \
    } while (0)

#endif
