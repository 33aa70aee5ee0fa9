/* What a block's instructions need: which flags are live where, and which memory accesses can share one check. */
#include "vmm/engine/soft/tr.h"

#include <string.h>

static void flag_liveness(struct tr *t)
{
    uint16_t live = FL_ARITH; /* nothing is known about what follows the block */
    t->fl_live[t->n] = live;
    for (unsigned i = t->n; i-- > 0;) {
        const struct xinsn *x = &t->x[i];
        if (x->kind == XK_SPECIAL || x->kind == XK_STEP || tr_is_jump(x) || x->kind == XK_GATE || x->kind == XK_PUSHF)
            live = FL_ARITH; /* C sees the state before the instruction, whatever that does to flags */
        else
            live = (uint16_t)((live & ~x->fl_kill) | x->fl_read);
        t->fl_live[i] = live;
    }
}

static bool stack_move(const struct xinsn *x, int32_t *by)
{
    switch (x->kind) {
    case XK_PUSH:
    case XK_PUSH_MEM:
    case XK_PUSHF:
    case XK_CALL:
    case XK_CALL_IND: *by = -8; return true;
    case XK_POP: *by = 8; return true;
    default: return false;
    }
}

int tr_base_effect(const struct xinsn *x, unsigned r, int32_t *by)
{
    *by = 0;
    if (r == R_RSP && stack_move(x, by)) return x->kind == XK_POP && x->in.op[0].reg == R_RSP ? 2 : 1;
    if (r == R_RSP && (x->kind == XK_RET || x->kind == XK_LEAVE)) return 2;
    if (r == R_RBP && x->kind == XK_LEAVE) return 2;
    if (!(x->reg_write & (1u << r))) return 0;
    const struct insn *in = &x->in;
    if (x->kind != XK_COPY || in->op_size != 8 || in->op[0].kind != OP_REG) return 2;
    int64_t d;
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
        if (in->op[1].kind != OP_IMM) return 2;
        d = (int64_t)in->op[1].imm;
        if (in->mnemonic == ZYDIS_MNEMONIC_SUB) d = -d;
        break;
    case ZYDIS_MNEMONIC_INC: d = 1; break;
    case ZYDIS_MNEMONIC_DEC: d = -1; break;
    case ZYDIS_MNEMONIC_LEA:
        if (in->mem.base != r || in->mem.index != INSN_NOREG || in->addr_size != 8 || in->op[0].size != 8) return 2;
        d = in->mem.disp;
        break;
    default: return 2;
    }
    if (d < -4096 || d > 4096) return 2;
    *by = (int32_t)d;
    return 1;
}

bool tr_plain_access(const struct tr *t, const struct xinsn *x, uint8_t *base, int32_t *disp, uint16_t *size,
                     bool *write)
{
    (void)t;
    *base = R_RSP;
    *disp = 0;
    *size = 8;
    *write = false;
    switch (x->kind) {
    case XK_PUSH:
    case XK_PUSH_MEM:
    case XK_PUSHF:
    case XK_CALL:
        *disp = -8;
        *write = true;
        return true;
    case XK_POP:
    case XK_RET: return true;
    case XK_LEAVE: *base = R_RBP; return true;
    case XK_MEM:
    case XK_JMP_IND:
    case XK_CALL_IND: break;
    default: return false;
    }
    const struct insn_mem *m = &x->in.mem;
    if (!x->in.has_mem || x->bit_string || x->in.addr_size != 8 || m->base >= 16 || m->index != INSN_NOREG)
        return false;
    if (m->seg == SEG_FS || m->seg == SEG_GS) return false;
    if (m->disp < -0x40000000 || m->disp > 0x40000000) return false;
    *base = m->base;
    *disp = (int32_t)m->disp;
    *size = x->mem_size ? x->mem_size : 1;
    *write = x->mem_write;
    return true;
}

/* What an access goes through, for those that can share a check. */
struct path {
    uint8_t base, index, scale;
    int32_t disp;
    uint16_t size;
    bool write;
};

static bool groupable(const struct tr *t, const struct xinsn *x, struct path *a)
{
    a->index = INSN_NOREG;
    a->scale = 1;
    if (tr_plain_access(t, x, &a->base, &a->disp, &a->size, &a->write)) return true;
    const struct insn_mem *m = &x->in.mem;
    if (x->kind != XK_MEM || x->bit_string || x->in.addr_size != 8 || m->base >= 16 || m->index >= 16) return false;
    if (m->seg == SEG_FS || m->seg == SEG_GS || m->disp < -0x40000000 || m->disp > 0x40000000) return false;
    *a = (struct path){m->base, m->index, m->scale, (int32_t)m->disp, x->mem_size ? x->mem_size : 1, x->mem_write};
    return true;
}

