/* Memory operands: scratch registers, the per-site check, groups of accesses that share one. */
#include "vmm/engine/soft/tr.h"

#include <string.h>

void tr_restore(struct tr *t, uint16_t regs)
{
    regs &= t->borrowed;
    for (unsigned r = 0; r < 16; r++)
        if (regs & (1u << r)) emit_load_gs(&t->e, r, GS_SAVED(r));
    t->borrowed &= (uint16_t)~regs;
    t->held &= (uint16_t)~regs;
}

static void lend(struct tr *t, unsigned r)
{
    if (t->borrowed & (1u << r)) return;
    emit_store_gs(&t->e, GS_SAVED(r), r);
    t->borrowed |= (uint16_t)(1u << r);
}

/* How good register r is as a scratch from instruction i on: the longer it is not needed the better; best is one that is
 * overwritten before it is read (it need not come back), or, when several accesses follow, one not used at all. */
static int score(const struct tr *t, unsigned i, unsigned r, bool many)
{
    uint16_t bit = (uint16_t)(1u << r);
    for (unsigned k = i; k < t->n; k++) {
        const struct xinsn *x = &t->x[k];
        if (x->reg_read & bit) return (int)(k - i);
        if (x->reg_kill & bit) return (many ? 500 : 900) + (int)(k - i);
    }
    return 700 + (r >= 8 ? 8 : 0);
}

static unsigned accesses_after(const struct tr *t, unsigned i)
{
    unsigned n = 0;
    for (unsigned k = i; k < t->n; k++) n += t->acc[k].group != NO_GROUP || t->x[k].kind == XK_MEM;
    return n;
}

static unsigned best(const struct tr *t, unsigned i, uint16_t allowed, bool many)
{
    unsigned reg = NO_REG;
    int top = -1;
    for (unsigned r = 0; r < 16; r++) {
        if (!(allowed & (1u << r))) continue;
        int s = score(t, i, r, many);
        if (s > top) {
            top = s;
            reg = r;
        }
    }
    return reg;
}

unsigned tr_borrow(struct tr *t, unsigned i, uint16_t forbidden, bool low_only)
{
    const struct xinsn *x = &t->x[i];
    uint16_t allowed = (uint16_t) ~(forbidden | t->held | 1u << R_RSP | x->reg_read | (x->reg_write & ~x->reg_kill));
    if (low_only) allowed &= 0xff;
    uint16_t ready = allowed & t->borrowed;
    unsigned r;
    if (ready)
        r = (unsigned)__builtin_ctz(ready);
    else
        r = best(t, i, allowed, accesses_after(t, i) > 1);
    if (r == NO_REG) {
        t->failed = true; /* cannot happen: at most 6 registers are in use by one instruction; the block is dropped */
        return R_RBX;
    }
    lend(t, r);
    return r;
}

/* What the check is about. */
struct check {
    unsigned s;         /* scratch: in: holds nothing */
    struct host_mem ea; /* flag-free part of the address computation, into s */
    bool constant;      /* ea is the constant `value` instead */
    bool addr32;
    uint64_t value;
    int seg;                  /* FS or GS base to add, or -1 */
    const struct xinsn *bits; /* bit string operand: add the bit offset's words */
    unsigned bit_reg;         /* where the bit offset is */
    uint16_t size;
    bool write, hostpage, merged;
    bool hoisted; /* stands before a conditional branch that the access is behind */
};

static void emit_ea(struct tr *t, const struct check *c)
{
    if (c->constant)
        emit_mov_imm(&t->e, c->s, c->value);
    else if (c->addr32)
        emit_lea32(&t->e, c->s, c->ea);
    else
        emit_lea(&t->e, c->s, c->ea);
}

