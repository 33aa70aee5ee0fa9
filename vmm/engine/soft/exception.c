/* Delivery of exceptions and interrupts (SDM vol. 3 chapter 6, real mode: 20.1.4).
 *
 * A delivery changes nothing of the vCPU before its last step, so when it faults the nested exception sees the state of
 * the first one, and the rules for double faults can be applied by just starting over. */
#include "vmm/engine/soft/system.h"

struct event {
    uint8_t vector;
    bool has_error;
    bool check_dpl; /* INT n, INT3, INTO */
    uint32_t error;
    uint32_t ext;   /* ERR_EXT when the event is none of the program's own INT instructions */
    uint64_t flags; /* RFLAGS image to push */
};

struct gate {
    unsigned type, dpl, ist;
    bool present;
    uint16_t selector;
    uint64_t offset;
};

/* Where a delivery goes to: filled step by step, applied at the end. */
struct target {
    struct soft_desc code;
    uint16_t cs;
    unsigned cpl;
    uint64_t rip;
    struct cpu_segment ss;
    uint64_t sp;
    bool new_stack;
};

static uint32_t gate_error(const struct event *e)
{
    return e->vector * 8u + ERR_IDT + e->ext;
}

/* ---- helpers shared with transfer.c ---- */

enum soft_mmu_idx sys_stack_idx(const struct soft_cpu *cpu, unsigned cpl)
{
    if (cpl == 3) return MMU_USER;
    return cpu->rflags & FL_AC ? MMU_KERNEL_AC : MMU_KERNEL;
}

static enum soft_result tss_fault(struct soft_cpu *cpu, uint32_t ext)
{
    return soft_raise_err(cpu, EXC_TS, (cpu->tr.selector & ~3u) | ext);
}

enum soft_result sys_tss_stack(struct soft_cpu *cpu, unsigned cpl, uint32_t ext, uint16_t *ss, uint32_t *esp)
{
    bool wide = cpu->tr.attr & 8; /* 32-bit TSS (SDM vol. 3 figures 7-2 and 7-10) */
    uint32_t off = wide ? 4 + 8 * cpl : 2 + 4 * cpl, size = wide ? 4 : 2;
    *esp = 0;
    if (off + size + 1 > cpu->tr.limit) return tss_fault(cpu, ext);
    enum soft_result r = soft_load_sys(cpu, cpu->tr.base + off, esp, size);
    return r == SOFT_OK ? soft_load_sys(cpu, cpu->tr.base + off + size, ss, 2) : r;
}

enum soft_result sys_tss_stack64(struct soft_cpu *cpu, unsigned offset, uint32_t ext, uint64_t *rsp)
{
    if (offset + 7 > cpu->tr.limit) return tss_fault(cpu, ext);
    enum soft_result r = soft_load_sys(cpu, cpu->tr.base + offset, rsp, 8);
    if (r == SOFT_OK && !soft_canonical(*rsp)) return soft_raise_err(cpu, EXC_SS, ext);
    return r;
}

enum soft_result sys_frame(struct soft_cpu *cpu, const struct cpu_segment *ss, uint64_t *sp, uint32_t size,
                           uint32_t err, uint64_t *linear)
{
    uint64_t mask = ss->attr & SEG_ATTR_DB ? 0xffffffffull : 0xffffull;
    uint64_t low = (*sp - size) & mask;
    if (!segment_within_limit(ss, (uint32_t)low, size)) return soft_raise_err(cpu, EXC_SS, err);
    *sp = (*sp & ~mask) | low;
    *linear = (uint32_t)(ss->base + low);
    return SOFT_OK;
}

/* ---- gates ---- */

