// 8259 PICs, PIT and IOAPIC: an interrupt through each of them, edge and level, masking, EOI, the way Linux probes for its timer.
#include "kernel.h"

#define IOAPIC 0xfec00000ul
static volatile u32 hits[256];
static bool by_pic;

static void on_irq(struct frame *f)
{
    hits[f->vector]++;
    if (by_pic)
        outb(0x20, 0x20);
    else
        apic_eoi();
}

static void pit_rate(u16 divisor)
{
    outb(0x43, 0x34);
    outb(0x40, (u8)divisor);
    outb(0x40, (u8)(divisor >> 8));
}

static u32 ioapic(u8 reg)
{
    *(volatile u32 *)IOAPIC = reg;
    return *(volatile u32 *)(IOAPIC + 0x10);
}

static void set_ioapic(u8 reg, u32 v)
{
    *(volatile u32 *)IOAPIC = reg;
    *(volatile u32 *)(IOAPIC + 0x10) = v;
}

/* Waits for `n` interrupts with a bound in instructions, not in time. */
static bool wait_hits(u32 vector, u32 n)
{
    sti();
    for (u64 i = 0; i < 400000000ul && hits[vector] < n; i++) pause();
    cli();
    return hits[vector] >= n;
}

static void pic_init(void)
{
    outb(0x20, 0x11), outb(0xa0, 0x11);
    outb(0x21, 0x30), outb(0xa1, 0x38); /* vectors 0x30.., 0x38.. */
    outb(0x21, 4), outb(0xa1, 2);
    outb(0x21, 1), outb(0xa1, 1);
    pic_mask_all();
}

int main(void)
{
    for (unsigned v = 0x30; v < 0x60; v++) on_vector(v, on_irq);
    pic_init();
    CHECK_EQ(inb(0x21), 0xff);

    /* PIT through the PIC as a "virtual wire" (LINT0 = ExtINT). */
    by_pic = true;
    apic_write(0xf0, 0x1ff);
    apic_write(0x350, 0x700);
    pit_rate(11932); /* 100 Hz */
    outb(0x21, 0xfe);
    CHECK(wait_hits(0x30, 3));
    outb(0x21, 0xff);
    u32 seen = hits[0x30];
    sti();
    for (unsigned i = 0; i < 1000; i++) pause();
    cli();
    CHECK(hits[0x30] <= seen + 1);
    /* HLT wakes up for it. */
    outb(0x21, 0xfe);
    seen = hits[0x30];
    while (hits[0x30] < seen + 2) wait_interrupt();
    outb(0x21, 0xff);
    /* Mask LINT0: nothing comes, whatever the PIC says. */
    apic_write(0x350, 0x10700);
    outb(0x21, 0xfe);
    seen = hits[0x30];
    sti();
    for (unsigned i = 0; i < 100000; i++) pause();
    cli();
    CHECK_EQ(hits[0x30], seen);
    outb(0x21, 0xff);

    /* PIT through the IOAPIC: ISA IRQ 0 is pin 2. */
    by_pic = false;
    u32 version = ioapic(1);
    CHECK_EQ(version >> 16 & 0xff, 23);
    set_ioapic(0x10 + 2 * 2 + 1, 0); /* to APIC id 0 */
    set_ioapic(0x10 + 2 * 2, 0x50);
    CHECK_EQ(ioapic(0x10 + 2 * 2) & 0x1ffff, 0x50);
    CHECK(wait_hits(0x50, 3));
    set_ioapic(0x10 + 2 * 2, 0x10050);
    seen = hits[0x50];
    sti();
    for (unsigned i = 0; i < 100000; i++) pause();
    cli();
    CHECK(hits[0x50] <= seen + 1);

    /* The serial port's transmitter, pin 4, edge and then level triggered. */
    outb(0x3fc, 0x0b); /* OUT2 opens the line */
    set_ioapic(0x10 + 2 * 4 + 1, 0);
    set_ioapic(0x10 + 2 * 4, 0x51);
    outb(0x3f9, 0x02); /* THR empty: it is, so at once */
    CHECK(wait_hits(0x51, 1));
    CHECK_EQ(inb(0x3fa) & 0x0f, 0x02); /* IIR says so, and reading it takes it back */
    CHECK_EQ(inb(0x3fa) & 0x0f, 0x01);
    outb(0x3f9, 0);
    set_ioapic(0x10 + 2 * 4, 0x10051);
    return done();
}
