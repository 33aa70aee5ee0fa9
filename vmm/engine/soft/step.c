/* One instruction at a time: what translated blocks leave to C, and everything in modes the translator does not cover. Whatever
 * is not a special instruction runs natively in a thunk, on the operand itself or on a copy of it (MMIO, page borders). */
#include "vmm/engine/soft/ram.h"
#include "vmm/engine/soft/segment.h"
#include "vmm/engine/soft/xlat.h"

static enum soft_result gate_fault(struct soft_cpu *cpu, uint8_t gate)
{
    bool ts = cpu->cr0 & CR0_TS, em = cpu->cr0 & CR0_EM;
    uint64_t avx = 6, avx512 = 0xe6;
    switch (gate) {
    case GATE_X87:
        return em || ts ? soft_raise(cpu, EXC_NM) : SOFT_OK;
    case GATE_MMX:
        return em ? soft_raise(cpu, EXC_UD) : ts ? soft_raise(cpu, EXC_NM) : SOFT_OK;
    case GATE_SSE:
        if (em || !(cpu->cr4 & CR4_OSFXSR))
            return soft_raise(cpu, EXC_UD);
        return ts ? soft_raise(cpu, EXC_NM) : SOFT_OK;
    case GATE_AVX:
    case GATE_AVX512: {
        uint64_t need = gate == GATE_AVX ? avx : avx512;
        bool legacy = !(cpu->cr0 & CR0_PE);
        if (legacy || !(cpu->cr4 & CR4_OSXSAVE) || (cpu->xcr0 & need) != need)
            return soft_raise(cpu, EXC_UD);
        return ts ? soft_raise(cpu, EXC_NM) : SOFT_OK;
    }
    default:
        return SOFT_OK;
    }
}

static void merge_flags(struct soft_cpu *cpu)
{
    cpu->rflags = (cpu->rflags & ~(uint64_t)(FL_ARITH | FL_DF)) | (cpu->tmp[1] & (FL_ARITH | FL_DF));
}

