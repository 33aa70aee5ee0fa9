/* One line of a client into a checked request. What comes in is hostile: nothing of it is used before all of it has been checked. One thread at a
 * time per request. */
#ifndef NACELLE_CONTROL_REQUEST_H
#define NACELLE_CONTROL_REQUEST_H

#include <stddef.h>

#include "vmm/control/schema.h"

#define CONTROL_LINE_MAX 65536 /* bytes, without the line feed */

struct cJSON;

struct control_value {
    bool given;
    bool on;          /* CONTROL_BOOLEAN */
    unsigned choice;  /* CONTROL_CHOICE: its index */
    uint64_t number;  /* CONTROL_NUMBER */
    const char *text; /* CONTROL_STRING, CONTROL_NAME, CONTROL_CHOICE; lives as long as the request */
};

struct control_request {
    const struct control_command *command;
    struct control_value value[CONTROL_MAX_ARGUMENTS]; /* in the order of the command's arguments */
    const struct cJSON *id;                            /* of `root`, or NULL */
    struct cJSON *root;
    uint64_t ticket; /* the server's, for answers that come later */
};

/* 0, or negative with the error's class and message. In both cases control_request_free() it; `id` is there as soon as the line is JSON. */
int control_request_parse(const char *line, size_t len, struct control_request *q, const char **class, struct nerr *e);
void control_request_free(struct control_request *q);
/* The argument's value; never NULL for a name of the schema, `given` says whether it was there. NULL for an unknown name. */
const struct control_value *control_value(const struct control_request *q, const char *name);

/* "10M" by the argument's base and range. False: no number, or out of range. */
bool control_number(const struct control_argument *a, const char *text, uint64_t *out);
/* on, off, yes, no, true, false. */
bool control_boolean(const char *text, bool *out);

/* Drops what is not UTF-8: a character that a message's limit cut in two must not spoil the reply. */
void control_clean_text(char *text);

/* The class of an error that has a negative errno. */
const char *control_class(int error);

#endif
