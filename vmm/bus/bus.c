#include "vmm/bus/bus.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <string.h>

static const char *space_name(enum bus_space space)
{
    return space == BUS_PIO ? "port" : "memory";
}

int bus_add(struct bus *b, enum bus_space space, uint64_t base, uint64_t size, const struct bus_handler *h, void *dev,
            const char *name, struct nerr *e)
{
    struct bus_region *r = b->region[space];
    unsigned n = b->regions[space];
    if (size == 0 || base + (size - 1) < base || (space == BUS_PIO && base + (size - 1) > 0xffff))
        return nerr_set(e, -EINVAL, "%s: %s range 0x%" PRIx64 "+0x%" PRIx64 " is not possible", name, space_name(space),
                        base, size);
    if (n == BUS_MAX_REGIONS)
        return nerr_set(e, -ENOSPC, "%s: more than %d %s ranges", name, BUS_MAX_REGIONS, space_name(space));
    unsigned at = 0;
    while (at < n && r[at].base < base) at++;
    const struct bus_region *clash = NULL;
    if (at > 0 && base - r[at - 1].base < r[at - 1].size) clash = &r[at - 1];
    if (at < n && r[at].base - base < size) clash = &r[at];
    if (clash)
        return nerr_set(e, -EEXIST, "%s: %s range 0x%" PRIx64 "+0x%" PRIx64 " overlaps %s at 0x%" PRIx64, name,
                        space_name(space), base, size, clash->name, clash->base);
    memmove(&r[at + 1], &r[at], (n - at) * sizeof *r);
    r[at] = (struct bus_region){.base = base, .size = size, .handler = h, .dev = dev, .name = name};
    b->regions[space] = n + 1;
    return 0;
}

unsigned bus_region_at(const struct bus *b, enum bus_space space, uint64_t addr)
{
    const struct bus_region *r = b->region[space];
    unsigned lo = 0, hi = b->regions[space];
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        if (r[mid].base <= addr)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo && addr - r[lo - 1].base < r[lo - 1].size ? lo - 1 : BUS_MAX_REGIONS;
}

/* The region that holds all of [addr, addr + size), or NULL. An access that straddles a region's end is nobody's. */
static const struct bus_region *find(const struct bus *b, enum bus_space space, uint64_t addr, unsigned size)
{
    unsigned n = bus_region_at(b, space, addr);
    if (n == BUS_MAX_REGIONS) return NULL;
    const struct bus_region *r = &b->region[space][n];
    return r->size - (addr - r->base) >= size ? r : NULL;
}

static uint64_t ones(unsigned size)
{
    return size >= 8 ? ~0ull : (1ull << (size * 8)) - 1;
}

/* A PC's I/O bus splits a wide access to narrow ports into bytes: neighbours of different devices each see theirs. */
static uint64_t read_split(const struct bus *b, uint64_t addr, unsigned size)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < size; i++) {
        const struct bus_region *r = find(b, BUS_PIO, addr + i, 1);
        uint64_t byte = r && r->handler->read ? r->handler->read(r->dev, addr + i - r->base, 1) & 0xff : 0xff;
        v |= byte << (i * 8);
    }
    return v;
}

uint64_t bus_read(const struct bus *b, enum bus_space space, uint64_t addr, unsigned size)
{
    const struct bus_region *r = find(b, space, addr, size);
    if (r && r->handler->read) return r->handler->read(r->dev, addr - r->base, size) & ones(size);
    if (!r && space == BUS_PIO && size > 1) return read_split(b, addr, size);
    return ones(size);
}

void bus_write(const struct bus *b, enum bus_space space, uint64_t addr, unsigned size, uint64_t value)
{
    const struct bus_region *r = find(b, space, addr, size);
    if (r) {
        if (r->handler->write) r->handler->write(r->dev, addr - r->base, size, value & ones(size));
        return;
    }
    if (space != BUS_PIO || size == 1) return;
    for (unsigned i = 0; i < size; i++) {
        r = find(b, BUS_PIO, addr + i, 1);
        if (r && r->handler->write) r->handler->write(r->dev, addr + i - r->base, 1, value >> (i * 8) & 0xff);
    }
}

int bus_ioeventfd_add(struct bus *b, const struct bus_ioeventfd *io)
{
    return b->eventfd.add ? b->eventfd.add(b->eventfd.ctx, io) : -ENOTSUP;
}

void bus_ioeventfd_remove(struct bus *b, const struct bus_ioeventfd *io)
{
    if (b->eventfd.remove) b->eventfd.remove(b->eventfd.ctx, io);
}
