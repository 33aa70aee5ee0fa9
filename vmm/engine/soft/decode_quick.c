/* The common instructions of 64-bit code, decoded without Zydis, which takes most of a translation's time otherwise. What each of them is was
 * asked of Zydis once, at the start: a form (opcode, prefix, REX.W, ModRM.reg where that is part of the opcode, register or memory)
 * has a finished struct xinsn with R13 and R14 as its registers, and only registers, address and constants are filled in here.
 * tests/unit/test_soft_decode.c compares the two for every form. Whatever is not plain is left to Zydis. */
#include "vmm/engine/soft/decode.h"

#include <string.h>

#define FORMS_MAX 1600u
#define SAMPLE_REG 13u
#define SAMPLE_RM 14u
#define SAMPLES (1u << SAMPLE_REG | 1u << SAMPLE_RM)

/* What follows the opcode. */
enum {
    Q_NONE = 0,
    Q_MODRM = 1,
    Q_GROUP = 2,
    Q_REG = 4,
    Q_IMM8 = 8,
    Q_IMMZ = 16,
    Q_IMMV = 32,
    Q_NO66 = 64,
    Q_CLAIMED = 128
};

enum role { ROLE_FIXED, ROLE_REG, ROLE_RM, ROLE_MEM, ROLE_IMM };

/* What an operand's register adds to the masks. */
#define USE_READ 1u
#define USE_WRITE 2u
#define USE_KILL 4u

struct form {
    struct xinsn x;
    uint8_t role[INSN_MAX_OPS];
    uint8_t use_reg, use_rm; /* USE_* of the registers in ModRM.reg, and in ModRM.rm or the opcode */
    uint8_t imm_bytes;
    bool imm_signed;
    bool zeroes; /* with one register twice it only writes */
};

static struct form forms[FORMS_MAX + 1];
static unsigned form_count;
/* By opcode map, opcode, ModRM.reg (0 when no group) and prefix (none, 66, F3, F2) with REX.W; [1]: with a memory operand. 0: none. */
static uint16_t form_of[2][256][8][8][2];

/* ---- which opcodes are taken on ---- */

static unsigned shape_one_byte(unsigned op)
{
    if (op < 0x40) {
        static const uint8_t alu[8] = {
            Q_MODRM | Q_NO66, Q_MODRM, Q_MODRM | Q_NO66, Q_MODRM, Q_IMM8 | Q_NO66, Q_IMMZ, 0, 0};
        return (op & 7) < 6 ? alu[op & 7] | Q_CLAIMED : 0;
    }
    switch (op) {
    case 0x50 ... 0x5f: return Q_REG | Q_NO66 | Q_CLAIMED;
    case 0x63: return Q_MODRM | Q_CLAIMED;
    case 0x68: return Q_IMMZ | Q_NO66 | Q_CLAIMED;
    case 0x6a: return Q_IMM8 | Q_NO66 | Q_CLAIMED;
    case 0x69: return Q_MODRM | Q_IMMZ | Q_CLAIMED;
    case 0x6b: return Q_MODRM | Q_IMM8 | Q_CLAIMED;
    case 0x70 ... 0x7f:
    case 0xeb: return Q_IMM8 | Q_NO66 | Q_CLAIMED;
    case 0x80:
    case 0xc0: return Q_MODRM | Q_GROUP | Q_IMM8 | Q_NO66 | Q_CLAIMED;
    case 0x81: return Q_MODRM | Q_GROUP | Q_IMMZ | Q_CLAIMED;
    case 0x83:
    case 0xc1: return Q_MODRM | Q_GROUP | Q_IMM8 | Q_CLAIMED;
    case 0x84:
    case 0x86:
    case 0x88:
    case 0x8a: return Q_MODRM | Q_NO66 | Q_CLAIMED;
    case 0x85:
    case 0x87:
    case 0x89:
    case 0x8b:
    case 0x8d: return Q_MODRM | Q_CLAIMED;
    case 0x90:
    case 0xc3:
    case 0xc9: return Q_NO66 | Q_CLAIMED;
    case 0x98:
    case 0x99: return Q_CLAIMED;
    case 0xa8: return Q_IMM8 | Q_NO66 | Q_CLAIMED;
    case 0xa9: return Q_IMMZ | Q_CLAIMED;
    case 0xb0 ... 0xb7: return Q_REG | Q_IMM8 | Q_NO66 | Q_CLAIMED;
    case 0xb8 ... 0xbf: return Q_REG | Q_IMMV | Q_CLAIMED;
    case 0xc6: return Q_MODRM | Q_GROUP | Q_IMM8 | Q_NO66 | Q_CLAIMED;
    case 0xc7: return Q_MODRM | Q_GROUP | Q_IMMZ | Q_CLAIMED;
    case 0xd0:
    case 0xd2:
    case 0xf6:
    case 0xfe: return Q_MODRM | Q_GROUP | Q_NO66 | Q_CLAIMED;
    case 0xd1:
    case 0xd3:
    case 0xf7: return Q_MODRM | Q_GROUP | Q_CLAIMED;
    case 0xff: return Q_MODRM | Q_GROUP | Q_NO66 | Q_CLAIMED;
    case 0xe8:
    case 0xe9: return Q_IMMZ | Q_NO66 | Q_CLAIMED;
    default: return 0;
    }
}

