/* MC146818 real-time clock and CMOS RAM (Motorola MC146818A data sheet). The time is the host's UTC plus what the guest set it
 * off by. Flags are computed when register C is read; the host timer is armed only for interrupts that are enabled. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/event.h"
#include "vmm/platform/platform.h"

#define NS 1000000000ull
#define DAY 86400
#define UIP_NS 2228000u /* update in progress: 244 us before the update, which takes 1984 us */

enum {
    REG_SEC,
    REG_SEC_ALARM,
    REG_MIN,
    REG_MIN_ALARM,
    REG_HOUR,
    REG_HOUR_ALARM,
    REG_WEEKDAY,
    REG_DAY,
    REG_MONTH,
    REG_YEAR,
    REG_A,
    REG_B,
    REG_C,
    REG_D,
    REG_CENTURY = 0x32,
};

#define A_UIP 0x80
#define A_DIVIDER 0x70
#define A_DIVIDER_ON 0x20
#define B_SET 0x80
#define B_PERIODIC 0x40
#define B_ALARM 0x20
#define B_UPDATE 0x10
#define B_BINARY 0x04
#define B_24H 0x02
#define C_IRQ 0x80
#define D_VALID 0x80
#define ALARM_ANY 0xc0

struct rtc {
    struct irq_line irq;
    struct event_timer timer;
    pthread_mutex_t lock; /* guards all below */
    uint8_t index, ram[128];
    uint64_t ram_size;
    int64_t offset;    /* seconds to add to the host's UTC */
    uint64_t flags_at; /* guest time, in ns since 1970, up to which register C's flags are computed */
};

/* ---- guest time ---- */

static uint64_t host_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
}

/* Nanoseconds since 1970 by the guest's setting. */
static uint64_t guest_ns(const struct rtc *r)
{
    return host_ns() + (uint64_t)r->offset * NS;
}

static bool stopped(const struct rtc *r)
{
    return r->ram[REG_B] & B_SET || (r->ram[REG_A] & A_DIVIDER) != A_DIVIDER_ON;
}

static uint8_t encode(const struct rtc *r, int v)
{
    return (uint8_t)(r->ram[REG_B] & B_BINARY ? v : v / 10 << 4 | v % 10);
}

static int decode(const struct rtc *r, uint8_t v)
{
    return r->ram[REG_B] & B_BINARY ? v : (v >> 4) * 10 + (v & 0xf);
}

static uint8_t encode_hour(const struct rtc *r, int h)
{
    if (r->ram[REG_B] & B_24H) return encode(r, h);
    return encode(r, h % 12 ? h % 12 : 12) | (h >= 12 ? 0x80 : 0);
}

static int decode_hour(const struct rtc *r, uint8_t v)
{
    if (r->ram[REG_B] & B_24H) return decode(r, v);
    return decode(r, v & 0x7f) % 12 + (v & 0x80 ? 12 : 0);
}

/* Copies the running clock into its registers. */
static void load_time(struct rtc *r)
{
    time_t t = (time_t)(guest_ns(r) / NS);
    struct tm tm;
    if (!gmtime_r(&t, &tm)) return;
    r->ram[REG_SEC] = encode(r, tm.tm_sec);
    r->ram[REG_MIN] = encode(r, tm.tm_min);
    r->ram[REG_HOUR] = encode_hour(r, tm.tm_hour);
    r->ram[REG_WEEKDAY] = encode(r, tm.tm_wday + 1);
    r->ram[REG_DAY] = encode(r, tm.tm_mday);
    r->ram[REG_MONTH] = encode(r, tm.tm_mon + 1);
    r->ram[REG_YEAR] = encode(r, tm.tm_year % 100);
    /* The century byte is BCD in every BIOS. */
    int century = tm.tm_year / 100 + 19;
    r->ram[REG_CENTURY] = (uint8_t)(century / 10 << 4 | century % 10);
}

/* And back: impossible dates are normalised like 31 February. */
static void store_time(struct rtc *r)
{
    int century = (r->ram[REG_CENTURY] >> 4) * 10 + (r->ram[REG_CENTURY] & 0xf);
    struct tm tm = {
        .tm_sec = decode(r, r->ram[REG_SEC]),
        .tm_min = decode(r, r->ram[REG_MIN]),
        .tm_hour = decode_hour(r, r->ram[REG_HOUR]),
        .tm_mday = decode(r, r->ram[REG_DAY]),
        .tm_mon = decode(r, r->ram[REG_MONTH]) - 1,
        .tm_year = (century - 19) * 100 + decode(r, r->ram[REG_YEAR]),
    };
    int64_t t = timegm(&tm);
    if (t < 0) t = 0; /* before 1970: nanoseconds since then are unsigned */
    r->offset = t - (int64_t)(host_ns() / NS);
    r->flags_at = guest_ns(r);
}

