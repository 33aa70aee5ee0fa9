// LOCKed instructions on several CPUs: every counter adds up, in one page, over cache lines and over page boundaries.
// RUN: -c 4
#include "kernel.h"

#define ROUNDS 20000u

static u8 *area; /* two pages */
static volatile u32 ready;
static volatile u64 spinlock, guarded[2], tickets;
static volatile u64 pair[2] __attribute__((aligned(16)));

/* Offsets into the area: aligned, over a cache line, over the page boundary. */
static const u32 places[] = {0, 64 - 4, PAGE - 4, PAGE - 1};

static void work(void *arg)
{
    u64 me = (u64)arg;
    __atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
    while (ready < cpus()) pause();
    for (u32 i = 0; i < ROUNDS; i++) {
        for (unsigned k = 0; k < 4; k++) {
            if (k >= 2 && i % 8) continue; /* split locks are slow on real machines */
            __asm__ volatile("lock addq $1, (%0)" ::"r"(area + places[k]) : "memory", "cc");
        }
        __asm__ volatile("lock incl %0" : "+m"(*(u32 *)(area + 128))::"cc");
        __asm__ volatile("lock subw $1, %0" : "+m"(*(u16 *)(area + 136))::"cc");
        __asm__ volatile("lock btcl %1, %0" : "+m"(*(u32 *)(area + 140)) : "r"((u32)me) : "cc");
        u64 one = 1;
        __asm__ volatile("lock xaddq %0, %1" : "+r"(one), "+m"(tickets)::"cc");
        /* CMPXCHG loop. */
        u64 old = *(volatile u64 *)(area + 192);
        while (!__atomic_compare_exchange_n((u64 *)(area + 192), &old, old + 3, false, __ATOMIC_SEQ_CST,
                                            __ATOMIC_SEQ_CST)) {
        }
        /* XCHG spin lock around plain increments (XCHG locks without a prefix). */
        while (__atomic_exchange_n(&spinlock, 1, __ATOMIC_ACQUIRE)) pause();
        guarded[0]++;
        guarded[1] += 2;
        __atomic_store_n(&spinlock, 0, __ATOMIC_RELEASE);
        /* CMPXCHG16B: both halves move together. */
        u64 lo = pair[0], hi = pair[1];
        bool ok;
        do {
            u64 nlo = lo + 1, nhi = hi + 1;
            __asm__ volatile("lock cmpxchg16b %2"
                             : "+a"(lo), "+d"(hi), "+m"(pair), "=@ccz"(ok)
                             : "b"(nlo), "c"(nhi)
                             : "memory");
        } while (!ok);
    }
}

int main(void)
{
    unsigned n = cpus();
    area = (u8 *)TEST_VA;
    u8 *first = page_alloc(), *second = page_alloc(); /* not neighbours in this order */
    map_page(TEST_VA, (u64)second, PTE_W);
    map_page(TEST_VA + PAGE, (u64)first, PTE_W);
    smp_start();
    for (u64 i = 1; i < n; i++) smp_run((unsigned)i, work, (void *)i);
    work(NULL);
    for (unsigned i = 1; i < n; i++) smp_wait(i);

    /* The last place overlaps the one before it (PAGE - 4 .. and PAGE - 1 ..): byte sums, so take them together. */
    u64 total = (u64)n * ROUNDS;
    CHECK_EQ(*(u64 *)(area + places[0]), total);
    CHECK_EQ(*(u64 *)(area + places[1]), total);
    unsigned __int128 sum = 0;
    memcpy(&sum, area + PAGE - 4, 12);
    CHECK_EQ((u64)sum, total / 8 + (total / 8 << 24));
    CHECK_EQ(*(u32 *)(area + 128), total);
    CHECK_EQ(*(u16 *)(area + 136), (u16)-total);
    CHECK_EQ(*(u32 *)(area + 140), 0); /* an even number of flips each */
    CHECK_EQ(tickets, total);
    CHECK_EQ(*(u64 *)(area + 192), 3 * total);
    CHECK_EQ(guarded[0], total);
    CHECK_EQ(guarded[1], 2 * total);
    CHECK_EQ(pair[0], total);
    CHECK_EQ(pair[1], total);
    return done();
}
