/* Segmentation: addresses through segments, descriptors, segment register loads (SDM vol. 3 chapters 3 and 5). */
#include "vmm/engine/soft/segment.h"

/* ---- addresses ---- */

static enum soft_result address_fault(struct soft_cpu *cpu, enum cpu_seg seg)
{
    return soft_raise_err(cpu, seg == SEG_SS ? EXC_SS : EXC_GP, 0);
}

static enum soft_result linear64(struct soft_cpu *cpu, enum cpu_seg seg, uint64_t off, uint32_t len, uint64_t *linear)
{
    uint64_t a = off;
    if (seg == SEG_FS || seg == SEG_GS) a += cpu->seg[seg].base;
    uint64_t last = a + (len ? len - 1 : 0);
    /* Both ends canonical and in the same half: nothing shorter than the hole can span it. */
    if (!soft_canonical(a) || !soft_canonical(last)) return address_fault(cpu, seg);
    *linear = a;
    return SOFT_OK;
}

/* Whether the segment's type permits the access; only protected mode asks (SDM vol. 3 5.5). */
static bool type_permits(const struct cpu_segment *s, enum soft_access acc)
{
    if (s->attr & SEG_ATTR_NULL || !(s->attr & SEG_ATTR_P)) return false;
    bool code = s->attr & TYPE_CODE;
    if (acc == ACC_WRITE) return !code && (s->attr & TYPE_WRITABLE);
    if (acc == ACC_READ) return !code || (s->attr & TYPE_WRITABLE);
    return true;
}

bool segment_within_limit(const struct cpu_segment *s, uint32_t off, uint32_t len)
{
    uint64_t last = (uint64_t)off + (len ? len - 1 : 0);
    bool down = !(s->attr & TYPE_CODE) && (s->attr & TYPE_EXPAND_DOWN);
    if (!down) return last <= s->limit;
    uint64_t top = s->attr & SEG_ATTR_DB ? 0xffffffffull : 0xffffull;
    return off > s->limit && last <= top;
}

enum soft_result soft_linear(struct soft_cpu *cpu, enum cpu_seg seg, uint64_t off, uint32_t len, enum soft_access acc,
                             uint64_t *linear)
{
    if (soft_code64(cpu)) return linear64(cpu, seg, off, len, linear);
    const struct cpu_segment *s = &cpu->seg[seg];
    if (soft_protected(cpu) && !type_permits(s, acc)) return address_fault(cpu, seg);
    if (!segment_within_limit(s, (uint32_t)off, len)) return address_fault(cpu, seg);
    *linear = (uint32_t)(s->base + off);
    return SOFT_OK;
}

uint64_t soft_effective_address(const struct soft_cpu *cpu, const struct insn *in)
{
    const struct insn_mem *m = &in->mem;
    uint64_t a = (uint64_t)m->disp;
    if (m->base == INSN_RIP)
        a += in->rip + in->len;
    else if (m->base != INSN_NOREG)
        a += cpu->gpr[m->base & 15];
    if (m->index != INSN_NOREG) a += cpu->gpr[m->index & 15] * m->scale;
    return in->addr_size == 8 ? a : in->addr_size == 4 ? (uint32_t)a : (uint16_t)a;
}

enum soft_result soft_near_jump(struct soft_cpu *cpu, uint64_t target, uint32_t op_size)
{
    uint64_t t = op_size == 8 ? target : op_size == 4 ? (uint32_t)target : (uint16_t)target;
    if (soft_code64(cpu)) {
        if (!soft_canonical(t)) return soft_raise_err(cpu, EXC_GP, 0);
    } else if (t > cpu->seg[SEG_CS].limit) {
        return soft_raise_err(cpu, EXC_GP, 0);
    }
    cpu->rip = t;
    return SOFT_OK;
}

/* ---- descriptors ---- */

