/* Far transfers: JMP, CALL, RET, IRET and INT in every mode (SDM vol. 2 CALL, IRET, JMP, RET; vol. 3 5.8). */
#include "vmm/engine/soft/system.h"

/* A code segment that was found good to go to. */
struct code_target {
    struct soft_desc desc;
    uint16_t cs;
    unsigned cpl;
    uint64_t rip;
};

static uint64_t truncate_to(uint64_t v, unsigned size)
{
    return size == 8 ? v : size == 4 ? (uint32_t)v : (uint16_t)v;
}

static enum soft_result gp_sel(struct soft_cpu *cpu, uint16_t sel)
{
    return soft_raise_err(cpu, EXC_GP, sel & ~3u);
}

/* L and D together are reserved in long mode (SDM vol. 3 5.2.1). */
static bool code_mode_bad(const struct soft_cpu *cpu, const struct soft_desc *d)
{
    return soft_long_mode(cpu) && (d->attr & SEG_ATTR_L) && (d->attr & SEG_ATTR_DB);
}

static bool goes_to_64(const struct soft_cpu *cpu, const struct soft_desc *d)
{
    return soft_long_mode(cpu) && (d->attr & SEG_ATTR_L);
}

static enum soft_result check_rip(struct soft_cpu *cpu, const struct code_target *t)
{
    bool good = goes_to_64(cpu, &t->desc) ? soft_canonical(t->rip) : t->rip <= t->desc.limit;
    return good ? SOFT_OK : sys_gp0(cpu);
}

/* Presence, then RIP: the last checks of every transfer. */
static enum soft_result check_present_and_rip(struct soft_cpu *cpu, uint16_t sel, struct code_target *t)
{
    if (!desc_present(&t->desc)) return soft_raise_err(cpu, EXC_NP, sel & ~3u);
    enum soft_result r = check_rip(cpu, t);
    return r == SOFT_OK ? desc_set_type(cpu, &t->desc, TYPE_ACCESSED) : r;
}

static void enter_code(struct soft_cpu *cpu, const struct code_target *t)
{
    segment_set(&cpu->seg[SEG_CS], t->cs, &t->desc);
    cpu->cpl = (uint8_t)t->cpl;
    cpu->rip = t->rip;
}

/* ---- far pointers ---- */

static enum soft_result read_far_pointer(struct soft_cpu *cpu, const struct insn *in, uint16_t *sel, uint64_t *off)
{
    if (in->op[0].kind == OP_FAR) {
        *sel = in->far_selector;
        *off = truncate_to(in->op[0].imm, in->op_size);
        return SOFT_OK;
    }
    uint64_t a, s = 0;
    unsigned size = in->op_size;
    enum soft_result r = operand_linear(cpu, in, 0, size + 2, ACC_READ, &a);
    if (r == SOFT_OK) r = soft_load_u64(cpu, a, off, size);
    if (r == SOFT_OK) r = soft_load_u64(cpu, a + size, &s, 2);
    *sel = (uint16_t)s;
    return r;
}

/* Stores return CS:RIP in one piece on the current stack and moves the pointer. */
static enum soft_result push_return(struct soft_cpu *cpu, uint64_t rip, unsigned size)
{
    uint64_t cs = cpu->seg[SEG_CS].selector, a;
    uint64_t sp = (cpu->gpr[R_RSP] - 2 * size) & stack_mask(cpu);
    uint8_t frame[16];
    soft_copy(frame, &rip, size);
    soft_copy(frame + size, &cs, size);
    enum soft_result r = soft_linear(cpu, SEG_SS, sp, 2 * size, ACC_WRITE, &a);
    if (r == SOFT_OK) r = soft_store(cpu, GVA(a), frame, 2 * size, (enum soft_mmu_idx)cpu->mmu_idx);
    if (r == SOFT_OK) stack_set_pointer(cpu, sp);
    return r;
}

