/* The dispatcher of system instructions, and those too small for a file of their own: segment register moves, flags, HLT, port I/O,
 * cache control (SDM vol. 2). */
#include "vmm/engine/soft/system.h"

#include "vmm/engine/soft/portio.h"

unsigned sys_opcode_at(const struct insn *in)
{
    unsigned i = 0;
    for (; i < in->len; i++) {
        uint8_t b = in->bytes[i];
        bool segment = b == 0x26 || b == 0x2e || b == 0x36 || b == 0x3e || b == 0x64 || b == 0x65;
        bool other = b == 0x66 || b == 0x67 || b == 0xf0 || b == 0xf2 || b == 0xf3;
        bool rex = in->code_size == 8 && (b & 0xf0) == 0x40;
        if (!segment && !other && !rex) break;
    }
    return i;
}

/* ---- segment registers ---- */

static enum soft_result load_sreg(struct soft_cpu *cpu, enum cpu_seg seg, uint16_t sel)
{
    enum soft_result r = soft_load_segment(cpu, seg, sel);
    if (r == SOFT_OK && seg == SEG_SS)
        cpu->irq_shadow = SHADOW_MOV_SS; /* the stack pointer comes with the next instruction */
    return r;
}

static enum soft_result mov_seg(struct soft_cpu *cpu, const struct insn *in)
{
    if (in->op[0].kind == OP_REG && in->op[0].reg_class == RC_SEG) {
        uint64_t sel = 0;
        if (in->op[0].reg == SEG_CS || in->op[0].reg >= SEG_COUNT) return soft_raise(cpu, EXC_UD);
        enum soft_result r = operand_read(cpu, in, 1, 2, &sel);
        if (r == SOFT_OK) r = load_sreg(cpu, (enum cpu_seg)in->op[0].reg, (uint16_t)sel);
        return sys_done_if(cpu, in, r);
    }
    if (in->op[1].reg >= SEG_COUNT) return soft_raise(cpu, EXC_UD);
    unsigned size = in->op[0].kind == OP_REG ? in->op[0].size : 2;
    return sys_done_if(cpu, in, operand_write(cpu, in, 0, size, cpu->seg[in->op[1].reg].selector));
}

static enum soft_result push_seg(struct soft_cpu *cpu, const struct insn *in)
{
    return sys_done_if(cpu, in, stack_push(cpu, cpu->seg[in->op[0].reg].selector, in->stack_size));
}

static enum soft_result pop_seg(struct soft_cpu *cpu, const struct insn *in)
{
    uint64_t sel = 0;
    enum soft_result r = stack_peek(cpu, 0, 2, &sel);
    if (r != SOFT_OK) return r;
    uint64_t sp = cpu->gpr[R_RSP] + in->stack_size, mask = stack_mask(cpu);
    r = load_sreg(cpu, (enum cpu_seg)in->op[0].reg, (uint16_t)sel);
    if (r != SOFT_OK) return r;
    /* The pop happened on the old stack: its width counts. */
    cpu->gpr[R_RSP] = (cpu->gpr[R_RSP] & ~mask) | (sp & mask);
    return sys_done(cpu, in);
}

/* LDS, LES, LFS, LGS, LSS: offset to a register, selector to the segment register. */
static enum soft_result load_far(struct soft_cpu *cpu, const struct insn *in, enum cpu_seg seg)
{
    uint64_t a, off, sel;
    unsigned size = in->op_size;
    enum soft_result r = operand_linear(cpu, in, 0, size + 2, ACC_READ, &a);
    if (r == SOFT_OK) r = soft_load_u64(cpu, a, &off, size);
    if (r == SOFT_OK) r = soft_load_u64(cpu, a + size, &sel, 2);
    if (r == SOFT_OK) r = soft_load_segment(cpu, seg, (uint16_t)sel);
    if (r == SOFT_OK) soft_gpr_write(cpu, in->op[0].reg & 15, off, size);
    return sys_done_if(cpu, in, r);
}

