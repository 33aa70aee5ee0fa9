/* The one interface between a CPU engine and the rest of the VMM. Nothing outside engine/ knows which
 * engine runs. Exits come back as data. See docs/design/0001-engine-interface.md.
 *
 * Threads: one host thread per vCPU calls run/get_state/set_state of that vCPU; kick() and interrupt()
 * may be called from any thread at any time between vcpu_create and destroy. */
#ifndef NACELLE_VMM_ENGINE_H
#define NACELLE_VMM_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/addr.h"
#include "common/error.h"
#include "vmm/engine/irq_state.h"
#include "vmm/memory/memory.h"

struct engine; /* one VM's CPU engine, private to the engine */
struct vcpu;   /* one vCPU, private to the engine */

#define ENGINE_MAX_VCPUS 64

/* Segment registers in the order of their x86 encoding. */
enum cpu_seg { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_COUNT };

/* `attr` holds bits 40..55 of the descriptor as they stand there, shifted down (type 0-3, S 4, DPL 5-6,
 * P 7, limit bits 8-11 ignored, AVL 12, L 13, D/B 14, G 15); `limit` is in bytes, already scaled. */
#define SEG_ATTR_TYPE 0x000fu
#define SEG_ATTR_S 0x0010u
#define SEG_ATTR_DPL_SHIFT 5
#define SEG_ATTR_P 0x0080u
#define SEG_ATTR_AVL 0x1000u
#define SEG_ATTR_L 0x2000u
#define SEG_ATTR_DB 0x4000u
#define SEG_ATTR_G 0x8000u
#define SEG_ATTR_NULL 0x10000u /* loaded with a null selector: unusable */

struct cpu_segment {
    uint16_t selector;
    uint32_t attr;
    uint32_t limit;
    uint64_t base;
};

struct cpu_table {
    uint64_t base;
    uint16_t limit;
};

#define CPU_XSAVE_SIZE 4096
#define CPU_MAX_MSRS 96

/* A model-specific register that has no field of its own below. */
struct cpu_msr {
    uint32_t index;
    uint64_t value;
};

/* What the CPU was about to deliver when it stopped; it does so before the next instruction. */
enum cpu_event_kind {
    CPU_EVENT_NONE,
    CPU_EVENT_EXCEPTION, /* CR2 and DR6 are set already */
    CPU_EVENT_INTERRUPT, /* acknowledged: its bit is in ISR */
    CPU_EVENT_NMI,
    CPU_EVENT_KINDS
};
struct cpu_event {
    uint8_t kind; /* enum cpu_event_kind */
    uint8_t vector;
    bool has_error;
    uint32_t error;
};

/* Everything that makes up a vCPU except its local APIC (vmm/irq). Bits unsupported by the engine are refused. After an exit that asks for
 * something (I/O, MMIO) the instruction is half done: the state is whole after VCPU_EXIT_KICKED, or before the first run. */
struct cpu_state {
    uint64_t gpr[16]; /* rax rcx rdx rbx rsp rbp rsi rdi r8..r15 */
    uint64_t rip, rflags;
    struct cpu_segment seg[SEG_COUNT], tr, ldtr;
    struct cpu_table gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, xcr0;
    uint64_t dr[8]; /* 0-3, 6, 7 */
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux, pat;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t tsc_offset; /* guest TSC = host TSC + tsc_offset */
    bool halted;         /* waits in HLT */
    bool irq_shadow;     /* STI / MOV SS shadow */
    bool nmi_blocked;    /* between NMI delivery and IRET */
    uint8_t nmi_pending; /* NMIs that wait inside the CPU: 0..2 */
    struct cpu_event event;
    unsigned msrs;                    /* those that differ from their power-on value: MTRRs, paravirtual clock, ... */
    struct cpu_msr msr[CPU_MAX_MSRS]; /* set_state puts all others back to that value */
    _Alignas(64) uint8_t xsave[CPU_XSAVE_SIZE]; /* standard-format XSAVE image */
};

enum vcpu_exit_kind {
    VCPU_EXIT_KICKED,   /* kick() asked for it */
    VCPU_EXIT_IO,       /* port I/O */
    VCPU_EXIT_MMIO,     /* access to a GPA that is no RAM */
    VCPU_EXIT_HLT,      /* halted, no deliverable interrupt */
    VCPU_EXIT_SHUTDOWN, /* triple fault */
    VCPU_EXIT_FAIL,     /* the engine itself failed; `fail` says why */
    VCPU_EXIT_PAUSE,    /* contention: PAUSE spun long enough that yielding the host CPU pays */
    VCPU_EXIT_RESET,    /* the boot processor got an INIT: the machine starts anew */
};

struct vcpu_exit {
    enum vcpu_exit_kind kind;
    union {
        /* For reads the VMM fills data[] before the next run(). */
        struct {
            uint16_t port;
            uint8_t size; /* 1, 2, 4 bytes per item */
            bool write;
            uint32_t count;     /* items (REP INS/OUTS), >= 1 */
            uint8_t data[1024]; /* size * count bytes */
        } io;
        struct {
            gpa_t addr;
            uint8_t len; /* 1..8 */
            bool write;
            uint8_t data[8];
        } mmio;
        char fail[256];
    };
};

