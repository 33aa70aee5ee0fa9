/* Port I/O and MMIO routing. One table of regions per space, fixed before vCPUs run; look-ups need no lock,
 * each device locks itself (or takes the machine's device lock in its callback).
 * Unclaimed reads give all ones, unclaimed writes are dropped, as on a PC. */
#ifndef NACELLE_VMM_BUS_H
#define NACELLE_VMM_BUS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

struct bus_handler {
    /* `off` is relative to the region; size is 1, 2, 4 (8 for MMIO). Never fails: bad accesses read as ones or zeros as the device's manual says. */
    uint64_t (*read)(void *dev, uint64_t off, unsigned size);
    void (*write)(void *dev, uint64_t off, unsigned size, uint64_t value);
};

enum bus_space { BUS_PIO, BUS_MMIO };
#define BUS_MAX_REGIONS 128

struct bus_region {
    uint64_t base, size;
    const struct bus_handler *handler;
    void *dev;
    const char *name;
};

/* A write that signals an eventfd (a doorbell). */
struct bus_ioeventfd {
    enum bus_space space;
    uint64_t addr;
    unsigned len; /* of the access in bytes: 1, 2, 4, 8 */
    bool any;     /* whatever is written, else only `value` */
    uint64_t value;
    int fd; /* the caller's, who removes it here before closing it */
};

struct bus {
    struct bus_region region[2][BUS_MAX_REGIONS]; /* sorted by base */
    unsigned regions[2];
    /* The engine's, set by the machine; NULL where writes always exit. */
    struct {
        void *ctx;
        int (*add)(void *ctx, const struct bus_ioeventfd *io);
        void (*remove)(void *ctx, const struct bus_ioeventfd *io);
    } eventfd;
};

/* Refuses overlaps and overflow with a message. */
int bus_add(struct bus *b, enum bus_space space, uint64_t base, uint64_t size, const struct bus_handler *h, void *dev,
            const char *name, struct nerr *e);
/* The number of the region that `addr` is in, BUS_MAX_REGIONS when it is in none. */
unsigned bus_region_at(const struct bus *b, enum bus_space space, uint64_t addr);
uint64_t bus_read(const struct bus *b, enum bus_space space, uint64_t addr, unsigned size);
void bus_write(const struct bus *b, enum bus_space space, uint64_t addr, unsigned size, uint64_t value);

/* Any thread. Lets such writes signal the fd without an exit, where the engine can. Negative (-ENOTSUP, -ENOSPC, ...): it can't, and the
 * writes arrive at the region's handler as before; so a device always handles them there, too. */
int bus_ioeventfd_add(struct bus *b, const struct bus_ioeventfd *io);
void bus_ioeventfd_remove(struct bus *b, const struct bus_ioeventfd *io); /* with what was added */

#endif
