/* Loops with loops inside: what lies between an outer loop's head and its branch back becomes one block, with jumps inside it.
 *
 * A loop of three or four rounds costs more for what comes before and after it than for the rounds themselves when it is a block of its own:
 * scratch registers lent and brought back, links, the bounds of a strip (translate_loop.c). In a nest the scratch registers are lent once,
 * from those that no instruction of the nest touches, and wherever jumps of the nest lead the state is the same: those are lent, no
 * others, and no check's result is carried over. Each place that is jumped back to is a safe point. An inner loop that runs for at most
 * NEST_ROUNDS between two safe points is the exception: it may have registers of its own, and the results of checks that stand before it.
 *
 * What is made a nest is found by running: a branch back that was taken NEST_HEAT times (run.c). The plain block at the outer loop's head
 * stays, for those who come from elsewhere. An inner loop without jumps inside that goes on for longer leaves for its own block, which
 * has strips. */
#include "vmm/engine/soft/tr.h"

#include <string.h>

#define NEST_ROUNDS 16u
#define NEST_LENT 6u /* registers lent out at most, beside one that counts; and the fewest that must be unused: */
#define NEST_LENT_LEAST 3u

static bool belongs_in_nest(const struct xinsn *x)
{
    switch (x->kind) {
    case XK_COPY:
    case XK_MEM:
    case XK_NOP:
    case XK_LEA_RIP:
    case XK_PUSH:
    case XK_POP:
    case XK_JMP:
    case XK_JCC: return true;
    default: return false;
    }
}

/* Which instruction is at `at`; NO_LABEL when it lies between two. */
static unsigned index_of(const struct tr *t, uint64_t at)
{
    for (unsigned i = 0; i < t->n; i++)
        if (t->x[i].in.rip == at) return i;
    return NO_LABEL;
}

static uint64_t target_of(const struct xinsn *x)
{
    return x->in.rip + x->in.len + x->in.op[0].imm;
}

static bool find_labels(struct tr *t, uint64_t rip)
{
    for (unsigned i = 0; i < t->n; i++) {
        const struct xinsn *x = &t->x[i];
        if (!belongs_in_nest(x)) return false;
        if (!tr_is_jump(x) || target_of(x) < rip || target_of(x) >= t->next_rip) continue;
        unsigned to = index_of(t, target_of(x));
        if (to == NO_LABEL) return false;
        t->label[i].to = (uint8_t)to;
        t->label[to].here = true;
        t->label[to].back |= to <= i;
    }
    return true;
}

/* ---- inner loops ---- */

static bool moves_steadily(const struct tr *t, unsigned reg, unsigned first, unsigned last)
{
    int32_t by;
    for (unsigned i = first; reg < 16 && i <= last; i++)
        if (tr_base_effect(&t->x[i], reg, &by) == 2) return false;
    return true;
}

static unsigned jumps_back_to(const struct tr *t, unsigned first)
{
    unsigned n = 0;
    for (unsigned i = first; i < t->n; i++) n += t->label[i].to == first;
    return n;
}

/* Is instruction `i` made in each round of the loop that starts at `first`, so long as that is not left? */
static bool each_round(const struct tr *t, unsigned first, unsigned i)
{
    for (unsigned k = first; k < i; k++)
        if (t->label[k].to != NO_LABEL && t->label[k].to > i) return false;
    return true;
}

/* Is what lies in between the head and the branch back entered by the head only, and are its jumps forward ones? `jumps`: are there any? */
static bool one_way_through(const struct tr *t, unsigned first, unsigned last, bool *jumps)
{
    *jumps = false;
    if (jumps_back_to(t, first) > 1) return false;
    for (unsigned i = 0; i < t->n; i++) {
        unsigned to = t->label[i].to;
        bool inside = i >= first && i < last;
        if (to == NO_LABEL || i == last) continue;
        if (inside && (to <= i || to > last)) return false;
        if (!inside && to > first && to <= last) return false;
        *jumps |= inside;
    }
    return true;
}