/* s = ea + sign-extended bit offset / width * bytes; needs the flags */
static void emit_bit_offset_flags(struct tr *t, const struct check *c)
{
    struct emitter *e = &t->e;
    unsigned src = c->bit_reg, size = c->bits->in.op_size;
    unsigned rex = 0x48 | (c->s >= 8 ? 4u : 0u) | (src >= 8 ? 1u : 0u);
    if (size == 8) {
        emit_mov_rr(e, c->s, src);
    } else if (size == 4) {
        e8(e, rex);
        e8(e, 0x63);
        e8(e, 0xc0 | (c->s & 7) << 3 | (src & 7)); /* movsxd */
    } else {
        e8(e, rex);
        e8(e, 0x0f);
        e8(e, 0xbf);
        e8(e, 0xc0 | (c->s & 7) << 3 | (src & 7));
    }
    e8(e, 0x48 | (c->s >= 8));
    e8(e, 0xc1);
    e8(e, 0xf8 | (c->s & 7)); /* sar s, log2(width) */
    e8(e, size == 8 ? 6 : size == 4 ? 5 : 4);
    struct host_mem m = {c->ea.base, (uint8_t)c->s, (uint8_t)size, c->ea.disp};
    emit_lea(e, c->s, m);
    if (c->ea.index != INSN_NOREG) {
        struct host_mem add = {(uint8_t)c->s, c->ea.index, c->ea.scale, 0};
        emit_lea(e, c->s, add);
    }
}

static void add_segment(struct tr *t, const struct check *c)
{
    if (c->seg < 0) return;
    emit_gs(&t->e, 1, 0x03, c->s,
            GS(seg) + (uint32_t)c->seg * (uint32_t)sizeof(struct cpu_segment) +
                (uint32_t)offsetof(struct cpu_segment, base));
}

/* The check itself: afterwards s holds HVA - GVA, or the host address of the operand when c->hostpage. */
static void emit_check(struct tr *t, unsigned i, const struct check *c)
{
    struct emitter *e = &t->e;
    bool flags = t->fl_live[i] != 0;
    bool rax_lent = t->borrowed & 1;
    uint32_t site_off = soft_meta_alloc(t->p, sizeof(struct site));
    if (!site_off || t->colds >= MAX_COLD) {
        t->failed = true;
        return;
    }
    struct site *site = meta_ptr(t->p, site_off);
    bool stack = !c->hostpage && !c->constant && !c->bits && c->seg < 0 && !c->addr32 && c->ea.base == R_RSP;
    uint32_t slot = stack ? soft_stack_slot(t->cpu, t->idx, c->write, t->b->rip)
                          : soft_site_slot(t->cpu, t->idx, c->write, c->hostpage);
    if (!c->bits) emit_ea(t, c);
    if (flags) {
        if (!rax_lent) emit_store_gs(e, GS_SAVED(R_RAX), R_RAX);
        e8(e, 0x9f); /* lahf */
        e8(e, 0x0f);
        e8(e, 0x90);
        e8(e, 0xc0); /* seto al */
    }
    if (c->bits) emit_bit_offset_flags(t, c);
    add_segment(t, c);
    uint8_t *retry = e->p;
    emit_gs(e, 1, 0x2b, c->s, slot); /* sub s, gs:tag */
    emit_alu_imm(e, 1, ALU_CMP, c->s, 4096u - c->size);
    uint8_t *ja = emit_jcc(e, 7, NULL);
    if (c->bits && c->ea.index != INSN_NOREG) {
        emit_lea(e, c->s, c->ea);
        emit_gs(e, 1, 0x03, c->s, slot + 8); /* add s, gs:delta */
        add_segment(t, c);
    } else if (c->hostpage) {
        emit_gs(e, 1, 0x03, c->s, slot + 8); /* add s, gs:hostpage */
    } else {
        emit_load_gs(e, c->s, slot + 8); /* mov s, gs:delta */
        if (c->bits) add_segment(t, c);
    }
    if (!c->bits && e->p != retry + SITE_CHECK_BYTES) t->failed = true; /* cannot be: all forms are of one length */
    if (flags) {
        e8(e, 0x04);
        e8(e, 0x7f); /* add al, 0x7f: OF again */
        e8(e, 0x9e); /* sahf */
        if (!rax_lent) emit_load_gs(e, R_RAX, GS_SAVED(R_RAX));
    }
    *site = (struct site){
        .retry = (uint32_t)(retry - t->p->code),
        .slot = slot,
        .block = t->b_off,
        .span = (uint16_t)(c->size - 1),
        .guest = (uint16_t)(t->x[i].in.rip - t->b->rip),
        .borrowed = t->borrowed | (flags ? 1 : 0),
        .held = t->held,
        .scratch = (uint8_t)c->s,
        .heat = SITE_HEAT,
        .flags = (uint16_t)((c->write ? SITE_WRITE : 0) | (c->merged ? SITE_MERGED : 0) | (flags ? SITE_FLAGS : 0) |
                            (c->hostpage ? SITE_HOSTPAGE : 0) | (c->bits ? SITE_RETRY : 0) | (stack ? SITE_SHARED : 0) |
                            (c->merged && c->hoisted ? SITE_HOISTED : 0)),
    };
    t->cold[t->colds++] = (struct cold){
        .kind = COLD_SITE, .jump = ja, .meta = site_off, .scratch = (uint8_t)c->s, .idx = t->idx, .write = c->write};
}

