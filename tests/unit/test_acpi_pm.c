/* Power management and the small devices (debug exit, fw_cfg, test board), and the platform as a whole with its interrupt chip. */
#include "device_fixture.h"
#include "vmm/irq/irq.h"

#define PM PLATFORM_PM_BASE
#define SCI PLATFORM_SCI_GSI

struct board {
    struct bench *b;
    struct pm *pm;
    struct platform *platform;
    struct irqchip *chip;
    atomic_uint offs, resets, exits, interrupts, sent;
    _Atomic uint32_t status;
};

static void power_off(void *ctx)
{
    atomic_fetch_add(&((struct board *)ctx)->offs, 1);
}
static void reset(void *ctx)
{
    atomic_fetch_add(&((struct board *)ctx)->resets, 1);
}
static void debug_exit(void *ctx, uint32_t status)
{
    struct board *t = ctx;
    atomic_store(&t->status, status);
    atomic_fetch_add(&t->exits, 1);
}
static size_t serial_out(void *ctx, const uint8_t *data, size_t len)
{
    (void)data;
    atomic_fetch_add(&((struct board *)ctx)->sent, (unsigned)len);
    return len;
}

static struct board *pm_board(void)
{
    struct nerr e;
    struct board *t = calloc(1, sizeof *t);
    assert_non_null(t);
    t->b = bench_new();
    struct pm_config c = {
        .loop = t->b->loop, .sci = bench_irq(t->b, SCI), .power_off = power_off, .reset = reset, .ctx = t};
    assert_int_equal(pm_create(&c, &t->pm, &e), 0);
    assert_int_equal(pm_attach(t->pm, &t->b->bus, &e), 0);
    return t;
}

static void pm_end(struct board *t)
{
    bench_stop(t->b);
    pm_destroy(t->pm);
    bench_free(t->b);
    free(t);
}

static unsigned inw(struct board *t, uint16_t port)
{
    return (unsigned)bus_read(&t->b->bus, BUS_PIO, port, 2);
}
static void outw(struct board *t, uint16_t port, unsigned v)
{
    bus_write(&t->b->bus, BUS_PIO, port, 2, v);
}

static void test_power_off(void **state)
{
    (void)state;
    struct board *t = pm_board();
    assert_int_equal(inw(t, PM + 4), 1); /* ACPI is on from the start */
    outw(t, PM + 4, PLATFORM_S5_TYPE << 10);
    assert_int_equal(t->offs, 0); /* type without enable */
    assert_int_equal(inw(t, PM + 4), PLATFORM_S5_TYPE << 10 | 1);
    outw(t, PM + 4, 1 << 10 | 0x2000);
    assert_int_equal(t->offs, 0); /* no such sleep state */
    outw(t, PM + 4, PLATFORM_S5_TYPE << 10 | 0x2000);
    assert_int_equal(t->offs, 1);
    assert_int_equal(inw(t, PM + 4) & 0x2000, 0);
    out(t->b, PM + 5, PLATFORM_S5_TYPE << 2 | 0x20); /* byte by byte */
    assert_int_equal(t->offs, 2);
    pm_end(t);
}

static void test_power_button(void **state)
{
    (void)state;
    struct board *t = pm_board();
    pm_power_button(t->pm);
    assert_int_equal(inw(t, PM) & 0x100, 0x100);
    assert_false(t->b->level[SCI]);
    outw(t, PM + 2, 0x100);
    assert_true(t->b->level[SCI]);
    outw(t, PM, 0x400); /* clears another bit */
    assert_true(t->b->level[SCI]);
    outw(t, PM, 0x100);
    assert_false(t->b->level[SCI]);
    assert_int_equal(inw(t, PM), 0);
    bus_write(&t->b->bus, BUS_PIO, PM, 4, 0x01000000);
    assert_int_equal(inw(t, PM + 2), 0x100);
    pm_end(t);
}

