/* PCI hot plug without a machine: the event and the slots' registers, a function's way onto the bus and off it again, and functions that come and go
 * under accesses. */
#define _GNU_SOURCE
#include "device_fixture.h"
#include "pci_rig.h"

#define GPE PLATFORM_GPE_BASE
#define SLOTS PLATFORM_SLOTS_BASE
#define EVENT (1u << PLATFORM_GPE_SLOTS)
#define SCI PLATFORM_SCI_GSI

/* ---- registers ---- */

struct board {
    struct bench *b;
    struct pm *pm;
    struct slots *slots;
    uint32_t ejected;
    unsigned ejections;
};

static void nothing(void *ctx)
{
    (void)ctx;
}

static void on_eject(void *ctx, uint32_t slots)
{
    struct board *t = ctx;
    t->ejected = slots;
    t->ejections++;
    slots_empty(t->slots, 4); /* no lock is held */
}

static struct board *board_new(void)
{
    struct nerr e;
    struct board *t = calloc(1, sizeof *t);
    assert_non_null(t);
    t->b = bench_new();
    struct pm_config c = {
        .loop = t->b->loop, .sci = bench_irq(t->b, SCI), .power_off = nothing, .reset = nothing, .ctx = t};
    assert_int_equal(pm_create(&c, &t->pm, &e), 0);
    assert_int_equal(pm_attach(t->pm, &t->b->bus, &e), 0);
    struct slots_config s = {.pm = t->pm, .eject = on_eject, .ctx = t};
    assert_int_equal(slots_create(&s, &t->slots, &e), 0);
    assert_int_equal(slots_attach(t->slots, &t->b->bus, &e), 0);
    return t;
}

static void board_free(struct board *t)
{
    bench_stop(t->b);
    slots_destroy(t->slots);
    pm_destroy(t->pm);
    bench_free(t->b);
    free(t);
}

static uint32_t inp(struct board *t, uint16_t port, unsigned size)
{
    return (uint32_t)bus_read(&t->b->bus, BUS_PIO, port, size);
}
static void outp(struct board *t, uint16_t port, unsigned size, uint32_t v)
{
    bus_write(&t->b->bus, BUS_PIO, port, size, v);
}

static void test_event(void **state)
{
    (void)state;
    struct board *t = board_new();
    assert_int_equal(inp(t, GPE, 4), 0);
    outp(t, GPE + 2, 2, 0xffff);
    assert_int_equal(inp(t, GPE, 4), 0xffff0000);
    outp(t, GPE + 3, 1, 0);
    assert_int_equal(inp(t, GPE + 2, 2), 0x00ff);
    outp(t, GPE + 2, 1, 0);
    /* Not enabled: status without an interrupt, which comes with the enabling. */
    pm_gpe_set(t->pm, 1, true);
    assert_int_equal(inp(t, GPE, 2), EVENT);
    assert_false(t->b->level[SCI]);
    outp(t, GPE + 2, 1, EVENT);
    assert_true(t->b->level[SCI]);
    /* While the source holds it, clearing does not last; zeros clear nothing. */
    outp(t, GPE, 1, EVENT);
    assert_int_equal(inp(t, GPE, 2), EVENT);
    assert_true(t->b->level[SCI]);
    pm_gpe_set(t->pm, 1, false);
    assert_int_equal(inp(t, GPE, 2), EVENT); /* what happened stays until it is cleared */
    assert_true(t->b->level[SCI]);
    outp(t, GPE, 1, (uint8_t)~EVENT);
    assert_true(t->b->level[SCI]);
    outp(t, GPE, 1, EVENT);
    assert_int_equal(inp(t, GPE, 2), 0);
    assert_false(t->b->level[SCI]);
    /* It shares the interrupt with the power button. */
    outp(t, PLATFORM_PM_BASE + 2, 2, 0x100);
    pm_power_button(t->pm);
    pm_gpe_set(t->pm, 1, true);
    pm_gpe_set(t->pm, 1, false);
    outp(t, GPE, 1, EVENT);
    assert_true(t->b->level[SCI]);
    outp(t, PLATFORM_PM_BASE, 2, 0x100);
    assert_false(t->b->level[SCI]);
    /* The last event, and the whole block at once. */
    pm_gpe_set(t->pm, 15, true);
    pm_gpe_set(t->pm, 15, false);
    assert_int_equal(inp(t, GPE + 1, 1), 0x80);
    outp(t, GPE, 4, 0xffffffff);
    assert_int_equal(inp(t, GPE, 4), 0xffff0000);
    pm_gpe_set(t->pm, 3, true);
    pm_reset(t->pm);
    assert_int_equal(inp(t, GPE, 4), 8); /* held still, but not enabled */
    assert_false(t->b->level[SCI]);
    board_free(t);
}

