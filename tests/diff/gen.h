/* Makes cases: random state, instructions, and registers steered so that memory operands meet the window. */
#ifndef NACELLE_DIFF_GEN_H
#define NACELLE_DIFF_GEN_H

#include "tests/diff/case.h"
#include "tests/diff/forms.h"

/* Random registers, flags, vector state, image; no code. */
void gen_state(struct diff_case *c, struct rng *r, unsigned mode);
/* One instruction of the given form. False when nothing valid came out of it. */
bool gen_single(struct diff_case *c, const struct forms *f, const struct form *form, uint64_t seed);
/* Bytes that are no instruction: an invalid one (#UD), or one of more than 15 bytes (#GP). */
bool gen_invalid(struct diff_case *c, const struct forms *f, const struct form *form, uint64_t seed);
/* A block of instructions that share pointers (block.c). Sets c->loops where it has a loop. */
bool gen_block(struct diff_case *c, const struct forms *f, uint64_t seed);

/* ---- shared by gen.c and block.c ---- */
/* A target for an access of `size` bytes: mostly readable and writable, at times at a page border, read-only, MMIO,
 * absent, or beside the code. `safe`: never absent or read-only. */
uint64_t gen_target(struct rng *r, unsigned size, bool safe);
/* An address in the int3-filled code area. */
uint64_t gen_code_target(struct rng *r);
void gen_vector(struct rng *r, uint8_t out[64]);
/* Values certain instructions want, without which they would only ever fault: chosen after the address is known. */
void gen_operands(struct diff_case *c, struct rng *r, struct insn_code *ic, uint64_t rip);

#endif
