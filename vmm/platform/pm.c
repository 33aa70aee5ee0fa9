/* Power management: the ACPI fixed registers (ACPI 4.8.3), general-purpose events (4.8.4), the PM timer, and the ways a PC can be reset: port 0xcf9, the keyboard
 * controller's 0xfe, port 0x92. There is no keyboard and no S3. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "common/clock.h"
#include "common/event.h"
#include "vmm/platform/platform.h"

#define PM_TIMER_HZ 3579545u
#define NS 1000000000ull

#define PM1_TMR 0x0001
#define PM1_GLOBAL 0x0020
#define PM1_PWRBTN 0x0100
#define PM1_SLPBTN 0x0200
#define PM1_RTC 0x0400
#define PM1_WAKE 0x8000
#define PM1_STS_BITS (PM1_TMR | 0x0010 | PM1_GLOBAL | PM1_PWRBTN | PM1_SLPBTN | PM1_RTC | PM1_WAKE)
#define PM1_EN_BITS (PM1_TMR | PM1_GLOBAL | PM1_PWRBTN | PM1_SLPBTN | PM1_RTC)
#define PM1_CNT_SCI_EN 0x0001
#define PM1_CNT_SLP_EN 0x2000
#define SLP_TYP(v) ((v) >> 10 & 7)

struct pm {
    struct pm_config cfg;
    struct event_timer timer;
    pthread_mutex_t lock; /* guards all below */
    uint16_t sts, en, cnt;
    uint16_t gpe_sts, gpe_en, gpe_level; /* gpe_level: what asserts its event now */
    uint64_t timer_base;                 /* ns at which the PM timer was 0 */
    uint64_t frozen_at;                  /* ns at which the guest's time stopped; 0: it runs */
    uint64_t timer_halves; /* how often its top bit had changed when TMR_STS was last brought up to date */
    bool sci;
    uint8_t cf9, port92;
    /* Keyboard controller */
    uint8_t kbd_command, kbd_config, kbd_data;
    bool kbd_full;
};

enum action { NOTHING, POWER_OFF, RESET };

static void act(struct pm *p, enum action a)
{
    if (a == POWER_OFF) p->cfg.power_off(p->cfg.ctx);
    if (a == RESET) p->cfg.reset(p->cfg.ctx);
}

/* ---- ACPI registers ---- */

static uint64_t timer_ticks(const struct pm *p)
{
    uint64_t now = p->frozen_at ? p->frozen_at : clock_mono_ns();
    return clock_muldiv(now - p->timer_base, PM_TIMER_HZ, NS);
}

/* TMR_STS is set when bit 31 changes (the timer is 32 bits wide: TMR_VAL_EXT). */
static void update_timer_status(struct pm *p)
{
    uint64_t halves = timer_ticks(p) >> 31;
    if (halves != p->timer_halves) p->sts |= PM1_TMR;
    p->timer_halves = halves;
}

static void update_sci(struct pm *p)
{
    update_timer_status(p);
    if (p->en & PM1_TMR && !p->frozen_at)
        event_timer_arm(&p->timer, p->timer_base + clock_muldiv((p->timer_halves + 1) << 31, NS, PM_TIMER_HZ) + 1, 0);
    bool level = (p->sts & p->en & PM1_EN_BITS) || (p->gpe_sts & p->gpe_en);
    if (level == p->sci) return;
    p->sci = level;
    p->cfg.sci.set(p->cfg.sci.ctx, p->cfg.sci.gsi, level);
}

static void on_timer(void *ctx)
{
    struct pm *p = ctx;
    pthread_mutex_lock(&p->lock);
    update_sci(p);
    pthread_mutex_unlock(&p->lock);
}

/* The three registers as one array of bytes: status 0-1, enable 2-3, control 4-5. */
static uint8_t acpi_byte(const struct pm *p, unsigned off)
{
    uint16_t v = off < 2 ? p->sts : off < 4 ? p->en : off < 6 ? p->cnt : 0;
    return (uint8_t)(v >> (off % 2 * 8));
}