void desc_unpack(struct soft_desc *d)
{
    uint64_t r = d->raw;
    d->attr = (r >> 40) & 0xf0ff;
    d->limit = (uint32_t)((r & 0xffff) | ((r >> 32) & 0xf0000));
    if (d->attr & SEG_ATTR_G) d->limit = d->limit << 12 | 0xfff;
    d->base = ((r >> 16) & 0xffffff) | ((r >> 32) & 0xff000000);
}

/* Linear address of the descriptor, or SOFT_FAULT when its `size` bytes aren't in the table. */
static enum soft_result desc_locate(struct soft_cpu *cpu, uint16_t sel, unsigned size, uint8_t vector, uint32_t ext,
                                    uint64_t *addr)
{
    uint64_t base = cpu->gdt.base;
    uint32_t limit = cpu->gdt.limit;
    bool usable = true;
    if (sel & 4) {
        base = cpu->ldtr.base;
        limit = cpu->ldtr.limit;
        usable = !(cpu->ldtr.attr & SEG_ATTR_NULL) && (cpu->ldtr.attr & SEG_ATTR_P);
    }
    uint32_t off = sel & ~7u;
    if (!usable || off + size - 1 > limit) return soft_raise_err(cpu, vector, (sel & ~3u) | ext);
    *addr = base + off;
    if (!soft_long_mode(cpu)) *addr = (uint32_t)*addr;
    return SOFT_OK;
}

enum soft_result desc_read(struct soft_cpu *cpu, uint16_t sel, uint8_t vector, uint32_t ext, struct soft_desc *d)
{
    enum soft_result r = desc_locate(cpu, sel, 8, vector, ext, &d->addr);
    if (r != SOFT_OK) return r;
    d->raw = 0;
    d->raw_high = 0;
    r = soft_load_sys(cpu, d->addr, &d->raw, 8);
    if (r == SOFT_OK) desc_unpack(d);
    return r;
}

enum soft_result desc_read_system(struct soft_cpu *cpu, uint16_t sel, uint8_t vector, uint32_t ext, struct soft_desc *d)
{
    if (!soft_long_mode(cpu)) return desc_read(cpu, sel, vector, ext, d);
    enum soft_result r = desc_locate(cpu, sel, 16, vector, ext, &d->addr);
    if (r != SOFT_OK) return r;
    uint64_t both[2] = {0, 0};
    r = soft_load_sys(cpu, d->addr, both, 16);
    d->raw = both[0];
    d->raw_high = both[1];
    desc_unpack(d);
    d->base |= d->raw_high << 32;
    return r;
}

/* Other vCPUs may change the same descriptor, so the bits go in with one locked operation on the byte that has the
 * type; where that can't be had (MMIO, a page with code in it), with a plain store (SDM vol. 3 8.1.2.1). */
static enum soft_result desc_change_type(struct soft_cpu *cpu, struct soft_desc *d, uint8_t set, uint8_t clear)
{
    uint8_t *host = NULL;
    gpa_t gpa;
    uint64_t a = d->addr + 5;
    enum soft_result r = soft_tlb_lookup(cpu, GVA(a), ACC_WRITE, MMU_KERNEL, &host, &gpa);
    if (r != SOFT_OK) return r;
    if (!host) {
        uint8_t byte = (uint8_t)((d->raw >> 40 | set) & ~(uint64_t)clear);
        r = soft_store_sys(cpu, a, &byte, 1);
        if (r != SOFT_OK) return r;
    } else if (set) {
        __atomic_fetch_or(host, set, __ATOMIC_SEQ_CST);
    } else {
        __atomic_fetch_and(host, (uint8_t)~clear, __ATOMIC_SEQ_CST);
    }
    d->raw = (d->raw | (uint64_t)set << 40) & ~((uint64_t)clear << 40);
    d->attr = (d->attr | set) & ~(uint32_t)clear;
    return SOFT_OK;
}

enum soft_result desc_set_type(struct soft_cpu *cpu, struct soft_desc *d, uint8_t bits)
{
    return (d->attr & bits) == bits ? SOFT_OK : desc_change_type(cpu, d, bits, 0);
}

