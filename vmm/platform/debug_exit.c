/* Debug exit: a write of v to the port ends the run with status (v << 1) | 1, the convention of the field's test suites. */
#include <errno.h>
#include <stdlib.h>

#include "vmm/platform/platform.h"

struct debug_exit {
    void (*fn)(void *ctx, uint32_t status);
    void *ctx;
};

static void port_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct debug_exit *d = dev;
    (void)off;
    (void)size;
    d->fn(d->ctx, (uint32_t)value << 1 | 1);
}

static uint64_t port_read(void *dev, uint64_t off, unsigned size)
{
    (void)dev;
    (void)off;
    (void)size;
    return 0;
}

static const struct bus_handler handler = {port_read, port_write};

int debug_exit_create(void (*fn)(void *ctx, uint32_t status), void *ctx, struct debug_exit **out, struct nerr *e)
{
    struct debug_exit *d = calloc(1, sizeof *d);
    if (!d) return nerr_set(e, -ENOMEM, "out of memory for the debug-exit port");
    *d = (struct debug_exit){.fn = fn, .ctx = ctx};
    *out = d;
    return 0;
}

void debug_exit_destroy(struct debug_exit *d)
{
    free(d);
}

/* Four ports wide where they are free, so that a 32-bit write arrives whole; else as wide as it can be. */
int debug_exit_attach(struct debug_exit *d, struct bus *b, uint16_t port, struct nerr *e)
{
    int r = -EINVAL;
    for (unsigned width = 4; r && width; width /= 2)
        r = port + width > 0x10000 ? -EINVAL : bus_add(b, BUS_PIO, port, width, &handler, d, "debug-exit", e);
    return r;
}
