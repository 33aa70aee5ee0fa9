/* The commands of the control socket as data, made from commands.json by tools/gencontrol.c: what the server checks requests by, what
 * nacelle ctl makes its help, its requests and its output from. Read-only; any thread. */
#ifndef NACELLE_CONTROL_SCHEMA_H
#define NACELLE_CONTROL_SCHEMA_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

#define CONTROL_NAME_MAX 31 /* characters of an id */
#define CONTROL_MAX_ARGUMENTS 24
#define CONTROL_NUMBER_MAX (1ull << 53) /* the largest number below which JSON readers keep every one apart */

enum control_type {
    CONTROL_STRING,  /* without control characters */
    CONTROL_NAME,    /* 1 to CONTROL_NAME_MAX letters, digits, '.', '_', '-' */
    CONTROL_NUMBER,  /* a whole one; also as text with K, M, G or T */
    CONTROL_BOOLEAN, /* also as text: on, off, yes, no */
    CONTROL_CHOICE,
    CONTROL_LIST, /* the last two in replies only */
    CONTROL_OBJECT,
};

struct control_argument {
    const char *name;
    enum control_type type;
    bool required;
    uint64_t min, max;                     /* of a number; of a string the bytes */
    unsigned base;                         /* what K stands for: 1000 or 1024 */
    const char *unit, *fallback, *meaning; /* unit and fallback may be NULL */
    const char *const *choices;            /* NULL-ended, or NULL */
};

struct control_field {
    const char *name;
    enum control_type type;
    const char *unit, *meaning; /* unit may be NULL */
    const struct control_field *fields;
    unsigned nfields; /* of a list's items */
};

struct control_command {
    const char *name, *summary, *detail, *since; /* detail may be NULL */
    const struct control_argument *arguments;
    unsigned narguments;
    const struct control_field *fields; /* of the reply */
    unsigned nfields;
};

struct control_error {
    const char *name, *meaning;
};

extern const unsigned control_protocol;
extern const struct control_command control_commands[];
extern const unsigned control_ncommands;
extern const struct control_error control_errors[];
extern const unsigned control_nerrors;

/* NULL: there is none. */
const struct control_command *control_find(const char *name);
const struct control_argument *control_find_argument(const struct control_command *c, const char *name);

#endif