/* The loop from instruction `first` to the branch at `last`: is there a check that could stand before it? */
static bool gains_by_strips(const struct tr *t, unsigned first, unsigned last)
{
    bool gains = false;
    if (t->fl_live[first] || t->x[last].kind != XK_JCC) return false;
    for (unsigned i = first; i <= last; i++) {
        const struct xinsn *x = &t->x[i];
        if (x->kind != XK_MEM || x->in.mem.base >= 16 || !each_round(t, first, i)) continue;
        if (t->acc[i].group != NO_GROUP && t->g[t->acc[i].group].strip) continue;
        gains |= moves_steadily(t, x->in.mem.base, first, last) && moves_steadily(t, x->in.mem.index, first, last);
    }
    return gains;
}

static void count_inner_loops(struct tr *t)
{
    t->nest_count = NO_REG;
    for (unsigned i = 1; i < t->n; i++) {
        unsigned to = t->label[i].to;
        bool jumps;
        if (to == NO_LABEL || to > i || !one_way_through(t, to, i, &jumps) || !gains_by_strips(t, to, i)) continue;
        t->label[to].counted = true;
        t->label[to].stays = jumps || to == 0;
        t->label[to].end = (uint8_t)i;
        t->label[to].copies = (uint8_t)(jumps ? 1 : tr_copies(i + 1 - to));
        t->nest_count = 0; /* tr_begin_nest() finds a register */
    }
}

/* ---- the nest ---- */

static uint16_t unused_registers(const struct tr *t)
{
    uint16_t used = 1u << R_RSP;
    for (unsigned i = 0; i < t->n; i++) used |= t->x[i].reg_read | t->x[i].reg_write;
    return (uint16_t)~used;
}

/* A loop alone is a block of its own, with strips, unless it is too long for that. */
static bool is_more_than_loop(const struct tr *t)
{
    if (t->n >= BLOCK_MAX_INSNS) return true;
    for (unsigned i = 1; i < t->n; i++)
        if (t->label[i].here) return true;
    return false;
}

bool tr_plan_nest(struct tr *t, uint64_t rip)
{
    for (unsigned i = 0; i < t->n; i++) t->label[i] = (struct label){.to = NO_LABEL};
    if (!t->n || !find_labels(t, rip) || t->label[t->n - 1].to != 0 || !is_more_than_loop(t)) return false;
    return (unsigned)__builtin_popcount(unused_registers(t)) >= NEST_LENT_LEAST;
}

/* As many as checks are carried over instructions at any one place, and one for other checks. */
static unsigned scratch_wanted(const struct tr *t)
{
    unsigned most = 0, accesses = 0;
    for (unsigned i = 0; i < t->n; i++) {
        unsigned here = 0;
        for (unsigned k = 0; k < t->groups; k++)
            here += t->g[k].anchor <= i && i <= t->g[k].last && t->g[k].anchor != t->g[k].last;
        if (here > most) most = here;
        accesses += t->x[i].kind == XK_MEM || tr_is_stack(&t->x[i]);
    }
    most += accesses != 0;
    return most < NEST_LENT ? most : NEST_LENT;
}

static void lend_to_nest(struct tr *t, unsigned r)
{
    emit_store_gs(&t->e, GS_SAVED(r), r);
    t->loop_lent |= (uint16_t)(1u << r);
}

/* ---- checks before an inner loop ---- */

/* The checks of accesses that move by a constant each round are done once, for all rounds that the loop may have here. Those that would reach over
 * the end of a page make the loop a block of its own, that time (SITE_MERGED). */
#define REACH_MOST 1024

static bool plan_reach(const struct tr *t, struct group *g, unsigned from, unsigned to)
{
    if (g->first < from || g->last >= to || !tr_plan_strip(t, g, from, to)) return false;
    for (unsigned i = from; i < to; i++) {
        int32_t by;
        bool moves =
            tr_base_effect(&t->x[i], g->base, &by) || (g->index < 16 && tr_base_effect(&t->x[i], g->index, &by));
        if ((moves || i == g->first) && !each_round(t, from, i)) return false;
    }
    int32_t reach = g->stride * (int32_t)(NEST_ROUNDS - 1);
    if (g->hi - g->lo + (reach < 0 ? -reach : reach) > REACH_MOST) return false;
    if (reach < 0) g->lo += reach;
    if (reach > 0) g->hi += reach;
    return true;
}

/* ---- checks before the nest ---- */

