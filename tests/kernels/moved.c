// A machine that goes on elsewhere: everything that makes up its CPUs and interrupt controllers must have come along. Asks for a move
// with a line "@@MOVE" (tests/engine/move.c does it, and answers on the serial line when it is told "wait"); without moves all must
// hold just as well.
// RUN: -c 2
// QEMU: skip has no TSC deadline timer
// ARGS: xapic x2apic
#include "kernel.h"

#define TIMER 0x40
#define DEADLINE 0x41
#define PIT 0x42
#define CALL 0x43
#define SELF 0x44
#define SLOW 0x45

/* The clock stands still for a moment while it is on its way, and a busy host may make that long. */
#define SLACK 250000000ul
#define PVCLOCK_MSR 0x4b564d01
#define IOAPIC 0xfec00000ul

static volatile u32 ticks, deadlines, pits, calls, selfs, slows;
static u64 khz;
static bool waits, avx;

/* ---- the move ---- */

static bool has_word(const char *word)
{
    for (const char *s = command_line(); *s; s++) {
        unsigned n = 0;
        while (word[n] && s[n] == word[n]) n++;
        if (!word[n]) return true;
    }
    return false;
}

static void ask_for_move(void)
{
    print("@@MOVE\n");
    if (!waits) return;
    for (u64 start = rdtsc(); !(inb(0x3fd) & 1);)
        if ((rdtsc() - start) / khz > 60000) panic("nobody moved the machine");
    inb(0x3f8);
}

/* ---- interrupts ---- */

static void on_timer(struct frame *f)
{
    (void)f;
    ticks++;
    apic_eoi();
}
static void on_deadline(struct frame *f)
{
    (void)f;
    deadlines++;
    wrmsr(MSR_TSC_DEADLINE, rdtsc() + khz * 2);
    apic_eoi();
}
static void on_pit(struct frame *f)
{
    (void)f;
    pits++;
    apic_eoi();
}
static void on_call(struct frame *f)
{
    (void)f;
    calls++;
    apic_eoi();
}
static void on_self(struct frame *f)
{
    (void)f;
    selfs++;
    apic_eoi();
}
/* Moves while an interrupt is in service, and a lower one waits for it. */
static void on_slow(struct frame *f)
{
    (void)f;
    u32 before = selfs;
    apic_ipi(0, SELF);
    ask_for_move();
    CHECK_EQ(selfs, before);
    CHECK_EQ(apic_read(0x100 + 16 * (SLOW / 32)) >> SLOW % 32 & 1, 1);
    slows++;
    apic_eoi();
}

static void ioapic_write(u32 reg, u32 v)
{
    *(volatile u32 *)IOAPIC = reg;
    *(volatile u32 *)(IOAPIC + 0x10) = v;
}
static u32 ioapic_read(u32 reg)
{
    *(volatile u32 *)IOAPIC = reg;
    return *(volatile u32 *)(IOAPIC + 0x10);
}

/* ---- registers that nothing changes ---- */

static const struct {
    u32 msr;
    u64 value;
} msrs[] = {
    {MSR_STAR, 0x001b000800000000},
    {MSR_LSTAR, 0xffffffff81234567},
    {MSR_CSTAR, 0xffffffff87654321},
    {MSR_SFMASK, 0x47700},
    {MSR_FS_BASE, 0xffff888012345678},
    {MSR_KERNEL_GS_BASE, 0xffff888087654321},
    {MSR_SYSENTER_CS, 0x10},
    {MSR_SYSENTER_ESP, 0x12345600},
    {MSR_SYSENTER_EIP, 0x80001234},
    /* AMD keeps 32 bits of the SYSENTER pointers, KVM does so, too. */
    {0x277, 0x0007010600070406},
    {0x200, 0x80000006},
    {0x201, 0xff80000800},
    {0x26f, 0x0505050505050505},
    {0x2ff, 0xc06},
};
#define MSRS (sizeof(msrs) / sizeof(msrs[0]))

static u64 ymm[16][4] __attribute__((aligned(32)));
static double st_in = 2.718281828459045;

static void fill_fpu(void)
{
    u32 mxcsr = 0x3f80;
    for (unsigned i = 0; i < 16; i++)
        for (unsigned k = 0; k < 4; k++) ymm[i][k] = 0x0101010101010101 * (i + 1) + k * 0x1111;
    __asm__ volatile("fninit; fldpi; fldl %1; ldmxcsr %0" ::"m"(mxcsr), "m"(st_in));
#define FILL(n) __asm__ volatile("vmovdqa %0, %%ymm" #n ::"m"(ymm[n]))
#define FILL_SSE(n) __asm__ volatile("movdqa %0, %%xmm" #n ::"m"(ymm[n]))
#define ALL(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)
#define EACH(f) \
    f(0);       \
    f(1);       \
    f(2);       \
    f(3);       \
    f(4);       \
    f(5);       \
    f(6);       \
    f(7);       \
    f(8);       \
    f(9);       \
    f(10);      \
    f(11);      \
    f(12);      \
    f(13);      \
    f(14);      \
    f(15)
    if (avx) {
        EACH(FILL);
    } else {
        EACH(FILL_SSE);
    }
}

