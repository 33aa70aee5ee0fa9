/* Blocks: straight-line code with forward branches, calls, counted loops and many memory operands that share base
 * registers, which is what a translator merges checks, caches pages and keeps flags over. */
#include <string.h>

#include "tests/diff/gen.h"

#define SLOTS_MAX 60

struct slot {
    uint8_t bytes[24];
    uint8_t len;
    uint8_t rel_at, rel_size; /* offset and bytes of a displacement to slot `target` */
    int target;               /* -1: none */
    bool rip_abs;             /* the displacement is of a RIP-relative operand at `abs` */
    uint64_t abs;
    uint8_t insn_len;  /* of the first instruction */
    uint8_t rel_extra; /* added to the target's address */
};

struct block {
    struct slot slot[SLOTS_MAX];
    unsigned n;
    uint16_t pointers, fixed; /* registers with addresses; registers nothing may write (pointers included) */
    uint16_t indices;
    const struct forms *f;
    struct diff_case *c;
    struct rng *r;
};

static struct slot *add(struct block *b, const void *bytes, unsigned len)
{
    struct slot *s = &b->slot[b->n < SLOTS_MAX ? b->n++ : SLOTS_MAX - 1];
    memset(s, 0, sizeof(*s));
    memcpy(s->bytes, bytes, len);
    s->len = s->insn_len = (uint8_t)len;
    s->target = -1;
    return s;
}

static const uint16_t common[] = {
    ZYDIS_MNEMONIC_MOV,     ZYDIS_MNEMONIC_MOV,       ZYDIS_MNEMONIC_MOV,        ZYDIS_MNEMONIC_MOV,
    ZYDIS_MNEMONIC_ADD,     ZYDIS_MNEMONIC_SUB,       ZYDIS_MNEMONIC_ADC,        ZYDIS_MNEMONIC_SBB,
    ZYDIS_MNEMONIC_CMP,     ZYDIS_MNEMONIC_TEST,      ZYDIS_MNEMONIC_AND,        ZYDIS_MNEMONIC_OR,
    ZYDIS_MNEMONIC_XOR,     ZYDIS_MNEMONIC_INC,       ZYDIS_MNEMONIC_DEC,        ZYDIS_MNEMONIC_NEG,
    ZYDIS_MNEMONIC_NOT,     ZYDIS_MNEMONIC_LEA,       ZYDIS_MNEMONIC_SHL,        ZYDIS_MNEMONIC_SHR,
    ZYDIS_MNEMONIC_SAR,     ZYDIS_MNEMONIC_ROL,       ZYDIS_MNEMONIC_ROR,        ZYDIS_MNEMONIC_RCL,
    ZYDIS_MNEMONIC_RCR,     ZYDIS_MNEMONIC_IMUL,      ZYDIS_MNEMONIC_MUL,        ZYDIS_MNEMONIC_MOVZX,
    ZYDIS_MNEMONIC_MOVSX,   ZYDIS_MNEMONIC_MOVSXD,    ZYDIS_MNEMONIC_XCHG,       ZYDIS_MNEMONIC_XADD,
    ZYDIS_MNEMONIC_CMPXCHG, ZYDIS_MNEMONIC_BT,        ZYDIS_MNEMONIC_BTS,        ZYDIS_MNEMONIC_BTR,
    ZYDIS_MNEMONIC_BSF,     ZYDIS_MNEMONIC_BSR,       ZYDIS_MNEMONIC_TZCNT,      ZYDIS_MNEMONIC_LZCNT,
    ZYDIS_MNEMONIC_POPCNT,  ZYDIS_MNEMONIC_BEXTR,     ZYDIS_MNEMONIC_PEXT,       ZYDIS_MNEMONIC_ADCX,
    ZYDIS_MNEMONIC_ADOX,    ZYDIS_MNEMONIC_BSWAP,     ZYDIS_MNEMONIC_MOVBE,      ZYDIS_MNEMONIC_PUSH,
    ZYDIS_MNEMONIC_PUSH,    ZYDIS_MNEMONIC_POP,       ZYDIS_MNEMONIC_POP,        ZYDIS_MNEMONIC_SETZ,
    ZYDIS_MNEMONIC_SETB,    ZYDIS_MNEMONIC_SETNLE,    ZYDIS_MNEMONIC_CMOVZ,      ZYDIS_MNEMONIC_CMOVB,
    ZYDIS_MNEMONIC_CMOVNLE, ZYDIS_MNEMONIC_LAHF,      ZYDIS_MNEMONIC_SAHF,       ZYDIS_MNEMONIC_PUSHFQ,
    ZYDIS_MNEMONIC_CMC,     ZYDIS_MNEMONIC_STC,       ZYDIS_MNEMONIC_SHLD,       ZYDIS_MNEMONIC_SHRD,
    ZYDIS_MNEMONIC_CDQ,     ZYDIS_MNEMONIC_CMPXCHG8B, ZYDIS_MNEMONIC_CMPXCHG16B, ZYDIS_MNEMONIC_MOVSB,
    ZYDIS_MNEMONIC_MOVSQ,   ZYDIS_MNEMONIC_STOSD,     ZYDIS_MNEMONIC_STOSB,      ZYDIS_MNEMONIC_LODSQ,
    ZYDIS_MNEMONIC_SCASB,   ZYDIS_MNEMONIC_CMPSB,     ZYDIS_MNEMONIC_CMPSQ,      ZYDIS_MNEMONIC_MOVDQU,
    ZYDIS_MNEMONIC_MOVUPS,  ZYDIS_MNEMONIC_MOVQ,      ZYDIS_MNEMONIC_MOVSD,      ZYDIS_MNEMONIC_ADDSD,
    ZYDIS_MNEMONIC_MULSD,   ZYDIS_MNEMONIC_CVTSI2SD,  ZYDIS_MNEMONIC_UCOMISD,    ZYDIS_MNEMONIC_PXOR,
    ZYDIS_MNEMONIC_VMOVDQU, ZYDIS_MNEMONIC_VADDPD,    ZYDIS_MNEMONIC_VPADDD,     ZYDIS_MNEMONIC_FLD,
    ZYDIS_MNEMONIC_FSTP,    ZYDIS_MNEMONIC_FADD,      ZYDIS_MNEMONIC_LEAVE,      ZYDIS_MNEMONIC_ENTER,
    ZYDIS_MNEMONIC_XLAT,    ZYDIS_MNEMONIC_POPFQ,     ZYDIS_MNEMONIC_CLD,        ZYDIS_MNEMONIC_CLD,
    ZYDIS_MNEMONIC_STD,     ZYDIS_MNEMONIC_DIV};

