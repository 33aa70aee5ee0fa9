/* See gen.h. */
#include "tests/diff/gen.h"

#include <string.h>

static uint64_t gen_number(struct rng *r)
{
    switch (rnd_below(r, 10)) {
    case 0: return rnd_below(r, 3) - 1ull;
    case 1: return rnd_below(r, 70);
    case 2: return 1ull << rnd_below(r, 64);
    case 3: return (1ull << rnd_below(r, 64)) - 1;
    case 4: return (uint32_t)rnd(r);
    case 5: return DATA_BASE + rnd_below(r, DATA_PAGES * PAGE);
    default: return rnd(r);
    }
}

uint64_t gen_target(struct rng *r, unsigned size, bool safe)
{
    static const uint8_t rw[] = {1, 2, 4, 6, 9};
    unsigned kind = rnd_below(r, 100);
    uint64_t page;
    if (kind < 62 || (safe && kind < 80))
        page = DATA_BASE + rw[rnd_below(r, 5)] * PAGE;
    else if (kind < 72)
        page = DATA_BASE + 7 * PAGE; /* MMIO */
    else if (kind < 80)
        page = DATA_BASE + 3 * PAGE; /* read-only */
    else if (kind < 90)
        return CODE_BASE + 0xa00 + rnd_below(r, 0x400 - 64);
    else if (kind < 96 || safe)
        page = DATA_BASE + (rnd_below(r, 3) == 0 ? 6 : 1) * PAGE;
    else
        page = DATA_BASE + rnd_below(r, DATA_PAGES) * PAGE;
    unsigned where = rnd_below(r, 100);
    if (where < 20) /* around the page's end */
        return page + PAGE - rnd_below(r, size + 8) - (safe && page == DATA_BASE + 2 * PAGE ? PAGE : 0);
    if (where < 55) return page + 64 * rnd_below(r, PAGE / 64);
    if (where < 70) return page + (size ? rnd_below(r, PAGE / (size < PAGE ? size : PAGE)) * size : 0);
    return page + rnd_below(r, PAGE - 64);
}

uint64_t gen_code_target(struct rng *r)
{
    return CODE_BASE + 0x600 + rnd_below(r, 0x300);
}

void gen_vector(struct rng *r, uint8_t out[64])
{
    static const uint32_t f32[] = {0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000,
                                   0x7fa00001, 0x00000001, 0x007fffff, 0x7f7fffff, 0x4f000000, 0x42f00000, 0x3f000000};
    static const uint64_t f64[] = {0,
                                   0x8000000000000000,
                                   0x3ff0000000000000,
                                   0xbff8000000000000,
                                   0x7ff0000000000000,
                                   0x7ff8000000000000,
                                   0x7ff4000000000001,
                                   1,
                                   0x000fffffffffffff,
                                   0x7fefffffffffffff,
                                   0x43e0000000000000,
                                   0x4059000000000000};
    unsigned kind = rnd_below(r, 6);
    for (unsigned i = 0; i < 8; i++) {
        uint64_t v = rnd(r);
        if (kind == 0)
            v = f64[v % 12];
        else if (kind == 1)
            v = f32[(v & 0xffff) % 14] | (uint64_t)f32[(v >> 20) % 14] << 32;
        else if (kind == 2) /* moderate floats */
            v = (v & 0x807fffff807fffffull) | 0x3f8000003f800000ull;
        else if (kind == 3)
            v = (v & 0x800fffffffffffffull) | 0x3ff0000000000000ull;
        else if (kind == 4)
            v &= 0x0f0f0f0f0f0f0f0full;
        memcpy(out + 8 * i, &v, 8);
    }
}

