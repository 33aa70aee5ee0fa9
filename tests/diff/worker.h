/* The two processes that run cases: one on the host CPU, one on an engine. A worker may die or hang on a case; the
 * parent then knows which case it was (progress) and starts a new one. */
#ifndef NACELLE_DIFF_WORKER_H
#define NACELLE_DIFF_WORKER_H

#include <stdatomic.h>
#include <sys/types.h>

#include "tests/diff/case.h"

#define BATCH 64

enum side { SIDE_NATIVE, SIDE_ENGINE, SIDES };
enum runner_kind { RUNNER_NATIVE, RUNNER_NATIVE_BROKEN, RUNNER_SOFT };

struct batch {
    uint32_t count;
    _Atomic uint32_t progress[SIDES]; /* the case being run */
    uint32_t first[SIDES];            /* where the worker is to begin */
    struct diff_case cases[BATCH];
    struct diff_result results[SIDES][BATCH];
};

struct worker {
    enum side side;
    enum runner_kind kind;
    struct batch *batch;
    pid_t pid;
    int to, from; /* pipes */
};

/* Called in the worker process. Init returns 0 or -1 with a message in `text` (size 120). */
int native_init(char *text);
void native_run(const struct diff_case *c, struct diff_result *r);
/* Status of the same case on the native side: an engine need not run on in a case that hangs there. */
extern const volatile uint32_t *soft_peer_status;
int soft_init(char *text);
void soft_run(const struct diff_case *c, struct diff_result *r);

struct batch *batch_create(void);
int worker_start(struct worker *w);
void worker_stop(struct worker *w);
/* Runs the batch on all workers side by side; every result has a status afterwards. A worker that died was started
 * anew; -1 when even that failed. */
int workers_run(struct worker *w, unsigned workers);

#endif
