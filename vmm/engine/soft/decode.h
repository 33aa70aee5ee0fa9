/* Parts of soft_decode(), which look at what Zydis made of an instruction. */
#ifndef NACELLE_SOFT_DECODE_H
#define NACELLE_SOFT_DECODE_H

#include "vmm/engine/soft/xlat.h"

/* decode.c: soft_decode() by way of Zydis, for everything there is. */
int soft_decode_zydis(const uint8_t *bytes, unsigned avail, unsigned code_size, uint64_t rip, struct xinsn *x);

/* decode_quick.c: the common instructions of 64-bit code; false: ask Zydis. Then *x may have been written to. */
void soft_quick_init(void);
bool soft_decode_quick(const uint8_t *bytes, unsigned avail, uint64_t rip, struct xinsn *x);

/* decode_mask.c: which bytes of the memory operand a mask can turn off (x->mask and what goes with it). */
void soft_find_mask(struct xinsn *x, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops);

/* decode_isa.c */
void soft_isa_init(void);
/* The instruction exists in Zydis, but not on this CPU: it is undefined, before any of its operands is looked at. */
bool soft_isa_missing(const ZydisDecodedInstruction *z);
/* The memory operand must be aligned to its size, or #GP(0). */
bool soft_needs_alignment(const ZydisDecodedInstruction *z, unsigned mem_size, bool *unless_mm);
/* 16/32-bit code: W chooses the size of general registers, which are 32 bits wide whatever it is (SDM vol. 2 2.3.5.5). */
bool soft_ignores_w(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops);
/* #MF is raised for an earlier x87 instruction before this one does anything. */
bool soft_checks_mf(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops);

#endif
