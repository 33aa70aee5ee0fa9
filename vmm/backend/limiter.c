#include "vmm/backend/limiter.h"

#include "common/clock.h"

#define SECOND 1000000000ull
#define DEFAULT_BURST_NS (50ull * 1000000) /* of the average: 0.5 % of a measurement over 10 s */
#define PEAK_NS (5ull * 1000000) /* how far the peak's own bucket reaches: timers come late by about that much */
#define SHORTEST_WAIT 200000ull
/* A timer may be so late on a busy host; what accrues meanwhile was not unused, since somebody waits for it. */
#define LATE_NS (200ull * 1000000)
/* Keeps every product below 128 bits and every level below 63. */
#define MAX_RATE (1ull << 50)
#define MAX_DEPTH (1ull << 60)

/* `extra`: units that may accrue above the depth this time. They are lost when nobody takes them soon. */
static void bucket_refill(struct limiter_bucket *b, uint64_t now, uint64_t extra)
{
    if (now <= b->stamp) return;
    uint64_t ns = now - b->stamp;
    unsigned __int128 earned = (unsigned __int128)ns * b->rate + b->part;
    b->stamp = now;
    int64_t depth = (int64_t)(b->depth + extra);
    if (b->level >= depth) {
        if (ns > DEFAULT_BURST_NS) b->level = depth;
        return;
    }
    unsigned __int128 units = earned / SECOND;
    b->part = (uint64_t)(earned % SECOND);
    uint64_t room = (uint64_t)(depth - b->level);
    if (units >= room) {
        b->level = depth;
        b->part = 0;
    } else {
        b->level += (int64_t)units;
    }
}

static void bucket_set(struct limiter_bucket *b, uint64_t rate, uint64_t depth, uint64_t now)
{
    bucket_refill(b, now, 0);
    if (rate > MAX_RATE) rate = MAX_RATE;
    if (depth > MAX_DEPTH) depth = MAX_DEPTH;
    /* A debt stays the time that it was: in units, one made under a high limit would hold a guest for hours under a low one. */
    if (b->level < 0 && b->rate) b->level = -(int64_t)clock_muldiv((uint64_t)-b->level, rate, b->rate);
    b->rate = rate;
    b->depth = depth ? depth : 1;
    b->stamp = now;
    if (b->level > (int64_t)b->depth) b->level = (int64_t)b->depth;
}

void limiter_set(struct limiter *l, const struct limiter_rate *r, uint64_t now)
{
    if (!r->avg) {
        *l = (struct limiter){.active = false};
        return;
    }
    uint64_t burst = r->burst ? r->burst : clock_muldiv(r->avg, DEFAULT_BURST_NS, SECOND);
    bucket_set(&l->avg, r->avg, burst, now);
    if (r->peak)
        bucket_set(&l->peak, r->peak, clock_muldiv(r->peak, PEAK_NS, SECOND), now);
    else
        l->peak = (struct limiter_bucket){.rate = 0};
    l->active = true;
}

static uint64_t bucket_wait(struct limiter_bucket *b, uint64_t now, uint64_t late)
{
    if (!b->rate) return 0;
    bucket_refill(b, now, late ? clock_muldiv(b->rate, late, SECOND) : 0);
    if (b->level >= 0) return 0;
    /* Rounded up: a timer that fires a nanosecond early would wait again. */
    uint64_t ns = clock_muldiv((uint64_t)-b->level, SECOND, b->rate);
    return ns < UINT64_MAX ? ns + 1 : ns;
}

uint64_t limiter_wait_slow(struct limiter *l, uint64_t now)
{
    uint64_t late = l->due && now > l->due && now - l->due <= LATE_NS ? now - l->due : 0;
    uint64_t a = bucket_wait(&l->avg, now, late), p = bucket_wait(&l->peak, now, 0);
    uint64_t ns = a > p ? a : p;
    if (ns && ns < SHORTEST_WAIT) ns = SHORTEST_WAIT;
    l->due = ns ? now + ns : 0;
    return ns;
}

static void bucket_charge(struct limiter_bucket *b, uint64_t units, uint64_t now)
{
    if (!b->rate) return;
    bucket_refill(b, now, 0);
    if (units > MAX_DEPTH) units = MAX_DEPTH;
    b->level = b->level < -(int64_t)MAX_DEPTH ? b->level : b->level - (int64_t)units;
}

void limiter_charge_slow(struct limiter *l, uint64_t units, uint64_t now)
{
    bucket_charge(&l->avg, units, now);
    bucket_charge(&l->peak, units, now);
}
