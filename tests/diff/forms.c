/* See forms.h. */
#include "tests/diff/forms.h"

#include <stdlib.h>
#include <string.h>

#include "tests/diff/case.h"

struct asm_buf {
    uint8_t b[32];
    unsigned n;
};

static void put(struct asm_buf *a, unsigned v)
{
    if (a->n < sizeof(a->b)) a->b[a->n++] = (uint8_t)v;
}

/* REX/VEX/EVEX register extension bits, vvvv and the EVEX extras, all positive logic. */
struct ext {
    unsigned r, x, b, r2, v, v2, z, bc, aaa;
    bool rex, short_vex;
};

static void put_prefix_opcode(struct asm_buf *a, const struct form *f, const struct ext *e, unsigned mode)
{
    static const uint8_t pp_byte[4] = {0, 0x66, 0xf3, 0xf2};
    unsigned inv = mode == MODE_64;
    switch (f->enc) {
    case ENC_LEGACY:
    case ENC_3DNOW:
        if (f->pp >= 4) put(a, 0x66);
        if (f->pp) put(a, f->pp >= 4 ? pp_byte[f->pp - 2] : pp_byte[f->pp]);
        if (inv && (e->rex || f->w || e->r || e->x || e->b))
            put(a, 0x40 | (unsigned)(f->w << 3) | e->r << 2 | e->x << 1 | e->b);
        if (f->map >= 1) put(a, 0x0f);
        if (f->map >= 2) put(a, f->map == 2 ? 0x38 : 0x3a);
        put(a, f->enc == ENC_3DNOW ? 0x0f : f->opcode);
        break;
    case ENC_VEX:
        if (e->short_vex && f->map == 1 && !f->w && !e->x && !e->b) {
            put(a, 0xc5);
            put(a, (!e->r) << 7 | (~e->v & 15) << 3 | (unsigned)(f->ll << 2) | f->pp);
        } else {
            put(a, 0xc4);
            put(a, (!e->r) << 7 | (!e->x) << 6 | (!e->b) << 5 | f->map);
            put(a, (unsigned)(f->w << 7) | (~e->v & 15) << 3 | (unsigned)(f->ll << 2) | f->pp);
        }
        put(a, f->opcode);
        break;
    case ENC_XOP:
        put(a, 0x8f);
        put(a, (!e->r) << 7 | (!e->x) << 6 | (!e->b) << 5 | f->map);
        put(a, (unsigned)(f->w << 7) | (~e->v & 15) << 3 | (unsigned)(f->ll << 2) | f->pp);
        put(a, f->opcode);
        break;
    case ENC_EVEX:
        put(a, 0x62);
        put(a, (!e->r) << 7 | (!e->x) << 6 | (!e->b) << 5 | (!e->r2) << 4 | f->map);
        put(a, (unsigned)(f->w << 7) | (~e->v & 15) << 3 | 4 | f->pp);
        put(a, e->z << 7 | (unsigned)(f->ll << 5) | e->bc << 4 | (!e->v2) << 3 | e->aaa);
        put(a, f->opcode);
        break;
    }
}

bool forms_decode(const struct forms *f, const uint8_t *bytes, unsigned len, struct insn_code *out)
{
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&f->decoder, bytes, len, &out->d, out->op))) return false;
    memmove(out->bytes, bytes, out->d.length);
    out->len = out->d.length;
    return true;
}

/* ---- building the table ---- */

static bool try_form(struct forms *f, struct form *t, struct insn_code *out)
{
    struct asm_buf a = {.n = 0};
    struct ext e = {.aaa = t->enc == ENC_EVEX && t->vsib};
    if (f->mode == MODE_16 && t->vsib) put(&a, 0x67); /* 16-bit addressing has no SIB byte */
    put_prefix_opcode(&a, t, &e, f->mode);
    if (t->has_modrm) {
        put(&a, t->modrm);
        if (t->modrm < 0xc0 && t->vsib) put(&a, 0x08); /* base rax, index register 1: differs from a destination of 0 */
    }
    unsigned used = a.n;
    while (a.n < 24) put(&a, 0);
    if (t->enc == ENC_3DNOW) a.b[used] = t->opcode;
    return forms_decode(f, a.b, 15, out) && out->d.mnemonic != ZYDIS_MNEMONIC_INVALID;
}

