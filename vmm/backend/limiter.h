/* Rate limits: a token bucket with an average, a peak and a burst, for disks and NICs.
 *
 * What a unit is, is the user's choice, the same for all three numbers and for charges: disks count bytes, or operations; NICs count
 * bits (so a burst in bytes is multiplied by 8 before it comes here).
 *
 *   avg    units per second in the long run; 0: no limit at all (peak and burst are ignored then)
 *   burst  units: unused average accrues up to this, and may be spent at once, or at `peak`; 0: 50 ms worth of the average
 *   peak   units per second, never exceeded over more than about 10 ms; at least avg; 0: none
 *
 * The bucket may go into debt: a request passes whole when the bucket is not in debt, is charged its whole size, and the next one waits
 * until the debt is paid. So a request of any size counts in proportion, and large ones need no splitting. At start the
 * bucket is neither full nor in debt.
 *
 * Pure arithmetic: time comes in as nanoseconds of any monotonic clock, there are no threads, timers or allocations. The caller locks,
 * queues what must wait, and arms a timer for limiter_wait(). */
#ifndef NACELLE_VMM_LIMITER_H
#define NACELLE_VMM_LIMITER_H

#include <stdbool.h>
#include <stdint.h>

struct limiter_rate {
    uint64_t avg, peak, burst;
};

struct limiter_bucket { /* private */
    uint64_t rate, depth;
    int64_t level;  /* units; negative: debt */
    uint64_t part;  /* rate x time not yet worth a unit, below 1e9 */
    uint64_t stamp; /* when level was true */
};

struct limiter { /* all zeroes: no limit */
    bool active;
    uint64_t due; /* when who was told to wait is to be back; 0: nobody was */
    struct limiter_bucket avg, peak;
};

/* Sets or changes the limit. A change keeps the debt or credit (up to the new burst), so that setting a limit again and again gains nothing. */
void limiter_set(struct limiter *l, const struct limiter_rate *r, uint64_t now);

/* Nanoseconds until a request may pass; 0: now. Never shorter than 200 us when it is not 0, so that a fast stream costs no timer per
 * request (what is missed accrues). A caller that comes back up to 200 ms late finds what accrued meanwhile, even above the burst. */
uint64_t limiter_wait_slow(struct limiter *l, uint64_t now);
/* A request of `units` passes now. */
void limiter_charge_slow(struct limiter *l, uint64_t units, uint64_t now);

/* No limit costs a test of one byte. */
static inline uint64_t limiter_wait(struct limiter *l, uint64_t now)
{
    return l->active ? limiter_wait_slow(l, now) : 0;
}

static inline void limiter_charge(struct limiter *l, uint64_t units, uint64_t now)
{
    if (l->active) limiter_charge_slow(l, units, now);
}

#endif
