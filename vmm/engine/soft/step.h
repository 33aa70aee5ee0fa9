/* What step.c, masked.c and vsib.c share: operands of one instruction, and the guest's vector registers as C code gets at them. */
#ifndef NACELLE_SOFT_STEP_H
#define NACELLE_SOFT_STEP_H

#include "vmm/engine/soft/xlat.h"

static inline enum soft_mmu_idx soft_data_idx(const struct soft_cpu *cpu)
{
    return (enum soft_mmu_idx)cpu->mmu_idx;
}

static inline bool soft_crosses_page(uint64_t a, uint32_t len)
{
    return ((a ^ (a + len - 1)) & PAGE_MASK) != 0;
}

/* Runs an instruction's thunk with its memory operand at `operand`; host exceptions become the guest's. RIP stays. */
enum soft_result soft_run_thunk(struct soft_cpu *cpu, const struct step_entry *e, void *operand);

/* Where in the bounce buffer an operand is put: as far off alignment as the guest's own, so that the instruction itself finds
 * out whether it is aligned. Room for `size` bytes, at most 64, or 108 (FSAVE), which no alignment matters to. */
static inline uint8_t *soft_bounce_at(struct soft_cpu *cpu, uint64_t linear, uint32_t size)
{
    return cpu->bounce + (size <= 64 ? linear & 63 : linear & 15);
}

/* masked.c: an operand, at `off` in its segment, of which only the bytes that a mask selects are accessed. */
enum soft_result soft_run_masked(struct soft_cpu *cpu, const struct xinsn *x, const struct step_entry *e, uint64_t off,
                                 uint64_t linear);
/* Nothing is selected at all. */
bool soft_mask_is_clear(struct soft_cpu *cpu, const struct xinsn *x);
/* MASKMOVQ, MASKMOVDQU, VMASKMOVDQU. */
enum soft_result soft_maskmov_insn(struct soft_cpu *cpu, const struct xinsn *x);

/* vecreg.c: the guest's registers, read and written where they are: live in the host's. `bytes`: 16, 32 or 64. Writing clears the rest of
 * the register, as VEX and EVEX instructions do. */
void soft_vec_read(struct soft_cpu *cpu, unsigned reg, unsigned bytes, uint8_t *buf);
void soft_vec_write(struct soft_cpu *cpu, unsigned reg, unsigned bytes, const uint8_t *buf);
void soft_vec_clear(struct soft_cpu *cpu, unsigned reg, bool upper_only); /* all of it, or what is above 128 bits */
uint64_t soft_mmx_read(struct soft_cpu *cpu, unsigned reg);
uint64_t soft_opmask_read(struct soft_cpu *cpu, unsigned reg);
void soft_opmask_write(struct soft_cpu *cpu, unsigned reg, uint64_t v);
uint32_t soft_mxcsr_read(struct soft_cpu *cpu);
/* Registers #MF when an x87 exception is pending: C code must not touch MMX registers then. */
enum soft_result soft_pending_mf(struct soft_cpu *cpu);

#endif