static struct group *open_group(struct tr *t, const struct path *a)
{
    for (unsigned k = t->groups; k-- > 0;) {
        struct group *g = &t->g[k];
        if (g->open && g->base == a->base && g->index == a->index && g->scale == a->scale) return g;
    }
    return NULL;
}

/* Effect of x on a group's address: as tr_base_effect(), for base and index together. */
static int group_effect(const struct xinsn *x, const struct group *g, int32_t *by)
{
    int32_t index_by = 0;
    int e = tr_base_effect(x, g->base, by);
    int i = g->index == INSN_NOREG ? 0 : tr_base_effect(x, g->index, &index_by);
    *by += index_by * g->scale;
    return e == 2 || i == 2 ? 2 : e | i;
}

/* May the access join: the merged range stays small, and no write that a side exit could skip makes the check a write check. */
static bool joins(const struct group *g, int32_t lo, int32_t hi, bool write, bool side_exit_since)
{
    int32_t l = lo < g->lo ? lo : g->lo, h = hi > g->hi ? hi : g->hi;
    if (h - l > 1024) return false;
    if (write && !g->write && side_exit_since) return false;
    return true;
}

/* Moves a check to an earlier boundary where the flags are dead, when the base register allows it. */
static void hoist(struct tr *t, struct group *g)
{
    int32_t moved = 0;
    for (unsigned a = g->first;; a--) {
        if (t->fl_live[a] == 0 && !(a && tr_is_sti(&t->x[a - 1]))) {
            g->anchor = (uint8_t)a;
            g->lo += moved;
            g->hi += moved;
            g->hoisted = moved;
            return;
        }
        if (a == 0 || (t->nest && t->label[a].here)) return;
        int32_t by;
        const struct xinsn *x = &t->x[a - 1];
        if (x->kind == XK_JCC && g->write) return;
        if (t->nest && tr_is_jump(x) && t->label[a - 1].to < a) return; /* into a loop, to be done each round */
        if (group_effect(x, g, &by) == 2) return;
        moved += by; /* the base before x is smaller by `by`: the access lies at lo + by relative to it */
    }
}

static void close_groups(struct tr *t)
{
    for (unsigned k = 0; k < t->groups; k++) t->g[k].open = false;
}

static void build_groups(struct tr *t)
{
    bool side_exit[MAX_GROUPS] = {false};
    for (unsigned i = 0; i < t->n; i++) {
        const struct xinsn *x = &t->x[i];
        struct path a;
        t->acc[i].group = NO_GROUP;
        if (t->nest && t->label[i].here) close_groups(t); /* their checks may have been jumped over */
        bool shadow =
            i && tr_is_sti(&t->x[i - 1]); /* may not be left for another block: that could have its safe point there */
        if (!shadow && groupable(t, x, &a)) {
            struct group *g = t->mode & MODE_NO_MERGE ? NULL : open_group(t, &a);
            int32_t lo = g ? a.disp + g->moved : a.disp, hi = lo + a.size;
            if (g && !joins(g, lo, hi, a.write, side_exit[g - t->g])) {
                g->open = false;
                g = NULL;
            }
            if (!g && t->groups < MAX_GROUPS) {
                side_exit[t->groups] = false;
                g = &t->g[t->groups++];
                lo = a.disp;
                hi = a.disp + a.size;
                *g = (struct group){.base = a.base,
                                    .index = a.index,
                                    .scale = a.scale,
                                    .anchor = (uint8_t)i,
                                    .first = (uint8_t)i,
                                    .reg = NO_REG,
                                    .open = true,
                                    .lo = lo,
                                    .hi = hi,
                                    .write = a.write};
            }
            if (g) {
                if (lo < g->lo) g->lo = lo;
                if (hi > g->hi) g->hi = hi;
                g->write |= a.write;
                g->no_rex |= x->no_rex;
                g->last = (uint8_t)i;
                g->count++;
                t->acc[i].group = (uint8_t)(g - t->g);
                t->acc[i].rel = lo;
            }
        }
        for (unsigned k = 0; k < t->groups; k++) {
            struct group *g = &t->g[k];
            int32_t by;
            if (!g->open) continue;
            int eff = group_effect(x, g, &by);
            if (eff == 2) g->open = false;
            g->moved += by;
            if (g->moved > 2048 || g->moved < -2048) g->open = false;
            if (x->kind == XK_JCC) side_exit[k] = true;
        }
        if (t->nest && (x->kind == XK_JMP || (x->kind == XK_JCC && t->label[i].to <= i)))
            close_groups(t); /* their registers may have to come back */
    }
    for (unsigned k = 0; k < t->groups; k++)
        if (t->fl_live[t->g[k].first] && !(t->mode & MODE_NO_MERGE)) hoist(t, &t->g[k]);
}

void tr_analyze(struct tr *t)
{
    t->groups = 0;
    flag_liveness(t);
    build_groups(t);
}