static const struct mnem *pick(struct block *b)
{
    for (;;) {
        const struct mnem *m;
        if (rnd_pct(b->r, 65))
            m = forms_find(b->f, common[rnd_below(b->r, sizeof(common) / sizeof(*common))]);
        else
            m = &b->f->mnem[rnd_below(b->r, b->f->mnems)];
        if (!m || m->excluded) continue;
        switch (m->category) {
        case ZYDIS_CATEGORY_COND_BR:
        case ZYDIS_CATEGORY_UNCOND_BR:
        case ZYDIS_CATEGORY_CALL:
        case ZYDIS_CATEGORY_RET:
        case ZYDIS_CATEGORY_INTERRUPT:
        case ZYDIS_CATEGORY_SYSTEM:
        case ZYDIS_CATEGORY_SYSCALL:
        case ZYDIS_CATEGORY_SYSRET:
        case ZYDIS_CATEGORY_IO:
        case ZYDIS_CATEGORY_IOSTRINGOP:
        case ZYDIS_CATEGORY_SEGOP: continue;
        default: break;
        }
        if (m->mnemonic == ZYDIS_MNEMONIC_FNSAVE || m->mnemonic == ZYDIS_MNEMONIC_FNSTENV ||
            m->mnemonic == ZYDIS_MNEMONIC_FXSAVE || m->mnemonic == ZYDIS_MNEMONIC_FXSAVE64 ||
            m->mnemonic == ZYDIS_MNEMONIC_XSAVE || m->mnemonic == ZYDIS_MNEMONIC_XSAVE64)
            continue; /* what they say about the last x87 instruction is not compared, so it must not be loaded either */
        if (m->mnemonic >= ZYDIS_MNEMONIC_UD0 && m->mnemonic <= ZYDIS_MNEMONIC_UD2) continue;
        return m;
    }
}

