/* Host code bytes: the few x86-64 encodings that the translator makes by itself. All of them leave the
 * flags alone but for those named *_flags and emit_alu_imm(). */
#ifndef NACELLE_SOFT_EMIT_H
#define NACELLE_SOFT_EMIT_H

#include <stddef.h>
#include <stdint.h>

#include "vmm/engine/soft/soft.h"

#define GS(field) ((uint32_t)offsetof(struct soft_cpu, field))
#define GS_GPR(r) (GS(gpr) + 8u * (uint32_t)(r))
#define GS_SAVED(r) (GS(saved) + 8u * (uint32_t)(r))
#define GS_TMP(n) (GS(tmp) + 8u * (uint32_t)(n))

struct emitter {
    uint8_t *p; /* next byte */
};

static inline void e8(struct emitter *e, unsigned v)
{
    *e->p++ = (uint8_t)v;
}
static inline void e32(struct emitter *e, uint32_t v)
{
    __builtin_memcpy(e->p, &v, 4);
    e->p += 4;
}
static inline void e64(struct emitter *e, uint64_t v)
{
    __builtin_memcpy(e->p, &v, 8);
    e->p += 8;
}
/* opcode with reg and %gs:[off]; w: 64-bit */
static inline void emit_gs(struct emitter *e, unsigned w, unsigned opcode, unsigned reg, uint32_t off)
{
    e8(e, 0x65);
    unsigned rex = (w ? 8u : 0u) | (reg >= 8 ? 4u : 0u);
    if (rex) e8(e, 0x40 | rex);
    e8(e, opcode);
    e8(e, 0x04 | (reg & 7) << 3);
    e8(e, 0x25);
    e32(e, off);
}
static inline void emit_load_gs(struct emitter *e, unsigned reg, uint32_t off)
{
    emit_gs(e, 1, 0x8b, reg, off);
}
static inline void emit_store_gs(struct emitter *e, uint32_t off, unsigned reg)
{
    emit_gs(e, 1, 0x89, reg, off);
}
static inline void emit_store_gs32_imm(struct emitter *e, uint32_t off, uint32_t imm)
{
    emit_gs(e, 0, 0xc7, 0, off);
    e32(e, imm);
}
static inline void emit_store_gs8_imm(struct emitter *e, uint32_t off, unsigned v)
{
    emit_gs(e, 0, 0xc6, 0, off);
    e8(e, v);
}
static inline void emit_movzx16_gs(struct emitter *e, unsigned reg, uint32_t off)
{
    e8(e, 0x65);
    if (reg >= 8) e8(e, 0x44);
    e8(e, 0x0f);
    e8(e, 0xb7);
    e8(e, 0x04 | (reg & 7) << 3);
    e8(e, 0x25);
    e32(e, off);
}
static inline int fits_simm32(uint64_t v)
{
    return (int64_t)v == (int32_t)v;
}
/* %gs:[off] = v (64 bit) without a register */
static inline void emit_store_gs_imm(struct emitter *e, uint32_t off, uint64_t v)
{
    if (fits_simm32(v)) {
        emit_gs(e, 1, 0xc7, 0, off);
        e32(e, (uint32_t)v);
    } else {
        emit_store_gs32_imm(e, off, (uint32_t)v);
        emit_store_gs32_imm(e, off + 4, (uint32_t)(v >> 32));
    }
}
static inline void emit_mov_imm(struct emitter *e, unsigned reg, uint64_t v)
{
    if (v == (uint32_t)v) {
        if (reg >= 8) e8(e, 0x41);
        e8(e, 0xb8 | (reg & 7));
        e32(e, (uint32_t)v);
    } else if (fits_simm32(v)) {
        e8(e, 0x48 | (reg >= 8));
        e8(e, 0xc7);
        e8(e, 0xc0 | (reg & 7));
        e32(e, (uint32_t)v);
    } else {
        e8(e, 0x48 | (reg >= 8));
        e8(e, 0xb8 | (reg & 7));
        e64(e, v);
    }
}
/* reg-reg: opcode r/m, reg (89 mov, 01 add, 29 sub, 31 xor, 39 cmp ...) */
static inline void emit_rr(struct emitter *e, unsigned opcode, unsigned rm, unsigned reg)
{
    e8(e, 0x48 | (reg >= 8 ? 4u : 0u) | (rm >= 8 ? 1u : 0u));
    e8(e, opcode);
    e8(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
}
static inline void emit_mov_rr(struct emitter *e, unsigned dst, unsigned src)
{
    if (dst != src) emit_rr(e, 0x89, dst, src);
}

/* Arithmetic with an immediate, sign-extended; w: 64-bit. Sets the flags. */
enum alu { ALU_ADD = 0, ALU_OR = 1, ALU_AND = 4, ALU_SUB = 5, ALU_CMP = 7 };
static inline void emit_alu_imm(struct emitter *e, unsigned w, enum alu op, unsigned reg, uint32_t imm)
{
    unsigned rex = (w ? 8u : 0u) | (reg >= 8);
    if (rex) e8(e, 0x40 | rex);
    e8(e, 0x81);
    e8(e, 0xc0 | (unsigned)op << 3 | (reg & 7));
    e32(e, imm);
}
/* 64 bit */
static inline void emit_shr_flags(struct emitter *e, unsigned reg, unsigned by)
{
    e8(e, 0x48 | (reg >= 8));
    e8(e, 0xc1);
    e8(e, 0xe8 | (reg & 7));
    e8(e, by);
}
/* reg = offset of the TLB entry for the address in `from` */
static inline void emit_tlb_index_flags(struct emitter *e, unsigned reg, unsigned from)
{
    emit_mov_rr(e, reg, from);
    emit_shr_flags(e, reg, PAGE_SHIFT - 5);
    emit_alu_imm(e, 0, ALU_AND, reg, (TLB_SIZE - 1) << 5);
}
/* 64 bit: f7 /3 neg, ff /0 inc, ff /1 dec */
static inline void emit_unary_flags(struct emitter *e, unsigned opcode, unsigned digit, unsigned reg)
{
    e8(e, 0x48 | (reg >= 8));
    e8(e, opcode);
    e8(e, 0xc0 | digit << 3 | (reg & 7));
}
/* Registers lent out get their guest values back. */
static inline void emit_load_saved(struct emitter *e, uint16_t regs)
{
    for (unsigned r = 0; r < 16; r++)
        if (regs & (1u << r)) emit_load_gs(e, r, GS_SAVED(r));
}

/* A memory operand as host code addresses it. */
struct host_mem {
    uint8_t base;  /* GPR or INSN_NOREG */
    uint8_t index; /* GPR (not RSP) or INSN_NOREG */
    uint8_t scale;
    int32_t disp;
};

/* ModRM, SIB and displacement; `reg` gives the 3 low bits of the reg field. disp8 only when `small` (EVEX scales it). */
static inline void emit_modrm(struct emitter *e, unsigned reg, const struct host_mem *m, int small)
{
    unsigned r = (reg & 7) << 3;
    unsigned sc = m->scale == 8 ? 3 : m->scale == 4 ? 2 : m->scale == 2 ? 1 : 0;
    unsigned idx = m->index == INSN_NOREG ? 4u : (m->index & 7u);
    if (m->base == INSN_NOREG) {
        e8(e, r | 4);
        e8(e, sc << 6 | idx << 3 | 5);
        e32(e, (uint32_t)m->disp);
        return;
    }
    unsigned mod = m->disp == 0 && (m->base & 7) != 5 ? 0 : small && m->disp >= -128 && m->disp <= 127 ? 1 : 2;
    if (m->index == INSN_NOREG && (m->base & 7) != 4) {
        e8(e, mod << 6 | r | (m->base & 7u));
    } else {
        e8(e, mod << 6 | r | 4);
        e8(e, sc << 6 | idx << 3 | (m->base & 7u));
    }
    if (mod == 1) e8(e, (uint8_t)m->disp);
    if (mod == 2) e32(e, (uint32_t)m->disp);
}
static inline unsigned rex_xb(const struct host_mem *m)
{
    return (m->index != INSN_NOREG && m->index >= 8 ? 2u : 0u) | (m->base != INSN_NOREG && m->base >= 8 ? 1u : 0u);
}
/* 64-bit op with a memory operand (8b load, 89 store, 8d lea) */
static inline void emit_rm(struct emitter *e, unsigned opcode, unsigned reg, struct host_mem m)
{
    e8(e, 0x48 | (reg >= 8 ? 4u : 0u) | rex_xb(&m));
    e8(e, opcode);
    emit_modrm(e, reg, &m, 1);
}
static inline void emit_rm32(struct emitter *e, unsigned opcode, unsigned reg, struct host_mem m)
{
    unsigned rex = (reg >= 8 ? 4u : 0u) | rex_xb(&m);
    if (rex) e8(e, 0x40 | rex);
    e8(e, opcode);
    emit_modrm(e, reg, &m, 1);
}
static inline void emit_lea(struct emitter *e, unsigned reg, struct host_mem m)
{
    emit_rm(e, 0x8d, reg, m);
}
/* The same with 32-bit address arithmetic: the result is zero-extended. */
static inline void emit_lea32(struct emitter *e, unsigned reg, struct host_mem m)
{
    e8(e, 0x67);
    emit_rm(e, 0x8d, reg, m);
}
/* jmp/jcc rel32 to an absolute host address; returns where the rel32 stands */
static inline uint8_t *emit_jmp(struct emitter *e, const uint8_t *to)
{
    e8(e, 0xe9);
    e32(e, to ? (uint32_t)(to - (e->p + 4)) : 0);
    return e->p - 4;
}
static inline uint8_t *emit_jcc(struct emitter *e, unsigned cc, const uint8_t *to)
{
    e8(e, 0x0f);
    e8(e, 0x80 | cc);
    e32(e, to ? (uint32_t)(to - (e->p + 4)) : 0);
    return e->p - 4;
}
static inline void patch_rel32(uint8_t *at, const uint8_t *to)
{
    uint32_t rel = (uint32_t)(to - (at + 4));
    __atomic_store_n((uint32_t *)(void *)at, rel, __ATOMIC_RELAXED);
}

#endif
