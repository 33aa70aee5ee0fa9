// Random bytes as kernel code: CPL 0, all instructions, control and debug registers, MSRs, ports, descriptor tables. The guest may
// destroy itself in any way it likes (triple fault, reset, debug exit, hang); only the VMM must not: no failure of the engine, no signal.
// ARGS: seed=1 seed=2 seed=3 seed=4 seed=5 seed=6 seed=7 seed=8
// STATUS: any
// QEMU: skip stops itself with an assertion
#include "kernel.h"

#define ROUNDS 400
#define IOAPIC 0xfec00000ul

static u64 seed;
static struct ctx c;
static u64 endings[256];

/* The PIT through the IOAPIC as an NMI: ends what never ends, also with interrupts off. */
static void watchdog(void)
{
    outb(0x43, 0x34);
    outb(0x40, 0xff);
    outb(0x40, 0x3f); /* 14 ms */
    *(volatile u32 *)IOAPIC = 0x10 + 2 * 2 + 1;
    *(volatile u32 *)(IOAPIC + 0x10) = 0;
    *(volatile u32 *)IOAPIC = 0x10 + 2 * 2;
    *(volatile u32 *)(IOAPIC + 0x10) = 0x400;
}

/* System instructions (0f xx, with a ModRM byte that suits) among random and common bytes. */
static void fill(u8 *p, unsigned n)
{
    static const u8 common[] = {0x48, 0x66, 0xf3, 0xf0, 0x89, 0x8b, 0x8e, 0x8c,
                                0xff, 0xcf, 0xe6, 0xe4, 0xec, 0xee, 0x9d, 0xfb};
    static const u8 system[] = {0x00, 0x01, 0x02, 0x06, 0x08, 0x20, 0x21, 0x22,
                                0x23, 0x30, 0x32, 0xae, 0xc7, 0xa2, 0xb2, 0x38};
    for (unsigned i = 0; i < n; i++) {
        u64 r = random64(&seed);
        p[i] = (u8)(r & 0x300 ? r : common[(r >> 16) % sizeof common]);
        if ((r >> 32 & 7) == 0 && i + 2 < n) {
            p[i++] = 0x0f;
            p[i++] = system[(r >> 40) % sizeof system];
            p[i] = (u8)(r >> 48);
            u8 reg = p[i] >> 3 & 7;
            bool deadly = (p[i - 1] == 0x22 && (reg == 3 || reg == 0)) || (p[i - 1] == 0x01 && (reg == 2 || reg == 3));
            if (deadly && (r >> 56 & 63)) p[i - 1] = 0x20; /* CR0, CR3, LGDT, LIDT: once in a while only */
        }
    }
}

/* The machine as the rest of this kernel needs it. */
static struct {
    u16 limit;
    u64 base;
} __attribute__((packed)) gdtr, idtr;
static u64 good0, good4, efer;

static void ignore(struct frame *f)
{
    (void)f;
}

static void repair(void)
{
    __asm__ volatile("lgdt %0; lidt %1" ::"m"(gdtr), "m"(idtr) : "memory");
    set_cr0(good0);
    set_cr4(good4);
    set_cr3((u64)boot_pml4);
    on_vector(DB, ignore); /* DR7.GD may be set: the first access faults and clears it */
    set_dr7(0x400);
    on_vector(DB, NULL);
    wrmsr(MSR_EFER, efer);
    apic_eoi();
}

static u64 value(void)
{
    static const u64 interesting[] = {0,     1,          -1ul, 1ul << 63, 1ul << 47, 0x80010033, 0x20,
                                      0x6a0, 0xc0000080, 0x1b, 0x830,     0x10,      0x277};
    u64 r = random64(&seed);
    switch (r & 7) {
    case 0: return random64(&seed);
    case 1: return interesting[(r >> 8) % (sizeof interesting / sizeof *interesting)];
    case 2: return r >> 8 & 0xffff;
    default: return TEST_VA + 0x2000 + (r >> 8 & 0xfff);
    }
}

int main(void)
{
    const char *s = command_line();
    while (*s && memcmp(s, "seed=", 5) != 0) s++;
    seed = 0x9e3779b97f4a7c15ul * (*s ? (u64)s[5] : 1);
    u8 *code = pages_alloc(8, PAGE);
    for (unsigned i = 0; i < 8; i++) map_page(TEST_VA + i * PAGE, (u64)code + i * PAGE, PTE_W);
    good0 = cr0();
    good4 = cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT | (HAS_XSAVE ? CR4_OSXSAVE : 0);
    efer = rdmsr(MSR_EFER);
    __asm__ volatile("sgdt %0; sidt %1" : "=m"(gdtr), "=m"(idtr));
    exceptions_on_ist(true);
    for (unsigned v = 32; v < 256; v++) idt[v].ist = 1;
    apic_enable();
    on_vector(NMI, ignore);
    watchdog();

    for (unsigned round = 0; round < ROUNDS; round++) {
        if (round % 100 == 0) print("round %u\n", round);
        memset(code, 0xcc, 2 * PAGE);
        fill(code + 256, 48);
        ctx_kernel(&c, code);
        for (unsigned i = 0; i < 16; i++) c.gpr[i] = value();
        c.rip = TEST_VA + 256;
        c.gpr[RSP] = TEST_VA + 0x5000;
        for (unsigned traps = 0; traps < 10; traps++) { /* go on behind faults, by one byte */
            on_vector(NMI, NULL);
            u64 v = ctx_run(&c);
            on_vector(NMI, ignore);
            repair();
            endings[v]++;
            if (c.rip < TEST_VA || c.rip > TEST_VA + PAGE || v == BP || v == NMI) break;
            c.rip++;
            c.rflags = 2;
            c.gpr[RSP] = TEST_VA + 0x5000;
            c.cs = SEL_KCODE, c.ss = SEL_KDATA;
        }
    }
    for (unsigned v = 0; v < 256; v++)
        if (endings[v]) print("vector %x: %lu\n", v, endings[v]);
    return done();
}