static int gpr_index(ZydisRegister reg)
{
    ZydisRegister full = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
    return full < ZYDIS_REGISTER_RAX || full > ZYDIS_REGISTER_R15 ? -1 : (int)full - ZYDIS_REGISTER_RAX;
}

/* Whether the instruction leaves the pointers usable and its memory operands hang on them. */
static bool fits(const struct block *b, const struct insn_code *ic)
{
    bool bit_op =
        ic->d.opcode_map == ZYDIS_OPCODE_MAP_0F && (ic->d.opcode & 0xe7) == 0xa3; /* BT, BTS, BTR, BTC r/m, r */
    for (unsigned i = 0; i < ic->d.operand_count; i++) {
        const ZydisDecodedOperand *o = &ic->op[i];
        int n = o->type == ZYDIS_OPERAND_TYPE_REGISTER ? gpr_index(o->reg.value) : -1;
        if (n >= 0 && (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && (b->fixed >> n & 1) &&
            !(o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN && (n == 4 || n == 5 || n == 6 || n == 7)))
            return false;
        if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && !rnd_pct(b->r, 3)) { /* MOV, POP: mostly #GP */
            ZydisRegisterClass k = ZydisRegisterGetClass(o->reg.value);
            if (k == ZYDIS_REGCLASS_SEGMENT || k == ZYDIS_REGCLASS_CONTROL || k == ZYDIS_REGCLASS_DEBUG) return false;
        }
        if (n >= 0 && bit_op && i == 1 && ic->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY && !(b->indices >> n & 1))
            return false;
        if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.type == ZYDIS_MEMOP_TYPE_AGEN) continue;
        n = gpr_index(o->mem.base);
        if (n >= 0 && !(b->pointers >> n & 1)) return false;
        n = o->mem.type == ZYDIS_MEMOP_TYPE_VSIB ? -1 : gpr_index(o->mem.index);
        if (n >= 0 && !(b->indices >> n & 1) && ic->d.mnemonic != ZYDIS_MNEMONIC_XLAT) return false;
        if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB && !rnd_pct(b->r, 10)) return false;
    }
    return true;
}

/* mov ecx/count before a repeated string instruction */
static void add_count(struct block *b, unsigned max)
{
    uint8_t mov[5] = {0xb9, (uint8_t)rnd_below(b->r, max), 0, 0, 0};
    add(b, mov, 5);
}

/* Flags that an instruction leaves undefined must not be seen by the rest of the block: what they hold depends on what
 * they held before, which a translator need not keep. So one that defines all of them follows, in the same slot. (The
 * AF of logical instructions and shifts and the OF of these are exceptions: they come from the CPU's ALU alone, or, for a count of 0, are kept.) */
static void append_flag_writer(struct block *b, struct slot *s, const struct insn_code *ic)
{
    uint32_t undefined = ic->d.cpu_flags ? ic->d.cpu_flags->undefined & 0x8d5 : 0;
    if (!undefined || (ic->d.meta.category == ZYDIS_CATEGORY_LOGICAL && undefined == 0x10) ||
        ic->d.meta.category == ZYDIS_CATEGORY_SHIFT || ic->d.meta.category == ZYDIS_CATEGORY_ROTATE)
        return;
    static const uint8_t writer[][2] = {{0x38, 0xc8}, {0x39, 0xd0}, {0x38, 0xe2}, {0x39, 0xcb}}; /* CMP */
    memcpy(s->bytes + s->len, writer[rnd_below(b->r, 4)], 2);
    s->len += 2;
}