static uint64_t next_rip(const struct insn *in)
{
    return truncate_to(in->rip + in->len, in->code_size);
}

/* ---- JMP and CALL ---- */

/* Directly to a code segment: no change of privilege (SDM vol. 3 5.8.1). */
static enum soft_result direct_target(struct soft_cpu *cpu, uint16_t sel, struct code_target *t)
{
    unsigned dpl = desc_dpl(&t->desc);
    bool bad = desc_conforming(&t->desc) ? dpl > cpu->cpl : (sel & 3u) > cpu->cpl || dpl != cpu->cpl;
    if (bad || code_mode_bad(cpu, &t->desc)) return gp_sel(cpu, sel);
    t->cpl = cpu->cpl;
    t->cs = (uint16_t)((sel & ~3u) | cpu->cpl);
    return check_present_and_rip(cpu, sel, t);
}

static enum soft_result go_direct(struct soft_cpu *cpu, const struct insn *in, uint16_t sel, struct code_target *t,
                                  bool call)
{
    enum soft_result r = direct_target(cpu, sel, t);
    if (r == SOFT_OK && call) r = push_return(cpu, next_rip(in), in->op_size);
    if (r == SOFT_OK) enter_code(cpu, t);
    return r;
}

struct call_gate {
    uint16_t selector;
    unsigned size, params;
};

/* The gate itself (SDM vol. 3 5.8.3, 5.8.4). */
static enum soft_result read_call_gate(struct soft_cpu *cpu, uint16_t sel, struct call_gate *g, struct code_target *t)
{
    struct soft_desc d;
    enum soft_result r = desc_read_system(cpu, sel, EXC_GP, 0, &d);
    if (r != SOFT_OK) return r;
    bool lm = soft_long_mode(cpu);
    if (lm && (d.raw_high >> 40 & 0x1f)) return gp_sel(cpu, sel);
    if (desc_dpl(&d) < cpu->cpl || (sel & 3u) > desc_dpl(&d)) return gp_sel(cpu, sel);
    if (!desc_present(&d)) return soft_raise_err(cpu, EXC_NP, sel & ~3u);
    g->selector = (uint16_t)(d.raw >> 16);
    g->size = lm ? 8 : desc_type(&d) == TYPE_CALL ? 4 : 2;
    g->params = lm ? 0 : (d.raw >> 32) & 31;
    t->rip = (d.raw & 0xffff) | (d.raw >> 32 & 0xffff0000u) | (lm ? d.raw_high << 32 : 0);
    t->rip = truncate_to(t->rip, g->size);
    return SOFT_OK;
}

static enum soft_result gate_code(struct soft_cpu *cpu, uint16_t sel, bool call, struct code_target *t)
{
    if (selector_is_null(sel)) return sys_gp0(cpu);
    enum soft_result r = desc_read(cpu, sel, EXC_GP, 0, &t->desc);
    if (r != SOFT_OK) return r;
    unsigned dpl = desc_dpl(&t->desc);
    bool conforming = desc_conforming(&t->desc);
    if (!desc_is_code(&t->desc) || dpl > cpu->cpl || (!call && !conforming && dpl != cpu->cpl)) return gp_sel(cpu, sel);
    if (soft_long_mode(cpu) && (t->desc.attr & (SEG_ATTR_L | SEG_ATTR_DB)) != SEG_ATTR_L) return gp_sel(cpu, sel);
    t->cpl = conforming ? cpu->cpl : dpl;
    t->cs = (uint16_t)((sel & ~3u) | t->cpl);
    return check_present_and_rip(cpu, sel, t);
}

