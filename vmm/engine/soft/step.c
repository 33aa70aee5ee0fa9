/* One instruction at a time: what translated blocks leave to C, and everything in modes the translator does not cover. Whatever
 * is not a special instruction runs natively in a thunk, on the operand itself or on a copy of it (MMIO, page borders). */
#include "vmm/engine/soft/ram.h"
#include "vmm/engine/soft/segment.h"
#include "vmm/engine/soft/step.h"

static enum soft_result gate_fault(struct soft_cpu *cpu, uint8_t gate)
{
    bool ts = cpu->cr0 & CR0_TS, em = cpu->cr0 & CR0_EM;
    uint64_t avx = 6, avx512 = 0xe6;
    switch (gate) {
    case GATE_X87: return em || ts ? soft_raise(cpu, EXC_NM) : SOFT_OK;
    case GATE_FWAIT: /* SDM vol. 3 table 2-2 */ return ts && (cpu->cr0 & CR0_MP) ? soft_raise(cpu, EXC_NM) : SOFT_OK;
    case GATE_MMX: return em ? soft_raise(cpu, EXC_UD) : ts ? soft_raise(cpu, EXC_NM) : SOFT_OK;
    case GATE_SSE:
        if (em || !(cpu->cr4 & CR4_OSFXSR)) return soft_raise(cpu, EXC_UD);
        return ts ? soft_raise(cpu, EXC_NM) : SOFT_OK;
    case GATE_AVX:
    case GATE_AVX512: {
        uint64_t need = gate == GATE_AVX ? avx : avx512;
        bool legacy = !(cpu->cr0 & CR0_PE);
        if (legacy || !(cpu->cr4 & CR4_OSXSAVE) || (cpu->xcr0 & need) != need) return soft_raise(cpu, EXC_UD);
        return ts ? soft_raise(cpu, EXC_NM) : SOFT_OK;
    }
    default: return SOFT_OK;
    }
}

enum soft_result soft_run_thunk(struct soft_cpu *cpu, const struct step_entry *e, void *operand)
{
    uint64_t lent = e->scratch < 16 ? cpu->gpr[e->scratch] : 0;
    cpu->tmp[5] = (uint64_t)(uintptr_t)operand;
    uint64_t before = cpu->rflags;
    soft_give_flags(cpu);
    soft_fpu_resume(cpu);
    enum soft_host_exit hx = soft_enter(cpu, e->thunk);
    if (e->scratch < 16) cpu->gpr[e->scratch] = lent;
    soft_take_flags(cpu, cpu->tmp[1]);
    if ((cpu->rflags ^ before) & FL_DF) soft_update_mode(cpu);
    if (hx == HX_THUNK) return SOFT_OK;
    int trap = cpu->priv->fault_trap;
    if (trap == EXC_GP || trap == EXC_AC) return soft_raise_err(cpu, (uint8_t)trap, 0);
    if (trap == EXC_XM && !(cpu->cr4 & CR4_OSXMMEXCPT)) /* SDM vol. 3 2.5 */
        return soft_raise(cpu, EXC_UD);
    if (trap ==
        EXC_PF) /* non-canonical or kernel address computed by the instruction itself: only a translator bug gets here */
        return soft_raise_err(cpu, EXC_GP, 0);
    return soft_raise(cpu, (uint8_t)trap);
}

static uint64_t bit_offset(const struct soft_cpu *cpu, const struct xinsn *x)
{
    uint64_t v = cpu->gpr[x->in.op[1].reg];
    switch (x->in.op_size) {
    case 8: return (uint64_t)((int64_t)v >> 6) * 8;
    case 4: return (uint64_t)(int64_t)(((int32_t)v >> 5) * 4);
    default: return (uint64_t)(int64_t)(((int16_t)v >> 4) * 2);
    }
}

/* ---- where the operand is ---- */

struct operand {
    uint64_t linear;
    uint32_t size;
    uint8_t *host; /* all of it, in guest RAM; NULL: a device, or pages that don't lie together on the host */
    gpa_t gpa;     /* of its first byte */
};

static uint64_t unchecked_linear(const struct soft_cpu *cpu, enum cpu_seg seg, uint64_t off)
{
    if (!soft_code64(cpu)) return (uint32_t)(off + cpu->seg[seg].base);
    return seg == SEG_FS || seg == SEG_GS ? off + cpu->seg[seg].base : off;
}