static void add_generic(struct block *b)
{
    struct insn_code ic;
    struct emit_opt opt = {.bases = b->pointers, .indices = b->indices};
    for (unsigned tries = 0; tries < 60; tries++) {
        const struct mnem *m = pick(b);
        const struct form *form = forms_pick(b->f, m, b->r, true);
        if (!form || !forms_emit(b->f, form, b->r, &opt, &ic) || !fits(b, &ic)) continue;
        if (ic.d.mnemonic == ZYDIS_MNEMONIC_ENTER) {
            ic.bytes[ic.d.raw.imm[0].offset] &= 0x38;
            ic.bytes[ic.d.raw.imm[0].offset + 1] = 0;
            ic.bytes[ic.d.raw.imm[1].offset] &= 3;
        }
        bool rep = ic.d.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
        if (rep) {
            if (b->fixed & 2) continue; /* RCX counts a loop */
            add_count(b, 12);
        }
        struct slot *s = add(b, ic.bytes, ic.len);
        append_flag_writer(b, s, &ic);
        for (unsigned i = 0; i < ic.d.operand_count; i++)
            if (ic.op[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
                (ic.op[i].mem.base == ZYDIS_REGISTER_RIP || ic.op[i].mem.base == ZYDIS_REGISTER_EIP)) {
                s->rip_abs = true;
                s->rel_at = ic.d.raw.disp.offset;
                s->abs = gen_target(b->r, ic.op[i].size / 8, true);
            }
        return;
    }
    uint8_t nop = 0x90;
    add(b, &nop, 1);
}

static void add_pointer_move(struct block *b)
{
    unsigned n = 0;
    uint8_t w = b->f->mode == MODE_64 ? 0x48 : 0;
    do n = rnd_below(b->r, b->f->mode == MODE_64 ? 16 : 8);
    while (!(b->pointers >> n & 1));
    int8_t by = (int8_t)(8 * (int)rnd_below(b->r, 9) - 32);
    uint8_t add_imm[4] = {(uint8_t)(w | n >> 3), 0x83, (uint8_t)((rnd_pct(b->r, 50) ? 0xc0 : 0xe8) | (n & 7)),
                          (uint8_t)by};
    uint8_t lea[5] = {(uint8_t)(w | n >> 3 | n >> 3 << 2), 0x8d, (uint8_t)(0x44 | (n & 7) << 3), 0x24, (uint8_t)by};
    if (n & 8) lea[0] = w | 4; /* lea n, [rsp + by] */
    /* A page further or back: what was concluded about the old page no longer holds. */
    uint8_t far[7] = {add_imm[0], 0x81, add_imm[2], 0, (uint8_t)(rnd_pct(b->r, 80) ? 0x10 : 0x20)};
    if (rnd_pct(b->r, 15))
        add(b, far + !w, 7 - !w);
    else if (rnd_pct(b->r, 75) || n == 4)
        add(b, add_imm + !w, 4 - !w);
    else
        add(b, lea + !w, 5 - !w);
}

static int later(struct block *b, unsigned max)
{
    return (int)(b->n + 1 + rnd_below(b->r, max));
}

static void add_jump(struct block *b)
{
    unsigned kind = rnd_below(b->r, 10);
    struct slot *s;
    if (kind < 6) {
        uint8_t jcc[6] = {0x0f, (uint8_t)(0x80 + rnd_below(b->r, 16))};
        int to = later(b, 5);
        s = add(b, jcc, 6);
        s->rel_at = 2;
        s->rel_size = 4;
        s->target = to;
    } else if (kind < 8) {
        uint8_t jcc[2] = {(uint8_t)(0x70 + rnd_below(b->r, 16))};
        int to = later(b, 4);
        s = add(b, jcc, 2);
        s->rel_at = 1;
        s->rel_size = 1;
        s->target = to;
    } else {
        uint8_t jmp[5] = {kind == 8 ? 0xe9 : 0xe8};
        int to = later(b, 3);
        s = add(b, jmp, 5);
        s->rel_at = 1;
        s->rel_size = 4;
        s->target = to;
    }
}

/* call F; jmp over; F: something; ret; over: */
static void add_call_ret(struct block *b)
{
    uint8_t call[5] = {0xe8}, jmp[5] = {0xe9}, ret[3] = {0xc3};
    bool pops = rnd_pct(b->r, 20); /* ret imm16 */
    struct slot *s = add(b, call, 5);
    s->rel_at = 1;
    s->rel_size = 4;
    s->target = (int)b->n + 1;
    s = add(b, jmp, 5);
    s->rel_at = 1;
    s->rel_size = 4;
    unsigned jmp_at = b->n - 1;
    for (unsigned i = rnd_below(b->r, 3); i > 0; i--) add_generic(b);
    if (pops) {
        ret[0] = 0xc2;
        ret[1] = (uint8_t)(8 * rnd_below(b->r, 5));
    }
    add(b, ret, pops ? 3 : 1);
    b->slot[jmp_at].target = (int)b->n;
}

/* lea reg, [rip + label]; then jmp reg, or push reg and ret (which no call matches) */
static void add_indirect(struct block *b)
{
    unsigned n;
    if (b->f->mode != MODE_64) return;
    do n = rnd_below(b->r, 16);
    while (b->fixed >> n & 1);
    uint8_t lea[7] = {(uint8_t)(0x48 | n >> 3 << 2), 0x8d, (uint8_t)(0x05 | (n & 7) << 3)};
    uint8_t jmp[3] = {(uint8_t)(0x40 | n >> 3), 0xff, (uint8_t)(0xe0 | (n & 7))};
    uint8_t push[2] = {(uint8_t)(0x40 | n >> 3), (uint8_t)(0x50 | (n & 7))}, ret = 0xc3;
    struct slot *s = add(b, lea, 7);
    s->rel_at = 3;
    s->rel_size = 4;
    if (rnd_pct(b->r, 50)) {
        if (rnd_pct(b->r, 30)) jmp[2] = (uint8_t)(0xd0 | (n & 7)); /* call */
        s->target = (int)b->n + 1 + (int)rnd_below(b->r, 3);
        add(b, jmp, 3);
    } else {
        s->target = (int)b->n + 2 + (int)rnd_below(b->r, 3);
        add(b, push, 2);
        add(b, &ret, 1);
    }
}

/* mov byte [rip + x], v, where x is the immediate of a later (in a loop also an earlier) mov r32, imm32: code that
 * modifies itself within the block. */
static void add_self_modification(struct block *b)
{
    if (b->f->mode != MODE_64) return;
    if ((b->fixed & 0xff) == 0xff) return;
    unsigned n;
    do n = rnd_below(b->r, 8);
    while (b->fixed >> n & 1);
    uint8_t store[7] = {0xc6, 0x05, 0, 0, 0, 0, (uint8_t)rnd(b->r)};
    uint8_t load[5] = {(uint8_t)(0xb8 | n), (uint8_t)rnd(b->r), (uint8_t)rnd(b->r), 0, 0};
    bool before = rnd_pct(b->r, 30);
    unsigned gap = rnd_below(b->r, 3);
    if (before) {
        add(b, load, 5);
        for (unsigned i = 0; i < gap; i++) add_generic(b);
    }
    struct slot *s = add(b, store, 7);
    s->rel_at = 2;
    s->rel_size = 4;
    s->rel_extra = 1 + (uint8_t)rnd_below(b->r, 4);
    s->target = before ? (int)(b->n - 2 - gap) : (int)(b->n + gap);
    for (unsigned i = 0; !before && i < gap; i++) add_generic(b);
    if (!before) add(b, load, 5);
    /* What add_generic() makes may take two slots: the target is where the load really is. */
    for (unsigned i = 0; i < b->n; i++)
        if (b->slot[i].len == 5 && !memcmp(b->slot[i].bytes, load, 5)) s->target = (int)i;
}

/* mov ecx, n; body; dec ecx/loop back. Nothing in the body writes RCX. */
static void add_loop(struct block *b)
{
    uint8_t mov[5] = {0xb9, (uint8_t)(1 + rnd_below(b->r, 6))}, dec[2] = {0xff, 0xc9};
    uint16_t fixed = b->fixed;
    if (b->fixed & 2) return;
    add(b, mov, 5);
    int head = (int)b->n;
    b->fixed |= 2;
    for (unsigned i = 1 + rnd_below(b->r, 6); i > 0; i--)
        rnd_pct(b->r, 10)   ? add_call_ret(b)
        : rnd_pct(b->r, 15) ? add_pointer_move(b)
        : rnd_pct(b->r, 5)  ? add_self_modification(b)
                            : add_generic(b);
    b->fixed = fixed;
    add(b, dec, 2);
    uint8_t jnz[6] = {0x0f, 0x85};
    struct slot *s = add(b, jnz, 6);
    s->rel_at = 2;
    s->rel_size = 4;
    s->target = head;
    /* Nothing jumps past the counter's start into the loop: it would run for ages. */
    for (int i = 0; i < head - 1; i++)
        if (b->slot[i].target >= head && b->slot[i].rel_size) b->slot[i].target = head - 1;
    b->c->loops = true;
}

static bool assemble(struct block *b)
{
    struct diff_case *c = b->c;
    unsigned at = 0;
    c->insns = b->n;
    for (unsigned i = 0; i < b->n; i++) {
        if (at + b->slot[i].len > CODE_MAX) return false;
        c->insn_off[i] = (uint16_t)at;
        memcpy(c->code + at, b->slot[i].bytes, b->slot[i].len);
        at += b->slot[i].len;
    }
    c->code_len = at;
    for (unsigned i = 0; i < b->n; i++) {
        const struct slot *s = &b->slot[i];
        unsigned next = c->insn_off[i] + s->len;
        int32_t v;
        if (s->rip_abs) {
            v = (int32_t)(s->abs - (c->rip + c->insn_off[i] + s->insn_len));
        } else if (s->target >= 0) {
            unsigned to = (unsigned)s->target < b->n ? c->insn_off[s->target] : at;
            v = (int32_t)to + s->rel_extra - (int32_t)next;
            if (s->rel_size == 1 && (v > 127 || v < -128)) return false;
        } else {
            continue;
        }
        memcpy(c->code + c->insn_off[i] + s->rel_at, &v, s->rip_abs ? 4 : s->rel_size);
    }
    return true;
}

static void choose_registers(struct block *b)
{
    struct diff_case *c = b->c;
    unsigned regs = b->f->mode == MODE_64 ? 16 : 8;
    b->pointers = 1u << 4 | 1u << 5 | 1u << 6 | 1u << 7;
    for (unsigned i = rnd_below(b->r, regs / 4); i > 0; i--) b->pointers |= (uint16_t)(1u << rnd_below(b->r, regs));
    b->pointers &= (uint16_t)~2u; /* RCX counts */
    do b->indices = (uint16_t)(1u << rnd_below(b->r, regs) | 1u << rnd_below(b->r, regs));
    while (b->indices & (b->pointers | 2));
    b->fixed = b->pointers | b->indices;
    for (unsigned i = 0; i < regs; i++) {
        if (b->pointers >> i & 1) c->gpr[i] = gen_target(b->r, 16, rnd_pct(b->r, 92));
        if (b->indices >> i & 1) c->gpr[i] = rnd_pct(b->r, 90) ? rnd_below(b->r, 64) : rnd_below(b->r, 64) - 64ull;
        if (b->f->mode == MODE_32) c->gpr[i] = (uint32_t)c->gpr[i];
    }
    if (rnd_pct(b->r, 80))
        c->gpr[4] = (DATA_BASE + 2 * PAGE + rnd_below(b->r, 0x800)) & (rnd_pct(b->r, 90) ? ~7ull : ~0ull);
    if (rnd_pct(b->r, 50)) /* one base near another: checks can be merged */
        c->gpr[5] = c->gpr[4] + 8 * rnd_below(b->r, 32);
    if (b->f->mode == MODE_64) {
        c->fs_base = rnd_below(b->r, 2) ? rnd_below(b->r, 0x400) : 0;
        c->gs_base = rnd_below(b->r, 2) ? rnd_below(b->r, 0x400) : 0;
    }
    c->rflags &= ~0x40100ull; /* no AC or TF from the start */
    if (rnd_pct(b->r, 85)) c->rflags &= ~0x400ull;
}

bool gen_block(struct diff_case *c, const struct forms *f, uint64_t seed)
{
    struct rng r = {seed};
    struct block b = {.f = f, .c = c, .r = &r};
    gen_state(c, &r, f->mode);
    c->seed = seed;
    choose_registers(&b);
    unsigned want = 2 + rnd_below(&r, rnd_pct(&r, 60) ? 10 : 38);
    while (b.n < want && b.n < SLOTS_MAX - 16) {
        unsigned k = rnd_below(&r, 100);
        if (k < 80)
            add_generic(&b);
        else if (k < 87)
            add_pointer_move(&b);
        else if (k < 93)
            add_jump(&b);
        else if (k < 96)
            add_call_ret(&b);
        else if (k < 97)
            add_indirect(&b);
        else if (k < 98)
            add_self_modification(&b);
        else
            add_loop(&b);
    }
    c->rip = rnd_pct(&r, 75) ? CODE_BASE + rnd_below(&r, 0x400) : CODE_BASE + PAGE - rnd_below(&r, 300);
    return assemble(&b);
}
