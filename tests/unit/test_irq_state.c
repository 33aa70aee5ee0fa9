/* State of the user-space interrupt controllers in and out, and eventfds that send messages. */
#include <sys/eventfd.h>

#include "irq_fixture.h"

static struct nerr err;

struct whole {
    struct irq_lapic_state lapic[2];
    struct irq_chips_state chips;
};

static void save(struct rig *r, struct whole *w)
{
    memset(w, 0, sizeof *w);
    for (unsigned i = 0; i < 2; i++) assert_int_equal(irqchip_get_lapic(r->chip, i, &w->lapic[i], &err), 0);
    assert_int_equal(irqchip_get_chips(r->chip, &w->chips, &err), 0);
}

static void load(struct rig *r, const struct whole *w)
{
    for (unsigned i = 0; i < 2; i++) assert_int_equal(irqchip_set_lapic(r->chip, i, &w->lapic[i], &err), 0);
    assert_int_equal(irqchip_set_chips(r->chip, &w->chips, &err), 0);
}

static uint32_t reg(const struct irq_lapic_state *s, unsigned at)
{
    uint32_t v;
    memcpy(&v, s->regs + at, 4);
    return v;
}

static void route(struct rig *r, unsigned pin, uint64_t v)
{
    for (unsigned half = 0; half < 2; half++) {
        bus_write(&r->bus, BUS_MMIO, 0xfec00000, 4, 0x10 + 2 * pin + half);
        bus_write(&r->bus, BUS_MMIO, 0xfec00010, 4, (uint32_t)(v >> (32 * half)));
    }
}

/* A chip in the middle of everything. */
static void busy(struct rig *r)
{
    for (unsigned i = 0; i < 2; i++) {
        apic_write(r, i, 0xf0, 0x1ff);
        apic_write(r, i, 0x80, 0x20);
    }
    apic_write(r, 0, 0xd0, 0x01000000);
    irqchip_msi(r->chip, 0xfee00000, 0x91);
    assert_int_equal(ack(r, 0), 0x91); /* in service */
    irqchip_msi(r->chip, 0xfee00000, 0x71);
    irqchip_msi(r->chip, 0xfee01000, 0xa2);
    irqchip_msi(r->chip, 0xfee01000, 0x400); /* NMI */
    route(r, 10, 1ull << 56 | 0x8000 | 0x55);
    irqchip_set_line(r->chip, 10, true); /* level: remote IRR */
    route(r, 4, 0x44);
    irqchip_set_line(r->chip, 4, true); /* edge that stays high */
    bus_write(&r->bus, BUS_PIO, 0x20, 1, 0x11);
    bus_write(&r->bus, BUS_PIO, 0x21, 1, 0x30); /* in the middle of its initialization */
    apic_write(r, 1, 0x3e0, 0xb);
    apic_write(r, 1, 0x320, 0x40000 | 0x60);
}

static void test_round_trip(void **state)
{
    (void)state;
    static struct whole before, after;
    struct rig *a = rig_new(2), *b = rig_new(2);
    busy(a);
    save(a, &before);
    load(b, &before);
    save(b, &after);
    assert_memory_equal(&before, &after, sizeof before);
    assert_int_equal(reg(&after.lapic[0], 0x100 + 16 * (0x91 / 32)), 1u << 0x91 % 32);
    assert_int_equal(after.lapic[1].nmis, 1);
    assert_true(after.lapic[1].wait_sipi);
    /* What comes next is the same. */
    assert_int_equal(pending(b, 0), -1);
    apic_write(b, 0, 0xb0, 0);
    assert_int_equal(ack(b, 0), 0x71);
    assert_int_equal(ack(b, 1), 0xa2);
    assert_true(take_nmi(b, 1));
    apic_write(b, 1, 0xb0, 0);
    assert_int_equal(ack(b, 1), 0x55);
    irqchip_set_line(b->chip, 4, true); /* no new edge: it was high already */
    apic_write(b, 0, 0xb0, 0);
    assert_int_equal(ack(b, 0), 0x44); /* the one that had come */
    assert_int_equal(pending(b, 0), -1);
    bus_write(&b->bus, BUS_PIO, 0x21, 1, 4);
    bus_write(&b->bus, BUS_PIO, 0x21, 1, 1);
    bus_write(&b->bus, BUS_PIO, 0x21, 1, 0xa5);
    assert_int_equal(bus_read(&b->bus, BUS_PIO, 0x21, 1), 0xa5);
    rig_free(a);
    rig_free(b);
}

/* A level that nobody was told of yet (as an engine's own IOAPIC may leave it) is told now. */
static void test_untold_level(void **state)
{
    (void)state;
    static struct whole w;
    struct rig *r = rig_new(2);
    apic_write(r, 0, 0xf0, 0x1ff);
    save(r, &w);
    w.chips.ioapic.redir[9] = 0x8000 | 0x49;
    w.chips.ioapic.lines = 1 << 9;
    load(r, &w);
    assert_int_equal(ack(r, 0), 0x49);
    rig_free(r);
}

static void wait_vector(struct rig *r, int vector)
{
    for (unsigned ms = 0; pending(r, 0) != vector && ms < 5000; ms++) usleep(1000);
    assert_int_equal(pending(r, 0), vector);
}

