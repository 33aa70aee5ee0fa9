#define _GNU_SOURCE
#include "common/event.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common/clock.h"

#define HEAP_ROOM 256
#define ACCEPT_REST_NS 100000000ull

struct post {
    struct post *next;
    void (*fn)(void *ctx);
    void *ctx;
};

struct watcher {
    struct watcher *next;
    int fd;
    uint32_t serial; /* tells apart two watchers that used the same fd one after the other */
    void (*fn)(void *ctx, uint32_t events);
    void *ctx;
};

/* epoll_event.data of the loop's own descriptors; watchers carry their serial, which starts above. */
enum { SERIAL_TIMER, SERIAL_WAKE, SERIAL_FIRST };

struct event_loop {
    int epoll_fd, timer_fd, wake_fd;
    atomic_bool stop;
    pthread_mutex_t lock; /* guards all below; a leaf: nothing is called with it held */
    pthread_cond_t timer_done;
    struct post *posts, **posts_tail;
    struct watcher *watchers;
    uint32_t next_serial;
    struct event_timer **heap; /* binary heap by deadline */
    uint32_t timers, heap_room;
    uint64_t programmed;         /* deadline in the timerfd; UINT64_MAX: none */
    struct event_timer *running; /* whose callback runs now */
    pthread_t thread;            /* valid while in_run */
    bool in_run;
    bool timers_due; /* the loop is about to look at the heap anyway: no need to program the timerfd */
};

/* ---- heap ---- */

static void heap_put(struct event_loop *l, uint32_t i, struct event_timer *t)
{
    l->heap[i] = t;
    t->slot = i + 1;
}

static void heap_up(struct event_loop *l, uint32_t i, struct event_timer *t)
{
    while (i > 0) {
        uint32_t parent = (i - 1) / 2;
        if (l->heap[parent]->deadline <= t->deadline) break;
        heap_put(l, i, l->heap[parent]);
        i = parent;
    }
    heap_put(l, i, t);
}

static void heap_down(struct event_loop *l, uint32_t i, struct event_timer *t)
{
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= l->timers) break;
        if (child + 1 < l->timers && l->heap[child + 1]->deadline < l->heap[child]->deadline) child++;
        if (l->heap[child]->deadline >= t->deadline) break;
        heap_put(l, i, l->heap[child]);
        i = child;
    }
    heap_put(l, i, t);
}

static void heap_remove(struct event_loop *l, struct event_timer *t)
{
    if (!t->slot) return;
    uint32_t i = t->slot - 1;
    struct event_timer *last = l->heap[--l->timers];
    t->slot = 0;
    if (last == t) return;
    if (i > 0 && last->deadline < l->heap[(i - 1) / 2]->deadline)
        heap_up(l, i, last);
    else
        heap_down(l, i, last);
}

/* The initial room is enough for every timer a machine has, so that arming never needs memory in practice. */
static bool heap_reserve(struct event_loop *l, uint32_t room)
{
    if (room <= l->heap_room) return true;
    uint32_t n = l->heap_room ? l->heap_room * 2 : HEAP_ROOM;
    while (n < room) n *= 2;
    struct event_timer **h = realloc(l->heap, n * sizeof *h);
    if (!h) return false;
    l->heap = h;
    l->heap_room = n;
    return true;
}

/* ---- timers ---- */

/* A later earliest deadline leaves the timerfd alone: it fires once for nothing and is programmed anew then. That
 * halves the system calls of a guest that re-arms its tick all the time. */
static void program(struct event_loop *l)
{
    uint64_t first = l->timers ? l->heap[0]->deadline : UINT64_MAX;
    if (first >= l->programmed) return;
    l->programmed = first;
    struct itimerspec its = {.it_value = {(time_t)(first / 1000000000ull), (long)(first % 1000000000ull)}};
    if (first == 0) its.it_value.tv_nsec = 1; /* zero would disarm */
    timerfd_settime(l->timer_fd, TFD_TIMER_ABSTIME, &its, NULL);
}

void event_timer_init(struct event_timer *t, struct event_loop *l, void (*fn)(void *ctx), void *ctx)
{
    *t = (struct event_timer){.loop = l, .fn = fn, .ctx = ctx};
}

void event_timer_arm(struct event_timer *t, uint64_t deadline, uint64_t period)
{
    struct event_loop *l = t->loop;
    /* Far beyond any lifetime of a machine, and within what the kernel's signed time takes. */
    if (deadline > INT64_MAX / 2) deadline = INT64_MAX / 2;
    pthread_mutex_lock(&l->lock);
    if (t->slot) heap_remove(l, t);
    t->deadline = deadline;
    t->period = period;
    if (heap_reserve(l, l->timers + 1)) heap_up(l, l->timers++, t);
    if (!l->timers_due) program(l);
    pthread_mutex_unlock(&l->lock);
}

