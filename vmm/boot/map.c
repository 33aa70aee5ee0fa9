/* The memory map a kernel is told (e820). */
#include <errno.h>
#include <string.h>

#include "vmm/boot/boot.h"

#define EBDA_START 0x9fc00ull /* the last KiB below 640 KiB is the BIOS' on a PC; kernels keep away from it anyway */
#define LEGACY_END 0x100000ull

void boot_memory_map_init(struct boot_memory_map *map, const struct guest_memory *memory)
{
    memset(map, 0, sizeof(*map));
    for (unsigned i = 0; i < memory->slots; i++) {
        const struct memory_slot *s = &memory->slot[i];
        map->range[map->ranges++] = (struct boot_memory_range){s->base.v, s->size, BOOT_RAM};
    }
    struct nerr ignored; /* cannot fail: a constant range, and the table has room for it */
    boot_memory_map_set(map, EBDA_START, LEGACY_END - EBDA_START, BOOT_RESERVED, &ignored);
}

/* Appends unless empty; `out` is built in order. */
static bool append(struct boot_memory_map *out, uint64_t start, uint64_t end, uint32_t type)
{
    if (start >= end) return true;
    if (out->ranges == BOOT_MAX_RANGES) return false;
    out->range[out->ranges++] = (struct boot_memory_range){start, end - start, type};
    return true;
}

int boot_memory_map_set(struct boot_memory_map *map, uint64_t addr, uint64_t size, uint32_t type, struct nerr *e)
{
    if (size == 0 || addr + size < addr)
        return nerr_set(e, -EINVAL, "memory map: impossible range 0x%llx+0x%llx", (unsigned long long)addr,
                        (unsigned long long)size);
    uint64_t end = addr + size;
    struct boot_memory_map out = {.ranges = 0};
    bool placed = false, ok = true;
    for (unsigned i = 0; i < map->ranges && ok; i++) {
        uint64_t s = map->range[i].addr, t = s + map->range[i].size;
        uint32_t old = map->range[i].type;
        ok = append(&out, s, t < addr ? t : addr, old); /* what stays before the new range */
        if (ok && !placed && t > addr) {
            ok = append(&out, addr, end, type);
            placed = true;
        }
        if (ok) ok = append(&out, s > end ? s : end, t, old); /* and behind it */
    }
    if (ok && !placed) ok = append(&out, addr, end, type);
    if (!ok) return nerr_set(e, -ENOSPC, "memory map: more than %d ranges", BOOT_MAX_RANGES);
    *map = out;
    return 0;
}
