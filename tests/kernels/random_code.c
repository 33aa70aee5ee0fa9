// Executes random bytes in user mode (64-bit and 32-bit, some single-stepped), with every exception caught and a timer to end what does not end by itself.
// Fixed seeds: a failure repeats. There is nothing to compare with here; the machine must go on, and its state must still be sane.
// QEMU: skip stops itself with an assertion
#include "kernel.h"

#define ROUNDS 3000
#define TIMER 0x40

static u64 seed = 0x9e3779b97f4a7c15ul;
static struct ctx c;
static u8 *code;
static u64 endings[256];

/* Bytes that are likelier to be instructions: common opcodes and prefixes now and then among the random ones. */
static void fill(u8 *p, unsigned n)
{
    static const u8 common[] = {0x0f, 0x48, 0x66, 0xf2, 0xf3, 0xf0, 0x89, 0x8b, 0x01, 0xc5,
                                0xc4, 0x62, 0x83, 0xff, 0xd9, 0xdd, 0xa4, 0xab, 0x50, 0x58};
    for (unsigned i = 0; i < n; i++) {
        u64 r = random64(&seed);
        p[i] = (u8)(r & 0x300 ? r : common[(r >> 16) % sizeof common]);
    }
}

static void randomise(void)
{
    for (unsigned i = 0; i < 16; i++) {
        u64 r = random64(&seed);
        if (i == RSP) continue;
        c.gpr[i] = r & 3 ? TEST_VA + 0x2000 + (r >> 8 & 0xfff) : random64(&seed); /* mostly pointers into the sandbox */
    }
    c.rflags = 2 | (random64(&seed) & FL_ARITH) | FL_IF;
}

static void late_timer(struct frame *f)
{
    (void)f;
    apic_eoi();
}

int main(void)
{
    const char *s = command_line(); /* seed=N for another run than the usual one */
    while (*s && memcmp(s, "seed=", 5) != 0) s++;
    if (*s) seed *= (u64)s[5] << 8 | (u8)s[6] | 1;
    set_cr4(cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
    if (HAS_XSAVE) {
        set_cr4(cr4() | CR4_OSXSAVE);
        xsetbv(0, cpuid(0xd, 0).a & 0xe7);
    }
    /* A user address space with code, data and stack only; kernel memory has U=0. */
    code = pages_alloc(8, PAGE);
    boot_pml4[1] = 0;
    for (unsigned i = 0; i < 8; i++) map_page(TEST_VA + i * PAGE, (u64)code + i * PAGE, PTE_W | PTE_U);
    set_cr3(cr3());
    exceptions_on_ist(true);
    for (unsigned v = 32; v < 256; v++) idt[v].ist = 1;
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~1ul); /* else SYSCALL leads to ring 0 */
    apic_enable();
    apic_write(0x3e0, 0xb);
    apic_write(0x320, TIMER);

    bool vm86 = left_out(TCG | LAB, "IRET by a user to virtual-8086 mode");
    for (unsigned round = 0; round < ROUNDS; round++) {
        memset(code, 0xcc, 2 * PAGE);
        fill(code + 256, 64);
        ctx_kernel(&c, code);
        c.cs = SEL_UCODE | 3, c.ss = SEL_UDATA | 3;
        randomise();
        c.rip = TEST_VA + 256;
        c.gpr[RSP] = TEST_VA + 0x5000;
        if (round % 4 == 3) { /* 32-bit code */
            c.cs = SEL_UCODE32 | 3;
            for (unsigned i = 0; i < 16; i++) c.gpr[i] = (u32)c.gpr[i];
        }
        if (round % 16 == 5) c.rflags |= FL_TF | FL_AC;
        apic_write(0x380, 2000000);
        for (unsigned traps = 0; traps < 20; traps++) { /* go on behind faults, by one byte */
            u64 v = ctx_run(&c);
            endings[v]++;
            if (vm86 && c.rflags & 1ul << 17) break;
            if (!CHECK_EQ(c.cs & 3, 3))
                print("    vector %lu error %lx cs %lx rip %lx cr2 %lx, round %u, trap %u\n", v, c.error, c.cs, c.rip,
                      c.cr2, round, traps);
            if (v == TIMER) {
                apic_eoi();
                break;
            }
            if (c.rip < TEST_VA || c.rip > TEST_VA + PAGE || v == BP) break;
            if (v != DB) c.rip++;
            c.rflags = (c.rflags & ~FL_TF) | FL_IF;
            c.gpr[RSP] = TEST_VA + 0x5000;
            c.cs = round % 4 == 3 ? SEL_UCODE32 | 3 : SEL_UCODE | 3, c.ss = SEL_UDATA | 3;
        }
        apic_write(0x380, 0);
        on_vector(TIMER, late_timer);
        __asm__ volatile("sti; nop; nop; cli; fninit; mov %0, %%fs; mov %0, %%gs" ::"r"(0));
        u32 mxcsr = 0x1f80;
        __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
        on_vector(TIMER, NULL);
    }
    for (unsigned v = 0; v < 256; v++)
        if (endings[v]) print("vector %x: %lu\n", v, endings[v]);
    CHECK(endings[UD] && endings[PF] && endings[BP]);
    return done();
}