static uint64_t acpi_read(void *dev, uint64_t off, unsigned size)
{
    struct pm *p = dev;
    uint64_t v = 0;
    pthread_mutex_lock(&p->lock);
    if (off >= 8) {
        v = (uint32_t)timer_ticks(p) >> (off - 8) * 8;
    } else {
        update_sci(p);
        for (unsigned i = 0; i < size; i++) v |= (uint64_t)acpi_byte(p, (unsigned)off + i) << (8 * i);
    }
    pthread_mutex_unlock(&p->lock);
    return v;
}

static enum action write_control_high(struct pm *p, uint8_t v)
{
    uint16_t w = (uint16_t)(v << 8);
    p->cnt = (p->cnt & 0xff) | (w & 0x1c00);
    if (!(w & PM1_CNT_SLP_EN)) return NOTHING;
    return SLP_TYP(w) == PLATFORM_S5_TYPE ? POWER_OFF : NOTHING; /* no other sleep state is announced */
}

static enum action acpi_byte_write(struct pm *p, unsigned off, uint8_t v)
{
    uint16_t w = (uint16_t)(v << (off % 2 * 8)), keep = off % 2 ? 0x00ff : 0xff00;
    switch (off) {
    case 0:
    case 1: p->sts &= (uint16_t)~w; break; /* write 1 to clear */
    case 2:
    case 3: p->en = (uint16_t)(((p->en & keep) | w) & PM1_EN_BITS); break;
    case 4: p->cnt = (uint16_t)((p->cnt & 0xff00) | (v & 0x02) | PM1_CNT_SCI_EN); break;
    case 5: return write_control_high(p, v);
    default: break;
    }
    return NOTHING;
}

static void acpi_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct pm *p = dev;
    enum action a = NOTHING;
    pthread_mutex_lock(&p->lock);
    update_timer_status(p);
    for (unsigned i = 0; i < size; i++) {
        enum action one = acpi_byte_write(p, (unsigned)off + i, (uint8_t)(value >> (8 * i)));
        if (one) a = one;
    }
    update_sci(p);
    pthread_mutex_unlock(&p->lock);
    act(p, a);
}

void pm_power_button(struct pm *p)
{
    pthread_mutex_lock(&p->lock);
    p->sts |= PM1_PWRBTN;
    update_sci(p);
    pthread_mutex_unlock(&p->lock);
}

/* ---- general-purpose events: status 0-1, enable 2-3 ---- */

static uint64_t gpe_read(void *dev, uint64_t off, unsigned size)
{
    struct pm *p = dev;
    uint64_t v = 0;
    pthread_mutex_lock(&p->lock);
    uint32_t both = p->gpe_sts | (uint32_t)p->gpe_en << 16;
    for (unsigned i = 0; i < size && off + i < 4; i++) v |= (uint64_t)(uint8_t)(both >> 8 * (off + i)) << 8 * i;
    pthread_mutex_unlock(&p->lock);
    return v;
}

static void gpe_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct pm *p = dev;
    pthread_mutex_lock(&p->lock);
    for (unsigned i = 0; i < size && off + i < 4; i++) {
        unsigned at = (unsigned)off + i, shift = at % 2 * 8;
        uint16_t w = (uint16_t)((value >> 8 * i & 0xff) << shift);
        if (at < 2)
            p->gpe_sts &= (uint16_t)~w; /* write 1 to clear */
        else
            p->gpe_en = (uint16_t)((p->gpe_en & ~(0xff << shift)) | w);
    }
    p->gpe_sts |= p->gpe_level; /* what still holds its event is seen at once again */
    update_sci(p);
    pthread_mutex_unlock(&p->lock);
}