/* To an inner ring in long mode: RSP from the TSS, SS null (SDM vol. 3 5.8.5.1). */
static enum soft_result call_inner64(struct soft_cpu *cpu, const struct insn *in, const struct code_target *t)
{
    uint64_t rsp = 0;
    enum soft_result r = sys_tss_stack64(cpu, 4 + 8 * t->cpl, 0, &rsp);
    if (r != SOFT_OK) return r;
    uint64_t frame[4] = {next_rip(in), cpu->seg[SEG_CS].selector, cpu->gpr[R_RSP], cpu->seg[SEG_SS].selector};
    rsp -= sizeof frame;
    if (!soft_canonical(rsp)) return soft_raise_err(cpu, EXC_SS, 0);
    r = soft_store(cpu, GVA(rsp), frame, sizeof frame, sys_stack_idx(cpu, t->cpl));
    if (r != SOFT_OK) return r;
    segment_set_null(&cpu->seg[SEG_SS], (uint16_t)t->cpl);
    cpu->gpr[R_RSP] = rsp;
    enter_code(cpu, t);
    return SOFT_OK;
}

struct outer_frame {
    uint8_t bytes[(4 + 31) * 4];
    uint32_t used;
};

static void frame_add(struct outer_frame *f, uint32_t v, unsigned size)
{
    soft_copy(f->bytes + f->used, &v, size);
    f->used += size;
}

/* RIP, CS, the parameters, ESP, SS: from low to high addresses. */
static enum soft_result build_inner_frame(struct soft_cpu *cpu, const struct insn *in, const struct call_gate *g,
                                          struct outer_frame *f)
{
    f->used = 0;
    frame_add(f, (uint32_t)next_rip(in), g->size);
    frame_add(f, cpu->seg[SEG_CS].selector, g->size);
    for (unsigned i = 0; i < g->params; i++) {
        uint64_t v;
        enum soft_result r = stack_peek(cpu, i * g->size, g->size, &v);
        if (r != SOFT_OK) return r;
        frame_add(f, (uint32_t)v, g->size);
    }
    frame_add(f, (uint32_t)cpu->gpr[R_RSP], g->size);
    frame_add(f, cpu->seg[SEG_SS].selector, g->size);
    return SOFT_OK;
}

static enum soft_result call_inner32(struct soft_cpu *cpu, const struct insn *in, const struct call_gate *g,
                                     const struct code_target *t)
{
    uint16_t ss = 0;
    uint32_t esp;
    struct soft_desc d;
    struct cpu_segment stack;
    struct outer_frame f;
    enum soft_result r = sys_tss_stack(cpu, t->cpl, 0, &ss, &esp);
    if (r != SOFT_OK) return r;
    if (selector_is_null(ss)) return soft_raise_err(cpu, EXC_TS, 0);
    r = stack_segment_check(cpu, ss, t->cpl, EXC_TS, 0, &d);
    if (r == SOFT_OK) r = build_inner_frame(cpu, in, g, &f);
    if (r != SOFT_OK) return r;
    segment_set(&stack, ss, &d);
    uint64_t sp = esp, a;
    r = sys_frame(cpu, &stack, &sp, f.used, ss & ~3u, &a);
    if (r == SOFT_OK) r = soft_store(cpu, GVA(a), f.bytes, f.used, sys_stack_idx(cpu, t->cpl));
    if (r != SOFT_OK) return r;
    cpu->seg[SEG_SS] = stack;
    cpu->gpr[R_RSP] = sp;
    enter_code(cpu, t);
    return SOFT_OK;
}

static enum soft_result go_gate(struct soft_cpu *cpu, const struct insn *in, uint16_t sel, bool call)
{
    struct call_gate g = {0, 0, 0};
    struct code_target t;
    enum soft_result r = read_call_gate(cpu, sel, &g, &t);
    if (r == SOFT_OK) r = gate_code(cpu, g.selector, call, &t);
    if (r != SOFT_OK) return r;
    if (t.cpl < cpu->cpl) return soft_long_mode(cpu) ? call_inner64(cpu, in, &t) : call_inner32(cpu, in, &g, &t);
    if (call) r = push_return(cpu, next_rip(in), g.size);
    if (r == SOFT_OK) enter_code(cpu, &t);
    return r;
}