static void add_form(struct forms *f, const struct form *t)
{
    if ((f->forms & (f->forms - 1)) == 0) {
        struct form *p = realloc(f->form, (f->forms ? f->forms * 2 : 1) * sizeof(*p));
        if (!p) return;
        f->form = p;
    }
    f->form[f->forms++] = *t;
}

/* One opcode with one prefix set: which ModRM matter is seen from what they decode to. */
static void scan_modrm(struct forms *f, struct form t, bool mem, bool all_rm)
{
    struct insn_code ic;
    uint16_t name[64] = {0};
    bool same = true;
    unsigned n = mem || !all_rm ? 8 : 64;
    uint16_t first = 0;
    for (unsigned i = 0; i < n; i++) {
        t.modrm = mem      ? (uint8_t)(i << 3 | (t.vsib ? 4 : 0))
                  : all_rm ? (uint8_t)(0xc0 + i)
                           : (uint8_t)(0xc0 + (i << 3));
        if (try_form(f, &t, &ic)) name[i] = ic.d.mnemonic;
        if (i == 0) first = name[0];
        /* VSIB and AMX forms refuse some register combinations: count as the same */
        if (name[i] != first && !(t.vsib && !name[i])) same = false;
    }
    if (t.vsib)
        for (unsigned i = 0; i < n; i++) first = name[i] ? name[i] : first;
    t.rm_any = !all_rm || same;
    if (same && first) {
        t.reg_any = true;
        t.modrm = mem ? (t.vsib ? 4 : 0) : 0xc0;
        t.mnemonic = first;
        add_form(f, &t);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        if (!name[i]) continue;
        t.modrm = mem      ? (uint8_t)(i << 3 | (t.vsib ? 4 : 0))
                  : all_rm ? (uint8_t)(0xc0 + i)
                           : (uint8_t)(0xc0 + (i << 3));
        t.mnemonic = name[i];
        t.reg_any = false;
        add_form(f, &t);
    }
}

static bool redundant_rep(struct forms *f, const struct form *t, const struct insn_code *ic)
{
    struct form plain = *t;
    struct insn_code other;
    if (t->enc != ENC_LEGACY || t->pp < 2) return false;
    if (ic->d.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) return false;
    plain.pp = t->pp >= 4;
    return try_form(f, &plain, &other) && other.d.mnemonic == ic->d.mnemonic;
}

static void scan_opcode(struct forms *f, struct form t)
{
    struct insn_code ic;
    static const uint8_t probe[] = {0x00, 0xc0, 0xc8, 0xd0, 0xf8, 0x08, 0x38, 0x10, 0x20, 0x28, 0x30, 0xe0};
    bool mem = false, reg = false, any = false;
    t.has_modrm = true;
    bool groups = t.enc == ENC_LEGACY && ((t.map == 0 && t.opcode >= 0xd8 && t.opcode <= 0xdf) ||
                                          (t.map == 1 && (t.opcode == 0x01 || t.opcode == 0xae || t.opcode == 0xc7 ||
                                                          t.opcode == 0x1e || t.opcode == 0x18)));
    for (unsigned i = 0; i < sizeof(probe); i++) {
        t.modrm = probe[i];
        if (!try_form(f, &t, &ic)) continue;
        any = true;
        if (!(ic.d.attributes & ZYDIS_ATTRIB_HAS_MODRM) && t.enc == ENC_LEGACY) {
            t.has_modrm = false;
            t.mnemonic = ic.d.mnemonic;
            if (!redundant_rep(f, &t, &ic)) add_form(f, &t);
            return;
        }
        if (redundant_rep(f, &t, &ic)) continue;
        mem |= probe[i] < 0xc0;
        reg |= probe[i] >= 0xc0;
    }
    if (groups) /* the probe above sees only part of these */
        mem = reg = true;
    if (!any && !groups && t.enc >= ENC_VEX) {
        t.vsib = true;
        scan_modrm(f, t, true, false);
        return;
    }
    if (mem) scan_modrm(f, t, true, false);
    if (reg || (!mem && any)) scan_modrm(f, t, false, groups);
}

