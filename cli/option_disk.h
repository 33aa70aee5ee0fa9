/* --disk: from its text to struct machine_disk. */
#ifndef NACELLE_CLI_OPTION_DISK_H
#define NACELLE_CLI_OPTION_DISK_H

#include "cli/keyvalue.h"
#include "vmm/machine/machine.h"

struct cli_disks { /* all zeroes: none */
    struct machine_disk disk[MACHINE_MAX_DISKS];
    struct cli_keyvalues text[MACHINE_MAX_DISKS]; /* what the strings of disk[] point into */
    unsigned disks;
};

/* Adds one; cli_disks_free() all when the machine has been created. */
int cli_disk_add(struct cli_disks *d, const char *text, struct nerr *e);
void cli_disks_free(struct cli_disks *d);
extern const char cli_disk_help[]; /* lines for nacelle help run */
/* The keys of --disk one by one, limits too; NULL past the last. */
const char *cli_disk_key(unsigned n);
/* A limit by its name, as in --disk and in nacelle ctl ("read_bps"); NULL for an unknown one. */
uint64_t *cli_disk_limit(struct block_limits *l, const char *name, unsigned *base);

#endif