/* Its #GP(0) goes before what the segment or paging has against the address. */
static bool badly_aligned(struct soft_cpu *cpu, const struct xinsn *x, uint64_t linear)
{
    if (!x->aligned || !(linear & (x->mem_size - 1u))) return false;
    return !(x->aligned_unless_mm && cpu->cpuid.amd && (soft_mxcsr_read(cpu) & 1u << 17));
}

/* As tlb.c checks it for what is loaded and stored in C. */
static bool alignment_check(const struct soft_cpu *cpu, uint64_t linear, uint32_t size)
{
    return (cpu->mode & MODE_AC) && size <= 8 && !(size & (size - 1)) && (linear & (size - 1));
}

static bool locked(const struct xinsn *x)
{
    return x->in.lock || x->in.mnemonic == ZYDIS_MNEMONIC_XCHG;
}

/* Finds the pages of the operand, which checks permissions for all of it. */
static enum soft_result find_operand(struct soft_cpu *cpu, const struct xinsn *x, struct operand *o)
{
    enum soft_access acc = x->mem_write ? ACC_WRITE : ACC_READ;
    o->host = NULL;
    if (alignment_check(cpu, o->linear, o->size)) return soft_raise_err(cpu, EXC_AC, 0);
    enum soft_result r = soft_tlb_lookup(cpu, GVA(o->linear), acc, soft_data_idx(cpu), &o->host, &o->gpa);
    if (r != SOFT_OK) return r;
    bool together = true;
    if (soft_crosses_page(o->linear, o->size)) {
        uint8_t *next_host;
        gpa_t next_gpa;
        uint64_t next = (o->linear & PAGE_MASK) + PAGE_SIZE;
        if (!soft_code64(cpu)) next = (uint32_t)next;
        r = soft_tlb_lookup(cpu, GVA(next), acc, soft_data_idx(cpu), &next_host, &next_gpa);
        if (r != SOFT_OK) return r;
        o->host = NULL;
        together = next_gpa.v == (o->gpa.v & PAGE_MASK) + PAGE_SIZE;
    }
    if (!o->host && together) o->host = soft_ram(soft_memory(cpu), o->gpa.v, o->size, x->mem_write);
    return SOFT_OK;
}

static void note_code_written(struct soft_cpu *cpu, const struct operand *o)
{
    uint64_t last = o->gpa.v + o->size - 1;
    soft_write_fence();
    if (soft_page_has_code(cpu, GPA(o->gpa.v & PAGE_MASK)))
        soft_code_written(
            cpu, o->gpa,
            (uint32_t)((last & PAGE_MASK) == (o->gpa.v & PAGE_MASK) ? o->size : PAGE_SIZE - (o->gpa.v & ~PAGE_MASK)));
    if ((last & PAGE_MASK) != (o->gpa.v & PAGE_MASK) && soft_page_has_code(cpu, GPA(last & PAGE_MASK)))
        soft_code_written(cpu, GPA(last & PAGE_MASK), (uint32_t)(last & ~PAGE_MASK) + 1);
}

/* The bit offset's part of the address is in `linear` already, and the instruction adds it once more. */
static uint8_t *without_bit_offset(const struct soft_cpu *cpu, const struct xinsn *x, uint8_t *host)
{
    return x->bit_string ? host - bit_offset(cpu, x) : host;
}

/* ---- running on it ---- */

static enum soft_result run_direct(struct soft_cpu *cpu, const struct xinsn *x, const struct step_entry *e,
                                   const struct operand *o)
{
    enum soft_result r = soft_run_thunk(cpu, e, without_bit_offset(cpu, x, o->host));
    if (x->mem_write) note_code_written(cpu, o);
    if (r == SOFT_OK) soft_note_access(cpu, GVA(o->linear), o->size, x->mem_write);
    return r;
}

static enum soft_result run_on_copy(struct soft_cpu *cpu, const struct xinsn *x, const struct step_entry *e,
                                    const struct operand *o)
{
    uint8_t *copy = soft_bounce_at(cpu, o->linear, o->size);
    enum soft_result r = SOFT_OK;
    if (x->mem_read || x->gate == GATE_X87) /* an unmasked exception keeps x87 instructions from storing */
        r = soft_load(cpu, GVA(o->linear), copy, o->size, soft_data_idx(cpu));
    if (r == SOFT_OK) r = soft_run_thunk(cpu, e, without_bit_offset(cpu, x, copy));
    if (r == SOFT_OK && x->mem_write) r = soft_store(cpu, GVA(o->linear), copy, o->size, soft_data_idx(cpu));
    return r;
}

