// Cross-modifying code: CPU 0 patches what CPU 1 runs, by the int3 protocol of kernels (SDM vol. 3 8.1.3): first byte -> int3,
// sync, tail, sync, first byte. CPU 1 only ever sees whole old or whole new instructions, or the breakpoint.
// RUN: -c 2
#include "kernel.h"

#define ROUNDS 200u /* < 256: the value is the round in every byte */
#define SYNC_VECTOR 0x40

/* A 5-byte "mov $imm, %eax; ret" in a page of its own. */
static u8 *function;
static volatile u32 allowed_old, allowed_new, stop, wrong, breakpoints, calls, synced;

static void on_breakpoint(struct frame *f)
{
    breakpoints++;
    f->gpr[RAX] = allowed_new; /* what the whole instruction would have done */
    f->rip = (u64)function + 5;
}

static void on_sync(struct frame *f)
{
    (void)f;
    synced++;
    __asm__ volatile("cpuid" ::"a"(0), "c"(0) : "rbx", "rdx"); /* serialise */
    apic_eoi();
}

static void caller(void *arg)
{
    (void)arg;
    sti();
    while (!stop) {
        u32 before = allowed_old, v = ((u32(*)(void))function)(), after = allowed_new;
        if (v < before || v > after || v % 0x01010101) wrong++; /* older, newer or torn */
        calls++;
    }
    cli();
}

static void sync_other(void)
{
    u32 n = synced;
    apic_ipi(1, 0x4000 | SYNC_VECTOR);
    while (synced == n) pause();
}

int main(void)
{
    if (cpus() < 2) panic("needs -c 2");
    function = page_alloc();
    memcpy(function, "\xb8\0\0\0\0\xc3", 6);
    on_vector(BP, on_breakpoint);
    on_vector(SYNC_VECTOR, on_sync);
    smp_start();
    smp_run(1, caller, NULL);
    for (u32 i = 1; i <= ROUNDS; i++) {
        volatile u8 *p = function;
        u32 want = calls + 3;
        allowed_new = i * 0x01010101;
        p[0] = 0xcc;
        sync_other();
        for (unsigned k = 0; k < 4; k++) p[1 + k] = (u8)(allowed_new >> 8 * k);
        sync_other();
        p[0] = 0xb8;
        sync_other();
        allowed_old = allowed_new;
        while (calls < want) pause(); /* the caller got on with it */
    }
    /* After the last sync only the new value may come. */
    u32 want = calls + 2;
    while (calls < want) pause();
    stop = 1;
    smp_wait(1);
    CHECK_EQ(wrong, 0);
    CHECK_EQ(((u32(*)(void))function)(), ROUNDS * 0x01010101u);
    print("%u calls, %u breakpoints, %u syncs\n", calls, breakpoints, synced);
    return done();
}
