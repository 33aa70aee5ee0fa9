/* GPA -> HVA for the soft engine's hot paths: the checks of guest_memory_ptr(), inlined, because code that runs with the
 * guest's vector registers live must not call out of this folder (soft.h), and because page walks need it four times each.
 * PCs have RAM below the hole and above 4 GiB, so the first two slots are nearly every answer. */
#ifndef NACELLE_SOFT_RAM_H
#define NACELLE_SOFT_RAM_H

#include "vmm/engine/soft/soft.h"

static inline uint8_t *soft_slot_ptr(const struct memory_slot *s, uint64_t a, uint64_t len, bool write)
{
    uint64_t off = a - s->base.v; /* wraps to a huge number below the slot */
    if (off >= s->size || len > s->size - off || (write && s->readonly)) return NULL;
    return s->host + off;
}

/* `len` bytes at `a`, or NULL when any of them is not RAM of one slot (or, for writes, of a writable one). */
static inline uint8_t *soft_ram(const struct guest_memory *m, uint64_t a, uint64_t len, bool write)
{
    for (unsigned i = 0; i < m->slots; i++) {
        uint8_t *p = soft_slot_ptr(&m->slot[i], a, len, write);
        if (__builtin_expect(p != NULL, 1)) return p;
    }
    return NULL;
}

#endif
