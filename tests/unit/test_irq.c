/* IOAPIC, the 8259s and MSI, seen through ports, MMIO and the engine's interrupt port. */
#include "irq_fixture.h"

static void pic_program(struct rig *r)
{
    static const uint8_t icw[2][4] = {{0x11, 0x20, 0x04, 0x01}, {0x11, 0x28, 0x02, 0x01}};
    for (int c = 0; c < 2; c++) {
        uint16_t port = c ? 0xa0 : 0x20;
        out(r, port, icw[c][0]);
        for (int i = 1; i < 4; i++) out(r, (uint16_t)(port + 1), icw[c][i]);
        out(r, (uint16_t)(port + 1), 0);
    }
}

static void pulse(struct rig *r, unsigned gsi)
{
    irqchip_set_line(r->chip, gsi, true);
    irqchip_set_line(r->chip, gsi, false);
}

static void test_pic_vectors(void **state)
{
    (void)state;
    struct rig *r = rig_new(2);
    pic_program(r);
    assert_int_equal(pending(r, 0), -1);
    pulse(r, 4);
    assert_true(pending(r, 0) >= 0);
    assert_true(r->interrupts[0] > 0);
    assert_int_equal(pending(r, 1), -1); /* only the first CPU has the PIC behind LINT0 */
    assert_int_equal(ack(r, 0), 0x24);
    assert_int_equal(ack(r, 0), -1);
    pulse(r, 3); /* more urgent than 4: nests */
    assert_int_equal(ack(r, 0), 0x23);
    pulse(r, 6); /* less urgent: waits for both */
    assert_int_equal(pending(r, 0), -1);
    out(r, 0x20, 0x20);
    assert_int_equal(pending(r, 0), -1);
    out(r, 0x20, 0x64); /* specific EOI of 4 */
    assert_int_equal(ack(r, 0), 0x26);
    out(r, 0x20, 0x20);
    pulse(r, 2); /* GSI 2 is ISA IRQ 0 */
    assert_int_equal(ack(r, 0), 0x20);
    out(r, 0x20, 0x20);
    rig_free(r);
}

static void test_pic_cascade(void **state)
{
    (void)state;
    struct rig *r = rig_new(1);
    pic_program(r);
    pulse(r, 12);
    pulse(r, 8);
    assert_int_equal(ack(r, 0), 0x28);
    assert_int_equal(pending(r, 0), -1); /* 12 waits until 8 is done in both chips */
    out(r, 0xa0, 0x20);
    out(r, 0x20, 0x20);
    assert_int_equal(ack(r, 0), 0x2c);
    out(r, 0x20, 0x0b);
    assert_int_equal(in(r, 0x20), 0x04);
    out(r, 0xa0, 0x0b);
    assert_int_equal(in(r, 0xa0), 0x10);
    out(r, 0xa0, 0x20);
    out(r, 0x20, 0x20);
    assert_int_equal(in(r, 0x20), 0);
    rig_free(r);
}

static void test_pic_masks_and_levels(void **state)
{
    (void)state;
    struct rig *r = rig_new(1);
    pic_program(r);
    out(r, 0x21, 0xfb);
    assert_int_equal(in(r, 0x21), 0xfb); /* how kernels probe for an 8259 */
    pulse(r, 4);
    assert_int_equal(pending(r, 0), -1);
    out(r, 0x20, 0x0a);
    assert_int_equal(in(r, 0x20), 0x10); /* the edge is remembered */
    out(r, 0x21, 0x00);
    assert_int_equal(ack(r, 0), 0x24);
    out(r, 0x20, 0x20);

    assert_int_equal(in(r, 0x4d0) | in(r, 0x4d1) << 8, IRQ_ISA_PCI);
    out(r, 0x4d0, 0xff);
    assert_int_equal(in(r, 0x4d0), 0xf8);
    out(r, 0x4d1, 0x02); /* IRQ 9 by level */
    assert_int_equal(in(r, 0x4d1), 0x02);
    irqchip_set_line(r->chip, 9, true);
    assert_int_equal(ack(r, 0), 0x29);
    out(r, 0xa0, 0x20);
    out(r, 0x20, 0x20);
    assert_int_equal(ack(r, 0), 0x29); /* still asserted */
    irqchip_set_line(r->chip, 9, false);
    out(r, 0xa0, 0x20);
    out(r, 0x20, 0x20);
    assert_int_equal(pending(r, 0), -1);
    rig_free(r);
}