enum soft_result desc_clear_type(struct soft_cpu *cpu, struct soft_desc *d, uint8_t bits)
{
    return d->attr & bits ? desc_change_type(cpu, d, 0, bits) : SOFT_OK;
}

/* ---- segment registers ---- */

void segment_set(struct cpu_segment *s, uint16_t selector, const struct soft_desc *d)
{
    s->selector = selector;
    s->attr = d->attr;
    s->limit = d->limit;
    s->base = d->base;
}

void segment_set_null(struct cpu_segment *s, uint16_t selector)
{
    s->selector = selector;
    s->attr = SEG_ATTR_NULL;
    s->limit = 0;
    s->base = 0;
}

void segment_set_flat(struct cpu_segment *s, uint16_t selector, uint32_t attr, unsigned dpl)
{
    s->selector = selector;
    s->attr = attr | dpl << SEG_ATTR_DPL_SHIFT;
    s->limit = 0xffffffff;
    s->base = 0;
}

/* Limit and attributes survive (SDM vol. 3 9.9.2; "unreal mode" lives on it), but what was unusable becomes a plain segment. */
void segment_set_real(struct cpu_segment *s, uint16_t selector)
{
    if ((s->attr & SEG_ATTR_NULL) || !(s->attr & SEG_ATTR_P)) {
        s->attr = 0x93;
        s->limit = 0xffff;
    }
    s->selector = selector;
    s->base = (uint64_t)selector << 4;
}

enum soft_result stack_segment_check(struct soft_cpu *cpu, uint16_t sel, unsigned cpl, uint8_t vector, uint32_t ext,
                                     struct soft_desc *d)
{
    enum soft_result r = desc_read(cpu, sel, vector, ext, d);
    if (r != SOFT_OK) return r;
    uint32_t err = (sel & ~3u) | ext;
    if ((sel & 3u) != cpl || desc_dpl(d) != cpl || !desc_is_writable_data(d)) return soft_raise_err(cpu, vector, err);
    if (!desc_present(d)) return soft_raise_err(cpu, EXC_SS, err);
    return desc_set_type(cpu, d, TYPE_ACCESSED);
}

static enum soft_result load_ss(struct soft_cpu *cpu, uint16_t sel)
{
    if (selector_is_null(sel)) {
        if (!soft_code64(cpu) || cpu->cpl == 3 || (sel & 3u) != cpu->cpl) return soft_raise_err(cpu, EXC_GP, 0);
        segment_set_null(&cpu->seg[SEG_SS], sel);
        return SOFT_OK;
    }
    struct soft_desc d;
    enum soft_result r = stack_segment_check(cpu, sel, cpu->cpl, EXC_GP, 0, &d);
    if (r == SOFT_OK) segment_set(&cpu->seg[SEG_SS], sel, &d);
    return r;
}

static enum soft_result load_data(struct soft_cpu *cpu, enum cpu_seg seg, uint16_t sel)
{
    if (selector_is_null(sel)) {
        segment_set_null(&cpu->seg[seg], sel);
        return SOFT_OK;
    }
    struct soft_desc d;
    enum soft_result r = desc_read(cpu, sel, EXC_GP, 0, &d);
    if (r != SOFT_OK) return r;
    uint32_t err = sel & ~3u;
    bool code = d.attr & TYPE_CODE;
    bool readable = (d.attr & SEG_ATTR_S) && (!code || (d.attr & TYPE_WRITABLE));
    if (!readable) return soft_raise_err(cpu, EXC_GP, err);
    unsigned dpl = desc_dpl(&d), rpl = sel & 3u;
    bool free_for_all = code && desc_conforming(&d);
    if (!free_for_all && (rpl > dpl || cpu->cpl > dpl)) return soft_raise_err(cpu, EXC_GP, err);
    if (!desc_present(&d)) return soft_raise_err(cpu, EXC_NP, err);
    r = desc_set_type(cpu, &d, TYPE_ACCESSED);
    if (r == SOFT_OK) segment_set(&cpu->seg[seg], sel, &d);
    return r;
}