/* While the flags are live they are kept in RAX: the check's scratch must be another one. */
static uint16_t rax_if_flags(const struct tr *t, unsigned i)
{
    return t->fl_live[i] ? 1u << R_RAX : 0;
}

static uint16_t group_regs(const struct group *g)
{
    return (uint16_t)(1u << g->base | (g->index < 16 ? 1u << g->index : 0));
}

/* A register that no instruction in [anchor, last] touches. RAX is kept for the flags. */
static unsigned group_register(struct tr *t, const struct group *g)
{
    uint16_t used = (uint16_t)(1u << R_RSP | 1u << R_RAX | group_regs(g) | t->held);
    for (unsigned k = g->anchor; k <= g->last; k++) {
        used |= t->x[k].reg_read | t->x[k].reg_write;
        if (tr_is_sti(&t->x[k])) used |= 1u << R_RCX; /* wanted for JRCXZ */
    }
    for (unsigned k = 0; k < t->groups;
         k++) /* nor may another group's check, hoisted into that range, need it as its base */
        if (t->g[k].anchor >= g->anchor && t->g[k].anchor <= g->last) used |= group_regs(&t->g[k]);
    uint16_t allowed = (uint16_t)~used;
    if (g->no_rex) allowed &= 0xff;
    uint16_t ready = allowed & t->borrowed;
    if (ready) return (unsigned)__builtin_ctz(ready);
    unsigned r = best(t, g->last, allowed, true);
    if (r != NO_REG && score(t, g->last, r, true) < 3) return NO_REG; /* would come right back */
    return r;
}

static void check_group(struct tr *t, unsigned i, const struct group *g, unsigned s, bool merged)
{
    struct check c = {.s = s,
                      .ea = {g->base, g->index, g->scale, g->lo},
                      .seg = -1,
                      .size = (uint16_t)(g->hi - g->lo),
                      .write = g->write,
                      .merged = merged,
                      .hoisted = merged && (g->anchor != g->first || g->strip),
                      .hostpage = g->index != INSN_NOREG};
    emit_check(t, i, &c);
}

void tr_check_group(struct tr *t, unsigned i, const struct group *g, unsigned s)
{
    check_group(t, i, g, s, true);
}

void tr_begin_groups(struct tr *t, unsigned i)
{
    for (unsigned k = 0; k < t->groups; k++) {
        struct group *g = &t->g[k];
        if (g->anchor != i || g->dissolved || g->strip) continue;
        bool lone = g->count == 1 && g->anchor == g->first;
        unsigned r = lone ? NO_REG : group_register(t, g);
        if (r == NO_REG) {
            g->dissolved = true;
            continue;
        }
        tr_restore(t, group_regs(g));
        lend(t, r);
        check_group(t, i, g, r, true);
        g->reg = (uint8_t)r;
        t->held |= (uint16_t)(1u << r);
    }
}

void tr_end_groups(struct tr *t, unsigned i)
{
    for (unsigned k = 0; k < t->groups; k++)
        if (t->g[k].reg != NO_REG && t->g[k].last == i && !t->g[k].strip) t->held &= (uint16_t) ~(1u << t->g[k].reg);
}

