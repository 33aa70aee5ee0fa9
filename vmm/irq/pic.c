/* The two cascaded 8259A interrupt controllers (Intel 8259A data sheet; edge/level registers of the PIIX). */
#include <string.h>

#include "vmm/irq/chip.h"

#define ICW1 0x10
#define ICW1_NEED_ICW4 0x01
#define ICW1_SINGLE 0x02
#define ICW4_AUTO_EOI 0x02
#define ICW4_FULLY_NESTED 0x10
#define OCW3 0x08
#define CASCADE 2

/* 0 is the most urgent; 8: nothing there. */
static unsigned priority(const struct i8259 *s, uint8_t mask)
{
    if (!mask) return 8;
    unsigned p = 0;
    while (!(mask >> ((p + s->priority_add) & 7) & 1)) p++;
    return p;
}

/* The line that this chip asks for, or -1. */
static int requested(const struct i8259 *s)
{
    uint8_t request = s->irr & (uint8_t)~s->imr;
    unsigned p = priority(s, request);
    if (p == 8) return -1;
    uint8_t service = s->isr;
    if (s->special_mask) service &= (uint8_t)~s->imr;
    /* In special fully nested mode the slave may interrupt its own service (8259A data sheet, "special fully nested mode"). */
    if (s->fully_nested && s->master) service &= (uint8_t) ~(1u << CASCADE);
    if (p >= priority(s, service)) return -1;
    return (int)((p + s->priority_add) & 7);
}

static void chip_set_line(struct i8259 *s, unsigned line, bool level)
{
    uint8_t bit = (uint8_t)(1u << line);
    if (level) {
        if (s->elcr & bit || !(s->lines & bit)) s->irr |= bit;
        s->lines |= bit;
    } else {
        if (s->elcr & bit) s->irr &= (uint8_t)~bit;
        s->lines &= (uint8_t)~bit;
    }
}

/* Carries the slave's output to the master and the master's to the CPU. With p->lock held. */
void pic_update(struct pic *p, struct irq_kick *k)
{
    /* The cascade input follows the slave's output, like a level, whatever ELCR says. */
    if (requested(&p->i8259[1]) >= 0)
        p->i8259[0].irr |= 1u << CASCADE;
    else
        p->i8259[0].irr &= (uint8_t) ~(1u << CASCADE);
    bool now = requested(&p->i8259[0]) >= 0;
    bool was = atomic_exchange(&p->intr, now);
    if (now && !was) lapic_lint0_rise(&p->chip->lapic[0], k);
}

void pic_set_line(struct pic *p, unsigned irq, bool level, struct irq_kick *k)
{
    pthread_mutex_lock(&p->lock);
    chip_set_line(&p->i8259[irq >> 3 & 1], irq & 7, level);
    pic_update(p, k);
    pthread_mutex_unlock(&p->lock);
}

static void chip_acknowledge(struct i8259 *s, unsigned line)
{
    uint8_t bit = (uint8_t)(1u << line);
    if (!(s->elcr & bit)) s->irr &= (uint8_t)~bit;
    if (s->auto_eoi) {
        if (s->rotate_on_aeoi) s->priority_add = (line + 1) & 7;
    } else {
        s->isr |= bit;
    }
}

int pic_acknowledge(struct pic *p, struct irq_kick *k)
{
    int vector = -1;
    pthread_mutex_lock(&p->lock);
    struct i8259 *master = &p->i8259[0], *slave = &p->i8259[1];
    int line = requested(master);
    if (line == CASCADE) {
        int second = requested(slave);
        /* The slave's request may be gone by now: it answers with its line 7, not in service. */
        if (second >= 0) chip_acknowledge(slave, (unsigned)second);
        chip_acknowledge(master, CASCADE);
        vector = slave->icw2 + (second < 0 ? 7 : second);
    } else if (line >= 0) {
        chip_acknowledge(master, (unsigned)line);
        vector = master->icw2 + line;
    }
    pic_update(p, k);
    pthread_mutex_unlock(&p->lock);
    return vector;
}

/* ---- command and data ports ---- */

static void chip_init(struct i8259 *s)
{
    uint8_t lines = s->lines, elcr = s->elcr, elcr_mask = s->elcr_mask;
    bool master = s->master;
    memset(s, 0, sizeof *s);
    s->lines = lines;
    s->elcr = elcr;
    s->elcr_mask = elcr_mask;
    s->master = master;
    s->irr = lines & elcr; /* edges are forgotten, levels are still there */
}

static void write_icw1(struct i8259 *s, uint8_t v)
{
    chip_init(s);
    s->init_step = 2;
    s->single = v & ICW1_SINGLE;
    s->icw4 = v & ICW1_NEED_ICW4; /* until ICW4 comes: whether it will */
}

static void end_of_interrupt(struct i8259 *s, uint8_t v)
{
    unsigned line = v & 7;
    if (!(v >> 5 & 2)) { /* non-specific: the most urgent one in service, but for masked ones in special mask mode */
        uint8_t service = s->isr;
        if (s->special_mask) service &= (uint8_t)~s->imr;
        unsigned p = priority(s, service);
        if (p == 8) return;
        line = (p + s->priority_add) & 7;
    }
    s->isr &= (uint8_t) ~(1u << line);
    if (v & 0x80) s->priority_add = (line + 1) & 7;
}

static void write_ocw2(struct i8259 *s, uint8_t v)
{
    switch (v >> 5) {
    case 0: s->rotate_on_aeoi = false; break;
    case 4: s->rotate_on_aeoi = true; break;
    case 6: s->priority_add = ((v & 7) + 1) & 7; break;
    case 2: break; /* no operation */
    default: end_of_interrupt(s, v); break;
    }
}

