// The local APIC: priorities (TPR, PPR, IRR, ISR), self and cross-CPU IPIs, NMI and its blocking, x2APIC, CR8, logical and broadcast destinations.
// RUN: -c 2
#include "kernel.h"

static volatile u32 count[256], order[16], orders, on_cpu[256];
static volatile u32 nmis, nested_nmis, nmi_depth;

static void on_interrupt(struct frame *f)
{
    count[f->vector]++;
    on_cpu[f->vector] = cpu_index();
    if (orders < 16) order[orders++] = (u32)f->vector;
    apic_eoi();
}

static void self_ipi(u32 vector)
{
    apic_ipi(0, 0x44000 | vector);
}

static void settle(void)
{
    sti();
    for (unsigned i = 0; i < 20; i++) pause();
    cli();
}

static bool in_irr(u32 vector)
{
    return apic_read(0x200 + vector / 32 * 16) >> vector % 32 & 1;
}

static void priorities(void)
{
    /* With IF off they gather in the IRR, then come highest first. */
    orders = 0;
    self_ipi(0x41);
    self_ipi(0x83);
    self_ipi(0x62);
    self_ipi(0x62);
    CHECK(in_irr(0x41) && in_irr(0x62) && in_irr(0x83));
    settle();
    CHECK_EQ(orders, 3); /* 0x62 was merged */
    CHECK(order[0] == 0x83 && order[1] == 0x62 && order[2] == 0x41);
    CHECK(!in_irr(0x41));
    /* TPR holds back its class and those below. */
    orders = 0;
    apic_write(0x80, 0x60);
    CHECK_EQ(apic_read(0xa0), 0x60); /* PPR */
    self_ipi(0x6f);
    self_ipi(0x70);
    settle();
    CHECK_EQ(orders, 1);
    CHECK_EQ(order[0], 0x70);
    CHECK(in_irr(0x6f));
    /* CR8 is the TPR's class. */
    CHECK_EQ(cr8(), 6);
    set_cr8(5);
    CHECK_EQ(apic_read(0x80), 0x50);
    settle();
    CHECK_EQ(orders, 2);
    set_cr8(0);
    CODE(to_cr8, "mov %rax, %cr8");
    struct ctx c;
    ctx_kernel(&c, to_cr8);
    c.gpr[RAX] = 16;
    if (!left_out(TCG | LAB, "reserved bits of CR8")) FAULTS(&c, GP, 0);
}

static volatile u32 inner_seen;

/* While a vector is in service, lower and equal classes wait, higher ones interrupt. */
static void slow_handler(struct frame *f)
{
    count[f->vector]++;
    CHECK(apic_read(0x100 + 0x50 / 32 * 16) >> (0x50 % 32) & 1); /* ISR */
    CHECK_EQ(apic_read(0xa0), 0x50);
    self_ipi(0x48);
    self_ipi(0x58);
    self_ipi(0x90);
    settle();
    inner_seen = count[0x48] | count[0x58] << 8 | count[0x90] << 16;
    apic_eoi();
}

static void nesting(void)
{
    on_vector(0x50, slow_handler);
    count[0x48] = count[0x58] = count[0x90] = 0;
    self_ipi(0x50);
    settle();
    CHECK_EQ(inner_seen, 0x10000);
    settle();
    CHECK(count[0x48] == 1 && count[0x58] == 1);
    on_vector(0x50, on_interrupt);
}

static void on_nmi(struct frame *f)
{
    (void)f;
    nmis++;
    if (nmi_depth++) nested_nmis++;
    if (nmis == 1) { /* another one now waits for our IRET */
        apic_ipi(0, 0x4400);
        for (unsigned i = 0; i < 100; i++) pause();
        CHECK_EQ(nmis, 1);
    }
    nmi_depth--;
}

static void nmi(void)
{
    on_vector(NMI, on_nmi);
    apic_ipi(0, 0x4400); /* IF does not matter */
    for (unsigned i = 0; i < 10000 && nmis < 2; i++) pause();
    CHECK_EQ(nmis, 2);
    CHECK_EQ(nested_nmis, 0);
}

static volatile bool up;

