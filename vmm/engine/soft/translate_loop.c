/* Blocks that jump back to themselves: the inner loops of programs.
 *
 * Scratch registers are lent out once, before the loop, from those it never uses. And checks leave the loop: an access whose address moves by
 * a constant each time round stays on its page for a number of rounds that can be told beforehand. So the loop runs in strips, after a few
 * rounds in which every access is checked (many loops have no more than those):
 *
 *             safe point; r = FIRST_ROUNDS
 *     first:  the guest's instructions with their checks
 *             jncc out; dec r; jnz first
 *     again:  lend the registers
 *     strip:  safe point; check each such access; r = the rounds for which all of them stay on their pages, at most STRIP_MOST
 *     loop:   sub r, 4; js rest
 *             four times: the guest's instructions, on host addresses that need no check; jncc out (the last time: jcc loop)
 *     rest:   add r, 4
 *     one:    dec r; js strip
 *             the same once more
 *             jcc one
 *     out:
 *
 * A round that crosses a page fails the check at `strip` and is done by the variant of the block that checks each access on its own, which
 * comes back at `again`. */
#include "vmm/engine/soft/tr.h"

/* Computing the bounds costs about as much as checking so many rounds. */
#define FIRST_ROUNDS 8u
/* Rounds between two looks at exit_request: some microseconds. */
#define STRIP_MOST 1023u
/* An address that moves faster leaves its page too soon for this to pay. */
#define STRIDE_MOST 512
/* floor(x / stride) = x * RECIPROCAL(stride) >> 24 for x < 4096: the error of the factor, below 2^-24, times x stays below 1 / stride. */
#define RECIPROCAL(stride) ((1u << 24) / (stride) + 1)

bool tr_is_self_loop(const struct tr *t)
{
    const struct xinsn *last = &t->x[t->n - 1];
    return last->kind == XK_JCC && last->in.rip + last->in.len + last->in.op[0].imm == t->b->rip &&
           !(t->mode & MODE_NO_MERGE);
}

/* ---- which checks can leave the loop ---- */

/* By how much the group's address differs at instruction `to` from what it is at `from`; false when nobody can tell. */
static bool moved_until(const struct tr *t, const struct group *g, unsigned from, unsigned to, int32_t *moved)
{
    *moved = 0;
    for (unsigned i = from; i < to; i++) {
        int32_t by, index_by = 0;
        if (tr_base_effect(&t->x[i], g->base, &by) == 2) return false;
        if (g->index != INSN_NOREG && tr_base_effect(&t->x[i], g->index, &index_by) == 2) return false;
        *moved += by + index_by * g->scale;
    }
    return true;
}

bool tr_may_leave(const struct tr *t, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++)
        if (t->x[i].kind == XK_JCC && !(t->nest && t->label[i].to != NO_LABEL)) return true;
    return false;
}

bool tr_plan_strip(const struct tr *t, struct group *g, unsigned from, unsigned to)
{
    int32_t before, stride;
    if (!moved_until(t, g, from, g->first, &before) || !moved_until(t, g, from, to, &stride)) return false;
    if (stride < -STRIDE_MOST || stride > STRIDE_MOST || before < -4096 || before > 4096) return false;
    if (g->write && tr_may_leave(t, from, g->first))
        return false; /* a write that may not come must not make it a write check */
    /* lo and hi are relative to the address at `anchor`, which is `hoisted` away from that at `first` */
    g->lo += before - g->hoisted;
    g->hi += before - g->hoisted;
    g->hoisted = before;
    g->anchor = (uint8_t)from;
    g->stride = stride;
    return true;
}

static bool plain_block(const struct tr *t)
{
    for (unsigned i = 0; i < t->n; i++) {
        switch (t->x[i].kind) {
        case XK_COPY:
        case XK_MEM:
        case XK_NOP:
        case XK_LEA_RIP:
        case XK_PUSH:
        case XK_POP: break;
        case XK_JCC:
            if (i + 1 < t->n) break;
            return t->fl_live[0] == 0; /* the loop's head counts */
        default: return false;
        }
    }
    return false;
}

/* ---- registers ---- */

static uint16_t used_registers(const struct tr *t, bool *low)
{
    uint16_t used = 1u << R_RSP;
    *low = false;
    for (unsigned i = 0; i < t->n; i++) {
        used |= t->x[i].reg_read | t->x[i].reg_write;
        *low |= t->x[i].no_rex;
    }
    return used;
}

