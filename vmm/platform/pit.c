/* i8254 programmable interval timer and port 0x61 (Intel 8254 data sheet). Counts are computed from the clock when they are
 * read; only channel 0 has a host timer, armed for the next rise of its output. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "common/clock.h"
#include "common/event.h"
#include "vmm/platform/platform.h"

#define PIT_HZ 1193182u
#define NS 1000000000ull
/* A guest may ask for a tick every 0.8 us; interrupts (and so the host's work) come no more often than this. */
#define MIN_TICK_NS 50000u

enum { RW_LATCH, RW_LOW, RW_HIGH, RW_BOTH };

struct channel {
    uint8_t mode, rw, bcd;
    bool gate, running, loaded; /* loaded: a count was written since the control word */
    bool write_high, read_high; /* the next byte of a two-byte access is the high one */
    uint8_t low;                /* first byte written */
    uint8_t latched;            /* bytes of the latch that are left to read */
    uint16_t latch;
    bool status_latched;
    uint8_t status;
    uint32_t count;  /* 1..65536 ticks */
    uint64_t start;  /* ns when counting began */
    uint64_t frozen; /* ticks done when the gate stopped it */
};

struct pit {
    struct irq_line irq;
    struct event_timer timer;
    pthread_mutex_t lock; /* guards all below */
    struct channel ch[3];
    uint8_t speaker; /* bits 1..3 of port 0x61 */
    uint64_t due;    /* ns of channel 0's next rise; 0: none */
};

/* ---- counting ---- */

static uint64_t ticks_done(const struct channel *c, uint64_t now)
{
    if (!c->running) return c->frozen;
    return now > c->start ? clock_muldiv(now - c->start, PIT_HZ, NS) : 0;
}

static uint64_t ticks_to_ns(uint64_t ticks)
{
    return clock_muldiv(ticks, NS, PIT_HZ) + 1; /* rounded up: an interrupt never comes before its tick */
}

static uint16_t to_register(const struct channel *c, uint64_t ticks)
{
    if (!c->bcd) return (uint16_t)ticks;
    unsigned v = (unsigned)(ticks % 10000);
    return (uint16_t)(v % 10 | v / 10 % 10 << 4 | v / 100 % 10 << 8 | v / 1000 << 12);
}

static uint16_t current(const struct channel *c, uint64_t now)
{
    if (!c->loaded) return 0;
    uint64_t d = ticks_done(c, now);
    uint32_t wrap = c->bcd ? 10000 : 65536;
    switch (c->mode) {
    case 2: return to_register(c, c->count - d % c->count);
    case 3: /* counts by two, twice per period */ return to_register(c, c->count - 2 * d % c->count);
    default: return to_register(c, (c->count + wrap - d % wrap) % wrap);
    }
}

static bool output(const struct channel *c, uint64_t now)
{
    if (!c->loaded) return c->mode != 0;
    uint64_t d = ticks_done(c, now);
    switch (c->mode) {
    case 0: return d >= c->count;
    case 1: return !c->running || d >= c->count;
    case 2: return !c->gate || d % c->count != c->count - 1;
    case 3: return !c->gate || d % c->count < (c->count + 1) / 2;
    default: return !c->running || d != c->count; /* a strobe, one tick low */
    }
}

/* ---- channel 0's interrupt ---- */

/* ns of the first rise of the output after `now`, 0: none. */
static uint64_t next_rise(const struct channel *c, uint64_t now)
{
    if (!c->loaded || !c->running) return 0;
    uint64_t d = ticks_done(c, now), at;
    switch (c->mode) {
    case 0:
    case 1: at = c->count; break;
    case 4:
    case 5: at = (uint64_t)c->count + 1; break;
    default: {
        at = (d / c->count + 1) * c->count;
        uint64_t ns = c->start + ticks_to_ns(at);
        return ns < now + MIN_TICK_NS && ticks_to_ns(c->count) < MIN_TICK_NS ? now + MIN_TICK_NS : ns;
    }
    }
    return d < at ? c->start + ticks_to_ns(at) : 0;
}

static void arm(struct pit *p, uint64_t now)
{
    p->due = next_rise(&p->ch[0], now);
    if (p->due)
        event_timer_arm(&p->timer, p->due, 0);
    else
        event_timer_cancel(&p->timer);
}