static void gen_x87(struct rng *r, uint8_t *x)
{
    uint16_t fcw = 0x37f, fsw = 0;
    if (rnd_pct(r, 30)) fcw = (uint16_t)(((unsigned)rnd(r) & 0xf3f) | 0x40);
    if (rnd_pct(r, 40)) fsw = (uint16_t)(rnd_below(r, 8) << 11);
    if (rnd_pct(r, 15)) fsw |= (uint16_t)(rnd(r) & 0x477f);
    memcpy(x, &fcw, 2);
    memcpy(x + 2, &fsw, 2);
    x[4] = rnd_pct(r, 40) ? 0xff : rnd_pct(r, 30) ? 0 : (uint8_t)rnd(r);
    for (unsigned i = 0; i < 8; i++) {
        uint64_t m = rnd(r) | 1ull << 63;
        uint16_t e = (uint16_t)(0x3fff + rnd_below(r, 16) - 8 + (rnd_below(r, 2) << 15));
        if (rnd_pct(r, 15)) e = (uint16_t)rnd(r);
        if (rnd_pct(r, 10)) m &= ~(1ull << 63);
        if (rnd_pct(r, 15)) { /* 0, 1, infinity, NaN */
            static const uint16_t es[4] = {0, 0x3fff, 0x7fff, 0x7fff};
            unsigned k = rnd_below(r, 4);
            e = es[k];
            m = k == 0 ? 0 : k == 3 ? 0xc000000000000001 : 1ull << 63;
        }
        memcpy(x + 32 + 16 * i, &m, 8);
        memcpy(x + 40 + 16 * i, &e, 2);
    }
}

static void gen_xsave(struct rng *r, uint8_t *x)
{
    memset(x, 0, XSAVE_BYTES);
    gen_x87(r, x);
    uint32_t mxcsr = 0x1f80;
    if (rnd_pct(r, 40)) mxcsr = (uint32_t)rnd(r) & 0xffff;
    if (rnd_pct(r, 80)) mxcsr |= 0x1f80;
    memcpy(x + 24, &mxcsr, 4);
    for (unsigned i = 0; i < 32; i++) {
        uint8_t v[64];
        gen_vector(r, v);
        xsave_set_vec(x, i, v);
    }
    for (unsigned i = 0; i < 8; i++) xsave_set_k(x, i, rnd_pct(r, 20) ? 0 : rnd_pct(r, 20) ? ~0ull : rnd(r));
    uint64_t bv = host.xcomp;
    if (rnd_pct(r, 10)) bv &= rnd(r);
    memcpy(x + 512, &bv, 8);
}

void gen_state(struct diff_case *c, struct rng *r, unsigned mode)
{
    memset(c, 0, offsetof(struct diff_case, code));
    c->mode = mode;
    c->image = rnd_below(r, IMAGES);
    for (unsigned i = 0; i < 16; i++) c->gpr[i] = mode == MODE_64 ? gen_number(r) : i < 8 ? (uint32_t)gen_number(r) : 0;
    c->gpr[4] = DATA_BASE + 2 * PAGE + 8 * rnd_below(r, 256) - data_base(mode);
    c->rflags = 0x202 | ((uint64_t)rnd(r) & 0x8d5);
    c->rflags |= rnd_pct(r, 15) ? 1u << 10 : 0;
    c->rflags |= rnd_pct(r, 2) ? 1u << 18 : 0; /* AC */
    c->rflags |= rnd_pct(r, 2) ? 1u << 8 : 0;  /* TF */
    c->rflags |= rnd_pct(r, 10) ? 1u << 21 : 0;
    gen_xsave(r, c->xsave);
    if (mode == MODE_64) {
        c->fs_base = rnd_pct(r, 50) ? DATA_BASE + rnd_below(r, 0x3000) : rnd_pct(r, 50) ? 0 : rnd_below(r, 0x1000000);
        c->gs_base = rnd_pct(r, 50) ? DATA_BASE + rnd_below(r, 0x3000) : rnd_pct(r, 50) ? 0 : rnd(r) >> 20;
    }
}

/* ---- steering ---- */

static int gpr_of(ZydisRegister reg)
{
    ZydisRegister full = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
    if (full < ZYDIS_REGISTER_RAX || full > ZYDIS_REGISTER_R15) return -1;
    return full - ZYDIS_REGISTER_RAX;
}

static uint64_t width_mask(unsigned bits)
{
    return bits >= 64 ? ~0ull : (1ull << bits) - 1;
}

/* Sets the low `bits` of a register, as a narrower address size sees it; the rest stays random. */
static void set_gpr(struct diff_case *c, int n, uint64_t v, unsigned bits)
{
    uint64_t m = width_mask(bits);
    c->gpr[n] = (c->gpr[n] & ~m) | (v & m);
}

