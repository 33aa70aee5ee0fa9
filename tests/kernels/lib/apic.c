/* Local APIC in both modes, the PIT as the clock that tests trust, PIC masking. */
#include "kernel.h"

static bool x2apic[MAX_CPUS]; /* per CPU, as the mode is */

u32 apic_read(u32 reg)
{
    return x2apic[cpu_index()] ? (u32)rdmsr(0x800 + reg / 16) : *(volatile u32 *)(LAPIC + reg);
}

void apic_write(u32 reg, u32 v)
{
    if (x2apic[cpu_index()])
        wrmsr(0x800 + reg / 16, v);
    else
        *(volatile u32 *)(LAPIC + reg) = v;
}

void apic_ipi(u32 apic_id, u32 low)
{
    if (x2apic[cpu_index()]) {
        wrmsr(0x830, (u64)apic_id << 32 | low);
        return;
    }
    apic_write(0x310, apic_id << 24);
    apic_write(0x300, low);
    while (apic_read(0x300) & 0x1000) pause();
}

void pic_mask_all(void)
{
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
}

void apic_enable(void)
{
    pic_mask_all();
    apic_write(0xf0, 0x1ff);
}

void apic_eoi(void)
{
    apic_write(0xb0, 0);
}

bool x2apic_enable(void)
{
    if (!HAS_X2APIC) return false;
    wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | 0xc00);
    x2apic[cpu_index()] = true;
    return true;
}

static u16 pit_count(void)
{
    outb(0x43, 0x00); /* latch counter 0 */
    u16 lo = inb(0x40);
    return (u16)(lo | inb(0x40) << 8);
}

/* Counter 0 runs freely in mode 2 with divisor 65536. */
static void pit_start(void)
{
    static bool started;
    if (started) return;
    started = true;
    outb(0x43, 0x34);
    outb(0x40, 0);
    outb(0x40, 0);
}

void delay_us(u64 us)
{
    u64 ticks = us * 1193182 / 1000000;
    pit_start();
    for (u16 last = pit_count(); ticks;) {
        u16 now = pit_count(), gone = (u16)(last - now);
        ticks -= gone < ticks ? gone : ticks;
        last = now;
    }
}

/* Goes by how far the PIT really came, not by how far it was asked to: on a busy host it's more. What is left is when the
 * host runs something else for a whole turn of the counter or between the readings of both clocks: that looks too fast. */
static u64 tsc_measure(void)
{
    u64 ticks = 0;
    pit_start();
    u16 last = pit_count();
    u64 start = rdtsc();
    while (ticks < 1193182 / 50) {
        u16 now = pit_count();
        ticks += (u16)(last - now);
        last = now;
    }
    return (rdtsc() - start) * 1193182 / (ticks * 1000);
}

u64 tsc_khz_now(void)
{
    u64 least = tsc_measure();
    for (unsigned i = 1; i < 5; i++) {
        u64 got = tsc_measure();
        if (got < least) least = got;
    }
    return least;
}

u64 tsc_khz(void)
{
    static u64 khz;
    if (!khz) khz = tsc_khz_now();
    return khz;
}