static void test_registers(void **state)
{
    (void)state;
    struct board *t = board_new();
    outp(t, GPE + 2, 2, EVENT);
    slots_added(t->slots, 3);
    slots_added(t->slots, 31);
    assert_true(t->b->level[SCI]);
    assert_int_equal(inp(t, SLOTS, 4), 0x80000008);
    assert_int_equal(inp(t, SLOTS + 3, 1), 0x80);
    slots_ask(t->slots, 4);
    slots_ask(t->slots, 3); /* what is asked back need not be announced */
    assert_int_equal(inp(t, SLOTS, 4), 0x80000000);
    assert_int_equal(inp(t, SLOTS + 4, 4), 0x18);
    assert_int_equal(inp(t, SLOTS + 8, 4), 0);
    /* The way of the ACPI method: reads, clears what it read, and only then the status. */
    outp(t, SLOTS, 4, 0x80000000);
    outp(t, SLOTS + 4, 1, 0x10);
    outp(t, GPE, 1, EVENT);
    assert_int_equal(inp(t, SLOTS + 4, 4), 8);
    assert_true(t->b->level[SCI]); /* one was left */
    slots_added(t->slots, 7);
    outp(t, SLOTS + 4, 4, 8);
    outp(t, GPE, 1, EVENT);
    assert_true(t->b->level[SCI]); /* and one came between */
    outp(t, SLOTS, 2, 0x80);
    outp(t, GPE, 1, EVENT);
    assert_false(t->b->level[SCI]);
    /* Ejection, in any width; what was to be told of the slot is void. */
    slots_ask(t->slots, 4);
    outp(t, SLOTS + 8, 4, 0x10);
    assert_int_equal(t->ejected, 0x10);
    assert_int_equal(inp(t, SLOTS + 4, 4), 0);
    outp(t, SLOTS + 11, 1, 0x80);
    assert_int_equal(t->ejected, 0x80000000);
    outp(t, SLOTS + 6, 4, 0xffffffff); /* across two registers */
    assert_int_equal(t->ejected, 0xffff);
    outp(t, SLOTS + 8, 4, 0);
    outp(t, SLOTS + 10, 4, 0xffffffff); /* past the end: as two accesses of bytes */
    assert_int_equal(t->ejections, 5);
    slots_added(t->slots, 32);
    slots_ask(t->slots, 1000);
    assert_int_equal(inp(t, SLOTS, 4) | inp(t, SLOTS + 4, 4), 0);
    slots_added(t->slots, 2);
    slots_ask(t->slots, 5);
    slots_reset(t->slots);
    assert_int_equal(inp(t, SLOTS, 4) | inp(t, SLOTS + 4, 4), 0);
    board_free(t);
}

/* ---- the bus ---- */

struct toy {
    struct pci_function *f;
    atomic_uint accesses, resets, moves;
    atomic_bool dead;
};

static uint64_t toy_read(void *dev, unsigned bar, uint64_t off, unsigned size)
{
    struct toy *t = dev;
    (void)bar;
    (void)off;
    (void)size;
    assert_false(t->dead);
    t->accesses++;
    pci_msix_notify(t->f, 0);
    return 0x42;
}
static void toy_write(void *dev, unsigned bar, uint64_t off, unsigned size, uint64_t value)
{
    (void)value;
    toy_read(dev, bar, off, size);
}
static void toy_moved(void *dev, unsigned bar, uint64_t addr)
{
    (void)bar;
    (void)addr;
    ((struct toy *)dev)->moves++;
}
static void toy_reset(void *dev)
{
    struct toy *t = dev;
    t->resets++;
    pci_intx_set(t->f, false);
}

static struct toy *toy_new(struct pci_rig *r, const char *name)
{
    static const struct pci_ops ops = {
        .bar_read = toy_read, .bar_write = toy_write, .bar_moved = toy_moved, .reset = toy_reset};
    struct nerr e;
    struct toy *t = calloc(1, sizeof *t);
    assert_non_null(t);
    struct pci_desc d = {
        .name = name,
        .vendor = 0x1234,
        .device = 0x5678,
        .intx = true,
        .msix_vectors = 2,
        .msix_bar = 4,
        .bar = {{PCI_BAR_MEM32, false, 0x1000}, {PCI_BAR_IO, false, 64}, {PCI_BAR_MEM64, true, 0x4000}},
        .ops = &ops,
        .dev = t};
    if (pci_add(r->pci, -1, &d, &t->f, &e)) {
        free(t);
        return NULL;
    }
    return t;
}

