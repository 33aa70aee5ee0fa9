/* Compares what the two sides made of a case. */
#ifndef NACELLE_DIFF_COMPARE_H
#define NACELLE_DIFF_COMPARE_H

#include "tests/diff/case.h"
#include "tests/diff/forms.h"

struct verdict {
    bool equal;
    bool skipped;      /* this case proves nothing */
    char field[32];    /* the first thing that differs; part of the key by which findings are grouped */
    char detail[4096]; /* one line per difference: "field native ... engine ..." */
};

void compare_results(const struct diff_case *c, const struct forms *f, const struct diff_result *native,
                     const struct diff_result *engine, struct verdict *v);
/* Disassembly and the initial state that matters. */
void case_print(FILE *out, const struct diff_case *c, const struct forms *f);
/* Mnemonic of instruction n of the case, or 0. */
uint16_t case_mnemonic(const struct diff_case *c, const struct forms *f, unsigned n);

#endif