/* A TSS or task gate as target: only outside long mode (SDM vol. 3 7.3). */
static enum soft_result go_task(struct soft_cpu *cpu, const struct insn *in, uint16_t sel, const struct soft_desc *d,
                                bool call)
{
    if (desc_dpl(d) < cpu->cpl || desc_dpl(d) < (sel & 3u)) return gp_sel(cpu, sel);
    if (!desc_present(d)) return soft_raise_err(cpu, EXC_NP, sel & ~3u);
    uint16_t tss = desc_type(d) == TYPE_TASK_GATE ? (uint16_t)(d->raw >> 16) : sel;
    uint64_t rip = cpu->rip;
    cpu->rip = next_rip(in); /* what the outgoing task goes on with */
    enum soft_result r = task_switch(cpu, tss, call ? TASK_CALL : TASK_JMP, 0, false, 0);
    if (r == SOFT_FAULT && cpu->rip == next_rip(in)) cpu->rip = rip;
    return r;
}

static enum soft_result go_system(struct soft_cpu *cpu, const struct insn *in, uint16_t sel, const struct soft_desc *d,
                                  bool call)
{
    bool lm = soft_long_mode(cpu);
    switch (d->attr & SEG_ATTR_S ? 0xff : desc_type(d)) {
    case TYPE_CALL: return go_gate(cpu, in, sel, call);
    case TYPE_CALL16:
        if (!lm) return go_gate(cpu, in, sel, call);
        break;
    case TYPE_TSS:
    case TYPE_TASK_GATE:
    case TYPE_TSS_BUSY:
        if (!lm) return go_task(cpu, in, sel, d, call);
        break;
    default: break;
    }
    return gp_sel(cpu, sel);
}

static enum soft_result far_real(struct soft_cpu *cpu, const struct insn *in, uint16_t sel, uint64_t off, bool call)
{
    if (off > cpu->seg[SEG_CS].limit) return sys_gp0(cpu);
    enum soft_result r = call ? push_return(cpu, next_rip(in), in->op_size) : SOFT_OK;
    if (r != SOFT_OK) return r;
    segment_set_real(&cpu->seg[SEG_CS], sel);
    cpu->rip = off;
    return SOFT_OK;
}

static enum soft_result far_jump_or_call(struct soft_cpu *cpu, const struct insn *in, bool call)
{
    uint16_t sel = 0;
    struct code_target t;
    t.rip = 0;
    enum soft_result r = read_far_pointer(cpu, in, &sel, &t.rip);
    if (r != SOFT_OK) return r;
    if (!soft_protected(cpu)) return far_real(cpu, in, sel, t.rip, call);
    if (selector_is_null(sel)) return sys_gp0(cpu);
    r = desc_read(cpu, sel, EXC_GP, 0, &t.desc);
    if (r != SOFT_OK) return r;
    return desc_is_code(&t.desc) ? go_direct(cpu, in, sel, &t, call) : go_system(cpu, in, sel, &t.desc, call);
}

/* ---- RET and IRET ---- */

/* The code segment that a return goes to (SDM vol. 2 RET, IRET): RPL becomes CPL. */
static enum soft_result return_target(struct soft_cpu *cpu, uint16_t sel, struct code_target *t)
{
    if (selector_is_null(sel)) return sys_gp0(cpu);
    enum soft_result r = desc_read(cpu, sel, EXC_GP, 0, &t->desc);
    if (r != SOFT_OK) return r;
    unsigned dpl = desc_dpl(&t->desc), rpl = sel & 3u;
    bool bad = !desc_is_code(&t->desc) || rpl < cpu->cpl || (desc_conforming(&t->desc) ? dpl > rpl : dpl != rpl);
    if (bad || code_mode_bad(cpu, &t->desc)) return gp_sel(cpu, sel);
    t->cpl = rpl;
    t->cs = sel;
    return check_present_and_rip(cpu, sel, t);
}