static void test_pic_auto_eoi_rotate_poll(void **state)
{
    (void)state;
    struct rig *r = rig_new(1);
    pic_program(r);
    out(r, 0x20, 0x11);
    out(r, 0x21, 0x40);
    out(r, 0x21, 0x04);
    out(r, 0x21, 0x03); /* auto EOI */
    out(r, 0x4d0, 0);   /* the board's PCI lines, 5 among them, begin as levels */
    pulse(r, 5);
    assert_int_equal(ack(r, 0), 0x45);
    pulse(r, 5);
    assert_int_equal(ack(r, 0), 0x45);
    out(r, 0x20, 0xc4); /* 4 is the least urgent now: 5 before 3 */
    pulse(r, 3);
    pulse(r, 5);
    assert_int_equal(ack(r, 0), 0x45);
    assert_int_equal(ack(r, 0), 0x43);
    pulse(r, 6);
    out(r, 0x20, 0x0c); /* poll */
    assert_int_equal(in(r, 0x20), 0x86);
    assert_int_equal(pending(r, 0), -1);
    rig_free(r);
}

static void test_pic_behind_lint0(void **state)
{
    (void)state;
    struct rig *r = rig_new(1);
    pic_program(r);
    apic_enable(r);
    apic_write(r, 0, 0x350, 0x10700); /* masked */
    pulse(r, 4);
    assert_int_equal(pending(r, 0), -1);
    unsigned before = r->interrupts[0];
    apic_write(r, 0, 0x350, 0x700);
    assert_true(pending(r, 0) >= 0);
    assert_true(r->interrupts[0] > before);
    assert_int_equal(ack(r, 0), 0x24);
    out(r, 0x20, 0x20);
    apic_write(r, 0, 0x350, 0x55); /* fixed: the LAPIC's own vector, and no acknowledge cycle */
    pulse(r, 4);
    assert_int_equal(ack(r, 0), 0x55);
    eoi(r, 0);
    apic_write(r, 0, 0x350, 0x400);
    out(r, 0x20, 0x20);
    (void)in(r, 0x20);
    out(r, 0x21, 0xff);
    out(r, 0x21, 0x00);
    assert_true(take_nmi(r, 0));
    assert_false(take_nmi(r, 0));
    rig_free(r);
}

static void test_ioapic_registers(void **state)
{
    (void)state;
    struct rig *r = rig_new(1);
    assert_int_equal(ioapic_read(r, 1), 0x170020);
    ioapic_write(r, 1, 0xffffffff);
    assert_int_equal(ioapic_read(r, 1), 0x170020);
    ioapic_write(r, 0, 0xffffffff);
    assert_int_equal(ioapic_read(r, 0), 0x0f000000);
    assert_int_equal(ioapic_read(r, 2), 0x0f000000);
    for (uint8_t pin = 0; pin < 24; pin++) assert_int_equal(ioapic_read(r, (uint8_t)(0x10 + 2 * pin)), 0x10000);
    redirect(r, 23, 0xffffffff, 0xffffffff);
    assert_int_equal(ioapic_read(r, 0x3e), 0x1afff); /* delivery status and remote IRR cannot be written */
    assert_int_equal(ioapic_read(r, 0x3f), 0xff000000);
    assert_int_equal(ioapic_read(r, 0x40), 0);
    rig_free(r);
}

static void test_ioapic_edge(void **state)
{
    (void)state;
    struct rig *r = rig_new(2);
    apic_enable(r);
    redirect(r, 14, 1u << 24, 0x76);
    pulse(r, 14);
    assert_int_equal(pending(r, 0), -1);
    assert_int_equal(ack(r, 1), 0x76);
    assert_int_equal(r->interrupts[1], 1);
    assert_int_equal(apic_read(r, 1, 0x180 + 0x30), 0); /* TMR */
    eoi(r, 1);
    assert_int_equal(pending(r, 1), -1);
    redirect(r, 14, 1u << 24, 0x10076);
    pulse(r, 14); /* an edge under the mask is lost */
    redirect(r, 14, 1u << 24, 0x76);
    assert_int_equal(pending(r, 1), -1);
    rig_free(r);
}