static unsigned shape_two_bytes(unsigned op)
{
    switch (op) {
    case 0x10:
    case 0x11:
    case 0x14:
    case 0x16:
    case 0x17:
    case 0x1f:
    case 0x28 ... 0x2a:
    case 0x2c ... 0x2f:
    case 0x40 ... 0x4f:
    case 0x51:
    case 0x54:
    case 0x57 ... 0x6f:
    case 0x74 ... 0x76:
    case 0x7e:
    case 0x7f:
    case 0xaf:
    case 0xb6:
    case 0xb7:
    case 0xbe:
    case 0xbf:
    case 0xd4:
    case 0xd6:
    case 0xd7:
    case 0xda:
    case 0xdb:
    case 0xde:
    case 0xeb:
    case 0xef:
    case 0xf8 ... 0xfe: return Q_MODRM | Q_CLAIMED;
    case 0x70:
    case 0xc6: return Q_MODRM | Q_IMM8 | Q_CLAIMED;
    case 0x80 ... 0x8f: return Q_IMMZ | Q_NO66 | Q_CLAIMED;
    case 0x90 ... 0x9f: return Q_MODRM | Q_NO66 | Q_CLAIMED;
    default: return 0;
    }
}

static uint8_t shapes[2][256];

static unsigned imm_size(unsigned map, unsigned op, unsigned shape, unsigned ext, unsigned variant)
{
    bool w = variant & 1, small = variant >> 1 == 1;
    if (map == 0 && (op == 0xf6 || op == 0xf7)) shape |= ext > 1 ? 0 : op == 0xf6 ? Q_IMM8 : Q_IMMZ;
    if (shape & Q_IMM8) return 1;
    if (shape & Q_IMMV) return w ? 8 : small ? 2 : 4;
    if (shape & Q_IMMZ) return small && !w ? 2 : 4;
    return 0;
}

/* REX.W says nothing there, and compilers leave it out. */
static bool w_is_rare(unsigned map, unsigned op, unsigned prefix)
{
    if (map == 0) return prefix == 1;
    switch (op) {
    case 0x2a:
    case 0x2c:
    case 0x2d:
    case 0x6e:
    case 0x7e: return prefix == 0;
    case 0x40 ... 0x4f:
    case 0xaf:
    case 0xb6:
    case 0xb7:
    case 0xbe:
    case 0xbf: return prefix != 0;
    default: return true;
    }
}

/* ---- asking Zydis ---- */

static bool is_shift(unsigned map, unsigned op)
{
    return map == 0 && (op == 0xc0 || op == 0xc1);
}

static bool plain_kind(const struct xinsn *x)
{
    switch (x->kind) {
    case XK_SPECIAL:
    case XK_STEP:
    case XK_LEA_RIP: return false;
    default: break;
    }
    return (x->gate == GATE_NONE || x->gate == GATE_SSE) && x->enc == ENC_LEGACY && !x->checks_mf && !x->bit_string &&
           !x->masked && !x->uses_vsib;
}

