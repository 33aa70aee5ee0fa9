/* A chip, a bus and a host that counts what it is told; shared by test_irq.c and test_lapic.c. */
#ifndef NACELLE_TESTS_IRQ_FIXTURE_H
#define NACELLE_TESTS_IRQ_FIXTURE_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/event.h"
#include "vmm/irq/irq.h"

struct rig {
    struct event_loop *loop;
    struct irqchip *chip;
    struct bus bus;
    unsigned vcpus;
    atomic_uint interrupts[ENGINE_MAX_VCPUS], inits[ENGINE_MAX_VCPUS], sipis[ENGINE_MAX_VCPUS];
    _Atomic uint8_t sipi_vector;
    pthread_t thread;
};

static void rig_interrupt(void *ctx, unsigned vcpu)
{
    atomic_fetch_add(&((struct rig *)ctx)->interrupts[vcpu], 1);
}

static void rig_init_ipi(void *ctx, unsigned vcpu)
{
    atomic_fetch_add(&((struct rig *)ctx)->inits[vcpu], 1);
}

static void rig_sipi(void *ctx, unsigned vcpu, uint8_t vector)
{
    struct rig *r = ctx;
    atomic_store(&r->sipi_vector, vector);
    atomic_fetch_add(&r->sipis[vcpu], 1);
}

static void *rig_loop(void *arg)
{
    struct nerr e;
    struct rig *r = arg;
    return event_loop_run(r->loop, &e) ? arg : NULL;
}

static inline struct rig *rig_new(unsigned vcpus)
{
    struct nerr e;
    struct rig *r = calloc(1, sizeof *r);
    assert_non_null(r);
    r->vcpus = vcpus;
    r->loop = event_loop_create(&e);
    assert_non_null(r->loop);
    struct irqchip_host host = {r, rig_interrupt, rig_init_ipi, rig_sipi};
    assert_int_equal(irqchip_create(vcpus, r->loop, &host, &r->chip, &e), 0);
    assert_int_equal(irqchip_attach(r->chip, &r->bus, &e), 0);
    assert_int_equal(pthread_create(&r->thread, NULL, rig_loop, r), 0);
    irqchip_set_current_vcpu(0);
    return r;
}

static inline void rig_free(struct rig *r)
{
    void *failed;
    event_loop_stop(r->loop);
    pthread_join(r->thread, &failed);
    assert_null(failed);
    irqchip_destroy(r->chip);
    event_loop_destroy(r->loop);
    free(r);
}

/* The vCPU's view. */
static inline const struct vcpu_irq_port *cpu(struct rig *r, unsigned n)
{
    return irqchip_port(r->chip, n);
}
static inline int pending(struct rig *r, unsigned n)
{
    return cpu(r, n)->pending(cpu(r, n)->ctx);
}
static inline int ack(struct rig *r, unsigned n)
{
    return cpu(r, n)->acknowledge(cpu(r, n)->ctx);
}
static inline bool take_nmi(struct rig *r, unsigned n)
{
    return cpu(r, n)->take_nmi(cpu(r, n)->ctx);
}
static inline bool wrmsr(struct rig *r, unsigned n, uint32_t msr, uint64_t v)
{
    return cpu(r, n)->msr_write(cpu(r, n)->ctx, msr, v);
}
static inline bool rdmsr(struct rig *r, unsigned n, uint32_t msr, uint64_t *v)
{
    return cpu(r, n)->msr_read(cpu(r, n)->ctx, msr, v);
}

#define LAPIC 0xfee00000u
static inline uint32_t apic_read(struct rig *r, unsigned n, uint32_t reg)
{
    irqchip_set_current_vcpu(n);
    return (uint32_t)bus_read(&r->bus, BUS_MMIO, LAPIC + reg, 4);
}
static inline void apic_write(struct rig *r, unsigned n, uint32_t reg, uint32_t v)
{
    irqchip_set_current_vcpu(n);
    bus_write(&r->bus, BUS_MMIO, LAPIC + reg, 4, v);
}
static inline void apic_enable(struct rig *r)
{
    for (unsigned i = 0; i < r->vcpus; i++) apic_write(r, i, 0xf0, 0x1ff);
}
static inline void eoi(struct rig *r, unsigned n)
{
    apic_write(r, n, 0xb0, 0);
}
static inline void ipi(struct rig *r, unsigned from, uint32_t dest, uint32_t low)
{
    apic_write(r, from, 0x310, dest << 24);
    apic_write(r, from, 0x300, low);
}
static inline uint32_t ioapic_read(struct rig *r, uint8_t reg)
{
    bus_write(&r->bus, BUS_MMIO, 0xfec00000, 4, reg);
    return (uint32_t)bus_read(&r->bus, BUS_MMIO, 0xfec00010, 4);
}
static inline void ioapic_write(struct rig *r, uint8_t reg, uint32_t v)
{
    bus_write(&r->bus, BUS_MMIO, 0xfec00000, 4, reg);
    bus_write(&r->bus, BUS_MMIO, 0xfec00010, 4, v);
}
static inline void redirect(struct rig *r, unsigned pin, uint32_t high, uint32_t low)
{
    ioapic_write(r, (uint8_t)(0x11 + 2 * pin), high);
    ioapic_write(r, (uint8_t)(0x10 + 2 * pin), low);
}
static inline void out(struct rig *r, uint16_t port, uint8_t v)
{
    bus_write(&r->bus, BUS_PIO, port, 1, v);
}
static inline uint8_t in(struct rig *r, uint16_t port)
{
    return (uint8_t)bus_read(&r->bus, BUS_PIO, port, 1);
}

static inline void sleep_us(unsigned us)
{
    struct timespec t = {us / 1000000, (long)(us % 1000000) * 1000};
    nanosleep(&t, NULL);
}
/* Waits up to two seconds for the vCPU to have something pending. */
static inline int wait_pending(struct rig *r, unsigned n)
{
    for (int i = 0; i < 4000 && pending(r, n) < 0; i++) sleep_us(500);
    return pending(r, n);
}

#endif
