/* The fuzzer's own state, shared by its main program, the minimiser and the coverage list. */
#ifndef NACELLE_DIFF_FUZZ_H
#define NACELLE_DIFF_FUZZ_H

#include "tests/diff/compare.h"
#include "tests/diff/gen.h"
#include "tests/diff/worker.h"

struct fuzz {
    struct forms forms;
    struct batch *batch;
    struct worker worker[SIDES];
};

/* Runs one case alone; on_fresh: in a new engine worker, so that nothing earlier matters. */
int fuzz_one(struct fuzz *z, const struct diff_case *c, bool on_fresh, struct verdict *v);
/* Shortens a case that differs while it still does: instructions become NOPs, registers and vector state plain. */
void minimise(struct fuzz *z, struct diff_case *c, bool on_fresh, struct verdict *v);
/* Counts what a batch covered. */
void coverage_count(struct fuzz *z, const struct diff_case *c, const struct diff_result *native, bool block);
/* Writes the list as Markdown. */
int coverage_write(const struct forms *f, const char *path, bool only_missing);

#endif
