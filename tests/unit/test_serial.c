/* The 16550A: what Linux's 8250 driver probes, interrupts, FIFO, back-pressure both ways. */
#include "device_fixture.h"

#define COM1 0x3f8
#define GSI 4

struct uart {
    struct bench *b;
    struct serial *s;
    pthread_mutex_t lock;
    uint8_t text[400000];
    size_t len, calls;
    atomic_size_t accept; /* how many bytes a call may take */
    atomic_uint rooms;
};

static size_t output(void *ctx, const uint8_t *data, size_t len)
{
    struct uart *u = ctx;
    size_t max = atomic_load(&u->accept), n = len < max ? len : max;
    pthread_mutex_lock(&u->lock);
    if (n > sizeof u->text - u->len) n = sizeof u->text - u->len;
    memcpy(u->text + u->len, data, n);
    u->len += n;
    u->calls++;
    pthread_mutex_unlock(&u->lock);
    return n;
}

static void room(void *ctx)
{
    atomic_fetch_add(&((struct uart *)ctx)->rooms, 1);
}

static size_t text_len(struct uart *u)
{
    pthread_mutex_lock(&u->lock);
    size_t n = u->len;
    pthread_mutex_unlock(&u->lock);
    return n;
}

static struct uart *uart_new(void)
{
    struct nerr e;
    struct uart *u = calloc(1, sizeof *u);
    assert_non_null(u);
    u->b = bench_new();
    pthread_mutex_init(&u->lock, NULL);
    atomic_store(&u->accept, SIZE_MAX);
    struct serial_config c = {u->b->loop, bench_irq(u->b, GSI), output, room, u};
    assert_int_equal(serial_create(&c, &u->s, &e), 0);
    assert_int_equal(serial_attach(u->s, &u->b->bus, COM1, &e), 0);
    return u;
}

static void uart_free(struct uart *u)
{
    bench_stop(u->b);
    serial_destroy(u->s);
    bench_free(u->b);
    pthread_mutex_destroy(&u->lock);
    free(u);
}

static uint8_t rd(struct uart *u, unsigned reg)
{
    return in(u->b, (uint16_t)(COM1 + reg));
}
static void wr(struct uart *u, unsigned reg, uint8_t v)
{
    out(u->b, (uint16_t)(COM1 + reg), v);
}
static bool irq(struct uart *u)
{
    return atomic_load(&u->b->level[GSI]);
}

/* The steps of a driver that finds out what kind of UART this is. */
static void test_probe(void **state)
{
    (void)state;
    struct uart *u = uart_new();
    wr(u, 1, 0);
    assert_int_equal(rd(u, 1), 0);
    wr(u, 1, 0xff);
    assert_int_equal(rd(u, 1), 0x0f); /* no bits of later UARTs */
    wr(u, 1, 0);
    wr(u, 7, 0xa5);
    assert_int_equal(rd(u, 7), 0xa5);
    wr(u, 4, 0x1a); /* loop-back, OUT2, RTS */
    assert_int_equal(rd(u, 6) & 0xf0, 0x90);
    wr(u, 4, 0);
    assert_int_equal(rd(u, 6) & 0xf0, 0xb0);
    assert_int_equal(rd(u, 2) & 0xc0, 0);
    wr(u, 2, 1);
    assert_int_equal(rd(u, 2) & 0xc0, 0xc0); /* 16550A */
    wr(u, 3, 0x80);
    wr(u, 2, 0x21);
    assert_int_equal(rd(u, 2) & 0x20, 0); /* no 64-byte FIFO */
    wr(u, 0, 1);
    wr(u, 1, 2);
    assert_int_equal(rd(u, 0), 1);
    assert_int_equal(rd(u, 1), 2);
    wr(u, 3, 3);
    assert_int_equal(rd(u, 1), 0);
    assert_int_equal(rd(u, 5), 0x60);
    uart_free(u);
}

static void test_output(void **state)
{
    (void)state;
    struct uart *u = uart_new();
    static const char line[] = "hello, world\n";
    for (const char *p = line; *p; p++) wr(u, 0, (uint8_t)*p);
    for (int i = 0; i < 4000 && text_len(u) < strlen(line); i++) sleep_us(500);
    assert_int_equal(text_len(u), strlen(line));
    assert_memory_equal(u->text, line, strlen(line));
    assert_true(u->calls < 5); /* gathered, not byte by byte */
    wr(u, 0, 'x');
    assert_true(serial_flush(u->s));
    assert_int_equal(text_len(u), strlen(line) + 1);
    uart_free(u);
}

