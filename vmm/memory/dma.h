/* How devices reach guest memory. Guest memory changed by a device may hold code that an engine has translated (and, later, pages that a
 * migration has sent): every write says so afterwards.
 *
 * Threads: any. The contents are shared with a guest that changes them at will: copy what you check, never read it twice. */
#ifndef NACELLE_VMM_DMA_H
#define NACELLE_VMM_DMA_H

#include <stdbool.h>
#include <stdint.h>

#include "common/addr.h"
#include "vmm/memory/memory.h"

struct dma_space {
    const struct guest_memory *memory;
    void (*written)(void *ctx, gpa_t a, uint64_t len); /* may be NULL */
    void *ctx;
};

/* A host pointer to `len` bytes of RAM at `a`, or NULL when any of them is no RAM (or read-only and `write`). After writing through
 * it call dma_written(). Stays valid as long as the memory does. */
static inline void *dma_ptr(const struct dma_space *d, gpa_t a, uint64_t len, bool write)
{
    return guest_memory_ptr(d->memory, a, len, write);
}

static inline void dma_written(const struct dma_space *d, gpa_t a, uint64_t len)
{
    if (d->written && len) d->written(d->ctx, a, len);
}

static inline bool dma_read(const struct dma_space *d, gpa_t a, void *dst, uint64_t len)
{
    return guest_memory_read(d->memory, a, dst, len);
}

static inline bool dma_write(const struct dma_space *d, gpa_t a, const void *src, uint64_t len)
{
    if (!guest_memory_write(d->memory, a, src, len)) return false;
    dma_written(d, a, len);
    return true;
}

#endif
