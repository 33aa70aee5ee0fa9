/* Other CPUs: start them (SDM vol. 3 9.4.4), give them work. */
#include "kernel.h"

#define AP_STUB 0x8000ul

extern u8 ap_stub[], ap_stub_end[];
extern u32 next_cpu;
void trap_init(unsigned cpu);
void start_ap(u64 cpu);

static struct {
    void (*volatile fn)(void *);
    void *arg;
    volatile bool online;
} work[MAX_CPUS];

void start_ap(u64 cpu)
{
    trap_init((unsigned)cpu);
    apic_write(0xf0, 0x1ff);
    work[cpu].online = true;
    for (;;) {
        void (*fn)(void *) = __atomic_load_n(&work[cpu].fn, __ATOMIC_ACQUIRE);
        if (fn) {
            fn(work[cpu].arg);
            __atomic_store_n(&work[cpu].fn, NULL, __ATOMIC_RELEASE);
        }
        pause();
    }
}

void smp_sipi(u32 apic_id, u8 vector)
{
    apic_ipi(apic_id, 0x4500);
    delay_us(10000);
    apic_ipi(apic_id, 0x4600u | vector);
    delay_us(200);
    apic_ipi(apic_id, 0x4600u | vector);
}

/* CPUs take their index in the order in which they arrive, so they are started one at a time: index = APIC id. */
void smp_start(void)
{
    apic_enable();
    memcpy(phys(AP_STUB), ap_stub, (size_t)(ap_stub_end - ap_stub));
    for (unsigned cpu = 1; cpu < cpus(); cpu++) {
        smp_sipi(cpu, AP_STUB >> 12);
        for (unsigned ms = 0; !work[cpu].online; ms++) {
            if (ms == 5000) panic("CPU %u does not start", cpu);
            delay_us(1000);
        }
    }
}

void smp_run(unsigned cpu, void (*fn)(void *), void *arg)
{
    smp_wait(cpu);
    work[cpu].arg = arg;
    __atomic_store_n(&work[cpu].fn, fn, __ATOMIC_RELEASE);
}

void smp_wait(unsigned cpu)
{
    while (__atomic_load_n(&work[cpu].fn, __ATOMIC_ACQUIRE)) pause();
}