static void scan_all(struct forms *f)
{
    static const uint8_t prefix_bytes[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67,
                                           0xf0, 0xf2, 0xf3, 0x62, 0xc4, 0xc5, 0x8f, 0x0f};
    for (unsigned map = 0; map < 4; map++)
        for (unsigned op = 0; op < 256; op++) {
            bool prefix = map == 1 && (op == 0x38 || op == 0x3a || op == 0x0f);
            for (unsigned i = 0; map == 0 && i < sizeof(prefix_bytes); i++) prefix |= op == prefix_bytes[i];
            if (map == 0 && f->mode == MODE_64 && (op & 0xf0) == 0x40) prefix = true;
            if (map == 0 && f->mode != MODE_64 && (op == 0x62 || op == 0xc4 || op == 0xc5))
                prefix = false;                         /* BOUND, LES, LDS */
            if (map == 0 && op == 0x8f) prefix = false; /* POP r/m */
            for (unsigned v = 0; !prefix && v < 12; v++)
                if (v < 6 || f->mode == MODE_64)
                    scan_opcode(
                        f, (struct form){
                               .enc = ENC_LEGACY, .map = (uint8_t)map, .opcode = (uint8_t)op, .pp = v % 6, .w = v / 6});
        }
    for (unsigned op = 0; op < 256; op++)
        scan_opcode(f, (struct form){.enc = ENC_3DNOW, .map = 1, .opcode = (uint8_t)op});
    for (unsigned v = 0; v < 3 * 256 * 16; v++) {
        uint8_t op = v & 255, map = (uint8_t)(v >> 8) / 16, k = (v >> 8) & 15;
        scan_opcode(
            f, (struct form){.enc = ENC_VEX, .map = map + 1, .opcode = op, .pp = k & 3, .w = k >> 2 & 1, .ll = k >> 3});
        if (!(k & 3))
            scan_opcode(f, (struct form){.enc = ENC_XOP, .map = map + 8, .opcode = op, .w = k >> 2 & 1, .ll = k >> 3});
    }
    static const uint8_t evex_maps[] = {1, 2, 3, 5, 6};
    for (unsigned m = 0; m < sizeof(evex_maps); m++)
        for (unsigned v = 0; v < 256 * 24; v++) {
            unsigned k = v >> 8;
            scan_opcode(f, (struct form){.enc = ENC_EVEX,
                                         .map = evex_maps[m],
                                         .opcode = v & 255,
                                         .pp = k & 3,
                                         .w = k >> 2 & 1,
                                         .ll = (uint8_t)(k >> 3)});
        }
}

static int by_mnemonic(const void *a, const void *b)
{
    const struct form *x = a, *y = b;
    return x->mnemonic != y->mnemonic ? (x->mnemonic < y->mnemonic ? -1 : 1) : memcmp(x, y, sizeof(*x));
}

static const char *why_excluded(const ZydisDecodedInstruction *d)
{
    switch (d->mnemonic) {
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_RDPRU:
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED: return "its result is different every time";
    case ZYDIS_MNEMONIC_INT1: return "hypervisors below the host report it in different ways (system tests)";
    case ZYDIS_MNEMONIC_SERIALIZE: return "offered whether the host has it or not (system tests)";
    case ZYDIS_MNEMONIC_CLZERO: return "not offered to guests";
    case ZYDIS_MNEMONIC_CPUID:
    case ZYDIS_MNEMONIC_XGETBV: return "the engine's answer is its own (system tests)";
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSENTER: return "enters the host's kernel (system tests)";
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_VMMCALL:
    case ZYDIS_MNEMONIC_TDCALL:
    case ZYDIS_MNEMONIC_SEAMCALL: return "would call the hypervisor below the host";
    case ZYDIS_MNEMONIC_SGDT:
    case ZYDIS_MNEMONIC_SIDT:
    case ZYDIS_MNEMONIC_SLDT:
    case ZYDIS_MNEMONIC_STR:
    case ZYDIS_MNEMONIC_SMSW: return "the host's kernel emulates it (UMIP)";
    case ZYDIS_MNEMONIC_XBEGIN:
    case ZYDIS_MNEMONIC_XABORT:
    case ZYDIS_MNEMONIC_XTEST: return "TSX: not offered to guests";
    case ZYDIS_MNEMONIC_UMONITOR:
    case ZYDIS_MNEMONIC_UMWAIT:
    case ZYDIS_MNEMONIC_TPAUSE:
    case ZYDIS_MNEMONIC_MWAIT:
    case ZYDIS_MNEMONIC_MWAITX:
    case ZYDIS_MNEMONIC_MONITOR:
    case ZYDIS_MNEMONIC_MONITORX: return "waits (system tests)";
    case ZYDIS_MNEMONIC_RDPKRU:
    case ZYDIS_MNEMONIC_WRPKRU: return "protection keys: not offered to guests";
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XSAVEC64: return "what it writes depends on the CPU's own tracking of modified state";
    default: break;
    }
    switch (d->meta.isa_ext) {
    case ZYDIS_ISA_EXT_AMX_BF16:
    case ZYDIS_ISA_EXT_AMX_INT8:
    case ZYDIS_ISA_EXT_AMX_TILE: return "AMX: not offered to guests";
    case ZYDIS_ISA_EXT_PADLOCK: return "VIA's: not offered to guests";
    case ZYDIS_ISA_EXT_SNP:
    case ZYDIS_ISA_EXT_TDX: return "confidential computing: not offered to guests";
    case ZYDIS_ISA_EXT_UINTR: return "user interrupts: not offered to guests";
    case ZYDIS_ISA_EXT_VTX:
    case ZYDIS_ISA_EXT_SVM:
    case ZYDIS_ISA_EXT_SGX:
    case ZYDIS_ISA_EXT_SGX_ENCLV: return "virtualization and enclaves: not offered to guests (system tests)";
    default: return NULL;
    }
}

