/* The console on a real terminal pair, around a machine with the scripted engine: raw mode, escapes, signals, and that the terminal is
 * as before afterwards. The machine runs in a child process, as it does in life. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "cli/console.h"
#include "common/clock.h"
#include "tests/unit/terminal_mode.h"
#include "tests/unit/tiny_kernel.h"
#include "vmm/engine/fake/fake.h"
#include "vmm/machine/machine.h"

#define COM1 0x3f8
#define DEBUG_PORT 0xf4
#define SECONDS 1000000000ull

static char kernel[64];

struct run {
    pid_t child;
    int master, slave; /* the terminal; or the ends of pipes */
    struct termios before;
};

/* Echo guest: polls the line status, reads a byte, writes it back; 'q' ends it. */
static void line_status(void *ctx, unsigned vcpu, const struct vcpu_exit *x)
{
    (void)ctx;
    if (x->io.data[0] & 1) return;
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    fake_jump(vcpu, 0);
}

static void got_byte(void *ctx, unsigned vcpu, const struct vcpu_exit *x)
{
    struct fake_step *out = ctx;
    out->exit.io.data[0] = x->io.data[0];
    if (x->io.data[0] == 'q') fake_jump(vcpu, 4);
}

static void again(void *ctx, unsigned vcpu)
{
    (void)ctx;
    fake_jump(vcpu, 0);
}

static _Noreturn void child(int in, int out, bool echo_guest)
{
    struct nerr e;
    struct console *c = NULL;
    struct machine *m = NULL;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGQUIT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    static struct fake_step hello[2], echo[5];
    hello[0] = fake_out(COM1, 1, 'r');
    hello[1] = fake_out(COM1, 1, '\n');
    echo[0] = fake_in(COM1 + 5, 1, line_status, NULL);
    echo[1] = fake_in(COM1, 1, got_byte, &echo[2]);
    echo[2] = fake_out(COM1, 1, 0);
    echo[3] = fake_do(again, NULL);
    echo[4] = fake_out(DEBUG_PORT, 1, 0);
    if (echo_guest)
        fake_script(0, echo, 5);
    else
        fake_script(0, hello, 2);
    struct machine_config cfg = {.name = "test",
                                 .kernel = kernel,
                                 .memory = 16 << 20,
                                 .cpus = 1,
                                 .engine = &engine_fake,
                                 .debug_exit_port = DEBUG_PORT,
                                 .console = {.output = console_output, .room = console_room}};
    int status = 99;
    if (console_open(&(struct console_config){.in = in, .out = out}, &c, &e) == 0) {
        cfg.console.ctx = c;
        if (machine_create(&cfg, &m, &e) == 0 && console_attach(c, m, &e) == 0) status = machine_run(m);
    }
    if (status == 99) fprintf(stderr, "%s\n", e.text);
    console_close(c);
    machine_destroy(m);
    _exit(status);
}

static struct run start_on_tty(bool echo_guest)
{
    struct run r;
    assert_int_equal(openpty(&r.master, &r.slave, NULL, NULL, NULL), 0);
    assert_int_equal(tcgetattr(r.slave, &r.before), 0);
    fflush(NULL);
    r.child = fork();
    assert_true(r.child >= 0);
    if (r.child == 0) child(r.slave, r.slave, echo_guest);
    return r;
}

static bool is_raw(const struct run *r)
{
    struct termios t;
    assert_int_equal(tcgetattr(r->slave, &t), 0);
    return !(t.c_lflag & (ICANON | ECHO | ISIG));
}

/* Reads until `text` came by. */
static bool expect(int fd, const char *text)
{
    char buf[4096];
    size_t len = 0;
    uint64_t end = clock_mono_ns() + 20 * SECONDS;
    while (clock_mono_ns() < end && len < sizeof(buf) - 1) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 100) == 1) {
            ssize_t n = read(fd, buf + len, sizeof(buf) - 1 - len);
            if (n <= 0) return false;
            len += (size_t)n;
            buf[len] = 0;
            if (strstr(buf, text)) return true;
        }
    }
    return false;
}

