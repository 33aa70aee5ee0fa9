/* Unprivileged instructions that the translator leaves to C: jumps of legacy modes, loops, BCD arithmetic, table look-up,
 * bounds, absolute moves. Stack and string instructions are next door. */
#include "vmm/engine/soft/general.h"

static uint8_t segment_of_prefix(uint8_t b)
{
    switch (b) {
    case 0x26: return SEG_ES;
    case 0x2e: return SEG_CS;
    case 0x36: return SEG_SS;
    case 0x3e: return SEG_DS;
    case 0x64: return SEG_FS;
    case 0x65: return SEG_GS;
    default: return SEG_COUNT;
    }
}

struct raw_insn soft_raw_insn(const struct insn *in)
{
    struct raw_insn raw = {.seg = SEG_COUNT};
    unsigned i = 0;
    for (; i < in->len; i++) {
        uint8_t b = in->bytes[i], seg = segment_of_prefix(b);
        if (seg != SEG_COUNT) {
            if (in->code_size != 8 || seg == SEG_FS || seg == SEG_GS) raw.seg = seg;
        } else if (b == 0xf2 || b == 0xf3) {
            raw.rep = b == 0xf3 ? 1 : 2;
        } else if (b != 0x66 && b != 0x67 && b != 0xf0 && !(in->code_size == 8 && (b & 0xf0) == 0x40)) {
            break;
        }
    }
    raw.opcode = i < in->len ? in->bytes[i] : 0;
    raw.modrm = i + 1u < in->len ? in->bytes[i + 1] : 0;
    return raw;
}

static enum soft_result memory_linear(struct soft_cpu *cpu, const struct insn *in, unsigned size, enum soft_access acc,
                                      uint64_t *a)
{
    return soft_linear(cpu, (enum cpu_seg)in->mem.seg, soft_effective_address(cpu, in), size, acc, a);
}

enum soft_result soft_operand_read(struct soft_cpu *cpu, const struct insn *in, const struct insn_op *o, unsigned size,
                                   uint64_t *v)
{
    uint64_t a;
    enum soft_result r;
    switch (o->kind) {
    case OP_REG:
        *v = o->reg_class == RC_GPR_HIGH8 ? cpu->gpr[o->reg] >> 8 & 0xff : cpu->gpr[o->reg] & size_mask(size);
        return SOFT_OK;
    case OP_MEM:
        r = memory_linear(cpu, in, size, ACC_READ, &a);
        return r == SOFT_OK ? soft_load_u64(cpu, a, v, size) : r;
    default: *v = o->imm; return SOFT_OK;
    }
}

/* ---- jumps ---- */

static unsigned branch_size(const struct insn *in)
{
    return in->code_size == 8 ? 8 : in->op_size;
}

static enum soft_result jump_relative(struct soft_cpu *cpu, const struct insn *in, bool taken)
{
    if (taken) return soft_near_jump(cpu, in->rip + in->len + in->op[0].imm, branch_size(in));
    soft_advance(cpu, in);
    return SOFT_OK;
}

static enum soft_result jump(struct soft_cpu *cpu, const struct insn *in)
{
    struct raw_insn raw = soft_raw_insn(in);
    uint64_t target;
    if (raw.opcode == 0xe9 || raw.opcode == 0xeb) return jump_relative(cpu, in, true);
    if (raw.opcode != 0xff || (raw.modrm >> 3 & 7) != 4) return SOFT_NOT_MINE;
    enum soft_result r = soft_operand_read(cpu, in, &in->op[0], branch_size(in), &target);
    return r == SOFT_OK ? soft_near_jump(cpu, target, branch_size(in)) : r;
}

/* The 16 conditions as encoded in the low bits of Jcc opcodes (SDM vol. 1, appendix B). */
static bool condition(uint64_t fl, unsigned cc)
{
    bool v;
    switch (cc >> 1) {
    case 0: v = fl & FL_OF; break;
    case 1: v = fl & FL_CF; break;
    case 2: v = fl & FL_ZF; break;
    case 3: v = fl & (FL_CF | FL_ZF); break;
    case 4: v = fl & FL_SF; break;
    case 5: v = fl & FL_PF; break;
    case 6: v = !(fl & FL_SF) != !(fl & FL_OF); break;
    default: v = (fl & FL_ZF) || !(fl & FL_SF) != !(fl & FL_OF); break;
    }
    return v != (cc & 1);
}

static enum soft_result jump_if(struct soft_cpu *cpu, const struct insn *in)
{
    struct raw_insn raw = soft_raw_insn(in);
    unsigned cc = (raw.opcode == 0x0f ? raw.modrm : raw.opcode) & 15;
    return jump_relative(cpu, in, condition(cpu->rflags, cc));
}