static void toy_free(struct toy *t)
{
    pci_remove(t->f);
    pci_quiesce(t->f);
    t->dead = true;
    pci_free(t->f);
    free(t);
}

static void test_life(void **state)
{
    (void)state;
    struct pci_rig *r = pci_rig_new();
    struct toy *stays = toy_new(r, "stays"), *t = toy_new(r, "goes");
    assert_int_equal(pci_changing_slots(r->pci), 0xfffffff8);
    uint32_t home = cfg_read(r, 2, CFG_BAR(0), 4);
    pci_set_removable(t->f);
    pci_hot_added(t->f);
    assert_int_equal(pci_changing_slots(r->pci), 0xfffffffc);
    assert_ptr_equal(pci_find(r->pci, "goes"), t->f);
    assert_null(pci_find(r->pci, "PCI host bridge"));
    /* The system finds BARs without addresses and of the right kind and size, and places them. */
    assert_int_equal(cfg_read(r, 2, CFG_BAR(0), 4), 0);
    assert_int_equal(cfg_read(r, 2, CFG_BAR(1), 4), 1);
    assert_int_equal(cfg_read(r, 2, CFG_BAR(2), 4), 0xc);
    cfg_write(r, 2, CFG_BAR(0), 4, 0xffffffff);
    assert_int_equal(cfg_read(r, 2, CFG_BAR(0), 4), 0xfffff000);
    uint32_t at = (uint32_t)r->layout.mem_base + 0x1000000;
    cfg_write(r, 2, CFG_BAR(0), 4, at);
    cfg_write(r, 2, CFG_COMMAND, 2, CMD_MEMORY | CMD_MASTER);
    assert_int_equal(mem_read(r, at, 4), 0x42);
    pci_intx_set(t->f, true);
    assert_true(r->line[pci_gsi(2)]);
    /* Only what may go goes, and only once. */
    assert_false(pci_unplug(r->pci, 0));
    assert_false(pci_unplug(r->pci, 1));
    assert_false(pci_unplug(r->pci, 3));
    assert_false(pci_unplug(r->pci, 32));
    assert_true(pci_unplug(r->pci, 2));
    assert_false(pci_unplug(r->pci, 2));
    /* Gone for the guest, with the device still there. */
    assert_int_equal(cfg_read(r, 2, 0, 4), 0xffffffff);
    assert_int_equal(mem_read(r, at, 4), 0xffffffff);
    assert_false(r->line[pci_gsi(2)]);
    pci_intx_set(t->f, true);
    pci_msix_notify(t->f, 0);
    assert_false(r->line[pci_gsi(2)]);
    assert_int_equal(r->msis, 0);
    assert_false(pci_bus_master(t->f));
    cfg_write(r, 2, CFG_COMMAND, 2, CMD_MEMORY | CMD_MASTER);
    assert_int_equal(mem_read(r, at, 4), 0xffffffff);
    struct pci_function *list[4];
    assert_int_equal(pci_functions(r->pci, list, 4), 1);
    /* A reset of the bus does not bring it back; its slot is taken until it is removed. */
    pci_bus_reset(r->pci);
    assert_int_equal(cfg_read(r, 2, 0, 4), 0xffffffff);
    assert_int_equal(pci_changing_slots(r->pci), 0xfffffffc);
    struct toy *u = toy_new(r, "third");
    assert_int_equal(pci_slot(u->f), 3);
    unsigned resets = t->resets;
    pci_remove(t->f);
    pci_quiesce(t->f);
    assert_int_equal(t->resets, resets + 1);
    pci_free(t->f);
    free(t);
    /* Slot and places are free again. */
    t = toy_new(r, "again");
    assert_int_equal(pci_slot(t->f), 2);
    assert_int_equal(cfg_read(r, 2, CFG_BAR(0), 4), home);
    pci_hot_added(t->f);
    assert_int_equal(cfg_read(r, 2, CFG_BAR(0), 4), 0);
    pci_bus_reset(r->pci); /* as firmware would */
    assert_int_equal(cfg_read(r, 2, CFG_BAR(0), 4), home);
    pci_bus_destroy(r->pci);
    guest_memory_destroy(&r->memory);
    free(r);
    free(stays);
    free(t);
    free(u);
}

