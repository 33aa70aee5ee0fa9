/* The I/O APIC (82093AA with the EOI register of version 0x20). */
#include "vmm/irq/chip.h"

#define IOAPIC_BASE 0xfec00000u
#define IOAPIC_VERSION (0x20u | (IRQ_LINES - 1) << 16)

/* Redirection entry (more in chip.h) */
#define RTE_LOGICAL (1ull << 11)
#define RTE_MASKED (1ull << 16)

/* Sends the pin's message. Level-triggered: only while no earlier one waits for its EOI. With a->lock held. */
void ioapic_service(struct ioapic *a, unsigned pin, struct irq_kick *k)
{
    uint64_t e = a->redir[pin];
    if (e & RTE_MASKED || (e & RTE_LEVEL && e & RTE_REMOTE_IRR)) return;
    struct irq_message m = {
        .dest = (uint32_t)(e >> 56),
        .logical = e & RTE_LOGICAL,
        .mode = e >> 8 & 7,
        .vector = (uint8_t)e,
        .level = e & RTE_LEVEL,
    };
    bool taken = irq_deliver(a->chip, &m, ENGINE_MAX_VCPUS, k);
    /* NMI, INIT and the like get no EOI, so they are edge-triggered whatever the entry says. */
    if (taken && m.level && (m.mode == IRQ_FIXED || m.mode == IRQ_LOWEST)) a->redir[pin] |= RTE_REMOTE_IRR;
}

void ioapic_set_line(struct ioapic *a, unsigned pin, bool level, struct irq_kick *k)
{
    pthread_mutex_lock(&a->lock);
    bool was = a->lines >> pin & 1;
    if (level)
        a->lines |= 1u << pin;
    else
        a->lines &= ~(1u << pin);
    if (level && (!was || a->redir[pin] & RTE_LEVEL)) ioapic_service(a, pin, k);
    pthread_mutex_unlock(&a->lock);
}

static void end_of_interrupt(struct ioapic *a, unsigned pin, uint8_t vector, struct irq_kick *k)
{
    uint64_t e = a->redir[pin];
    if ((uint8_t)e != vector || !(e & RTE_LEVEL) || !(e & RTE_REMOTE_IRR)) return;
    a->redir[pin] &= ~RTE_REMOTE_IRR;
    if (a->lines >> pin & 1) ioapic_service(a, pin, k);
}

void ioapic_eoi(struct ioapic *a, uint8_t vector, struct irq_kick *k)
{
    pthread_mutex_lock(&a->lock);
    for (unsigned pin = 0; pin < IRQ_LINES; pin++) end_of_interrupt(a, pin, vector, k);
    pthread_mutex_unlock(&a->lock);
}

/* ---- registers ---- */

static uint32_t reg_read(const struct ioapic *a)
{
    uint8_t n = a->select;
    if (n == 0 || n == 2) return (uint32_t)a->id << 24; /* the arbitration id follows the id */
    if (n == 1) return IOAPIC_VERSION;
    if (n < 0x10 || n >= 0x10 + 2 * IRQ_LINES) return 0;
    return (uint32_t)(a->redir[(n - 0x10) / 2] >> (n % 2 * 32));
}

static void redir_write(struct ioapic *a, unsigned pin, bool high, uint32_t v, struct irq_kick *k)
{
    uint64_t e = a->redir[pin];
    if (high)
        e = (uint32_t)e | (uint64_t)v << 32;
    else
        e = (e & 0xffffffff00000000) | v;
    e = (e & RTE_WRITABLE) | (a->redir[pin] & RTE_REMOTE_IRR);
    /* Software clears a stuck remote IRR by making the pin edge-triggered for a moment. */
    if (!(e & RTE_LEVEL)) e &= ~RTE_REMOTE_IRR;
    a->redir[pin] = e;
    if (e & RTE_LEVEL && a->lines >> pin & 1) ioapic_service(a, pin, k);
}

static void reg_write(struct ioapic *a, uint32_t v, struct irq_kick *k)
{
    uint8_t n = a->select;
    if (n == 0) a->id = v >> 24 & 0xf;
    if (n >= 0x10 && n < 0x10 + 2 * IRQ_LINES) redir_write(a, (n - 0x10) / 2, n % 2, v, k);
}

static uint64_t mmio_read(void *dev, uint64_t off, unsigned size)
{
    struct ioapic *a = dev;
    (void)size;
    uint64_t v = 0;
    pthread_mutex_lock(&a->lock);
    if ((off & 0xff) == 0x00) v = a->select;
    if ((off & 0xff) == 0x10) v = reg_read(a);
    pthread_mutex_unlock(&a->lock);
    return v;
}

static void mmio_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct ioapic *a = dev;
    struct irq_kick k = {0};
    (void)size;
    pthread_mutex_lock(&a->lock);
    if ((off & 0xff) == 0x00) a->select = (uint8_t)value;
    if ((off & 0xff) == 0x10) reg_write(a, (uint32_t)value, &k);
    if ((off & 0xff) == 0x40)
        for (unsigned pin = 0; pin < IRQ_LINES; pin++) end_of_interrupt(a, pin, (uint8_t)value, &k);
    pthread_mutex_unlock(&a->lock);
    irq_kick_run(a->chip, &k);
}

static const struct bus_handler mmio_handler = {mmio_read, mmio_write};

int ioapic_attach(struct ioapic *a, struct bus *b, struct nerr *e)
{
    return bus_add(b, BUS_MMIO, IOAPIC_BASE, 0x1000, &mmio_handler, a, "ioapic", e);
}

void ioapic_reset(struct ioapic *a)
{
    pthread_mutex_lock(&a->lock);
    for (unsigned pin = 0; pin < IRQ_LINES; pin++) a->redir[pin] = RTE_MASKED;
    a->select = 0;
    a->id = 0;
    pthread_mutex_unlock(&a->lock);
}

void ioapic_init(struct ioapic *a, struct irqchip *c)
{
    a->chip = c;
    pthread_mutex_init(&a->lock, NULL);
    ioapic_reset(a);
}

void ioapic_fini(struct ioapic *a)
{
    pthread_mutex_destroy(&a->lock);
}
