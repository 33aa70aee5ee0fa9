/* Zydis to struct xinsn: what an instruction reads, writes and needs, and how the translator treats it. */
#include "vmm/engine/soft/decode.h"

#include <string.h>

static ZydisDecoder decoder16, decoder32, decoder64;
/* Per ZydisRegister: GPR number (0xff: none), size in bytes, high-byte flag. */
static uint8_t gpr_number[ZYDIS_REGISTER_MAX_VALUE + 1];
static uint8_t gpr_size[ZYDIS_REGISTER_MAX_VALUE + 1];
static uint8_t gpr_high[ZYDIS_REGISTER_MAX_VALUE + 1];

static void map_registers(ZydisRegister first, unsigned count, unsigned size)
{
    for (unsigned i = 0; i < count; i++) {
        gpr_number[first + i] = (uint8_t)i;
        gpr_size[first + i] = (uint8_t)size;
    }
}

void soft_decode_init(void)
{
    ZydisDecoderInit(&decoder16, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
    ZydisDecoderInit(&decoder32, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    ZydisDecoderInit(&decoder64, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    /* Neither MPX nor CET is offered to guests: their encodings are NOPs then, as on a CPU without them. */
    ZydisDecoder *all[] = {&decoder16, &decoder32, &decoder64};
    for (unsigned i = 0; i < 3; i++) {
        ZydisDecoderEnableMode(all[i], ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
        ZydisDecoderEnableMode(all[i], ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
        ZydisDecoderEnableMode(all[i], ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
    }
    soft_isa_init();
    memset(gpr_number, 0xff, sizeof gpr_number);
    map_registers(ZYDIS_REGISTER_RAX, 16, 8);
    map_registers(ZYDIS_REGISTER_EAX, 16, 4);
    map_registers(ZYDIS_REGISTER_AX, 16, 2);
    /* 8-bit: AL CL DL BL, AH CH DH BH, SPL BPL SIL DIL, R8B.. */
    map_registers(ZYDIS_REGISTER_AL, 4, 1);
    map_registers(ZYDIS_REGISTER_AH, 4, 1);
    for (unsigned i = 0; i < 4; i++) gpr_high[ZYDIS_REGISTER_AH + i] = 1;
    for (unsigned i = 0; i < 4; i++) {
        gpr_number[ZYDIS_REGISTER_SPL + i] = (uint8_t)(4 + i);
        gpr_size[ZYDIS_REGISTER_SPL + i] = 1;
    }
    for (unsigned i = 0; i < 8; i++) {
        gpr_number[ZYDIS_REGISTER_R8B + i] = (uint8_t)(8 + i);
        gpr_size[ZYDIS_REGISTER_R8B + i] = 1;
    }
    soft_quick_init();
}

static uint8_t segment_number(ZydisRegister r)
{
    switch (r) {
    case ZYDIS_REGISTER_ES: return SEG_ES;
    case ZYDIS_REGISTER_CS: return SEG_CS;
    case ZYDIS_REGISTER_SS: return SEG_SS;
    case ZYDIS_REGISTER_FS: return SEG_FS;
    case ZYDIS_REGISTER_GS: return SEG_GS;
    default: return SEG_DS;
    }
}

static void convert_register(struct insn_op *o, ZydisRegister r)
{
    switch (ZydisRegisterGetClass(r)) {
    case ZYDIS_REGCLASS_SEGMENT:
        o->reg_class = RC_SEG;
        o->reg = segment_number(r);
        return;
    case ZYDIS_REGCLASS_CONTROL:
        o->reg_class = RC_CR;
        o->reg = (uint8_t)ZydisRegisterGetId(r);
        return;
    case ZYDIS_REGCLASS_DEBUG:
        o->reg_class = RC_DR;
        o->reg = (uint8_t)ZydisRegisterGetId(r);
        return;
    default: break;
    }
    if (gpr_number[r] != 0xff) {
        o->reg_class = gpr_high[r] ? RC_GPR_HIGH8 : RC_GPR;
        o->reg = gpr_number[r];
        return;
    }
    o->reg_class = RC_OTHER;
    o->reg = (uint8_t)ZydisRegisterGetId(r);
}

static uint8_t action_bits(ZydisOperandActions a)
{
    uint8_t v = 0;
    if (a & ZYDIS_OPERAND_ACTION_MASK_READ) v |= 1;
    if (a & ZYDIS_OPERAND_ACTION_MASK_WRITE) v |= 2;
    return v;
}

static void convert_memory(struct insn_mem *m, const ZydisDecodedOperandMem *z)
{
    m->base = z->base == ZYDIS_REGISTER_NONE                                   ? INSN_NOREG
              : z->base == ZYDIS_REGISTER_RIP || z->base == ZYDIS_REGISTER_EIP ? INSN_RIP
                                                                               : gpr_number[z->base];
    m->index = z->index == ZYDIS_REGISTER_NONE ? INSN_NOREG : gpr_number[z->index];
    if (z->index != ZYDIS_REGISTER_NONE && m->index == 0xff) m->index = (uint8_t)ZydisRegisterGetId(z->index);
    m->scale = z->scale ? z->scale : 1;
    m->seg = segment_number(z->segment);
    m->disp = z->disp.has_displacement ? z->disp.value : 0;
}

static void convert_operands(struct xinsn *x, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
    struct insn *in = &x->in;
    unsigned n = 0;
    for (unsigned i = 0; i < z->operand_count_visible && n < INSN_MAX_OPS; i++) {
        const ZydisDecodedOperand *o = &ops[i];
        if (o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN) continue;
        /* Implicit operands that the assembler shows (SHL r/m, CL) count as explicit ones; hidden ones do not. */
        struct insn_op *c = &in->op[n++];
        c->size = (uint8_t)(o->size / 8);
        c->action = action_bits(o->actions);
        switch (o->type) {
        case ZYDIS_OPERAND_TYPE_REGISTER:
            c->kind = OP_REG;
            convert_register(c, o->reg.value);
            break;
        case ZYDIS_OPERAND_TYPE_MEMORY:
            c->kind = OP_MEM;
            in->has_mem = true;
            convert_memory(&in->mem, &o->mem);
            break;
        case ZYDIS_OPERAND_TYPE_IMMEDIATE:
            c->kind = OP_IMM;
            c->imm = o->imm.value.u;
            break;
        case ZYDIS_OPERAND_TYPE_POINTER:
            c->kind = OP_FAR;
            c->imm = o->ptr.offset;
            in->far_selector = o->ptr.segment;
            break;
        default: break;
        }
    }
    in->ops = (uint8_t)n;
}

static void account_register(struct xinsn *x, ZydisRegister r, ZydisOperandActions a)
{
    if (gpr_number[r] == 0xff) return;
    uint16_t bit = (uint16_t)(1u << gpr_number[r]);
    if (gpr_high[r]) x->no_rex = true;
    if (a & ZYDIS_OPERAND_ACTION_MASK_READ) x->reg_read |= bit;
    if (a & ZYDIS_OPERAND_ACTION_MASK_WRITE) {
        x->reg_write |= bit;
        if (gpr_size[r] >= 4 && !(a & ZYDIS_OPERAND_ACTION_CONDWRITE))
            x->reg_kill |= bit;
        else
            x->reg_read |= bit;
    }
}

/* Fills the register masks and the memory operand; false when it has memory operands that are not the one ModRM operand. What CALL and PUSH
 * read at their operand is not what they write to the stack. */
static bool account_operands(struct xinsn *x, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
    bool plain = true, have_modrm = false;
    for (unsigned i = 0; i < z->operand_count; i++) {
        const ZydisDecodedOperand *o = &ops[i];
        if (o->type == ZYDIS_OPERAND_TYPE_REGISTER) account_register(x, o->reg.value, o->actions);
        if (o->type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
        if (gpr_number[o->mem.base] != 0xff) x->reg_read |= (uint16_t)(1u << gpr_number[o->mem.base]);
        if (gpr_number[o->mem.index] != 0xff) x->reg_read |= (uint16_t)(1u << gpr_number[o->mem.index]);
        if (o->mem.type == ZYDIS_MEMOP_TYPE_AGEN) continue;
        if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB) x->uses_vsib = true;
        bool modrm = o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM;
        if (o->mem.type != ZYDIS_MEMOP_TYPE_MEM || !modrm) plain = false;
        if (have_modrm && !modrm) continue;
        have_modrm = modrm;
        x->mem_size = (uint16_t)(o->size / 8);
        x->mem_read = o->actions & ZYDIS_OPERAND_ACTION_MASK_READ;
        x->mem_write = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
        if (z->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || z->mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ||
            z->mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU)
            x->in.mem.seg = segment_number(o->mem.segment);
    }
    /* Conditional writes of whole registers, and instructions that leave the destination alone on some inputs. */
    if (z->mnemonic == ZYDIS_MNEMONIC_BSF || z->mnemonic == ZYDIS_MNEMONIC_BSR) x->reg_read |= x->reg_kill;
    x->reg_kill &= (uint16_t)~x->reg_read;
    bool same = z->operand_count_visible >= 2 && ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER && ops[0].reg.value == ops[1].reg.value;
    if (same && (z->mnemonic == ZYDIS_MNEMONIC_XOR || z->mnemonic == ZYDIS_MNEMONIC_SUB) &&
        gpr_number[ops[0].reg.value] != 0xff && gpr_size[ops[0].reg.value] >= 4) {
        uint16_t bit = (uint16_t)(1u << gpr_number[ops[0].reg.value]);
        x->reg_read &= (uint16_t)~bit;
        x->reg_kill |= bit;
    }
    return plain;
}

static void account_flags(struct xinsn *x, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
    const ZydisAccessedFlags *f = z->cpu_flags;
    if (!f) return;
    uint16_t written = (uint16_t)((f->modified | f->set_0 | f->set_1) & FL_ARITH);
    uint16_t undefined = (uint16_t)(f->undefined & FL_ARITH);
    x->fl_read = (uint16_t)(f->tested & FL_ARITH);
    x->fl_write = written | undefined;
    x->fl_kill = written;
    switch (z->meta.category) {
    case ZYDIS_CATEGORY_SHIFT:
    case ZYDIS_CATEGORY_ROTATE: {
        /* A masked count of zero leaves all flags: only a known non-zero count kills them. */
        const ZydisDecodedOperand *last = &ops[z->operand_count_visible - 1];
        unsigned mask = z->operand_width == 64 ? 63 : 31;
        bool one = z->operand_count_visible == 1;
        if (z->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) break;
        if (!one && (last->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || (last->imm.value.u & mask) == 0)) x->fl_kill = 0;
        /* Rotates and double shifts by more than the width may leave flags as they were; be exact only for plain shifts. */
        if (x->fl_kill && z->operand_width < 32) x->fl_kill = 0;
        if (x->fl_kill && z->meta.category == ZYDIS_CATEGORY_SHIFT && z->mnemonic != ZYDIS_MNEMONIC_SHLD &&
            z->mnemonic != ZYDIS_MNEMONIC_SHRD)
            x->fl_kill |= undefined;
        break;
    }
    case ZYDIS_CATEGORY_LOGICAL: /* AF "undefined": every CPU writes it; but MUL leaves some flags as they were on some */
        x->fl_kill |= undefined;
        break;
    default: break;
    }
    if (z->mnemonic == ZYDIS_MNEMONIC_TEST) x->fl_kill |= undefined;
    if (z->mnemonic == ZYDIS_MNEMONIC_DIV || z->mnemonic == ZYDIS_MNEMONIC_IDIV) x->fl_kill = 0;
    x->fl_kill &= (uint16_t)~x->fl_read;
}

static uint8_t gate_of(const ZydisDecodedInstruction *z)
{
    switch (z->encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_EVEX: return GATE_AVX512;
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
        switch (z->meta.isa_ext) {
        case ZYDIS_ISA_EXT_BMI1:
        case ZYDIS_ISA_EXT_BMI2: return GATE_NONE;
        default: return z->meta.category == ZYDIS_CATEGORY_KMASK ? GATE_AVX512 : GATE_AVX;
        }
    case ZYDIS_INSTRUCTION_ENCODING_XOP: return z->meta.isa_ext == ZYDIS_ISA_EXT_TBM ? GATE_NONE : GATE_AVX;
    default: break;
    }
    switch (z->meta.isa_ext) {
    case ZYDIS_ISA_EXT_X87: return z->mnemonic == ZYDIS_MNEMONIC_FWAIT ? GATE_FWAIT : GATE_X87;
    case ZYDIS_ISA_EXT_MMX:
    case ZYDIS_ISA_EXT_AMD3DNOW: return GATE_MMX;
    case ZYDIS_ISA_EXT_SSE:
    case ZYDIS_ISA_EXT_SSE2:
    case ZYDIS_ISA_EXT_SSE3:
    case ZYDIS_ISA_EXT_SSSE3:
    case ZYDIS_ISA_EXT_SSE4:
    case ZYDIS_ISA_EXT_SSE4A:
    case ZYDIS_ISA_EXT_AES:
    case ZYDIS_ISA_EXT_PCLMULQDQ:
    case ZYDIS_ISA_EXT_SHA:
    case ZYDIS_ISA_EXT_GFNI: break;
    default: return GATE_NONE;
    }
    if (z->mnemonic == ZYDIS_MNEMONIC_FISTTP) return GATE_X87;
    switch (z->mnemonic) { /* in the SSE extensions, but on GPRs or without state */
    case ZYDIS_MNEMONIC_MOVNTI:
    case ZYDIS_MNEMONIC_SFENCE:
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_CRC32:
    case ZYDIS_MNEMONIC_POPCNT:
    case ZYDIS_MNEMONIC_PREFETCHNTA:
    case ZYDIS_MNEMONIC_PREFETCHT0:
    case ZYDIS_MNEMONIC_PREFETCHT1:
    case ZYDIS_MNEMONIC_PREFETCHT2:
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_PAUSE:
    case ZYDIS_MNEMONIC_MONITOR:
    case ZYDIS_MNEMONIC_MWAIT: return GATE_NONE;
    default: return GATE_SSE;
    }
}

static bool special_category(ZydisInstructionCategory c)
{
    switch (c) {
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_IO:
    case ZYDIS_CATEGORY_IOSTRINGOP:
    case ZYDIS_CATEGORY_STRINGOP:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
    case ZYDIS_CATEGORY_SYSTEM:
    case ZYDIS_CATEGORY_XSAVE:
    case ZYDIS_CATEGORY_XSAVEOPT:
    case ZYDIS_CATEGORY_SEGOP:
    case ZYDIS_CATEGORY_VTX:
    case ZYDIS_CATEGORY_SGX:
    case ZYDIS_CATEGORY_CET:
    case ZYDIS_CATEGORY_PCONFIG:
    case ZYDIS_CATEGORY_PT:
    case ZYDIS_CATEGORY_KEYLOCKER:
    case ZYDIS_CATEGORY_KEYLOCKER_WIDE:
    case ZYDIS_CATEGORY_RDWRFSGS:
    case ZYDIS_CATEGORY_SMAP:
    case ZYDIS_CATEGORY_MPX:
    case ZYDIS_CATEGORY_PKU:
    case ZYDIS_CATEGORY_WAITPKG:
    case ZYDIS_CATEGORY_UINTR:
    case ZYDIS_CATEGORY_ENQCMD:
    case ZYDIS_CATEGORY_HRESET:
    case ZYDIS_CATEGORY_RDPID:
    case ZYDIS_CATEGORY_RDPRU:
    case ZYDIS_CATEGORY_AMX_TILE:
    case ZYDIS_CATEGORY_PADLOCK:
    case ZYDIS_CATEGORY_MOVDIR:
    case ZYDIS_CATEGORY_TSX_LDTRK:
    case ZYDIS_CATEGORY_INVALID:
    case ZYDIS_CATEGORY_KNC:
    case ZYDIS_CATEGORY_KNCMASK:
    case ZYDIS_CATEGORY_KNCSCALAR:
    case ZYDIS_CATEGORY_UFMA:
    case ZYDIS_CATEGORY_CLZERO:
    case ZYDIS_CATEGORY_DECIMAL:
    case ZYDIS_CATEGORY_SERIALIZE: return true;
    default: return false;
    }
}

static uint8_t classify_branch(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
    if (z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) return XK_SPECIAL;
    bool direct = ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    bool wide = z->machine_mode == ZYDIS_MACHINE_MODE_LONG_64;
    if (!wide) return XK_SPECIAL; /* translate.c opens this up for flat 32-bit code */
    if (z->meta.isa_ext == ZYDIS_ISA_EXT_KNC || z->meta.isa_ext == ZYDIS_ISA_EXT_KNCE) return XK_SPECIAL;
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_JMP: return direct ? XK_JMP : XK_JMP_IND;
    case ZYDIS_MNEMONIC_CALL: return direct ? XK_CALL : XK_CALL_IND;
    case ZYDIS_MNEMONIC_RET: return z->operand_width == 64 ? XK_RET : XK_SPECIAL;
    case ZYDIS_MNEMONIC_JCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
    case ZYDIS_MNEMONIC_JRCXZ:
    case ZYDIS_MNEMONIC_LOOP:
    case ZYDIS_MNEMONIC_LOOPE:
    case ZYDIS_MNEMONIC_LOOPNE: return XK_SPECIAL;
    default: break;
    }
    return z->meta.category == ZYDIS_CATEGORY_COND_BR ? XK_JCC : XK_SPECIAL;
}

static uint8_t classify_misc(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops, bool plain)
{
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_ENDBR64:
    case ZYDIS_MNEMONIC_ENDBR32:
    case ZYDIS_MNEMONIC_PREFETCH:
    case ZYDIS_MNEMONIC_PREFETCHNTA:
    case ZYDIS_MNEMONIC_PREFETCHT0:
    case ZYDIS_MNEMONIC_PREFETCHT1:
    case ZYDIS_MNEMONIC_PREFETCHT2:
    case ZYDIS_MNEMONIC_PREFETCHW:
    case ZYDIS_MNEMONIC_PREFETCHWT1: return XK_NOP;
    case ZYDIS_MNEMONIC_LEA:
        if (ops[1].mem.base == ZYDIS_REGISTER_RIP || ops[1].mem.base == ZYDIS_REGISTER_EIP)
            return z->operand_width >= 32 ? XK_LEA_RIP : XK_SPECIAL;
        return z->machine_mode == ZYDIS_MACHINE_MODE_LONG_64 ? XK_COPY : XK_SPECIAL;
    case ZYDIS_MNEMONIC_LEAVE: return z->operand_width == 64 ? XK_LEAVE : XK_SPECIAL;
    case ZYDIS_MNEMONIC_CPUID:
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
    case ZYDIS_MNEMONIC_ENTER:
    case ZYDIS_MNEMONIC_XLAT:
    case ZYDIS_MNEMONIC_MONITOR:
    case ZYDIS_MNEMONIC_MWAIT:
    case ZYDIS_MNEMONIC_MONITORX:
    case ZYDIS_MNEMONIC_MWAITX:
    case ZYDIS_MNEMONIC_BOUND:
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_PUSHF:
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_PUSHFQ:
    case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
    case ZYDIS_MNEMONIC_SALC:
    case ZYDIS_MNEMONIC_XBEGIN:
    case ZYDIS_MNEMONIC_XEND:
    case ZYDIS_MNEMONIC_XABORT:
    case ZYDIS_MNEMONIC_XTEST:
    case ZYDIS_MNEMONIC_INVPCID:
    case ZYDIS_MNEMONIC_PTWRITE:
    case ZYDIS_MNEMONIC_PAUSE: return XK_SPECIAL;
    default: break;
    }
    bool memory = false;
    for (unsigned i = 0; i < z->operand_count; i++) {
        if (ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY && ops[i].mem.type != ZYDIS_MEMOP_TYPE_AGEN) memory = true;
        if (ops[i].type != ZYDIS_OPERAND_TYPE_REGISTER || ops[i].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
            continue;
        ZydisRegisterClass c = ZydisRegisterGetClass(ops[i].reg.value);
        if (c == ZYDIS_REGCLASS_SEGMENT || c == ZYDIS_REGCLASS_CONTROL || c == ZYDIS_REGCLASS_DEBUG) return XK_SPECIAL;
    }
    if (!memory) return XK_COPY;
    return plain ? XK_MEM : XK_SPECIAL;
}

static uint8_t classify(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops, bool plain)
{
    switch (z->meta.category) {
    case ZYDIS_CATEGORY_COND_BR:
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_RET: return classify_branch(z, ops);
    case ZYDIS_CATEGORY_PUSH:
        if (z->mnemonic == ZYDIS_MNEMONIC_PUSH && z->operand_width == 64 &&
            z->machine_mode == ZYDIS_MACHINE_MODE_LONG_64 &&
            (ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE || gpr_number[ops[0].reg.value] != 0xff) &&
            ops[0].type != ZYDIS_OPERAND_TYPE_MEMORY)
            return XK_PUSH;
        return XK_SPECIAL;
    case ZYDIS_CATEGORY_POP:
        if (z->mnemonic == ZYDIS_MNEMONIC_POP && z->operand_width == 64 &&
            z->machine_mode == ZYDIS_MACHINE_MODE_LONG_64 && ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            gpr_number[ops[0].reg.value] != 0xff)
            return XK_POP;
        return XK_SPECIAL;
    default: break;
    }
    if (special_category(z->meta.category)) {
        if (z->mnemonic == ZYDIS_MNEMONIC_LEA || z->mnemonic == ZYDIS_MNEMONIC_NOP) return classify_misc(z, ops, plain);
        return XK_SPECIAL;
    }
    return classify_misc(z, ops, plain);
}

static void find_encoding(struct xinsn *x, const ZydisDecodedInstruction *z)
{
    switch (z->encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_VEX: x->enc = ENC_VEX; break;
    case ZYDIS_INSTRUCTION_ENCODING_XOP: x->enc = ENC_XOP; break;
    case ZYDIS_INSTRUCTION_ENCODING_EVEX: x->enc = ENC_EVEX; break;
    default: x->enc = ENC_LEGACY; break;
    }
    x->modrm_off = z->raw.modrm.offset;
    unsigned end = x->modrm_off + 1u;
    if (z->raw.sib.offset) end = z->raw.sib.offset + 1u;
    if (z->raw.disp.size) end = z->raw.disp.offset + z->raw.disp.size / 8u;
    x->tail_off = (uint8_t)end;
}

static bool is_prefix(uint8_t b, bool rex)
{
    return (b && strchr("\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3", b)) || (rex && (b & 0xf0) == 0x40);
}

/* From the opcode, or the VEX, EVEX or XOP prefix, on: even what is undefined has ModRM, and an immediate byte in some opcode maps. */
static unsigned least_length(uint8_t first, uint8_t second)
{
    unsigned map = second & 0x1f;
    switch (first) {
    case 0x62: return (map & 7) == 3 ? 7 : 6;
    case 0xc4: return map == 3 ? 6 : 5;
    case 0xc5: return 4;
    case 0x8f: return map == 8 ? 6 : map == 9 ? 5 : map == 10 ? 9 : 1;
    default: return 1;
    }
}

/* Zydis could not decode it. Some instructions are too long (#GP) as well as wrong (#UD): their bytes behind the prefixes tell. */
static int failed(const ZydisDecoder *d, ZyanStatus st, const uint8_t *bytes, unsigned avail, bool rex)
{
    ZydisDecodedInstruction z;
    uint8_t rest[16] = {0x67}; /* one prefix at most that the length depends on */
    unsigned n = 0, kept = 0;
    bool too_long = st == ZYDIS_STATUS_NO_MORE_DATA || st == ZYDIS_STATUS_INSTRUCTION_TOO_LONG;
    if (avail < 15) return st == ZYDIS_STATUS_NO_MORE_DATA ? -2 : -1;
    for (; n < 14 && is_prefix(bytes[n], rex); n++) kept |= bytes[n] == 0x67;
    memcpy(rest + kept, bytes + n, avail - n);
    const uint8_t *op = bytes + n;
    if (n + least_length(op[0], n < 14 ? op[1] : 0) > 15) return -2;
    if (op[0] == 0x0f && n < 14 && (op[1] & 0xfe) == 0xa6) return -1;
    if (ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(d, NULL, rest, 15, &z)))
        return soft_isa_missing(&z) || (!too_long && n + z.length - kept <= 15) ? -1 : -2;
    return too_long ? -2 : -1;
}

/* F3 90 with REX.B is no PAUSE but XCHG R8, RAX. */
static void rex_pause(struct xinsn *x)
{
    x->in.mnemonic = ZYDIS_MNEMONIC_XCHG;
    x->kind = XK_COPY;
    x->reg_read = x->reg_write = 1u << 0 | 1u << 8;
}

int soft_decode_zydis(const uint8_t *bytes, unsigned avail, unsigned code_size, uint64_t rip, struct xinsn *x)
{
    ZydisDecodedInstruction z;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    const ZydisDecoder *d = code_size == 8 ? &decoder64 : code_size == 4 ? &decoder32 : &decoder16;
    ZyanStatus st = ZydisDecoderDecodeFull(d, bytes, avail, &z, ops);
    if (!ZYAN_SUCCESS(st)) return failed(d, st, bytes, avail, code_size == 8);
    bool w_undefined = z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX && z.raw.vex.W && code_size != 8;
    if (soft_isa_missing(&z) ||
        (w_undefined && (z.mnemonic == ZYDIS_MNEMONIC_VPEXTRD || z.mnemonic == ZYDIS_MNEMONIC_VPINSRD)))
        return -1;
    memset(x, 0, sizeof *x);
    struct insn *in = &x->in;
    in->rip = rip;
    in->mnemonic = (uint16_t)z.mnemonic;
    in->len = z.length;
    in->code_size = (uint8_t)code_size;
    in->op_size = (uint8_t)(z.operand_width / 8);
    in->addr_size = (uint8_t)(z.address_width / 8);
    in->stack_size = in->op_size;
    in->lock = z.attributes & ZYDIS_ATTRIB_HAS_LOCK;
    in->rep = z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE) ? 1
              : z.attributes & ZYDIS_ATTRIB_HAS_REPNE                       ? 2
                                                                            : 0;
    in->seg_override = z.attributes & ZYDIS_ATTRIB_HAS_SEGMENT;
    memcpy(in->bytes, bytes, z.length);
    convert_operands(x, &z, ops);
    bool plain = account_operands(x, &z, ops);
    account_flags(x, &z, ops);
    find_encoding(x, &z);
    x->gate = gate_of(&z);
    x->kind = classify(&z, ops, plain);
    if (x->kind == XK_JCC) x->cc = z.opcode & 15;
    soft_find_mask(x, &z, ops);
    if (z.mnemonic == ZYDIS_MNEMONIC_PAUSE && z.raw.rex.B) rex_pause(x);
    x->checks_mf = soft_checks_mf(&z, ops);
    x->w_ignored = code_size != 8 && soft_ignores_w(&z, ops);
    for (unsigned i = 0; i < z.operand_count_visible; i++)
        if (ops[i].encoding == ZYDIS_OPERAND_ENCODING_IS4) x->is4_bit7_ignored = code_size != 8;
    bool clears = z.mnemonic == ZYDIS_MNEMONIC_VZEROALL || z.mnemonic == ZYDIS_MNEMONIC_VZEROUPPER;
    if (clears && code_size != 8) x->kind = XK_SPECIAL; /* registers 8 to 15 stay */
    if (z.mnemonic == ZYDIS_MNEMONIC_CLFLUSH || z.mnemonic == ZYDIS_MNEMONIC_CLFLUSHOPT ||
        z.mnemonic == ZYDIS_MNEMONIC_CLWB)
        x->mem_size = 1; /* names its line by any byte of it */
    x->aligned = soft_needs_alignment(&z, x->mem_size, &x->aligned_unless_mm);
    if (x->uses_vsib) x->kind = XK_SPECIAL;
    x->bit_string = in->has_mem && in->ops >= 2 && in->op[1].kind == OP_REG &&
                    (z.mnemonic == ZYDIS_MNEMONIC_BT || z.mnemonic == ZYDIS_MNEMONIC_BTS ||
                     z.mnemonic == ZYDIS_MNEMONIC_BTR || z.mnemonic == ZYDIS_MNEMONIC_BTC);
    return 0;
}

int soft_decode(const uint8_t *bytes, unsigned avail, unsigned code_size, uint64_t rip, struct xinsn *x)
{
    if (code_size == 8 && soft_decode_quick(bytes, avail, rip, x)) return 0;
    return soft_decode_zydis(bytes, avail, code_size, rip, x);
}