/* Places are used again however often functions come and go, and no two overlap. */
static void test_places(void **state)
{
    (void)state;
    struct pci_rig *r = pci_rig_new();
    struct toy *toy[31] = {0};
    unsigned seed = 1;
    for (unsigned i = 0; i < 3000; i++) {
        unsigned k = (seed = seed * 1103515245 + 12345) >> 16 & 31;
        if (k == 31) continue;
        if (toy[k]) {
            pci_set_removable(toy[k]->f);
            assert_true(pci_unplug(r->pci, pci_slot(toy[k]->f)));
            toy_free(toy[k]);
            toy[k] = NULL;
        } else {
            toy[k] = toy_new(r, "toy");
            assert_non_null(toy[k]);
        }
        for (unsigned a = 0; a < 31; a++)
            for (unsigned b = 0; b < a; b++)
                if (toy[a] && toy[b])
                    for (unsigned bar = 0; bar < 3; bar++)
                        assert_int_not_equal(cfg_read(r, pci_slot(toy[a]->f), CFG_BAR(bar), 4),
                                             cfg_read(r, pci_slot(toy[b]->f), CFG_BAR(bar), 4));
    }
    for (unsigned k = 0; k < 31; k++)
        if (!toy[k]) assert_non_null(toy[k] = toy_new(r, "toy"));
    assert_null(toy_new(r, "no slot"));
    for (unsigned k = 0; k < 31; k++) toy_free(toy[k]);
    pci_rig_free(r);
}

/* Two "vCPUs" that access slots 1 to 4 at random, and eject; the main thread adds and removes, with them parked. */
struct race {
    struct pci_rig *r;
    pthread_rwlock_t running; /* held for reading by a vCPU that is not parked */
    atomic_bool stop;
    atomic_uint hits, ejections;
    atomic_uint seed;
};

static void *race_vcpu(void *arg)
{
    struct race *x = arg;
    unsigned s = atomic_fetch_add(&x->seed, 7919);
    while (!x->stop) {
        pthread_rwlock_rdlock(&x->running);
        for (unsigned i = 0; i < 16; i++) {
            s = s * 1103515245 + 12345;
            unsigned slot = 1 + (s >> 16 & 3);
            uint32_t at = (uint32_t)x->r->layout.mem_base + (slot << 20);
            switch (s >> 20 & 7) {
            case 0: cfg_write(x->r, slot, CFG_BAR(0), 4, at); break;
            case 1: cfg_write(x->r, slot, CFG_COMMAND, 2, CMD_MEMORY | CMD_MASTER); break;
            case 2: cfg_read(x->r, slot, 0, 4); break;
            case 3:
                if (s >> 24 & 1 && pci_unplug(x->r->pci, slot)) x->ejections++;
                break;
            case 4: mem_write(x->r, at, 4, s); break;
            default:
                if (mem_read(x->r, at, 4) == 0x42) x->hits++;
            }
        }
        pthread_rwlock_unlock(&x->running);
        sched_yield();
    }
    return NULL;
}

static void test_race(void **state)
{
    (void)state;
    struct race x = {.r = pci_rig_new()};
    struct toy *toy[5] = {0};
    pthread_t thread[2];
    pthread_rwlockattr_t a;
    pthread_rwlockattr_init(&a);
    pthread_rwlockattr_setkind_np(&a, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&x.running, &a);
    for (unsigned i = 0; i < 2; i++) assert_int_equal(pthread_create(&thread[i], NULL, race_vcpu, &x), 0);
    /* Until enough has happened, however long the others wait for a CPU. */
    uint64_t end = clock_mono_ns() + 60ull * 1000000000;
    for (unsigned i = 0; i < 2000 || ((x.hits < 1000 || x.ejections < 100) && clock_mono_ns() < end); i++) {
        sched_yield();
        unsigned k = 1 + i % 4;
        struct toy *gone = NULL;
        pthread_rwlock_wrlock(&x.running);
        if (!toy[k]) {
            toy[k] = toy_new(x.r, "toy");
            assert_non_null(toy[k]);
            pci_set_removable(toy[k]->f);
            pci_hot_added(toy[k]->f);
        } else if (pci_unplugged(toy[k]->f)) {
            gone = toy[k];
            toy[k] = NULL;
            pci_remove(gone->f);
        }
        pthread_rwlock_unlock(&x.running);
        if (!gone) continue;
        pci_quiesce(gone->f);
        gone->dead = true;
        pci_free(gone->f);
        free(gone);
    }
    x.stop = true;
    for (unsigned i = 0; i < 2; i++) pthread_join(thread[i], NULL);
    assert_true(x.hits > 0 && x.ejections > 0);
    for (unsigned k = 1; k < 5; k++)
        if (toy[k]) toy_free(toy[k]);
    pthread_rwlock_destroy(&x.running);
    pthread_rwlockattr_destroy(&a);
    pci_rig_free(x.r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_event), cmocka_unit_test(test_registers),
                                       cmocka_unit_test(test_life), cmocka_unit_test(test_places),
                                       cmocka_unit_test(test_race)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
