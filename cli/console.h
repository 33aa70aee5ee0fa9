/* The guest's serial console on this process's standard input and output.
 *
 * On a terminal: raw mode and the escape Ctrl-A; through a pipe or file: bytes as they are. The terminal's mode is restored by
 * console_close(), which every path out of `nacelle run` takes, signals included.
 *
 * Threads: the main thread's, but console_room() [any]. */
#ifndef NACELLE_CLI_CONSOLE_H
#define NACELLE_CLI_CONSOLE_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

struct event_loop;
struct machine;
struct console;

struct console_config {
    int in, out; /* file descriptors; -1 for none */
};

/* Works without a machine until console_attach(): output can come first. */
int console_open(const struct console_config *cfg, struct console **out, struct nerr *e);
/* The signals that end the machine, with status 128 + number: SIGINT, SIGTERM, SIGHUP, SIGQUIT. */
void console_signals(sigset_t *set);
/* Starts to read input and to take those signals, which must be blocked in every thread. */
int console_attach(struct console *c, struct machine *m, struct nerr *e);
/* Restores the terminal. NULL is fine. */
void console_close(struct console *c);

/* struct machine_console's callbacks; ctx is the console. */
size_t console_output(void *ctx, const uint8_t *data, size_t len);
void console_room(void *ctx);

/* ---- the escape filter, apart for tests ---- */
enum console_command { CONSOLE_NONE, CONSOLE_QUIT, CONSOLE_HELP, CONSOLE_POWER };

struct console_escape {
    bool armed; /* a Ctrl-A came and its second key is awaited */
};
/* Takes one typed byte. Returns a command, and in out[0..*n) (at most 2 bytes) what goes to the guest. */
enum console_command console_escape_key(struct console_escape *s, uint8_t key, uint8_t out[2], size_t *n);

#endif
