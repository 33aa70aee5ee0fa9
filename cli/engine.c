/* The one place that names the CPU engines. */
#include <errno.h>
#include <string.h>

#include "cli/cli.h"

int cli_pick_engine(const char *name, const struct engine_ops **ops, struct nerr *why, struct nerr *e)
{
    why->text[0] = 0;
    *ops = &engine_soft;
    if (strcmp(name, "soft") == 0) return 0;
    if (strcmp(name, "auto") == 0) {
        nerr_set(why, 0, "engine soft, since the kvm engine is not built in yet");
        return 0;
    }
    if (strcmp(name, "kvm") == 0) return nerr_set(e, -ENOTSUP, "--engine: kvm is not built in yet; use --engine soft");
    return nerr_set(e, -EINVAL, "--engine: '%s' is unknown; give auto, kvm or soft", name);
}