/* Locked operations on copies exclude each other. */
static enum soft_result run_bounced(struct soft_cpu *cpu, const struct xinsn *x, const struct step_entry *e,
                                    const struct operand *o)
{
    if (o->size + 16 > sizeof cpu->bounce && o->size > 64) return soft_raise(cpu, EXC_UD);
    if (!locked(x)) return run_on_copy(cpu, x, e, o);
    _Atomic uint32_t *lock = &cpu->engine->bus_lock;
    while (atomic_exchange_explicit(lock, 1, memory_order_acquire)) __builtin_ia32_pause();
    enum soft_result r = run_on_copy(cpu, x, e, o);
    atomic_store_explicit(lock, 0, memory_order_release);
    return r;
}

static enum soft_result native_memory(struct soft_cpu *cpu, const struct xinsn *x, const struct step_entry *e)
{
    struct operand o = {.size = x->mem_size ? x->mem_size : 1};
    if (x->checks_mf && soft_pending_mf(cpu) != SOFT_OK) return SOFT_FAULT;
    uint64_t off = soft_effective_address(cpu, &x->in);
    if (x->bit_string) {
        off += bit_offset(cpu, x);
        if (x->in.addr_size == 4)
            off = (uint32_t)off;
        else if (x->in.addr_size == 2)
            off = (uint16_t)off;
    }
    o.linear = unchecked_linear(cpu, (enum cpu_seg)x->in.mem.seg, off);
    if (badly_aligned(cpu, x, o.linear) && !(x->masked && soft_mask_is_clear(cpu, x)))
        return soft_raise_err(cpu, EXC_GP, 0);
    if (x->masked) return soft_run_masked(cpu, x, e, off, o.linear);
    enum soft_access acc = x->mem_write ? ACC_WRITE : ACC_READ;
    enum soft_result r = soft_linear(cpu, (enum cpu_seg)x->in.mem.seg, off, o.size, acc, &o.linear);
    if (r != SOFT_OK) return r;
    r = find_operand(cpu, x, &o);
    if (r != SOFT_OK) return r;
    return o.host ? run_direct(cpu, x, e, &o) : run_bounced(cpu, x, e, &o);
}

static enum soft_result run_lea(struct soft_cpu *cpu, const struct insn *in)
{
    soft_reg_write(cpu, &in->op[0], soft_effective_address(cpu, in));
    soft_advance(cpu, in);
    return SOFT_OK;
}

/* Instructions that are neither native nor anybody else's. */
static enum soft_result odd_insn(struct soft_cpu *cpu, const struct xinsn *x)
{
    const struct insn *in = &x->in;
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_LEA: return run_lea(cpu, in);
    case ZYDIS_MNEMONIC_PAUSE:
        soft_advance(cpu, in);
        if (++cpu->priv->pauses >= 64) {
            cpu->priv->pauses = 0;
            cpu->exit->kind = VCPU_EXIT_PAUSE;
            return SOFT_EXIT;
        }
        __builtin_ia32_pause();
        return SOFT_OK;
    case ZYDIS_MNEMONIC_VZEROALL:
    case ZYDIS_MNEMONIC_VZEROUPPER: /* in 16/32-bit code */
        for (unsigned i = 0; i < 8; i++) soft_vec_clear(cpu, i, in->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER);
        soft_advance(cpu, in);
        return SOFT_OK;
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU: return soft_maskmov_insn(cpu, x);
    default: return soft_raise(cpu, EXC_UD);
    }
}

/* An instruction whose kind is special: no thunk. */
enum soft_result soft_exec_insn(struct soft_cpu *cpu, struct xinsn *x)
{
    soft_io_begin(cpu);
    if (x->in.mnemonic == ZYDIS_MNEMONIC_INVALID) return soft_raise(cpu, EXC_UD);
    enum soft_result r = x->handler ? soft_handlers[x->handler - 1](cpu, &x->in) : SOFT_NOT_MINE;
    for (unsigned i = 0; r == SOFT_NOT_MINE && i < SOFT_HANDLERS; i++) {
        r = soft_handlers[i](cpu, &x->in);
        x->handler = (uint8_t)(i + 1);
    }
    if (r == SOFT_NOT_MINE && x->uses_vsib) r = soft_vsib_insn(cpu, x);
    if (r == SOFT_NOT_MINE) r = odd_insn(cpu, x);
    return r;
}

