/* Replies of a control socket for people, by the schema: bytes as MiB, seconds as hours, lists as tables. */
#ifndef NACELLE_CLI_CONTROL_PRINT_H
#define NACELLE_CLI_CONTROL_PRINT_H

#include <stdio.h>

#include "vmm/control/schema.h"

struct cJSON;

void cli_print_reply(const struct control_command *c, const struct cJSON *reply, FILE *out);
/* "1.5 GiB", "20 MiB", "512 bytes". */
const char *cli_bytes(double n, char text[32]);
/* "2d 03:04:05", "04:05", "3.2 s". */
const char *cli_seconds(double s, char text[32]);

#endif