static enum soft_result segment_insn(struct soft_cpu *cpu, const struct insn *in)
{
    bool seg0 = in->op[0].kind == OP_REG && in->op[0].reg_class == RC_SEG;
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
        if (seg0 || (in->op[1].kind == OP_REG && in->op[1].reg_class == RC_SEG)) return mov_seg(cpu, in);
        return SOFT_NOT_MINE;
    case ZYDIS_MNEMONIC_PUSH: return seg0 ? push_seg(cpu, in) : SOFT_NOT_MINE;
    case ZYDIS_MNEMONIC_POP: return seg0 ? pop_seg(cpu, in) : SOFT_NOT_MINE;
    case ZYDIS_MNEMONIC_LDS: return load_far(cpu, in, SEG_DS);
    case ZYDIS_MNEMONIC_LES: return load_far(cpu, in, SEG_ES);
    case ZYDIS_MNEMONIC_LFS: return load_far(cpu, in, SEG_FS);
    case ZYDIS_MNEMONIC_LGS: return load_far(cpu, in, SEG_GS);
    case ZYDIS_MNEMONIC_LSS: return load_far(cpu, in, SEG_SS);
    default: return SOFT_NOT_MINE;
    }
}

/* ---- flags ---- */

static enum soft_result set_if(struct soft_cpu *cpu, const struct insn *in, bool on)
{
    if (soft_protected(cpu) && cpu->cpl > soft_iopl(cpu)) return sys_gp0(cpu);
    if (on && !cpu->if_flag) cpu->irq_shadow = SHADOW_STI;
    cpu->if_flag = on;
    return sys_done(cpu, in);
}

static enum soft_result set_ac(struct soft_cpu *cpu, const struct insn *in, bool on)
{
    if (!(cpu->cpuid.cr4_mask & CR4_SMAP) || cpu->cpl) return soft_raise(cpu, EXC_UD);
    uint64_t f = soft_get_rflags(cpu);
    soft_set_rflags(cpu, on ? f | FL_AC : f & ~(uint64_t)FL_AC);
    return sys_done(cpu, in);
}

static enum soft_result pushf(struct soft_cpu *cpu, const struct insn *in, unsigned size)
{
    uint64_t v = soft_get_rflags(cpu) & ~(uint64_t)(FL_RF | FL_VM);
    return sys_done_if(cpu, in, stack_push(cpu, v, size));
}

static enum soft_result popf(struct soft_cpu *cpu, const struct insn *in, unsigned size)
{
    uint64_t v, mask = FL_ARITH | FL_TF | FL_DF | FL_NT;
    if (size > 2) mask |= FL_AC | FL_ID;
    if (!cpu->cpl) mask |= FL_IOPL;
    if (cpu->cpl <= soft_iopl(cpu)) mask |= FL_IF;
    enum soft_result r = stack_peek(cpu, 0, size, &v);
    if (r != SOFT_OK) return r;
    stack_set_pointer(cpu, cpu->gpr[R_RSP] + size);
    soft_set_rflags(cpu, ((soft_get_rflags(cpu) & ~mask) | (v & mask)) & ~(uint64_t)FL_RF);
    return sys_done(cpu, in);
}

static enum soft_result flag_insn(struct soft_cpu *cpu, const struct insn *in)
{
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_CLI: return set_if(cpu, in, false);
    case ZYDIS_MNEMONIC_STI: return set_if(cpu, in, true);
    case ZYDIS_MNEMONIC_CLAC: return set_ac(cpu, in, false);
    case ZYDIS_MNEMONIC_STAC: return set_ac(cpu, in, true);
    case ZYDIS_MNEMONIC_PUSHF: return pushf(cpu, in, 2);
    case ZYDIS_MNEMONIC_PUSHFD: return pushf(cpu, in, 4);
    case ZYDIS_MNEMONIC_PUSHFQ: return pushf(cpu, in, 8);
    case ZYDIS_MNEMONIC_POPF: return popf(cpu, in, 2);
    case ZYDIS_MNEMONIC_POPFD: return popf(cpu, in, 4);
    case ZYDIS_MNEMONIC_POPFQ: return popf(cpu, in, 8);
    default: return SOFT_NOT_MINE;
    }
}

/* ---- ports ---- */

static uint16_t port_of(const struct soft_cpu *cpu, const struct insn_op *o)
{
    return o->kind == OP_IMM ? (uint8_t)o->imm : (uint16_t)cpu->gpr[R_RDX];
}

static enum soft_result in_insn(struct soft_cpu *cpu, const struct insn *in)
{
    uint32_t v = 0;
    unsigned size = in->op[0].size;
    enum soft_result r = soft_port_read(cpu, port_of(cpu, &in->op[1]), size, &v);
    if (r == SOFT_OK) soft_gpr_write(cpu, R_RAX, v, size);
    if (r == SOFT_EXIT && soft_code64(cpu) && !(cpu->rflags & FL_TF) && !(cpu->dr[7] & 0xff) && !cpu->irq_shadow) {
        cpu->io.in = true;
        cpu->io.in_next = in->rip + in->len;
    }
    return sys_done_if(cpu, in, r);
}