/* Caught at the end of its count. */
static void test_periodic_at_zero(void **state)
{
    (void)state;
    static struct whole w;
    struct rig *r = rig_new(2);
    const uint32_t lvt = 0x20000 | 0x61, initial = 1000000, zero = 0, divide = 0xb;
    apic_write(r, 0, 0xf0, 0x1ff);
    save(r, &w);
    memcpy(w.lapic[0].regs + 0x320, &lvt, 4);
    memcpy(w.lapic[0].regs + 0x380, &initial, 4);
    memcpy(w.lapic[0].regs + 0x390, &zero, 4);
    memcpy(w.lapic[0].regs + 0x3e0, &divide, 4);
    load(r, &w);
    wait_vector(r, 0x61);
    rig_free(r);
}

static void test_refused(void **state)
{
    (void)state;
    struct rig *r = rig_new(2);
    static struct irq_lapic_state s;
    assert_true(irqchip_get_lapic(r->chip, 2, &s, &err) < 0);
    assert_int_equal(irqchip_get_lapic(r->chip, 0, &s, &err), 0);
    s.base = 0xfee00400; /* x2APIC mode, but disabled */
    assert_true(irqchip_set_lapic(r->chip, 0, &s, &err) < 0);
    assert_non_null(strstr(err.text, "0xfee00400"));
    s.base = 1ull << 50 | 0x800;
    assert_true(irqchip_set_lapic(r->chip, 0, &s, &err) < 0);
    rig_free(r);
}

/* Any bytes at all: nothing breaks, and what can't be, isn't. */
static void test_hostile(void **state)
{
    (void)state;
    static struct whole w, got;
    struct rig *r = rig_new(2);
    uint64_t seed = 88172645463325252ull;
    for (unsigned round = 0; round < 2000; round++) {
        for (size_t i = 0; i < sizeof w; i++) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            ((uint8_t *)&w)[i] = (uint8_t)seed;
        }
        for (unsigned i = 0; i < 2; i++) {
            w.lapic[i].base = 0xfee00000 | (seed >> i & 1 ? 0xc00 : 0x800);
            uint8_t *flags = (uint8_t *)&w.lapic[i].wait_sipi;
            *flags &= 1;
            for (bool *b = &w.chips.pic[i].needs_icw4; b <= &w.chips.pic[i].fully_nested; b++) *(uint8_t *)b &= 1;
        }
        load(r, &w);
        save(r, &got);
        for (unsigned i = 0; i < 2; i++) {
            assert_int_equal(reg(&got.lapic[i], 0x200) & 0xffff, 0);
            assert_true(got.lapic[i].nmis <= 2);
            int v = pending(r, i);
            assert_true(v == -1 || v == 0 || (v >= 16 && v < 256));
            if (v > 0) ack(r, i);
        }
        assert_int_equal(got.chips.ioapic.lines >> IRQ_LINES, 0);
        apic_write(r, 0, 0xb0, 0);
    }
    rig_free(r);
}

/* ---- eventfds ---- */

static void signal_fd(int fd)
{
    uint64_t one = 1;
    assert_int_equal(write(fd, &one, 8), 8);
}

static void test_irqfd(void **state)
{
    (void)state;
    struct rig *r = rig_new(2);
    int fd = eventfd(0, EFD_CLOEXEC), other = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    apic_write(r, 0, 0xf0, 0x1ff);
    assert_int_equal(irqchip_irqfd_add(r->chip, fd, 0xfee00000, 0x51, &err), 0);
    assert_int_equal(irqchip_irqfd_add(r->chip, other, 0xfee00000, 0x61, &err), 0);
    signal_fd(fd);
    wait_vector(r, 0x51);
    signal_fd(other);
    wait_vector(r, 0x61);
    assert_int_equal(irqchip_irqfd_add(r->chip, fd, 0xfee00000, 0x71, &err), 0); /* another message */
    signal_fd(fd);
    wait_vector(r, 0x71);
    irqchip_irqfd_remove(r->chip, fd);
    irqchip_irqfd_remove(r->chip, fd); /* twice is once */
    assert_int_equal(ack(r, 0), 0x71);
    signal_fd(fd);
    signal_fd(other); /* comes after it, so that we know when to look */
    assert_int_equal(irqchip_irqfd_add(r->chip, other, 0xfee00000, 0x81, &err), 0);
    signal_fd(other);
    wait_vector(r, 0x81);
    uint64_t left = 0;
    assert_int_equal(read(fd, &left, 8), 8); /* nobody took it */
    assert_int_equal(left, 1);
    rig_free(r); /* with one still there */
    close(fd);
    close(other);
}

static void test_irqfd_refused(void **state)
{
    (void)state;
    struct rig *r = rig_new(1);
    assert_true(irqchip_irqfd_add(r->chip, -1, 0xfee00000, 0x51, &err) < 0);
    int fd = eventfd(0, EFD_CLOEXEC);
    assert_true(irqchip_irqfd_add(r->chip, fd, 0xfed00000, 0x51, &err) < 0);
    assert_non_null(strstr(err.text, "0xfed00000"));
    close(fd);
    assert_true(irqchip_irqfd_add(r->chip, fd, 0xfee00000, 0x51, &err) < 0);
    rig_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),       cmocka_unit_test(test_untold_level),
        cmocka_unit_test(test_periodic_at_zero), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_hostile),          cmocka_unit_test(test_irqfd),
        cmocka_unit_test(test_irqfd_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