/* Runs a thunk on the operand at `operand`. */
static enum soft_result run_thunk(struct soft_cpu *cpu, const struct step_entry *e, void *operand)
{
    uint64_t lent = e->scratch < 16 ? cpu->gpr[e->scratch] : 0;
    cpu->tmp[5] = (uint64_t)(uintptr_t)operand;
    cpu->tmp[1] = cpu->rflags & (FL_ARITH | FL_DF);
    soft_fpu_resume(cpu);
    enum soft_host_exit hx = soft_enter(cpu, e->thunk);
    if (e->scratch < 16)
        cpu->gpr[e->scratch] = lent;
    merge_flags(cpu);
    if (hx == HX_THUNK)
        return SOFT_OK;
    int trap = cpu->priv->fault_trap;
    if (trap == EXC_GP || trap == EXC_AC)
        return soft_raise_err(cpu, (uint8_t)trap, 0);
    if (trap == EXC_PF) /* non-canonical or kernel address computed by the instruction itself: only a translator bug gets here */
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

static bool crosses(uint64_t a, uint32_t len)
{
    return ((a ^ (a + len - 1)) & PAGE_MASK) != 0;
}

/* The operand in guest RAM itself, when it lies in one page of it: keeps LOCK atomic. NULL: use the bounce buffer. */
static enum soft_result direct_operand(struct soft_cpu *cpu, const struct xinsn *x, uint64_t linear, uint8_t **host, gpa_t *gpa)
{
    uint32_t size = x->mem_size ? x->mem_size : 1;
    *host = NULL;
    if (crosses(linear, size) || (cpu->dr[7] & 0xff) || (cpu->mode & MODE_AC))
        return SOFT_OK;
    enum soft_access acc = x->mem_write ? ACC_WRITE : ACC_READ;
    enum soft_result r = soft_tlb_lookup(cpu, GVA(linear), acc, (enum soft_mmu_idx)cpu->mmu_idx, host, gpa);
    if (r == SOFT_OK && !*host)
        *host = soft_ram(soft_memory(cpu), gpa->v, size, x->mem_write);
    return r;
}

/* Lanes that a mask turns off neither fault nor count: what can be had of the operand, byte-wise by page. */
static bool masked_part(struct soft_cpu *cpu, uint64_t linear, uint32_t len, bool write, uint8_t *buf, bool have[2])
{
    uint32_t first = crosses(linear, len) ? (uint32_t)(PAGE_SIZE - (linear & ~PAGE_MASK)) : len;
    uint32_t part[2] = {first, len - first}, at = 0;
    for (unsigned i = 0; i < 2; i++) {
        have[i] = true;
        if (!part[i])
            continue;
        enum soft_result r = soft_load(cpu, GVA(linear + at), buf + at, part[i], (enum soft_mmu_idx)cpu->mmu_idx);
        if (r == SOFT_OK && write)
            r = soft_probe_store(cpu, GVA(linear + at), part[i], (enum soft_mmu_idx)cpu->mmu_idx);
        if (r == SOFT_EXIT)
            return false;
        have[i] = r == SOFT_OK;
        at += part[i];
    }
    cpu->exc.pending = false;
    return true;
}

static enum soft_result run_masked(struct soft_cpu *cpu, const struct xinsn *x, const struct step_entry *e, uint64_t linear)
{
    uint32_t size = x->mem_size ? x->mem_size : 1;
    bool have[2];
    uint8_t before[64];
    if (size > 64)
        return soft_raise(cpu, EXC_UD);
    soft_zero(cpu->bounce, sizeof cpu->bounce);
    if (!masked_part(cpu, linear, size, x->mem_write, cpu->bounce, have))
        return SOFT_EXIT;
    soft_copy(before, cpu->bounce, size);
    enum soft_result r = run_thunk(cpu, e, cpu->bounce);
    if (r != SOFT_OK || !x->mem_write)
        return r;
    /* Only bytes that changed are written: lanes that are off keep what other vCPUs may have stored meanwhile. */
    uint32_t at = 0;
    while (at < size) {
        uint32_t n = 0;
        while (at + n < size && cpu->bounce[at + n] != before[at + n])
            n++;
        if (n) {
            r = soft_store(cpu, GVA(linear + at), cpu->bounce + at, n, (enum soft_mmu_idx)cpu->mmu_idx);
            if (r != SOFT_OK)
                return r;
        }
        at += n + 1;
    }
    return SOFT_OK;
}

static enum soft_result run_bounced(struct soft_cpu *cpu, const struct xinsn *x, const struct step_entry *e, uint64_t linear)
{
    uint32_t size = x->mem_size ? x->mem_size : 1;
    if (size > sizeof cpu->bounce)
        return soft_raise(cpu, EXC_UD);
    enum soft_result r = SOFT_OK;
    if (x->mem_write)
        r = soft_probe_store(cpu, GVA(linear), size, (enum soft_mmu_idx)cpu->mmu_idx);
    if (r == SOFT_OK && x->mem_read)
        r = soft_load(cpu, GVA(linear), cpu->bounce, size, (enum soft_mmu_idx)cpu->mmu_idx);
    if (r != SOFT_OK)
        return r;
    r = run_thunk(cpu, e, cpu->bounce);
    if (r == SOFT_OK && x->mem_write)
        r = soft_store(cpu, GVA(linear), cpu->bounce, size, (enum soft_mmu_idx)cpu->mmu_idx);
    return r;
}

static enum soft_result native_memory(struct soft_cpu *cpu, const struct xinsn *x, const struct step_entry *e)
{
    uint32_t size = x->mem_size ? x->mem_size : 1;
    uint64_t off = soft_effective_address(cpu, &x->in), linear;
    if (x->bit_string) {
        off += bit_offset(cpu, x);
        if (x->in.addr_size == 4)
            off = (uint32_t)off;
        else if (x->in.addr_size == 2)
            off = (uint16_t)off;
    }
    enum soft_result r = soft_linear(cpu, (enum cpu_seg)x->in.mem.seg, off, size, x->mem_write ? ACC_WRITE : ACC_READ, &linear);
    if (r != SOFT_OK)
        return r;
    uint8_t *host;
    gpa_t gpa;
    if (x->masked)
        return run_masked(cpu, x, e, linear);
    r = direct_operand(cpu, x, linear, &host, &gpa);
    if (r != SOFT_OK)
        return r;
    if (!host)
        return run_bounced(cpu, x, e, linear);
    if (x->bit_string) /* the instruction adds the bit offset once more */
        host -= bit_offset(cpu, x);
    r = run_thunk(cpu, e, host);
    if (x->mem_write && soft_page_has_code(cpu, GPA(gpa.v & PAGE_MASK)))
        soft_code_written(cpu, gpa, size);
    return r;
}

static enum soft_result run_lea(struct soft_cpu *cpu, const struct insn *in)
{
    soft_reg_write(cpu, &in->op[0], soft_effective_address(cpu, in));
    soft_advance(cpu, in);
    return SOFT_OK;
}

/* Instructions that are neither native nor anybody else's. */
static enum soft_result odd_insn(struct soft_cpu *cpu, const struct insn *in)
{
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_LEA:
        return run_lea(cpu, in);
    case ZYDIS_MNEMONIC_PAUSE:
        soft_advance(cpu, in);
        if (++cpu->priv->pauses >= 64) {
            cpu->priv->pauses = 0;
            cpu->exit->kind = VCPU_EXIT_PAUSE;
            return SOFT_EXIT;
        }
        __builtin_ia32_pause();
        return SOFT_OK;
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
        soft_advance(cpu, in);
        return SOFT_OK;
    default:
        return soft_raise(cpu, EXC_UD);
    }
}