void event_timer_cancel(struct event_timer *t)
{
    struct event_loop *l = t->loop;
    if (!l) return;
    pthread_mutex_lock(&l->lock);
    heap_remove(l, t);
    t->period = 0;
    pthread_mutex_unlock(&l->lock);
}

void event_timer_destroy(struct event_timer *t)
{
    struct event_loop *l = t->loop;
    if (!l) return;
    pthread_mutex_lock(&l->lock);
    heap_remove(l, t);
    bool on_loop = l->in_run && pthread_equal(l->thread, pthread_self());
    while (l->running == t && !on_loop) pthread_cond_wait(&l->timer_done, &l->lock);
    heap_remove(l, t); /* the callback may have armed it again */
    if (l->running == t) l->running = NULL;
    pthread_mutex_unlock(&l->lock);
    t->loop = NULL;
}

/* Runs what is due, earliest first, and programs the timerfd for the rest. The budget keeps timers that arm themselves in the
 * past from starving the file descriptors. */
static void run_timers(struct event_loop *l)
{
    uint64_t now = clock_mono_ns();
    pthread_mutex_lock(&l->lock);
    l->timers_due = true;
    for (unsigned budget = 64; budget && l->timers && l->heap[0]->deadline <= now && !atomic_load(&l->stop); budget--) {
        struct event_timer *t = l->heap[0];
        heap_remove(l, t);
        if (t->period) {
            t->deadline += ((now - t->deadline) / t->period + 1) * t->period;
            heap_up(l, l->timers++, t);
        }
        void (*fn)(void *) = t->fn;
        void *ctx = t->ctx;
        l->running = t;
        pthread_mutex_unlock(&l->lock);
        fn(ctx);
        pthread_mutex_lock(&l->lock);
        l->running = NULL;
        pthread_cond_broadcast(&l->timer_done);
    }
    l->timers_due = false;
    l->programmed = UINT64_MAX;
    program(l);
    pthread_mutex_unlock(&l->lock);
}

/* ---- posts and stop ---- */

static void wake(struct event_loop *l)
{
    uint64_t one = 1;
    ssize_t n = write(l->wake_fd, &one, sizeof one);
    (void)n; /* it fails only when the counter is full, and then the loop is awake */
}

void event_loop_stop(struct event_loop *l)
{
    int saved = errno;
    atomic_store(&l->stop, true);
    wake(l);
    errno = saved;
}

int event_loop_post(struct event_loop *l, void (*fn)(void *ctx), void *ctx)
{
    struct post *p = malloc(sizeof *p);
    if (!p) return -ENOMEM;
    *p = (struct post){.fn = fn, .ctx = ctx};
    pthread_mutex_lock(&l->lock);
    bool first = !l->posts;
    *l->posts_tail = p;
    l->posts_tail = &p->next;
    pthread_mutex_unlock(&l->lock);
    if (first) wake(l);
    return 0;
}

static void run_posts(struct event_loop *l)
{
    uint64_t count;
    ssize_t n = read(l->wake_fd, &count, sizeof count);
    (void)n;
    pthread_mutex_lock(&l->lock);
    struct post *p = l->posts;
    l->posts = NULL;
    l->posts_tail = &l->posts;
    pthread_mutex_unlock(&l->lock);
    while (p) {
        struct post *next = p->next;
        p->fn(p->ctx);
        free(p);
        p = next;
    }
}

/* ---- file descriptors ---- */

static struct watcher **find_fd(struct event_loop *l, int fd)
{
    struct watcher **w = &l->watchers;
    while (*w && (*w)->fd != fd) w = &(*w)->next;
    return w;
}

int event_fd_add(struct event_loop *l, int fd, uint32_t events, void (*fn)(void *ctx, uint32_t events), void *ctx,
                 struct nerr *e)
{
    struct watcher *w = malloc(sizeof *w);
    if (!w) return nerr_set(e, -ENOMEM, "out of memory for a file watcher");
    pthread_mutex_lock(&l->lock);
    int err = *find_fd(l, fd) ? EEXIST : 0;
    if (!err) {
        *w = (struct watcher){.next = l->watchers, .fd = fd, .serial = l->next_serial++, .fn = fn, .ctx = ctx};
        struct epoll_event ev = {.events = events, .data.u64 = w->serial};
        if (epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0)
            err = errno;
        else
            l->watchers = w;
    }
    pthread_mutex_unlock(&l->lock);
    if (!err) return 0;
    free(w);
    return nerr_set(e, -err, "one more file descriptor cannot be watched: %s; give the machine fewer devices",
                    strerror(err));
}

