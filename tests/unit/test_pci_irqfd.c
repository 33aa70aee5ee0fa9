/* Messages by eventfd where the engine keeps the interrupt controllers: who sends, what masks hold back, when routes change. */
#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "pci_rig.h"
#include "vmm/bus/pci_internal.h"
#include "vmm/irq/irq.h"

#define VECTORS 3
#define ROUTES 8
#define ADDRESS 0xfee00000u
#define ENOUGH 8 /* messages in a row that a route takes */

/* An engine with interrupt controllers: remembers what it was told. */
static struct {
    struct {
        int fd; /* 0: none */
        uint64_t addr;
        uint32_t data;
    } route[ROUTES];
    unsigned adds, removes, msis;
    uint32_t msi_data;
    int refuse;
} engine;

static void engine_msi(struct engine *g, uint64_t addr, uint32_t data)
{
    (void)g;
    (void)addr;
    engine.msis++;
    engine.msi_data = data;
}

static void engine_line(struct engine *g, unsigned gsi, bool level)
{
    (void)g;
    (void)gsi;
    (void)level;
}

static int engine_add(struct engine *g, int fd, uint64_t addr, uint32_t data, struct nerr *e)
{
    (void)g;
    unsigned i = 0, empty = ROUTES;
    engine.adds++;
    if (engine.refuse) return nerr_set(e, engine.refuse, "refused");
    for (; i < ROUTES && engine.route[i].fd != fd; i++)
        if (!engine.route[i].fd) empty = i;
    if (i == ROUTES) i = empty;
    assert_true(i < ROUTES);
    engine.route[i].fd = fd;
    engine.route[i].addr = addr;
    engine.route[i].data = data;
    return 0;
}

static void engine_remove(struct engine *g, int fd)
{
    (void)g;
    engine.removes++;
    for (unsigned i = 0; i < ROUTES; i++)
        if (engine.route[i].fd == fd) engine.route[i].fd = 0;
}

static const struct engine_irq_ops irq_ops = {
    .msi = engine_msi, .set_line = engine_line, .irqfd_add = engine_add, .irqfd_remove = engine_remove};

/* Signals that the engine was given for this message; -1: no route sends it. */
static int signalled(uint32_t data)
{
    for (unsigned i = 0; i < ROUTES; i++) {
        uint64_t n = 0;
        if (!engine.route[i].fd || engine.route[i].data != data) continue;
        assert_int_equal(engine.route[i].addr, ADDRESS);
        return read(engine.route[i].fd, &n, sizeof(n)) == (ssize_t)sizeof(n) ? (int)n : 0;
    }
    return -1;
}

static unsigned routes(void)
{
    unsigned n = 0;
    for (unsigned i = 0; i < ROUTES; i++) n += engine.route[i].fd != 0;
    return n;
}

struct fixture {
    struct pci_rig *r;
    struct irqchip *chip;
    struct pci_function *f;
    unsigned msix, msi;
    uint64_t table;
    _Atomic uint64_t bar_at;
    unsigned gone, came;
};

static uint64_t bar_read(void *dev, unsigned bar, uint64_t off, unsigned size)
{
    (void)dev;
    (void)bar;
    (void)off;
    (void)size;
    return 0;
}

static void bar_write(void *dev, unsigned bar, uint64_t off, unsigned size, uint64_t value)
{
    (void)dev;
    (void)bar;
    (void)off;
    (void)size;
    (void)value;
}

static void bar_moved(void *dev, unsigned bar, uint64_t addr)
{
    struct fixture *t = dev;
    if (bar != 0) return;
    addr == UINT64_MAX ? t->gone++ : t->came++;
    t->bar_at = addr;
}

static const struct pci_ops ops = {.bar_read = bar_read, .bar_write = bar_write, .bar_moved = bar_moved};

static void set_vector(struct fixture *t, unsigned n, uint32_t data, bool masked)
{
    mem_write(t->r, t->table + n * 16 + 12, 4, 1);
    mem_write(t->r, t->table + n * 16, 4, ADDRESS);
    mem_write(t->r, t->table + n * 16 + 4, 4, 0);
    mem_write(t->r, t->table + n * 16 + 8, 4, data);
    if (!masked) mem_write(t->r, t->table + n * 16 + 12, 4, 0);
}

static void notify(struct fixture *t, unsigned n, unsigned times)
{
    for (unsigned i = 0; i < times; i++) pci_msix_notify(t->f, n);
}