static int group_forms(struct forms *f)
{
    qsort(f->form, f->forms, sizeof(*f->form), by_mnemonic);
    f->mnem = calloc(ZYDIS_MNEMONIC_MAX_VALUE + 1, sizeof(*f->mnem));
    if (!f->mnem) return -1;
    for (uint32_t i = 0; i < f->forms; i++) {
        struct mnem *m = f->mnems ? &f->mnem[f->mnems - 1] : NULL;
        if (!m || m->mnemonic != f->form[i].mnemonic) {
            struct insn_code ic;
            m = &f->mnem[f->mnems++];
            m->mnemonic = f->form[i].mnemonic;
            m->first = i;
            f->index[m->mnemonic] = (uint16_t)f->mnems;
            struct form t = f->form[i];
            for (unsigned k = 0; k < 8; k++) { /* VSIB forms: a register that decodes */
                t.modrm = (uint8_t)((f->form[i].modrm & ~0x38) | (t.reg_any ? k << 3 : f->form[i].modrm & 0x38u));
                if (try_form(f, &t, &ic)) break;
            }
            m->category = (uint8_t)ic.d.meta.category;
            m->isa_ext = (uint8_t)ic.d.meta.isa_ext;
            m->isa_set = (uint16_t)ic.d.meta.isa_set;
            m->excluded = why_excluded(&ic.d);
        }
        m->count++;
    }
    return 0;
}

int forms_init(struct forms *f, unsigned mode)
{
    memset(f, 0, sizeof(*f));
    f->mode = mode;
    if (!ZYAN_SUCCESS(ZydisDecoderInit(&f->decoder,
                                       mode == MODE_64   ? ZYDIS_MACHINE_MODE_LONG_64
                                       : mode == MODE_32 ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32
                                                         : ZYDIS_MACHINE_MODE_LONG_COMPAT_16,
                                       mode == MODE_64   ? ZYDIS_STACK_WIDTH_64
                                       : mode == MODE_32 ? ZYDIS_STACK_WIDTH_32
                                                         : ZYDIS_STACK_WIDTH_16)))
        return -1;
    scan_all(f);
    return group_forms(f);
}

const struct mnem *forms_find(const struct forms *f, uint16_t mnemonic)
{
    return f->index[mnemonic] ? &f->mnem[f->index[mnemonic] - 1] : NULL;
}

const struct form *forms_pick(const struct forms *f, const struct mnem *m, struct rng *r, bool working_only)
{
    for (unsigned i = 0; i < 12; i++) {
        const struct form *t = &f->form[m->first + rnd_below(r, m->count)];
        if (t->excluded) continue;
        if (!t->tried || t->ud < t->tried || (!working_only && rnd_pct(r, 5))) return t;
    }
    return NULL;
}

/* ---- making one instruction ---- */

static unsigned pick_reg(struct rng *r, uint16_t mask, unsigned n)
{
    for (;;) {
        unsigned k = rnd_below(r, n);
        if (!mask || (mask >> k & 1)) return k;
    }
}