/* ---- alarm, periodic and update flags ---- */

static bool alarm_field(const struct rtc *r, unsigned reg, int now)
{
    uint8_t v = r->ram[reg];
    if ((v & ALARM_ANY) == ALARM_ANY) return true;
    return (reg == REG_HOUR_ALARM ? decode_hour(r, v) : decode(r, v)) == now;
}

/* The first second after `t` that the alarm registers match, within a day; 0: none. Skips whole hours and minutes that cannot. */
static uint64_t next_alarm(const struct rtc *r, uint64_t t)
{
    uint64_t end = t + DAY;
    for (t++; t <= end;) {
        int sec = (int)(t % 60), min = (int)(t / 60 % 60), hour = (int)(t / 3600 % 24);
        if (!alarm_field(r, REG_HOUR_ALARM, hour))
            t += 3600 - t % 3600;
        else if (!alarm_field(r, REG_MIN_ALARM, min))
            t += 60 - t % 60;
        else if (!alarm_field(r, REG_SEC_ALARM, sec))
            t++;
        else
            return t;
    }
    return 0;
}

/* Rate 1 and 2 are 256 and 128 Hz; 3..15 are 8192 Hz down to 2 Hz. */
static uint64_t period_ns(const struct rtc *r)
{
    unsigned rate = r->ram[REG_A] & 0xf;
    if (!rate || stopped(r)) return 0;
    if (rate < 3) rate += 7;
    return NS * (1u << (rate - 1)) / 32768;
}

static void update_flags(struct rtc *r)
{
    uint64_t now = guest_ns(r), then = r->flags_at;
    r->flags_at = now;
    if (now <= then || stopped(r)) return;
    uint64_t p = period_ns(r);
    if (p && now / p != then / p) r->ram[REG_C] |= B_PERIODIC;
    if (now / NS == then / NS) return;
    r->ram[REG_C] |= B_UPDATE;
    uint64_t alarm = next_alarm(r, then / NS);
    if (alarm && alarm <= now / NS) r->ram[REG_C] |= B_ALARM;
}

static uint64_t sooner(uint64_t a, uint64_t b)
{
    return !a || (b && b < a) ? b : a;
}

/* Brings the flags, the interrupt line and the host timer up to date. */
static void update(struct rtc *r)
{
    update_flags(r);
    uint8_t enabled = r->ram[REG_B] & (B_PERIODIC | B_ALARM | B_UPDATE);
    bool level = r->ram[REG_C] & enabled;
    r->ram[REG_C] = (uint8_t)((r->ram[REG_C] & ~C_IRQ) | (level ? C_IRQ : 0));
    r->irq.set(r->irq.ctx, r->irq.gsi, level);
    uint64_t now = guest_ns(r), p = period_ns(r), next = 0;
    if (!stopped(r) && !level) { /* while the line is up nothing new can be seen */
        if (enabled & B_PERIODIC && p) next = (now / p + 1) * p;
        if (enabled & B_UPDATE) next = sooner(next, (now / NS + 1) * NS);
        if (enabled & B_ALARM) next = sooner(next, next_alarm(r, now / NS) * NS);
    }
    if (next)
        event_timer_arm(&r->timer, clock_mono_ns() + (next - now), 0);
    else
        event_timer_cancel(&r->timer);
}

static void on_timer(void *ctx)
{
    struct rtc *r = ctx;
    pthread_mutex_lock(&r->lock);
    update(r);
    pthread_mutex_unlock(&r->lock);
}

/* ---- registers ---- */

static bool is_time(uint8_t reg)
{
    return reg == REG_SEC || reg == REG_MIN || reg == REG_HOUR || (reg >= REG_WEEKDAY && reg <= REG_YEAR) ||
           reg == REG_CENTURY;
}

