/* 16550A UART (National Semiconductor PC16550D data sheet). No line speed is imitated: what is transmitted goes to a ring
 * that the event loop hands to the output callback in chunks; the guest finds the transmitter empty until the ring is full. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/event.h"
#include "vmm/platform/platform.h"

#define TX_RING 65536u
#define RX_RING 1024u
#define FIFO_SIZE 16u
#define CHUNK 4096u
#define GATHER_NS 1000000u /* how long the first byte waits for company */
#define RETRY_NS 5000000u  /* the output took nothing: try again */
#define LISTENING_POLLS 64u

enum { REG_DATA, REG_IER, REG_IIR_FCR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCRATCH };

#define IER_RX 0x01
#define IER_TX 0x02
#define IER_LINE 0x04
#define IER_MODEM 0x08
#define IIR_NONE 0x01
#define IIR_MODEM 0x00
#define IIR_TX 0x02
#define IIR_RX 0x04
#define IIR_LINE 0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFO 0xc0
#define FCR_ENABLE 0x01
#define FCR_CLEAR_RX 0x02
#define LCR_DLAB 0x80
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10
#define LSR_DATA 0x01
#define LSR_OVERRUN 0x02
#define LSR_ERRORS 0x1e
#define LSR_TX_EMPTY 0x60 /* THRE and TEMT */
#define MSR_DELTA 0x0f
#define MSR_TERI 0x04
#define MSR_RI 0x40
#define MSR_CONNECTED 0xb0 /* CTS, DSR, DCD: somebody is always at the other end */

struct serial {
    struct serial_config cfg;
    struct event_timer timer;
    pthread_mutex_t out_lock; /* one hand-over at a time, in order; taken before `lock` */
    pthread_mutex_t lock;     /* guards all below */
    uint8_t ier, fcr, lcr, mcr, msr, scratch, dll, dlm, overrun;
    bool tx_irq; /* the transmitter became empty and nobody has looked yet */
    bool irq_level, gathering, starved;
    /* Input that comes before the guest's driver is there would be lost when the driver empties the FIFOs, so it waits on the line until the
     * guest listens: receive interrupts are enabled and connected (drivers try the enable bits alone to find out what the port is), or the line
     * status is read again and again with nothing else in between. */
    bool listening;
    unsigned polls;
    bool rx_seen; /* the guest has seen that there is received data */
    uint8_t rx[RX_RING], tx[TX_RING];
    uint32_t rx_head, rx_count, tx_head, tx_count;
};

static bool tx_full(const struct serial *s)
{
    return s->tx_count == TX_RING;
}

static unsigned rx_trigger(const struct serial *s)
{
    static const uint8_t level[4] = {1, 4, 8, 14};
    return s->fcr & FCR_ENABLE ? level[s->fcr >> 6] : 1;
}

/* The most urgent interrupt (data sheet, table IV). Below the trigger level the guest gets a character time-out at once instead of after four
 * characters' time: nothing is gained by waiting. */
static uint8_t interrupt_id(const struct serial *s)
{
    if (s->ier & IER_LINE && s->overrun) return IIR_LINE;
    if (s->ier & IER_RX && s->rx_count >= rx_trigger(s)) return IIR_RX;
    if (s->ier & IER_RX && s->rx_count) return IIR_TIMEOUT;
    if (s->ier & IER_TX && s->tx_irq) return IIR_TX;
    if (s->ier & IER_MODEM && s->msr & MSR_DELTA) return IIR_MODEM;
    return IIR_NONE;
}

/* OUT2 connects the UART's interrupt to the bus on a PC; loop-back disconnects it. */
static void update_irq(struct serial *s)
{
    bool level = interrupt_id(s) != IIR_NONE && s->mcr & MCR_OUT2 && !(s->mcr & MCR_LOOP);
    if (level == s->irq_level) return;
    s->irq_level = level;
    s->cfg.irq.set(s->cfg.irq.ctx, s->cfg.irq.gsi, level);
}

static void rx_push(struct serial *s, uint8_t v)
{
    s->rx[(s->rx_head + s->rx_count++) % RX_RING] = v;
}

static uint8_t rx_pop(struct serial *s)
{
    if (!s->rx_count) return 0;
    s->rx_seen = true;
    uint8_t v = s->rx[s->rx_head];
    s->rx_head = (s->rx_head + 1) % RX_RING;
    s->rx_count--;
    return v;
}

/* ---- transmit ---- */

