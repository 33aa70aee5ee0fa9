/* Character back ends: where a console's bytes go and come from (a pseudo-terminal, a local socket, a file).
 *
 * Threads: char_write() and char_input_ready() from any thread, with any lock of the front end held; the port's callbacks come on the event loop's
 * thread with no lock of the back end held. */
#ifndef NACELLE_VMM_CHAR_H
#define NACELLE_VMM_CHAR_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

struct chardev;
struct event_loop;

enum char_kind {
    CHAR_PTY,    /* a new pseudo-terminal, in raw mode; `path`, when given, becomes a symbolic link to it */
    CHAR_SOCKET, /* listens at `path`; one client at a time */
    CHAR_FILE,   /* output is appended to `path`; there is no input */
};

struct char_config {
    enum char_kind kind;
    const char *path; /* used during char_open() only */
    const char *name; /* for messages; outlives it */
};

struct char_port { /* the front end's side */
    void *ctx;
    /* Input: returns how many bytes were taken; the rest comes again after char_input_ready(). */
    size_t (*input)(void *ctx, const uint8_t *data, size_t len);
    /* char_write() may take more again. */
    void (*writable)(void *ctx);
};

int char_open(const struct char_config *cfg, struct event_loop *loop, const struct char_port *port,
              struct chardev **out, struct nerr *e);
/* On the loop's thread, or while the loop does not run. NULL is fine. */
void char_close(struct chardev *c);
/* Takes up to `len` bytes without waiting, returns how many. With nobody at the other end they are dropped, as on a cable that ends in the air. */
size_t char_write(struct chardev *c, const void *data, size_t len);
void char_input_ready(struct chardev *c);

#endif
