/* Private header of vmm/irq.
 *
 * Locks, in the order in which they may be taken: ioapic.lock, pic.lock, lapic.lock (of one LAPIC at a time), the event loop's.
 * The host's callbacks run with none of them held: what they are to be told is collected in a struct irq_kick
 * and told by irq_kick_run() at the end of every public function. */
#ifndef NACELLE_VMM_IRQ_CHIP_H
#define NACELLE_VMM_IRQ_CHIP_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/event.h"
#include "vmm/irq/irq.h"

/* vCPUs to tell something, one bit each. */
struct irq_kick {
    uint64_t interrupt, init, sipi;
    uint8_t sipi_vector;
};
_Static_assert(ENGINE_MAX_VCPUS <= 64, "struct irq_kick has one bit per vCPU");

/* Delivery modes of ICR, LVT, redirection entries and MSI (SDM vol. 3 10.5.1, 10.6.1). */
enum irq_mode {
    IRQ_FIXED = 0,
    IRQ_LOWEST = 1,
    IRQ_SMI = 2,
    IRQ_NMI = 4,
    IRQ_INIT = 5,
    IRQ_SIPI = 6,
    IRQ_EXTINT = 7,
};

struct irq_message {
    uint32_t dest;
    bool logical;
    bool wide; /* `dest` is a 32-bit x2APIC destination, else an 8-bit one */
    uint8_t mode, vector;
    bool level;
};

/* ---- local APIC ---- */
#define APIC_BASE_BSP (1u << 8)
#define APIC_BASE_EXTD (1u << 10)
#define APIC_BASE_EN (1u << 11)
#define APIC_DEFAULT_BASE 0xfee00000u

/* Register offsets in the xAPIC page (SDM vol. 3 table 10-1); MSR 0x800 + offset / 16 in x2APIC mode. */
enum lapic_register {
    LAPIC_ID = 0x20,
    LAPIC_VERSION = 0x30,
    LAPIC_TPR = 0x80,
    LAPIC_APR = 0x90,
    LAPIC_PPR = 0xa0,
    LAPIC_EOI = 0xb0,
    LAPIC_RRD = 0xc0,
    LAPIC_LDR = 0xd0,
    LAPIC_DFR = 0xe0,
    LAPIC_SVR = 0xf0,
    LAPIC_ISR = 0x100,
    LAPIC_TMR = 0x180,
    LAPIC_IRR = 0x200,
    LAPIC_ESR = 0x280,
    LAPIC_CMCI = 0x2f0,
    LAPIC_ICR = 0x300,
    LAPIC_ICR_HIGH = 0x310,
    LAPIC_LVT = 0x320,
    LAPIC_LVT_LAST = 0x370,
    LAPIC_INITIAL = 0x380,
    LAPIC_CURRENT = 0x390,
    LAPIC_DIVIDE = 0x3e0,
    LAPIC_SELF_IPI = 0x3f0,
};

#define APIC_VERSION 0x01050014u /* version 0x14, six LVT entries, EOI broadcast can be suppressed */
#define SVR_ENABLE (1u << 8)
#define SVR_NO_EOI_BROADCAST (1u << 12)
#define LVT_MASKED (1u << 16)
#define LVT_TIMER_MODE (3u << 17)
#define LVT_TIMER_ONESHOT (0u << 17)
#define LVT_TIMER_PERIODIC (1u << 17)
#define LVT_TIMER_DEADLINE (2u << 17)
#define ESR_SEND_ILLEGAL_VECTOR (1u << 5)
#define ESR_RECEIVE_ILLEGAL_VECTOR (1u << 6)
#define ESR_ILLEGAL_REGISTER (1u << 7)

/* In the order of their registers, 0x320 to 0x370. */
enum lapic_lvt { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

struct lapic {
    struct irqchip *chip;
    unsigned vcpu;
    struct vcpu_irq_port port;
    /* What pending() and take_nmi() look at, without the lock. */
    _Atomic int pending;        /* highest deliverable vector or -1 */
    atomic_bool accepts_extint; /* the PIC's INTR reaches this CPU */
    atomic_uint nmis;
    /* What senders look at to find their destination, without the lock. */
    _Atomic uint64_t base;
    _Atomic uint32_t xapic_id, ldr, dfr, svr, ppr;