static void test_ioapic_level(void **state)
{
    (void)state;
    struct rig *r = rig_new(1);
    apic_enable(r);
    redirect(r, 14, 0, 0x8077);
    irqchip_set_line(r->chip, 14, true);
    assert_int_equal(ioapic_read(r, 0x10 + 28) & 0x4000, 0x4000); /* remote IRR */
    assert_int_equal(ack(r, 0), 0x77);
    assert_int_equal(apic_read(r, 0, 0x180 + 0x30), 1u << 23); /* TMR */
    irqchip_set_line(r->chip, 14, true);
    assert_int_equal(pending(r, 0), -1); /* not again before the EOI */
    eoi(r, 0);
    assert_int_equal(ack(r, 0), 0x77); /* still asserted */
    irqchip_set_line(r->chip, 14, false);
    eoi(r, 0);
    assert_int_equal(pending(r, 0), -1);
    assert_int_equal(ioapic_read(r, 0x10 + 28) & 0x4000, 0);
    /* asserted while masked, delivered when unmasked */
    redirect(r, 14, 0, 0x18077);
    irqchip_set_line(r->chip, 14, true);
    assert_int_equal(pending(r, 0), -1);
    redirect(r, 14, 0, 0x8077);
    assert_int_equal(ack(r, 0), 0x77);
    irqchip_set_line(r->chip, 14, false);
    rig_free(r);
}

/* Software may suppress the broadcast and tell the IOAPIC itself (version 0x20). */
static void test_ioapic_directed_eoi(void **state)
{
    (void)state;
    struct rig *r = rig_new(1);
    apic_write(r, 0, 0xf0, 0x11ff);
    redirect(r, 10, 0, 0x8050);
    irqchip_set_line(r->chip, 10, true);
    assert_int_equal(ack(r, 0), 0x50);
    irqchip_set_line(r->chip, 10, false);
    eoi(r, 0);
    assert_int_equal(ioapic_read(r, 0x24) & 0x4000, 0x4000);
    bus_write(&r->bus, BUS_MMIO, 0xfec00040, 4, 0x51); /* another vector */
    assert_int_equal(ioapic_read(r, 0x24) & 0x4000, 0x4000);
    bus_write(&r->bus, BUS_MMIO, 0xfec00040, 4, 0x50);
    assert_int_equal(ioapic_read(r, 0x24) & 0x4000, 0);
    /* the old way: an edge for a moment */
    irqchip_set_line(r->chip, 10, true);
    assert_int_equal(ioapic_read(r, 0x24) & 0x4000, 0x4000);
    irqchip_set_line(r->chip, 10, false);
    ioapic_write(r, 0x24, 0x10050);
    ioapic_write(r, 0x24, 0x8050);
    assert_int_equal(ioapic_read(r, 0x24) & 0x4000, 0);
    rig_free(r);
}

static void test_ioapic_logical(void **state)
{
    (void)state;
    struct rig *r = rig_new(4);
    apic_enable(r);
    for (unsigned i = 0; i < 4; i++) {
        apic_write(r, i, 0xe0, 0xffffffff);
        apic_write(r, i, 0xd0, 1u << (24 + i));
    }
    redirect(r, 5, 0x0du << 24, 0x860);
    pulse(r, 5);
    for (unsigned i = 0; i < 4; i++) assert_int_equal(pending(r, i), i == 1 ? -1 : 0x60);
    for (unsigned i = 0; i < 4; i++)
        if (ack(r, i) >= 0) eoi(r, i);
    /* lowest priority: exactly one of them, the one with the lowest TPR */
    apic_write(r, 0, 0x80, 0x20);
    apic_write(r, 2, 0x80, 0x10);
    apic_write(r, 3, 0x80, 0x20);
    redirect(r, 5, 0x0du << 24, 0x961);
    pulse(r, 5);
    for (unsigned i = 0; i < 4; i++) assert_int_equal(pending(r, i), i == 2 ? 0x61 : -1);
    rig_free(r);
}

