/* Descriptor-table registers, LDTR, TR, and the instructions that look at descriptors without using them
 * (SDM vol. 2 LGDT, SGDT, LLDT, SLDT, LTR, STR, LAR, LSL, VERR, ARPL; vol. 3 2.4, 5.10). */
#include "vmm/engine/soft/system.h"

static enum soft_result store_table(struct soft_cpu *cpu, const struct insn *in, const struct cpu_table *t)
{
    if ((cpu->cr4 & CR4_UMIP) && cpu->cpl) return sys_gp0(cpu);
    unsigned base_size = in->code_size == 8 ? 8 : 4;
    uint8_t image[10];
    uint64_t a;
    soft_copy(image, &t->limit, 2);
    soft_copy(image + 2, &t->base, base_size);
    enum soft_result r = operand_linear(cpu, in, 0, 2 + base_size, ACC_WRITE, &a);
    if (r == SOFT_OK) r = soft_store(cpu, GVA(a), image, 2 + base_size, (enum soft_mmu_idx)cpu->mmu_idx);
    return sys_done_if(cpu, in, r);
}

static enum soft_result load_table(struct soft_cpu *cpu, const struct insn *in, struct cpu_table *t)
{
    if (sys_privileged(cpu)) return SOFT_FAULT;
    bool wide = in->code_size == 8;
    uint8_t image[10];
    uint64_t a, base = 0;
    uint32_t size = wide ? 10 : 6;
    enum soft_result r = operand_linear(cpu, in, 0, size, ACC_READ, &a);
    if (r == SOFT_OK) r = soft_load(cpu, GVA(a), image, size, (enum soft_mmu_idx)cpu->mmu_idx);
    if (r != SOFT_OK) return r;
    soft_copy(&base, image + 2, size - 2);
    if (!wide && in->op_size == 2) base &= 0xffffff;
    if (wide && !soft_canonical(base)) return sys_gp0(cpu);
    soft_copy(&t->limit, image, 2);
    t->base = base;
    return sys_done(cpu, in);
}

static enum soft_result store_selector(struct soft_cpu *cpu, const struct insn *in, uint16_t sel)
{
    if (!soft_protected(cpu)) return soft_raise(cpu, EXC_UD);
    if ((cpu->cr4 & CR4_UMIP) && cpu->cpl) return sys_gp0(cpu);
    unsigned size = in->op[0].kind == OP_REG ? in->op_size : 2;
    return sys_done_if(cpu, in, operand_write(cpu, in, 0, size, sel));
}

/* What LLDT and LTR have in common: the selector operand and a system descriptor of the right kind in the GDT. */
static enum soft_result system_selector(struct soft_cpu *cpu, const struct insn *in, uint16_t *sel)
{
    uint64_t v = 0;
    if (!soft_protected(cpu)) return soft_raise(cpu, EXC_UD);
    if (sys_privileged(cpu)) return SOFT_FAULT;
    enum soft_result r = operand_read(cpu, in, 0, 2, &v);
    *sel = (uint16_t)v;
    return r;
}

static enum soft_result system_desc(struct soft_cpu *cpu, uint16_t sel, bool tss, struct soft_desc *d)
{
    uint32_t err = sel & ~3u;
    if (sel & 4) return soft_raise_err(cpu, EXC_GP, err);
    enum soft_result r = desc_read_system(cpu, sel, EXC_GP, 0, d);
    if (r != SOFT_OK) return r;
    unsigned type = desc_type(d);
    bool good = tss ? type == TYPE_TSS || (type == TYPE_TSS16 && !soft_long_mode(cpu)) : type == TYPE_LDT;
    if ((d->attr & SEG_ATTR_S) || !good) return soft_raise_err(cpu, EXC_GP, err);
    if (soft_long_mode(cpu) && (d->raw_high >> 40 & 0x1f)) return soft_raise_err(cpu, EXC_GP, err);
    if (!desc_present(d)) return soft_raise_err(cpu, EXC_NP, err);
    if (soft_long_mode(cpu) && !soft_canonical(d->base)) return soft_raise_err(cpu, EXC_GP, err);
    return SOFT_OK;
}

static enum soft_result lldt(struct soft_cpu *cpu, const struct insn *in)
{
    uint16_t sel;
    struct soft_desc d;
    enum soft_result r = system_selector(cpu, in, &sel);
    if (r != SOFT_OK) return r;
    if (selector_is_null(sel)) {
        segment_set_null(&cpu->ldtr, sel);
        return sys_done(cpu, in);
    }
    r = system_desc(cpu, sel, false, &d);
    if (r == SOFT_OK) segment_set(&cpu->ldtr, sel, &d);
    return sys_done_if(cpu, in, r);
}

static enum soft_result ltr(struct soft_cpu *cpu, const struct insn *in)
{
    uint16_t sel;
    struct soft_desc d;
    enum soft_result r = system_selector(cpu, in, &sel);
    if (r != SOFT_OK) return r;
    if (selector_is_null(sel)) return sys_gp0(cpu);
    r = system_desc(cpu, sel, true, &d);
    if (r == SOFT_OK) r = desc_set_type(cpu, &d, 2); /* busy */
    if (r == SOFT_OK) segment_set(&cpu->tr, sel, &d);
    return sys_done_if(cpu, in, r);
}

/* ---- looking at descriptors ---- */

