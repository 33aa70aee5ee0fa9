#include "vmm/backend/block_internal.h"
#include <errno.h>
int block_daemon_open(struct block *b, const struct block_config *cfg, const char *format, struct nerr *e)
{
    (void)format;
    (void)b;
    return nerr_set(e, -ENOTSUP, "disk %s: format not supported yet", cfg->path);
}
