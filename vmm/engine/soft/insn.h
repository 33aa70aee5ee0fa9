/* A decoded guest instruction, compact and free of Zydis types' size, so that the C handlers of
 * special instructions can use it without decoding again. Made by soft_decode() (decode.c). */
#ifndef NACELLE_SOFT_INSN_H
#define NACELLE_SOFT_INSN_H

#include <stdbool.h>
#include <stdint.h>

#include <Zydis/Zydis.h> /* for the ZYDIS_MNEMONIC_* names only */

#define INSN_MAX_OPS 4
#define INSN_NOREG 0xff
#define INSN_RIP 0xfe /* memory base: RIP of the next instruction */

enum insn_op_kind { OP_NONE, OP_REG, OP_MEM, OP_IMM, OP_FAR };
enum insn_reg_class { RC_GPR, RC_GPR_HIGH8, RC_SEG, RC_CR, RC_DR, RC_OTHER };

struct insn_op {
    uint8_t kind;      /* enum insn_op_kind */
    uint8_t reg_class; /* enum insn_reg_class, for OP_REG */
    uint8_t reg;       /* number in its class (AH..BH are 0..3 of RC_GPR_HIGH8) */
    uint8_t size;      /* bytes */
    uint8_t action;    /* 1 read, 2 written, 3 both */
    uint64_t imm;      /* OP_IMM: sign- or zero-extended as the instruction does, relative branches: the
                          displacement; OP_FAR: offset, selector in insn.far_selector */
};

struct insn_mem {  /* the ModRM/moffs operand, when there is one; an instruction has at most one */
    uint8_t base;  /* GPR number, INSN_RIP or INSN_NOREG */
    uint8_t index; /* GPR number or INSN_NOREG (VSIB: vector register number) */
    uint8_t scale; /* 1, 2, 4, 8 */
    uint8_t seg;   /* resolved enum cpu_seg, override and defaults applied */
    int64_t disp;
};

struct insn {
    uint64_t rip;       /* guest RIP (offset in CS) of its first byte */
    uint16_t mnemonic;  /* ZydisMnemonic */
    uint8_t len;        /* bytes */
    uint8_t code_size;  /* 2, 4 or 8: operating mode of the code segment */
    uint8_t op_size;    /* effective operand size: 1, 2, 4, 8 */
    uint8_t addr_size;  /* effective address size: 2, 4, 8 */
    uint8_t stack_size; /* 2, 4 or 8: stack address width is decided by SS at run time outside 64-bit mode; this is
                          the operand width of a push/pop/call/ret/iret of this encoding */
    uint8_t rep;        /* 0 none, 1 REP/REPE, 2 REPNE */
    uint8_t ops;        /* explicit operands */
    bool lock;
    bool has_mem;
    bool seg_override; /* an explicit segment prefix was present */
    uint8_t bytes[15];
    uint16_t far_selector;
    struct insn_op op[INSN_MAX_OPS];
    struct insn_mem mem;
};

#endif