static uint64_t seg_base(const struct diff_case *c, ZydisRegister seg)
{
    if (c->mode != MODE_64) return seg == ZYDIS_REGISTER_CS ? code_base(c->mode) : data_base(c->mode);
    return seg == ZYDIS_REGISTER_FS ? c->fs_base : seg == ZYDIS_REGISTER_GS ? c->gs_base : 0;
}

/* Gathers and scatters: the index lanes are small, a few wild ones among them (some of these masked off). */
static void steer_vsib(struct diff_case *c, struct rng *r, const struct insn_code *ic, const ZydisDecodedOperandMem *m)
{
    uint8_t v[64];
    int n = ZydisRegisterGetId(m->index);
    bool qword = false;
    for (unsigned i = 0; i < ic->d.operand_count; i++)
        if (ic->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
            qword = strstr(ZydisMnemonicGetString(ic->d.mnemonic), "qp") ||
                    strstr(ZydisMnemonicGetString(ic->d.mnemonic), "pq") ||
                    strstr(ZydisMnemonicGetString(ic->d.mnemonic), "qd") ||
                    strstr(ZydisMnemonicGetString(ic->d.mnemonic), "qq");
    bool wild = rnd_pct(r, 15);
    uint64_t skip = 0;
    for (unsigned i = 0; i < (qword ? 8 : 16); i++) {
        int64_t idx = (int64_t)rnd_below(r, 0xe00 / m->scale) - 0x100 / m->scale;
        if (wild && rnd_pct(r, 20)) {
            idx = (int64_t)rnd(r);
            skip |= 1ull << i;
        }
        if (qword)
            memcpy(v + 8 * i, &idx, 8);
        else
            memcpy(v + 4 * i, &idx, 4);
    }
    xsave_set_vec(c->xsave, (unsigned)n, v);
    if (ic->d.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX) {
        unsigned k = ic->d.avx.mask.reg - ZYDIS_REGISTER_K0;
        if (rnd_pct(r, 80)) xsave_set_k(c->xsave, k & 7, xsave_get_k(c->xsave, k & 7) & ~skip);
    }
}

static void patch_disp(struct insn_code *ic, int32_t v, unsigned size)
{
    memcpy(ic->bytes + ic->d.raw.disp.offset, &v, size);
    ic->d.raw.disp.value = v;
    for (unsigned i = 0; i < ic->d.operand_count; i++)
        if (ic->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && ic->op[i].encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
            ic->op[i].mem.disp.value = v;
}

/* Chooses registers or the displacement so that the operand lies at `target`. */
static void steer_to(struct diff_case *c, struct rng *r, struct insn_code *ic, ZydisDecodedOperandMem *m,
                     uint64_t target, uint64_t rip)
{
    unsigned bits = ic->d.address_width;
    uint64_t want = target - seg_base(c, m->segment);
    uint64_t disp = m->disp.has_displacement ? (uint64_t)m->disp.value : 0;
    if (m->base == ZYDIS_REGISTER_RIP || m->base == ZYDIS_REGISTER_EIP) {
        patch_disp(ic, (int32_t)(want - (rip + ic->len)), 4);
        return;
    }
    int base = m->base == ZYDIS_REGISTER_NONE ? -1 : gpr_of(m->base);
    bool vsib = m->type == ZYDIS_MEMOP_TYPE_VSIB;
    int index = m->index == ZYDIS_REGISTER_NONE || vsib ? -1 : gpr_of(m->index);
    if (vsib) steer_vsib(c, r, ic, m);
    if (ic->d.mnemonic == ZYDIS_MNEMONIC_XLAT) {
        set_gpr(c, 3, want - (c->gpr[0] & 0xff), bits);
        return;
    }
    if (base < 0) {
        if (ic->d.raw.disp.size == 16) {
            patch_disp(ic, (int32_t)want, 2);
        } else if (ic->d.raw.disp.size == 32) {
            uint64_t scaled = index >= 0 ? c->gpr[index] * m->scale : 0;
            if (index >= 0 && rnd_pct(r, 80)) {
                set_gpr(c, index, rnd_below(r, 256), bits);
                scaled = (c->gpr[index] & width_mask(bits)) * m->scale;
            }
            patch_disp(ic, (int32_t)(want - scaled), 4);
        }
        return;
    }
    unsigned scale = m->scale ? m->scale : 1; /* 16-bit addressing has none */
    if (index >= 0 && index == base) {
        set_gpr(c, base, (want - disp) / (1u + scale), bits);
        return;
    }
    if (index >= 0 && rnd_pct(r, 70)) set_gpr(c, index, (uint64_t)rnd_below(r, 512) - 256, bits);
    uint64_t idx = index >= 0 ? (c->gpr[index] & width_mask(bits)) * scale : 0;
    set_gpr(c, base, want - disp - idx, bits);
}

/* The address the operand has now, or 0 for one that cannot be known here. */
static uint64_t operand_address(const struct diff_case *c, const struct insn_code *ic, const ZydisDecodedOperandMem *m,
                                uint64_t rip)
{
    uint64_t a = m->disp.has_displacement ? (uint64_t)m->disp.value : 0;
    if (m->base == ZYDIS_REGISTER_RIP || m->base == ZYDIS_REGISTER_EIP)
        a += rip + ic->len;
    else if (m->base != ZYDIS_REGISTER_NONE)
        a += c->gpr[gpr_of(m->base) & 15];
    if (ic->d.mnemonic == ZYDIS_MNEMONIC_XLAT)
        a += c->gpr[0] & 0xff;
    else if (m->index != ZYDIS_REGISTER_NONE && m->type != ZYDIS_MEMOP_TYPE_VSIB)
        a += c->gpr[gpr_of(m->index) & 15] * (m->scale ? m->scale : 1);
    return (a & width_mask(ic->d.address_width)) + seg_base(c, m->segment);
}

static unsigned fp_image(struct diff_case *c, struct rng *r, const struct insn_code *ic, uint8_t *buf)
{
    uint32_t mxcsr = (uint32_t)rnd(r) & (rnd_pct(r, 95) ? 0xffff : 0xffffffff);
    unsigned len = 512;
    switch (ic->d.mnemonic) {
    case ZYDIS_MNEMONIC_LDMXCSR:
    case ZYDIS_MNEMONIC_VLDMXCSR: memcpy(buf, &mxcsr, 4); return 4;
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64: {
        uint64_t bv = host.xcomp & rnd(r) & 7;
        len = 832;
        memset(buf + 512, 0, 64);
        memcpy(buf + 512, &bv, 8);
        c->gpr[0] = rnd(r) & (rnd_pct(r, 90) ? 7 : 0xff);
        c->gpr[2] = 0;
        break;
    }
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64: break;
    default: return 0;
    }
    gen_x87(r, buf);
    memcpy(buf + 24, &mxcsr, 4);
    return len;
}

static unsigned code_selector(unsigned mode)
{
    return mode == MODE_64 ? SEL_CODE64 : mode == MODE_32 ? SEL_CODE32 : SEL_CODE16;
}

static void patch_u64(struct diff_case *c, uint64_t at, uint64_t v)
{
    case_patch(c, at, &v, 8);
}

/* What the memory operand at `at` should hold for the instruction to do something. */
static void gen_memory_content(struct diff_case *c, struct rng *r, const struct insn_code *ic, uint64_t at)
{
    uint8_t buf[1024];
    unsigned len;
    for (unsigned i = 0; i < sizeof(buf); i += 64) gen_vector(r, buf + i);
    switch (ic->d.mnemonic) {
    case ZYDIS_MNEMONIC_JMP:
    case ZYDIS_MNEMONIC_CALL:
        if (rnd_pct(r, 75)) {
            patch_u64(c, at, gen_code_target(r) - code_base(c->mode));
            if (rnd_pct(r, 50)) { /* far: the selector behind a 16, 32 or 64-bit offset */
                uint16_t sel = (uint16_t)code_selector(c->mode);
                case_patch(c, at + ic->d.operand_width / 8u, &sel, 2);
            }
        }
        return;
    case ZYDIS_MNEMONIC_LSS:
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGS:
    case ZYDIS_MNEMONIC_LES:
    case ZYDIS_MNEMONIC_LDS:
        if (rnd_pct(r, 70)) {
            uint16_t sel = rnd_pct(r, 70) ? 0x2b : 0;
            case_patch(c, at + (ic->d.operand_width == 64 ? 8u : ic->d.operand_width == 32 ? 4u : 2u), &sel, 2);
        }
        return;
    case ZYDIS_MNEMONIC_CMPXCHG:
        if (rnd_pct(r, 50)) patch_u64(c, at, c->gpr[0]);
        return;
    case ZYDIS_MNEMONIC_CMPXCHG8B:
    case ZYDIS_MNEMONIC_CMPXCHG16B:
        if (rnd_pct(r, 50)) {
            bool wide = ic->d.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
            uint64_t pair[2] = {wide ? c->gpr[0] : (uint32_t)c->gpr[0] | c->gpr[2] << 32, c->gpr[2]};
            case_patch(c, at, pair, wide ? 16 : 8);
        }
        return;
    default:
        len = fp_image(c, r, ic, buf);
        if (len && rnd_pct(r, 90))
            case_patch(c, at, buf, len);
        else if (rnd_pct(r, 30)) /* numbers of the right kind instead of the image's */
            case_patch(c, at, buf, 64);
    }
}

static void gen_stack_content(struct diff_case *c, struct rng *r, const struct insn_code *ic)
{
    uint64_t sp = c->gpr[4] + data_base(c->mode), cs = code_selector(c->mode);
    unsigned w = ic->d.operand_width / 8u;
    uint8_t frame[40] = {0};
    uint64_t v[5] = {gen_code_target(r) - code_base(c->mode), cs, 0x202 | (rnd(r) & 0x244dd5), sp + 64, SEL_DATA};
    switch (ic->d.mnemonic) {
    case ZYDIS_MNEMONIC_RET:
        if (rnd_pct(r, 80)) patch_u64(c, sp, v[0]);
        return;
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ: patch_u64(c, sp, rnd(r) & (rnd_pct(r, 80) ? ~0x100ull : ~0ull)); return;
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
        if (w == 2 && c->mode != MODE_16) return;
        for (unsigned i = 0; i < 5; i++) memcpy(frame + i * w, &v[i], w);
        if (rnd_pct(r, 70)) case_patch(c, sp, frame, 5 * w);
        return;
    default: return;
    }
}

static void gen_bit_offset(struct diff_case *c, struct rng *r, const struct insn_code *ic)
{
    if (ic->op[0].type != ZYDIS_OPERAND_TYPE_MEMORY || ic->op[1].type != ZYDIS_OPERAND_TYPE_REGISTER || rnd_pct(r, 10))
        return;
    int n = gpr_of(ic->op[1].reg.value);
    bool is_base = n == gpr_of(ic->op[0].mem.base) || n == gpr_of(ic->op[0].mem.index);
    if (n >= 0 && !is_base) set_gpr(c, n, (uint64_t)rnd_below(r, 0x8000) - 0x4000, ic->op[1].size);
}

/* Registers with a meaning of their own: before addresses are chosen. */
static void gen_special_registers(struct diff_case *c, struct rng *r, const struct insn_code *ic)
{
    static const uint16_t sels[] = {0, 3, 0x2b, 0x2b, 0x33, 0x23, 0x10, 0x63, 0x1003, 0x07, 0x0f, 0x0f, 0x17};
    const ZydisDecodedOperand *o = ic->op;
    int n;
    switch (ic->d.mnemonic) {
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV:
        if (rnd_pct(r, 80)) c->gpr[2] = rnd_below(r, 3) - 1ull;
        break;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC: gen_bit_offset(c, r, ic); break;
    case ZYDIS_MNEMONIC_JMP:
    case ZYDIS_MNEMONIC_CALL:
        if (o[0].type == ZYDIS_OPERAND_TYPE_REGISTER && rnd_pct(r, 80) && (n = gpr_of(o[0].reg.value)) >= 0)
            c->gpr[n] = gen_code_target(r) - code_base(c->mode);
        break;
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
        if (rnd_pct(r, 80) && (n = gpr_of(o[0].reg.value)) >= 0)
            c->gpr[n] = (uint64_t)((int64_t)(c->gpr[n] << 17) >> 17);
        break;
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_VPCMPESTRI:
    case ZYDIS_MNEMONIC_VPCMPESTRM:
        c->gpr[0] = rnd_below(r, 24) - 4ull;
        c->gpr[2] = rnd_below(r, 24) - 4ull;
        break;
    case ZYDIS_MNEMONIC_LAR:
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
    case ZYDIS_MNEMONIC_MOV:
        for (unsigned i = 0; i < ic->d.operand_count_visible; i++)
            if (o[i].type == ZYDIS_OPERAND_TYPE_REGISTER && (n = gpr_of(o[i].reg.value)) >= 0 &&
                (ic->d.mnemonic != ZYDIS_MNEMONIC_MOV || ic->d.opcode == 0x8e))
                set_gpr(c, n, sels[rnd_below(r, sizeof(sels) / sizeof(*sels))], 16);
        break;
    default: break;
    }
    if (ic->d.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
        set_gpr(c, 1, rnd_below(r, rnd_pct(r, 90) ? 24 : 3000), ic->d.address_width);
    else if (ic->d.meta.category == ZYDIS_CATEGORY_COND_BR && rnd_pct(r, 50))
        set_gpr(c, 1, rnd_below(r, 3), rnd_pct(r, 50) ? 64 : 32);
}

/* Relative branches go to the int3 area, at times further. */
static void steer_branch(struct rng *r, struct insn_code *ic, uint64_t rip)
{
    const struct ZydisDecodedInstructionRawImm_ *imm = &ic->d.raw.imm[0];
    int64_t v;
    if (imm->size == 8) {
        ic->bytes[imm->offset] = (uint8_t)(rnd_below(r, 100));
        return;
    }
    if (rnd_pct(r, 90) || imm->size == 16)
        v = (int64_t)(gen_code_target(r) - rip - ic->len);
    else
        v = (int32_t)rnd(r);
    memcpy(ic->bytes + imm->offset, &v, imm->size / 8);
}

void gen_operands(struct diff_case *c, struct rng *r, struct insn_code *ic, uint64_t rip)
{
    gen_special_registers(c, r, ic);
    if (ic->d.raw.imm[0].is_relative) steer_branch(r, ic, rip);
    for (unsigned i = 0; i < ic->d.operand_count; i++) {
        ZydisDecodedOperand *o = &ic->op[i];
        if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.type == ZYDIS_MEMOP_TYPE_AGEN) continue;
        /* Stack operands: RSP is good as it is most of the time. */
        if (o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN && o->mem.base == ZYDIS_REGISTER_RSP && rnd_pct(r, 60))
            continue;
        steer_to(c, r, ic, &o->mem, gen_target(r, o->size / 8, false), rip);
    }
    if (ic->d.mnemonic == ZYDIS_MNEMONIC_CLZERO) c->gpr[0] = gen_target(r, 64, false);
    gen_stack_content(c, r, ic);
    for (unsigned i = 0; i < ic->d.operand_count_visible; i++) {
        ZydisDecodedOperand *o = &ic->op[i];
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->mem.type != ZYDIS_MEMOP_TYPE_AGEN)
            gen_memory_content(c, r, ic, operand_address(c, ic, &o->mem, rip));
    }
}

static uint64_t gen_rip(struct rng *r, unsigned len)
{
    unsigned k = rnd_below(r, 100);
    if (k < 70) return CODE_BASE + rnd_below(r, 0x500);
    if (k < 90) return CODE_BASE + PAGE - rnd_below(r, len + 1);                  /* crosses into the second page */
    if (k < 95) return CODE_BASE + CODE_PAGES * PAGE - 1 - rnd_below(r, len + 1); /* may run into the hole */
    return CODE_BASE + PAGE + rnd_below(r, 0x200);
}

/* ESP's upper half is not known on a 16-bit stack: nothing may depend on it. */
static bool sees_stack_pointer(const struct insn_code *ic)
{
    for (unsigned i = 0; i < ic->d.operand_count; i++) {
        const ZydisDecodedOperand *o = &ic->op[i];
        if (o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN) continue;
        if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && gpr_of(o->reg.value) == 4) return true;
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && (gpr_of(o->mem.base) == 4 || gpr_of(o->mem.index) == 4))
            return true;
    }
    return ic->d.mnemonic == ZYDIS_MNEMONIC_PUSHAD ||
           (ic->d.mnemonic == ZYDIS_MNEMONIC_ENTER && ic->d.operand_width == 32);
}