void pm_gpe_set(struct pm *p, unsigned n, bool level)
{
    uint16_t bit = (uint16_t)(1u << n);
    pthread_mutex_lock(&p->lock);
    p->gpe_level = level ? p->gpe_level | bit : p->gpe_level & (uint16_t)~bit;
    p->gpe_sts |= p->gpe_level;
    update_sci(p);
    pthread_mutex_unlock(&p->lock);
}

/* ---- reset ports ---- */

/* 0xcf8..0xcff: the reset register sits at +1 among the PCI configuration ports, which are somebody else's. */
static uint64_t cf8_read(void *dev, uint64_t off, unsigned size)
{
    struct pm *p = dev;
    if (off != 1 || size != 1)
        return p->cfg.config_ports ? p->cfg.config_ports->read(p->cfg.config_dev, off, size) : ~0ull;
    pthread_mutex_lock(&p->lock);
    uint64_t v = p->cf9;
    pthread_mutex_unlock(&p->lock);
    return v;
}

static void cf8_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct pm *p = dev;
    if (off != 1 || size != 1) {
        if (p->cfg.config_ports) p->cfg.config_ports->write(p->cfg.config_dev, off, size, value);
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->cf9 = value & 0x0e;
    pthread_mutex_unlock(&p->lock);
    if (value & 0x04) act(p, RESET);
}

static uint64_t port92_read(void *dev, uint64_t off, unsigned size)
{
    struct pm *p = dev;
    (void)off;
    (void)size;
    pthread_mutex_lock(&p->lock);
    uint64_t v = p->port92;
    pthread_mutex_unlock(&p->lock);
    return v;
}

/* Bit 0 resets when it goes from 0 to 1. Bit 1 is A20, which this machine never masks. */
static void port92_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct pm *p = dev;
    (void)off;
    (void)size;
    pthread_mutex_lock(&p->lock);
    bool reset = value & 1 && !(p->port92 & 1);
    p->port92 = value & 0x03;
    pthread_mutex_unlock(&p->lock);
    if (reset) act(p, RESET);
}

/* ---- keyboard controller without a keyboard ---- */

static void kbd_answer(struct pm *p, uint8_t v)
{
    p->kbd_data = v;
    p->kbd_full = true;
}

static enum action kbd_write_command(struct pm *p, uint8_t v)
{
    p->kbd_command = 0;
    switch (v) {
    case 0x20: kbd_answer(p, p->kbd_config); break;
    case 0xaa: kbd_answer(p, 0x55); break; /* self test passed */
    case 0xab:
    case 0xa9: kbd_answer(p, 0x00); break; /* interface test passed */
    case 0xd0: kbd_answer(p, 0x03); break; /* output port: A20 on, no reset */
    case 0x60:
    case 0xd1: p->kbd_command = v; break; /* a data byte follows */
    default:
        /* 0xf0-0xff pulse the output port's low bits; bit 0, when clear, pulls the reset line. */
        if (v >= 0xf0 && !(v & 1)) return RESET;
    }
    return NOTHING;
}

static enum action kbd_write_data(struct pm *p, uint8_t v)
{
    uint8_t command = p->kbd_command;
    p->kbd_command = 0;
    if (command == 0x60) p->kbd_config = v;
    return command == 0xd1 && !(v & 1) ? RESET : NOTHING;
}

static uint64_t kbd_read(void *dev, uint64_t off, unsigned size)
{
    struct pm *p = dev;
    (void)size;
    pthread_mutex_lock(&p->lock);
    uint64_t v;
    if (off == 4) {
        v = 0x14 | (p->kbd_full ? 1 : 0); /* not inhibited, self test done */
    } else {
        v = p->kbd_data;
        p->kbd_full = false;
    }
    pthread_mutex_unlock(&p->lock);
    return v;
}

static uint64_t kbd_read_data(void *dev, uint64_t off, unsigned size)
{
    return kbd_read(dev, off, size);
}

static uint64_t kbd_read_status(void *dev, uint64_t off, unsigned size)
{
    return kbd_read(dev, off + 4, size);
}