static void put_disp(struct asm_buf *a, unsigned size, struct rng *r)
{
    int32_t v = (int32_t)rnd_below(r, 256) - 128;
    for (unsigned i = 0; i < size; i++) put(a, (uint32_t)v >> (8 * i) & 0xff);
}

struct mem_choice {
    unsigned mod, rm, sib;
    bool has_sib;
    unsigned disp;
};

/* Chooses base, index and displacement size; sets the extension bits. */
static void choose_mem(struct mem_choice *m, struct ext *e, const struct form *f, struct rng *r,
                       const struct emit_opt *opt, unsigned mode)
{
    unsigned regs = mode == MODE_64 ? 16 : 8;
    unsigned base = pick_reg(r, opt->bases, regs), index = pick_reg(r, opt->indices, regs);
    unsigned kind = rnd_below(r, 100);
    m->mod = rnd_below(r, 3);
    if (mode == MODE_16 && !f->vsib) { /* [BX+SI], [BX+DI], ..., [BX]; mod 0 rm 6 is [disp16] */
        m->rm = rnd_below(r, 8);
        m->disp = m->mod == 1 ? 1 : m->mod == 2 || m->rm == 6 ? 2 : 0;
        return;
    }
    m->has_sib = f->vsib || kind < 40 || (base & 7) == 4;
    if (!opt->bases && kind >= 90) { /* no base: RIP-relative, absolute, or index alone */
        m->mod = 0;
        m->disp = 4;
        m->has_sib |= kind >= 95;
        m->rm = 5;
        base = 5;
        e->b = 0;
    } else {
        if ((base & 7) == 5 && m->mod == 0) m->mod = 1;
        m->disp = m->mod == 1 ? 1 : m->mod == 2 ? 4 : 0;
        m->rm = base & 7;
        e->b = base >> 3;
    }
    if (!m->has_sib) return;
    if (f->vsib) {
        index = rnd_below(r, mode == MODE_64 ? (f->enc == ENC_EVEX ? 32 : 16) : 8);
        e->v2 = index >> 4 & 1;
    } else if (kind >= 40 || index == 4) {
        index = 4; /* none */
    }
    e->x = index >> 3 & 1;
    m->rm = 4;
    m->sib = rnd_below(r, 4) << 6 | (index & 7) << 3 | (base & 7);
}

static void choose_ext(struct ext *e, const struct form *f, struct rng *r, unsigned mode, unsigned effort)
{
    bool many = mode == MODE_64;
    *e = (struct ext){.rex = rnd_pct(r, 20), .short_vex = rnd_pct(r, 50)};
    if (many) {
        e->r = rnd_below(r, 2);
        e->b = rnd_below(r, 2);
        e->x = f->enc == ENC_EVEX && rnd_below(r, 2);
    }
    if (effort < 3) e->v = rnd_below(r, many ? 16 : 8);
    if (f->enc != ENC_EVEX) return;
    e->aaa = rnd_pct(r, 60) || f->vsib ? 1 + rnd_below(r, 7) : 0;
    if (effort < 2) {
        e->bc = rnd_pct(r, 25);
        e->z = e->aaa && rnd_pct(r, 40);
        e->r2 = many && rnd_below(r, 2);
        e->v2 = many && rnd_below(r, 2) && e->v;
    }
    if (effort >= 4) e->aaa = f->vsib;
}

static void put_odd_prefixes(struct asm_buf *a, const struct form *f, struct rng *r, unsigned mode)
{
    static const uint8_t seg[6] = {0x64, 0x65, 0x64, 0x65, 0x26, 0x36};
    if (rnd_pct(r, 12)) put(a, seg[rnd_below(r, 6)]);
    if (rnd_pct(r, mode == MODE_16 ? 30 : 8) || (mode == MODE_16 && f->vsib)) put(a, 0x67);
    if (f->enc == ENC_LEGACY && rnd_pct(r, 15)) put(a, 0xf0);
}

