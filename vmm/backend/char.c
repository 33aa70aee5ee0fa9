#define _GNU_SOURCE
#include "vmm/backend/char.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/event.h"
#include "common/log.h"
#include "vmm/backend/unix.h"

/* A terminal that nobody has open reports a hang-up for ever, so it is looked at from time to time instead. */
#define LOOK_NS 100000000ull
#define CHUNK 4096

struct chardev {
    enum char_kind kind;
    const char *name;
    struct event_loop *loop;
    struct char_port port;
    char where[256], link[256];
    int listener;             /* CHAR_SOCKET */
    struct event_timer timer; /* looks again: for somebody at a terminal, for descriptors to accept a client with */

    pthread_mutex_t lock;
    int fd;         /* terminal, client or file; -1: none */
    bool watched;   /* is in the loop: somebody is there */
    bool want_room; /* char_write() could not take all */
    bool stalled;   /* the front end has no room for input */
    bool posted;
    bool failed;

    /* The loop's thread: input that was read and not taken. */
    bool draining;
    uint8_t data[CHUNK];
    size_t len, taken;
};

static void on_event(void *ctx, uint32_t events);

/* With the lock. */
static void set_events(struct chardev *c)
{
    if (!c->watched) return;
    event_fd_modify(c->loop, c->fd, (c->stalled ? 0 : EPOLLIN) | (c->want_room ? EPOLLOUT : 0));
}

static void attach(struct chardev *c, int fd)
{
    struct nerr e;
    pthread_mutex_lock(&c->lock);
    c->fd = fd;
    c->watched = !event_fd_add(c->loop, fd, 0, on_event, c, &e);
    set_events(c);
    pthread_mutex_unlock(&c->lock);
}

/* The peer went away. What it did not read is lost, and writers go on. */
static void detach(struct chardev *c)
{
    pthread_mutex_lock(&c->lock);
    if (c->watched) event_fd_remove(c->loop, c->fd);
    c->watched = c->draining = false;
    bool room = c->want_room;
    c->want_room = false;
    if (c->kind == CHAR_SOCKET) {
        if (c->fd >= 0) close(c->fd);
        c->fd = -1;
        event_fd_modify(c->loop, c->listener, EPOLLIN);
    } else {
        event_timer_arm(&c->timer, clock_mono_ns() + LOOK_NS, LOOK_NS);
    }
    pthread_mutex_unlock(&c->lock);
    if (room) c->port.writable(c->port.ctx);
}

/* ---- input; the loop's thread ---- */

/* Notes that input waits for the front end; true when that was known before. */
static bool stall(struct chardev *c)
{
    pthread_mutex_lock(&c->lock);
    bool before = c->stalled;
    c->stalled = true;
    set_events(c);
    pthread_mutex_unlock(&c->lock);
    return before;
}

/* False when the front end is full. It is asked once more after the stall is known, since it may have got room just before. */
static bool deliver(struct chardev *c)
{
    while (c->taken < c->len) {
        size_t n = c->port.input(c->port.ctx, c->data + c->taken, c->len - c->taken);
        c->taken += n;
        if (!n && stall(c)) return false;
    }
    pthread_mutex_lock(&c->lock);
    c->stalled = false;
    set_events(c);
    pthread_mutex_unlock(&c->lock);
    return true;
}

/* Reads what there is once; false at the end of input. */
static bool pull(struct chardev *c)
{
    ssize_t n = read(c->fd, c->data, sizeof(c->data));
    c->taken = 0;
    c->len = n > 0 ? (size_t)n : 0;
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

/* The peer hung up with input that we had no room for: it is read to its end first. */
static void drain(struct chardev *c)
{
    while (deliver(c)) {
        if (pull(c) && c->len) continue;
        detach(c);
        return;
    }
}

static void on_ready(void *ctx)
{
    struct chardev *c = ctx;
    pthread_mutex_lock(&c->lock);
    c->posted = false;
    c->stalled = false;
    pthread_mutex_unlock(&c->lock);
    if (c->draining)
        drain(c);
    else
        deliver(c);
}

void char_input_ready(struct chardev *c)
{
    pthread_mutex_lock(&c->lock);
    if (c->stalled && !c->posted) c->posted = !event_loop_post(c->loop, on_ready, c);
    pthread_mutex_unlock(&c->lock);
}

static void on_event(void *ctx, uint32_t events)
{
    struct chardev *c = ctx;
    if (events & EPOLLOUT) {
        pthread_mutex_lock(&c->lock);
        c->want_room = false;
        set_events(c);
        pthread_mutex_unlock(&c->lock);
        c->port.writable(c->port.ctx);
    }
    if (events & EPOLLIN && c->taken == c->len) {
        if (pull(c))
            deliver(c);
        else
            detach(c);
    } else if (events & (EPOLLHUP | EPOLLERR)) {
        pthread_mutex_lock(&c->lock);
        event_fd_remove(c->loop, c->fd); /* or it would be reported again and again */
        c->watched = false;
        pthread_mutex_unlock(&c->lock);
        c->draining = true;
        drain(c);
    }
}

/* ---- output ---- */

size_t char_write(struct chardev *c, const void *data, size_t len)
{
    pthread_mutex_lock(&c->lock);
    size_t done = 0;
    bool there = c->kind == CHAR_FILE || c->watched;
    while (there && done < len) {
        const uint8_t *p = (const uint8_t *)data + done;
        ssize_t n = c->kind == CHAR_SOCKET ? send(c->fd, p, len - done, MSG_NOSIGNAL) : write(c->fd, p, len - done);
        if (n > 0) {
            done += (size_t)n;
            continue;
        }
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN && c->kind != CHAR_FILE) {
            c->want_room = true;
            set_events(c);
            pthread_mutex_unlock(&c->lock);
            return done;
        }
        if (c->kind == CHAR_FILE && !c->failed) nc_warn("%s: cannot write %s: %s", c->name, c->where, strerror(errno));
        c->failed = true;
        break;
    }
    pthread_mutex_unlock(&c->lock);
    return len;
}