static void transmit(struct serial *s, uint8_t v)
{
    if (s->mcr & MCR_LOOP) {
        if (s->rx_count >= (s->fcr & FCR_ENABLE ? FIFO_SIZE : 1))
            s->overrun = LSR_OVERRUN;
        else
            rx_push(s, v);
        s->tx_irq = true;
        return;
    }
    if (tx_full(s)) return; /* the guest did not look: lost, as in hardware */
    s->tx[(s->tx_head + s->tx_count++) % TX_RING] = v;
    s->tx_irq = !tx_full(s);
    if (!s->gathering) {
        s->gathering = true;
        event_timer_arm(&s->timer, clock_mono_ns() + GATHER_NS, 0);
    } else if (s->tx_count == CHUNK) {
        event_timer_arm(&s->timer, 0, 0);
    }
}

static size_t tx_peek(struct serial *s, uint8_t *buf)
{
    size_t n = s->tx_count < CHUNK ? s->tx_count : CHUNK;
    for (size_t i = 0; i < n; i++) buf[i] = s->tx[(s->tx_head + i) % TX_RING];
    return n;
}

static void tx_drop(struct serial *s, size_t n)
{
    bool was_full = tx_full(s);
    s->tx_head = (s->tx_head + (uint32_t)n) % TX_RING;
    s->tx_count -= (uint32_t)n;
    if (was_full && n) s->tx_irq = true;
    update_irq(s);
}

bool serial_flush(struct serial *s)
{
    uint8_t buf[CHUNK];
    bool all = true;
    pthread_mutex_lock(&s->out_lock);
    for (;;) {
        pthread_mutex_lock(&s->lock);
        size_t n = tx_peek(s, buf);
        if (!n) s->gathering = false;
        pthread_mutex_unlock(&s->lock);
        if (!n) break;
        size_t took = s->cfg.output(s->cfg.ctx, buf, n);
        if (took > n) took = n;
        pthread_mutex_lock(&s->lock);
        tx_drop(s, took);
        pthread_mutex_unlock(&s->lock);
        all = took == n;
        if (!all) break;
    }
    pthread_mutex_unlock(&s->out_lock);
    return all;
}

static void on_timer(void *ctx)
{
    struct serial *s = ctx;
    if (!serial_flush(s)) event_timer_arm(&s->timer, clock_mono_ns() + RETRY_NS, 0);
}

/* ---- registers ---- */

static uint8_t read_lsr(struct serial *s)
{
    uint8_t v = (s->rx_count ? LSR_DATA : 0) | s->overrun | (tx_full(s) ? 0 : LSR_TX_EMPTY);
    s->overrun = 0;
    if (s->rx_count) s->rx_seen = true;
    if (!tx_full(s) && ++s->polls >= LISTENING_POLLS)
        s->listening = true; /* a full transmitter is waited for in the same way */
    return v;
}