static unsigned uses(const struct xinsn *x, unsigned reg)
{
    return (x->reg_read >> reg & 1 ? USE_READ : 0) | (x->reg_write >> reg & 1 ? USE_WRITE : 0) |
           (x->reg_kill >> reg & 1 ? USE_KILL : 0);
}

/* The operand's part in the encoding; false when it is none that decode_quick() knows. */
static bool find_role(struct form *f, unsigned i, uint64_t sample)
{
    struct insn_op *o = &f->x.in.op[i];
    f->role[i] = ROLE_FIXED;
    switch (o->kind) {
    case OP_MEM: f->role[i] = ROLE_MEM; return true;
    case OP_REG:
        if (o->reg_class != RC_GPR && o->reg_class != RC_OTHER) return false;
        if (o->reg == SAMPLE_REG) f->role[i] = ROLE_REG;
        if (o->reg == SAMPLE_RM) f->role[i] = ROLE_RM;
        return true;
    case OP_IMM: {
        if (!f->imm_bytes) return true;
        uint64_t extended = f->imm_bytes == 8 ? sample : sample | ~0ull << (8 * f->imm_bytes);
        f->role[i] = ROLE_IMM;
        f->imm_signed = o->imm == extended && extended != sample;
        return o->imm == sample || o->imm == extended;
    }
    default: return false;
    }
}

static void ask(unsigned map, unsigned op, unsigned ext, unsigned variant, bool memory)
{
    static const uint8_t prefix[4] = {0, 0x66, 0xf3, 0xf2};
    unsigned shape = shapes[map][op], n = 0;
    uint8_t b[16] = {0};
    struct form *f = &forms[form_count + 1];
    if (variant >> 1) b[n++] = prefix[variant >> 1];
    /* Without W, B or R there is no REX; with any the sample needs one. */
    bool extended = shape & (Q_MODRM | Q_REG);
    if (extended || variant & 1)
        b[n++] = (uint8_t)(0x40 | (variant & 1) << 3 | (shape & Q_MODRM && !(shape & Q_GROUP) ? 4 : 0) | extended);
    if (map) b[n++] = 0x0f;
    b[n++] = (uint8_t)(shape & Q_REG ? (op & 0xf8) | (SAMPLE_RM & 7) : op);
    if (shape & Q_MODRM)
        b[n++] = (uint8_t)((memory ? 0 : 0xc0) | (shape & Q_GROUP ? ext : SAMPLE_REG & 7) << 3 | (SAMPLE_RM & 7));
    memset(f, 0, sizeof *f);
    f->imm_bytes = (uint8_t)imm_size(map, op, shape, ext, variant);
    uint64_t sample = 0;
    for (unsigned i = 0; i < f->imm_bytes; i++) {
        b[n + i] = is_shift(map, op) ? 1 : 0x80;
        sample |= (uint64_t)b[n + i] << (8 * i);
    }
    n += f->imm_bytes;
    if (soft_decode_zydis(b, 15, 8, 0, &f->x) || f->x.in.len != n || !plain_kind(&f->x)) return;
    for (unsigned i = 0; i < f->x.in.ops; i++)
        if (!find_role(f, i, sample)) return;
    f->use_reg = (uint8_t)uses(&f->x, SAMPLE_REG);
    f->use_rm = (uint8_t)uses(&f->x, SAMPLE_RM);
    f->x.reg_read &= (uint16_t)~SAMPLES;
    f->x.reg_write &= (uint16_t)~SAMPLES;
    f->x.reg_kill &= (uint16_t)~SAMPLES;
    f->zeroes = (f->x.in.mnemonic == ZYDIS_MNEMONIC_XOR || f->x.in.mnemonic == ZYDIS_MNEMONIC_SUB) &&
                f->role[0] + f->role[1] == ROLE_REG + ROLE_RM && f->x.in.op[0].size >= 4;
    memset(f->x.in.bytes, 0, sizeof f->x.in.bytes);
    form_of[map][op][ext][variant][memory] = (uint16_t)++form_count;
}

static void ask_variants(unsigned map, unsigned op)
{
    unsigned shape = shapes[map][op];
    unsigned variants = map ? 8 : 4;
    if (shape & Q_NO66) variants = 2;
    for (unsigned v = 0; v < variants; v++)
        for (unsigned ext = 0; ext < (shape & Q_GROUP ? 8u : 1u); ext++)
            for (unsigned memory = 0; memory < (shape & Q_MODRM ? 2u : 1u); memory++) {
                if (v & 1 && w_is_rare(map, op, v >> 1)) continue;
                if (form_count < FORMS_MAX) ask(map, op, ext, v, memory);
            }
}

