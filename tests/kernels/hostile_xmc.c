// Eight CPUs patch and run the same code all the time, without any protocol but this: values of a slot only grow, and whoever has seen
// that a value was written, and serialises, must not run an older one. Bursts of writes overrun whatever holds messages between CPUs.
// RUN: -c 8
#include "kernel.h"

#define SLOTS 256u /* functions, 16 to a page */
#define PATCHES 1200u
#define BURST 96u

static u8 *page[SLOTS / 16];
static volatile u32 asked[SLOTS], written[SLOTS]; /* values about to be written, values that are there */
static volatile u32 turn[SLOTS];                  /* one writer at a time */
static volatile u32 started, wrong, calls, patches;

/* "mov $imm, %eax; ret", the immediate aligned, so that it is always seen whole. */
static u8 *slot(unsigned n)
{
    return page[n / 16] + n % 16 * 256 + 3;
}

static void patch(unsigned n)
{
    if (__atomic_exchange_n(&turn[n], 1, __ATOMIC_ACQUIRE)) return;
    u32 v = asked[n] + 1;
    asked[n] = v;
    *(volatile u32 *)(slot(n) + 1) = v;
    written[n] = v;
    __atomic_store_n(&turn[n], 0, __ATOMIC_RELEASE);
    __atomic_add_fetch(&patches, 1, __ATOMIC_RELAXED);
}

static void call(unsigned n)
{
    u32 least = written[n];
    cpuid(0, 0); /* serialises */
    u32 v = ((u32(*)(void))slot(n))(), most = asked[n];
    if (v < least || v > most) __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
}

static void work(void *arg)
{
    u64 seed = (u64)arg * 0x9e3779b97f4a7c15ul + 1;
    __atomic_add_fetch(&started, 1, __ATOMIC_SEQ_CST);
    while (started < cpus()) pause();
    for (unsigned i = 0; i < PATCHES; i++) {
        u64 r = random64(&seed);
        if (r % 64 == 0) /* a burst: every page, before anyone can look */
            for (unsigned k = 0; k < BURST; k++)
                patch((unsigned)(r >> 8) % SLOTS + k < SLOTS ? (unsigned)(r >> 8) % SLOTS + k : k);
        patch((unsigned)(r >> 16) % SLOTS);
        call((unsigned)(r >> 32) % SLOTS);
        call((unsigned)(r >> 48) % 8); /* a few are hot for all */
        patch((unsigned)(r >> 56) % 8);
    }
}

int main(void)
{
    unsigned n = cpus();
    for (unsigned i = 0; i < SLOTS / 16; i++) page[i] = page_alloc();
    for (unsigned i = 0; i < SLOTS; i++) memcpy(slot(i), "\xb8\0\0\0\0\xc3", 6);
    smp_start();
    for (u64 i = 1; i < n; i++) smp_run((unsigned)i, work, (void *)i);
    work(NULL);
    for (unsigned i = 1; i < n; i++) smp_wait(i);
    if (!left_out(TCG | LAB, "code that another CPU changed")) CHECK_EQ(wrong, 0);
    CHECK_EQ(calls, 2 * PATCHES * n);
    CHECK(patches > PATCHES * n);
    for (unsigned i = 0; i < SLOTS; i++) CHECK_EQ(((u32(*)(void))slot(i))(), written[i]);
    print("%u calls, %u patches\n", calls, patches);
    return done();
}
