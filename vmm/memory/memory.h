/* Guest physical memory: the slots that map GPA -> HVA (the second of the three address tables).
 *
 * Ownership: guest_memory_create() maps host memory for every slot; guest_memory_destroy() unmaps it.
 * Threads: slots are fixed once vCPUs run; look-ups need no lock. Contents are shared with the guest:
 * copy what you read before you check it, and never read it twice. */
#ifndef NACELLE_VMM_MEMORY_H
#define NACELLE_VMM_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/addr.h"
#include "common/error.h"

#define GUEST_MEMORY_MAX_SLOTS 8

struct memory_slot {
    gpa_t base;    /* page aligned */
    uint64_t size; /* bytes, multiple of PAGE_SIZE */
    uint8_t *host; /* page aligned host address of the first byte */
    bool readonly; /* guest writes go to the bus as MMIO */
};

struct guest_memory {
    struct memory_slot slot[GUEST_MEMORY_MAX_SLOTS]; /* sorted by base, disjoint */
    unsigned slots;
    uint64_t ram_size; /* bytes over all slots */
};

/* The PC hole: RAM above this much continues at 4 GiB. */
#define GUEST_LOW_RAM_END 0xc0000000ull
#define GUEST_HIGH_RAM_BASE 0x100000000ull

/* Maps `size` bytes of RAM (multiple of PAGE_SIZE, at least 1 MiB): [0, min(size, 3 GiB)) and the rest at 4 GiB. */
int guest_memory_create(struct guest_memory *m, uint64_t size, struct nerr *e);
void guest_memory_destroy(struct guest_memory *m);

/* The one way from GPA to HVA: a pointer to `len` bytes at `a`, or NULL when any of them is not RAM of
 * one single slot (overflow-checked; a read-only slot counts only when !write). */
void *guest_memory_ptr(const struct guest_memory *m, gpa_t a, uint64_t len, bool write);

/* Copies; false when the range is not wholly RAM (nothing copied then). */
bool guest_memory_read(const struct guest_memory *m, gpa_t a, void *dst, uint64_t len);
bool guest_memory_write(const struct guest_memory *m, gpa_t a, const void *src, uint64_t len);

#endif