static int finish(struct run *r)
{
    int status = 0;
    uint64_t end = clock_mono_ns() + 20 * SECONDS;
    pid_t p;
    while ((p = waitpid(r->child, &status, WNOHANG)) == 0 && clock_mono_ns() < end)
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    if (p == 0) {
        kill(r->child, SIGKILL);
        waitpid(r->child, &status, 0);
        fail_msg("the run did not end");
    }
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void check_restored(struct run *r)
{
    struct termios after;
    assert_int_equal(tcgetattr(r->slave, &after), 0);
    same_mode(&after, &r->before);
    close(r->master);
    close(r->slave);
}

static void type(int fd, const char *keys)
{
    assert_int_equal(write(fd, keys, strlen(keys)), strlen(keys));
}

static void test_quit(void **state)
{
    (void)state;
    struct run r = start_on_tty(false);
    assert_true(expect(r.master, "r"));
    assert_true(is_raw(&r));
    type(r.master, "typed into a guest that reads nothing, more than any port holds: "
                   "0123456789012345678901234567890123456789012345678901234567890123456789\x01");
    type(r.master, "h");
    assert_true(expect(r.master, "Ctrl-A"));
    type(r.master, "\x01");
    type(r.master, "x");
    assert_int_equal(finish(&r), 0);
    check_restored(&r);
}

static void test_signals(void **state)
{
    (void)state;
    static const int sig[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT};
    for (unsigned i = 0; i < sizeof(sig) / sizeof(sig[0]); i++) {
        struct run r = start_on_tty(false);
        assert_true(expect(r.master, "r"));
        assert_true(is_raw(&r));
        kill(r.child, sig[i]);
        assert_int_equal(finish(&r), 128 + sig[i]);
        check_restored(&r);
    }
}

static void test_echo_on_terminal(void **state)
{
    (void)state;
    struct run r = start_on_tty(true);
    type(r.master, "abc");
    assert_true(expect(r.master, "abc"));
    type(r.master, "\x01\x01z"); /* one Ctrl-A for the guest */
    assert_true(expect(r.master, "\x01z"));
    type(r.master, "q");
    assert_int_equal(finish(&r), 1);
    check_restored(&r);
}

static struct run start_on_pipes(int in, int *out)
{
    struct run r = {.master = -1, .slave = -1};
    int p[2];
    assert_int_equal(pipe(p), 0);
    fflush(NULL);
    r.child = fork();
    assert_true(r.child >= 0);
    if (r.child == 0) {
        close(p[0]);
        child(in, p[1], true);
    }
    close(p[1]);
    *out = p[0];
    return r;
}

#define LONG_TEXT "Plain bytes, more than a port's FIFO holds at once, \x01x among them; all of them must come through."

static void test_pipe(void **state)
{
    (void)state;
    int in[2], out;
    assert_int_equal(pipe(in), 0);
    struct run r = start_on_pipes(in[0], &out);
    close(in[0]);
    type(in[1], LONG_TEXT);
    assert_true(expect(out, LONG_TEXT));
    type(in[1], "q");
    close(in[1]); /* the end of input is not the end of the run; the q is */
    assert_int_equal(finish(&r), 1);
    close(out);
}

static void test_end_of_input(void **state)
{
    (void)state;
    int in[2], out, status;
    assert_int_equal(pipe(in), 0);
    fflush(NULL);
    struct run r = start_on_pipes(in[0], &out);
    close(in[0]);
    type(in[1], "last words");
    close(in[1]);
    assert_true(expect(out, "last words"));
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    assert_int_equal(waitpid(r.child, &status, WNOHANG), 0); /* still there */
    kill(r.child, SIGTERM);
    assert_int_equal(finish(&r), 128 + SIGTERM);
    close(out);
}

static void test_file(void **state)
{
    (void)state;
    int out;
    FILE *f = tmpfile();
    assert_non_null(f);
    fputs(LONG_TEXT "q", f);
    rewind(f);
    struct run r = start_on_pipes(fileno(f), &out);
    assert_true(expect(out, LONG_TEXT));
    assert_int_equal(finish(&r), 1);
    fclose(f);
    close(out);
}

static void test_closed_output(void **state)
{
    (void)state;
    int in[2], out;
    assert_int_equal(pipe(in), 0);
    struct run r = start_on_pipes(in[0], &out);
    close(in[0]);
    close(out);
    type(in[1], LONG_TEXT "q");
    assert_int_equal(finish(&r), 1);
    close(in[1]);
}

static int setup(void **state)
{
    (void)state;
    snprintf(kernel, sizeof(kernel), "/tmp/nacelle-test-console-%ld", (long)getpid());
    return tiny_kernel_write(kernel);
}

static int teardown(void **state)
{
    (void)state;
    unlink(kernel);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quit),
        cmocka_unit_test(test_signals),
        cmocka_unit_test(test_echo_on_terminal),
        cmocka_unit_test(test_pipe),
        cmocka_unit_test(test_end_of_input),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_closed_output),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
