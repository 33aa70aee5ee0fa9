/* Operands of which a mask selects the bytes that are accessed: AVX-512 write masks, VMASKMOV, MASKMOVDQU. What is off neither faults nor
 * is read or written, in RAM or in devices (SDM vol. 1 15.6.4 and the exception types of vol. 2 2.8). The instruction itself runs on a copy
 * of which only the selected bytes are filled in. */
#include "vmm/engine/soft/step.h"

static uint64_t low_bits(unsigned n)
{
    return n >= 64 ? ~0ull : (1ull << n) - 1;
}

static unsigned count_bits(uint64_t v)
{
    unsigned n = 0;
    for (; v; v &= v - 1) n++;
    return n;
}

/* One bit per element from the elements' sign bits. */
static uint64_t signs(const uint8_t *v, unsigned bytes, unsigned unit)
{
    uint64_t m = 0;
    for (unsigned i = 0; i < 64 && (i + 1) * unit <= bytes; i++) m |= (uint64_t)(v[i * unit + unit - 1] >> 7) << i;
    return m;
}

static uint64_t mask_value(struct soft_cpu *cpu, const struct xinsn *x)
{
    uint8_t v[64];
    if (x->mask != MASK_VECTOR) return soft_opmask_read(cpu, x->mask_reg) & low_bits(x->mask_bits);
    unsigned bytes = x->mem_size <= sizeof(v) ? x->mem_size : sizeof(v);
    soft_vec_read(cpu, x->mask_reg, bytes, v);
    return signs(v, bytes, x->mask_unit);
}

bool soft_mask_is_clear(struct soft_cpu *cpu, const struct xinsn *x)
{
    return mask_value(cpu, x) == 0;
}

/* The bytes of the memory operand that the instruction accesses, one bit each. */
static uint64_t selected_bytes(const struct xinsn *x, uint64_t mask)
{
    unsigned unit = x->mask_unit ? x->mask_unit : 1, count = x->mem_size / unit;
    uint64_t bytes = 0;
    if (x->mask == MASK_PACKED) return low_bits(count_bits(mask) * unit);
    if (count == 0) return mask ? low_bits(x->mem_size) : 0;
    for (unsigned i = 0; i < x->mask_bits; i++)
        if (mask >> i & 1) bytes |= low_bits(unit) << (i % count * unit);
    return bytes;
}

/* An operand by its offset in a segment: what is not selected may lie outside of the segment, too. */
struct place {
    enum cpu_seg seg;
    uint64_t off;
    uint8_t *buf;
};

enum run_kind { RUN_LOAD, RUN_PROBE, RUN_STORE };

static enum soft_result one_run(struct soft_cpu *cpu, const struct place *p, unsigned at, uint32_t n,
                                enum run_kind kind)
{
    uint64_t off = p->off + at, a;
    enum soft_result r = soft_linear(cpu, p->seg, soft_code64(cpu) ? off : (uint32_t)off, n,
                                     kind == RUN_LOAD ? ACC_READ : ACC_WRITE, &a);
    if (r != SOFT_OK) return r;
    switch (kind) {
    case RUN_LOAD: return soft_load(cpu, GVA(a), p->buf + at, n, soft_data_idx(cpu));
    case RUN_PROBE: return soft_probe_store(cpu, GVA(a), n, soft_data_idx(cpu));
    default: return soft_store(cpu, GVA(a), p->buf + at, n, soft_data_idx(cpu));
    }
}

/* Does it for each run of selected bytes, in rising order, until one doesn't succeed. */
static enum soft_result each_run(struct soft_cpu *cpu, const struct place *p, uint64_t bytes, enum run_kind kind)
{
    unsigned at = 0;
    while (bytes) {
        unsigned skip = (unsigned)__builtin_ctzll(bytes);
        at += skip;
        bytes >>= skip;
        unsigned n = ~bytes ? (unsigned)__builtin_ctzll(~bytes) : 64;
        enum soft_result r = one_run(cpu, p, at, n, kind);
        if (r != SOFT_OK) return r;
        at += n;
        bytes = n >= 64 ? 0 : bytes >> n;
    }
    return SOFT_OK;
}

enum soft_result soft_run_masked(struct soft_cpu *cpu, const struct xinsn *x, const struct step_entry *e, uint64_t off,
                                 uint64_t linear)
{
    if (!x->mem_size || x->mem_size > 64) return soft_raise(cpu, EXC_UD);
    uint64_t bytes = selected_bytes(x, mask_value(cpu, x));
    struct place p = {(enum cpu_seg)x->in.mem.seg, off, soft_bounce_at(cpu, linear, x->mem_size)};
    enum soft_result r = SOFT_OK;
    if (x->mem_write) r = each_run(cpu, &p, x->mask_whole ? low_bits(x->mem_size) : bytes, RUN_PROBE);
    if (r == SOFT_OK && x->mem_read) {
        soft_zero(p.buf, x->mem_size);
        r = each_run(cpu, &p, bytes, RUN_LOAD);
    }
    if (r == SOFT_OK) r = soft_run_thunk(cpu, e, p.buf);
    if (r == SOFT_OK && x->mem_write) r = each_run(cpu, &p, bytes, RUN_STORE);
    return r;
}

enum soft_result soft_maskmov_insn(struct soft_cpu *cpu, const struct xinsn *x)
{
    const struct insn *in = &x->in;
    unsigned size = in->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ ? 8 : 16;
    uint8_t data[16], mask[16];
    uint64_t a = cpu->gpr[R_RDI];
    if (x->checks_mf && soft_pending_mf(cpu) != SOFT_OK) return SOFT_FAULT;
    if (size == 8) {
        ((uint64_t *)(void *)data)[0] = soft_mmx_read(cpu, in->op[0].reg);
        ((uint64_t *)(void *)mask)[0] = soft_mmx_read(cpu, in->op[1].reg);
    } else {
        soft_vec_read(cpu, in->op[0].reg, 16, data);
        soft_vec_read(cpu, in->op[1].reg, 16, mask);
    }
    a = in->addr_size == 8 ? a : in->addr_size == 4 ? (uint32_t)a : (uint16_t)a;
    struct place p = {(enum cpu_seg)x->in.mem.seg, a, data};
    uint64_t bytes = signs(mask, size, 1);
    /* All of it must be writable even if nothing is selected. */
    enum soft_result r = each_run(cpu, &p, low_bits(size), RUN_PROBE);
    if (r == SOFT_OK) r = each_run(cpu, &p, bytes, RUN_STORE);
    if (r == SOFT_OK) soft_advance(cpu, in);
    return r;
}
