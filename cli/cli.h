/* The command line: one verb per file. A verb gets the arguments from its own name on and returns the process's exit status. */
#ifndef NACELLE_CLI_H
#define NACELLE_CLI_H

#include <stdint.h>
#include <stdio.h>

#include "common/error.h"
#include "vmm/engine/engine.h"

#define CLI_USAGE_STATUS 2 /* wrong use; nothing was done */

struct cli_verb {
    const char *name;
    const char *summary; /* one line */
    int (*run)(int argc, char **argv);
    void (*help)(FILE *out);
};

extern const struct cli_verb cli_run;
extern const struct cli_verb cli_doctor;
extern const struct cli_verb cli_ps;
extern const struct cli_verb cli_ctl;

extern const char cli_version[];

/* Finds the CPU engine for --engine's argument. `why`, when filled, is a line the user should see (a fall-back is never silent);
 * else it is empty. */
int cli_pick_engine(const char *name, const struct engine_ops **ops, struct nerr *why, struct nerr *e);

/* "512M" -> bytes. Suffixes K M G T (powers of 1024), either case; a bare number counts MiB. `option` is for the message. */
int cli_parse_size(const char *option, const char *text, uint64_t *bytes, struct nerr *e);
/* A decimal or 0x-hexadecimal number from min to max, with nothing behind it. */
int cli_parse_number(const char *option, const char *text, uint64_t min, uint64_t max, uint64_t *value, struct nerr *e);

#endif
