/* The local APIC's timer (SDM vol. 3 10.5.4). It counts nominal nanoseconds (1 GHz) divided by the divide
 * register; in TSC-deadline mode it waits for a guest TSC value. The host timer is armed only while an
 * interrupt could come of it; counts are computed when they are read. */
#include "common/clock.h"
#include "vmm/irq/chip.h"

/* A guest may ask for a period of one nanosecond. The count it reads is true, but interrupts (and so the host's work) come no more often
 * than this. */
#define MIN_PERIOD_NS 50000u

static uint64_t period_ns(const struct lapic *l)
{
    /* Bits 3, 1 and 0: 000 is 2, 001 is 4, ..., 110 is 128, 111 is 1 (SDM vol. 3 figure 10-10). */
    unsigned code = (l->divide & 3) | (l->divide >> 1 & 4);
    return (uint64_t)l->initial << ((code + 1) & 7);
}

static unsigned mode(const struct lapic *l)
{
    return l->lvt[LVT_TIMER] & LVT_TIMER_MODE;
}

/* Brings `counting` and `start` up to date: where the count ran out, where the phase is. */
static void catch_up(struct lapic *l, uint64_t now)
{
    uint64_t period = period_ns(l);
    if (!l->counting || now - l->start < period) return;
    if (mode(l) == LVT_TIMER_PERIODIC && period)
        l->start += (now - l->start) / period * period;
    else
        l->counting = false;
}

static uint64_t guest_tsc(const struct lapic *l)
{
    return host_tsc() + l->tsc_offset;
}

/* When guest TSC reaches `deadline`, rounded up, so that the guest never sees an interrupt before its time. */
static uint64_t deadline_to_ns(const struct lapic *l, uint64_t now)
{
    uint64_t tsc = guest_tsc(l);
    if (l->deadline <= tsc) return now;
    uint64_t ns = clock_muldiv(l->deadline - tsc, 1000000000ull, host_tsc_hz());
    return ns < INT64_MAX - now ? now + ns + 1 : INT64_MAX;
}

/* Raises the interrupt whose time has come, whoever notices first: the host timer, or the guest touching a register. */
static void settle(struct lapic *l, uint64_t now)
{
    if (!l->due) return;
    if (mode(l) == LVT_TIMER_DEADLINE) {
        if (guest_tsc(l) < l->deadline) return;
        l->deadline = 0;
    } else if (now < l->due) {
        return;
    }
    l->due = 0;
    lapic_lvt_fire(l, LVT_TIMER);
}

static uint64_t next_due(struct lapic *l, uint64_t now)
{
    if (mode(l) == LVT_TIMER_DEADLINE) return l->deadline ? deadline_to_ns(l, now) : 0;
    catch_up(l, now);
    if (!l->counting || l->lvt[LVT_TIMER] & LVT_MASKED) return 0;
    uint64_t period = period_ns(l);
    if (mode(l) == LVT_TIMER_PERIODIC && period < MIN_PERIOD_NS) return now + MIN_PERIOD_NS;
    return l->start + period;
}

static void arm(struct lapic *l, uint64_t now)
{
    l->due = next_due(l, now);
    if (l->due)
        event_timer_arm(&l->timer, l->due, 0);
    else
        event_timer_cancel(&l->timer);
}

/* Runs on the loop's thread, perhaps just after the vCPU cancelled or moved the timer: settle() looks whether the time
 * has really come. */
static void expire(void *ctx)
{
    struct lapic *l = ctx;
    struct irq_kick k = {0};
    pthread_mutex_lock(&l->lock);
    uint64_t now = clock_mono_ns();
    settle(l, now);
    arm(l, now);
    lapic_update(l, &k);
    pthread_mutex_unlock(&l->lock);
    irq_kick_run(l->chip, &k);
}

void lapic_timer_init(struct lapic *l)
{
    event_timer_init(&l->timer, l->chip->loop, expire, l);
}

void lapic_timer_fini(struct lapic *l)
{
    event_timer_destroy(&l->timer);
}

void lapic_timer_reset(struct lapic *l)
{
    l->initial = l->divide = 0;
    l->counting = false;
    l->deadline = l->due = 0;
    event_timer_cancel(&l->timer);
}