/* SS as a return pops it; null is for 64-bit code of rings 0 to 2 only. */
static enum soft_result return_stack(struct soft_cpu *cpu, uint16_t sel, const struct code_target *t,
                                     struct cpu_segment *ss)
{
    if (selector_is_null(sel)) {
        if (!goes_to_64(cpu, &t->desc) || t->cpl == 3 || (sel & 3u) != t->cpl) return sys_gp0(cpu);
        segment_set_null(ss, sel);
        return SOFT_OK;
    }
    struct soft_desc d;
    enum soft_result r = stack_segment_check(cpu, sel, t->cpl, EXC_GP, 0, &d);
    if (r == SOFT_OK) segment_set(ss, sel, &d);
    return r;
}

/* Data segments that the outer ring may not have are taken away (SDM vol. 3 5.8.6). */
static void drop_inner_segments(struct soft_cpu *cpu)
{
    static const uint8_t which[4] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    for (unsigned i = 0; i < 4; i++) {
        struct cpu_segment *s = &cpu->seg[which[i]];
        if (s->attr & SEG_ATTR_NULL) continue;
        bool conforming = (s->attr & TYPE_CODE) && (s->attr & TYPE_CONFORMING);
        unsigned dpl = (s->attr >> SEG_ATTR_DPL_SHIFT) & 3;
        if (conforming || dpl >= cpu->cpl) continue;
        s->selector = 0; /* the base stays, and in 64-bit mode counts: FS and GS */
        s->attr = SEG_ATTR_NULL;
    }
}

/* Loads CS:RIP and SS:RSP of a return to an outer ring, or of any IRET from 64-bit code. A 16-bit stack gets only its
 * 16 bits of the pointer, as on hardware (guests know it as the espfix problem). */
static void enter_with_stack(struct soft_cpu *cpu, const struct code_target *t, const struct cpu_segment *ss,
                             uint64_t rsp)
{
    bool outer = t->cpl > cpu->cpl;
    cpu->seg[SEG_SS] = *ss;
    enter_code(cpu, t);
    if (soft_code64(cpu))
        cpu->gpr[R_RSP] = rsp;
    else if (ss->attr & SEG_ATTR_DB)
        cpu->gpr[R_RSP] = (uint32_t)rsp;
    else
        cpu->gpr[R_RSP] = (cpu->gpr[R_RSP] & ~0xffffull) | (uint16_t)rsp;
    if (outer) drop_inner_segments(cpu);
}

static enum soft_result ret_outer(struct soft_cpu *cpu, const struct insn *in, uint16_t imm,
                                  const struct code_target *t)
{
    unsigned n = in->op_size;
    uint64_t rsp, sel;
    struct cpu_segment ss;
    enum soft_result r = stack_peek(cpu, 2 * n + imm, n, &rsp);
    if (r == SOFT_OK) r = stack_peek(cpu, 3 * n + imm, n, &sel);
    if (r == SOFT_OK) r = return_stack(cpu, (uint16_t)sel, t, &ss);
    if (r != SOFT_OK) return r;
    enter_with_stack(cpu, t, &ss, rsp);
    stack_set_pointer(cpu, cpu->gpr[R_RSP] + imm);
    return SOFT_OK;
}

