/* Gathers and scatters. Their lanes go to unrelated addresses, so they run lane by lane through the TLB. A lane that is done leaves the mask;
 * when a later one faults, the instruction starts again with what is left (SDM vol. 2, VPGATHERDD). */
#include "vmm/engine/soft/step.h"

#define DR6_BS (1ull << 14)

struct vsib {
    bool evex, scatter;
    uint8_t data_reg, mask_reg;
    unsigned vl;          /* bytes */
    unsigned data, index; /* bytes per element */
    unsigned lanes;
    uint64_t todo; /* a bit per lane */
    uint64_t opmask;
    uint8_t indices[64], values[64], vmask[64];
};

static bool parse(const struct xinsn *x, struct vsib *v)
{
    const struct insn *in = &x->in;
    if (x->modrm_off < 3 || !in->has_mem || (x->mem_size != 4 && x->mem_size != 8)) return false;
    uint8_t opcode = in->bytes[x->modrm_off - 1], last = in->bytes[x->modrm_off - 2];
    v->evex = x->enc == ENC_EVEX;
    v->scatter = x->mem_write;
    v->vl = v->evex ? 16u << (last >> 5 & 3) : 16u << (last >> 2 & 1);
    v->data = x->mem_size;
    v->index = opcode & 1 ? 8 : 4;
    v->lanes = v->vl / (v->data > v->index ? v->data : v->index);
    v->data_reg = in->op[v->scatter ? 2 : 0].reg;
    v->mask_reg = v->evex ? last & 7 : in->op[2].reg;
    return v->vl <= 64;
}

static unsigned whole_register(const struct soft_cpu *cpu)
{
    return cpu->cpuid.feature[0][1] & 1u << 16 ? 64 : 32; /* AVX512F */
}

static unsigned vec_bytes(const struct vsib *v, unsigned element)
{
    unsigned n = v->lanes * element;
    return n < 16 ? 16 : n;
}

static void read_registers(struct soft_cpu *cpu, const struct xinsn *x, struct vsib *v)
{
    soft_vec_read(cpu, x->in.mem.index, vec_bytes(v, v->index), v->indices);
    soft_vec_read(cpu, v->data_reg, whole_register(cpu), v->values);
    if (v->evex) {
        v->opmask = soft_opmask_read(cpu, v->mask_reg);
        v->todo = v->opmask & ((1ull << v->lanes) - 1);
        return;
    }
    soft_vec_read(cpu, v->mask_reg, whole_register(cpu), v->vmask);
    for (unsigned i = 0; i < v->lanes; i++) v->todo |= (uint64_t)(v->vmask[i * v->data + v->data - 1] >> 7) << i;
}

static void lane_done(struct vsib *v, unsigned lane)
{
    v->todo &= ~(1ull << lane);
    v->opmask &= ~(1ull << lane);
    if (!v->evex) soft_zero(v->vmask + lane * v->data, v->data);
}

/* Stopped before a lane that faults: only what is done shows. */
static void commit_part(struct soft_cpu *cpu, const struct vsib *v, bool any_done)
{
    if (!v->scatter && any_done) soft_vec_write(cpu, v->data_reg, v->evex ? v->vl : whole_register(cpu), v->values);
    if (v->evex)
        soft_opmask_write(cpu, v->mask_reg, v->opmask);
    else
        soft_vec_write(cpu, v->mask_reg, whole_register(cpu), v->vmask);
}

static void commit_all(struct soft_cpu *cpu, struct vsib *v)
{
    unsigned n = v->lanes * v->data;
    if (!v->scatter) {
        if (n < 16) /* half a register */
            soft_zero(v->values + n, 16 - n);
        soft_vec_write(cpu, v->data_reg, vec_bytes(v, v->data), v->values);
    }
    if (v->evex) {
        soft_opmask_write(cpu, v->mask_reg, 0);
        return;
    }
    soft_zero(v->vmask, 16);
    soft_vec_write(cpu, v->mask_reg, 16, v->vmask);
}

static uint64_t lane_offset(const struct soft_cpu *cpu, const struct insn *in, const struct vsib *v, unsigned lane)
{
    int64_t index = 0;
    for (unsigned i = 0; i < v->index; i++) index |= (int64_t)((uint64_t)v->indices[lane * v->index + i] << (8 * i));
    if (v->index == 4) index = (int32_t)index;
    uint64_t a = (uint64_t)index * in->mem.scale + (uint64_t)in->mem.disp;
    if (in->mem.base < 16) a += cpu->gpr[in->mem.base];
    return in->addr_size == 8 ? a : (uint32_t)a;
}

static enum soft_result do_lane(struct soft_cpu *cpu, const struct insn *in, struct vsib *v, unsigned lane)
{
    uint64_t linear;
    uint8_t *value = v->values + lane * v->data;
    enum soft_result r = soft_linear(cpu, (enum cpu_seg)in->mem.seg, lane_offset(cpu, in, v, lane), v->data,
                                     v->scatter ? ACC_WRITE : ACC_READ, &linear);
    if (r != SOFT_OK) return r;
    return v->scatter ? soft_store(cpu, GVA(linear), value, v->data, soft_data_idx(cpu))
                      : soft_load(cpu, GVA(linear), value, v->data, soft_data_idx(cpu));
}

/* Lanes before this one are done: a trap that is due for them comes in place of the fault (SDM vol. 2, VPGATHERDD). */
static enum soft_result stop_at_fault(struct soft_cpu *cpu, const struct vsib *v, bool any_done)
{
    commit_part(cpu, v, any_done);
    if (!any_done || !((cpu->rflags & FL_TF) || cpu->pending_db)) return SOFT_FAULT;
    cpu->exc.pending = false;
    if (cpu->rflags & FL_TF) cpu->pending_db |= DR6_BS;
    return SOFT_RESTART;
}

enum soft_result soft_vsib_insn(struct soft_cpu *cpu, const struct xinsn *x)
{
    struct vsib v;
    bool any_done = false;
    v.todo = v.opmask = 0;
    if (!parse(x, &v)) return soft_raise(cpu, EXC_UD);
    read_registers(cpu, x, &v);
    for (unsigned i = 0; i < v.lanes; i++) {
        if (!(v.todo >> i & 1)) {
            lane_done(&v, i);
            continue;
        }
        enum soft_result r = do_lane(cpu, &x->in, &v, i);
        if (r == SOFT_EXIT) /* a device's answer is needed: nothing has happened yet */
            return r;
        if (r != SOFT_OK) return stop_at_fault(cpu, &v, any_done);
        lane_done(&v, i);
        any_done = true;
        if (cpu->io.writes && v.todo) { /* a later fault would take this lane's write to a device back */
            commit_part(cpu, &v, true);
            return SOFT_RESTART;
        }
    }
    commit_all(cpu, &v);
    soft_advance(cpu, &x->in);
    return SOFT_OK;
}
