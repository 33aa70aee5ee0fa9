/* The event loop: one thread (the process's main thread) waits in epoll and runs every callback.
 *
 * Threads: functions marked [any] may be called from any thread at any time between create and destroy, callbacks
 * included; the others only from the loop's thread, or while the loop does not run. Callbacks run on the
 * loop's thread with no lock of the loop held. */
#ifndef NACELLE_COMMON_EVENT_H
#define NACELLE_COMMON_EVENT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

struct event_loop;

/* NULL on failure, with the message in `e`. */
struct event_loop *event_loop_create(struct nerr *e);
/* The loop must not run any more. Posts that were never run are dropped; timers must have been destroyed. */
void event_loop_destroy(struct event_loop *l);
/* Runs callbacks until event_loop_stop(). 0, or -errno when epoll itself fails. A stop that came before makes it return at once;
 * every return consumes the stop. */
int event_loop_run(struct event_loop *l, struct nerr *e);
/* [any] Makes run() return after the callbacks at hand. Also async-signal-safe. */
void event_loop_stop(struct event_loop *l);
/* [any] Runs fn(ctx) once on the loop's thread, in the order of the posts. 0 or -ENOMEM. */
int event_loop_post(struct event_loop *l, void (*fn)(void *ctx), void *ctx);

/* ---- file descriptors ---- */
/* [any] Calls fn whenever `fd` has one of `events` (EPOLLIN, EPOLLOUT; EPOLLERR and EPOLLHUP always count), level-triggered. The caller
 * keeps owning the fd. A regular file cannot be polled: -EPERM. One watcher per fd. */
int event_fd_add(struct event_loop *l, int fd, uint32_t events, void (*fn)(void *ctx, uint32_t events), void *ctx,
                 struct nerr *e);
/* [any] Changes the events; 0 keeps the watcher but mutes it (errors and hang-ups still count). */
int event_fd_modify(struct event_loop *l, int fd, uint32_t events);
/* [any] No callback begins after it returned on the loop's thread; from another thread one may still be running. */
void event_fd_remove(struct event_loop *l, int fd);

/* A client at a listening socket that the loop watches: a descriptor (non-blocking, close-on-exec), the caller's; or -1. Where there are no descriptors to
 * be had, the loop would find the listener ready for ever: it rests from it until `again` fires, whose function calls event_listen(). */
struct event_timer;
int event_accept(struct event_loop *l, int listener, struct event_timer *again);
/* Watches for clients again. */
void event_listen(struct event_loop *l, int listener);

/* ---- timers: nanoseconds of CLOCK_MONOTONIC (clock_mono_ns(), common/clock.h) ---- */
struct event_timer {
    struct event_loop *loop; /* all fields are the loop's */
    void (*fn)(void *ctx);
    void *ctx;
    uint64_t deadline, period;
    uint32_t slot; /* place in the heap + 1; 0 = not armed */
};

/* The caller owns the struct; it must stay where it is until event_timer_destroy(). */
void event_timer_init(struct event_timer *t, struct event_loop *l, void (*fn)(void *ctx), void *ctx);
/* [any] (Re)arms: fires once at `deadline`, then every `period` ns when period > 0. Past deadlines fire at once. Periods missed while
 * the loop was late fire once, and the phase is kept. Cheap: no system call unless the timer is now the earliest one. */
void event_timer_arm(struct event_timer *t, uint64_t deadline, uint64_t period);
/* [any] The callback does not begin afterwards, but may be running right now on the loop's thread. */
void event_timer_cancel(struct event_timer *t);
/* [any] Cancels, and waits for a running callback to end (not when called by that callback itself). Do not hold a lock the callback takes. */
void event_timer_destroy(struct event_timer *t);

#endif