static bool touches(const struct tr *t, unsigned reg)
{
    int32_t by;
    for (unsigned i = 0; reg < 16 && i < t->n; i++)
        if (tr_base_effect(&t->x[i], reg, &by)) return true;
    return false;
}

/* Nothing in the nest changes the address, and the access will come. (The stack is there for reads in any case.) */
static bool plan_for_nest(const struct tr *t, struct group *g)
{
    bool certain = each_round(t, 0, g->first) || (g->base == R_RSP && !g->write);
    return t->fl_live[0] == 0 && certain && !touches(t, g->base) && !touches(t, g->index) &&
           tr_plan_strip(t, g, 0, t->n);
}

/* The instruction that gave `reg` the value it has at instruction `at`, when that is a copy of another register: MOV, or LEA with no index. It
 * comes before `at`, with no way past it. Returns the register and adds to *by; NO_REG: it is something else. */
static unsigned copied_from(const struct tr *t, unsigned reg, unsigned at, int32_t *by, unsigned *where)
{
    for (unsigned i = at; i-- > 0;) {
        const struct xinsn *x = &t->x[i];
        if (!(x->reg_write & 1u << reg)) continue;
        const struct insn_mem *m = &x->in.mem;
        *where = i;
        if (!each_round(t, 0, i) || x->in.op_size != 8) return NO_REG;
        if (x->in.mnemonic == ZYDIS_MNEMONIC_MOV && x->kind == XK_COPY && x->in.op[1].kind == OP_REG)
            return x->in.op[1].reg;
        if (x->in.mnemonic != ZYDIS_MNEMONIC_LEA || x->kind != XK_COPY || x->in.addr_size != 8 || m->base >= 16 ||
            m->index < 16 || m->seg == SEG_FS || m->seg == SEG_GS || m->disp < -4096 || m->disp > 4096)
            return NO_REG;
        *by += (int32_t)m->disp;
        return m->base;
    }
    return NO_REG;
}

static unsigned writes_to(const struct tr *t, unsigned reg)
{
    unsigned n = 0;
    for (unsigned i = 0; i < t->n; i++) n += t->x[i].reg_write >> reg & 1;
    return n;
}

static bool label_between(const struct tr *t, unsigned after, unsigned to)
{
    for (unsigned i = after + 1; i <= to; i++)
        if (t->label[i].here) return true;
    return false;
}

/* Is what the group's base register holds at the head of the inner loop at `from` a copy of one that nothing in the nest changes, perhaps by
 * way of others? Then makes that the group's base. */
static bool rebase(const struct tr *t, struct group *g, unsigned from)
{
    unsigned reg = g->base, at = from, where = 0;
    int32_t by = 0;
    for (unsigned n = 0; n < 4 && touches(t, reg); n++) {
        unsigned source = copied_from(t, reg, at, &by, &where);
        if (source >= 16) return false;
        /* still so at `at`: nothing comes in between, but the loop's own branch back to `from`; or it is written nowhere else */
        unsigned until = at == from && at ? at - 1 : at;
        if (label_between(t, where, until) && writes_to(t, reg) > 1) return false;
        reg = source;
        at = where;
    }
    if (touches(t, reg)) return false; /* a longer chain */
    g->base = (uint8_t)reg;
    g->lo += by;
    g->hi += by;
    g->anchor = 0;
    return true;
}

/* For all rounds that the inner loop at `from` has before it leaves: nothing but its own rounds moves the address, and they come. */
static bool plan_inner_for_nest(const struct tr *t, struct group *g, unsigned from)
{
    const struct label *l = &t->label[from];
    if (l->stays || g->index != INSN_NOREG || t->fl_live[0] || !each_round(t, 0, from)) return false;
    if (g->write && tr_may_leave(t, 0, from)) return false;
    return plan_reach(t, g, from, l->end + 1u) && rebase(t, g, from);
}

static bool plan_before_nest(struct tr *t, struct group *g)
{
    if (plan_for_nest(t, g)) return true;
    for (unsigned i = 1; i < t->n; i++)
        if (t->label[i].counted && g->first >= i && g->last <= t->label[i].end) return plan_inner_for_nest(t, g, i);
    return false;
}

