// RDTSC, RDTSCP, RDPID: monotonic, as fast as the PIT says, writable, refused under CR4.TSD; the same on all CPUs.
// RUN: -c 2
#include "kernel.h"

CODE(do_rdtsc, "rdtsc");
CODE(do_rdtscp, "rdtscp");
CODE(do_rdpid, "rdpid %rax");
CODE(do_rdpmc, "rdpmc");

static struct ctx c;
static volatile u64 shared, backwards;
static volatile bool stop;

/* Two CPUs pass the highest value seen back and forth: a synchronised TSC never shows less (a few cycles of grace for none). */
static void look(void)
{
    u64 before = shared;
    mfence();
    u64 now = rdtsc();
    if (now < before) backwards++;
    u64 old = before;
    if (now > old) __atomic_compare_exchange_n(&shared, &old, now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void race(void *arg)
{
    (void)arg;
    while (!stop) look();
}

int main(void)
{
    u64 last = rdtsc();
    for (unsigned i = 0; i < 10000; i++) {
        u64 now = rdtsc();
        if (!CHECK(now >= last)) break;
        last = now;
    }
    bool msr = !left_out(TCG, "the TSC as an MSR");
    if (msr) CHECK(rdmsr(MSR_TSC) >= last);

    /* The same speed at two times. */
    u64 a, b;
    bool same = false;
    for (unsigned tries = 0; tries < 10 && !same; tries++) { /* a loaded host spoils one now and then */
        a = tsc_khz_now(), b = tsc_khz_now();
        same = (a > b ? a - b : b - a) < a / 5;
    }
    CHECK(same);
    print("TSC: %lu kHz\n", b);
    struct cpuid leaf = cpuid(0x15, 0);
    if (cpuid(0, 0).a >= 0x15 && leaf.a && leaf.b && leaf.c) { /* where CPUID tells the frequency, it is true */
        u64 khz = (u64)leaf.c * leaf.b / leaf.a / 1000, measured = b;
        CHECK((khz > measured ? khz - measured : measured - khz) < khz / 10);
    }

    if (HAS_RDTSCP) {
        wrmsr(MSR_TSC_AUX, 0x5a5a1234);
        ctx_user(&c, do_rdtscp);
        c.gpr[RAX] = c.gpr[RDX] = c.gpr[RCX] = -1ul;
        COMPLETES(&c);
        CHECK_EQ(c.gpr[RCX], 0x5a5a1234);
        CHECK_EQ(c.gpr[RAX] >> 32 | c.gpr[RDX] >> 32, 0);
        if (HAS_RDPID) {
            ctx_user(&c, do_rdpid);
            COMPLETES(&c);
            CHECK_EQ(c.gpr[RAX], 0x5a5a1234);
        } else {
            skip("RDPID");
        }
    } else {
        skip("RDTSCP");
    }

    set_cr4(cr4() | CR4_TSD);
    ctx_user(&c, do_rdtsc);
    FAULTS(&c, GP, 0);
    ctx_user(&c, do_rdtscp);
    FAULTS(&c, GP, 0);
    ctx_kernel(&c, do_rdtsc);
    COMPLETES(&c);
    set_cr4(cr4() & ~CR4_TSD);
    ctx_user(&c, do_rdtsc);
    COMPLETES(&c);
    ctx_user(&c, do_rdpmc); /* CR4.PCE is off */
    FAULTS(&c, GP, 0);

    smp_start();
    smp_run(1, race, NULL);
    for (unsigned i = 0; i < 30000; i++) look();
    stop = true;
    smp_wait(1);
    CHECK_EQ(backwards, 0);

    if (!msr) return done();
    wrmsr(MSR_TSC, 1000);
    u64 now = rdtsc();
    CHECK(now >= 1000 && now < 1000000000);
    return done();
}