static enum soft_result jump_if_zero_count(struct soft_cpu *cpu, const struct insn *in)
{
    return jump_relative(cpu, in, !(cpu->gpr[R_RCX] & size_mask(in->addr_size)));
}

static enum soft_result loop(struct soft_cpu *cpu, const struct insn *in)
{
    uint64_t old = cpu->gpr[R_RCX], count = (old - 1) & size_mask(in->addr_size);
    bool zf = cpu->rflags & FL_ZF, taken = count != 0;
    if (in->mnemonic == ZYDIS_MNEMONIC_LOOPE)
        taken = taken && zf;
    else if (in->mnemonic == ZYDIS_MNEMONIC_LOOPNE)
        taken = taken && !zf;
    soft_gpr_write(cpu, R_RCX, count, in->addr_size);
    enum soft_result r = jump_relative(cpu, in, taken);
    if (r != SOFT_OK) cpu->gpr[R_RCX] = old;
    return r;
}

/* ---- moves ---- */

static enum soft_result move_absolute(struct soft_cpu *cpu, const struct insn *in)
{
    struct raw_insn raw = soft_raw_insn(in);
    if (raw.opcode < 0xa0 || raw.opcode > 0xa3) return SOFT_NOT_MINE;
    bool store = raw.opcode & 2;
    unsigned size = raw.opcode & 1 ? in->op_size : 1;
    uint64_t a, v;
    enum soft_result r = memory_linear(cpu, in, size, store ? ACC_WRITE : ACC_READ, &a);
    if (r == SOFT_OK) r = store ? soft_store_u64(cpu, a, cpu->gpr[R_RAX], size) : soft_load_u64(cpu, a, &v, size);
    if (r != SOFT_OK) return r;
    if (!store) soft_gpr_write(cpu, R_RAX, v, size);
    soft_advance(cpu, in);
    return SOFT_OK;
}

static enum soft_result lea(struct soft_cpu *cpu, const struct insn *in)
{
    if (!in->has_mem) return SOFT_NOT_MINE;
    soft_gpr_write(cpu, in->op[0].reg, soft_effective_address(cpu, in), in->op[0].size);
    soft_advance(cpu, in);
    return SOFT_OK;
}

static enum soft_result xlat(struct soft_cpu *cpu, const struct insn *in)
{
    struct raw_insn raw = soft_raw_insn(in);
    uint64_t off = (cpu->gpr[R_RBX] + (uint8_t)cpu->gpr[R_RAX]) & size_mask(in->addr_size), a, v;
    enum soft_result r = soft_linear(cpu, raw.seg == SEG_COUNT ? SEG_DS : (enum cpu_seg)raw.seg, off, 1, ACC_READ, &a);
    if (r == SOFT_OK) r = soft_load_u64(cpu, a, &v, 1);
    if (r != SOFT_OK) return r;
    soft_gpr_write(cpu, R_RAX, v, 1);
    soft_advance(cpu, in);
    return SOFT_OK;
}

static enum soft_result bound(struct soft_cpu *cpu, const struct insn *in)
{
    unsigned size = in->op_size;
    uint64_t a, low, high;
    if (!in->has_mem || in->code_size == 8) return SOFT_NOT_MINE;
    enum soft_result r = memory_linear(cpu, in, 2 * size, ACC_READ, &a);
    if (r == SOFT_OK) r = soft_load_u64(cpu, a, &low, size);
    if (r == SOFT_OK) r = soft_load_u64(cpu, (uint32_t)(a + size), &high, size);
    if (r != SOFT_OK) return r;
    int64_t v = (int64_t)sign_extend(cpu->gpr[in->op[0].reg], size);
    if (v < (int64_t)sign_extend(low, size) || v > (int64_t)sign_extend(high, size)) return soft_raise(cpu, EXC_BR);
    soft_advance(cpu, in);
    return SOFT_OK;
}

/* ---- BCD (SDM vol. 2). Flags the manual leaves undefined are cleared. ---- */

static uint64_t result_flags(uint8_t v)
{
    uint64_t f = (v ? 0 : FL_ZF) | (v & 0x80 ? FL_SF : 0);
    uint8_t p = v ^ v >> 4;
    p ^= p >> 2;
    p ^= p >> 1;
    return p & 1 ? f : f | FL_PF;
}

static void set_arith(struct soft_cpu *cpu, uint64_t flags)
{
    cpu->rflags = (cpu->rflags & ~(uint64_t)FL_ARITH) | flags;
}

static void decimal_adjust(struct soft_cpu *cpu, bool subtract)
{
    uint8_t old = (uint8_t)cpu->gpr[R_RAX], al = old;
    uint64_t flags = 0;
    bool carry = cpu->rflags & FL_CF;
    if ((old & 15) > 9 || (cpu->rflags & FL_AF)) {
        if (carry || (subtract ? old < 6 : old > 0xf9)) flags |= FL_CF;
        al = subtract ? al - 6 : al + 6;
        flags |= FL_AF;
    }
    if (old > 0x99 || carry) {
        al = subtract ? al - 0x60 : al + 0x60;
        flags |= FL_CF;
    } else if (!subtract) {
        flags &= ~(uint64_t)FL_CF;
    }
    soft_gpr_write(cpu, R_RAX, al, 1);
    set_arith(cpu, flags | result_flags(al));
}