static void check_fpu(void)
{
    static u64 got[16][4] __attribute__((aligned(32)));
    u32 mxcsr;
    u16 status;
    double top;
#define READ(n) __asm__ volatile("vmovdqa %%ymm" #n ", %0" : "=m"(got[n]))
#define READ_SSE(n) __asm__ volatile("movdqa %%xmm" #n ", %0" : "=m"(got[n]))
    if (avx) {
        EACH(READ);
    } else {
        EACH(READ_SSE);
    }
    for (unsigned i = 0; i < 16; i++)
        for (unsigned k = 0; k < (avx ? 4 : 2); k++) CHECK_EQ(got[i][k], ymm[i][k]);
    __asm__ volatile("stmxcsr %0; fnstsw %1; fstl %2" : "=m"(mxcsr), "=m"(status), "=m"(top));
    CHECK_EQ(mxcsr, 0x3f80);
    CHECK_EQ(status >> 11 & 7, 6); /* two registers in use */
    CHECK(memcmp(&top, &st_in, 8) == 0);
}

static void fill(void)
{
    for (unsigned i = 0; i < MSRS; i++) wrmsr(msrs[i].msr, msrs[i].value);
    if (HAS_RDTSCP) wrmsr(MSR_TSC_AUX, 0x1234);
    __asm__ volatile("mov %0, %%dr0; mov %0, %%dr1; mov %1, %%dr2" ::"r"(0x123456ul), "r"(0xffff800000001000ul));
    __asm__ volatile("mov %0, %%cr2" ::"r"(0x00007fff12345678ul));
}

static void check_registers(void)
{
    u64 v;
    for (unsigned i = 0; i < MSRS; i++) CHECK_EQ(rdmsr(msrs[i].msr), msrs[i].value);
    if (HAS_RDTSCP) CHECK_EQ(rdmsr(MSR_TSC_AUX), 0x1234);
    __asm__ volatile("mov %%dr1, %0" : "=r"(v));
    CHECK_EQ(v, 0x123456);
    __asm__ volatile("mov %%dr2, %0" : "=r"(v));
    CHECK_EQ(v, 0xffff800000001000);
    __asm__ volatile("mov %%cr2, %0" : "=r"(v));
    CHECK_EQ(v, 0x00007fff12345678);
}

/* Registers of the controllers that stay as they were written. */
#define KEPT 12
static void read_kept(u32 *r)
{
    static const u32 lapic[] = {0x20, 0x80, 0xd0, 0xf0, 0x320, 0x350, 0x360, 0x370, 0x3e0};
    unsigned n = 0;
    for (unsigned i = 0; i < sizeof(lapic) / sizeof(lapic[0]); i++) r[n++] = apic_read(lapic[i]);
    r[n++] = ioapic_read(0x14);
    r[n++] = ioapic_read(0x15);
    r[n++] = (u32)(inb(0x21) | inb(0xa1) << 8);
}

/* ---- the clock ---- */

static volatile struct {
    u32 version, pad;
    u64 tsc, ns;
    u32 mul;
    signed char shift;
    u8 flags, pad2[2];
} pvclock __attribute__((aligned(64)));

static u64 clock_ns(void)
{
    u32 version;
    u64 ns;
    do {
        version = pvclock.version;
        mfence();
        u64 d = rdtsc() - pvclock.tsc;
        d = pvclock.shift < 0 ? d >> -pvclock.shift : d << pvclock.shift;
        ns = pvclock.ns + (u64)((unsigned __int128)d * pvclock.mul >> 32);
        mfence();
    } while (version & 1 || version != pvclock.version);
    return ns;
}

static bool has_clock(void)
{
    struct cpuid sig = cpuid(0x40000000, 0);
    return sig.b == 0x4b4d564b && cpuid(0x40000001, 0).a & 8;
}

static u64 read_clock(void)
{
    return has_clock() ? clock_ns() : 0;
}

/* ---- the other CPU: waits in HLT, its TSC deadline timer ticking ---- */

static volatile bool stop;

static void other(void *arg)
{
    (void)arg;
    if (has_word("x2apic")) x2apic_enable();
    apic_write(0xf0, 0x1ff);
    apic_write(0x320, 0x40000 | DEADLINE);
    wrmsr(MSR_KERNEL_GS_BASE, 0xffff8880aaaa0000);
    wrmsr(MSR_TSC_DEADLINE, rdtsc() + khz);
    while (!stop) wait_interrupt();
    CHECK_EQ(rdmsr(MSR_KERNEL_GS_BASE), 0xffff8880aaaa0000);
}