void soft_quick_init(void)
{
    if (form_count) return;
    for (unsigned op = 0; op < 256; op++) {
        shapes[0][op] = (uint8_t)shape_one_byte(op);
        shapes[1][op] = (uint8_t)shape_two_bytes(op);
    }
    for (unsigned map = 0; map < 2; map++)
        for (unsigned op = 0; op < 256; op++)
            if (shapes[map][op] & Q_CLAIMED) {
                bool same_as_first = shapes[map][op] & Q_REG && op & 7;
                if (same_as_first)
                    memcpy(form_of[map][op], form_of[map][op & ~7u], sizeof form_of[map][op]);
                else
                    ask_variants(map, op);
            }
}

/* ---- decoding ---- */

struct cursor {
    const uint8_t *bytes;
    unsigned at, avail;
    uint8_t rex, seg, pfx; /* pfx: 0, 1 (66), 2 (F3), 3 (F2) */
};

static bool read_prefixes(struct cursor *c)
{
    for (; c->at < c->avail; c->at++) {
        switch (c->bytes[c->at]) {
        case 0x66:
            if (c->pfx) return false;
            c->pfx = 1;
            continue;
        case 0xf3:
            if (c->pfx) return false;
            c->pfx = 2;
            continue;
        case 0xf2:
            if (c->pfx) return false;
            c->pfx = 3;
            continue;
        case 0x64:
        case 0x65:
            if (c->seg) return false;
            c->seg = c->bytes[c->at];
            continue;
        default: break;
        }
        if ((c->bytes[c->at] & 0xf0) == 0x40) c->rex = c->bytes[c->at++];
        return c->at < c->avail;
    }
    return false;
}

static uint64_t read_le(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;
    for (unsigned i = n; i-- > 0;) v = v << 8 | p[i];
    return v;
}

static uint64_t sign_extend(uint64_t v, unsigned n)
{
    unsigned shift = 64 - 8 * n;
    return (uint64_t)((int64_t)(v << shift) >> shift);
}

static void use(struct xinsn *x, unsigned reg, unsigned what)
{
    uint16_t bit = (uint16_t)(1u << reg);
    if (what & USE_READ) x->reg_read |= bit;
    if (what & USE_WRITE) x->reg_write |= bit;
    if (what & USE_KILL) x->reg_kill |= bit;
}

/* ModRM, SIB and displacement of a memory operand; c->at is behind ModRM. */
static bool read_memory(struct cursor *c, struct xinsn *x, uint8_t modrm)
{
    unsigned mod = modrm >> 6, rm = modrm & 7, disp = mod == 1 ? 1 : mod == 2 ? 4 : 0;
    struct insn_mem *m = &x->in.mem;
    *m = (struct insn_mem){.base = (uint8_t)(rm | (c->rex & 1u) << 3), .index = INSN_NOREG, .scale = 1, .seg = SEG_DS};
    if (rm == 4) {
        if (c->at >= c->avail) return false;
        uint8_t sib = c->bytes[c->at++];
        unsigned index = (sib >> 3 & 7u) | (c->rex & 2u) << 2;
        m->base = (uint8_t)((sib & 7) | (c->rex & 1u) << 3);
        if (index != 4) {
            m->index = (uint8_t)index;
            m->scale = (uint8_t)(1u << (sib >> 6));
        }
        if ((sib & 7) == 5 && mod == 0) {
            m->base = INSN_NOREG;
            disp = 4;
        }
    } else if (rm == 5 && mod == 0) {
        m->base = INSN_RIP;
        disp = 4;
    }
    if (c->at + disp > c->avail) return false;
    if (disp) m->disp = (int64_t)sign_extend(read_le(c->bytes + c->at, disp), disp);
    c->at += disp;
    x->tail_off = (uint8_t)c->at;
    bool agen = x->kind == XK_COPY || x->kind == XK_NOP;
    if (m->base < 16) x->reg_read |= (uint16_t)(1u << m->base);
    if (m->index < 16) x->reg_read |= (uint16_t)(1u << m->index);
    if (x->kind == XK_COPY && m->base == INSN_RIP) { /* LEA */
        if (x->in.op_size < 4) return false;
        x->kind = XK_LEA_RIP;
    }
    if (m->base == R_RSP || m->base == R_RBP) m->seg = SEG_SS;
    if (!c->seg) return true;
    x->in.seg_override = true;
    m->seg = c->seg == 0x64 ? SEG_FS : SEG_GS;
    return !agen;
}