static bool same_bytes(const struct step_entry *e, const uint8_t *bytes)
{
    for (unsigned i = 0; i < e->x.in.len; i++)
        if (e->x.in.bytes[i] != bytes[i]) return false;
    return true;
}

/* The entry is for this place, and memory still says the same there. False when that takes a closer look. */
static bool still_there(struct soft_cpu *cpu, const struct step_entry *e, unsigned size)
{
    struct code_page c;
    uint64_t last = cpu->rip + e->x.in.len - 1, linear = cpu->rip;
    if (!e->valid || e->rip != cpu->rip || e->x.in.code_size != size || e->generation != cpu->priv->generation)
        return false;
    if (size != 8) {
        if (last > cpu->seg[SEG_CS].limit) return false;
        linear = (uint32_t)(linear + cpu->seg[SEG_CS].base);
    }
    if (!soft_canonical(linear) || soft_crosses_page(linear, e->x.in.len) ||
        soft_code_page(cpu, linear, &c) != SOFT_OK || !c.host) {
        cpu->exc.pending = false;
        return false;
    }
    return same_bytes(e, c.host + (linear & ~PAGE_MASK));
}

static struct step_entry *entry_for(struct soft_private *p, uint64_t rip)
{
    return &p->step[(rip ^ rip >> 12) % STEP_CACHE_SIZE];
}

static bool is_native(const struct xinsn *x)
{
    return x->kind == XK_COPY || x->kind == XK_MEM;
}

/* Decodes the instruction at RIP, or finds it decoded. */
static enum soft_result fetch_decoded(struct soft_cpu *cpu, struct step_entry **out)
{
    struct soft_private *p = cpu->priv;
    uint8_t bytes[15];
    unsigned avail, size = soft_code64(cpu) ? 8 : cpu->seg[SEG_CS].attr & SEG_ATTR_DB ? 4 : 2;
    struct step_entry *e = entry_for(p, cpu->rip);
    *out = e;
    if (still_there(cpu, e, size)) return SOFT_OK;
    enum soft_result r = soft_fetch(cpu, bytes, &avail);
    if (r != SOFT_OK) return r;
    if (e->valid && e->rip == cpu->rip && e->x.in.code_size == size && e->generation == p->generation &&
        e->x.in.len <= avail && same_bytes(e, bytes))
        return SOFT_OK;
    soft_fpu_park(cpu);
    e->valid = false;
    int d = soft_decode(bytes, avail, size, cpu->rip, &e->x);
    if (d == -2 && avail < 15) { /* runs into a page that cannot be fetched: fault there */
        struct code_page c;
        uint64_t linear = size == 8 ? cpu->rip + avail : (uint32_t)(cpu->rip + cpu->seg[SEG_CS].base + avail);
        if (size != 8 && cpu->rip + avail > cpu->seg[SEG_CS].limit) return soft_raise_err(cpu, EXC_GP, 0);
        r = soft_code_page(cpu, linear, &c);
        return r == SOFT_OK ? SOFT_RESTART : r;
    }
    if (d < 0) return d == -2 ? soft_raise_err(cpu, EXC_GP, 0) /* longer than 15 bytes */ : soft_raise(cpu, EXC_UD);
    if (soft_cache_low(p)) soft_cache_flush(cpu);
    e->rip = cpu->rip;
    e->generation = p->generation;
    e->thunk = 0;
    if (is_native(&e->x)) e->thunk = soft_make_thunk(cpu, &e->x, &e->scratch);
    e->valid = true;
    return SOFT_OK;
}

enum soft_result soft_step(struct soft_cpu *cpu)
{
    struct step_entry *e;
    enum soft_result r = fetch_decoded(cpu, &e);
    cpu->stat[ST_STEP]++;
    if (r != SOFT_OK) return r;
    struct xinsn *x = &e->x;
    if (x->in.lock && x->kind == XK_SPECIAL) return soft_raise(cpu, EXC_UD);
    r = gate_fault(cpu, x->gate);
    if (r != SOFT_OK) return r;
    switch (x->kind) {
    case XK_NOP: r = SOFT_OK; break;
    case XK_LEA_RIP: return run_lea(cpu, &x->in);
    case XK_COPY: r = soft_run_thunk(cpu, e, NULL); break;
    case XK_MEM:
        soft_io_begin(cpu);
        r = native_memory(cpu, x, e);
        break;
    default: return soft_exec_insn(cpu, x);
    }
    if (r == SOFT_OK) soft_advance(cpu, &x->in);
    return r;
}