int event_fd_modify(struct event_loop *l, int fd, uint32_t events)
{
    pthread_mutex_lock(&l->lock);
    struct watcher *w = *find_fd(l, fd);
    int r = w ? 0 : -ENOENT;
    if (w) {
        struct epoll_event ev = {.events = events, .data.u64 = w->serial};
        if (epoll_ctl(l->epoll_fd, EPOLL_CTL_MOD, fd, &ev) < 0) r = -errno;
    }
    pthread_mutex_unlock(&l->lock);
    return r;
}

int event_accept(struct event_loop *l, int listener, struct event_timer *again)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) return fd;
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        event_fd_modify(l, listener, 0);
        event_timer_arm(again, clock_mono_ns() + ACCEPT_REST_NS, 0);
    }
    return -1;
}

void event_listen(struct event_loop *l, int listener)
{
    event_fd_modify(l, listener, EPOLLIN);
}

void event_fd_remove(struct event_loop *l, int fd)
{
    pthread_mutex_lock(&l->lock);
    struct watcher **at = find_fd(l, fd), *w = *at;
    if (w) {
        *at = w->next;
        epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    }
    pthread_mutex_unlock(&l->lock);
    free(w);
}

/* Looked up by serial, because an earlier callback of the same round may have removed the watcher. */
static void run_watcher(struct event_loop *l, uint32_t serial, uint32_t events)
{
    pthread_mutex_lock(&l->lock);
    struct watcher *w = l->watchers;
    while (w && w->serial != serial) w = w->next;
    void (*fn)(void *, uint32_t) = w ? w->fn : NULL;
    void *ctx = w ? w->ctx : NULL;
    pthread_mutex_unlock(&l->lock);
    if (fn) fn(ctx, events);
}

/* ---- the loop ---- */

static bool watch_own(struct event_loop *l, int fd, uint32_t serial)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = serial};
    return fd >= 0 && epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, fd, &ev) == 0;
}

struct event_loop *event_loop_create(struct nerr *e)
{
    struct event_loop *l = calloc(1, sizeof *l);
    if (!l || !heap_reserve(l, HEAP_ROOM)) {
        free(l);
        nerr_set(e, -ENOMEM, "out of memory for the event loop");
        return NULL;
    }
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->timer_done, NULL);
    l->posts_tail = &l->posts;
    l->next_serial = SERIAL_FIRST;
    l->programmed = UINT64_MAX;
    l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    l->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (l->epoll_fd < 0 || !watch_own(l, l->timer_fd, SERIAL_TIMER) || !watch_own(l, l->wake_fd, SERIAL_WAKE)) {
        nerr_set(e, -errno, "cannot create the event loop: %s", strerror(errno));
        event_loop_destroy(l);
        return NULL;
    }
    return l;
}

void event_loop_destroy(struct event_loop *l)
{
    if (!l) return;
    if (l->epoll_fd >= 0) close(l->epoll_fd);
    if (l->timer_fd >= 0) close(l->timer_fd);
    if (l->wake_fd >= 0) close(l->wake_fd);
    for (struct post *p = l->posts, *next; p; p = next) {
        next = p->next;
        free(p);
    }
    for (struct watcher *w = l->watchers, *next; w; w = next) {
        next = w->next;
        free(w);
    }
    pthread_cond_destroy(&l->timer_done);
    pthread_mutex_destroy(&l->lock);
    free(l->heap);
    free(l);
}

static void dispatch(struct event_loop *l, const struct epoll_event *ev)
{
    switch (ev->data.u64) {
    case SERIAL_TIMER: {
        uint64_t fired;
        ssize_t n = read(l->timer_fd, &fired, sizeof fired);
        (void)n;
        run_timers(l);
        break;
    }
    case SERIAL_WAKE: run_posts(l); break;
    default: run_watcher(l, (uint32_t)ev->data.u64, ev->events); break;
    }
}

static void set_running(struct event_loop *l, bool on)
{
    pthread_mutex_lock(&l->lock);
    l->thread = pthread_self();
    l->in_run = on;
    pthread_mutex_unlock(&l->lock);
}

int event_loop_run(struct event_loop *l, struct nerr *e)
{
    int r = 0;
    set_running(l, true);
    while (!atomic_load(&l->stop)) {
        struct epoll_event ev[16];
        int n = epoll_wait(l->epoll_fd, ev, 16, -1);
        if (n < 0 && errno != EINTR) {
            r = nerr_set(e, -errno, "the event loop cannot wait: %s", strerror(errno));
            break;
        }
        for (int i = 0; i < n && !atomic_load(&l->stop); i++) dispatch(l, &ev[i]);
    }
    atomic_store(&l->stop, false);
    set_running(l, false);
    return r;
}