static int setup(void **state)
{
    static const struct irqchip_host host = {0};
    static const struct engine_ops engine_ops = {.name = "test", .irq = &irq_ops};
    struct nerr e;
    struct fixture *t = calloc(1, sizeof(*t));
    assert_non_null(t);
    memset(&engine, 0, sizeof(engine));
    t->r = pci_rig_new();
    assert_int_equal(irqchip_create(1, NULL, &host, &t->chip, &e), 0);
    irqchip_use_engine(t->chip, &engine_ops, NULL);
    t->r->pci->cfg.sink = NULL;
    t->r->pci->cfg.irqchip = t->chip;
    struct pci_desc d = {.name = "toy",
                         .vendor = 0x1234,
                         .device = 0x5678,
                         .class_code = 0xff0102,
                         .msi = true,
                         .msix_vectors = VECTORS,
                         .msix_bar = 4,
                         .bar = {{PCI_BAR_MEM32, false, 0x200}},
                         .ops = &ops,
                         .dev = t};
    assert_int_equal(pci_add(t->r->pci, 1, &d, &t->f, &e), 0);
    t->msix = cfg_capability(t->r, 1, 0x11);
    t->msi = cfg_capability(t->r, 1, 0x05);
    t->table = cfg_read(t->r, 1, CFG_BAR(4), 4) & ~0xfu;
    cfg_write(t->r, 1, CFG_COMMAND, 2, CMD_MEMORY | CMD_MASTER);
    cfg_write(t->r, 1, t->msix + 2, 2, 0x8000);
    set_vector(t, 0, 0x40, false);
    *state = t;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *t = *state;
    pci_rig_free(t->r);
    assert_int_equal(routes(), 0); /* whoever got an eventfd was told that it goes */
    irqchip_destroy(t->chip);
    free(t);
    return 0;
}

static void test_a_busy_vector_gets_a_route(void **state)
{
    struct fixture *t = *state;
    notify(t, 0, ENOUGH);
    assert_int_equal(engine.msis, ENOUGH);
    assert_int_equal(engine.adds, 0);
    notify(t, 0, 5);
    assert_int_equal(engine.msis, ENOUGH);
    assert_int_equal(engine.adds, 1);
    assert_int_equal(signalled(0x40), 5);
    notify(t, 0, 1000);
    assert_int_equal(signalled(0x40), 1000);
    assert_int_equal(engine.adds, 1);
    assert_int_equal(device_counted(&pci_stats(t->f)->interrupts), ENOUGH + 1005);
    assert_int_equal(device_counted(&pci_stats(t->f)->irqfd), 1005);
    /* Another vector has its own. */
    set_vector(t, 2, 0x42, false);
    notify(t, 2, ENOUGH + 3);
    assert_int_equal(signalled(0x42), 3);
    assert_int_equal(signalled(0x40), 0);
    assert_int_equal(engine.adds, 2);
}

static void test_masks_hold_back(void **state)
{
    struct fixture *t = *state;
    notify(t, 0, ENOUGH + 1);
    assert_int_equal(signalled(0x40), 1);
    mem_write(t->r, t->table + 12, 4, 1);
    notify(t, 0, 4);
    assert_int_equal(signalled(0x40), 0);
    mem_write(t->r, t->table + 12, 4, 0);
    assert_int_equal(signalled(0x40), 1); /* pending, once */
    cfg_write(t->r, 1, t->msix + 2, 2, 0xc000);
    notify(t, 0, 4);
    assert_int_equal(signalled(0x40), 0);
    cfg_write(t->r, 1, t->msix + 2, 2, 0x8000);
    assert_int_equal(signalled(0x40), 1);
    cfg_write(t->r, 1, CFG_COMMAND, 2, CMD_MEMORY);
    notify(t, 0, 4);
    assert_int_equal(signalled(0x40), 0);
    cfg_write(t->r, 1, CFG_COMMAND, 2, CMD_MEMORY | CMD_MASTER);
    assert_int_equal(signalled(0x40), 1);
    cfg_write(t->r, 1, t->msix + 2, 2, 0);
    notify(t, 0, 4);
    assert_int_equal(signalled(0x40), 0);
    cfg_write(t->r, 1, t->msix + 2, 2, 0x8000);
    assert_int_equal(signalled(0x40), 0); /* nothing is pending of what came while MSI-X was off */
    assert_int_equal(engine.adds, 1);     /* no mask costs a change of routes */
}