/* Checks that stand before the nest, as far as there are registers for them beside two. Not RCX, which a safe point may want. */
static void plan_checks_before_nest(struct tr *t, uint16_t *unused)
{
    for (unsigned k = 0; k < t->groups && __builtin_popcount(*unused) > 2; k++) {
        struct group planned = t->g[k];
        uint16_t choice = (uint16_t)(*unused & ~(1u << R_RCX));
        unsigned r = plan_before_nest(t, &planned) ? tr_take(&choice, planned.no_rex) : NO_REG;
        if (r == NO_REG) continue;
        *unused &= (uint16_t) ~(1u << r);
        planned.strip = true;
        planned.reg = (uint8_t)r;
        t->g[k] = planned;
        lend_to_nest(t, r);
        t->nest_held |= (uint16_t)(1u << r);
    }
}

/* The counter gets the highest: that is not RCX, which a safe point may want, as there are at least three. Those below 8 serve any
 * instruction. */
void tr_begin_nest(struct tr *t)
{
    uint16_t unused = unused_registers(t);
    unsigned wanted = scratch_wanted(t);
    t->fixes = 0;
    t->unreachable = false;
    t->loop_lent = t->inner_lent = t->inner_held = t->nest_held = 0;
    count_inner_loops(t);
    plan_checks_before_nest(t, &unused);
    if (t->nest_count != NO_REG) {
        t->nest_count = (uint8_t)(31 - __builtin_clz(unused));
        unused &= (uint16_t) ~(1u << t->nest_count);
        lend_to_nest(t, t->nest_count);
        t->nest_held |= (uint16_t)(1u << t->nest_count);
    }
    for (unsigned r = 0; r < 16 && wanted; r++) {
        if (!(unused & (1u << r))) continue;
        lend_to_nest(t, r);
        wanted--;
    }
    t->borrowed = t->loop_lent;
    t->held = t->nest_held;
    for (unsigned k = 0; k < t->groups; k++)
        if (t->g[k].strip) tr_check_group(t, 0, &t->g[k], t->g[k].reg);
}

/* ---- around inner loops ---- */

static uint16_t used_between(const struct tr *t, unsigned from, unsigned to)
{
    uint16_t used = 1u << R_RSP;
    for (unsigned i = from; i < to; i++) used |= t->x[i].reg_read | t->x[i].reg_write;
    return used;
}

/* Is there an access whose check stays in the loop? It wants a register. */
static bool checks_stay(const struct tr *t, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++) {
        if (t->x[i].kind != XK_MEM && !tr_is_stack(&t->x[i])) continue;
        if (t->acc[i].group == NO_GROUP) return true;
        struct group planned = t->g[t->acc[i].group];
        if (!plan_reach(t, &planned, from, to)) return true;
    }
    return false;
}

/* Before the loop from instruction `from` on: what it does not use is lent out beside what the nest does not. */
static void check_before(struct tr *t, unsigned from, unsigned to)
{
    uint16_t left = (uint16_t)(t->loop_lent & ~t->nest_held);
    uint16_t unused = (uint16_t) ~(used_between(t, from, to) | t->loop_lent);
    if (checks_stay(t, from, to)) tr_take(&left, true);
    for (unsigned k = 0; k < t->groups; k++) {
        struct group planned = t->g[k];
        if (planned.strip || !plan_reach(t, &planned, from, to)) continue;
        unsigned r = tr_take(&left, planned.no_rex);
        if (r == NO_REG && (r = tr_take(&unused, planned.no_rex)) != NO_REG) {
            emit_store_gs(&t->e, GS_SAVED(r), r);
            t->inner_lent |= (uint16_t)(1u << r);
            t->borrowed |= (uint16_t)(1u << r);
        }
        if (r == NO_REG) continue;
        t->g[k] = planned;
        t->g[k].strip = true;
        t->g[k].reg = (uint8_t)r;
        t->inner_held |= (uint16_t)(1u << r);
    }
    t->held |= t->inner_held;
    for (unsigned k = 0; k < t->groups; k++)
        if (t->g[k].strip && t->g[k].anchor == from && t->inner_held & (1u << t->g[k].reg))
            tr_check_group(t, from, &t->g[k], t->g[k].reg);
}

/* ---- labels and jumps ---- */

