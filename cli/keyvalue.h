/* Options of the form KEY=VALUE,KEY=VALUE,WORD (--disk, --net). A comma inside a value is written twice. */
#ifndef NACELLE_CLI_KEYVALUE_H
#define NACELLE_CLI_KEYVALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#define CLI_KEYVALUES_MAX 64

struct cli_keyvalue {
    const char *key;   /* never NULL or empty */
    const char *value; /* behind the first '='; NULL for a bare word */
};

struct cli_keyvalues {
    char *text; /* what the pairs point into */
    struct cli_keyvalue pair[CLI_KEYVALUES_MAX];
    unsigned pairs; /* in the order given; a key may come more than once: the user decides what that means */
};

/* Takes the text apart; `option` ("--disk") is for messages. Empty items are errors. On success cli_keyvalues_free() it in the end. */
int cli_keyvalues_parse(const char *option, const char *text, struct cli_keyvalues *out, struct nerr *e);
void cli_keyvalues_free(struct cli_keyvalues *kv);
/* The pair as one word, '=' and all; it has no value from then on. */
const char *cli_keyvalue_whole(struct cli_keyvalues *all, unsigned i);
/* Refuses a key that comes twice; those in `repeatable` (NULL-ended list, or NULL) may. */
int cli_keyvalues_unique(const char *option, const struct cli_keyvalues *kv, const char *const *repeatable,
                         struct nerr *e);

/* Values. The message names the option and the key. */
/* on, off, yes, no, true, false; a bare word is on. */
int cli_keyvalue_bool(const char *option, const struct cli_keyvalue *kv, bool *out, struct nerr *e);
/* A whole number with an optional K, M, G or T of base 1000 or 1024 (`base`); a bare number counts single units. */
#define CLI_COUNT_MAX (1ull << 53) /* as on the control socket, whose numbers are JSON's */
int cli_keyvalue_count(const char *option, const struct cli_keyvalue *kv, unsigned base, uint64_t *out, struct nerr *e);
/* A value that is there and not empty. */
int cli_keyvalue_text(const char *option, const struct cli_keyvalue *kv, const char **out, struct nerr *e);
/* A name (common/name.h), copied to `out`; `size`: of that, with the NUL. */
int cli_keyvalue_name(const char *option, const struct cli_keyvalue *kv, char *out, size_t size, struct nerr *e);
/* One of a NULL-ended list of words; *out is its index. */
int cli_keyvalue_choice(const char *option, const struct cli_keyvalue *kv, const char *const *words, unsigned *out,
                        struct nerr *e);

#endif
