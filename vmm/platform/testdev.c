/* What conformance kernels (kvm-unit-tests) expect of the test board that they know:
 *   ports 0xe0-0xe3       a register that reads back what was written
 *   ports 0xe4-0xe7       flush a page of shadow state: nothing to flush here
 *   ports 0xe8-0xeb       the same register again
 *   ports 0x2000-0x2017   a write sets the level of that interrupt line
 *   MMIO 0xff000000       64 KiB of memory behind an MMIO handler */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/platform/platform.h"

#define MEM_BASE 0xff000000u
#define MEM_SIZE 0x10000u
#define LINES 24

struct testdev {
    struct irq_line irq;
    pthread_mutex_t lock; /* guards all below */
    uint8_t echo[4];
    uint8_t mem[MEM_SIZE];
};

static uint64_t bytes_get(struct testdev *t, const uint8_t *from, unsigned size)
{
    uint64_t v = 0;
    pthread_mutex_lock(&t->lock);
    memcpy(&v, from, size);
    pthread_mutex_unlock(&t->lock);
    return v;
}

static void bytes_put(struct testdev *t, uint8_t *to, unsigned size, uint64_t value)
{
    pthread_mutex_lock(&t->lock);
    memcpy(to, &value, size);
    pthread_mutex_unlock(&t->lock);
}

static uint64_t echo_read(void *dev, uint64_t off, unsigned size)
{
    struct testdev *t = dev;
    return bytes_get(t, t->echo + off, size);
}

static void echo_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct testdev *t = dev;
    bytes_put(t, t->echo + off, size, value);
}

static uint64_t mem_read(void *dev, uint64_t off, unsigned size)
{
    struct testdev *t = dev;
    return bytes_get(t, t->mem + off, size);
}

static void mem_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct testdev *t = dev;
    bytes_put(t, t->mem + off, size, value);
}

/* Line 0 is ISA IRQ 0, which the board wires to pin 2. */
static void line_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct testdev *t = dev;
    (void)size;
    pthread_mutex_lock(&t->lock);
    t->irq.set(t->irq.ctx, off ? (unsigned)off : PLATFORM_PIT_GSI, value != 0);
    pthread_mutex_unlock(&t->lock);
}

static const struct bus_handler echo_handler = {echo_read, echo_write};
static const struct bus_handler mem_handler = {mem_read, mem_write};
static const struct bus_handler line_handler = {NULL, line_write};
static const struct bus_handler flush_handler = {NULL, NULL};

int testdev_attach(struct testdev *t, struct bus *b, struct nerr *e)
{
    int r = bus_add(b, BUS_PIO, 0xe0, 4, &echo_handler, t, "testdev-echo", e);
    if (!r) r = bus_add(b, BUS_PIO, 0xe4, 4, &flush_handler, t, "testdev-flush", e);
    if (!r) r = bus_add(b, BUS_PIO, 0xe8, 4, &echo_handler, t, "testdev-echo2", e);
    if (!r) r = bus_add(b, BUS_PIO, 0x2000, LINES, &line_handler, t, "testdev-irq", e);
    if (!r) r = bus_add(b, BUS_MMIO, MEM_BASE, MEM_SIZE, &mem_handler, t, "testdev-mem", e);
    return r;
}

void testdev_reset(struct testdev *t)
{
    pthread_mutex_lock(&t->lock);
    memset(t->echo, 0, sizeof t->echo);
    memset(t->mem, 0, sizeof t->mem);
    pthread_mutex_unlock(&t->lock);
}

int testdev_create(struct irq_line irq, struct testdev **out, struct nerr *e)
{
    struct testdev *t = calloc(1, sizeof *t);
    if (!t) return nerr_set(e, -ENOMEM, "out of memory for the test device");
    t->irq = irq;
    pthread_mutex_init(&t->lock, NULL);
    *out = t;
    return 0;
}

void testdev_destroy(struct testdev *t)
{
    if (!t) return;
    pthread_mutex_destroy(&t->lock);
    free(t);
}