static enum soft_result read_gate(struct soft_cpu *cpu, const struct event *e, struct gate *g)
{
    bool lm = soft_long_mode(cpu);
    unsigned size = lm ? 16 : 8;
    if (e->vector * size + size - 1 > cpu->idt.limit) return soft_raise_err(cpu, EXC_GP, gate_error(e));
    uint64_t raw[2] = {0, 0}, a = cpu->idt.base + e->vector * size;
    enum soft_result r = soft_load_sys(cpu, lm ? a : (uint32_t)a, raw, size);
    if (r != SOFT_OK) return r;
    g->type = (raw[0] >> 40) & 0x1f; /* the S bit is part: it must be 0 */
    g->dpl = (raw[0] >> 45) & 3;
    g->present = raw[0] >> 47 & 1;
    g->ist = lm ? (raw[0] >> 32) & 7 : 0;
    g->selector = (uint16_t)(raw[0] >> 16);
    g->offset = (raw[0] & 0xffff) | ((raw[0] >> 32) & 0xffff0000u) | (lm ? raw[1] << 32 : 0);
    return SOFT_OK;
}

static bool gate_type_good(const struct soft_cpu *cpu, unsigned type)
{
    if (type == TYPE_INT || type == TYPE_TRAP) return true;
    return !soft_long_mode(cpu) && (type == TYPE_INT16 || type == TYPE_TRAP16 || type == TYPE_TASK_GATE);
}

static enum soft_result check_gate(struct soft_cpu *cpu, const struct event *e, struct gate *g)
{
    enum soft_result r = read_gate(cpu, e, g);
    if (r != SOFT_OK) return r;
    if (!gate_type_good(cpu, g->type)) return soft_raise_err(cpu, EXC_GP, gate_error(e));
    if (e->check_dpl && g->dpl < cpu->cpl) return soft_raise_err(cpu, EXC_GP, gate_error(e));
    if (!g->present) return soft_raise_err(cpu, EXC_NP, gate_error(e));
    return SOFT_OK;
}

/* The gate's code segment (SDM vol. 3 6.12.1, 6.14). */
static enum soft_result check_code(struct soft_cpu *cpu, const struct event *e, const struct gate *g, struct target *t)
{
    if (selector_is_null(g->selector)) return soft_raise_err(cpu, EXC_GP, e->ext);
    enum soft_result r = desc_read(cpu, g->selector, EXC_GP, e->ext, &t->code);
    if (r != SOFT_OK) return r;
    uint32_t err = (g->selector & ~3u) | e->ext;
    if (!desc_is_code(&t->code) || desc_dpl(&t->code) > cpu->cpl) return soft_raise_err(cpu, EXC_GP, err);
    if (soft_long_mode(cpu) && (t->code.attr & (SEG_ATTR_L | SEG_ATTR_DB)) != SEG_ATTR_L)
        return soft_raise_err(cpu, EXC_GP, err);
    if (!desc_present(&t->code)) return soft_raise_err(cpu, EXC_NP, err);
    t->cpl = desc_conforming(&t->code) ? cpu->cpl : desc_dpl(&t->code);
    t->cs = (uint16_t)((g->selector & ~3u) | t->cpl);
    t->rip = g->offset;
    return SOFT_OK;
}

static uint64_t handler_flags(const struct soft_cpu *cpu, const struct gate *g)
{
    uint64_t f = soft_get_rflags(cpu) & ~(uint64_t)(FL_TF | FL_NT | FL_RF | FL_VM);
    return g->type & 1 ? f : f & ~(uint64_t)FL_IF; /* trap gates have type bit 0 and keep IF */
}

static void enter_handler(struct soft_cpu *cpu, const struct gate *g, const struct target *t)
{
    uint64_t flags = handler_flags(cpu, g);
    segment_set(&cpu->seg[SEG_CS], t->cs, &t->code);
    cpu->seg[SEG_SS] = t->ss;
    cpu->gpr[R_RSP] = t->sp;
    cpu->cpl = (uint8_t)t->cpl;
    cpu->rip = t->rip;
    soft_set_rflags(cpu, flags);
    soft_update_mode(cpu);
}

/* ---- 64-bit ---- */

