/* Which BAR answers at an address. The guest moves BARs while other vCPUs use them, so the table is a sequence lock: readers take
 * nothing, and look again when a writer came between. Its data are atomics: acquire loads keep the second look at the sequence
 * behind them, release stores keep the first change of the sequence before them. */
#include "vmm/bus/pci_internal.h"

#define LUCK 64 /* tries without the lock */

struct target {
    uint32_t target;
    uint64_t off;
    bool found;
};

static struct target search(const struct pci_map *m, enum bus_space space, uint64_t addr, unsigned size)
{
    const struct pci_map_entry *t = m->entry[space];
    unsigned lo = 0, hi = atomic_load_explicit(&m->count[space], memory_order_acquire);
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        if (atomic_load_explicit(&t[mid].base, memory_order_acquire) <= addr)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == 0) return (struct target){.found = false};
    t += lo - 1;
    uint64_t base = atomic_load_explicit(&t->base, memory_order_acquire);
    uint64_t last = atomic_load_explicit(&t->last, memory_order_acquire);
    if (addr < base || addr > last || last - addr < size - 1) return (struct target){.found = false};
    return (struct target){atomic_load_explicit(&t->target, memory_order_acquire), addr - base, true};
}

static struct target look_up(struct pci_map *m, enum bus_space space, uint64_t addr, unsigned size)
{
    for (unsigned i = 0; i < LUCK; i++) {
        uint32_t before = atomic_load_explicit(&m->sequence, memory_order_acquire);
        if (before & 1) continue;
        struct target t = search(m, space, addr, size);
        if (atomic_load_explicit(&m->sequence, memory_order_relaxed) == before) return t;
    }
    pthread_mutex_lock(&m->lock);
    struct target t = search(m, space, addr, size);
    pthread_mutex_unlock(&m->lock);
    return t;
}

/* Sorted in; what overlaps an earlier slot's BAR decodes nothing, so that entries stay disjoint. */
static void insert(struct pci_map *m, enum bus_space space, uint64_t base, uint64_t size, uint32_t target)
{
    struct pci_map_entry *t = m->entry[space];
    unsigned n = atomic_load_explicit(&m->count[space], memory_order_relaxed), at = n;
    uint64_t last = base + (size - 1);
    while (at > 0 && atomic_load_explicit(&t[at - 1].base, memory_order_relaxed) > base) at--;
    if (at > 0 && atomic_load_explicit(&t[at - 1].last, memory_order_relaxed) >= base) return;
    if (at < n && atomic_load_explicit(&t[at].base, memory_order_relaxed) <= last) return;
    for (unsigned i = n; i > at; i--) {
        atomic_store_explicit(&t[i].base, atomic_load_explicit(&t[i - 1].base, memory_order_relaxed),
                              memory_order_release);
        atomic_store_explicit(&t[i].last, atomic_load_explicit(&t[i - 1].last, memory_order_relaxed),
                              memory_order_release);
        atomic_store_explicit(&t[i].target, atomic_load_explicit(&t[i - 1].target, memory_order_relaxed),
                              memory_order_release);
    }
    atomic_store_explicit(&t[at].base, base, memory_order_release);
    atomic_store_explicit(&t[at].last, last, memory_order_release);
    atomic_store_explicit(&t[at].target, target, memory_order_release);
    atomic_store_explicit(&m->count[space], n + 1, memory_order_release);
}

void pci_map_rebuild(struct pci_bus *b)
{
    struct pci_map *m = &b->map;
    pthread_mutex_lock(&m->lock);
    uint32_t s = atomic_load_explicit(&m->sequence, memory_order_relaxed);
    atomic_store_explicit(&m->sequence, s + 1, memory_order_relaxed);
    for (unsigned i = 0; i < 2; i++) atomic_store_explicit(&m->count[i], 0, memory_order_release);
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        const struct pci_function *f = b->function[slot];
        for (unsigned n = 0; f && n < PCI_BARS; n++)
            if (f->bar_at[n] != PCI_NOWHERE)
                insert(m, f->d.bar[n].kind == PCI_BAR_IO ? BUS_PIO : BUS_MMIO, f->bar_at[n], f->d.bar[n].size,
                       slot * 8 + n);
    }
    atomic_store_explicit(&m->sequence, s + 2, memory_order_release);
    pthread_mutex_unlock(&m->lock);
}

static uint64_t window_read(void *dev, uint64_t off, unsigned size)
{
    struct pci_window *w = dev;
    struct target t = look_up(&w->bus->map, w->space, w->base + off, size);
    if (!t.found) return ~0ull;
    struct pci_function *f = w->bus->function[t.target / 8];
    unsigned bar = t.target % 8;
    device_count(&f->stats.accesses, 1);
    if (f->msix && bar == f->d.msix_bar) return pci_msix_read(f, t.off, size);
    return f->d.ops->bar_read ? f->d.ops->bar_read(f->d.dev, bar, t.off, size) : ~0ull;
}

static void window_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
    struct pci_window *w = dev;
    struct target t = look_up(&w->bus->map, w->space, w->base + off, size);
    if (!t.found) return;
    struct pci_function *f = w->bus->function[t.target / 8];
    unsigned bar = t.target % 8;
    device_count(&f->stats.accesses, 1);
    if (f->msix && bar == f->d.msix_bar)
        pci_msix_write(f, t.off, size, value);
    else if (f->d.ops->bar_write)
        f->d.ops->bar_write(f->d.dev, bar, t.off, size, value);
}

int pci_windows_attach(struct pci_bus *b, struct nerr *e)
{
    static const struct bus_handler handler = {window_read, window_write};
    static const char *const name[WINDOWS] = {"pci-io", "pci-memory", "pci-memory64"};
    int r = 0;
    for (unsigned i = 0; i < WINDOWS && !r; i++) {
        struct pci_window *w = &b->window[i];
        r = bus_add(b->cfg.bus, w->space, w->base, w->size, &handler, w, name[i], e);
    }
    return r;
}

void pci_map_init(struct pci_map *m)
{
    pthread_mutex_init(&m->lock, NULL);
}

void pci_map_fini(struct pci_map *m)
{
    pthread_mutex_destroy(&m->lock);
}