/* May run just after the guest reprogrammed the channel: `due` says whether the time has really come. */
static void on_timer(void *ctx)
{
    struct pit *p = ctx;
    pthread_mutex_lock(&p->lock);
    uint64_t now = clock_mono_ns();
    if (p->due && now >= p->due) {
        p->irq.set(p->irq.ctx, p->irq.gsi, false);
        p->irq.set(p->irq.ctx, p->irq.gsi, true);
        arm(p, now);
    }
    pthread_mutex_unlock(&p->lock);
}

/* ---- programming ---- */

static void begin(struct channel *c, uint64_t now)
{
    c->running = true;
    c->start = now;
    c->frozen = 0;
}

static void load(struct pit *p, struct channel *c, uint16_t v, uint64_t now)
{
    uint32_t count = v;
    if (c->bcd) count = (v & 0xf) + (v >> 4 & 0xf) * 10u + (v >> 8 & 0xf) * 100u + (v >> 12) * 1000u;
    if (!count) count = c->bcd ? 10000 : 65536;
    c->count = count;
    c->loaded = true;
    c->frozen = 0;
    /* Modes 1 and 5 wait for the gate to rise; the others count while it is high. */
    c->running = false;
    if (c->gate && c->mode != 1 && c->mode != 5) begin(c, now);
    if (c != &p->ch[0]) return;
    if (c->mode == 0) p->irq.set(p->irq.ctx, p->irq.gsi, false);
    arm(p, now);
}

static void latch_count(struct channel *c, uint64_t now)
{
    if (c->latched) return; /* the first latch stands until it is read */
    c->latch = current(c, now);
    c->latched = c->rw == RW_BOTH ? 2 : 1;
}

static void latch_status(struct channel *c, uint64_t now)
{
    if (c->status_latched) return;
    c->status = (uint8_t)(output(c, now) << 7 | !c->loaded << 6 | c->rw << 4 | c->mode << 1 | c->bcd);
    c->status_latched = true;
}

static void read_back(struct pit *p, uint8_t v, uint64_t now)
{
    for (unsigned i = 0; i < 3; i++) {
        if (!(v >> (i + 1) & 1)) continue;
        if (!(v & 0x20)) latch_count(&p->ch[i], now);
        if (!(v & 0x10)) latch_status(&p->ch[i], now);
    }
}

static void write_control(struct pit *p, uint8_t v, uint64_t now)
{
    if (v >> 6 == 3) {
        read_back(p, v, now);
        return;
    }
    struct channel *c = &p->ch[v >> 6];
    unsigned rw = v >> 4 & 3;
    if (rw == RW_LATCH) {
        latch_count(c, now);
        return;
    }
    bool gate = c->gate;
    /* Modes 6 and 7 are 2 and 3 (the top bit is "don't care"). */
    uint8_t mode = v >> 1 & 7;
    *c = (struct channel){
        .mode = mode > 5 ? mode & 3 : mode, .rw = (uint8_t)rw, .bcd = v & 1, .gate = gate, .count = 65536};
    if (c != &p->ch[0]) return;
    if (c->mode == 0) p->irq.set(p->irq.ctx, p->irq.gsi, false);
    arm(p, now);
}

static void write_count(struct pit *p, struct channel *c, uint8_t v, uint64_t now)
{
    switch (c->rw) {
    case RW_LOW: load(p, c, v, now); break;
    case RW_HIGH: load(p, c, (uint16_t)(v << 8), now); break;
    default:
        if (c->write_high)
            load(p, c, (uint16_t)(c->low | v << 8), now);
        else
            c->low = v;
        c->write_high = !c->write_high;
    }
}

static uint8_t read_count(struct channel *c, uint64_t now)
{
    if (c->status_latched) {
        c->status_latched = false;
        return c->status;
    }
    if (c->latched) {
        bool high = c->rw == RW_HIGH || (c->rw == RW_BOTH && c->latched == 1);
        c->latched--;
        return (uint8_t)(high ? c->latch >> 8 : c->latch);
    }
    uint16_t v = current(c, now);
    bool high = c->rw == RW_HIGH;
    if (c->rw == RW_BOTH) {
        high = c->read_high;
        c->read_high = !c->read_high;
    }
    return (uint8_t)(high ? v >> 8 : v);
}