/* ---- one move, from each of some situations ---- */

static void wait_for(volatile u32 *counter, const char *what)
{
    u32 before = *counter;
    sti();
    for (u64 start = rdtsc(); *counter - before < 2;)
        if ((rdtsc() - start) / khz > 20000) panic("no more interrupts of the %s", what);
    cli();
}

static void all_go_on(void)
{
    u32 before = calls;
    wait_for(&ticks, "LAPIC timer");
    wait_for(&deadlines, "other CPU's deadline timer");
    wait_for(&pits, "PIT through the IOAPIC");
    apic_ipi(1, CALL);
    for (u64 start = rdtsc(); calls == before;)
        if ((rdtsc() - start) / khz > 20000) panic("the other CPU does not answer");
}

static void one_move(void (*how)(void))
{
    u32 kept[KEPT], now[KEPT];
    read_kept(kept);
    fill_fpu();
    (void)read_clock(); /* once before, so that an engine that translates has done so */
    bool clock = has_clock();
    /* The TSC is read on both sides of each look at the clock, since a busy host may stop this CPU between the two for long. */
    u64 first = rdtsc(), ns = read_clock(), from = rdtsc();
    how();
    u64 to = rdtsc(), went = read_clock() - ns, last = rdtsc();
    u64 least = (to - from) * 1000000 / khz, most = (last - first) * 1000000 / khz;
    if (clock && !CHECK(went + least / 10 + SLACK > least && went < most + most / 10 + SLACK))
        print("    clock %lu ns, TSC %lu to %lu ns\n", went, least, most);
    check_fpu();
    check_registers();
    read_kept(now);
    for (unsigned i = 0; i < KEPT; i++)
        if (!CHECK_EQ(now[i], kept[i])) print("    controller register %u\n", i);
    all_go_on();
}

static void running(void)
{
    sti();
    ask_for_move();
    cli();
}
static void interrupts_off(void)
{
    u32 before = selfs;
    apic_ipi(0, SELF);
    ask_for_move();
    CHECK_EQ(selfs, before); /* it waits, and comes once */
    sti();
    for (u64 start = rdtsc(); selfs == before;)
        if ((rdtsc() - start) / khz > 20000) panic("the interrupt that was pending does not come");
    cli();
    CHECK_EQ(selfs, before + 1);
}
static void in_service(void)
{
    u32 before = selfs, slow = slows;
    apic_ipi(0, SLOW);
    sti();
    for (u64 start = rdtsc(); slows == slow || selfs == before;)
        if ((rdtsc() - start) / khz > 60000) panic("the interrupt that was in service does not end");
    cli();
    CHECK_EQ(selfs, before + 1);
}

int main(void)
{
    static void (*const ways[])(void) = {running, interrupts_off, in_service};
    waits = has_word("wait");
    avx = HAS_XSAVE && HAS_AVX && !has_word("noavx") && !left_out(LAB, "XSETBV: under KVM it is not seen");
    on_vector(TIMER, on_timer);
    on_vector(DEADLINE, on_deadline);
    on_vector(PIT, on_pit);
    on_vector(CALL, on_call);
    on_vector(SELF, on_self);
    on_vector(SLOW, on_slow);
    u32 told = cpuid(0x40000000, 0).a >= 0x40000010 ? cpuid(0x40000010, 0).a : 0;
    khz = tsc_khz(); /* starts the PIT */
    if (told) khz = told;
    smp_start();
    if (has_word("x2apic")) x2apic_enable();
    u64 features = CR4_OSFXSR | (avx ? CR4_OSXSAVE : 0);
    __asm__ volatile("mov %%cr4, %%rax; or %0, %%rax; mov %%rax, %%cr4" ::"r"(features) : "rax");
    if (avx) xsetbv(0, 7);
    fill();
    if (has_clock()) wrmsr(PVCLOCK_MSR, (u64)&pvclock | 1);
    smp_run(1, other, NULL);
    apic_write(0x80, 0x10);
    apic_write(0x3e0, 0xb);
    apic_write(0x320, 0x20000 | TIMER);
    apic_write(0x380, 3000000);
    ioapic_write(0x15, 0);
    ioapic_write(0x14, PIT);
    /* PIT counter 0 runs freely since tsc_khz(), one rise per 55 ms. */
    for (unsigned round = 0; round < 2; round++)
        for (unsigned i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) one_move(ways[i]);
    stop = true;
    apic_ipi(1, CALL);
    smp_wait(1);
    apic_write(0x380, 0);
    return done();
}