static enum soft_result choose_stack64(struct soft_cpu *cpu, const struct event *e, const struct gate *g,
                                       struct target *t)
{
    bool inner = t->cpl < cpu->cpl;
    enum soft_result r = SOFT_OK;
    t->sp = cpu->gpr[R_RSP];
    t->ss = cpu->seg[SEG_SS];
    if (g->ist)
        r = sys_tss_stack64(cpu, 36 + 8 * (g->ist - 1), e->ext, &t->sp); /* IST1 is at 36 (SDM vol. 3 figure 7-11) */
    else if (inner)
        r = sys_tss_stack64(cpu, 4 + 8 * t->cpl, e->ext, &t->sp);
    if (inner) segment_set_null(&t->ss, (uint16_t)t->cpl);
    t->sp &= ~15ull;
    return r;
}

static enum soft_result deliver_long(struct soft_cpu *cpu, const struct event *e)
{
    struct gate g;
    struct target t;
    enum soft_result r = check_gate(cpu, e, &g);
    if (r == SOFT_OK) r = check_code(cpu, e, &g, &t);
    if (r == SOFT_OK) r = choose_stack64(cpu, e, &g, &t);
    if (r != SOFT_OK) return r;
    uint64_t frame[6] = {e->error, cpu->rip,        cpu->seg[SEG_CS].selector,
                         e->flags, cpu->gpr[R_RSP], cpu->seg[SEG_SS].selector};
    unsigned skip = e->has_error ? 0 : 1;
    uint32_t size = (6 - skip) * 8;
    t.sp -= size;
    if (!soft_canonical(t.sp) || !soft_canonical(t.sp + size - 1)) return soft_raise_err(cpu, EXC_SS, e->ext);
    if (!soft_canonical(t.rip)) return soft_raise_err(cpu, EXC_GP, e->ext);
    r = desc_set_type(cpu, &t.code, TYPE_ACCESSED);
    if (r == SOFT_OK) r = soft_store(cpu, GVA(t.sp), frame + skip, size, sys_stack_idx(cpu, t.cpl));
    if (r == SOFT_OK) enter_handler(cpu, &g, &t);
    return r;
}

/* ---- 16- and 32-bit protected mode ---- */

static enum soft_result choose_stack32(struct soft_cpu *cpu, const struct event *e, struct target *t)
{
    t->new_stack = t->cpl < cpu->cpl;
    t->sp = cpu->gpr[R_RSP];
    t->ss = cpu->seg[SEG_SS];
    if (!t->new_stack) return SOFT_OK;
    uint16_t ss = 0;
    uint32_t esp;
    struct soft_desc d;
    enum soft_result r = sys_tss_stack(cpu, t->cpl, e->ext, &ss, &esp);
    if (r != SOFT_OK) return r;
    if (selector_is_null(ss)) return soft_raise_err(cpu, EXC_TS, e->ext);
    r = stack_segment_check(cpu, ss, t->cpl, EXC_TS, e->ext, &d);
    if (r != SOFT_OK) return r;
    segment_set(&t->ss, ss, &d);
    t->sp = esp;
    return SOFT_OK;
}

/* Packs `n` words of 4 or 2 bytes; returns the bytes used. */
static uint32_t pack_frame(uint8_t *out, const uint32_t *w, unsigned n, unsigned size)
{
    for (unsigned i = 0; i < n; i++)
        for (unsigned b = 0; b < size; b++) out[i * size + b] = (uint8_t)(w[i] >> (8 * b));
    return n * size;
}

static uint32_t make_frame32(const struct soft_cpu *cpu, const struct event *e, const struct gate *g,
                             const struct target *t, uint8_t *out)
{
    uint32_t w[6];
    unsigned n = 0;
    if (e->has_error) w[n++] = e->error;
    w[n++] = (uint32_t)cpu->rip;
    w[n++] = cpu->seg[SEG_CS].selector;
    w[n++] = (uint32_t)e->flags;
    if (t->new_stack) {
        w[n++] = (uint32_t)cpu->gpr[R_RSP];
        w[n++] = cpu->seg[SEG_SS].selector;
    }
    return pack_frame(out, w, n, g->type & 8 ? 4 : 2);
}