static void test_pm_timer(void **state)
{
    (void)state;
    struct board *t = pm_board();
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 10; i++) {
        uint64_t n0 = clock_mono_ns();
        uint32_t a = (uint32_t)bus_read(&t->b->bus, BUS_PIO, PM + 8, 4);
        uint64_t n1 = clock_mono_ns();
        sleep_us(5000);
        uint64_t n2 = clock_mono_ns();
        uint32_t d = (uint32_t)bus_read(&t->b->bus, BUS_PIO, PM + 8, 4) - a;
        uint64_t n3 = clock_mono_ns();
        uint64_t ns = d * 1000000000ull / 3579545;
        assert_true(ns + 600 >= n2 - n1 && ns <= n3 - n0 + 600);
        if (n3 - n0 < best) best = n3 - n0;
    }
    uint32_t whole = (uint32_t)bus_read(&t->b->bus, BUS_PIO, PM + 8, 4);
    uint32_t high = (uint32_t)bus_read(&t->b->bus, BUS_PIO, PM + 10, 2);
    assert_true(high - (whole >> 16) <= 100);
    bus_write(&t->b->bus, BUS_PIO, PM + 8, 4, 0); /* read-only */
    assert_true((uint32_t)bus_read(&t->b->bus, BUS_PIO, PM + 8, 4) >= whole);
    outw(t, PM + 2, 1); /* TMR_EN: the next carry is ten minutes away */
    assert_false(t->b->level[SCI]);
    pm_end(t);
}

static void test_pm_timer_freeze(void **state)
{
    (void)state;
    struct board *t = pm_board();
    uint64_t t0 = clock_mono_ns();
    uint32_t before = (uint32_t)bus_read(&t->b->bus, BUS_PIO, PM + 8, 4);
    uint64_t since = clock_mono_ns();
    pm_freeze(t->pm);
    uint32_t still = (uint32_t)bus_read(&t->b->bus, BUS_PIO, PM + 8, 4);
    sleep_us(20000);
    assert_int_equal((uint32_t)bus_read(&t->b->bus, BUS_PIO, PM + 8, 4), still);
    pm_power_button(t->pm); /* is kept */
    uint64_t ns = clock_mono_ns() - since;
    pm_thaw(t->pm, ns);
    uint32_t after = (uint32_t)bus_read(&t->b->bus, BUS_PIO, PM + 8, 4);
    uint64_t lived = (uint64_t)(after - before) * 1000000000ull / 3579545;
    assert_true(after - still < 1u << 31 && lived <= clock_mono_ns() - t0 - ns + 600);
    assert_true(inw(t, PM) & 0x100);
    /* Reset meanwhile: it begins at 0, and with the pause's end. */
    since = clock_mono_ns();
    pm_freeze(t->pm);
    sleep_us(20000);
    pm_reset(t->pm);
    assert_int_equal((uint32_t)bus_read(&t->b->bus, BUS_PIO, PM + 8, 4), 0);
    sleep_us(20000);
    ns = clock_mono_ns() - since;
    pm_thaw(t->pm, ns);
    after = (uint32_t)bus_read(&t->b->bus, BUS_PIO, PM + 8, 4);
    assert_true(after * 1000000000ull / 3579545 <= clock_mono_ns() - since - ns + 600);
    assert_false(inw(t, PM) & 1); /* no carry */
    pm_end(t);
}

static void test_resets(void **state)
{
    (void)state;
    struct board *t = pm_board();
    struct bench *b = t->b;
    out(b, 0xcf9, 0x02);
    assert_int_equal(t->resets, 0);
    assert_int_equal(in(b, 0xcf9), 0x02);
    out(b, 0xcf9, 0x06);
    assert_int_equal(t->resets, 1);
    bus_write(&b->bus, BUS_PIO, 0xcf8, 4, 0x80000600); /* a PCI address is no reset */
    assert_int_equal(t->resets, 1);
    assert_int_equal(bus_read(&b->bus, BUS_PIO, 0xcf8, 4), 0xffffffff);
    assert_int_equal(bus_read(&b->bus, BUS_PIO, 0xcfc, 4), 0xffffffff);
    out(b, 0x64, 0xfe);
    assert_int_equal(t->resets, 2);
    out(b, 0x92, in(b, 0x92) | 2);
    assert_int_equal(t->resets, 2);
    out(b, 0x92, in(b, 0x92) | 1);
    assert_int_equal(t->resets, 3);
    out(b, 0x92, 3); /* no rise */
    assert_int_equal(t->resets, 3);
    pm_reset(t->pm);
    assert_int_equal(in(b, 0x92) & 1, 0);
    pm_end(t);
}

static void test_keyboard_controller(void **state)
{
    (void)state;
    struct board *t = pm_board();
    struct bench *b = t->b;
    assert_int_equal(in(b, 0x64) & 3, 0); /* ready, and nothing to read */
    out(b, 0x64, 0xaa);
    assert_int_equal(in(b, 0x64) & 1, 1);
    assert_int_equal(in(b, 0x60), 0x55);
    assert_int_equal(in(b, 0x64) & 1, 0);
    out(b, 0x64, 0x60);
    out(b, 0x60, 0x5a);
    out(b, 0x64, 0x20);
    assert_int_equal(in(b, 0x60), 0x5a);
    out(b, 0x60, 0xff); /* to a keyboard that is not there */
    assert_int_equal(in(b, 0x64) & 1, 0);
    out(b, 0x64, 0xd1);
    out(b, 0x60, 0x03);
    assert_int_equal(t->resets, 0);
    out(b, 0x64, 0xd1);
    out(b, 0x60, 0x02);
    assert_int_equal(t->resets, 1);
    pm_end(t);
}

