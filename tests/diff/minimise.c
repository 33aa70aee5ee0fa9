/* See fuzz.h. */
#include <string.h>

#include "tests/diff/fuzz.h"

int fuzz_one(struct fuzz *z, const struct diff_case *c, bool on_fresh, struct verdict *v)
{
    if (on_fresh) {
        worker_stop(&z->worker[SIDE_ENGINE]);
        if (worker_start(&z->worker[SIDE_ENGINE])) return -1;
    }
    z->batch->cases[0] = *c;
    z->batch->count = 1;
    if (workers_run(z->worker, SIDES)) return -1;
    compare_results(c, &z->forms, &z->batch->results[SIDE_NATIVE][0], &z->batch->results[SIDE_ENGINE][0], v);
    return 0;
}

/* Keeps the change in `n` when the case still differs in the same field. */
static bool try_change(struct fuzz *z, struct diff_case *c, const struct diff_case *n, bool on_fresh, struct verdict *v)
{
    static struct verdict w;
    if (fuzz_one(z, n, on_fresh, &w) || w.equal || w.skipped || strcmp(w.field, v->field)) return false;
    *c = *n;
    *v = w;
    return true;
}

static bool is_nop(const struct diff_case *c, unsigned from, unsigned to)
{
    for (; from < to; from++)
        if (c->code[from] != 0x90) return false;
    return true;
}

static bool drop_instructions(struct fuzz *z, struct diff_case *c, unsigned count, bool on_fresh, struct verdict *v)
{
    static struct diff_case n;
    bool any = false;
    for (unsigned i = 0; i + count <= c->insns; i += count) {
        unsigned from = c->insn_off[i], to = i + count < c->insns ? c->insn_off[i + count] : c->code_len;
        if (is_nop(c, from, to)) continue;
        n = *c;
        memset(n.code + from, 0x90, to - from);
        any |= try_change(z, c, &n, on_fresh, v);
    }
    return any;
}

static void plain_state(struct fuzz *z, struct diff_case *c, bool on_fresh, struct verdict *v)
{
    static struct diff_case n;
    static const uint64_t plain[] = {0, 1};
    n = *c;
    memset(n.xsave, 0, sizeof(n.xsave));
    n.xsave[0] = 0x7f;
    n.xsave[1] = 3;
    n.xsave[24] = 0x80;
    n.xsave[25] = 0x1f;
    try_change(z, c, &n, on_fresh, v);
    n = *c;
    n.patches = n.patch_used = 0;
    try_change(z, c, &n, on_fresh, v);
    for (unsigned i = 0; i < 18; i++) {
        uint64_t *field = i < 16 ? &n.gpr[i] : i == 16 ? &n.fs_base : &n.gs_base;
        for (unsigned k = 0; k < 2; k++) {
            n = *c;
            if (*field == plain[k]) break;
            *field = plain[k];
            if (try_change(z, c, &n, on_fresh, v)) break;
        }
    }
    n = *c;
    n.rflags = 0x202;
    try_change(z, c, &n, on_fresh, v);
}

void minimise(struct fuzz *z, struct diff_case *c, bool on_fresh, struct verdict *v)
{
    for (unsigned count = 16; c->insns > 1 && count >= 1; count /= 2) drop_instructions(z, c, count, on_fresh, v);
    while (c->insns > 1 && drop_instructions(z, c, 1, on_fresh, v))
        ;
    plain_state(z, c, on_fresh, v);
}