static void put_register(const struct cursor *c, struct xinsn *x, struct insn_op *o, unsigned reg, unsigned what)
{
    if (o->reg_class == RC_OTHER) {
        o->reg = (uint8_t)reg;
        return;
    }
    if (o->size == 1 && !c->rex && reg >= 4) { /* AH to BH */
        o->reg_class = RC_GPR_HIGH8;
        reg -= 4;
        x->no_rex = true;
    }
    o->reg = (uint8_t)reg;
    use(x, reg, what);
}

static bool put_operands(struct cursor *c, const struct form *f, struct xinsn *x, unsigned reg, unsigned rm)
{
    uint64_t imm = 0;
    if (f->imm_bytes) {
        if (c->at + f->imm_bytes > c->avail) return false;
        imm = read_le(c->bytes + c->at, f->imm_bytes);
        if (f->imm_signed) imm = sign_extend(imm, f->imm_bytes);
        c->at += f->imm_bytes;
    }
    for (unsigned i = 0; i < x->in.ops; i++) {
        switch (f->role[i]) {
        case ROLE_REG: put_register(c, x, &x->in.op[i], reg, f->use_reg); break;
        case ROLE_RM: put_register(c, x, &x->in.op[i], rm, f->use_rm); break;
        case ROLE_IMM: x->in.op[i].imm = imm; break;
        default: break;
        }
    }
    x->reg_kill &= (uint16_t)~x->reg_read;
    if (f->zeroes && reg == rm) {
        x->reg_read = 0;
        x->reg_kill = (uint16_t)(1u << reg);
    }
    return true;
}

bool soft_decode_quick(const uint8_t *bytes, unsigned avail, uint64_t rip, struct xinsn *x)
{
    struct cursor c = {.bytes = bytes, .avail = avail};
    if (!read_prefixes(&c)) return false;
    unsigned map = bytes[c.at] == 0x0f;
    if (c.at + map + 1 > avail) return false;
    unsigned op = bytes[c.at + map], shape = shapes[map][op];
    c.at += map + 1;
    if (!(shape & Q_CLAIMED)) return false;
    unsigned variant = c.pfx * 2u | (c.rex >> 3 & 1u), ext = 0, modrm_off = 0, reg = 0, rm = 0;
    uint8_t modrm = 0xc0;
    if (shape & Q_MODRM) {
        if (c.at >= avail) return false;
        modrm_off = c.at;
        modrm = bytes[c.at++];
        reg = (modrm >> 3 & 7u) | (c.rex & 4u) << 1;
        rm = (modrm & 7u) | (c.rex & 1u) << 3;
        if (shape & Q_GROUP) ext = modrm >> 3 & 7u;
    } else if (shape & Q_REG) {
        rm = (op & 7u) | (c.rex & 1u) << 3;
    }
    bool memory = modrm < 0xc0;
    const struct form *f = &forms[form_of[map][op][ext][variant][memory]];
    if (f == forms || (c.seg && !memory)) return false;
    if (!map && op == 0x90 && c.rex) return false;
    *x = f->x;
    x->modrm_off = (uint8_t)modrm_off;
    x->tail_off = (uint8_t)(modrm_off + 1);
    if (memory && !read_memory(&c, x, modrm)) return false;
    if (!put_operands(&c, f, x, reg, rm)) return false;
    /* A shift by nothing changes no flags. */
    if (is_shift(map, op) && !(bytes[c.at - 1] & (x->in.op_size == 8 ? 63 : 31))) return false;
    x->in.rip = rip;
    x->in.len = (uint8_t)c.at;
    for (unsigned i = 0; i < c.at; i++) x->in.bytes[i] = bytes[i];
    return true;
}
