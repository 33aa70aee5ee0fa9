/* Descriptors, the stack and operands, as the handlers of system instructions need them (private to engine/soft/).
 * All functions run on the vCPU's own thread and obey the FPU-free rule of soft.h. */
#ifndef NACELLE_SOFT_SEGMENT_H
#define NACELLE_SOFT_SEGMENT_H

#include "vmm/engine/soft/soft.h"

/* Descriptor types (SDM vol. 3 tables 3-1 and 3-2). */
enum {
    TYPE_TSS16 = 1,
    TYPE_LDT = 2,
    TYPE_TSS16_BUSY = 3,
    TYPE_CALL16 = 4,
    TYPE_TASK_GATE = 5,
    TYPE_INT16 = 6,
    TYPE_TRAP16 = 7,
    TYPE_TSS = 9,
    TYPE_TSS_BUSY = 11,
    TYPE_CALL = 12,
    TYPE_INT = 14,
    TYPE_TRAP = 15,
};
#define TYPE_CODE 8u        /* S = 1: code, else data */
#define TYPE_CONFORMING 4u  /* code */
#define TYPE_EXPAND_DOWN 4u /* data */
#define TYPE_WRITABLE 2u    /* data; code: readable */
#define TYPE_ACCESSED 1u

/* Error code bits (SDM vol. 3 6.13). */
#define ERR_EXT 1u
#define ERR_IDT 2u

/* Flat segments as SYSCALL and SYSENTER load them; the DPL is to be added. */
#define ATTR_CODE64 0xa09bu
#define ATTR_CODE32 0xc09bu
#define ATTR_DATA 0xc093u

struct soft_desc {
    uint64_t raw;      /* the first 8 bytes */
    uint64_t raw_high; /* the next 8: 16-byte system descriptors of long mode */
    uint64_t addr;     /* linear address it came from */
    uint64_t base;
    uint32_t limit; /* bytes */
    uint32_t attr;  /* as struct cpu_segment.attr */
};

static inline unsigned desc_type(const struct soft_desc *d)
{
    return d->attr & SEG_ATTR_TYPE;
}
static inline unsigned desc_dpl(const struct soft_desc *d)
{
    return (d->attr >> SEG_ATTR_DPL_SHIFT) & 3;
}
static inline bool desc_present(const struct soft_desc *d)
{
    return d->attr & SEG_ATTR_P;
}
static inline bool desc_is_code(const struct soft_desc *d)
{
    return (d->attr & SEG_ATTR_S) && (d->attr & TYPE_CODE);
}
static inline bool desc_conforming(const struct soft_desc *d)
{
    return d->attr & TYPE_CONFORMING;
}
static inline bool desc_is_writable_data(const struct soft_desc *d)
{
    return (d->attr & SEG_ATTR_S) && !(d->attr & TYPE_CODE) && (d->attr & TYPE_WRITABLE);
}
static inline bool selector_is_null(uint16_t s)
{
    return !(s & ~3u);
}

static inline bool soft_canonical(uint64_t a)
{
    return (uint64_t)((int64_t)(a << 16) >> 16) == a;
}
static inline bool soft_protected(const struct soft_cpu *cpu)
{
    return cpu->cr0 & CR0_PE;
}
static inline unsigned soft_iopl(const struct soft_cpu *cpu)
{
    return (cpu->rflags >> 12) & 3;
}

/* Reads the descriptor of a non-null selector; when it lies outside its table: `vector`(selector | ext). */
enum soft_result desc_read(struct soft_cpu *cpu, uint16_t sel, uint8_t vector, uint32_t ext, struct soft_desc *d);
/* The same for a system descriptor: in long mode 16 bytes. */
enum soft_result desc_read_system(struct soft_cpu *cpu, uint16_t sel, uint8_t vector, uint32_t ext,
                                  struct soft_desc *d);
/* Sets bits of the type field (accessed, busy) in memory, atomically, when they aren't there yet. */
enum soft_result desc_set_type(struct soft_cpu *cpu, struct soft_desc *d, uint8_t bits);
enum soft_result desc_clear_type(struct soft_cpu *cpu, struct soft_desc *d, uint8_t bits);
/* Unpacks raw into base, limit, attr. */
void desc_unpack(struct soft_desc *d);

/* Whether [off, off + len) is inside, expand-down segments included. */
bool segment_within_limit(const struct cpu_segment *s, uint32_t off, uint32_t len);

/* Puts a checked descriptor into a segment register, without further checks. */
void segment_set(struct cpu_segment *s, uint16_t selector, const struct soft_desc *d);
void segment_set_null(struct cpu_segment *s, uint16_t selector);
void segment_set_flat(struct cpu_segment *s, uint16_t selector, uint32_t attr, unsigned dpl);
/* Real mode: base from the selector, the hidden rest stays. */
void segment_set_real(struct cpu_segment *s, uint16_t selector);

/* Checks and loads SS for privilege level `cpl`: what MOV SS, IRET, far RET and stack switches have in common. `vector`: #GP or #TS; a stack that
 * isn't present is #SS. Marks the descriptor accessed, but leaves the register alone. */
enum soft_result stack_segment_check(struct soft_cpu *cpu, uint16_t sel, unsigned cpl, uint8_t vector, uint32_t ext,
                                     struct soft_desc *d);

/* ---- the stack ---- */
uint64_t stack_mask(const struct soft_cpu *cpu);           /* of RSP, by mode and SS.B */
void stack_set_pointer(struct soft_cpu *cpu, uint64_t sp); /* only the bits in the mask change */
enum soft_result stack_push(struct soft_cpu *cpu, uint64_t v, unsigned size);
/* Reads the item `off` bytes above the stack pointer, which does not move. */
enum soft_result stack_peek(struct soft_cpu *cpu, uint32_t off, unsigned size, uint64_t *v);

/* ---- operands ---- */
/* Reads or writes operand `i` (a general register or the memory operand) with `size` bytes. */
enum soft_result operand_read(struct soft_cpu *cpu, const struct insn *in, unsigned i, unsigned size, uint64_t *v);
enum soft_result operand_write(struct soft_cpu *cpu, const struct insn *in, unsigned i, unsigned size, uint64_t v);
/* Linear address of `len` bytes at the memory operand plus `off`. */
enum soft_result operand_linear(struct soft_cpu *cpu, const struct insn *in, uint32_t off, uint32_t len,
                                enum soft_access acc, uint64_t *linear);

#endif