static void test_debug_exit(void **state)
{
    (void)state;
    struct board t = {0};
    struct nerr e;
    struct debug_exit *d;
    static struct bus bus;
    memset(&bus, 0, sizeof bus);
    assert_int_equal(debug_exit_create(debug_exit, &t, &d, &e), 0);
    assert_int_equal(debug_exit_attach(d, &bus, 0xf4, &e), 0);
    bus_write(&bus, BUS_PIO, 0xf4, 1, 0x10);
    assert_int_equal(t.status, 0x21);
    bus_write(&bus, BUS_PIO, 0xf4, 2, 0x1234);
    assert_int_equal(t.status, 0x2469);
    bus_write(&bus, BUS_PIO, 0xf4, 4, 0);
    assert_int_equal(t.status, 1);
    assert_int_equal(t.exits, 3);
    assert_true(debug_exit_attach(d, &bus, 0xf5, &e) < 0);     /* taken */
    assert_int_equal(debug_exit_attach(d, &bus, 0xf2, &e), 0); /* two ports wide, for want of room */
    assert_int_equal(debug_exit_attach(d, &bus, 0xffff, &e), 0);
    bus_write(&bus, BUS_PIO, 0xffff, 1, 3);
    assert_int_equal(t.status, 7);
    debug_exit_destroy(d);
}

static uint64_t fw_item(struct bus *bus, uint16_t key, unsigned bytes)
{
    uint64_t v = 0;
    bus_write(bus, BUS_PIO, 0x510, 2, key);
    for (unsigned i = 0; i < bytes; i++) v |= bus_read(bus, BUS_PIO, 0x511, 1) << (8 * i);
    return v;
}

static void test_fw_cfg(void **state)
{
    (void)state;
    struct nerr e;
    struct fw_cfg *f;
    static struct bus bus;
    memset(&bus, 0, sizeof bus);
    assert_int_equal(fw_cfg_create(7, 0x123456000, &f, &e), 0);
    assert_int_equal(fw_cfg_attach(f, &bus, &e), 0);
    assert_int_equal(fw_item(&bus, 0, 4), 0x554d4551);
    assert_int_equal(fw_item(&bus, 1, 4), 1);
    assert_true(fw_item(&bus, 3, 8) == 0x123456000);
    assert_int_equal(fw_item(&bus, 5, 2), 7);
    assert_int_equal(fw_item(&bus, 5, 8), 7); /* zeros after the end */
    for (unsigned key = 0x20; key < 0x10000; key += 61) (void)fw_item(&bus, (uint16_t)key, 8);
    bus_write(&bus, BUS_PIO, 0x511, 1, 0xff);
    bus_write(&bus, BUS_PIO, 0x510, 1, 0xff);
    assert_int_equal(fw_item(&bus, 0x4005, 2), 7);
    fw_cfg_destroy(f);
}

static void test_testdev(void **state)
{
    (void)state;
    struct nerr e;
    struct bench *b = bench_new();
    struct testdev *t;
    assert_int_equal(testdev_create(bench_irq(b, 0), &t, &e), 0);
    assert_int_equal(testdev_attach(t, &b->bus, &e), 0);
    bus_write(&b->bus, BUS_PIO, 0xe0, 4, 0x11223344);
    assert_int_equal(bus_read(&b->bus, BUS_PIO, 0xe1, 1), 0x33);
    bus_write(&b->bus, BUS_PIO, 0xe2, 2, 0xaabb);
    assert_int_equal(bus_read(&b->bus, BUS_PIO, 0xe0, 4), 0xaabb3344);
    assert_int_equal(bus_read(&b->bus, BUS_PIO, 0xe8, 4), 0xaabb3344);
    bus_write(&b->bus, BUS_PIO, 0xe4, 4, 0x1000);
    out(b, 0x200e, 1);
    assert_true(b->level[14]);
    out(b, 0x200e, 0);
    assert_false(b->level[14]);
    bus_write(&b->bus, BUS_PIO, 0x200b, 4, 1);
    assert_true(b->level[11]);
    out(b, 0x2000, 1);
    assert_true(b->level[2]);
    bus_write(&b->bus, BUS_MMIO, 0xff00fff8, 8, 0x0123456789abcdef);
    assert_true(bus_read(&b->bus, BUS_MMIO, 0xff00fff8, 8) == 0x0123456789abcdef);
    assert_int_equal(bus_read(&b->bus, BUS_MMIO, 0xff00fffd, 2), 0x2345);
    assert_true(bus_read(&b->bus, BUS_MMIO, 0xff00fffc, 8) == ~0ull);
    fuzz_ports(b, 0xdf, 0xec, 1, 20000);
    fuzz_ports(b, 0x1fff, 0x2019, 1, 20000);
    testdev_reset(t);
    assert_int_equal(bus_read(&b->bus, BUS_PIO, 0xe0, 4), 0);
    bench_stop(b);
    testdev_destroy(t);
    bench_free(b);
}

