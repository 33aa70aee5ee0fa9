#define _GNU_SOURCE
#include "cli/console.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "common/event.h"
#include "vmm/machine/machine.h"

/* How much a descriptor that poll() calls writable takes without blocking: a pipe a page, a terminal its low-water mark. */
#define PIPE_CHUNK 4096
#define TTY_CHUNK 256

static const char help_text[] = "\n"
                                "Ctrl-A x       end the virtual machine at once\n"
                                "Ctrl-A p       press its power button\n"
                                "Ctrl-A Ctrl-A  send Ctrl-A to the guest (also Ctrl-A a)\n"
                                "Ctrl-A h       this help\n";

struct console {
    int in, out, signals;
    bool in_tty, out_tty;
    bool raw; /* the terminal's mode was changed: `saved` is to be restored */
    struct termios saved;
    bool watched;  /* `in` is in the event loop */
    bool pollable; /* false: a regular file, read whenever the guest has room */
    bool eof;
    struct machine *machine;
    struct event_loop *loop;
    struct console_escape escape;
    atomic_bool room_posted;
    uint8_t pending[4096]; /* read, not yet taken by the guest */
    size_t start, end;
};

/* ---- terminal ---- */

static int make_raw(struct console *c, struct nerr *e)
{
    struct termios t;
    if (!c->in_tty) return 0;
    if (tcgetattr(c->in, &c->saved)) return nerr_set(e, -errno, "terminal: cannot read its mode: %s", strerror(errno));
    t = c->saved;
    cfmakeraw(&t);
    t.c_oflag |= OPOST; /* our own messages end in a bare line feed; a guest's CR LF comes out the same */
    if (tcsetattr(c->in, TCSANOW, &t))
        return nerr_set(e, -errno, "terminal: cannot change its mode: %s", strerror(errno));
    c->raw = true;
    return 0;
}

int console_open(const struct console_config *cfg, struct console **out, struct nerr *e)
{
    struct console *c = calloc(1, sizeof(*c));
    *out = NULL;
    if (!c) return nerr_set(e, -ENOMEM, "console: out of memory");
    c->in = cfg->in;
    c->out = cfg->out;
    c->signals = -1;
    c->in_tty = c->in >= 0 && isatty(c->in);
    c->out_tty = c->out >= 0 && isatty(c->out);
    c->pollable = true;
    c->eof = c->in < 0;
    *out = c;
    return 0;
}

void console_close(struct console *c)
{
    if (!c) return;
    if (c->loop) {
        if (c->watched) event_fd_remove(c->loop, c->in);
        if (c->signals >= 0) event_fd_remove(c->loop, c->signals);
    }
    if (c->raw) tcsetattr(c->in, TCSANOW, &c->saved); /* waiting for output to drain, we could wait for ever */
    if (c->signals >= 0) close(c->signals);
    free(c);
}

/* ---- output ---- */

/* False when the console is gone for good. */
static bool writable_now(int fd, bool *ready)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    *ready = poll(&p, 1, 0) == 1 && p.revents & POLLOUT;
    return !(p.revents & (POLLERR | POLLNVAL));
}

size_t console_output(void *ctx, const uint8_t *data, size_t len)
{
    struct console *c = ctx;
    size_t done = 0, chunk = c->out_tty ? TTY_CHUNK : PIPE_CHUNK;
    while (done < len) {
        bool ready;
        if (c->out < 0 || !writable_now(c->out, &ready)) {
            c->out = -1; /* nobody reads any more: the guest must not notice */
            return len;
        }
        if (!ready) break;
        ssize_t n = write(c->out, data + done, len - done < chunk ? len - done : chunk);
        if (n > 0)
            done += (size_t)n;
        else if (n < 0 && errno == EAGAIN)
            break;
        else if (n < 0 && errno != EINTR)
            c->out = -1;
    }
    return done;
}

static void say(struct console *c, const char *text)
{
    console_output(c, (const uint8_t *)text, strlen(text));
}

/* ---- input ---- */

static void on_input(void *ctx, uint32_t events);

