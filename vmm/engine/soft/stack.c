/* Near calls and everything that pushes and pops, for all stack widths. An instruction that faults leaves the stack pointer where it was. */
#include "vmm/engine/soft/general.h"

static enum soft_result stack_linear(struct soft_cpu *cpu, uint64_t off, unsigned size, enum soft_access acc,
                                     uint64_t *linear)
{
    return soft_linear(cpu, SEG_SS, off & size_mask(soft_stack_width(cpu)), size, acc, linear);
}

static enum soft_result store_at(struct soft_cpu *cpu, uint64_t off, uint64_t v, unsigned size)
{
    uint64_t a;
    enum soft_result r = stack_linear(cpu, off, size, ACC_WRITE, &a);
    return r == SOFT_OK ? soft_store_u64(cpu, a, v, size) : r;
}

static enum soft_result probe_at(struct soft_cpu *cpu, uint64_t off, unsigned size)
{
    uint64_t a;
    enum soft_result r = stack_linear(cpu, off, size, ACC_WRITE, &a);
    return r == SOFT_OK ? soft_probe_store(cpu, GVA(a), size, (enum soft_mmu_idx)cpu->mmu_idx) : r;
}

static enum soft_result load_at(struct soft_cpu *cpu, uint64_t off, uint64_t *v, unsigned size)
{
    uint64_t a;
    enum soft_result r = stack_linear(cpu, off, size, ACC_READ, &a);
    return r == SOFT_OK ? soft_load_u64(cpu, a, v, size) : r;
}

static void set_sp(struct soft_cpu *cpu, uint64_t v)
{
    soft_gpr_write(cpu, R_RSP, v, soft_stack_width(cpu));
}

enum soft_result soft_stack_push(struct soft_cpu *cpu, uint64_t v, unsigned size)
{
    uint64_t sp = cpu->gpr[R_RSP] - size;
    enum soft_result r = store_at(cpu, sp, v, size);
    if (r == SOFT_OK) set_sp(cpu, sp);
    return r;
}

enum soft_result soft_stack_peek(struct soft_cpu *cpu, uint32_t skip, uint64_t *v, unsigned size)
{
    return load_at(cpu, cpu->gpr[R_RSP] + skip, v, size);
}

void soft_stack_add(struct soft_cpu *cpu, uint64_t n)
{
    set_sp(cpu, cpu->gpr[R_RSP] + n);
}

static enum soft_result push(struct soft_cpu *cpu, const struct insn *in)
{
    const struct insn_op *o = &in->op[0];
    uint64_t v;
    if (o->kind == OP_REG && o->reg_class != RC_GPR) return SOFT_NOT_MINE;
    enum soft_result r = soft_operand_read(cpu, in, o, in->stack_size, &v);
    if (r == SOFT_OK) r = soft_stack_push(cpu, v, in->stack_size);
    if (r == SOFT_OK) soft_advance(cpu, in);
    return r;
}

static enum soft_result pop(struct soft_cpu *cpu, const struct insn *in)
{
    const struct insn_op *o = &in->op[0];
    unsigned size = in->stack_size;
    uint64_t v, a, sp = cpu->gpr[R_RSP];
    if (o->kind == OP_REG && o->reg_class != RC_GPR) return SOFT_NOT_MINE;
    enum soft_result r = soft_stack_peek(cpu, 0, &v, size);
    if (r != SOFT_OK) return r;
    soft_stack_add(cpu, size); /* before the operand: POP SP takes the value, POP [SP+n] counts from the new SP */
    if (o->kind == OP_REG) {
        soft_gpr_write(cpu, o->reg, v, size);
    } else {
        r = soft_linear(cpu, (enum cpu_seg)in->mem.seg, soft_effective_address(cpu, in), size, ACC_WRITE, &a);
        if (r == SOFT_OK) r = soft_store_u64(cpu, a, v, size);
        if (r != SOFT_OK) {
            cpu->gpr[R_RSP] = sp;
            return r;
        }
    }
    soft_advance(cpu, in);
    return SOFT_OK;
}

static enum soft_result pusha(struct soft_cpu *cpu, const struct insn *in)
{
    unsigned size = in->mnemonic == ZYDIS_MNEMONIC_PUSHAD ? 4 : 2;
    uint64_t sp = cpu->gpr[R_RSP];
    for (unsigned i = 0; i < 8; i++) {
        enum soft_result r = probe_at(cpu, sp - (i + 1) * size, size);
        if (r != SOFT_OK) return r;
    }
    for (unsigned i = 0; i < 8; i++) { /* RSP itself with the value before the first push: it moves only at the end */
        enum soft_result r = store_at(cpu, sp - (i + 1) * size, cpu->gpr[i], size);
        if (r != SOFT_OK) return r;
    }
    set_sp(cpu, sp - 8 * size);
    soft_advance(cpu, in);
    return SOFT_OK;
}