/* ---- the whole platform ---- */

static void interrupt(void *ctx, unsigned vcpu)
{
    (void)vcpu;
    atomic_fetch_add(&((struct board *)ctx)->interrupts, 1);
}
static void ignore_init(void *ctx, unsigned vcpu)
{
    (void)ctx;
    (void)vcpu;
}
static void ignore_sipi(void *ctx, unsigned vcpu, uint8_t vector)
{
    (void)ctx;
    (void)vcpu;
    (void)vector;
}

static int whole(struct board *t, uint16_t exit_port, struct nerr *e)
{
    t->b = bench_new();
    struct irqchip_host host = {t, interrupt, ignore_init, ignore_sipi};
    assert_int_equal(irqchip_create(2, t->b->loop, &host, &t->chip, e), 0);
    assert_int_equal(irqchip_attach(t->chip, &t->b->bus, e), 0);
    struct platform_config c = {
        .loop = t->b->loop,
        .irqchip = t->chip,
        .bus = &t->b->bus,
        .vcpus = 2,
        .ram_size = 64 << 20,
        .debug_exit_port = exit_port,
        .cb = {.ctx = t, .serial_output = serial_out, .power_off = power_off, .reset = reset, .debug_exit = debug_exit},
    };
    return platform_create(&c, &t->platform, e);
}

static void whole_end(struct board *t)
{
    bench_stop(t->b);
    platform_destroy(t->platform);
    irqchip_destroy(t->chip);
    bench_free(t->b);
    free(t);
}

static void ioapic_pin(struct board *t, unsigned pin, uint32_t low)
{
    bus_write(&t->b->bus, BUS_MMIO, 0xfec00000, 4, 0x10 + 2 * pin);
    bus_write(&t->b->bus, BUS_MMIO, 0xfec00010, 4, low);
}

static void test_whole(void **state)
{
    (void)state;
    struct nerr e;
    struct board *t = calloc(1, sizeof *t);
    assert_int_equal(whole(t, 0xf4, &e), 0);
    const struct vcpu_irq_port *cpu = irqchip_port(t->chip, 0);
    irqchip_set_current_vcpu(0);
    bus_write(&t->b->bus, BUS_MMIO, 0xfee000f0, 4, 0x1ff);
    ioapic_pin(t, 4, 0x34);
    ioapic_pin(t, 9, 0x8039);
    out(t->b, 0x3fc, 8);
    out(t->b, 0x3f9, 1);
    assert_int_equal(platform_serial_input(t->platform, (const uint8_t *)"q", 1), 1);
    assert_int_equal(cpu->acknowledge(cpu->ctx), 0x34);
    bus_write(&t->b->bus, BUS_MMIO, 0xfee000b0, 4, 0);
    outw(t, PM + 2, 0x100);
    platform_power_button(t->platform);
    assert_int_equal(cpu->acknowledge(cpu->ctx), 0x39);
    outw(t, PM, 0x100);
    bus_write(&t->b->bus, BUS_MMIO, 0xfee000b0, 4, 0);
    assert_int_equal(cpu->pending(cpu->ctx), -1);
    out(t->b, 0xf4, 0);
    assert_int_equal(t->status, 1);
    out(t->b, 0x3f8, 'x');
    assert_true(platform_serial_flush(t->platform));
    assert_int_equal(t->sent, 1);
    platform_reset(t->platform);
    assert_int_equal(irqchip_reset(t->chip, &(struct nerr){0}), 0);
    assert_int_equal(in(t->b, 0x3f9), 0);
    whole_end(t);
}

