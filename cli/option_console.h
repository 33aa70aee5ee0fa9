/* --console and --vsock: from their text to the machine's configuration. */
#ifndef NACELLE_CLI_OPTION_CONSOLE_H
#define NACELLE_CLI_OPTION_CONSOLE_H

#include "cli/keyvalue.h"
#include "vmm/machine/machine.h"

struct cli_consoles { /* all zeroes: none */
    struct machine_port port[MACHINE_MAX_PORTS];
    struct cli_keyvalues text[MACHINE_MAX_PORTS]; /* what the strings of port[] point into */
    unsigned ports;
    struct cli_keyvalues vsock;
};

int cli_console_add(struct cli_consoles *c, const char *text, struct nerr *e);
int cli_vsock_set(struct cli_consoles *c, struct machine_vsock *v, const char *text, struct nerr *e);
void cli_consoles_free(struct cli_consoles *c);
extern const char cli_console_help[]; /* lines for nacelle help run */

#endif