static void ascii_adjust(struct soft_cpu *cpu, bool subtract)
{
    uint16_t ax = (uint16_t)cpu->gpr[R_RAX];
    uint64_t flags = 0;
    if ((ax & 15) > 9 || (cpu->rflags & FL_AF)) {
        ax = subtract ? ax - 0x106 : ax + 0x106;
        flags = FL_AF | FL_CF;
    }
    ax &= 0xff0f;
    soft_gpr_write(cpu, R_RAX, ax, 2);
    set_arith(cpu, flags | result_flags((uint8_t)ax));
}

static enum soft_result ascii_multiply_divide(struct soft_cpu *cpu, const struct insn *in)
{
    uint8_t base = (uint8_t)in->op[0].imm, al = (uint8_t)cpu->gpr[R_RAX], ah = (uint8_t)(cpu->gpr[R_RAX] >> 8);
    if (in->mnemonic == ZYDIS_MNEMONIC_AAM) {
        if (!base) return soft_raise(cpu, EXC_DE);
        ah = al / base;
        al = al % base;
    } else {
        al = (uint8_t)(al + ah * base);
        ah = 0;
    }
    soft_gpr_write(cpu, R_RAX, (uint64_t)(ah << 8 | al), 2);
    set_arith(cpu, result_flags(al));
    soft_advance(cpu, in);
    return SOFT_OK;
}

static enum soft_result simple(struct soft_cpu *cpu, const struct insn *in)
{
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_DAA: decimal_adjust(cpu, false); break;
    case ZYDIS_MNEMONIC_DAS: decimal_adjust(cpu, true); break;
    case ZYDIS_MNEMONIC_AAA: ascii_adjust(cpu, false); break;
    case ZYDIS_MNEMONIC_AAS: ascii_adjust(cpu, true); break;
    default: soft_gpr_write(cpu, R_RAX, cpu->rflags & FL_CF ? 0xff : 0, 1); break; /* SALC */
    }
    soft_advance(cpu, in);
    return SOFT_OK;
}

enum soft_result soft_general_insn(struct soft_cpu *cpu, const struct insn *in)
{
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_JMP: return jump(cpu, in);
    case ZYDIS_MNEMONIC_JO:
    case ZYDIS_MNEMONIC_JNO:
    case ZYDIS_MNEMONIC_JB:
    case ZYDIS_MNEMONIC_JNB:
    case ZYDIS_MNEMONIC_JZ:
    case ZYDIS_MNEMONIC_JNZ:
    case ZYDIS_MNEMONIC_JBE:
    case ZYDIS_MNEMONIC_JNBE:
    case ZYDIS_MNEMONIC_JS:
    case ZYDIS_MNEMONIC_JNS:
    case ZYDIS_MNEMONIC_JP:
    case ZYDIS_MNEMONIC_JNP:
    case ZYDIS_MNEMONIC_JL:
    case ZYDIS_MNEMONIC_JNL:
    case ZYDIS_MNEMONIC_JLE:
    case ZYDIS_MNEMONIC_JNLE: return jump_if(cpu, in);
    case ZYDIS_MNEMONIC_JCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
    case ZYDIS_MNEMONIC_JRCXZ: return jump_if_zero_count(cpu, in);
    case ZYDIS_MNEMONIC_LOOP:
    case ZYDIS_MNEMONIC_LOOPE:
    case ZYDIS_MNEMONIC_LOOPNE: return loop(cpu, in);
    case ZYDIS_MNEMONIC_MOV: return move_absolute(cpu, in);
    case ZYDIS_MNEMONIC_LEA: return lea(cpu, in);
    case ZYDIS_MNEMONIC_XLAT: return xlat(cpu, in);
    case ZYDIS_MNEMONIC_BOUND: return bound(cpu, in);
    case ZYDIS_MNEMONIC_DAA:
    case ZYDIS_MNEMONIC_DAS:
    case ZYDIS_MNEMONIC_AAA:
    case ZYDIS_MNEMONIC_AAS:
    case ZYDIS_MNEMONIC_SALC: return simple(cpu, in);
    case ZYDIS_MNEMONIC_AAM:
    case ZYDIS_MNEMONIC_AAD: return ascii_multiply_divide(cpu, in);
    default: break;
    }
    enum soft_result r = soft_stack_insn(cpu, in);
    return r == SOFT_NOT_MINE ? soft_string_insn(cpu, in) : r;
}
