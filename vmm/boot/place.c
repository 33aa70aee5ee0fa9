/* What lies where in guest memory while a kernel is loaded. Every byte a loader writes goes through a claim here, so that
 * no header of a hostile file can make two things overlap, reach the ACPI tables, or leave RAM. */
#include <errno.h>

#include "vmm/boot/boot_internal.h"

/* The usable-RAM range that holds all of [start, start+size), or NULL. */
static const struct boot_memory_range *ram_range(const struct boot_place *p, uint64_t start, uint64_t size)
{
    for (unsigned i = 0; i < p->map->ranges; i++) {
        const struct boot_memory_range *r = &p->map->range[i];
        if (r->type == BOOT_RAM && start >= r->addr && start - r->addr < r->size && size <= r->size - (start - r->addr))
            return r;
    }
    return NULL;
}

/* Index of a claim that overlaps [start, end), or -1. */
static int find_overlap(const struct boot_place *p, uint64_t start, uint64_t end)
{
    for (unsigned i = 0; i < p->n; i++)
        if (start < p->used[i].end && p->used[i].start < end) return (int)i;
    return -1;
}

static int claim(struct boot_place *p, uint64_t start, uint64_t size, const char *what, struct nerr *e)
{
    if (p->n == BOOT_MAX_PLACED)
        return nerr_set(e, -ENOSPC, "%s: too many separate pieces to load (more than %d)", what, BOOT_MAX_PLACED);
    p->used[p->n].start = start;
    p->used[p->n].end = start + size;
    p->used[p->n].what = what;
    p->n++;
    return 0;
}

int boot_place_at(struct boot_place *p, uint64_t start, uint64_t size, const char *what, struct nerr *e)
{
    if (size == 0) return 0;
    if (!ram_range(p, start, size) || !guest_memory_ptr(p->memory, GPA(start), size, true))
        return nerr_set(
            e, -ENOMEM,
            "%s: wants 0x%llx bytes at 0x%llx, which is not free guest RAM; use a larger --memory or another kernel",
            what, (unsigned long long)size, (unsigned long long)start);
    int other = find_overlap(p, start, start + size);
    if (other >= 0)
        return nerr_set(e, -EINVAL, "%s: 0x%llx bytes at 0x%llx overlap %s; the image is broken", what,
                        (unsigned long long)size, (unsigned long long)start, p->used[other].what);
    return claim(p, start, size, what, e);
}

/* Lowest free spot in [lo, hi), a part of one RAM range. */
static bool fit_low(const struct boot_place *p, uint64_t lo, uint64_t hi, uint64_t size, uint64_t align,
                    uint64_t *start)
{
    uint64_t at = lo;
    for (;;) {
        if (at > UINT64_MAX - (align - 1)) return false;
        at = (at + align - 1) & ~(align - 1);
        if (at > hi || size > hi - at) return false;
        int other = find_overlap(p, at, at + size);
        if (other < 0) break;
        at = p->used[other].end;
    }
    *start = at;
    return true;
}

static bool fit_high(const struct boot_place *p, uint64_t lo, uint64_t hi, uint64_t size, uint64_t align,
                     uint64_t *start)
{
    uint64_t top = hi;
    for (;;) {
        if (top < lo || size > top - lo) return false;
        uint64_t at = (top - size) & ~(align - 1);
        if (at < lo) return false;
        int other = find_overlap(p, at, at + size);
        if (other < 0) {
            *start = at;
            return true;
        }
        top = p->used[other].start;
    }
}

int boot_place_in(struct boot_place *p, uint64_t lo, uint64_t hi, uint64_t size, uint64_t align, bool high,
                  const char *what, uint64_t *start, struct nerr *e)
{
    if (size == 0) {
        *start = 0;
        return 0;
    }
    for (unsigned i = 0; i < p->map->ranges; i++) {
        const struct boot_memory_range *r = &p->map->range[high ? p->map->ranges - 1 - i : i];
        uint64_t l = r->addr > lo ? r->addr : lo;
        uint64_t h = r->addr + r->size < hi ? r->addr + r->size : hi;
        if (r->type != BOOT_RAM || l >= h) continue;
        if ((high ? fit_high : fit_low)(p, l, h, size, align, start) &&
            guest_memory_ptr(p->memory, GPA(*start), size, true))
            return claim(p, *start, size, what, e);
    }
    return nerr_set(e, -ENOMEM,
                    "%s: no room for %llu KiB between 0x%llx and 0x%llx of guest memory; use a larger --memory", what,
                    (unsigned long long)(size + 1023) / 1024, (unsigned long long)lo, (unsigned long long)hi);
}

void *boot_place_ptr(const struct boot_place *p, uint64_t start, uint64_t size)
{
    return guest_memory_ptr(p->memory, GPA(start), size, true);
}
