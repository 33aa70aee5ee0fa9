/* Emits a guest instruction again, byte for byte but for its ModRM memory operand. */
#include "vmm/engine/soft/tr.h"

/* Address size and segments: the new operand needs none. */
static bool is_dropped_prefix(uint8_t b)
{
    switch (b) {
    case 0x67:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x26:
    case 0x64:
    case 0x65: return true;
    default: return false;
    }
}

static bool is_legacy_prefix(uint8_t b)
{
    return b == 0x66 || b == 0xf0 || b == 0xf2 || b == 0xf3 || is_dropped_prefix(b);
}

/* Does the operand-size prefix choose the operand size? Else it is none of the operand's business or part of the opcode. */
static bool has_operand_size(const struct xinsn *x)
{
    switch (x->in.mnemonic) {
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FNSAVE: return true;
    case ZYDIS_MNEMONIC_MOVNTI:
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_SFENCE:
    case ZYDIS_MNEMONIC_ADCX:
    case ZYDIS_MNEMONIC_ADOX:
    case ZYDIS_MNEMONIC_CMPXCHG8B:
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB: return false;
    default: return x->gate == GATE_NONE;
    }
}

/* Prefixes in 16/32-bit code: the operand-size prefix means the opposite in 16-bit code, and there is no REX. */
static unsigned copy_prefixes(struct emitter *e, const struct xinsn *x, uint8_t *rex, unsigned *rex_off)
{
    const uint8_t *b = x->in.bytes;
    unsigned i = 0;
    bool code16 = x->in.code_size == 2 && x->enc == ENC_LEGACY && has_operand_size(x);
    *rex = 0;
    *rex_off = 0xff;
    if (code16 && x->in.op_size == 2) e8(e, 0x66);
    for (; i < x->in.len; i++) {
        if (x->in.code_size == 8 && (b[i] & 0xf0) == 0x40) {
            *rex = b[i];
            *rex_off = i;
            continue;
        }
        if (!is_legacy_prefix(b[i])) break;
        *rex = 0; /* a REX that is not last is ignored by the CPU */
        if (is_dropped_prefix(b[i])) continue;
        if (b[i] == 0x66 && code16) continue;
        e8(e, b[i]);
    }
    return i;
}

static void emit_vex(struct emitter *e, const uint8_t *insn, unsigned at, unsigned xb, unsigned *op)
{
    const uint8_t *b = insn + at;
    if (b[0] == 0xc5) { /* 2-byte form has no X and B: widen */
        e8(e, 0xc4);
        e8(e, (b[1] & 0x80) | 0x60 | 1);
        e8(e, b[1] & 0x7f);
        e->p[-2] ^= (uint8_t)((xb & 2) << 5 | (xb & 1) << 5);
        *op = at + 2;
        return;
    }
    e8(e, b[0]);
    e8(e, (b[1] | 0x60) ^ ((xb & 2) << 5 | (xb & 1) << 5)); /* X, B are inverted: bits 6, 5 */
    e8(e, b[2]);
    *op = at + 3;
}

/* INC/DEC short forms of 16/32-bit code are REX prefixes in 64-bit code. */
static bool emit_incdec32(struct emitter *e, const struct xinsn *x, unsigned at)
{
    uint8_t b = x->in.bytes[at];
    if (x->in.code_size == 8 || x->enc != ENC_LEGACY || (b & 0xf0) != 0x40) return false;
    e8(e, 0xff);
    e8(e, 0xc0 | (b & 15)); /* 40+r INC -> FF /0, 48+r DEC -> FF /1 */
    return true;
}

/* What 64-bit code says otherwise than 16/32-bit code, from the opcode or VEX/EVEX prefix at `op` on. */
static const uint8_t *for_64bit(const struct xinsn *x, unsigned op, uint8_t patched[15])
{
    for (unsigned i = 0; i < x->in.len; i++) patched[i] = x->in.bytes[i];
    if (x->enc == ENC_LEGACY && patched[op] == 0x82) patched[op] = 0x80; /* an alias, gone in 64-bit mode */
    if (x->is4_bit7_ignored) patched[x->in.len - 1] &= 0x7f;
    if (x->w_ignored && patched[op] != 0xc5) patched[op + 2] &= 0x7f;
    return patched;
}

void emit_reencoded(struct emitter *e, const struct xinsn *x, const struct host_mem *m)
{
    const uint8_t *b = x->in.bytes;
    if (!m && x->in.code_size == 8) {
        for (unsigned i = 0; i < x->in.len; i++) e8(e, b[i]);
        return;
    }
    uint8_t rex;
    unsigned rex_off;
    unsigned op = copy_prefixes(e, x, &rex, &rex_off);
    uint8_t patched[15];
    if (x->in.code_size != 8) b = for_64bit(x, op, patched);
    if (!m) {
        if (emit_incdec32(e, x, op)) return;
        for (unsigned i = op; i < x->in.len; i++) e8(e, b[i]);
        return;
    }
    unsigned xb = rex_xb(m);
    switch (x->enc) {
    case ENC_LEGACY:
        if (rex || xb) e8(e, 0x40 | (rex & 0x0c) | xb);
        break;
    case ENC_VEX:
    case ENC_XOP: emit_vex(e, b, op, xb, &op); break;
    case ENC_EVEX:
        e8(e, b[op]);
        e8(e, (b[op + 1] | 0x60) ^ ((xb & 2) << 5 | (xb & 1) << 5));
        e8(e, b[op + 2]);
        e8(e, b[op + 3]);
        op += 4;
        break;
    }
    while (op < x->modrm_off) e8(e, b[op++]);
    emit_modrm(e, (b[x->modrm_off] >> 3) & 7, m, x->enc != ENC_EVEX);
    for (unsigned i = x->tail_off; i < x->in.len; i++) e8(e, b[i]);
}