static void write_ocw3(struct i8259 *s, uint8_t v)
{
    if (v & 0x04) s->poll = true;
    if (v & 0x02) s->read_isr = v & 1;
    if (v & 0x40) s->special_mask = v & 0x20;
}

static void write_data(struct i8259 *s, uint8_t v)
{
    switch (s->init_step) {
    case 2:
        s->icw2 = v & 0xf8;
        s->init_step = s->single ? (s->icw4 & ICW1_NEED_ICW4 ? 4 : 0) : 3;
        break;
    case 3: s->init_step = s->icw4 & ICW1_NEED_ICW4 ? 4 : 0; break; /* the wiring is what it is */
    case 4:
        s->auto_eoi = v & ICW4_AUTO_EOI;
        s->fully_nested = v & ICW4_FULLY_NESTED;
        s->init_step = 0;
        break;
    default: s->imr = v; break;
    }
}

static uint8_t read_poll(struct i8259 *s)
{
    int line = requested(s);
    s->poll = false;
    if (line < 0) return 0;
    chip_acknowledge(s, (unsigned)line);
    return (uint8_t)(0x80 | line);
}

static uint64_t port_read(struct pic *p, unsigned chip, uint64_t off)
{
    struct irq_kick k = {0};
    pthread_mutex_lock(&p->lock);
    struct i8259 *s = &p->i8259[chip];
    uint8_t v = s->poll ? read_poll(s) : off == 1 ? s->imr : s->read_isr ? s->isr : s->irr;
    pic_update(p, &k);
    pthread_mutex_unlock(&p->lock);
    irq_kick_run(p->chip, &k);
    return v;
}

static void port_write(struct pic *p, unsigned chip, uint64_t off, uint8_t v)
{
    struct irq_kick k = {0};
    pthread_mutex_lock(&p->lock);
    struct i8259 *s = &p->i8259[chip];
    if (off == 1)
        write_data(s, v);
    else if (v & ICW1)
        write_icw1(s, v);
    else if (v & OCW3)
        write_ocw3(s, v);
    else
        write_ocw2(s, v);
    pic_update(p, &k);
    pthread_mutex_unlock(&p->lock);
    irq_kick_run(p->chip, &k);
}

static uint64_t master_read(void *dev, uint64_t off, unsigned size)
{
    return size == 1 ? port_read(dev, 0, off) : ~0ull;
}

static uint64_t slave_read(void *dev, uint64_t off, unsigned size)
{
    return size == 1 ? port_read(dev, 1, off) : ~0ull;
}

/* A 16-bit write to the command port reaches both ports, as on the ISA bus. */
static void write_bytes(struct pic *p, unsigned chip, uint64_t off, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++) port_write(p, chip, off + i, (uint8_t)(value >> (8 * i)));
}

static void master_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    write_bytes(dev, 0, off, size, value);
}

static void slave_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    write_bytes(dev, 1, off, size, value);
}

static uint64_t elcr_read(void *dev, uint64_t off, unsigned size)
{
    struct pic *p = dev;
    pthread_mutex_lock(&p->lock);
    uint64_t v = size == 1 ? p->i8259[off].elcr : (uint64_t)(p->i8259[0].elcr | p->i8259[1].elcr << 8);
    pthread_mutex_unlock(&p->lock);
    return v;
}

static void elcr_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct pic *p = dev;
    pthread_mutex_lock(&p->lock);
    for (unsigned i = 0; i < size && off + i < 2; i++)
        p->i8259[off + i].elcr = (uint8_t)(value >> (8 * i)) & p->i8259[off + i].elcr_mask;
    pthread_mutex_unlock(&p->lock);
}

static const struct bus_handler master_handler = {master_read, master_write};
static const struct bus_handler slave_handler = {slave_read, slave_write};
static const struct bus_handler elcr_handler = {elcr_read, elcr_write};

int pic_attach(struct pic *p, struct bus *b, struct nerr *e)
{
    int r = bus_add(b, BUS_PIO, 0x20, 2, &master_handler, p, "pic1", e);
    if (!r) r = bus_add(b, BUS_PIO, 0xa0, 2, &slave_handler, p, "pic2", e);
    if (!r) r = bus_add(b, BUS_PIO, 0x4d0, 2, &elcr_handler, p, "elcr", e);
    return r;
}

void pic_reset(struct pic *p, struct irq_kick *k)
{
    pthread_mutex_lock(&p->lock);
    for (unsigned i = 0; i < 2; i++) {
        p->i8259[i].elcr = (uint8_t)(IRQ_ISA_PCI >> 8 * i);
        chip_init(&p->i8259[i]);
        /* As firmware leaves them: at the vectors of old, 8..15 and 0x70..0x77, masked but for the cascade and the line that PCI
         * devices use (11). Real-mode programs count on that; kernels of today mask everything first. */
        p->i8259[i].imr = i ? 0xf7 : 0xfb;
        p->i8259[i].icw2 = i ? 0x70 : 0x08;
    }
    pic_update(p, k);
    pthread_mutex_unlock(&p->lock);
}

void pic_init(struct pic *p, struct irqchip *c)
{
    struct irq_kick k = {0};
    p->chip = c;
    pthread_mutex_init(&p->lock, NULL);
    p->i8259[0].master = true;
    p->i8259[0].elcr_mask = 0xf8; /* timer, keyboard and cascade are always edges */
    p->i8259[1].elcr_mask = 0xde; /* RTC and FPU too */
    pic_reset(p, &k);
}

void pic_fini(struct pic *p)
{
    pthread_mutex_destroy(&p->lock);
}