void lapic_timer_set_initial(struct lapic *l, uint32_t v)
{
    if (mode(l) == LVT_TIMER_DEADLINE) return; /* SDM vol. 3 10.5.4.1 */
    uint64_t now = clock_mono_ns();
    settle(l, now);
    l->initial = v;
    l->counting = v != 0;
    l->start = now;
    arm(l, now);
}

static uint32_t current(const struct lapic *l, uint64_t now)
{
    if (!l->counting || !l->initial || mode(l) == LVT_TIMER_DEADLINE) return 0;
    uint64_t unit = period_ns(l) / l->initial;
    uint64_t passed = (now - l->start) / unit;
    return passed < l->initial ? l->initial - (uint32_t)passed : 0;
}

uint32_t lapic_timer_current(struct lapic *l)
{
    uint64_t now = clock_mono_ns();
    settle(l, now);
    if (mode(l) != LVT_TIMER_DEADLINE && !l->due) arm(l, now);
    catch_up(l, now);
    return current(l, now);
}

/* The count goes on at the new rate from where it is. */
void lapic_timer_set_divide(struct lapic *l, uint32_t v)
{
    uint64_t now = clock_mono_ns();
    settle(l, now);
    catch_up(l, now);
    uint32_t left = current(l, now);
    l->divide = v & 0xb;
    if (l->counting) {
        uint64_t done = clock_muldiv(period_ns(l), l->initial - left, l->initial);
        l->start = done < now ? now - done : 0;
    }
    arm(l, now);
}

void lapic_timer_set_lvt(struct lapic *l, uint32_t v)
{
    uint64_t now = clock_mono_ns();
    settle(l, now);
    catch_up(l, now); /* in the old mode: a one-shot count that ran out stays out */
    bool was_deadline = mode(l) == LVT_TIMER_DEADLINE;
    l->lvt[LVT_TIMER] = v;
    if (was_deadline != (mode(l) == LVT_TIMER_DEADLINE)) {
        /* Entering or leaving TSC-deadline mode disarms the timer (SDM vol. 3 10.5.4.1). */
        l->deadline = 0;
        l->counting = false;
        l->initial = 0;
    }
    arm(l, now);
}

void lapic_timer_set_deadline(struct lapic *l, uint64_t tsc)
{
    if (mode(l) != LVT_TIMER_DEADLINE) return;
    uint64_t now = clock_mono_ns();
    settle(l, now);
    l->deadline = tsc;
    arm(l, now);
    settle(l, now); /* a deadline in the past fires at once (10.5.4.1) */
}

uint64_t lapic_timer_deadline(struct lapic *l)
{
    if (mode(l) != LVT_TIMER_DEADLINE) return 0;
    settle(l, clock_mono_ns());
    return l->deadline;
}

void lapic_timer_set_tsc_offset(struct lapic *l, uint64_t tsc_offset)
{
    l->tsc_offset = tsc_offset;
    if (l->deadline) arm(l, clock_mono_ns());
}

/* The guest's time stands still: nothing fires until it goes on. */
void lapic_timer_freeze(struct lapic *l)
{
    event_timer_cancel(&l->timer);
}

/* ... which it does `ns` later, as if they had not been. A TSC deadline goes by the TSC, whose offset has been set already. */
void lapic_timer_thaw(struct lapic *l, uint64_t ns)
{
    uint64_t now = clock_mono_ns();
    l->start += ns;
    if (l->due) l->due += ns;
    settle(l, now);
    arm(l, now);
}

/* What was left of the count is left of it now: time stood still in between. A TSC deadline is absolute. */
void lapic_timer_restore(struct lapic *l, const struct lapic_timer_state *s)
{
    uint64_t now = clock_mono_ns();
    l->lvt[LVT_TIMER] = s->lvt;
    l->divide = s->divide & 0xb;
    l->initial = s->initial;
    uint32_t left = s->current < s->initial ? s->current : s->initial;
    if (!left && mode(l) == LVT_TIMER_PERIODIC)
        left = s->initial; /* caught at its end: a periodic timer never rests there */
    l->counting = left != 0 && mode(l) != LVT_TIMER_DEADLINE;
    uint64_t done = l->counting ? clock_muldiv(period_ns(l), l->initial - left, l->initial) : 0;
    l->start = done < now ? now - done : 0;
    l->deadline = mode(l) == LVT_TIMER_DEADLINE ? s->deadline : 0;
    l->due = 0;
    arm(l, now);
}
