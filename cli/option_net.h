/* --net. */
#ifndef NACELLE_CLI_OPTION_NET_H
#define NACELLE_CLI_OPTION_NET_H

#include "vmm/machine/machine.h"

/* The NICs of a command line, in its order. */
struct cli_nics {
    struct machine_nic nic[MACHINE_MAX_NICS];
    unsigned n;
    char *text[MACHINE_MAX_NICS]; /* what strings in nic[] point into */
};

/* Adds the NIC that one --net describes. */
int cli_net_add(struct cli_nics *nics, const char *text, struct nerr *e);
void cli_nics_free(struct cli_nics *nics);
extern const char cli_net_help[]; /* lines for nacelle help run */
/* A limit by its name, as in --net and in nacelle ctl ("avg_in"), and the base of its K, M, G; NULL for an unknown one. */
uint64_t *cli_net_limit(struct net_limits *l, const char *name, unsigned *base);

#endif
