#include "common/clock.h"

#include <cpuid.h>
#include <stdatomic.h>
#include <time.h>
#include <x86intrin.h>

uint64_t clock_mono_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

uint64_t host_tsc(void)
{
    return __rdtsc();
}

uint64_t clock_muldiv(uint64_t a, uint64_t b, uint64_t c)
{
    unsigned __int128 q = (unsigned __int128)a * b / c;
    return q > UINT64_MAX ? UINT64_MAX : (uint64_t)q;
}

/* Leaf 0x15: TSC / crystal ratio and the crystal's frequency (SDM vol. 2 CPUID). Leaf 0x40000010: TSC in kHz, the convention
 * that VMware began and other hypervisors follow; only there when the hypervisor's highest leaf says so. */
static uint64_t tsc_hz_cpuid(void)
{
    unsigned a, b, c, d;
    if (__get_cpuid_max(0, NULL) >= 0x15) {
        __cpuid(0x15, a, b, c, d);
        if (a && b && c) return (uint64_t)c * b / a;
    }
    __cpuid(1, a, b, c, d);
    if (!(c & 1u << 31)) return 0;
    __cpuid(0x40000000, a, b, c, d);
    if (a < 0x40000010 || a > 0x400000ff) return 0;
    __cpuid(0x40000010, a, b, c, d);
    return (uint64_t)a * 1000;
}

struct sample {
    uint64_t ns, tsc;
};

/* The tightest of several readings: a pair is only as good as the time between its two TSC reads. */
static struct sample take_sample(void)
{
    struct sample best = {0, 0};
    uint64_t width = UINT64_MAX;
    for (int i = 0; i < 32; i++) {
        uint64_t t0 = __rdtsc(), ns = clock_mono_ns(), t1 = __rdtsc();
        if (t1 - t0 < width) {
            width = t1 - t0;
            best = (struct sample){ns, t0 + (t1 - t0) / 2};
        }
    }
    return best;
}

static uint64_t tsc_hz_measure(void)
{
    struct sample a = take_sample(), b;
    do {
        struct timespec wait = {0, 20000000};
        nanosleep(&wait, NULL);
        b = take_sample();
    } while (b.ns - a.ns < 10000000);
    return clock_muldiv(b.tsc - a.tsc, 1000000000ull, b.ns - a.ns);
}

/* What CPUID says is believed only when it agrees with the clock within 1 % over a millisecond: a migrated or
 * nested guest may be told the frequency of another host. */
static uint64_t tsc_hz_find(void)
{
    uint64_t told = tsc_hz_cpuid();
    if (told) {
        struct sample a = take_sample();
        struct timespec wait = {0, 1000000};
        nanosleep(&wait, NULL);
        struct sample b = take_sample();
        uint64_t seen = clock_muldiv(b.tsc - a.tsc, 1000000000ull, b.ns - a.ns);
        if (seen > told - told / 100 && seen < told + told / 100) return told;
    }
    uint64_t hz = tsc_hz_measure();
    return hz ? hz : 1000000000ull;
}

uint64_t host_tsc_hz(void)
{
    static _Atomic uint64_t known;
    uint64_t hz = atomic_load_explicit(&known, memory_order_relaxed);
    if (hz) return hz;
    hz = tsc_hz_find();
    /* The first result wins, so that all callers use the same number. */
    uint64_t none = 0;
    return atomic_compare_exchange_strong(&known, &none, hz) ? hz : none;
}
