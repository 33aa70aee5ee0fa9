/* Numbers, escapes, and the console on pipes, files and a terminal. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include <cmocka.h>

#include "cli/cli.h"
#include "cli/console.h"
#include "common/clock.h"
#include "tests/unit/terminal_mode.h"

static struct nerr err;

static void test_size(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        {"512M", 512ull << 20}, {"1g", 1ull << 30}, {"64k", 65536}, {"2T", 2ull << 40},
        {"256", 256ull << 20},  {"0", 0},           {"0K", 0},      {"16777215T", 16777215ull << 40},
    };
    static const char *const bad[] = {"",
                                      "M",
                                      "-1",
                                      "-1M",
                                      "+1M",
                                      " 1M",
                                      "1 M",
                                      "1MB",
                                      "1MiB",
                                      "1.5G",
                                      "0x10M",
                                      "12Q",
                                      "M512",
                                      "16777216T",
                                      "18446744073709551615M",
                                      "99999999999999999999",
                                      "18446744073709551616K"};
    uint64_t v;
    for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_int_equal(cli_parse_size("--memory", good[i].text, &v, &err), 0);
        assert_true(v == good[i].bytes);
    }
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        strcpy(err.text, "");
        assert_true(cli_parse_size("--memory", bad[i], &v, &err) < 0);
        assert_non_null(strstr(err.text, "--memory"));
        assert_non_null(strstr(err.text, bad[i]));
    }
}

static void test_number(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "", "0", "65", "-1", "+1", "0x", "0xg", "1x", " 1", "1 ", "1e1", "99999999999999999999", "0x41"};
    uint64_t v;
    assert_int_equal(cli_parse_number("--cpus", "64", 1, 64, &v, &err), 0);
    assert_int_equal(v, 64);
    assert_int_equal(cli_parse_number("--cpus", "0x10", 1, 64, &v, &err), 0);
    assert_int_equal(v, 16);
    assert_int_equal(cli_parse_number("--cpus", "010", 1, 64, &v, &err), 0);
    assert_int_equal(v, 10); /* no octal surprises */
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_true(cli_parse_number("--cpus", bad[i], 1, 64, &v, &err) < 0);
}

static enum console_command type(struct console_escape *s, const char *keys, char *out)
{
    enum console_command last = CONSOLE_NONE;
    size_t len = 0;
    for (; *keys; keys++) {
        uint8_t buf[2];
        size_t n;
        last = console_escape_key(s, (uint8_t)*keys, buf, &n);
        memcpy(out + len, buf, n);
        len += n;
    }
    out[len] = 0;
    return last;
}

static void test_escape(void **state)
{
    (void)state;
    struct console_escape s = {0};
    char out[32];
    assert_int_equal(type(&s, "abc\x03", out), CONSOLE_NONE);
    assert_string_equal(out, "abc\x03"); /* Ctrl-C is the guest's */
    assert_int_equal(type(&s, "\x01x", out), CONSOLE_QUIT);
    assert_string_equal(out, "");
    assert_int_equal(type(&s, "\x01h", out), CONSOLE_HELP);
    assert_int_equal(type(&s, "\x01p", out), CONSOLE_POWER);
    assert_int_equal(type(&s, "\x01\x01", out), CONSOLE_NONE);
    assert_string_equal(out, "\x01");
    assert_int_equal(type(&s, "\x01\x61x", out), CONSOLE_NONE);
    assert_string_equal(out, "\x01x"); /* the x behind it is plain */
    assert_int_equal(type(&s, "\x01q", out), CONSOLE_NONE);
    assert_string_equal(out, "\x01q");
    assert_int_equal(type(&s, "\x01", out), CONSOLE_NONE);
    assert_true(s.armed);
    assert_int_equal(type(&s, "x", out), CONSOLE_QUIT);
}

static void test_engine_names(void **state)
{
    (void)state;
    const struct engine_ops *ops;
    struct nerr why;
    assert_int_equal(cli_pick_engine("soft", &ops, &why, &err), 0);
    assert_string_equal(ops->name, "soft");
    assert_string_equal(why.text, "");
    /* What this host offers decides, but a fall-back is never silent. (Hosts of all kinds: test_kvm_host.) */
    assert_int_equal(cli_pick_engine("auto", &ops, &why, &err), 0);
    if (ops == &engine_kvm)
        assert_string_equal(why.text, "");
    else
        assert_int_equal(strncmp(why.text, "engine soft, since ", 19), 0);
    if (cli_pick_engine("kvm", &ops, &why, &err) < 0) {
        assert_int_equal(strncmp(err.text, "--engine kvm: ", 14), 0);
        assert_non_null(strstr(err.text, "--engine soft"));
    } else {
        assert_ptr_equal(ops, &engine_kvm);
    }
    assert_true(cli_pick_engine("", &ops, &why, &err) < 0);
}

static struct console *open_on(int in, int out)
{
    struct console *c = NULL;
    assert_int_equal(console_open(&(struct console_config){.in = in, .out = out}, &c, &err), 0);
    return c;
}

static void test_output(void **state)
{
    (void)state;
    static uint8_t data[200000];
    static uint8_t got[sizeof(data)];
    int p[2];
    for (size_t i = 0; i < sizeof(data); i++) data[i] = (uint8_t)(i * 31 >> 3);
    assert_int_equal(pipe(p), 0);
    struct console *c = open_on(-1, p[1]);
    uint64_t start = clock_mono_ns();
    size_t taken = console_output(c, data, sizeof(data)), read_so_far = 0;
    assert_true(taken > 0 && taken < sizeof(data)); /* the pipe is full, and nobody waited for it */
    assert_int_equal(console_output(c, data + taken, sizeof(data) - taken), 0);
    assert_true(clock_mono_ns() - start < 1000000000);
    while (read_so_far < sizeof(data)) {
        ssize_t n = read(p[0], got + read_so_far, sizeof(got) - read_so_far);
        assert_true(n > 0);
        read_so_far += (size_t)n;
        taken += console_output(c, data + taken, sizeof(data) - taken);
    }
    assert_memory_equal(data, got, sizeof(data));
    close(p[0]);
    signal(SIGPIPE, SIG_IGN);
    assert_int_equal(console_output(c, data, 1000), 1000); /* swallowed: nobody listens any more */
    console_close(c);
    close(p[1]);
}

static void test_terminal_untouched(void **state)
{
    (void)state;
    int master, slave;
    struct termios before, after;
    assert_int_equal(openpty(&master, &slave, NULL, NULL, NULL), 0);
    assert_int_equal(tcgetattr(slave, &before), 0);
    struct console *c = open_on(slave, slave);
    assert_int_equal(console_output(c, (const uint8_t *)"hello", 5), 5);
    console_close(c);
    assert_int_equal(tcgetattr(slave, &after), 0);
    same_mode(&before, &after);
    char buf[8] = "";
    assert_int_equal(read(master, buf, 5), 5);
    assert_string_equal(buf, "hello");
    close(master);
    close(slave);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_size),         cmocka_unit_test(test_number), cmocka_unit_test(test_escape),
        cmocka_unit_test(test_engine_names), cmocka_unit_test(test_output), cmocka_unit_test(test_terminal_untouched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