static void kbd_data_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct pm *p = dev;
    (void)off;
    (void)size;
    pthread_mutex_lock(&p->lock);
    enum action a = kbd_write_data(p, (uint8_t)value);
    pthread_mutex_unlock(&p->lock);
    act(p, a);
}

static void kbd_command_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct pm *p = dev;
    (void)off;
    (void)size;
    pthread_mutex_lock(&p->lock);
    enum action a = kbd_write_command(p, (uint8_t)value);
    pthread_mutex_unlock(&p->lock);
    act(p, a);
}

/* ---- life ---- */

static const struct bus_handler acpi_handler = {acpi_read, acpi_write};
static const struct bus_handler gpe_handler = {gpe_read, gpe_write};
static const struct bus_handler cf8_handler = {cf8_read, cf8_write};
static const struct bus_handler port92_handler = {port92_read, port92_write};
static const struct bus_handler kbd_data_handler = {kbd_read_data, kbd_data_write};
static const struct bus_handler kbd_command_handler = {kbd_read_status, kbd_command_write};

int pm_attach(struct pm *p, struct bus *b, struct nerr *e)
{
    int r = bus_add(b, BUS_PIO, PLATFORM_PM_BASE, 12, &acpi_handler, p, "acpi-pm", e);
    if (!r) r = bus_add(b, BUS_PIO, PLATFORM_GPE_BASE, PLATFORM_GPE_LEN, &gpe_handler, p, "acpi-gpe", e);
    if (!r) r = bus_add(b, BUS_PIO, 0xcf8, 8, &cf8_handler, p, "pci-config", e);
    if (!r) r = bus_add(b, BUS_PIO, 0x92, 1, &port92_handler, p, "port92", e);
    if (!r) r = bus_add(b, BUS_PIO, 0x60, 1, &kbd_data_handler, p, "kbd-data", e);
    if (!r) r = bus_add(b, BUS_PIO, 0x64, 1, &kbd_command_handler, p, "kbd-command", e);
    return r;
}

static void power_on(struct pm *p)
{
    p->sts = p->en = 0;
    p->gpe_en = 0;
    p->gpe_sts = p->gpe_level;
    p->cnt = PM1_CNT_SCI_EN; /* there is no SMM to take ACPI away (FADT: no SMI_CMD) */
    p->cf9 = 0;
    p->port92 = 2;
    p->kbd_command = p->kbd_config = p->kbd_data = 0;
    p->kbd_full = false;
    /* Reset while paused, it starts when the pause ends. */
    p->timer_base = p->frozen_at ? p->frozen_at : clock_mono_ns();
    p->timer_halves = 0;
    event_timer_cancel(&p->timer);
    update_sci(p);
}

void pm_reset(struct pm *p)
{
    pthread_mutex_lock(&p->lock);
    power_on(p);
    pthread_mutex_unlock(&p->lock);
}

void pm_freeze(struct pm *p)
{
    pthread_mutex_lock(&p->lock);
    p->frozen_at = clock_mono_ns();
    event_timer_cancel(&p->timer);
    pthread_mutex_unlock(&p->lock);
}

void pm_thaw(struct pm *p, uint64_t ns)
{
    pthread_mutex_lock(&p->lock);
    p->frozen_at = 0;
    p->timer_base += ns;
    update_sci(p);
    pthread_mutex_unlock(&p->lock);
}

int pm_create(const struct pm_config *cfg, struct pm **out, struct nerr *e)
{
    struct pm *p = calloc(1, sizeof *p);
    if (!p) return nerr_set(e, -ENOMEM, "out of memory for power management");
    p->cfg = *cfg;
    pthread_mutex_init(&p->lock, NULL);
    event_timer_init(&p->timer, cfg->loop, on_timer, p);
    power_on(p);
    *out = p;
    return 0;
}

void pm_destroy(struct pm *p)
{
    if (!p) return;
    event_timer_destroy(&p->timer);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
