/* Errors for people: one line that says what, where and what to do. Functions that can fail for a
 * reason a person must read take a `struct nerr *` (never NULL), return 0 or a negative errno, and
 * on failure have filled the message. Nothing below a main() exits or aborts. */
#ifndef NACELLE_COMMON_ERROR_H
#define NACELLE_COMMON_ERROR_H

struct nerr {
    char text[512];
};

/* Fills the message and returns `code` (a negative errno), so that `return nerr_set(...)` works. */
int nerr_set(struct nerr *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
