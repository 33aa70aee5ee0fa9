/* The one place that names the CPU engines. */
#include <errno.h>
#include <string.h>

#include "cli/cli.h"

/* Fastest first; the last one runs everywhere. */
static const struct engine_ops *const engines[] = {&engine_kvm, &engine_soft};
#define ENGINES (sizeof(engines) / sizeof(engines[0]))

static int pick_auto(const struct engine_ops **ops, struct nerr *why)
{
    struct nerr e;
    for (unsigned i = 0; i < ENGINES; i++) {
        *ops = engines[i];
        if (i + 1 == ENGINES || !engines[i]->probe || engines[i]->probe(true, &e) == 0) break;
        nerr_set(why, 0, "engine %s, since %s", engines[i + 1]->name, e.text);
    }
    return 0;
}

/* Whoever names an engine gets it, slow or not, but not one that cannot work. */
static int pick_named(const struct engine_ops *ops, struct nerr *e)
{
    struct nerr missing;
    int r = ops->probe ? ops->probe(false, &missing) : 0;
    return r ? nerr_set(e, r, "--engine %s: %s; or use --engine soft", ops->name, missing.text) : 0;
}

int cli_pick_engine(const char *name, const struct engine_ops **ops, struct nerr *why, struct nerr *e)
{
    why->text[0] = 0;
    if (strcmp(name, "auto") == 0) return pick_auto(ops, why);
    for (unsigned i = 0; i < ENGINES; i++) {
        if (strcmp(name, engines[i]->name) != 0) continue;
        *ops = engines[i];
        return pick_named(*ops, e);
    }
    return nerr_set(e, -EINVAL, "--engine: '%s' is unknown; give auto, kvm or soft", name);
}