enum look { LOOK_LAR, LOOK_LSL, LOOK_VERR, LOOK_VERW };

static bool system_type_visible(const struct soft_cpu *cpu, unsigned type, enum look what)
{
    bool lm = soft_long_mode(cpu), lar = what == LOOK_LAR;
    switch (type) {
    case TYPE_LDT:
    case TYPE_TSS:
    case TYPE_TSS_BUSY: return true;
    case TYPE_TSS16:
    case TYPE_TSS16_BUSY: return !lm;
    case TYPE_CALL: return lar;
    case TYPE_CALL16:
    case TYPE_TASK_GATE: return lar && !lm;
    default: return false;
    }
}

static bool look_permits(const struct soft_cpu *cpu, const struct soft_desc *d, unsigned rpl, enum look what)
{
    bool segment = d->attr & SEG_ATTR_S, code = desc_is_code(d);
    if (!segment && (what >= LOOK_VERR || !system_type_visible(cpu, desc_type(d), what))) return false;
    if (!(code && desc_conforming(d)) && (desc_dpl(d) < cpu->cpl || desc_dpl(d) < rpl)) return false;
    if (what == LOOK_VERR) return !code || (d->attr & TYPE_WRITABLE);
    if (what == LOOK_VERW) return desc_is_writable_data(d);
    return true;
}

/* *good says whether the selector may be looked at; faults are page faults only. */
static enum soft_result look_up(struct soft_cpu *cpu, uint16_t sel, enum look what, struct soft_desc *d, bool *good)
{
    *good = false;
    if (selector_is_null(sel)) return SOFT_OK;
    enum soft_result r = desc_read(cpu, sel, EXC_GP, 0, d);
    if (r == SOFT_OK && soft_long_mode(cpu) && !(d->attr & SEG_ATTR_S)) r = desc_read_system(cpu, sel, EXC_GP, 0, d);
    if (r == SOFT_FAULT && cpu->exc.vector == EXC_GP) { /* outside the table */
        cpu->exc.pending = false;
        return SOFT_OK;
    }
    if (r == SOFT_OK) *good = look_permits(cpu, d, sel & 3u, what);
    return r;
}

static void set_zf(struct soft_cpu *cpu, bool on)
{
    cpu->rflags = on ? cpu->rflags | FL_ZF : cpu->rflags & ~(uint64_t)FL_ZF;
}

static enum soft_result look(struct soft_cpu *cpu, const struct insn *in, enum look what)
{
    uint64_t sel;
    struct soft_desc d;
    bool good;
    if (!soft_protected(cpu)) return soft_raise(cpu, EXC_UD);
    enum soft_result r = operand_read(cpu, in, what < LOOK_VERR ? 1 : 0, 2, &sel);
    if (r == SOFT_OK) r = look_up(cpu, (uint16_t)sel, what, &d, &good);
    if (r != SOFT_OK) return r;
    set_zf(cpu, good);
    if (good && what == LOOK_LAR) soft_gpr_write(cpu, in->op[0].reg & 15, d.raw >> 32 & 0x00ffff00, in->op_size);
    if (good && what == LOOK_LSL) soft_gpr_write(cpu, in->op[0].reg & 15, d.limit, in->op_size);
    return sys_done(cpu, in);
}

static enum soft_result arpl(struct soft_cpu *cpu, const struct insn *in)
{
    uint64_t dst, src = cpu->gpr[in->op[1].reg & 15];
    if (!soft_protected(cpu)) return soft_raise(cpu, EXC_UD);
    enum soft_result r = operand_read(cpu, in, 0, 2, &dst);
    if (r != SOFT_OK) return r;
    bool adjust = (dst & 3) < (src & 3);
    if (adjust) r = operand_write(cpu, in, 0, 2, (dst & ~3ull) | (src & 3));
    if (r == SOFT_OK) set_zf(cpu, adjust);
    return sys_done_if(cpu, in, r);
}

enum soft_result descriptor_insn(struct soft_cpu *cpu, const struct insn *in)
{
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_SGDT: return store_table(cpu, in, &cpu->gdt);
    case ZYDIS_MNEMONIC_SIDT: return store_table(cpu, in, &cpu->idt);
    case ZYDIS_MNEMONIC_LGDT: return load_table(cpu, in, &cpu->gdt);
    case ZYDIS_MNEMONIC_LIDT: return load_table(cpu, in, &cpu->idt);
    case ZYDIS_MNEMONIC_SLDT: return store_selector(cpu, in, cpu->ldtr.selector);
    case ZYDIS_MNEMONIC_STR: return store_selector(cpu, in, cpu->tr.selector);
    case ZYDIS_MNEMONIC_LLDT: return lldt(cpu, in);
    case ZYDIS_MNEMONIC_LTR: return ltr(cpu, in);
    case ZYDIS_MNEMONIC_LAR: return look(cpu, in, LOOK_LAR);
    case ZYDIS_MNEMONIC_LSL: return look(cpu, in, LOOK_LSL);
    case ZYDIS_MNEMONIC_VERR: return look(cpu, in, LOOK_VERR);
    case ZYDIS_MNEMONIC_VERW: return look(cpu, in, LOOK_VERW);
    case ZYDIS_MNEMONIC_ARPL: return arpl(cpu, in);
    default: return SOFT_NOT_MINE;
    }
}