static void halted(void *arg)
{
    (void)arg;
    while (!up) wait_interrupt(); /* woken by interrupts of any kind */
}

static void wait_for(volatile u32 *v, u32 n, int line)
{
    for (unsigned i = 0; i < 2000 && *v < n; i++) delay_us(100);
    check_eq(*v, n, __FILE__, line, "interrupts that arrived");
}

static void other_cpu(void)
{
    smp_run(1, halted, NULL);
    count[0x45] = 0;
    for (u32 i = 1; i <= 100; i++) {
        apic_ipi(1, 0x4045);
        wait_for(&count[0x45], i, __LINE__);
    }
    CHECK_EQ(on_cpu[0x45], 1);
    u32 before = nmis;
    apic_ipi(1, 0x4400); /* NMI wakes HLT */
    wait_for(&nmis, before + 1, __LINE__);
    count[0x46] = 0;
    apic_ipi(0, 0xc4046); /* all but self */
    wait_for(&count[0x46], 1, __LINE__);
    CHECK_EQ(on_cpu[0x46], 1);
    count[0x47] = 0;
    apic_ipi(0, 0x84047); /* all with self */
    settle();
    wait_for(&count[0x47], 2, __LINE__);
}

static void logical(void)
{
    /* Flat model: CPU 0 is bit 0; CPU 1 set its own LDR in prepare_logical(). */
    apic_write(0xe0, 0xffffffff);
    apic_write(0xd0, 1u << 24);
    count[0x49] = 0;
    apic_ipi(2, 0x4849);
    wait_for(&count[0x49], 1, __LINE__);
    CHECK_EQ(on_cpu[0x49], 1);
    apic_ipi(3, 0x4849);
    settle();
    wait_for(&count[0x49], 3, __LINE__);
}

static void prepare_logical(void *arg)
{
    (void)arg;
    apic_write(0xe0, 0xffffffff);
    apic_write(0xd0, 2u << 24);
}

static void x2apic(void)
{
    if (!x2apic_enable()) {
        skip("x2APIC");
        return;
    }
    CHECK_EQ(rdmsr(0x802), 0); /* ID, 32 bits */
    CHECK_EQ(rdmsr(0x80d), 1); /* LDR: cluster 0, bit 0 */
    orders = 0;
    wrmsr(0x83f, 0x55); /* self IPI */
    settle();
    CHECK_EQ(orders, 1);
    count[0x45] = 0;
    wrmsr(0x830, 1ul << 32 | 0x4045); /* to a CPU in xAPIC mode: by physical id */
    wait_for(&count[0x45], 1, __LINE__);
    CODE(rd, "rdmsr");
    CODE(wr, "wrmsr");
    struct ctx c;
    ctx_kernel(&c, rd);
    c.gpr[RCX] = 0x80e; /* DFR does not exist here */
    FAULTS(&c, GP, 0);
    ctx_kernel(&c, wr);
    c.gpr[RCX] = 0x802, c.gpr[RAX] = 1, c.gpr[RDX] = 0; /* ID is read-only */
    FAULTS(&c, GP, 0);
    ctx_kernel(&c, wr);
    c.gpr[RCX] = 0x80b, c.gpr[RAX] = 1, c.gpr[RDX] = 0; /* EOI takes 0 only */
    if (!left_out(ONKVM, "an EOI that is not 0")) FAULTS(&c, GP, 0);
    ctx_kernel(&c, wr); /* back to xAPIC directly: not allowed */
    c.gpr[RCX] = MSR_APIC_BASE, c.gpr[RAX] = LAPIC | 0x900, c.gpr[RDX] = 0;
    FAULTS(&c, GP, 0);
}

int main(void)
{
    for (unsigned v = 0x40; v < 0x100; v++)
        if (v != END && v != 0xff) on_vector(v, on_interrupt);
    apic_enable();
    CHECK_EQ(apic_read(0x30) & 0xff, apic_read(0x30) & 0x1f); /* version 0x1x */
    priorities();
    nesting();
    nmi();
    smp_start();
    smp_run(1, prepare_logical, NULL);
    other_cpu();
    logical();
    x2apic();
    up = true;
    apic_ipi(1, 0x4045);
    return done();
}
