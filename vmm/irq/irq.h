/* Interrupt controllers in user space, for engines without an in-kernel irqchip: one LAPIC (xAPIC and x2APIC) per
 * vCPU, an IOAPIC, the two 8259 PICs, MSI routing. All functions may be called from any thread. */
#ifndef NACELLE_VMM_IRQ_H
#define NACELLE_VMM_IRQ_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "vmm/bus/bus.h"
#include "vmm/engine/engine.h"

#define IRQ_LINES 24 /* GSIs 0..23 are the IOAPIC's pins; 0..15 also the PICs' (ISA IRQ 0 = GSI 2) */

struct irqchip;
struct event_loop; /* common/event.h */

/* What the chip asks of the rest of the machine. Called without any lock of the chip held. */
struct irqchip_host {
    void *ctx;
    void (*interrupt)(void *ctx, unsigned vcpu);            /* pending state of this vCPU's LAPIC changed */
    void (*init)(void *ctx, unsigned vcpu);                 /* INIT arrived: reset and wait for SIPI */
    void (*sipi)(void *ctx, unsigned vcpu, uint8_t vector); /* first SIPI after INIT */
};

int irqchip_create(unsigned vcpus, struct event_loop *loop, const struct irqchip_host *host, struct irqchip **out,
                   struct nerr *e);
void irqchip_destroy(struct irqchip *c);
int irqchip_attach(struct irqchip *c, struct bus *b, struct nerr *e); /* PIC ports, IOAPIC at 0xfec00000, LAPIC MMIO */
/* LAPIC MMIO (0xfee00000) needs to know which vCPU accesses it: the vCPU's thread says so once. */
void irqchip_set_current_vcpu(unsigned vcpu);
/* The engine's view of vCPU n's LAPIC. */
const struct vcpu_irq_port *irqchip_port(struct irqchip *c, unsigned vcpu);
/* Wired level of a GSI. Edge-triggered pins fire on 0 -> 1. */
void irqchip_set_line(struct irqchip *c, unsigned gsi, bool level);
/* MSI: address/data as a PCI function writes them. */
void irqchip_msi(struct irqchip *c, uint64_t addr, uint32_t data);
void irqchip_reset(struct irqchip *c);
/* INIT of one LAPIC (all registers but the id). */
void irqchip_reset_lapic(struct irqchip *c, unsigned vcpu);

#endif
