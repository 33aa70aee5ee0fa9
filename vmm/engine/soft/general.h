/* Shared by general.c, stack.c and string.c: unprivileged instructions that touch the stack, jump, or work on strings. */
#ifndef NACELLE_SOFT_GENERAL_H
#define NACELLE_SOFT_GENERAL_H

#include "vmm/engine/soft/soft.h"

/* What struct insn doesn't keep apart: MOVSD the string move from MOVSD the SSE move, near RET from far RET. */
struct raw_insn {
    uint8_t opcode; /* first opcode byte */
    uint8_t modrm;  /* the byte after it, if any */
    uint8_t seg;    /* overriding segment that has an effect in this mode, or SEG_COUNT */
    uint8_t rep;    /* last of F2 (2) and F3 (1) */
};
struct raw_insn soft_raw_insn(const struct insn *in);

static inline uint64_t size_mask(unsigned size)
{
    return size >= 8 ? ~0ull : (1ull << (size * 8)) - 1;
}

static inline uint64_t sign_extend(uint64_t v, unsigned size)
{
    unsigned s = 64 - size * 8;
    return (uint64_t)((int64_t)(v << s) >> s);
}

/* Width of stack addresses: SP, ESP or RSP (SDM vol. 1 6.2.3). */
static inline unsigned soft_stack_width(const struct soft_cpu *cpu)
{
    return soft_code64(cpu) ? 8 : cpu->seg[SEG_SS].attr & SEG_ATTR_DB ? 4 : 2;
}

/* Reads an explicit operand: register, immediate or memory (`size` bytes). */
enum soft_result soft_operand_read(struct soft_cpu *cpu, const struct insn *in, const struct insn_op *o, unsigned size,
                                   uint64_t *v);

/* stack.c. Push stores below the stack pointer and moves it only when that worked; peek reads `skip` bytes above it and moves nothing. */
enum soft_result soft_stack_push(struct soft_cpu *cpu, uint64_t v, unsigned size);
enum soft_result soft_stack_peek(struct soft_cpu *cpu, uint32_t skip, uint64_t *v, unsigned size);
void soft_stack_add(struct soft_cpu *cpu, uint64_t n);
/* PUSH POP PUSHA POPA ENTER LEAVE CALL RET, near ones only; else SOFT_NOT_MINE. */
enum soft_result soft_stack_insn(struct soft_cpu *cpu, const struct insn *in);

/* string.c. MOVS STOS LODS CMPS SCAS INS OUTS; else SOFT_NOT_MINE. */
enum soft_result soft_string_insn(struct soft_cpu *cpu, const struct insn *in);

#endif
