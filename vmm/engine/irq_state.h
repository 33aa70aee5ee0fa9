/* What interrupt controllers are made of, as data: the same for controllers in user space (vmm/irq) and inside an engine,
 * so that what one had the other can go on with. */
#ifndef NACELLE_VMM_IRQ_STATE_H
#define NACELLE_VMM_IRQ_STATE_H

#include <stdbool.h>
#include <stdint.h>

#define IRQ_LINES 24 /* GSIs 0..23 are the IOAPIC's pins; 0..15 also the PICs' (ISA IRQ 0 = GSI 2) */
#define IRQ_LAPIC_PAGE 0x400

/* One local APIC. Take it while its vCPU does not run; set the vCPU's own state (TSC offset) before this one. */
struct irq_lapic_state {
    uint64_t base;         /* IA32_APIC_BASE */
    uint64_t tsc_deadline; /* IA32_TSC_DEADLINE, in guest TSC; 0: none */
    uint8_t esr_new;       /* errors since ESR was last written */
    uint8_t nmis;          /* NMIs that arrived and are not delivered yet: 0..2 */
    bool wait_sipi;        /* after INIT (or power-on of an application processor): waits for a SIPI */
    /* The registers at their xAPIC offsets (SDM vol. 3 table 10-1), 32 bits little-endian each; in x2APIC mode too, with the ID
     * in bits 24..31 and ICR's two halves in 0x300 and 0x310. The current count (0x390) says what is left of the timer. */
    uint8_t regs[IRQ_LAPIC_PAGE];
};

struct irq_ioapic_state {
    uint64_t redir[IRQ_LINES]; /* redirection entries with remote IRR (bit 14) */
    uint32_t lines;            /* wired levels, one bit per pin */
    uint8_t select, id;
};

struct irq_pic_state {
    uint8_t irr, imr, isr, lines, elcr;
    uint8_t vector;       /* of line 0 (ICW2) */
    uint8_t init_step;    /* ICW expected next: 0 none, 2, 3, 4 */
    uint8_t priority_add; /* the line with the highest priority */
    bool needs_icw4, single, read_isr, poll, special_mask, auto_eoi, rotate_on_aeoi, fully_nested;
};

struct irq_chips_state {
    struct irq_ioapic_state ioapic;
    struct irq_pic_state pic[2]; /* master, slave */
};

#endif
