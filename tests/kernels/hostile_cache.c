// One CPU makes code without end, large when translated, and runs each piece once: more than a code cache holds. Three others write into the
// pages it runs from all the while, and run what they wrote. Every piece must do what its bytes say, and nobody may starve.
// RUN: -c 4
#include "kernel.h"

#define PIECES 24000u
#define SECONDS 4ul /* enough where the host has a CPU to spare; else it is fewer pieces */
#define AREA 64u    /* pages, used in turn */
#define PER_PAGE 8u
#define ACCESSES 56u

static u8 *area;
static volatile u32 stop, spoilt[4];

/* "clc; mov $k, %ecx; adc (%rbx,%rcx), %eax; ..": each needs a check of its own, that keeps the flags. */
static u32 make(u8 *p, u32 *data, u64 *seed)
{
    u64 sum = 0;
    *p++ = 0xf8;
    for (unsigned i = 0; i < ACCESSES; i++) {
        u32 k = (u32)(random64(seed) >> 40) % 1024;
        *p++ = 0xb9;
        *(volatile u32 *)(void *)p = k * 4;
        p += 4;
        *p++ = 0x13;
        *p++ = 0x04;
        *p++ = 0x0b;
        sum = (u64)(u32)sum + data[k] + (sum >> 32);
    }
    *p = 0xc3;
    return (u32)sum;
}

static void maker(void)
{
    u64 seed = 12345;
    u32 *data = page_alloc(), wrong = 0;
    for (unsigned i = 0; i < 1024; i++) data[i] = (u32)(random64(&seed) >> 32);
    u64 end = rdtsc() + SECONDS * 1000 * tsc_khz();
    for (unsigned n = 0; n < PIECES && (rdtsc() < end || n < PIECES / 50); n++) {
        u8 *at = area + n / PER_PAGE % AREA * PAGE + n % PER_PAGE * (PAGE / PER_PAGE);
        u32 want = make(at, data, &seed), got = 0;
        __asm__ volatile("call *%1" : "+a"(got) : "r"(at), "b"(data) : "rcx", "memory", "cc");
        if (got != want) wrong++;
    }
    CHECK_EQ(wrong, 0);
}

/* The last bytes of the pages hold no code of the maker; they are code of the spoilers. */
static void spoiler(void *arg)
{
    u64 me = (u64)arg, seed = me * 31;
    while (!stop) {
        u64 r = random64(&seed);
        u8 *p = area + (r >> 8) % AREA * PAGE + PAGE - 16 * (me + 1); /* one slot of each spoiler */
        u32 v = (u32)(r >> 32);
        p[3] = 0xb8;
        *(volatile u32 *)(p + 4) = v;
        p[8] = 0xc3;
        CHECK_EQ(((u32(*)(void))(p + 3))(), v);
        spoilt[me]++;
    }
}

int main(void)
{
    if (cpus() < 4) panic("needs -c 4");
    area = pages_alloc(AREA, PAGE);
    smp_start();
    for (u64 c = 1; c < 4; c++) smp_run((unsigned)c, spoiler, (void *)c);
    maker();
    stop = 1;
    for (unsigned c = 1; c < 4; c++) {
        smp_wait(c);
        CHECK(spoilt[c] > 10);
    }
    print("%u, %u and %u spoilt\n", spoilt[1], spoilt[2], spoilt[3]);
    return done();
}