static unsigned scratch_wanted(const struct tr *t)
{
    unsigned wanted = 0;
    for (unsigned i = 0; i < t->n; i++)
        if (t->x[i].kind == XK_MEM && t->acc[i].group == NO_GROUP) wanted |= 1;
    for (unsigned k = 0; k < t->groups; k++) wanted += t->g[k].count > 1 ? 1 : 0;
    if (t->groups || wanted) wanted++;
    return wanted > 5 ? 5 : wanted;
}

/* Lends out up to `wanted` registers; returns which. */
static uint16_t lend_unused(struct tr *t, uint16_t used, unsigned wanted, bool low)
{
    uint16_t lent = 0;
    for (unsigned n = 0; n < 16 && wanted; n++) {
        unsigned r = low ? n : 15 - n;
        if (used & (1u << r)) continue;
        emit_store_gs(&t->e, GS_SAVED(r), r);
        lent |= (uint16_t)(1u << r);
        wanted--;
    }
    return lent;
}

unsigned tr_take(uint16_t *from, bool low)
{
    uint16_t some = low ? *from & 0xff : *from;
    if (!some) return NO_REG;
    unsigned r = low ? (unsigned)__builtin_ctz(some) : 31 - (unsigned)__builtin_clz(some);
    *from &= (uint16_t) ~(1u << r);
    return r;
}

/* ---- the strip ---- */

/* rounds = min(rounds, how often the group's address can move and still lie in its page). A check against a large page (site.c) also holds
 * for a range over a border inside that: upwards, only the round at hand is sure then. */
static void emit_bound(struct tr *t, const struct group *g, unsigned rounds, unsigned tmp)
{
    struct emitter *e = &t->e;
    uint32_t stride = (uint32_t)(g->stride < 0 ? -g->stride : g->stride);
    if (!stride) return;
    struct host_mem ea = {g->base, g->index, g->scale, g->lo};
    emit_lea(e, tmp, ea);
    emit_alu_imm(e, 0, ALU_AND, tmp, (uint32_t)PAGE_SIZE - 1); /* and tmp32, 4095 */
    if (g->stride > 0) {
        emit_unary_flags(e, 0xf7, 3, tmp);                                                 /* neg tmp */
        emit_alu_imm(e, 1, ALU_ADD, tmp, (uint32_t)PAGE_SIZE - (uint32_t)(g->hi - g->lo)); /* add tmp, 4096 - size */
        e8(e, 0x79);                                                                       /* jns past the next */
        uint8_t *inside = e->p;
        e8(e, 0);
        emit_mov_imm(e, tmp, 0);
        *inside = (uint8_t)(e->p - (inside + 1));
    }
    unsigned rex = 0x48 | (tmp >= 8 ? 5u : 0u);
    e8(e, rex);
    e8(e, 0x69);
    e8(e, 0xc0 | (tmp & 7) << 3 | (tmp & 7));
    e32(e, RECIPROCAL(stride)); /* imul tmp, tmp, factor */
    emit_shr_flags(e, tmp, 24);
    emit_rr(e, 0x39, tmp, rounds); /* cmp tmp, rounds */
    e8(e, 0x48 | (rounds >= 8 ? 4u : 0u) | (tmp >= 8 ? 1u : 0u));
    e8(e, 0x0f);
    e8(e, 0x42);
    e8(e, 0xc0 | (rounds & 7) << 3 | (tmp & 7)); /* cmovb rounds, tmp */
}

static void emit_strip(struct tr *t, unsigned rounds, unsigned tmp)
{
    struct emitter *e = &t->e;
    t->b->strip = (uint32_t)(e->p - t->p->code);
    for (unsigned r = 0; r < 16; r++)
        if (t->loop_lent >> r & 1) emit_store_gs(e, GS_SAVED(r), r);
    t->strip = e->p;
    patch_rel32(t->to_strip, e->p);
    tr_request_check(t, 0);
    emit_mov_imm(e, rounds, STRIP_MOST);
    for (unsigned k = 0; k < t->groups; k++) {
        struct group *g = &t->g[k];
        if (!g->strip) continue;
        tr_check_group(t, 0, g, g->reg);
        emit_bound(t, g, rounds, tmp);
    }
    emit_unary_flags(e, 0xff, 0, rounds); /* inc: the round at hand is one more */
}