static enum soft_result ret_far(struct soft_cpu *cpu, const struct insn *in)
{
    unsigned n = in->op_size;
    uint16_t imm = in->ops && in->op[0].kind == OP_IMM ? (uint16_t)in->op[0].imm : 0;
    uint64_t sel;
    struct code_target t;
    enum soft_result r = stack_peek(cpu, 0, n, &t.rip);
    if (r == SOFT_OK) r = stack_peek(cpu, n, n, &sel);
    if (r != SOFT_OK) return r;
    if (!soft_protected(cpu)) {
        if (t.rip > cpu->seg[SEG_CS].limit) return sys_gp0(cpu);
        segment_set_real(&cpu->seg[SEG_CS], (uint16_t)sel);
        cpu->rip = t.rip;
    } else {
        r = return_target(cpu, (uint16_t)sel, &t);
        if (r != SOFT_OK) return r;
        if (t.cpl > cpu->cpl) return ret_outer(cpu, in, imm, &t);
        stack_set_pointer(cpu, cpu->gpr[R_RSP] + 2 * n + imm);
        enter_code(cpu, &t);
        return SOFT_OK;
    }
    stack_set_pointer(cpu, cpu->gpr[R_RSP] + 2 * n + imm);
    return SOFT_OK;
}

/* Which flags an IRET of `size` bytes at the current CPL may change (SDM vol. 2 IRET). */
static uint64_t iret_flags_mask(const struct soft_cpu *cpu, unsigned size)
{
    uint64_t m = FL_ARITH | FL_TF | FL_DF | FL_NT;
    if (size > 2) m |= FL_RF | FL_AC | FL_ID;
    if (!cpu->cpl) m |= FL_IOPL;
    if (cpu->cpl <= soft_iopl(cpu)) m |= FL_IF;
    return m;
}

static void set_flags(struct soft_cpu *cpu, uint64_t mask, uint64_t v)
{
    soft_set_rflags(cpu, (soft_get_rflags(cpu) & ~mask) | (v & mask));
}

static enum soft_result iret_real(struct soft_cpu *cpu, unsigned n)
{
    uint64_t w[3];
    for (unsigned i = 0; i < 3; i++) {
        enum soft_result r = stack_peek(cpu, i * n, n, &w[i]);
        if (r != SOFT_OK) return r;
    }
    if (w[0] > cpu->seg[SEG_CS].limit) return sys_gp0(cpu);
    stack_set_pointer(cpu, cpu->gpr[R_RSP] + 3 * n);
    segment_set_real(&cpu->seg[SEG_CS], (uint16_t)w[1]);
    cpu->rip = w[0];
    set_flags(cpu, iret_flags_mask(cpu, n), w[2]);
    return SOFT_OK;
}

/* With SS:RSP in the frame: to an outer ring, or from 64-bit code. */
static enum soft_result iret_with_stack(struct soft_cpu *cpu, unsigned n, const struct code_target *t)
{
    uint64_t rsp, sel;
    struct cpu_segment ss;
    enum soft_result r = stack_peek(cpu, 3 * n, n, &rsp);
    if (r == SOFT_OK) r = stack_peek(cpu, 4 * n, n, &sel);
    if (r == SOFT_OK) r = return_stack(cpu, (uint16_t)sel, t, &ss);
    if (r == SOFT_OK) enter_with_stack(cpu, t, &ss, rsp);
    return r;
}

static enum soft_result iret_protected(struct soft_cpu *cpu, unsigned n)
{
    uint64_t sel, flags;
    struct code_target t;
    enum soft_result r = stack_peek(cpu, 0, n, &t.rip);
    if (r == SOFT_OK) r = stack_peek(cpu, n, n, &sel);
    if (r == SOFT_OK) r = stack_peek(cpu, 2 * n, n, &flags);
    if (r != SOFT_OK) return r;
    /* Virtual-8086 mode isn't there: its bit can't be set. */
    if (n > 2 && (flags & FL_VM) && !cpu->cpl && !soft_long_mode(cpu)) return sys_gp0(cpu);
    r = return_target(cpu, (uint16_t)sel, &t);
    if (r != SOFT_OK) return r;
    uint64_t mask = iret_flags_mask(cpu, n);
    if (soft_code64(cpu) || t.cpl > cpu->cpl) {
        r = iret_with_stack(cpu, n, &t);
        if (r != SOFT_OK) return r;
    } else {
        stack_set_pointer(cpu, cpu->gpr[R_RSP] + 3 * n);
        enter_code(cpu, &t);
    }
    set_flags(cpu, mask, flags);
    return SOFT_OK;
}