static enum soft_result deliver_protected(struct soft_cpu *cpu, const struct event *e)
{
    struct gate g;
    struct target t;
    enum soft_result r = check_gate(cpu, e, &g);
    if (r != SOFT_OK) return r;
    if (g.type == TYPE_TASK_GATE) return task_switch(cpu, g.selector, TASK_GATE, e->ext, e->has_error, e->error);
    r = check_code(cpu, e, &g, &t);
    if (r == SOFT_OK) r = choose_stack32(cpu, e, &t);
    if (r != SOFT_OK) return r;
    uint8_t frame[24];
    uint64_t linear;
    uint32_t size = make_frame32(cpu, e, &g, &t, frame);
    uint32_t stack_err = e->ext | (t.new_stack ? t.ss.selector & ~3u : 0);
    r = sys_frame(cpu, &t.ss, &t.sp, size, stack_err, &linear);
    if (r != SOFT_OK) return r;
    if (!(g.type & 8)) t.rip &= 0xffff;
    if (t.rip > t.code.limit) return soft_raise_err(cpu, EXC_GP, e->ext);
    r = desc_set_type(cpu, &t.code, TYPE_ACCESSED);
    if (r == SOFT_OK) r = soft_store(cpu, GVA(linear), frame, size, sys_stack_idx(cpu, t.cpl));
    if (r == SOFT_OK) enter_handler(cpu, &g, &t);
    return r;
}

/* ---- real mode ---- */

static enum soft_result deliver_real(struct soft_cpu *cpu, const struct event *e)
{
    if (e->vector * 4u + 3 > cpu->idt.limit) return soft_raise_err(cpu, EXC_GP, gate_error(e));
    uint16_t entry[2] = {0, 0};
    enum soft_result r = soft_load_sys(cpu, (uint32_t)(cpu->idt.base + e->vector * 4u), entry, 4);
    uint64_t sp = cpu->gpr[R_RSP];
    if (r == SOFT_OK) r = stack_push(cpu, (uint16_t)e->flags, 2);
    if (r == SOFT_OK) r = stack_push(cpu, cpu->seg[SEG_CS].selector, 2);
    if (r == SOFT_OK) r = stack_push(cpu, (uint16_t)cpu->rip, 2);
    if (r != SOFT_OK) {
        cpu->gpr[R_RSP] = sp;
        return r;
    }
    cpu->rip = entry[0];
    segment_set_real(&cpu->seg[SEG_CS], entry[1]);
    soft_set_rflags(cpu, soft_get_rflags(cpu) & ~(uint64_t)(FL_IF | FL_TF | FL_AC | FL_RF));
    soft_update_mode(cpu);
    return SOFT_OK;
}

/* ---- all modes ---- */

static enum soft_result deliver(struct soft_cpu *cpu, const struct event *e)
{
    enum soft_result r;
    if (!soft_protected(cpu))
        r = deliver_real(cpu, e);
    else if (soft_long_mode(cpu))
        r = deliver_long(cpu, e);
    else
        r = deliver_protected(cpu, e);
    if (r == SOFT_OK) {
        cpu->irq_shadow = 0;
        cpu->halted = false;
    }
    return r;
}

static enum soft_result shutdown(struct soft_cpu *cpu)
{
    cpu->exc.pending = false;
    cpu->exit->kind = VCPU_EXIT_SHUTDOWN;
    return SOFT_EXIT;
}

/* Classes of SDM vol. 3 table 6-4. */
enum exc_class { BENIGN, CONTRIBUTORY, PAGE_FAULT, DOUBLE_FAULT };

static enum exc_class classify(const struct soft_exception *x)
{
    switch (x->vector) {
    case EXC_DF: return DOUBLE_FAULT;
    case EXC_PF: return PAGE_FAULT;
    case EXC_DE:
    case EXC_TS:
    case EXC_NP:
    case EXC_SS:
    case EXC_GP: return x->soft_int ? BENIGN : CONTRIBUTORY;
    default: return BENIGN;
    }
}

/* Fault-class exceptions push RF = 1 so that an instruction breakpoint does not fire again; traps, aborts and instruction breakpoints push what is
 * there (SDM vol. 3 17.3.1.1). */