static void test_debug_exit_port_taken(void **state)
{
    (void)state;
    struct nerr e;
    struct board *t = calloc(1, sizeof *t);
    assert_true(whole(t, PLATFORM_COM1_PORT, &e) < 0);
    assert_non_null(strstr(e.text, "debug-exit"));
    assert_non_null(strstr(e.text, "serial"));
    bench_stop(t->b);
    irqchip_destroy(t->chip);
    bench_free(t->b);
    free(t);
}

struct hammer {
    struct board *t;
    unsigned vcpu;
};

/* Two vCPUs, all ports, all controllers, at the same time; the races are for TSan to find. */
static void *hammer(void *arg)
{
    struct hammer *h = arg;
    struct bus *bus = &h->t->b->bus;
    static const uint16_t ports[] = {0x20, 0x21,  0x40,  0x43,  0x61,  0x70,  0x71, 0xa0,
                                     0xa1, 0x3f8, 0x3f9, 0x3fc, 0x4d0, 0x600, 0x602};
    const struct vcpu_irq_port *cpu = irqchip_port(h->t->chip, h->vcpu);
    unsigned seed = h->vcpu + 1;
    irqchip_set_current_vcpu(h->vcpu);
    bus_write(bus, BUS_MMIO, 0xfee000f0, 4, 0x1ff);
    for (int i = 0; i < 30000; i++) {
        unsigned v = (unsigned)rand_r(&seed);
        uint16_t port = ports[(unsigned)rand_r(&seed) % (sizeof ports / sizeof ports[0])];
        switch (rand_r(&seed) % 6) {
        case 0: bus_write(bus, BUS_PIO, port, 1, v & 0xff); break;
        case 1: (void)bus_read(bus, BUS_PIO, port, 1); break;
        case 2: bus_write(bus, BUS_MMIO, 0xfec00000 + (v & 0x10), 4, v); break;
        case 3: bus_write(bus, BUS_MMIO, 0xfee00000 + (v % 0x40) * 16, 4, (uint64_t)(unsigned)rand_r(&seed)); break;
        case 4:
            if (cpu->pending(cpu->ctx) >= 0) (void)cpu->acknowledge(cpu->ctx);
            (void)cpu->take_nmi(cpu->ctx);
            break;
        case 5: bus_write(bus, BUS_MMIO, 0xfee000b0, 4, 0); break;
        }
    }
    return NULL;
}

static void test_hammer(void **state)
{
    (void)state;
    struct nerr e;
    struct board *t = calloc(1, sizeof *t);
    assert_int_equal(whole(t, 0xf4, &e), 0);
    pthread_t th[2];
    struct hammer h[2] = {{t, 0}, {t, 1}};
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&th[i], NULL, hammer, &h[i]), 0);
    for (int i = 0; i < 300; i++) {
        (void)platform_serial_input(t->platform, (const uint8_t *)"abcdefgh", 8);
        irqchip_msi(t->chip, 0xfee00000 | (unsigned)(i & 1) << 12, 0x40u + (unsigned)i % 100);
        if (i % 50 == 0) platform_power_button(t->platform);
        sleep_us(300);
    }
    for (int i = 0; i < 2; i++) pthread_join(th[i], NULL);
    platform_reset(t->platform);
    assert_int_equal(irqchip_reset(t->chip, &(struct nerr){0}), 0);
    assert_int_equal(in(t->b, 0x3fd) & 0x60, 0x60);
    whole_end(t);
}

static void test_fuzz(void **state)
{
    (void)state;
    struct board *t = pm_board();
    for (unsigned seed = 1; seed < 10; seed++) {
        fuzz_ports(t->b, PM - 2, PM + 13, seed, 5000);
        fuzz_ports(t->b, 0xcf6, 0xd01, seed, 2000);
        fuzz_ports(t->b, 0x5e, 0x66, seed, 2000);
        fuzz_ports(t->b, 0x91, 0x93, seed, 500);
    }
    pm_reset(t->pm);
    assert_false(t->b->level[SCI]);
    unsigned offs = t->offs;
    outw(t, PM + 4, PLATFORM_S5_TYPE << 10 | 0x2000);
    assert_int_equal(t->offs, offs + 1);
    pm_end(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_power_off),
        cmocka_unit_test(test_power_button),
        cmocka_unit_test(test_pm_timer),
        cmocka_unit_test(test_pm_timer_freeze),
        cmocka_unit_test(test_resets),
        cmocka_unit_test(test_keyboard_controller),
        cmocka_unit_test(test_debug_exit),
        cmocka_unit_test(test_fw_cfg),
        cmocka_unit_test(test_testdev),
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_debug_exit_port_taken),
        cmocka_unit_test(test_hammer),
        cmocka_unit_test(test_fuzz),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