/* An instruction whose kind is special: no thunk. */
enum soft_result soft_exec_insn(struct soft_cpu *cpu, const struct xinsn *x)
{
    soft_io_begin(cpu);
    if (x->in.mnemonic == ZYDIS_MNEMONIC_INVALID)
        return soft_raise(cpu, EXC_UD);
    enum soft_result r = soft_general_insn(cpu, &x->in);
    if (r == SOFT_NOT_MINE)
        r = soft_system_insn(cpu, &x->in);
    if (r == SOFT_NOT_MINE && x->uses_vsib)
        r = soft_vsib_insn(cpu, x);
    if (r == SOFT_NOT_MINE)
        r = odd_insn(cpu, &x->in);
    return r;
}

static bool same_bytes(const struct step_entry *e, const uint8_t *bytes, unsigned avail)
{
    if (e->x.in.len > avail)
        return false;
    for (unsigned i = 0; i < e->x.in.len; i++)
        if (e->x.in.bytes[i] != bytes[i])
            return false;
    return true;
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
    unsigned avail;
    enum soft_result r = soft_fetch(cpu, bytes, &avail);
    if (r != SOFT_OK)
        return r;
    unsigned size = soft_code64(cpu) ? 8 : cpu->seg[SEG_CS].attr & SEG_ATTR_DB ? 4 : 2;
    struct step_entry *e = &p->step[(cpu->rip ^ cpu->rip >> 8) % STEP_CACHE_SIZE];
    *out = e;
    if (e->valid && e->rip == cpu->rip && e->x.in.code_size == size && e->generation == p->generation &&
        same_bytes(e, bytes, avail))
        return SOFT_OK;
    soft_fpu_park(cpu);
    e->valid = false;
    int d = soft_decode(bytes, avail, size, cpu->rip, &e->x);
    if (d == -2 && avail < 15) { /* runs into a page that cannot be fetched: fault there */
        struct code_page c;
        uint64_t linear = size == 8 ? cpu->rip + avail : (uint32_t)(cpu->rip + cpu->seg[SEG_CS].base + avail);
        if (size != 8 && cpu->rip + avail > cpu->seg[SEG_CS].limit)
            return soft_raise_err(cpu, EXC_GP, 0);
        r = soft_code_page(cpu, linear, &c);
        return r == SOFT_OK ? SOFT_RESTART : r;
    }
    if (d < 0)
        return d == -2 ? soft_raise_err(cpu, EXC_GP, 0) /* longer than 15 bytes */ : soft_raise(cpu, EXC_UD);
    if (soft_cache_low(p))
        soft_cache_flush(cpu);
    e->rip = cpu->rip;
    e->generation = p->generation;
    e->thunk = 0;
    if (is_native(&e->x))
        e->thunk = soft_make_thunk(cpu, &e->x, &e->scratch);
    e->valid = true;
    return SOFT_OK;
}

enum soft_result soft_step(struct soft_cpu *cpu)
{
    struct step_entry *e;
    enum soft_result r = fetch_decoded(cpu, &e);
    cpu->stat[ST_STEP]++;
    if (r != SOFT_OK)
        return r;
    const struct xinsn *x = &e->x;
    if (x->in.lock && x->kind == XK_SPECIAL)
        return soft_raise(cpu, EXC_UD);
    r = gate_fault(cpu, x->gate);
    if (r != SOFT_OK)
        return r;
    switch (x->kind) {
    case XK_NOP:
        r = SOFT_OK;
        break;
    case XK_LEA_RIP:
        return run_lea(cpu, &x->in);
    case XK_COPY:
        r = run_thunk(cpu, e, NULL);
        break;
    case XK_MEM:
        soft_io_begin(cpu);
        r = native_memory(cpu, x, e);
        break;
    default:
        return soft_exec_insn(cpu, x);
    }
    if (r == SOFT_OK)
        soft_advance(cpu, &x->in);
    return r;
}