static void test_tx_interrupt(void **state)
{
    (void)state;
    struct uart *u = uart_new();
    wr(u, 1, 2);
    assert_false(irq(u)); /* OUT2 keeps it from the bus */
    wr(u, 4, 8);
    assert_true(irq(u));
    assert_int_equal(rd(u, 2) & 0xf, 2);
    assert_false(irq(u)); /* reading IIR took it */
    assert_int_equal(rd(u, 2) & 0xf, 1);
    wr(u, 0, 'a');
    assert_true(irq(u));
    wr(u, 1, 0);
    assert_false(irq(u));
    wr(u, 1, 2); /* enabling it with an empty transmitter raises it */
    assert_true(irq(u));
    uart_free(u);
}

static void test_input(void **state)
{
    (void)state;
    struct uart *u = uart_new();
    wr(u, 2, 0xc1);
    wr(u, 4, 8);
    wr(u, 1, 1);
    assert_int_equal(serial_input(u->s, (const uint8_t *)"abc", 3), 3);
    assert_true(irq(u));
    assert_int_equal(rd(u, 2) & 0xf, 0xc); /* below the trigger: time-out */
    assert_int_equal(rd(u, 5) & 1, 1);
    assert_int_equal(rd(u, 0), 'a');
    assert_int_equal(rd(u, 0), 'b');
    assert_true(irq(u));
    assert_int_equal(rd(u, 0), 'c');
    assert_false(irq(u));
    assert_int_equal(rd(u, 5) & 1, 0);
    assert_int_equal(rd(u, 0), 0);
    static const uint8_t many[20] = {1};
    assert_int_equal(serial_input(u->s, many, 20), 20);
    assert_int_equal(rd(u, 2) & 0xf, 4);
    wr(u, 2, 0xc3); /* clears the FIFO; four bytes were still on the line */
    for (unsigned i = 0; i < 4; i++) {
        assert_true(irq(u));
        (void)rd(u, 0);
    }
    assert_false(irq(u));
    uart_free(u);
}

/* What comes before the guest listens waits, through all that a driver does when it finds and opens the port. */
static void test_early_input_waits(void **state)
{
    (void)state;
    struct uart *u = uart_new();
    assert_int_equal(serial_input(u->s, (const uint8_t *)"early", 5), 0);
    for (unsigned i = 0; i < 100; i++) { /* an early console */
        (void)rd(u, 5);
        wr(u, 0, '.');
    }
    wr(u, 2, 7);
    (void)rd(u, 5);
    (void)rd(u, 0);
    (void)rd(u, 2);
    assert_int_equal(atomic_load(&u->rooms), 0);
    assert_int_equal(serial_input(u->s, (const uint8_t *)"early", 5), 0);
    wr(u, 1, 0xf); /* a driver that looks which bits there are */
    wr(u, 1, 0);
    assert_int_equal(atomic_load(&u->rooms), 0);
    wr(u, 4, 0xb);
    wr(u, 1, 5);
    assert_int_equal(atomic_load(&u->rooms), 1); /* now it may come */
    assert_int_equal(serial_input(u->s, (const uint8_t *)"early", 5), 5);
    wr(u, 2, 0); /* Linux does this, in this order */
    wr(u, 2, 1);
    wr(u, 2, 0x81);
    assert_int_equal(rd(u, 5) & 1, 1);
    assert_int_equal(rd(u, 0), 'e');
    wr(u, 2, 0x83); /* now it knows what it throws away */
    assert_int_equal(rd(u, 5) & 1, 0);
    serial_reset(u->s);
    assert_int_equal(serial_input(u->s, (const uint8_t *)"x", 1), 0);
    uart_free(u);
}