/* The local APIC as an engine without an in-kernel one sees it. Called on the vCPU's own thread. */
struct vcpu_irq_port {
    void *ctx;
    int (*pending)(void *ctx);     /* highest vector deliverable now (PPR honoured), or -1 */
    int (*acknowledge)(void *ctx); /* takes it (IRR -> ISR, or the PIC's ExtINT); -1 when it went away */
    bool (*take_nmi)(void *ctx);   /* true once per pending NMI */
    uint8_t (*get_cr8)(void *ctx);
    void (*set_cr8)(void *ctx, uint8_t tpr_class);
    /* IA32_APIC_BASE, IA32_TSC_DEADLINE, x2APIC 0x800..0x8ff. False means #GP. */
    bool (*msr_read)(void *ctx, uint32_t msr, uint64_t *value);
    bool (*msr_write)(void *ctx, uint32_t msr, uint64_t value);
    /* The vCPU's TSC offset (cpu_state.tsc_offset) is now this: call after every change, so that the TSC deadline keeps its meaning. */
    void (*set_tsc_offset)(void *ctx, uint64_t tsc_offset);
};

struct engine_config {
    const struct guest_memory *memory; /* outlives the engine */
    unsigned vcpus;
};

struct engine_stat {
    const char *name;
    uint64_t value;
};

/* Interrupt controllers of an engine's own (LAPICs, IOAPIC, 8259s), which then stand in for those of vmm/irq. HLT, INIT and SIPI happen
 * inside run() of such an engine: all vCPUs enter it from the start, those that wait for a SIPI too. Any thread. */
struct engine_irq_ops {
    void (*set_line)(struct engine *g, unsigned gsi, bool level);
    void (*msi)(struct engine *g, uint64_t addr, uint32_t data);
    /* Signals of the eventfd `fd` send this message from now on; once more for the same fd changes the message. The caller keeps the fd. */
    int (*irqfd_add)(struct engine *g, int fd, uint64_t addr, uint32_t data, struct nerr *e);
    void (*irqfd_remove)(struct engine *g, int fd);
    /* The rest only while no vCPU is in run(). */
    int (*reset)(struct engine *g, struct nerr *e); /* power-on of all controllers and all vCPUs */
    int (*get_chips)(struct engine *g, struct irq_chips_state *s, struct nerr *e);
    int (*set_chips)(struct engine *g, const struct irq_chips_state *s, struct nerr *e);
    int (*get_lapic)(struct engine *g, unsigned vcpu, struct irq_lapic_state *s, struct nerr *e);
    int (*set_lapic)(struct engine *g, unsigned vcpu, const struct irq_lapic_state *s, struct nerr *e);
};

/* A guest write that signals an eventfd instead of becoming an exit. */
struct engine_ioeventfd {
    bool port;    /* `addr` is a port, else a GPA */
    bool any;     /* whatever is written, else only `value` */
    unsigned len; /* of the access in bytes: 1, 2, 4, 8 */
    uint64_t addr, value;
    int fd; /* the caller's */
};

struct engine_ops {
    const char *name;
    /* Whether this host offers what the engine needs, in less than 20 ms: 0, or what is missing and what to do. `speed`: also whether
     * guest code runs as fast as it should. NULL: it runs everywhere. */
    int (*probe)(bool speed, struct nerr *e);
    int (*create)(const struct engine_config *cfg, struct engine **out, struct nerr *e);
    void (*destroy)(struct engine *g);
    /* `id` is also the APIC id. The port outlives the vCPU. The new vCPU is in the reset state. */
    int (*vcpu_create)(struct engine *g, unsigned id, const struct vcpu_irq_port *port, struct vcpu **out,
                       struct nerr *e);
    int (*get_state)(struct vcpu *v, struct cpu_state *s);
    int (*set_state)(struct vcpu *v, const struct cpu_state *s, struct nerr *e);
    /* Runs until there is something for the VMM to do. Never fails: problems are VCPU_EXIT_FAIL. */
    void (*run)(struct vcpu *v, struct vcpu_exit *exit);
    void (*kick)(struct vcpu *v);      /* run() returns soon with VCPU_EXIT_KICKED (or at its next call) */
    void (*interrupt)(struct vcpu *v); /* the port's pending/NMI state may have changed: look again */
    /* Fills up to `max` counters of this vCPU, returns how many. */
    unsigned (*stats)(struct vcpu *v, struct engine_stat *s, unsigned max);
    /* Host memory of the VMM's own changed under the guest (device DMA into code): [a, a+len) was written. */
    void (*memory_written)(struct engine *g, gpa_t a, uint64_t len);
    /* ---- optional: NULL where the engine has nothing of the kind ---- */
    const struct engine_irq_ops *irq;
    /* Any thread. Negative: not possible (-EEXIST, -ENOSPC, ...), the writes go on as exits. */
    int (*ioeventfd_add)(struct engine *g, const struct engine_ioeventfd *io);
    void (*ioeventfd_remove)(struct engine *g, const struct engine_ioeventfd *io);
    /* Nanoseconds of the paravirtual clock (guests count them from the start of the VM). No vCPU is in run(). */
    int (*get_clock)(struct engine *g, uint64_t *ns);
    int (*set_clock)(struct engine *g, uint64_t ns);
    /* Pages written by the guest and by memory_written() since the last collection, while tracking is on. fn gets runs of whole pages;
     * a page that is written while it is being collected is reported now or next time. Any one thread at a time. */
    int (*dirty_track)(struct engine *g, bool on, struct nerr *e);
    int (*dirty_collect)(struct engine *g, void (*fn)(void *ctx, gpa_t a, uint64_t len), void *ctx, struct nerr *e);
};

extern const struct engine_ops engine_kvm;
extern const struct engine_ops engine_soft;
extern const struct engine_ops engine_fake;

/* The power-on state of a vCPU (SDM vol. 3, table 10-1), the same for all engines. */
void cpu_state_reset(struct cpu_state *s);
/* The state in which a SIPI with `vector` starts an application processor. */
void cpu_state_sipi(struct cpu_state *s, uint8_t vector);

#endif