static enum soft_result out_insn(struct soft_cpu *cpu, const struct insn *in)
{
    enum soft_result r = soft_port_write(cpu, port_of(cpu, &in->op[0]), in->op[1].size, (uint32_t)cpu->gpr[R_RAX]);
    if (r == SOFT_EXIT) soft_advance(cpu, in);
    return r;
}

/* ---- the rest ---- */

static enum soft_result hlt(struct soft_cpu *cpu, const struct insn *in)
{
    if (sys_privileged(cpu)) return SOFT_FAULT;
    soft_advance(cpu, in);
    cpu->halted = true;
    cpu->exit->kind = VCPU_EXIT_HLT;
    return SOFT_EXIT;
}

static enum soft_result privileged_nop(struct soft_cpu *cpu, const struct insn *in)
{
    return sys_privileged(cpu) ? SOFT_FAULT : sys_done(cpu, in);
}

/* Flushing a line is checked like a byte load; the host's caches are coherent, so nothing else is to do. */
static enum soft_result cache_line(struct soft_cpu *cpu, const struct insn *in)
{
    uint64_t a;
    uint8_t *host;
    gpa_t gpa;
    enum soft_result r = operand_linear(cpu, in, 0, 1, ACC_READ, &a);
    if (r == SOFT_OK) r = soft_tlb_lookup(cpu, GVA(a), ACC_READ, (enum soft_mmu_idx)cpu->mmu_idx, &host, &gpa);
    return sys_done_if(cpu, in, r);
}

/* There are none, and that is the answer, as the interface has it (cpuid.c, make_hypervisor): -ENOSYS, or -EPERM outside ring 0. */
static enum soft_result hypercall(struct soft_cpu *cpu, const struct insn *in)
{
    if (!cpu->cpuid.hyper[1][0]) return soft_raise(cpu, EXC_UD);
    uint64_t none = cpu->cpl ? (uint64_t)-1 : (uint64_t)-1000;
    soft_gpr_write(cpu, R_RAX, none, in->code_size == 8 ? 8 : 4);
    return sys_done(cpu, in);
}

static enum soft_result misc_insn(struct soft_cpu *cpu, const struct insn *in)
{
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_IN: return in_insn(cpu, in);
    case ZYDIS_MNEMONIC_OUT: return out_insn(cpu, in);
    case ZYDIS_MNEMONIC_HLT: return hlt(cpu, in);
    case ZYDIS_MNEMONIC_SERIALIZE: return sys_done(cpu, in); /* every instruction that comes here is in order already */
    case ZYDIS_MNEMONIC_INVD:
    case ZYDIS_MNEMONIC_WBINVD: return privileged_nop(cpu, in);
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB: return cache_line(cpu, in);
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_VMMCALL: return hypercall(cpu, in);
    /* Not there, or not offered: see cpuid.c. */
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
    case ZYDIS_MNEMONIC_MONITOR:
    case ZYDIS_MNEMONIC_MWAIT:
    case ZYDIS_MNEMONIC_MONITORX:
    case ZYDIS_MNEMONIC_MWAITX:
    case ZYDIS_MNEMONIC_RSM:
    case ZYDIS_MNEMONIC_CLZERO:
    case ZYDIS_MNEMONIC_RDPRU:
    case ZYDIS_MNEMONIC_RDPKRU:
    case ZYDIS_MNEMONIC_WRPKRU: return soft_raise(cpu, EXC_UD);
    default: return SOFT_NOT_MINE;
    }
}

soft_handler *const soft_handlers[SOFT_HANDLERS] = {
    soft_general_insn, fastcall_insn, flag_insn,  transfer_insn, msr_insn,        misc_insn,
    control_insn,      segment_insn,  xsave_insn, cpuid_insn,    descriptor_insn,
};

enum soft_result soft_system_insn(struct soft_cpu *cpu, const struct insn *in)
{
    for (unsigned i = 1; i < SOFT_HANDLERS; i++) {
        enum soft_result r = soft_handlers[i](cpu, in);
        if (r != SOFT_NOT_MINE) return r;
    }
    return SOFT_NOT_MINE;
}