static uint8_t reg_read(struct rtc *r, uint8_t reg)
{
    if (is_time(reg) && !stopped(r)) load_time(r);
    if (reg == REG_A) {
        bool uip = !stopped(r) && guest_ns(r) % NS >= NS - UIP_NS;
        return r->ram[REG_A] | (uip ? A_UIP : 0);
    }
    if (reg != REG_C) return r->ram[reg];
    update(r);
    uint8_t v = r->ram[REG_C];
    r->ram[REG_C] = 0;
    update(r);
    return v;
}

static void write_a_b(struct rtc *r, uint8_t reg, uint8_t v)
{
    update_flags(r);
    bool was = stopped(r);
    if (!was) load_time(r);
    if (reg == REG_A) v &= 0x7f;
    if (reg == REG_B && v & B_SET) v &= (uint8_t)~B_UPDATE;
    r->ram[reg] = v;
    if (was && !stopped(r)) store_time(r);
    update(r);
}

static void reg_write(struct rtc *r, uint8_t reg, uint8_t v)
{
    if (reg == REG_C || reg == REG_D) return;
    if (reg == REG_A || reg == REG_B) {
        write_a_b(r, reg, v);
        return;
    }
    bool live = is_time(reg) && !stopped(r);
    if (live) load_time(r);
    r->ram[reg] = v;
    if (live) store_time(r);
    if (reg <= REG_YEAR) update(r);
}

static uint64_t port_read(void *dev, uint64_t off, unsigned size)
{
    struct rtc *r = dev;
    if (size != 1) return ~0ull;
    pthread_mutex_lock(&r->lock);
    uint64_t v = off ? reg_read(r, r->index) : r->index;
    pthread_mutex_unlock(&r->lock);
    return v;
}

static void port_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct rtc *r = dev;
    pthread_mutex_lock(&r->lock);
    for (unsigned i = 0; i < size; i++) {
        uint8_t v = (uint8_t)(value >> (8 * i));
        if (off + i == 0)
            r->index = v & 0x7f; /* bit 7 masks NMIs: there is no source of them */
        else
            reg_write(r, r->index, v);
    }
    pthread_mutex_unlock(&r->lock);
}

static const struct bus_handler handler = {port_read, port_write};

/* ---- life ---- */

/* Where BIOSes have told the memory size since the PC/AT, for kernels that look. */
static void put_memory_size(struct rtc *r)
{
    uint64_t kib = r->ram_size / 1024;
    uint64_t ext = kib > 1024 ? kib - 1024 : 0, high = kib > 16384 ? (kib - 16384) / 64 : 0;
    if (ext > 0xffff) ext = 0xffff;
    if (high > 0xffff) high = 0xffff;
    r->ram[0x15] = 640 & 0xff;
    r->ram[0x16] = 640 >> 8;
    r->ram[0x17] = r->ram[0x30] = (uint8_t)ext;
    r->ram[0x18] = r->ram[0x31] = (uint8_t)(ext >> 8);
    r->ram[0x34] = (uint8_t)high;
    r->ram[0x35] = (uint8_t)(high >> 8);
}

/* The clock has a battery: only the interrupt enables and flags are reset. */
void rtc_reset(struct rtc *r)
{
    pthread_mutex_lock(&r->lock);
    r->ram[REG_B] &= (uint8_t) ~(B_PERIODIC | B_ALARM | B_UPDATE);
    r->ram[REG_C] = 0;
    r->index = 0;
    update(r);
    pthread_mutex_unlock(&r->lock);
}

int rtc_create(struct event_loop *loop, struct irq_line irq, uint64_t ram_size, struct rtc **out, struct nerr *e)
{
    struct rtc *r = calloc(1, sizeof *r);
    if (!r) return nerr_set(e, -ENOMEM, "out of memory for the real-time clock");
    r->irq = irq;
    r->ram_size = ram_size;
    pthread_mutex_init(&r->lock, NULL);
    event_timer_init(&r->timer, loop, on_timer, r);
    r->ram[REG_A] = 0x26;
    r->ram[REG_B] = B_24H;
    r->ram[REG_D] = D_VALID;
    r->flags_at = guest_ns(r);
    put_memory_size(r);
    load_time(r);
    *out = r;
    return 0;
}

void rtc_destroy(struct rtc *r)
{
    if (!r) return;
    event_timer_destroy(&r->timer);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

int rtc_attach(struct rtc *r, struct bus *b, struct nerr *e)
{
    return bus_add(b, BUS_PIO, 0x70, 2, &handler, r, "rtc", e);
}