/* The address is made from registers while the flags may be in RAX: what is in RAX is copied before. */
static void bit_string_check(struct tr *t, unsigned i, struct check *c)
{
    c->bits = &t->x[i];
    c->bit_reg = c->bits->in.op[1].reg;
    if (c->constant) {
        c->constant = false;
        c->ea = (struct host_mem){INSN_NOREG, INSN_NOREG, 1, (int32_t)c->value};
    }
    if (!t->fl_live[i] || (c->bit_reg != R_RAX && c->ea.base != R_RAX && c->ea.index != R_RAX)) return;
    unsigned copy = tr_borrow(t, i, 1u << R_RAX, false);
    emit_mov_rr(&t->e, copy, R_RAX);
    if (c->bit_reg == R_RAX) c->bit_reg = copy;
    if (c->ea.base == R_RAX) c->ea.base = (uint8_t)copy;
    if (c->ea.index == R_RAX) c->ea.index = (uint8_t)copy;
}

static void complex_check(struct tr *t, unsigned i, struct check *c)
{
    const struct insn *in = &t->x[i].in;
    const struct insn_mem *m = &in->mem;
    c->seg = m->seg == SEG_FS || m->seg == SEG_GS ? m->seg : -1;
    c->addr32 = in->addr_size == 4;
    if (m->base == INSN_RIP || (m->base == INSN_NOREG && m->index == INSN_NOREG)) {
        c->constant = true;
        c->value = (uint64_t)m->disp + (m->base == INSN_RIP ? in->rip + in->len : 0);
        if (c->addr32) c->value = (uint32_t)c->value;
    } else {
        c->ea = (struct host_mem){m->base, m->index, m->scale, (int32_t)m->disp};
    }
    if (t->x[i].bit_string) bit_string_check(t, i, c);
}

static uint16_t bit_string_regs(const struct check *c)
{
    return (uint16_t)(1u << c->bit_reg | (c->ea.base < 16 ? 1u << c->ea.base : 0) |
                      (c->ea.index < 16 ? 1u << c->ea.index : 0));
}

void tr_access(struct tr *t, unsigned i, uint16_t forbidden, struct host_mem *m)
{
    const struct xinsn *x = &t->x[i];
    uint8_t base;
    int32_t disp;
    uint16_t size;
    bool write;
    bool plain = tr_plain_access(t, x, &base, &disp, &size, &write);
    struct group *g = t->acc[i].group == NO_GROUP ? NULL : &t->g[t->acc[i].group];
    if (g && g->reg != NO_REG && g->index != INSN_NOREG) {
        int32_t rounds = g->strip ? (int32_t)t->ahead * g->stride : 0;
        *m = (struct host_mem){g->reg, INSN_NOREG, 1, t->acc[i].rel - (g->lo - g->hoisted) + rounds};
        return;
    }
    if (plain && g && g->reg != NO_REG) {
        *m = (struct host_mem){base, g->reg, 1, disp};
        return;
    }
    if (plain) {
        unsigned s = tr_borrow(t, i, (uint16_t)(forbidden | 1u << base | rax_if_flags(t, i)), x->no_rex);
        struct group single = {
            .base = base, .index = INSN_NOREG, .scale = 1, .lo = disp, .hi = disp + size, .write = write};
        check_group(t, i, &single, s, false);
        *m = (struct host_mem){base, (uint8_t)s, 1, disp};
        return;
    }
    struct check c = {.size = x->mem_size ? x->mem_size : 1, .write = x->mem_write};
    complex_check(t, i, &c);
    if (c.bits) forbidden |= bit_string_regs(&c);
    c.s = tr_borrow(t, i, (uint16_t)(forbidden | rax_if_flags(t, i)), x->no_rex);
    c.hostpage = !c.bits;
    emit_check(t, i, &c);
    if (c.bits && c.ea.index == INSN_NOREG)
        *m = (struct host_mem){c.ea.base, (uint8_t)c.s, 1, c.ea.disp};
    else
        *m = (struct host_mem){(uint8_t)c.s, INSN_NOREG, 1, 0};
}