/* ---- the three kinds ---- */

static void look(void *ctx)
{
    struct chardev *c = ctx;
    struct pollfd p = {.fd = c->fd};
    if (c->kind == CHAR_SOCKET) { /* there may be descriptors now */
        event_listen(c->loop, c->listener);
        return;
    }
    if (poll(&p, 1, 0) >= 0 && !(p.revents & POLLHUP)) {
        event_timer_cancel(&c->timer);
        attach(c, c->fd);
    }
}

static int open_pty(struct chardev *c, const struct char_config *cfg, struct nerr *e)
{
    struct termios t;
    c->fd = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (c->fd < 0 || grantpt(c->fd) || unlockpt(c->fd) || ptsname_r(c->fd, c->where, sizeof(c->where)))
        return nerr_set(e, -errno, "%s: no pseudo-terminal: %s", cfg->name, strerror(errno));
    /* Raw, so that a program which opens it and sets nothing gets bytes as they are. Closing it again starts the hang-up. */
    int fd = open(c->where, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 || tcgetattr(fd, &t))
        return nerr_set(e, -errno, "%s: cannot open %s: %s", cfg->name, c->where, strerror(errno));
    cfmakeraw(&t);
    tcsetattr(fd, TCSANOW, &t);
    close(fd);
    if (cfg->path) {
        if (strlen(cfg->path) >= sizeof(c->link))
            return nerr_set(e, -ENAMETOOLONG,
                            "%s: the path %.60s... is too long for a link; give at most %zu characters", cfg->name,
                            cfg->path, sizeof(c->link) - 1);
        if (symlink(c->where, cfg->path))
            return nerr_set(e, -errno, "%s: cannot link %s to %s: %s; remove what is there or give another path",
                            cfg->name, cfg->path, c->where, strerror(errno));
        strcpy(c->link, cfg->path);
    }
    nc_info("%s is on %s", cfg->name, c->where);
    event_timer_arm(&c->timer, clock_mono_ns(), LOOK_NS);
    return 0;
}

static void on_client(void *ctx, uint32_t events)
{
    struct chardev *c = ctx;
    (void)events;
    int fd = event_accept(c->loop, c->listener, &c->timer);
    if (fd < 0) return;
    event_fd_modify(c->loop, c->listener, 0); /* one at a time: others wait in the queue */
    attach(c, fd);
}

static int open_socket(struct chardev *c, const struct char_config *cfg, struct nerr *e)
{
    snprintf(c->where, sizeof(c->where), "%s", cfg->path);
    int r = unix_listen(cfg->name, cfg->path, &c->listener, e);
    return r ? r : event_fd_add(c->loop, c->listener, EPOLLIN, on_client, c, e);
}

static int open_file(struct chardev *c, const struct char_config *cfg, struct nerr *e)
{
    snprintf(c->where, sizeof(c->where), "%s", cfg->path);
    struct stat s;
    /* Not to wait for a reader, nor, with a vCPU, for a terminal that takes nothing. */
    c->fd = open(cfg->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);
    int err = c->fd < 0 ? errno : 0;
    bool pipe =
        c->fd < 0 ? stat(cfg->path, &s) == 0 && S_ISFIFO(s.st_mode) : fstat(c->fd, &s) == 0 && S_ISFIFO(s.st_mode);
    if (pipe)
        return nerr_set(e, -EINVAL, "%s: %s is a pipe, which could hold the guest up; give a file or socket=PATH",
                        cfg->name, cfg->path);
    if (c->fd < 0)
        return nerr_set(e, -err, "%s: cannot write %s: %s; give another file", cfg->name, cfg->path, strerror(err));
    return 0;
}

int char_open(const struct char_config *cfg, struct event_loop *loop, const struct char_port *port,
              struct chardev **out, struct nerr *e)
{
    *out = NULL;
    struct chardev *c = calloc(1, sizeof(*c));
    if (!c) return nerr_set(e, -ENOMEM, "%s: out of memory", cfg->name);
    c->kind = cfg->kind;
    c->name = cfg->name;
    c->loop = loop;
    c->port = *port;
    c->fd = c->listener = -1;
    pthread_mutex_init(&c->lock, NULL);
    event_timer_init(&c->timer, loop, look, c);
    int r = c->kind == CHAR_PTY      ? open_pty(c, cfg, e)
            : c->kind == CHAR_SOCKET ? open_socket(c, cfg, e)
                                     : open_file(c, cfg, e);
    if (r)
        char_close(c);
    else
        *out = c;
    return r;
}

void char_close(struct chardev *c)
{
    if (!c) return;
    event_timer_destroy(&c->timer);
    if (c->watched) event_fd_remove(c->loop, c->fd);
    if (c->fd >= 0) close(c->fd);
    if (c->listener >= 0) {
        event_fd_remove(c->loop, c->listener);
        close(c->listener);
        unlink(c->where);
    }
    if (c->link[0]) unlink(c->link);
    pthread_mutex_destroy(&c->lock);
    free(c);
}