/* Chooses what leaves the loop and gives each check a register of its own. */
void tr_begin_strip(struct tr *t)
{
    uint16_t left = (uint16_t)(t->loop_lent & ~(1u << t->strip_rounds));
    bool low = t->loop_low;
    unsigned tmp = tr_take(&left, low); /* stays for other accesses in the loop */
    __builtin_memcpy(t->g, t->kept, sizeof t->g);
    t->borrowed = t->loop_lent;
    t->held = (uint16_t)(1u << t->strip_rounds);
    for (unsigned k = 0; k < t->groups; k++) {
        struct group *g = &t->g[k];
        unsigned r = left ? tr_take(&left, g->no_rex) : NO_REG;
        if (r == NO_REG) continue;
        if (!tr_plan_strip(t, g, 0, t->n)) {
            left |= (uint16_t)(1u << r);
            continue;
        }
        g->strip = true;
        g->reg = (uint8_t)r;
        t->held |= (uint16_t)(1u << r);
    }
    emit_strip(t, t->strip_rounds, tmp);
    t->copies = (uint8_t)tr_copies(t->n);
    t->copy = 0;
}

unsigned tr_copies(unsigned insns)
{
    unsigned n = COPIED_MOST / insns;
    return n >= COPIES_MOST ? COPIES_MOST : n >= 2 ? 2 : 1;
}

void tr_fresh_groups(struct tr *t, unsigned from, unsigned to)
{
    for (unsigned k = 0; k < t->groups; k++) {
        struct group *g = &t->g[k];
        if (g->strip || g->first < from || g->last >= to) continue;
        g->reg = NO_REG;
        g->dissolved = false;
    }
}

static void begin_copies(struct tr *t)
{
    t->loop = t->e.p;
    emit_alu_imm(&t->e, 1, ALU_SUB, t->strip_rounds, t->copies);
    t->to_rest = emit_jcc(&t->e, 8, NULL); /* js */
}

static void begin_rest(struct tr *t)
{
    if (t->copies > 1) {
        patch_rel32(t->to_rest, t->e.p);
        emit_alu_imm(&t->e, 1, ALU_ADD, t->strip_rounds, t->copies);
    }
    t->loop = t->e.p;
    emit_unary_flags(&t->e, 0xff, 1, t->strip_rounds); /* dec */
    emit_jcc(&t->e, 8, t->strip);                      /* js */
}

bool tr_copy_round(struct tr *t)
{
    bool several = t->copies > 1;
    if (t->copy == t->copies + several) return false;
    if (several && t->copy == 0) begin_copies(t);
    if (!several || t->copy == t->copies) begin_rest(t);
    tr_fresh_groups(t, 0, t->n);
    t->borrowed = t->loop_lent;
    t->copy++;
    return true;
}

void tr_begin_loop(struct tr *t)
{
    uint16_t used = used_registers(t, &t->loop_low);
    bool strip = plain_block(t);
    t->loop_lent = lend_unused(t, used, strip ? t->groups + 2 : scratch_wanted(t), t->loop_low);
    t->borrowed = t->loop_lent;
    uint16_t left = t->loop_lent;
    t->strip_rounds = NO_REG;
    if (strip && __builtin_popcount(left) >= 2) {
        t->strip_rounds = (uint8_t)tr_take(&left, false);
        t->held = (uint16_t)(1u << t->strip_rounds);
        __builtin_memcpy(t->kept, t->g, sizeof t->g);
        tr_request_check(t, 0);
        emit_mov_imm(&t->e, t->strip_rounds, FIRST_ROUNDS);
    }
    t->loop = t->e.p;
}

void tr_next_round(struct tr *t, const struct group *g)
{
    if (!g->strip || g->index == INSN_NOREG || !g->stride) return;
    struct host_mem next = {g->reg, INSN_NOREG, 1, g->stride * (int32_t)(t->ahead + 1)};
    emit_lea(&t->e, g->reg, next);
}

/* The loop's own branch: back for another round, or on. */
void tr_back_edge(struct tr *t, unsigned cc)
{
    struct emitter *e = &t->e;
    tr_restore(t, (uint16_t)~t->loop_lent);
    if (t->strip_rounds != NO_REG && !t->strip) {
        uint8_t *out = emit_jcc(e, cc ^ 1, NULL);
        emit_unary_flags(e, 0xff, 1, t->strip_rounds);
        emit_jcc(e, 5, t->loop);
        t->to_strip = emit_jmp(e, NULL);
        patch_rel32(out, e->p);
        return;
    }
    if (t->strip && t->copy < t->copies) {
        t->out[t->copy - 1] = emit_jcc(e, cc ^ 1, NULL);
        t->ahead++;
        return;
    }
    for (unsigned k = 0; k < t->groups; k++) tr_next_round(t, &t->g[k]);
    t->ahead = 0;
    emit_jcc(e, cc, t->loop);
    if (!t->strip || t->copies == 1) return;
    if (t->copy == t->copies)
        t->out[t->copies - 1] = emit_jmp(e, NULL);
    else
        for (unsigned n = 0; n < t->copies; n++) patch_rel32(t->out[n], e->p);
}