/* NT = 1: back to the task that the TSS links to. */
static enum soft_result iret_task(struct soft_cpu *cpu, const struct insn *in)
{
    uint16_t link = 0;
    if (soft_long_mode(cpu)) return sys_gp0(cpu);
    enum soft_result r = soft_load_sys(cpu, cpu->tr.base, &link, 2);
    if (r != SOFT_OK) return r;
    uint64_t rip = cpu->rip;
    cpu->rip = next_rip(in);
    r = task_switch(cpu, link, TASK_IRET, 0, false, 0);
    if (r == SOFT_FAULT && cpu->rip == next_rip(in)) cpu->rip = rip;
    return r;
}

static enum soft_result do_iret(struct soft_cpu *cpu, const struct insn *in, unsigned n)
{
    if (cpu->nmi_blocked) atomic_store_explicit(&cpu->exit_request, 1, memory_order_relaxed); /* one may be waiting */
    cpu->nmi_blocked = false; /* even if it faults (SDM vol. 3 25.3, "NMI unblocking due to IRET") */
    if (!soft_protected(cpu)) return iret_real(cpu, n);
    return cpu->rflags & FL_NT ? iret_task(cpu, in) : iret_protected(cpu, n);
}

/* ---- dispatch ---- */

static enum soft_result finish(struct soft_cpu *cpu, enum soft_result r)
{
    if (r == SOFT_OK) soft_update_mode(cpu);
    return r;
}

/* FF /3 and FF /5 are the far forms; with direct operands the kind tells. */
static bool is_far_branch(const struct insn *in)
{
    if (in->op[0].kind == OP_FAR) return true;
    unsigned i = sys_opcode_at(in);
    if (in->op[0].kind != OP_MEM || in->bytes[i] != 0xff) return false;
    unsigned reg = (in->bytes[i + 1] >> 3) & 7;
    return reg == 3 || reg == 5;
}

static bool is_far_return(const struct insn *in)
{
    uint8_t op = in->bytes[sys_opcode_at(in)];
    return op == 0xca || op == 0xcb;
}

enum soft_result transfer_insn(struct soft_cpu *cpu, const struct insn *in)
{
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_JMP: return is_far_branch(in) ? finish(cpu, far_jump_or_call(cpu, in, false)) : SOFT_NOT_MINE;
    case ZYDIS_MNEMONIC_CALL: return is_far_branch(in) ? finish(cpu, far_jump_or_call(cpu, in, true)) : SOFT_NOT_MINE;
    case ZYDIS_MNEMONIC_RET: return is_far_return(in) ? finish(cpu, ret_far(cpu, in)) : SOFT_NOT_MINE;
    case ZYDIS_MNEMONIC_IRET: return finish(cpu, do_iret(cpu, in, 2));
    case ZYDIS_MNEMONIC_IRETD: return finish(cpu, do_iret(cpu, in, 4));
    case ZYDIS_MNEMONIC_IRETQ: return finish(cpu, do_iret(cpu, in, 8));
    case ZYDIS_MNEMONIC_INT: return sys_software_interrupt(cpu, in, (uint8_t)in->op[0].imm, SYS_INT_N);
    case ZYDIS_MNEMONIC_INT3: return sys_software_interrupt(cpu, in, EXC_BP, SYS_INT_TRAP);
    case ZYDIS_MNEMONIC_INT1: return sys_software_interrupt(cpu, in, EXC_DB, SYS_INT_ICEBP);
    case ZYDIS_MNEMONIC_INTO:
        if (in->code_size == 8) return soft_raise(cpu, EXC_UD);
        if (cpu->rflags & FL_OF) return sys_software_interrupt(cpu, in, EXC_OF, SYS_INT_TRAP);
        return sys_done(cpu, in);
    default: return SOFT_NOT_MINE;
    }
}
