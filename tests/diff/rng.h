/* A small reproducible random generator (splitmix64): one 64-bit word of state, so that a seed printed in a report
 * is all that is needed to make a case again. */
#ifndef NACELLE_DIFF_RNG_H
#define NACELLE_DIFF_RNG_H

#include <stdbool.h>
#include <stdint.h>

struct rng {
    uint64_t s;
};

static inline uint64_t rnd(struct rng *r)
{
    uint64_t z = (r->s += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* 0 .. n-1 (n > 0) */
static inline uint32_t rnd_below(struct rng *r, uint32_t n)
{
    return (uint32_t)(((rnd(r) >> 32) * n) >> 32);
}

/* true in `pct` of 100 cases */
static inline bool rnd_pct(struct rng *r, unsigned pct)
{
    return rnd_below(r, 100) < pct;
}

#endif
