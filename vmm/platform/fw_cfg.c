/* A read-only subset of the "fw_cfg" interface (QEMU documentation, specs/fw_cfg): conformance kernels ask it for the number
 * of CPUs and the memory size. Selector at 0x510 (16 bits), data at 0x511 (one byte at a time). */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/platform/platform.h"

enum { ITEM_SIGNATURE = 0, ITEM_ID = 1, ITEM_RAM_SIZE = 3, ITEM_NOGRAPHIC = 4, ITEM_NB_CPUS = 5, ITEM_MAX_CPUS = 15 };

struct fw_cfg {
    unsigned vcpus;
    uint64_t ram_size;
    pthread_mutex_t lock; /* guards all below */
    uint8_t item[8];
    uint32_t len, next;
};

static void put(struct fw_cfg *f, uint64_t v, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++) f->item[i] = (uint8_t)(v >> (8 * i));
    f->len = len;
}

/* Bit 14 asks to write, which nothing here allows; bit 15 is a name space of its own, empty here. */
static void select_item(struct fw_cfg *f, uint16_t key)
{
    f->next = f->len = 0;
    switch (key & ~0x4000) {
    case ITEM_SIGNATURE: put(f, 'Q' | 'E' << 8 | 'M' << 16 | (uint64_t)'U' << 24, 4); break;
    case ITEM_ID: put(f, 1, 4); break; /* the plain interface, no DMA */
    case ITEM_RAM_SIZE: put(f, f->ram_size, 8); break;
    case ITEM_NOGRAPHIC: put(f, 1, 2); break;
    case ITEM_NB_CPUS:
    case ITEM_MAX_CPUS: put(f, f->vcpus, 2); break;
    default: break;
    }
}

static uint64_t port_read(void *dev, uint64_t off, unsigned size)
{
    struct fw_cfg *f = dev;
    if (off != 1 || size != 1) return 0;
    pthread_mutex_lock(&f->lock);
    uint8_t v = f->next < f->len ? f->item[f->next++] : 0;
    pthread_mutex_unlock(&f->lock);
    return v;
}

static void port_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct fw_cfg *f = dev;
    if (off != 0 || size != 2) return;
    pthread_mutex_lock(&f->lock);
    select_item(f, (uint16_t)value);
    pthread_mutex_unlock(&f->lock);
}

static const struct bus_handler handler = {port_read, port_write};

void fw_cfg_reset(struct fw_cfg *f)
{
    pthread_mutex_lock(&f->lock);
    select_item(f, ITEM_SIGNATURE);
    pthread_mutex_unlock(&f->lock);
}

int fw_cfg_create(unsigned vcpus, uint64_t ram_size, struct fw_cfg **out, struct nerr *e)
{
    struct fw_cfg *f = calloc(1, sizeof *f);
    if (!f) return nerr_set(e, -ENOMEM, "out of memory for fw_cfg");
    f->vcpus = vcpus;
    f->ram_size = ram_size;
    pthread_mutex_init(&f->lock, NULL);
    fw_cfg_reset(f);
    *out = f;
    return 0;
}

void fw_cfg_destroy(struct fw_cfg *f)
{
    if (!f) return;
    pthread_mutex_destroy(&f->lock);
    free(f);
}

int fw_cfg_attach(struct fw_cfg *f, struct bus *b, struct nerr *e)
{
    return bus_add(b, BUS_PIO, 0x510, 2, &handler, f, "fw_cfg", e);
}