bool gen_single(struct diff_case *c, const struct forms *f, const struct form *form, uint64_t seed)
{
    struct rng r = {seed};
    struct insn_code ic;
    struct emit_opt opt = {0};
    gen_state(c, &r, f->mode);
    c->seed = seed;
    c->stack32 = f->mode == MODE_16 && rnd_pct(&r, 50);
    if (!forms_emit(f, form, &r, &opt, &ic)) return false;
    if (c->mode == MODE_16 && !c->stack32 && sees_stack_pointer(&ic)) return false;
    c->rip = gen_rip(&r, ic.len);
    if (form->ud == form->tried) /* how much of it is fetched before the #UD differs */
        c->rip = CODE_BASE + rnd_below(&r, 0x500);
    for (unsigned i = 0; i < ic.d.operand_count; i++) /* may be trapped between their elements */
        if (ic.op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && ic.op[i].mem.type == ZYDIS_MEMOP_TYPE_VSIB)
            c->rflags &= ~0x100ull;
    if (ic.d.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || ic.d.meta.isa_ext != ZYDIS_ISA_EXT_BASE)
        c->rflags &= ~0x40000ull; /* what #AC checks of vector operands differs between CPUs */
    gen_operands(c, &r, &ic, c->rip);
    memcpy(c->code, ic.bytes, ic.len);
    c->code_len = ic.len;
    c->insns = 1;
    c->insn_off[0] = 0;
    return true;
}