static uint8_t read_iir(struct serial *s)
{
    uint8_t id = interrupt_id(s);
    if (id == IIR_TX) s->tx_irq = false;
    if (id == IIR_RX || id == IIR_TIMEOUT) s->rx_seen = true;
    return id | (s->fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

static uint8_t modem_lines(const struct serial *s)
{
    if (!(s->mcr & MCR_LOOP)) return MSR_CONNECTED;
    /* RTS -> CTS, DTR -> DSR, OUT1 -> RI, OUT2 -> DCD */
    uint8_t m = s->mcr;
    return (uint8_t)((m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 | (m & 8) << 4);
}

static void update_modem(struct serial *s)
{
    uint8_t now = modem_lines(s), changed = (uint8_t)((s->msr ^ now) & 0xf0);
    uint8_t delta = (uint8_t)(changed >> 4);
    /* The ring indicator counts at its trailing edge only. */
    if (changed & MSR_RI && now & MSR_RI) delta &= (uint8_t)~MSR_TERI;
    s->msr = now | (s->msr & MSR_DELTA) | delta;
}

static uint8_t reg_read(struct serial *s, unsigned reg)
{
    uint8_t v;
    if (reg != REG_LSR) s->polls = 0;
    switch (reg) {
    case REG_DATA: return s->lcr & LCR_DLAB ? s->dll : rx_pop(s);
    case REG_IER: return s->lcr & LCR_DLAB ? s->dlm : s->ier;
    case REG_IIR_FCR: return read_iir(s);
    case REG_LCR: return s->lcr;
    case REG_MCR: return s->mcr;
    case REG_LSR: return read_lsr(s);
    case REG_MSR:
        v = s->msr;
        s->msr &= 0xf0;
        return v;
    default: return s->scratch;
    }
}

static void write_ier(struct serial *s, uint8_t v)
{
    uint8_t before = s->ier;
    s->ier = v & 0x0f;
    if (s->ier & IER_TX && !(before & IER_TX) && !tx_full(s)) s->tx_irq = true;
}

/* The FIFO holds 16 bytes; what is behind them is still on the line and survives. So does what the guest has not seen yet: it might as well have
 * come a moment later. (Linux enables receive interrupts, and empties the FIFO after that.) */
static void clear_rx(struct serial *s)
{
    uint32_t n = s->rx_count < FIFO_SIZE ? s->rx_count : FIFO_SIZE;
    if (!s->rx_seen && !(s->mcr & MCR_LOOP)) n = 0;
    s->rx_head = (s->rx_head + n) % RX_RING;
    s->rx_count -= n;
    s->rx_seen = false;
    s->overrun = 0;
}

static void write_fcr(struct serial *s, uint8_t v)
{
    /* Turning the FIFOs on or off empties them. */
    if ((s->fcr ^ v) & FCR_ENABLE || v & FCR_CLEAR_RX) clear_rx(s);
    s->fcr = v & FCR_ENABLE ? v & 0xc9 : 0;
}

static void reg_write(struct serial *s, unsigned reg, uint8_t v)
{
    s->polls = 0;
    switch (reg) {
    case REG_DATA:
        if (s->lcr & LCR_DLAB)
            s->dll = v;
        else
            transmit(s, v);
        break;
    case REG_IER:
        if (s->lcr & LCR_DLAB)
            s->dlm = v;
        else
            write_ier(s, v);
        break;
    case REG_IIR_FCR: write_fcr(s, v); break;
    case REG_LCR: s->lcr = v; break;
    case REG_MCR:
        s->mcr = v & 0x1f;
        update_modem(s);
        break;
    case REG_SCRATCH: s->scratch = v; break;
    default: break; /* LSR and MSR are read-only (their factory test is not imitated) */
    }
    if (s->ier & IER_RX && s->mcr & MCR_OUT2) s->listening = true;
}

/* Room is told when the backlog is half empty, so that the reader of the host's input is not woken for every byte. */
static bool tell_room(struct serial *s)
{
    if (!s->starved || !s->listening || s->rx_count > RX_RING / 2) return false;
    s->starved = false;
    return s->cfg.room != NULL;
}

static uint64_t port_read(void *dev, uint64_t off, unsigned size)
{
    struct serial *s = dev;
    uint64_t v = 0;
    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < size; i++) v |= (uint64_t)reg_read(s, (unsigned)off + i) << (8 * i);
    update_irq(s);
    bool room = tell_room(s);
    pthread_mutex_unlock(&s->lock);
    if (room) s->cfg.room(s->cfg.ctx);
    return v;
}

static void port_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct serial *s = dev;
    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < size; i++) reg_write(s, (unsigned)off + i, (uint8_t)(value >> (8 * i)));
    update_irq(s);
    bool room = tell_room(s);
    pthread_mutex_unlock(&s->lock);
    if (room) s->cfg.room(s->cfg.ctx);
}

static const struct bus_handler handler = {port_read, port_write};

size_t serial_input(struct serial *s, const uint8_t *data, size_t len)
{
    size_t n = 0;
    pthread_mutex_lock(&s->lock);
    /* In loop-back mode the line is cut: what arrives waits. */
    if (s->listening && !(s->mcr & MCR_LOOP))
        for (; n < len && s->rx_count < RX_RING; n++) rx_push(s, data[n]);
    if (n < len) s->starved = true;
    update_irq(s);
    pthread_mutex_unlock(&s->lock);
    return n;
}

/* ---- life ---- */

static void power_on(struct serial *s)
{
    s->ier = s->fcr = s->lcr = s->mcr = s->scratch = s->dlm = s->overrun = 0;
    s->dll = 12; /* 9600 baud, as firmware leaves it */
    s->msr = MSR_CONNECTED;
    s->tx_irq = s->listening = s->rx_seen = false;
    s->polls = 0;
    s->rx_count = 0;
    update_irq(s);
}

void serial_reset(struct serial *s)
{
    pthread_mutex_lock(&s->lock);
    power_on(s);
    bool room = tell_room(s);
    pthread_mutex_unlock(&s->lock);
    if (room) s->cfg.room(s->cfg.ctx);
}

int serial_create(const struct serial_config *cfg, struct serial **out, struct nerr *e)
{
    struct serial *s = calloc(1, sizeof *s);
    if (!s) return nerr_set(e, -ENOMEM, "out of memory for the serial port");
    s->cfg = *cfg;
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->out_lock, NULL);
    event_timer_init(&s->timer, cfg->loop, on_timer, s);
    power_on(s);
    *out = s;
    return 0;
}

void serial_destroy(struct serial *s)
{
    if (!s) return;
    event_timer_destroy(&s->timer);
    pthread_mutex_destroy(&s->out_lock);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

int serial_attach(struct serial *s, struct bus *b, uint16_t port, struct nerr *e)
{
    return bus_add(b, BUS_PIO, port, 8, &handler, s, "serial", e);
}
