/* The registers behind ACPI's PCI hot plug (acpi_slots.c has the methods that use them), a bit per slot, 32 bits each:
 *
 *   +0  slots with a device that is new;                 write 1 to clear
 *   +4  slots whose device the user wants ejected;       write 1 to clear
 *   +8  write: ejects the devices of these slots;        reads as 0
 *
 * While one of the first two is not 0 the general-purpose event is held. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "vmm/platform/platform.h"

enum { ADDED, ASKED, EJECT, REGISTERS };

struct slots {
    struct slots_config cfg;
    pthread_mutex_t lock; /* taken before the power management's */
    uint32_t told[2];     /* ADDED, ASKED */
};

/* With the lock. */
static void update(struct slots *s)
{
    pm_gpe_set(s->cfg.pm, PLATFORM_GPE_SLOTS, s->told[ADDED] | s->told[ASKED]);
}

static uint64_t slots_read(void *dev, uint64_t off, unsigned size)
{
    struct slots *s = dev;
    uint64_t v = 0;
    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < size; i++) {
        uint64_t at = off + i;
        if (at / 4 < EJECT) v |= (uint64_t)(uint8_t)(s->told[at / 4] >> 8 * (at % 4)) << 8 * i;
    }
    pthread_mutex_unlock(&s->lock);
    return v;
}

static void slots_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct slots *s = dev;
    uint32_t bits[REGISTERS] = {0};
    for (unsigned i = 0; i < size; i++) {
        uint64_t at = off + i;
        if (at / 4 < REGISTERS) bits[at / 4] |= (uint32_t)(value >> 8 * i & 0xff) << 8 * (at % 4);
    }
    pthread_mutex_lock(&s->lock);
    s->told[ADDED] &= ~bits[ADDED];
    s->told[ASKED] &= ~bits[ASKED];
    update(s);
    pthread_mutex_unlock(&s->lock);
    if (bits[EJECT] && s->cfg.eject) s->cfg.eject(s->cfg.ctx, bits[EJECT]);
}

static void change(struct slots *s, unsigned slot, bool added, bool asked)
{
    uint32_t bit = slot < PCI_SLOTS ? 1u << slot : 0;
    pthread_mutex_lock(&s->lock);
    s->told[ADDED] = added ? s->told[ADDED] | bit : s->told[ADDED] & ~bit;
    s->told[ASKED] = asked ? s->told[ASKED] | bit : s->told[ASKED] & ~bit;
    update(s);
    pthread_mutex_unlock(&s->lock);
}

void slots_added(struct slots *s, unsigned slot)
{
    change(s, slot, true, false);
}

/* A system that has not heard of it yet need not: it finds it, or not, by itself. */
void slots_ask(struct slots *s, unsigned slot)
{
    change(s, slot, false, true);
}

void slots_empty(struct slots *s, unsigned slot)
{
    change(s, slot, false, false);
}

void slots_reset(struct slots *s)
{
    pthread_mutex_lock(&s->lock);
    s->told[ADDED] = s->told[ASKED] = 0;
    update(s);
    pthread_mutex_unlock(&s->lock);
}

int slots_attach(struct slots *s, struct bus *b, struct nerr *e)
{
    static const struct bus_handler handler = {slots_read, slots_write};
    return bus_add(b, BUS_PIO, PLATFORM_SLOTS_BASE, PLATFORM_SLOTS_LEN, &handler, s, "pci-slots", e);
}

int slots_create(const struct slots_config *cfg, struct slots **out, struct nerr *e)
{
    struct slots *s = calloc(1, sizeof *s);
    if (!s) return nerr_set(e, -ENOMEM, "out of memory for the PCI slots' registers");
    s->cfg = *cfg;
    pthread_mutex_init(&s->lock, NULL);
    *out = s;
    return 0;
}

void slots_destroy(struct slots *s)
{
    if (!s) return;
    pthread_mutex_destroy(&s->lock);
    free(s);
}