bool gen_invalid(struct diff_case *c, const struct forms *f, const struct form *form, uint64_t seed)
{
    struct rng r = {seed};
    struct insn_code ic;
    struct emit_opt opt = {0};
    uint8_t bytes[48];
    unsigned len = 0;
    gen_state(c, &r, f->mode);
    c->seed = seed;
    c->stack32 = f->mode == MODE_16 && rnd_pct(&r, 50);
    if (!forms_emit(f, form, &r, &opt, &ic)) return false;
    /* Branches with 66, and VEX and EVEX bits that CPUs ignore, are the vendors' business; what the host lacks has no length. */
    if (ic.d.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE || ic.d.meta.category == ZYDIS_CATEGORY_SYSTEM ||
        (ic.d.attributes & ZYDIS_ATTRIB_IS_PRIVILEGED) || form->enc != ENC_LEGACY ||
        (form->tried && form->ud == form->tried))
        return false;
    memset(bytes, 0xcc, sizeof(bytes));
    if (rnd_pct(&r, 30)) { /* too long; of what one CPU or another lacks nobody knows the length */
        if (ic.d.meta.isa_ext != ZYDIS_ISA_EXT_BASE) return false;
        static const uint8_t prefix[] = {0x66, 0x2e, 0x3e, 0x26, 0x36, 0x64};
        while (len + ic.len < 16 + rnd_below(&r, 2)) bytes[len++] = prefix[rnd_below(&r, sizeof(prefix))];
    } else if (rnd_pct(&r, 40)) {
        bytes[len++] = 0xf0;
    } else {
        ic.bytes[rnd_below(&r, ic.len < 5 ? ic.len : 5)] = (uint8_t)rnd(&r);
    }
    memcpy(bytes + len, ic.bytes, ic.len);
    len += ic.len;
    c->rip = CODE_BASE + rnd_below(&r, 0x500); /* how much of it is fetched before the #UD differs */
    if (forms_decode(f, bytes, 15, &ic)) return false;
    memcpy(c->code, bytes, len + 15);
    c->code_len = len + 15; /* a flipped byte may have made it longer */
    c->insns = 1;
    return true;
}