/* What Linux does when an interrupt moves to another CPU: mask, four registers, unmask. */
static void test_a_changed_message_is_one_change_of_routes(void **state)
{
    struct fixture *t = *state;
    notify(t, 0, ENOUGH + 1);
    assert_int_equal(signalled(0x40), 1);
    engine.msis = 0;
    mem_write(t->r, t->table + 12, 4, 1);
    notify(t, 0, 1);
    set_vector(t, 0, 0x51, false); /* what was pending goes with the new message */
    assert_int_equal(engine.adds, 1);
    assert_int_equal(engine.msis, 1);
    assert_int_equal(engine.msi_data, 0x51);
    assert_int_equal(signalled(0x40), 0);
    notify(t, 0, 2 * ENOUGH - 1);
    assert_int_equal(engine.msis, 2 * ENOUGH);
    notify(t, 0, 7);
    assert_int_equal(engine.adds, 2);
    assert_int_equal(routes(), 1); /* the same eventfd */
    assert_int_equal(signalled(0x51), 7);
    /* A driver that goes on doing so pays for it more and more seldom. */
    for (unsigned i = 0; i < 1000; i++) {
        set_vector(t, 0, 0x60 + i % 2, false);
        notify(t, 0, 4 * ENOUGH);
    }
    assert_int_equal(engine.adds, 2);
}

static void test_a_refusal_costs_nothing_but_the_eventfd(void **state)
{
    struct fixture *t = *state;
    engine.refuse = -ENOSPC;
    notify(t, 0, 100);
    assert_int_equal(engine.msis, 100);
    assert_int_equal(engine.adds, 1);
    assert_int_equal(device_counted(&pci_stats(t->f)->irqfd), 0);
    /* A message that goes to no LAPIC is lost, as ever. */
    engine.refuse = 0;
    mem_write(t->r, t->table + 16 + 12, 4, 1);
    mem_write(t->r, t->table + 16, 4, 0x1000);
    mem_write(t->r, t->table + 16 + 12, 4, 0);
    notify(t, 1, 100);
    assert_int_equal(engine.msis, 100);
    assert_int_equal(routes(), 0);
}

static void test_reset_gives_back(void **state)
{
    struct fixture *t = *state;
    notify(t, 0, ENOUGH + 1);
    int fd = engine.route[0].fd ? engine.route[0].fd : engine.route[ROUTES - 1].fd;
    assert_true(fcntl(fd, F_GETFD) >= 0);
    pci_bus_reset(t->r->pci);
    assert_int_equal(routes(), 0);
    assert_int_equal(engine.removes, 1);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    assert_int_equal(errno, EBADF);
}

static void test_plain_msi(void **state)
{
    struct fixture *t = *state;
    cfg_write(t->r, 1, t->msix + 2, 2, 0);
    cfg_write(t->r, 1, t->msi + 4, 4, ADDRESS);
    cfg_write(t->r, 1, t->msi + 12, 2, 0x77);
    cfg_write(t->r, 1, t->msi + 2, 2, 1);
    for (unsigned i = 0; i < ENOUGH + 4; i++) pci_msi_notify(t->f);
    assert_int_equal(engine.msis, ENOUGH);
    assert_int_equal(signalled(0x77), 4);
    cfg_write(t->r, 1, t->msi + 16, 4, 1);
    pci_msi_notify(t->f);
    assert_int_equal(signalled(0x77), 0);
    cfg_write(t->r, 1, t->msi + 16, 4, 0);
    assert_int_equal(signalled(0x77), 1);
}

static void test_engines_come_and_go(void **state)
{
    static const struct engine_ops soft = {.name = "no controllers"}, kvm = {.name = "test", .irq = &irq_ops};
    struct fixture *t = *state;
    notify(t, 0, ENOUGH + 1);
    assert_int_equal(t->came, 1);
    uint64_t at = t->bar_at;
    pci_bus_leave_engine(t->r->pci);
    assert_int_equal(routes(), 0);
    assert_int_equal(t->gone, 1);
    irqchip_use_engine(t->chip, &soft, NULL);
    pci_bus_enter_engine(t->r->pci);
    assert_int_equal(t->came, 2);
    assert_int_equal(t->bar_at, at);
    notify(t, 0, 100); /* to vmm/irq */
    assert_int_equal(engine.msis, ENOUGH);
    assert_int_equal(routes(), 0);
    pci_bus_leave_engine(t->r->pci);
    irqchip_use_engine(t->chip, &kvm, NULL);
    pci_bus_enter_engine(t->r->pci);
    notify(t, 0, ENOUGH + 2);
    assert_int_equal(engine.msis, 2 * ENOUGH);
    assert_int_equal(signalled(0x40), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_busy_vector_gets_a_route, setup, teardown),
        cmocka_unit_test_setup_teardown(test_masks_hold_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_changed_message_is_one_change_of_routes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_refusal_costs_nothing_but_the_eventfd, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reset_gives_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_plain_msi, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engines_come_and_go, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