/* Nothing is carried over by way of the instruction before. */
void tr_nest_label(struct tr *t, unsigned i)
{
    struct label *l = &t->label[i];
    if (i == 0) t->held = t->nest_held;
    if (!l->here) return;
    uint16_t lent = t->loop_lent | t->inner_lent;
    if (l->copy) {
        tr_fresh_groups(t, i, l->end + 1u);
        t->borrowed = lent;
        t->held = t->nest_held | t->inner_held;
        return;
    }
    if (!t->unreachable) tr_restore(t, (uint16_t)~lent);
    t->unreachable = false;
    t->borrowed = lent;
    t->held = t->nest_held | t->inner_held;
    l->entry = t->e.p;
    if (l->counted) {
        check_before(t, i, l->end + 1u);
        emit_mov_imm(&t->e, t->nest_count, NEST_ROUNDS / l->copies);
    }
    l->host = t->e.p;
    if (l->back && !l->counted) tr_request_check(t, i);
}

static void jump_out(struct tr *t, const struct xinsn *x)
{
    if (x->kind == XK_JCC)
        tr_side_exit(t, x->cc, target_of(x));
    else
        tr_link_jump(t, target_of(x), t->mode);
}

/* For as many rounds more, after a safe point. */
static void check_again(struct tr *t, unsigned head)
{
    uint16_t borrowed = t->borrowed, held = t->held;
    tr_restore(t, t->inner_lent);
    t->held = t->nest_held;
    tr_request_check(t, head);
    patch_rel32(emit_jmp(&t->e, NULL), t->label[head].entry);
    t->borrowed = borrowed;
    t->held = held;
}

/* The branch back of a loop whose checks stand before it. One that would be in strips as a block of its own leaves for that in time. */
static void counted_branch(struct tr *t, unsigned i, unsigned to)
{
    struct emitter *e = &t->e;
    struct label *l = &t->label[to];
    t->out[l->copy++] = emit_jcc(e, t->x[i].cc ^ 1u, NULL);
    if (l->copy < l->copies) {
        t->again = (uint8_t)to;
        t->ahead++;
        return;
    }
    for (unsigned k = 0; k < t->groups; k++)
        if (t->g[k].anchor == to) tr_next_round(t, &t->g[k]);
    t->ahead = 0;
    emit_unary_flags(e, 0xff, 1, t->nest_count); /* dec */
    emit_jcc(e, 5, l->host);                     /* jnz */
    if (l->stays) {
        check_again(t, to);
    } else {
        struct cold *c = tr_new_cold(t, COLD_LINK, emit_jmp(e, NULL));
        c->meta = tr_new_link(t, t->x[to].in.rip);
    }
    for (unsigned n = 0; n < l->copies; n++) patch_rel32(t->out[n], e->p);
    tr_restore(t, t->inner_lent);
    t->held &= (uint16_t)~t->inner_held;
    t->inner_lent = t->inner_held = 0;
}

/* Registers lent out for this place only come back: on the way, when code after a branch goes on with them. */
static void jump_inside(struct tr *t, unsigned i, unsigned to)
{
    const struct xinsn *x = &t->x[i];
    bool back = to <= i;
    uint16_t more = t->borrowed & (uint16_t) ~(t->loop_lent | t->inner_lent);
    if (back || x->kind == XK_JMP) {
        tr_restore(t, more);
        more = 0;
    }
    if (t->label[to].counted && back) {
        counted_branch(t, i, to);
        return;
    }
    uint8_t *at = x->kind == XK_JMP ? emit_jmp(&t->e, NULL) : emit_jcc(&t->e, x->cc, NULL);
    if (more) {
        struct cold *c = tr_new_cold(t, COLD_LOCAL, at);
        c->borrowed = more;
        c->meta = to;
    } else if (back) {
        patch_rel32(at, t->label[to].host);
    } else {
        t->fix[t->fixes++] = (struct nest_fix){at, (uint8_t)to};
    }
}

void tr_nest_jump(struct tr *t, unsigned i)
{
    if (t->label[i].to == NO_LABEL)
        jump_out(t, &t->x[i]);
    else
        jump_inside(t, i, t->label[i].to);
    t->unreachable = t->x[i].kind == XK_JMP; /* what follows up to the next label is reached from outside only */
}

void tr_patch_nest(struct tr *t)
{
    for (unsigned k = 0; k < t->fixes && !t->failed; k++) patch_rel32(t->fix[k].at, t->label[t->fix[k].to].entry);
}