static void watch_input(struct console *c, bool on)
{
    struct nerr e;
    if (on == c->watched || !c->pollable) return;
    if (!on) {
        event_fd_remove(c->loop, c->in);
        c->watched = false;
        return;
    }
    int r = event_fd_add(c->loop, c->in, EPOLLIN, on_input, c, &e);
    c->watched = r == 0;
    if (r) c->pollable = false; /* a regular file or /dev/null: always readable */
}

static void queue(struct console *c, const uint8_t *data, size_t n)
{
    for (size_t i = 0; i < n && c->end < sizeof(c->pending); i++)
        c->pending[c->end++] = data[i]; /* keys typed into a guest that takes none are dropped at last */
}

static void command(struct console *c, enum console_command cmd)
{
    if (cmd == CONSOLE_QUIT)
        machine_stop(c->machine, MACHINE_EXIT_OK);
    else if (cmd == CONSOLE_HELP)
        say(c, help_text);
    else if (cmd == CONSOLE_POWER)
        machine_power_button(c->machine);
}

/* One read. False when there is nothing more for now. */
static bool read_some(struct console *c)
{
    uint8_t buf[1024];
    ssize_t n = read(c->in, buf, sizeof(buf));
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return false;
    if (n <= 0) {
        c->eof = true; /* the machine goes on without */
        watch_input(c, false);
        return false;
    }
    if (!c->in_tty) {
        queue(c, buf, (size_t)n);
        return true;
    }
    for (ssize_t i = 0; i < n; i++) {
        uint8_t out[2];
        size_t k;
        command(c, console_escape_key(&c->escape, buf[i], out, &k));
        queue(c, out, k);
    }
    return true;
}

/* Gives the guest what it takes. True when all of it went. */
static bool deliver(struct console *c)
{
    while (c->start < c->end) {
        size_t n = machine_serial_input(c->machine, c->pending + c->start, c->end - c->start);
        c->start += n;
        if (n == 0) break;
    }
    if (c->start == c->end) {
        c->start = c->end = 0;
        return true;
    }
    if (c->start > sizeof(c->pending) / 2) {
        memmove(c->pending, c->pending + c->start, c->end - c->start);
        c->end -= c->start;
        c->start = 0;
    }
    return false;
}

static void pump(void *ctx)
{
    struct console *c = ctx;
    atomic_store(&c->room_posted, false);
    bool empty = deliver(c);
    while (empty && !c->pollable && !c->eof && read_some(c)) empty = deliver(c);
    /* A pipe waits while the guest takes nothing. A terminal is always read, or Ctrl-A x would not be seen. */
    if (!c->eof) watch_input(c, empty || c->in_tty);
    if (!c->eof && !c->pollable && empty) pump(c); /* the descriptor turned out to be a file just now */
}

static void on_input(void *ctx, uint32_t events)
{
    (void)events;
    struct console *c = ctx;
    if (!c->eof) read_some(c);
    pump(c);
}

void console_room(void *ctx)
{
    struct console *c = ctx;
    if (c->machine && !atomic_exchange(&c->room_posted, true) && event_loop_post(machine_loop(c->machine), pump, c))
        atomic_store(&c->room_posted, false);
}

/* ---- signals ---- */

static void on_signal(void *ctx, uint32_t events)
{
    (void)events;
    struct console *c = ctx;
    struct signalfd_siginfo s;
    if (read(c->signals, &s, sizeof(s)) == sizeof(s)) machine_stop(c->machine, 128 + (int)s.ssi_signo);
}

void console_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGHUP);
    sigaddset(set, SIGQUIT);
}

int console_attach(struct console *c, struct machine *m, struct nerr *e)
{
    sigset_t set;
    console_signals(&set);
    c->machine = m;
    c->loop = machine_loop(m);
    c->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (c->signals < 0) return nerr_set(e, -errno, "console: signalfd: %s", strerror(errno));
    int r = event_fd_add(c->loop, c->signals, EPOLLIN, on_signal, c, e);
    if (!r) r = make_raw(c, e);
    if (!r) pump(c);
    return r;
}