static void test_ioapic_nmi(void **state)
{
    (void)state;
    struct rig *r = rig_new(2);
    redirect(r, 20, 1u << 24, 0x8400); /* NMI needs no enabled LAPIC and no EOI, whatever the trigger mode says */
    irqchip_set_line(r->chip, 20, true);
    assert_true(take_nmi(r, 1));
    assert_false(take_nmi(r, 0));
    assert_int_equal(ioapic_read(r, 0x10 + 40) & 0x4000, 0);
    rig_free(r);
}

static void test_msi(void **state)
{
    (void)state;
    struct rig *r = rig_new(2);
    apic_enable(r);
    irqchip_msi(r->chip, 0xfee01000, 0x45);
    assert_int_equal(pending(r, 0), -1);
    assert_int_equal(ack(r, 1), 0x45);
    eoi(r, 1);
    irqchip_msi(r->chip, 0xfeeff000, 0x46); /* broadcast */
    assert_int_equal(ack(r, 0), 0x46);
    assert_int_equal(ack(r, 1), 0x46);
    irqchip_msi(r->chip, 0xfed00000, 0x47); /* no MSI address */
    irqchip_msi(r->chip, 0xfee05000, 0x47); /* nobody there */
    assert_int_equal(apic_read(r, 0, 0x220), 0);
    irqchip_msi(r->chip, 0xfee00000, 0x400);
    assert_true(take_nmi(r, 0));
    rig_free(r);
}

static void test_bad_config(void **state)
{
    (void)state;
    struct nerr e;
    struct irqchip *c;
    struct irqchip_host h = {0};
    assert_true(irqchip_create(0, NULL, &h, &c, &e) < 0);
    assert_true(irqchip_create(ENGINE_MAX_VCPUS + 1, NULL, &h, &c, &e) < 0);
}

/* Every line, any register, any order: nothing may break, and the chip must still work after a reset. */
static void test_fuzz(void **state)
{
    (void)state;
    struct rig *r = rig_new(3);
    srand(1);
    for (int i = 0; i < 200000; i++) {
        unsigned n = (unsigned)rand() % 3, v = (unsigned)rand() ^ (unsigned)rand() << 16;
        switch (rand() % 8) {
        case 0: irqchip_set_line(r->chip, (unsigned)rand() % 26, rand() & 1); break;
        case 1: ioapic_write(r, (uint8_t)rand(), v); break;
        case 2: bus_write(&r->bus, BUS_MMIO, 0xfec00000 + (v >> 20), 1u << (rand() & 3), v); break;
        case 3: out(r, (uint16_t)((rand() & 1 ? 0xa0 : 0x20) + (rand() & 1)), (uint8_t)v); break;
        case 4: irqchip_msi(r->chip, 0xfee00000 | (v & 0xff00f), v >> 8 & 0xffff); break;
        case 5: (void)ack(r, n); break;
        case 6: (void)in(r, (uint16_t)((rand() & 1 ? 0xa0 : 0x20) + (rand() & 1))); break;
        case 7: eoi(r, n); break;
        }
    }
    assert_int_equal(irqchip_reset(r->chip, &(struct nerr){0}), 0);
    for (unsigned g = 0; g < 24; g++) irqchip_set_line(r->chip, g, false);
    apic_enable(r);
    redirect(r, 14, 2u << 24, 0x76);
    pulse(r, 14);
    assert_int_equal(ack(r, 2), 0x76);
    rig_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pic_vectors),          cmocka_unit_test(test_pic_cascade),
        cmocka_unit_test(test_pic_masks_and_levels), cmocka_unit_test(test_pic_auto_eoi_rotate_poll),
        cmocka_unit_test(test_pic_behind_lint0),     cmocka_unit_test(test_ioapic_registers),
        cmocka_unit_test(test_ioapic_edge),          cmocka_unit_test(test_ioapic_level),
        cmocka_unit_test(test_ioapic_directed_eoi),  cmocka_unit_test(test_ioapic_logical),
        cmocka_unit_test(test_ioapic_nmi),           cmocka_unit_test(test_msi),
        cmocka_unit_test(test_bad_config),           cmocka_unit_test(test_fuzz),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