static enum soft_result popa(struct soft_cpu *cpu, const struct insn *in)
{
    unsigned size = in->mnemonic == ZYDIS_MNEMONIC_POPAD ? 4 : 2;
    uint64_t v[8];
    for (unsigned i = 0; i < 8; i++) {
        enum soft_result r = soft_stack_peek(cpu, i * size, &v[7 - i], size);
        if (r != SOFT_OK) return r;
    }
    for (unsigned i = 0; i < 8; i++)
        if (i != R_RSP) soft_gpr_write(cpu, i, v[i], size);
    soft_stack_add(cpu, 8 * size);
    soft_advance(cpu, in);
    return SOFT_OK;
}

/* The pushes of ENTER, or (`probe`) only the question whether they and the loads between them would fault. */
static enum soft_result enter_frame(struct soft_cpu *cpu, unsigned size, unsigned level, uint64_t frame_size,
                                    bool probe)
{
    uint64_t sp = cpu->gpr[R_RSP] - size, bp = cpu->gpr[R_RBP], frame = sp, v;
    enum soft_result r = probe ? probe_at(cpu, sp, size) : store_at(cpu, sp, bp, size);
    for (unsigned i = 1; r == SOFT_OK && i < level; i++) {
        bp -= size;
        sp -= size;
        r = load_at(cpu, bp, &v, size);
        if (r == SOFT_OK) r = probe ? probe_at(cpu, sp, size) : store_at(cpu, sp, v, size);
    }
    if (r == SOFT_OK && level) {
        sp -= size;
        r = probe ? probe_at(cpu, sp, size) : store_at(cpu, sp, frame, size);
    }
    if (r != SOFT_OK || probe) return r;
    soft_gpr_write(cpu, R_RBP, frame, size);
    set_sp(cpu, sp - frame_size);
    return SOFT_OK;
}

static enum soft_result enter(struct soft_cpu *cpu, const struct insn *in)
{
    unsigned size = in->stack_size, level = in->op[1].imm & 31;
    uint64_t frame_size = in->op[0].imm & 0xffff;
    uint64_t last = cpu->gpr[R_RSP] - size - (uint64_t)level * size - frame_size;
    enum soft_result r = enter_frame(cpu, size, level, frame_size, true);
    if (r == SOFT_OK) r = probe_at(cpu, last, size); /* SDM: faults when a write at the final stack pointer would */
    cpu->io.next = 0; /* the display in MMIO space: what the probe read is read again, from the replay */
    if (r == SOFT_OK) r = enter_frame(cpu, size, level, frame_size, false);
    if (r == SOFT_OK) soft_advance(cpu, in);
    return r;
}

static enum soft_result leave(struct soft_cpu *cpu, const struct insn *in)
{
    uint64_t v, bp = cpu->gpr[R_RBP];
    enum soft_result r = load_at(cpu, bp, &v, in->stack_size);
    if (r != SOFT_OK) return r;
    set_sp(cpu, bp + in->stack_size);
    soft_gpr_write(cpu, R_RBP, v, in->stack_size);
    soft_advance(cpu, in);
    return SOFT_OK;
}

/* The target is checked before anything is pushed: a call that faults has not called. */
static enum soft_result call(struct soft_cpu *cpu, const struct insn *in)
{
    unsigned size = in->code_size == 8 ? 8 : in->stack_size;
    uint64_t next = in->rip + in->len, target;
    if (in->op[0].kind == OP_IMM) {
        target = next + in->op[0].imm;
    } else {
        enum soft_result r = soft_operand_read(cpu, in, &in->op[0], size, &target);
        if (r != SOFT_OK) return r;
    }
    enum soft_result r = soft_near_jump(cpu, target, size);
    if (r != SOFT_OK) return r;
    r = soft_stack_push(cpu, next & size_mask(size), size);
    if (r != SOFT_OK) cpu->rip = in->rip;
    return r;
}

static enum soft_result ret(struct soft_cpu *cpu, const struct insn *in)
{
    unsigned size = in->code_size == 8 ? 8 : in->stack_size;
    uint64_t target;
    enum soft_result r = soft_stack_peek(cpu, 0, &target, size);
    if (r == SOFT_OK) r = soft_near_jump(cpu, target, size);
    if (r == SOFT_OK) soft_stack_add(cpu, size + (in->ops && in->op[0].kind == OP_IMM ? in->op[0].imm & 0xffff : 0));
    return r;
}

enum soft_result soft_stack_insn(struct soft_cpu *cpu, const struct insn *in)
{
    struct raw_insn raw;
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_PUSH: return push(cpu, in);
    case ZYDIS_MNEMONIC_POP: return pop(cpu, in);
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD: return pusha(cpu, in);
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD: return popa(cpu, in);
    case ZYDIS_MNEMONIC_ENTER: return enter(cpu, in);
    case ZYDIS_MNEMONIC_LEAVE: return leave(cpu, in);
    case ZYDIS_MNEMONIC_CALL:
        raw = soft_raw_insn(in);
        return raw.opcode == 0xe8 || (raw.opcode == 0xff && (raw.modrm >> 3 & 7) == 2) ? call(cpu, in) : SOFT_NOT_MINE;
    case ZYDIS_MNEMONIC_RET:
        raw = soft_raw_insn(in);
        return raw.opcode == 0xc2 || raw.opcode == 0xc3 ? ret(cpu, in) : SOFT_NOT_MINE;
    default: return SOFT_NOT_MINE;
    }
}
