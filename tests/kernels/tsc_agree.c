// The time-stamp counters of two CPUs agree: what one reads after it has seen the other's reading is never less. With the word "rounds" it goes on
// for ever, a line a round, while tests/engine/tsc.py pauses and resets the machine.
// RUN: -c 2
#include "kernel.h"

#define TURNS 200u /* each way */
#define ROUNDS 3u

static volatile u32 turn;  /* the CPU whose it is */
static volatile u64 stamp; /* the other's reading */

static bool for_ever(void)
{
    static const char word[] = "rounds";
    for (const char *s = command_line(); *s; s++)
        if (memcmp(s, word, sizeof(word) - 1) == 0) return true;
    return false;
}

struct result {
    u64 behind, quickest; /* the most that a reading was less by; the least that it was more by */
};
static struct result result[2];

static void take_turns(u32 me)
{
    struct result r = {.quickest = -1ul};
    for (unsigned i = 0; i < TURNS; i++) {
        while (turn != me) pause();
        u64 before = stamp;
        mfence();
        u64 now = rdtsc();
        if (now < before && before - now > r.behind) r.behind = before - now;
        if (now >= before && now - before < r.quickest) r.quickest = now - before;
        mfence();
        stamp = rdtsc();
        turn = !me;
    }
    result[me] = r;
}

static void other(void *arg)
{
    (void)arg;
    take_turns(1);
}

int main(void)
{
    smp_start();
    for (unsigned round = 1; for_ever() || round <= ROUNDS; round++) {
        turn = 0;
        stamp = 0;
        smp_run(1, other, NULL);
        take_turns(0);
        smp_wait(1);
        bool agree = CHECK_EQ(result[0].behind, 0) & CHECK_EQ(result[1].behind, 0);
        print("round %u: %s, after %lu and %lu cycles\n", round, agree ? "agree" : "differ", result[0].quickest,
              result[1].quickest);
    }
    return done();
}