    pthread_mutex_t lock; /* guards all below, and writes to the above */
    uint64_t irr[4], isr[4], tmr[4];
    uint32_t tpr, esr, esr_new, lvt[LVT_COUNT];
    uint64_t icr;
    bool wait_sipi;
    /* Timer: see lapic_timer.c. */
    struct event_timer timer;
    uint32_t divide, initial;
    uint64_t start;    /* ns when `initial` was loaded; the phase of a periodic timer */
    bool counting;     /* the count has not run out */
    uint64_t deadline; /* guest TSC, 0: none */
    uint64_t due;      /* ns when the next interrupt is due, 0: none; guest TSC counts in deadline mode */
    uint64_t tsc_offset;
};

int lapic_init(struct lapic *l, struct irqchip *c, unsigned vcpu);
void lapic_fini(struct lapic *l);
/* Power-on: all. */
void lapic_power_on(struct lapic *l);
/* Takes a message that is for this LAPIC; false when it ignores it. */
bool lapic_accept(struct lapic *l, const struct irq_message *m, struct irq_kick *k);
bool lapic_matches(struct lapic *l, const struct irq_message *m);
/* The PIC's INTR pin, wired to LINT0, rose. */
void lapic_lint0_rise(struct lapic *l, struct irq_kick *k);

/* Called with l->lock held: */
void lapic_set_irr(struct lapic *l, uint8_t vector, bool level);
void lapic_update(struct lapic *l, struct irq_kick *k); /* recomputes PPR and `pending` */
void lapic_error(struct lapic *l, uint32_t bit);
void lapic_lvt_fire(struct lapic *l, enum lapic_lvt n);
/* INIT: all registers but the id and IA32_APIC_BASE. */
void lapic_reset_locked(struct lapic *l);
/* Without it: */
void lapic_eoi(struct lapic *l, struct irq_kick *k);

/* lapic_timer.c; with l->lock held but for init and fini. All may set an IRR bit: lapic_update() comes after. */
void lapic_timer_init(struct lapic *l);
void lapic_timer_fini(struct lapic *l);
void lapic_timer_reset(struct lapic *l);
void lapic_timer_set_initial(struct lapic *l, uint32_t v);
void lapic_timer_set_divide(struct lapic *l, uint32_t v);
void lapic_timer_set_lvt(struct lapic *l, uint32_t v);
uint32_t lapic_timer_current(struct lapic *l);
void lapic_timer_set_deadline(struct lapic *l, uint64_t tsc);
uint64_t lapic_timer_deadline(struct lapic *l);
void lapic_timer_set_tsc_offset(struct lapic *l, uint64_t tsc_offset);
void lapic_timer_freeze(struct lapic *l);
void lapic_timer_thaw(struct lapic *l, uint64_t ns);
struct lapic_timer_state {
    uint32_t lvt, initial, current, divide;
    uint64_t deadline;
};
void lapic_timer_restore(struct lapic *l, const struct lapic_timer_state *s);

/* lapic_reg.c */
extern const uint32_t lapic_lvt_writable[LVT_COUNT];
extern const uint64_t lapic_address_mask; /* where IA32_APIC_BASE may point */
uint32_t lapic_mmio_read(struct lapic *l, uint32_t off, struct irq_kick *k);
void lapic_mmio_write(struct lapic *l, uint32_t off, uint32_t value, struct irq_kick *k);
bool lapic_msr_read(struct lapic *l, uint32_t msr, uint64_t *value, struct irq_kick *k);
bool lapic_msr_write(struct lapic *l, uint32_t msr, uint64_t value, struct irq_kick *k);

/* ---- IOAPIC ---- */
#define RTE_REMOTE_IRR (1ull << 14)
#define RTE_LEVEL (1ull << 15)
#define RTE_WRITABLE 0xff0000000001afffull
struct ioapic {
    struct irqchip *chip;
    pthread_mutex_t lock; /* guards all below */
    uint64_t redir[IRQ_LINES];
    uint32_t lines; /* wired levels */
    uint8_t select, id;
};
void ioapic_init(struct ioapic *a, struct irqchip *c);
void ioapic_fini(struct ioapic *a);
void ioapic_reset(struct ioapic *a); /* wired levels stay */
void ioapic_set_line(struct ioapic *a, unsigned pin, bool level, struct irq_kick *k);
void ioapic_service(struct ioapic *a, unsigned pin,
                    struct irq_kick *k); /* with a->lock held: sends the pin's message */
void ioapic_eoi(struct ioapic *a, uint8_t vector, struct irq_kick *k);
int ioapic_attach(struct ioapic *a, struct bus *b, struct nerr *e);

/* ---- the two 8259s ---- */
struct i8259 {
    uint8_t irr, imr, isr, lines, elcr, elcr_mask;
    uint8_t icw2, icw4, init_step; /* init_step: next ICW expected, 0 = ready */
    uint8_t priority_add;          /* the line with the highest priority */
    bool read_isr, poll, special_mask, auto_eoi, rotate_on_aeoi, fully_nested, single, master;
};
struct pic {
    struct irqchip *chip;
    pthread_mutex_t lock; /* guards chip8259 */
    struct i8259 i8259[2];
    atomic_bool intr; /* the INTR output; written with the lock held */
};
void pic_init(struct pic *p, struct irqchip *c);
void pic_fini(struct pic *p);
void pic_reset(struct pic *p, struct irq_kick *k);
void pic_set_line(struct pic *p, unsigned irq, bool level, struct irq_kick *k);
int pic_acknowledge(struct pic *p, struct irq_kick *k); /* vector, or -1 when INTR is low */
void pic_update(struct pic *p, struct irq_kick *k);     /* with p->lock held: recomputes INTR */
int pic_attach(struct pic *p, struct bus *b, struct nerr *e);

/* ---- eventfds that send messages (irqfd.c), for controllers in user space ---- */
/* Entries are used again, and freed with the chip only: a callback may still be on its way to one. */
struct irqfd {
    struct irqfd *next;
    struct irqchip *chip;
    int fd; /* -1: free */
    uint64_t addr;
    uint32_t data;
};
void irqfd_init(struct irqchip *c);
void irqfd_fini(struct irqchip *c);
int irqfd_add(struct irqchip *c, int fd, uint64_t addr, uint32_t data, struct nerr *e);
void irqfd_remove(struct irqchip *c, int fd);

/* ---- state (state.c) ---- */
void lapic_get_state(struct lapic *l, struct irq_lapic_state *s);
void lapic_set_state(struct lapic *l, const struct irq_lapic_state *s, struct irq_kick *k); /* checked before */
void ioapic_get_state(struct ioapic *a, struct irq_ioapic_state *s);
void ioapic_set_state(struct ioapic *a, const struct irq_ioapic_state *s, struct irq_kick *k);
void pic_get_state(struct pic *p, struct irq_pic_state s[2]);
void pic_set_state(struct pic *p, const struct irq_pic_state s[2], struct irq_kick *k);

/* freeze.c: a reset meanwhile leaves no timer to go on with. */
void irq_forget_frozen(struct irqchip *c);

/* ---- glue ---- */
struct irqchip {
    struct irqchip_host host;
    const struct engine_irq_ops *inside; /* the engine's own controllers, or NULL: all below works */
    struct engine *engine;
    pthread_mutex_t irqfd_lock; /* guards irqfd; taken before any other of the chip's */
    struct irqfd *irqfd;
    struct irq_lapic_state *frozen; /* of the engine's own, per vCPU, while time stands still; else NULL */
    struct event_loop *loop;
    unsigned vcpus;
    atomic_uint lowest_next; /* where the search for the lowest priority begins, so that equals take turns */
    struct ioapic ioapic;
    struct pic pic;
    struct lapic lapic[];
};
/* Routes to all LAPICs that match but `except` (ENGINE_MAX_VCPUS: none); false when none took it. */
bool irq_deliver(struct irqchip *c, const struct irq_message *m, unsigned except, struct irq_kick *k);
void irq_kick_run(struct irqchip *c, const struct irq_kick *k);

#endif
