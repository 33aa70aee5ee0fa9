/* nacelle doctor: what this host offers to virtual machines and what it lacks. A check reads files below `root` and asks the
 * kernel through the functions in `doctor_env`, so that a test can show it any host. Checks change nothing. One thread. */
#ifndef NACELLE_CLI_DOCTOR_H
#define NACELLE_CLI_DOCTOR_H

#include <stdio.h>

#include <cjson/cJSON.h>

#include "common/error.h"

enum doctor_state {
    DOCTOR_OK,
    DOCTOR_LIMITED, /* works, with less than there could be */
    DOCTOR_MISSING,
};

struct doctor_env {
    const char *root; /* goes before every path that is read; "" for this host */
    const char *path; /* where programs are looked for, like $PATH; each entry below `root` */
    /* What --engine auto asks: 0, or a negative errno with the reason in `why`. Asked when there is a /dev/kvm. */
    int (*probe_kvm)(struct nerr *why);
    /* 0, or a negative errno. */
    int (*open_device)(const char *path);
    int (*try_userfaultfd)(int flags);
    int (*try_io_uring)(void);
};

struct doctor_finding {
    const char *name; /* of the check: a word for programs */
    enum doctor_state state;
    char found[240];  /* one line: what there is */
    char advice[240]; /* what to do about it; empty when there is nothing to do */
    cJSON *facts;     /* numbers and names for programs; owned, never NULL once checked unless memory ran out */
};

#define DOCTOR_MAX_FINDINGS 24

struct doctor_report {
    unsigned count;
    struct doctor_finding finding[DOCTOR_MAX_FINDINGS];
};

/* This host. */
extern const struct doctor_env doctor_host;

/* Runs every check. doctor_free() gives back what the report holds. */
void doctor_examine(const struct doctor_env *env, struct doctor_report *report);
void doctor_free(struct doctor_report *report);

const char *doctor_state_name(enum doctor_state state);
void doctor_print(const struct doctor_report *report, FILE *out);
/* 0, or -1 when memory ran out. */
int doctor_print_json(const struct doctor_report *report, FILE *out);

#endif