/* Encodings on which Intel and AMD disagree, or Zydis with both: no oracle for them. */
static bool vendor_specific(const struct insn_code *ic, unsigned mode)
{
    /* With EVEX.X set, Zen 4 reads RSP as it was before the last PUSH, POP, CALL: found by this fuzzer. */
    if (ic->d.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && ic->d.raw.evex.X == 0 && ic->d.raw.modrm.mod == 3 &&
        ic->d.raw.modrm.rm == 4)
        for (unsigned i = 0; i < ic->d.operand_count; i++)
            if (ic->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                (ic->op[i].reg.value == ZYDIS_REGISTER_RSP || ic->op[i].reg.value == ZYDIS_REGISTER_ESP))
                return true;
    bool w = ic->d.attributes & ZYDIS_ATTRIB_HAS_REX && ic->d.raw.rex.W;
    switch (ic->d.meta.category) {
    case ZYDIS_CATEGORY_COND_BR:
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_RET:
        /* operand size of near branches in 64-bit mode; 64-bit far pointers */
        if (mode == MODE_64 && (ic->d.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE) &&
            ic->d.meta.branch_type != ZYDIS_BRANCH_TYPE_FAR)
            return ic->d.mnemonic != ZYDIS_MNEMONIC_IRET && ic->d.mnemonic != ZYDIS_MNEMONIC_IRETQ;
        return w && ic->d.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR && ic->d.raw.modrm.mod != 3 &&
               (ic->d.mnemonic == ZYDIS_MNEMONIC_JMP || ic->d.mnemonic == ZYDIS_MNEMONIC_CALL);
    case ZYDIS_CATEGORY_SEGOP:
        return w && (ic->d.mnemonic == ZYDIS_MNEMONIC_LFS || ic->d.mnemonic == ZYDIS_MNEMONIC_LGS ||
                     ic->d.mnemonic == ZYDIS_MNEMONIC_LSS);
    case ZYDIS_CATEGORY_NOP:
    case ZYDIS_CATEGORY_WIDENOP: /* 0F 0D with a register: NOP or #UD */
        return ic->d.opcode_map == ZYDIS_OPCODE_MAP_0F && ic->d.opcode == 0x0d;
    default:
        /* F3 REX.B 90 is XCHG, not PAUSE */
        return ic->d.mnemonic == ZYDIS_MNEMONIC_PAUSE && ic->len > 2 &&
               (ic->d.attributes & ZYDIS_ATTRIB_HAS_REX && ic->d.raw.rex.B);
    }
}

static bool emit_once(const struct forms *f, const struct form *t, struct rng *r, const struct emit_opt *opt,
                      struct insn_code *out, unsigned effort)
{
    struct asm_buf a = {.n = 0};
    struct ext e;
    struct mem_choice m = {0};
    choose_ext(&e, t, r, f->mode, effort);
    bool mem = t->has_modrm && t->modrm < 0xc0;
    struct form form = *t;
    if (t->enc == ENC_EVEX && e.bc && !mem) form.ll = (uint8_t)rnd_below(r, 4); /* static rounding */
    if (!t->has_modrm || (!t->reg_any && f->mode == MODE_64 && t->enc == ENC_LEGACY && t->map != 0)) e.x = 0;
    if (mem) choose_mem(&m, &e, t, r, opt, f->mode);
    if (effort < 2)
        put_odd_prefixes(&a, t, r, f->mode);
    else if (f->mode == MODE_16 && t->vsib)
        put(&a, 0x67);
    put_prefix_opcode(&a, &form, &e, f->mode);
    if (t->has_modrm) {
        unsigned reg = t->reg_any ? rnd_below(r, 8) : t->modrm >> 3 & 7u;
        unsigned rm = mem ? m.rm : t->rm_any ? rnd_below(r, 8) : t->modrm & 7u;
        put(&a, (mem ? m.mod << 6 : 0xc0) | reg << 3 | rm);
        if (m.has_sib) put(&a, m.sib);
        put_disp(&a, m.disp, r);
    }
    if (t->enc == ENC_3DNOW) put(&a, t->opcode);
    unsigned imm_at = a.n;
    while (a.n < imm_at + 8) put(&a, rnd_pct(r, 30) ? rnd_below(r, 9) : (unsigned)rnd(r) & 0xff);
    while (a.n < 24) put(&a, 0);
    return forms_decode(f, a.b, 15, out) && (out->d.mnemonic == t->mnemonic || t->mnemonic == ZYDIS_MNEMONIC_JRCXZ) &&
           !vendor_specific(out, f->mode);
}

bool forms_emit(const struct forms *f, const struct form *form, struct rng *r, const struct emit_opt *opt,
                struct insn_code *out)
{
    for (unsigned effort = 0; effort < 8; effort++)
        if (emit_once(f, form, r, opt, out, effort)) return true;
    return false;
}