static void set_gate(struct channel *c, bool on, uint64_t now)
{
    if (on == c->gate) return;
    c->gate = on;
    if (!c->loaded) return;
    bool one_shot = c->mode == 1 || c->mode == 5;
    if (on && (one_shot || c->mode == 2 || c->mode == 3)) {
        begin(c, now);
    } else if (on) {
        c->running = true;
        c->start = now - clock_muldiv(c->frozen, NS, PIT_HZ);
    } else if (!one_shot) {
        c->frozen = ticks_done(c, now);
        c->running = false;
    }
}

/* ---- ports ---- */

static uint64_t pit_read(void *dev, uint64_t off, unsigned size)
{
    struct pit *p = dev;
    if (size != 1 || off == 3) return ~0ull;
    pthread_mutex_lock(&p->lock);
    uint64_t v = read_count(&p->ch[off], clock_mono_ns());
    pthread_mutex_unlock(&p->lock);
    return v;
}

static void pit_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct pit *p = dev;
    pthread_mutex_lock(&p->lock);
    for (unsigned i = 0; i < size; i++, off++) {
        uint8_t v = (uint8_t)(value >> (8 * i));
        if (off == 3)
            write_control(p, v, clock_mono_ns());
        else
            write_count(p, &p->ch[off], v, clock_mono_ns());
    }
    pthread_mutex_unlock(&p->lock);
}

static uint64_t port61_read(void *dev, uint64_t off, unsigned size)
{
    struct pit *p = dev;
    (void)off;
    (void)size;
    pthread_mutex_lock(&p->lock);
    uint64_t now = clock_mono_ns();
    /* Bit 4 toggles with every memory refresh (15 us), which old delay loops watch. */
    uint64_t v = p->ch[2].gate | p->speaker | (now / 15085 & 1) << 4 | (uint64_t)output(&p->ch[2], now) << 5;
    pthread_mutex_unlock(&p->lock);
    return v;
}

static void port61_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct pit *p = dev;
    (void)off;
    (void)size;
    pthread_mutex_lock(&p->lock);
    p->speaker = value & 0x0e;
    set_gate(&p->ch[2], value & 1, clock_mono_ns());
    pthread_mutex_unlock(&p->lock);
}

static const struct bus_handler pit_handler = {pit_read, pit_write};
static const struct bus_handler port61_handler = {port61_read, port61_write};

int pit_attach(struct pit *p, struct bus *b, struct nerr *e)
{
    int r = bus_add(b, BUS_PIO, 0x40, 4, &pit_handler, p, "pit", e);
    return r ? r : bus_add(b, BUS_PIO, 0x61, 1, &port61_handler, p, "port61", e);
}

static void power_on(struct pit *p)
{
    for (unsigned i = 0; i < 3; i++)
        p->ch[i] = (struct channel){.mode = 3, .rw = RW_BOTH, .gate = i != 2, .count = 65536};
    p->speaker = 0;
    p->due = 0;
    event_timer_cancel(&p->timer);
    p->irq.set(p->irq.ctx, p->irq.gsi, false);
}

void pit_reset(struct pit *p)
{
    pthread_mutex_lock(&p->lock);
    power_on(p);
    pthread_mutex_unlock(&p->lock);
}

void pit_freeze(struct pit *p)
{
    pthread_mutex_lock(&p->lock);
    event_timer_cancel(&p->timer);
    pthread_mutex_unlock(&p->lock);
}

void pit_thaw(struct pit *p, uint64_t ns)
{
    pthread_mutex_lock(&p->lock);
    for (unsigned i = 0; i < 3; i++) p->ch[i].start += ns;
    if (p->due) {
        p->due += ns;
        event_timer_arm(&p->timer, p->due, 0);
    }
    pthread_mutex_unlock(&p->lock);
}

int pit_create(struct event_loop *loop, struct irq_line irq, struct pit **out, struct nerr *e)
{
    struct pit *p = calloc(1, sizeof *p);
    if (!p) return nerr_set(e, -ENOMEM, "out of memory for the interval timer");
    p->irq = irq;
    pthread_mutex_init(&p->lock, NULL);
    event_timer_init(&p->timer, loop, on_timer, p);
    power_on(p);
    *out = p;
    return 0;
}

void pit_destroy(struct pit *p)
{
    if (!p) return;
    event_timer_destroy(&p->timer);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
