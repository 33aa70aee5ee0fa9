/* Interrupt controllers: one LAPIC (xAPIC and x2APIC) per vCPU, an IOAPIC, the two 8259 PICs, MSI routing. Devices see only
 * this header; whether the controllers live here or inside the engine is settled by irqchip_use_engine(). All functions may be called
 * from any thread unless they say otherwise. */
#ifndef NACELLE_VMM_IRQ_H
#define NACELLE_VMM_IRQ_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "vmm/bus/bus.h"
#include "vmm/engine/engine.h"

/* ISA IRQs that PCI's wires share when a system uses the 8259s: 5 and 10. Level-triggered from power-on, as firmware leaves them. IRQ 11 is not
 * among them: kvm-unit-tests' realmode sends it as an edge while interrupts are off, and waits for it. */
#define IRQ_ISA_PCI 0x0420u

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
/* From now on the engine's own controllers do the work, if it has any. Before irqchip_attach() and anything that follows; again only
 * when attached with an engine that had none, while no vCPU runs, and to be followed by setting all state. */
void irqchip_use_engine(struct irqchip *c, const struct engine_ops *ops, struct engine *g);
int irqchip_attach(struct irqchip *c, struct bus *b, struct nerr *e); /* PIC ports, IOAPIC at 0xfec00000, LAPIC MMIO */
/* LAPIC MMIO (0xfee00000) needs to know which vCPU accesses it: the vCPU's thread says so once. */
void irqchip_set_current_vcpu(unsigned vcpu);
/* The engine's view of vCPU n's LAPIC. */
const struct vcpu_irq_port *irqchip_port(struct irqchip *c, unsigned vcpu);
/* Wired level of a GSI. Edge-triggered pins fire on 0 -> 1. */
void irqchip_set_line(struct irqchip *c, unsigned gsi, bool level);
/* MSI: address/data as a PCI function writes them. */
void irqchip_msi(struct irqchip *c, uint64_t addr, uint32_t data);
/* Signals of the eventfd `fd` send this message from now on, without the caller (a vhost or VFIO device, or a thread of ours). Once more for the
 * same fd changes the message. The fd stays the caller's, who removes it here before closing it. */
int irqchip_irqfd_add(struct irqchip *c, int fd, uint64_t addr, uint32_t data, struct nerr *e);
/* Whether such signals become interrupts inside the engine, without a thread of this process in between. */
bool irqchip_irqfd_direct(const struct irqchip *c);
void irqchip_irqfd_remove(struct irqchip *c, int fd);
/* Power-on of all controllers (and of all vCPUs, where the engine has its own). vCPUs exist and don't run. Fails only inside engines. */
int irqchip_reset(struct irqchip *c, struct nerr *e);

/* The timers stop, and go on `ns` nanoseconds of CLOCK_MONOTONIC later with what was left of them. On the loop's thread, while no vCPU runs, in this
 * order: freeze; at the end thaw_begin, which looks what the LAPICs are by then; the vCPUs' states, whose TSC offsets have changed; thaw, which
 * puts the LAPICs back (an engine takes a vCPU whose state is set for one that runs, though it may wait for a SIPI). They fail only inside engines. */
int irqchip_freeze(struct irqchip *c, struct nerr *e);
int irqchip_thaw_begin(struct irqchip *c, struct nerr *e);
int irqchip_thaw(struct irqchip *c, uint64_t ns, struct nerr *e);

/* State out and in, while no vCPU runs. What is set may come from a hostile stream: it is checked, never trusted. A LAPIC's timer goes on with
 * what was left of it. In this order: each vCPU (for its TSC offset), its LAPIC, at last the chips. */
int irqchip_get_chips(struct irqchip *c, struct irq_chips_state *s, struct nerr *e);
int irqchip_set_chips(struct irqchip *c, const struct irq_chips_state *s, struct nerr *e);
int irqchip_get_lapic(struct irqchip *c, unsigned vcpu, struct irq_lapic_state *s, struct nerr *e);
int irqchip_set_lapic(struct irqchip *c, unsigned vcpu, const struct irq_lapic_state *s, struct nerr *e);

#endif