static void test_input_back_pressure(void **state)
{
    (void)state;
    struct uart *u = uart_new();
    for (unsigned i = 0; i < 64; i++) (void)rd(u, 5); /* a guest that polls */
    static uint8_t big[5000];
    for (unsigned i = 0; i < sizeof big; i++) big[i] = (uint8_t)(i * 7);
    size_t sent = serial_input(u->s, big, sizeof big), got = 0;
    assert_true(sent > 0 && sent < sizeof big);
    assert_int_equal(serial_input(u->s, big, 1), 0);
    unsigned rooms = 0;
    while (got < sizeof big) {
        assert_int_equal(rd(u, 5) & 1, 1);
        assert_int_equal(rd(u, 0), big[got++]);
        if (atomic_load(&u->rooms) > rooms) {
            rooms = atomic_load(&u->rooms);
            sent += serial_input(u->s, big + sent, sizeof big - sent);
        }
    }
    assert_int_equal(sent, sizeof big);
    assert_int_equal(rd(u, 5) & 1, 0);
    uart_free(u);
}

/* The output takes nothing: the guest sees a full transmitter, loses nothing it waits for, and goes on later. */
static void test_output_back_pressure(void **state)
{
    (void)state;
    struct uart *u = uart_new();
    atomic_store(&u->accept, 0);
    size_t n = 0;
    while (rd(u, 5) & 0x20 && n < 1000000) wr(u, 0, (uint8_t)n++);
    assert_true(n > 1000 && n < 1000000);
    assert_false(serial_flush(u->s));
    wr(u, 1, 2);
    wr(u, 4, 8);
    assert_false(irq(u));
    atomic_store(&u->accept, 999);
    for (int i = 0; i < 4000 && !irq(u); i++) sleep_us(500);
    assert_true(irq(u));
    for (int i = 0; i < 8000 && text_len(u) < n; i++) sleep_us(500);
    assert_int_equal(text_len(u), n);
    for (size_t i = 0; i < n; i++) assert_int_equal(u->text[i], (uint8_t)i);
    uart_free(u);
}

static void test_loopback(void **state)
{
    (void)state;
    struct uart *u = uart_new();
    wr(u, 2, 1);
    wr(u, 4, 0x10);
    for (unsigned i = 0; i < 17; i++) wr(u, 0, (uint8_t)i);
    assert_int_equal(serial_input(u->s, (const uint8_t *)"x", 1), 0);
    assert_int_equal(rd(u, 5) & 3, 3); /* data and overrun */
    assert_int_equal(rd(u, 5) & 3, 1);
    for (unsigned i = 0; i < 16; i++) assert_int_equal(rd(u, 0), i);
    assert_int_equal(rd(u, 5) & 1, 0);
    assert_int_equal(text_len(u), 0); /* nothing left the machine */
    (void)rd(u, 6);
    wr(u, 4, 0x11); /* DTR -> DSR */
    assert_int_equal(rd(u, 6), 0x22);
    assert_int_equal(rd(u, 6), 0x20);
    wr(u, 4, 0x15);
    assert_int_equal(rd(u, 6), 0x60); /* the ring's rise does not count */
    wr(u, 4, 0x11);
    assert_int_equal(rd(u, 6), 0x24); /* its fall does */
    uart_free(u);
}

static void test_fuzz(void **state)
{
    (void)state;
    struct uart *u = uart_new();
    for (unsigned seed = 1; seed <= 20; seed++) {
        fuzz_ports(u->b, COM1, COM1 + 7, seed, 5000);
        uint8_t some[300] = {0};
        serial_input(u->s, some, sizeof some);
        if (seed % 5 == 0) atomic_store(&u->accept, seed % 10 ? 0 : SIZE_MAX);
    }
    serial_reset(u->s);
    assert_false(irq(u));
    assert_int_equal(rd(u, 5) & 1, 0);
    atomic_store(&u->accept, SIZE_MAX);
    pthread_mutex_lock(&u->lock);
    u->len = 0; /* room in the record */
    pthread_mutex_unlock(&u->lock);
    assert_true(serial_flush(u->s));
    size_t before = text_len(u);
    wr(u, 0, 'z');
    assert_true(serial_flush(u->s));
    assert_int_equal(text_len(u), before + 1);
    uart_free(u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_probe),
        cmocka_unit_test(test_output),
        cmocka_unit_test(test_tx_interrupt),
        cmocka_unit_test(test_input),
        cmocka_unit_test(test_early_input_waits),
        cmocka_unit_test(test_input_back_pressure),
        cmocka_unit_test(test_output_back_pressure),
        cmocka_unit_test(test_loopback),
        cmocka_unit_test(test_fuzz),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