static uint64_t pushed_flags(const struct soft_cpu *cpu, const struct soft_exception *x)
{
    uint64_t f = soft_get_rflags(cpu);
    if (x->soft_int) return f;
    switch (x->vector) {
    case EXC_DB: return x->dr6 & 1u << 13 ? f | FL_RF : f; /* DR7.GD is the one fault that isn't a breakpoint */
    case EXC_NMI:
    case EXC_BP:
    case EXC_OF:
    case EXC_DF:
    case EXC_MC: return f;
    default: return f | FL_RF;
    }
}

/* CR2 and DR6 are set when the exception is recognized, even if its delivery fails. */
static void side_effects(struct soft_cpu *cpu, const struct soft_exception *x)
{
    if (x->soft_int) return;
    if (x->vector == EXC_PF) cpu->cr2 = x->cr2;
    if (x->vector == EXC_DB) {
        if (x->dr6) cpu->dr[6] = (cpu->dr[6] & ~15ull) | x->dr6;
        if (cpu->dr[7] & 1u << 13) { /* GD is cleared on entry to the handler (SDM vol. 3 17.2.4) */
            cpu->dr[7] &= ~(1ull << 13);
            soft_update_mode(cpu);
        }
    }
}

/* `x` came up while `first` was being delivered. */
static void combine(struct soft_cpu *cpu, const struct soft_exception *first)
{
    struct soft_exception *x = &cpu->exc;
    enum exc_class a = classify(first), b = classify(x);
    bool twice = (a == CONTRIBUTORY && b == CONTRIBUTORY) || (a == PAGE_FAULT && b != BENIGN);
    if (!twice) return;
    if (b == PAGE_FAULT) cpu->cr2 = x->cr2;
    soft_raise_err(cpu, EXC_DF, 0);
}

enum soft_result soft_deliver_exception(struct soft_cpu *cpu)
{
    for (int depth = 0; depth < 8; depth++) {
        struct soft_exception x = cpu->exc;
        cpu->exc.pending = false;
        struct event e = {
            .vector = x.vector,
            .has_error = x.has_error && soft_protected(cpu),
            .error = x.error,
            .check_dpl = x.soft_int,
            .ext = x.soft_int ? 0 : ERR_EXT,
            .flags = pushed_flags(cpu, &x),
        };
        side_effects(cpu, &x);
        enum soft_result r = deliver(cpu, &e);
        if (r == SOFT_OK) return r;
        /* IDT, TSS or stack in MMIO space can't be waited for in the middle of a delivery. */
        if (r != SOFT_FAULT || classify(&x) == DOUBLE_FAULT) break;
        combine(cpu, &x);
    }
    return shutdown(cpu);
}

enum soft_result soft_deliver_interrupt(struct soft_cpu *cpu, uint8_t vector)
{
    struct event e = {.vector = vector, .ext = ERR_EXT, .flags = soft_get_rflags(cpu)};
    if (vector == EXC_NMI) cpu->nmi_blocked = true;
    enum soft_result r = deliver(cpu, &e);
    if (r == SOFT_FAULT) return soft_deliver_exception(cpu);
    return r == SOFT_OK ? r : shutdown(cpu);
}

enum soft_result sys_software_interrupt(struct soft_cpu *cpu, const struct insn *in, uint8_t vector,
                                        enum sys_int_kind kind)
{
    struct event e = {.vector = vector,
                      .check_dpl = kind != SYS_INT_ICEBP,
                      .ext = kind == SYS_INT_ICEBP ? ERR_EXT : 0,
                      .flags = soft_get_rflags(cpu)};
    uint64_t rip = cpu->rip;
    soft_advance(cpu, in);
    enum soft_result r = deliver(cpu, &e);
    if (r != SOFT_OK) cpu->rip = rip;
    if (r == SOFT_OK && kind == SYS_INT_ICEBP) { /* one #DB for it and for what waits since MOV SS */
        cpu->dr[6] |= cpu->late_db;
        cpu->late_db = 0;
    }
    cpu->no_step_trap = r == SOFT_OK && !(cpu->rflags & FL_TF);
    return r;
}