enum soft_result soft_load_segment(struct soft_cpu *cpu, enum cpu_seg seg, uint16_t selector)
{
    enum soft_result r = SOFT_OK;
    if (seg == SEG_CS) return soft_raise(cpu, EXC_UD);
    if (!soft_protected(cpu))
        segment_set_real(&cpu->seg[seg], selector);
    else
        r = seg == SEG_SS ? load_ss(cpu, selector) : load_data(cpu, seg, selector);
    if (r == SOFT_OK) soft_update_mode(cpu);
    return r;
}

/* ---- the stack ---- */

uint64_t stack_mask(const struct soft_cpu *cpu)
{
    if (soft_code64(cpu)) return ~0ull;
    return cpu->seg[SEG_SS].attr & SEG_ATTR_DB ? 0xffffffffull : 0xffffull;
}

void stack_set_pointer(struct soft_cpu *cpu, uint64_t sp)
{
    uint64_t m = stack_mask(cpu);
    cpu->gpr[R_RSP] = (cpu->gpr[R_RSP] & ~m) | (sp & m);
}

enum soft_result stack_push(struct soft_cpu *cpu, uint64_t v, unsigned size)
{
    uint64_t sp = (cpu->gpr[R_RSP] - size) & stack_mask(cpu), a;
    enum soft_result r = soft_linear(cpu, SEG_SS, sp, size, ACC_WRITE, &a);
    if (r == SOFT_OK) r = soft_store_u64(cpu, a, v, size);
    if (r == SOFT_OK) stack_set_pointer(cpu, sp);
    return r;
}

enum soft_result stack_peek(struct soft_cpu *cpu, uint32_t off, unsigned size, uint64_t *v)
{
    uint64_t sp = (cpu->gpr[R_RSP] + off) & stack_mask(cpu), a;
    enum soft_result r = soft_linear(cpu, SEG_SS, sp, size, ACC_READ, &a);
    return r == SOFT_OK ? soft_load_u64(cpu, a, v, size) : r;
}

/* ---- operands ---- */

enum soft_result operand_linear(struct soft_cpu *cpu, const struct insn *in, uint32_t off, uint32_t len,
                                enum soft_access acc, uint64_t *linear)
{
    uint64_t ea = soft_effective_address(cpu, in) + off;
    if (in->addr_size == 4) ea = (uint32_t)ea;
    if (in->addr_size == 2) ea = (uint16_t)ea;
    return soft_linear(cpu, (enum cpu_seg)in->mem.seg, ea, len, acc, linear);
}

enum soft_result operand_read(struct soft_cpu *cpu, const struct insn *in, unsigned i, unsigned size, uint64_t *v)
{
    if (in->op[i].kind == OP_REG) {
        uint64_t x = cpu->gpr[in->op[i].reg & 15];
        *v = size == 8 ? x : size == 4 ? (uint32_t)x : size == 2 ? (uint16_t)x : (uint8_t)x;
        return SOFT_OK;
    }
    uint64_t a;
    enum soft_result r = operand_linear(cpu, in, 0, size, ACC_READ, &a);
    return r == SOFT_OK ? soft_load_u64(cpu, a, v, size) : r;
}

enum soft_result operand_write(struct soft_cpu *cpu, const struct insn *in, unsigned i, unsigned size, uint64_t v)
{
    if (in->op[i].kind == OP_REG) {
        soft_gpr_write(cpu, in->op[i].reg & 15, v, size);
        return SOFT_OK;
    }
    uint64_t a;
    enum soft_result r = operand_linear(cpu, in, 0, size, ACC_WRITE, &a);
    return r == SOFT_OK ? soft_store_u64(cpu, a, v, size) : r;
}
