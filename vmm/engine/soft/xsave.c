/* Saving and restoring FPU state to guest memory: FXSAVE, FXRSTOR, the XSAVE family, XGETBV, XSETBV, LDMXCSR, STMXCSR (SDM vol. 1 chapter 13).
 *
 * The guest's state is live in the host's registers, so the host's own instruction does the work, on an aligned buffer here. What a guest wants
 * restored is checked first: the host must never see a header or an MXCSR that faults. Nothing the host saves with
 * is "modified"-optimized (XSAVEOPT, XSAVES), since that optimization goes by the address of the last restore, which is
 * always this buffer. */
#include "vmm/engine/soft/system.h"

#define AREA 4096 /* CPU_XSAVE_SIZE: more than components 0 .. 7 take */
#define LEGACY 512
#define HEADER 64
#define MXCSR_AT 24
#define XMM_AT 160
#define COMPACTED (1ull << 63)
#define X87 1ull
#define SSE 2ull
#define AVX 4ull

struct area {
    uint8_t b[AREA];
} __attribute__((aligned(64)));

/* ---- the host's instructions ---- */

static uint64_t get64(const uint8_t *p)
{
    uint64_t v;
    soft_copy(&v, p, 8);
    return v;
}

static void put64(uint8_t *p, uint64_t v)
{
    soft_copy(p, &v, 8);
}

#define RUN(op, a, mask) \
    __asm__ volatile(op " %0" : "+m"(*(a)) : "a"((uint32_t)(mask)), "d"((uint32_t)((mask) >> 32)) : "memory")

static void host_xsave(struct area *a, uint64_t mask, bool wide)
{
    soft_zero(a->b + LEGACY, HEADER);
    if (wide)
        RUN("xsave64", a, mask);
    else
        RUN("xsave", a, mask);
}

static void host_xsavec(struct area *a, uint64_t mask, bool wide)
{
    soft_zero(a->b + LEGACY, HEADER);
    if (wide)
        RUN("xsavec64", a, mask);
    else
        RUN("xsavec", a, mask);
}

static void host_xrstor(struct area *a, uint64_t mask, bool wide)
{
    if (wide)
        RUN("xrstor64", a, mask);
    else
        RUN("xrstor", a, mask);
}

static void host_fxsave(struct area *a, bool wide)
{
    if (wide)
        __asm__ volatile("fxsave64 %0" : "+m"(*a));
    else
        __asm__ volatile("fxsave %0" : "+m"(*a));
}

static void host_fxrstor(struct area *a, bool wide)
{
    if (wide)
        __asm__ volatile("fxrstor64 %0" : "+m"(*a));
    else
        __asm__ volatile("fxrstor %0" : "+m"(*a));
}

static uint64_t host_xinuse(void)
{
    uint32_t a, d;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(1));
    return (uint64_t)d << 32 | a;
}

/* Which MXCSR bits exist; looked up once per vCPU. */
static uint32_t mxcsr_mask(struct soft_cpu *cpu)
{
    if (!cpu->cpuid.mxcsr_mask) {
        struct area a;
        uint32_t m;
        host_fxsave(&a, false);
        soft_copy(&m, a.b + MXCSR_AT + 4, 4);
        cpu->cpuid.mxcsr_mask = m ? m : 0xffbf; /* SDM vol. 1 11.6.6 */
    }
    return cpu->cpuid.mxcsr_mask;
}

static bool mxcsr_good(struct soft_cpu *cpu, const uint8_t *image)
{
    uint32_t v;
    soft_copy(&v, image + MXCSR_AT, 4);
    return !(v & ~mxcsr_mask(cpu));
}

/* ---- where components lie in guest memory ---- */

struct layout {
    uint32_t at[CPUID_XSAVE], len[CPUID_XSAVE]; /* components 2 .. 7; `len` is what this mode transfers */
    uint32_t size;
};

/* Outside 64-bit mode registers 8 .. 15 don't exist: the upper halves of their components stay alone, and component 7 (ZMM16-31) wholly. */
static uint32_t transfer_size(unsigned i, uint32_t size, bool code64)
{
    if (code64) return size;
    if (i == 2 || i == 6) return size / 2;
    return i == 7 ? 0 : size;
}

static void make_layout(const struct soft_cpu *cpu, uint64_t mask, bool compact, struct layout *l)
{
    bool code64 = soft_code64(cpu);
    l->size = LEGACY + HEADER;
    for (unsigned i = 2; i < CPUID_XSAVE; i++) {
        const uint32_t *x = cpu->cpuid.xsave[i];
        l->at[i] = l->len[i] = 0;
        if (!(mask >> i & 1)) continue;
        l->at[i] = !compact ? x[1] : x[2] & 2 ? (l->size + 63) & ~63u : l->size;
        l->len[i] = transfer_size(i, x[0], code64);
        uint32_t end = l->at[i] + x[0];
        if (end > l->size) l->size = end;
    }
}

static uint32_t xmm_size(const struct soft_cpu *cpu)
{
    return soft_code64(cpu) ? 256 : 128;
}

/* ---- transfers between the buffer and the guest ---- */

struct transfer {
    struct soft_cpu *cpu;
    uint64_t linear; /* of the guest's image */
    struct area *area;
    bool store;
    enum soft_result r;
};

static void move(struct transfer *t, uint32_t guest_at, uint32_t area_at, uint32_t len)
{
    if (t->r != SOFT_OK || !len) return;
    enum soft_mmu_idx idx = (enum soft_mmu_idx)t->cpu->mmu_idx;
    uint64_t a = t->linear + guest_at;
    t->r = t->store ? soft_store(t->cpu, GVA(a), t->area->b + area_at, len, idx)
                    : soft_load(t->cpu, GVA(a), t->area->b + area_at, len, idx);
}

/* The legacy region in pieces: x87 without MXCSR, MXCSR, XMM; bytes 416 .. 511 are software's and never touched (SDM vol. 1 13.4.1). */
static void move_legacy(struct transfer *t, bool x87, bool mxcsr, bool xmm)
{
    if (x87) move(t, 0, 0, MXCSR_AT);
    if (mxcsr) move(t, MXCSR_AT, MXCSR_AT, 8);
    if (x87) move(t, 32, 32, 128);
    if (xmm) move(t, XMM_AT, XMM_AT, xmm_size(t->cpu));
}

/* Components of `mask`, from 2 up, between the guest's layout and the buffer's. */
static void move_extended(struct transfer *t, const struct layout *guest, const struct layout *buffer, uint64_t mask)
{
    for (unsigned i = 2; i < CPUID_XSAVE; i++)
        if (mask >> i & 1) move(t, guest->at[i], buffer->at[i], guest->len[i]);
}

/* ---- checks common to the family ---- */

static enum soft_result check_xsave(struct soft_cpu *cpu, bool supervisor)
{
    if (!(cpu->cr4 & CR4_OSXSAVE)) return soft_raise(cpu, EXC_UD);
    if (supervisor && sys_privileged(cpu)) return SOFT_FAULT;
    return cpu->cr0 & CR0_TS ? soft_raise(cpu, EXC_NM) : SOFT_OK;
}

static enum soft_result check_fxsave(struct soft_cpu *cpu)
{
    return cpu->cr0 & (CR0_TS | CR0_EM) ? soft_raise(cpu, EXC_NM) : SOFT_OK;
}

static enum soft_result locate(struct soft_cpu *cpu, const struct insn *in, uint32_t len, uint32_t align,
                               enum soft_access acc, uint64_t *a)
{
    enum soft_result r = operand_linear(cpu, in, 0, len, acc, a);
    if (r == SOFT_OK && (*a & (align - 1))) return sys_gp0(cpu);
    return r;
}

static uint64_t requested(const struct soft_cpu *cpu)
{
    uint64_t m = cpu->gpr[R_RDX] << 32 | (uint32_t)cpu->gpr[R_RAX];
    return m & cpu->xcr0;
}

static bool feature(const struct soft_cpu *cpu, unsigned bit)
{
    return cpu->cpuid.xsave[1][0] >> bit & 1;
}

/* ---- XSAVE and its variants ---- */

enum save_kind { SAVE_PLAIN, SAVE_OPT, SAVE_COMPACT, SAVE_SUPERVISOR };

/* Standard format: XSTATE_BV keeps the bits of what wasn't asked for; XSAVEOPT leaves out what is in its initial state. */
static enum soft_result save_standard(struct soft_cpu *cpu, uint64_t a, uint64_t mask, bool wide, bool opt)
{
    struct area area;
    struct layout l;
    uint64_t bv = 0;
    make_layout(cpu, mask, false, &l);
    enum soft_mmu_idx idx = (enum soft_mmu_idx)cpu->mmu_idx;
    enum soft_result r = soft_probe_store(cpu, GVA(a), l.size, idx);
    if (r == SOFT_OK) r = soft_load(cpu, GVA(a + LEGACY), &bv, 8, idx);
    if (r != SOFT_OK) return r;
    soft_fpu_resume(cpu);
    host_xsave(&area, mask, wide);
    uint64_t made = get64(area.b + LEGACY) & mask, write = opt ? made : mask;
    struct transfer t = {cpu, a, &area, true, SOFT_OK};
    move_legacy(&t, write & X87, mask & (SSE | AVX), write & SSE);
    move_extended(&t, &l, &l, write);
    put64(area.b + LEGACY, (bv & ~mask) | made);
    move(&t, LEGACY, LEGACY, 8);
    return t.r;
}

static enum soft_result save_compact(struct soft_cpu *cpu, uint64_t a, uint64_t mask, bool wide)
{
    struct area area;
    struct layout l;
    make_layout(cpu, mask, true, &l);
    enum soft_result r = soft_probe_store(cpu, GVA(a), l.size, (enum soft_mmu_idx)cpu->mmu_idx);
    if (r != SOFT_OK) return r;
    soft_fpu_resume(cpu);
    host_xsavec(&area, mask, wide);
    uint64_t made = get64(area.b + LEGACY) & mask;
    struct transfer t = {cpu, a, &area, true, SOFT_OK};
    move_legacy(&t, made & X87, made & SSE, made & SSE);
    move_extended(&t, &l, &l, made);
    put64(area.b + LEGACY, made);
    put64(area.b + LEGACY + 8, mask | COMPACTED);
    move(&t, LEGACY, LEGACY, 16);
    return t.r;
}

static enum soft_result do_save(struct soft_cpu *cpu, const struct insn *in, enum save_kind kind, bool wide)
{
    if ((kind == SAVE_OPT && !feature(cpu, 0)) || (kind == SAVE_COMPACT && !feature(cpu, 1)) ||
        (kind == SAVE_SUPERVISOR && !feature(cpu, 3)))
        return soft_raise(cpu, EXC_UD);
    uint64_t a, mask = requested(cpu);
    enum soft_result r = check_xsave(cpu, kind == SAVE_SUPERVISOR);
    if (r == SOFT_OK) r = locate(cpu, in, LEGACY + HEADER, 64, ACC_WRITE, &a);
    if (r != SOFT_OK) return r;
    if (kind >= SAVE_COMPACT)
        r = save_compact(cpu, a, mask, wide);
    else
        r = save_standard(cpu, a, mask, wide, kind == SAVE_OPT);
    return sys_done_if(cpu, in, r);
}

/* ---- XRSTOR ---- */

struct header {
    uint64_t bv, comp;
    bool compact;
};

static bool header_good(const struct soft_cpu *cpu, const uint8_t *b, bool supervisor, struct header *h)
{
    h->bv = get64(b);
    h->comp = get64(b + 8);
    h->compact = h->comp & COMPACTED;
    if (h->bv & ~cpu->xcr0) return false;
    if (!h->compact) return !supervisor && !h->comp && !get64(b + 16);
    if (!feature(cpu, 1) || (h->comp & ~COMPACTED & ~cpu->xcr0) || (h->bv & ~h->comp)) return false;
    for (unsigned i = 16; i < HEADER; i += 8)
        if (get64(b + i)) return false;
    return true;
}

/* Outside 64-bit mode registers 8 .. 15 must survive: start from what is there, with the rest in its initial state, and restore all of it. */
static void start_from_current(struct area *area, uint64_t mask, const struct layout *buffer)
{
    host_xsave(area, mask, true);
    for (unsigned i = 2; i < CPUID_XSAVE; i++)
        if (mask >> i & 1) soft_zero(area->b + buffer->at[i], buffer->len[i]);
    soft_zero(area->b, MXCSR_AT);
    soft_zero(area->b + 32, 128 + 128); /* x87 and XMM0-7 */
    area->b[0] = 0x7f;                  /* FCW = 037FH */
    area->b[1] = 0x03;
}

static void put_mxcsr(struct area *area, bool initial)
{
    uint32_t m = 0x1f80;
    if (!initial) __asm__ volatile("stmxcsr %0" : "=m"(m));
    soft_copy(area->b + MXCSR_AT, &m, 4);
}

static enum soft_result restore(struct soft_cpu *cpu, uint64_t a, uint64_t mask, const struct header *h, bool wide)
{
    struct area area;
    struct layout guest, buffer;
    uint64_t load = mask & h->bv;
    bool code64 = soft_code64(cpu);
    make_layout(cpu, h->compact ? h->comp & ~COMPACTED : cpu->xcr0, h->compact, &guest);
    make_layout(cpu, cpu->xcr0, false, &buffer);
    soft_fpu_resume(cpu);
    if (!code64) start_from_current(&area, mask, &buffer);
    /* MXCSR comes from memory with any of SSE and AVX in the standard form; in the compacted one SSE decides, and may
     * mean its initial value (SDM vol. 1 13.8). */
    bool mxcsr = h->compact ? load & SSE : mask & (SSE | AVX);
    put_mxcsr(&area, mask & SSE);
    struct transfer t = {cpu, a, &area, false, SOFT_OK};
    move_legacy(&t, load & X87, mxcsr, load & SSE);
    move_extended(&t, &guest, &buffer, load);
    if (t.r != SOFT_OK) return t.r;
    if (mxcsr && !mxcsr_good(cpu, area.b)) return sys_gp0(cpu);
    soft_zero(area.b + LEGACY, HEADER);
    put64(area.b + LEGACY, code64 ? load : mask);
    host_xrstor(&area, mask, wide);
    return SOFT_OK;
}

static enum soft_result do_restore(struct soft_cpu *cpu, const struct insn *in, bool supervisor, bool wide)
{
    if (supervisor && !feature(cpu, 3)) return soft_raise(cpu, EXC_UD);
    uint8_t image[HEADER];
    uint64_t a;
    struct header h;
    enum soft_result r = check_xsave(cpu, supervisor);
    if (r == SOFT_OK) r = locate(cpu, in, LEGACY + HEADER, 64, ACC_READ, &a);
    if (r == SOFT_OK) r = soft_load(cpu, GVA(a + LEGACY), image, HEADER, (enum soft_mmu_idx)cpu->mmu_idx);
    if (r != SOFT_OK) return r;
    if (!header_good(cpu, image, supervisor, &h)) return sys_gp0(cpu);
    return sys_done_if(cpu, in, restore(cpu, a, requested(cpu), &h, wide));
}

/* ---- FXSAVE, FXRSTOR ---- */

static enum soft_result do_fxsave(struct soft_cpu *cpu, const struct insn *in, bool wide)
{
    struct area area;
    uint64_t a;
    enum soft_result r = check_fxsave(cpu);
    if (r == SOFT_OK) r = locate(cpu, in, LEGACY, 16, ACC_WRITE, &a);
    if (r == SOFT_OK) r = soft_probe_store(cpu, GVA(a), LEGACY, (enum soft_mmu_idx)cpu->mmu_idx);
    if (r != SOFT_OK) return r;
    soft_fpu_resume(cpu);
    host_fxsave(&area, wide);
    struct transfer t = {cpu, a, &area, true, SOFT_OK};
    move(&t, 0, 0, XMM_AT + xmm_size(cpu));
    return sys_done_if(cpu, in, t.r);
}

static enum soft_result do_fxrstor(struct soft_cpu *cpu, const struct insn *in, bool wide)
{
    struct area area;
    uint64_t a;
    enum soft_result r = check_fxsave(cpu);
    if (r == SOFT_OK) r = locate(cpu, in, LEGACY, 16, ACC_READ, &a);
    if (r != SOFT_OK) return r;
    soft_fpu_resume(cpu);
    host_fxsave(&area, true); /* what the image doesn't have stays */
    struct transfer t = {cpu, a, &area, false, SOFT_OK};
    move(&t, 0, 0, XMM_AT + xmm_size(cpu));
    if (t.r != SOFT_OK) return t.r;
    if (!mxcsr_good(cpu, area.b)) return sys_gp0(cpu);
    host_fxrstor(&area, wide);
    return sys_done(cpu, in);
}

/* ---- MXCSR alone ---- */

static enum soft_result check_sse(struct soft_cpu *cpu, bool vex)
{
    if (vex && (!(cpu->cr4 & CR4_OSXSAVE) || (cpu->xcr0 & (SSE | AVX)) != (SSE | AVX))) return soft_raise(cpu, EXC_UD);
    if (!vex && ((cpu->cr0 & CR0_EM) || !(cpu->cr4 & CR4_OSFXSR))) return soft_raise(cpu, EXC_UD);
    return cpu->cr0 & CR0_TS ? soft_raise(cpu, EXC_NM) : SOFT_OK;
}

static enum soft_result ldmxcsr(struct soft_cpu *cpu, const struct insn *in, bool vex)
{
    uint64_t v = 0;
    enum soft_result r = check_sse(cpu, vex);
    if (r == SOFT_OK) r = operand_read(cpu, in, 0, 4, &v);
    if (r != SOFT_OK) return r;
    uint32_t m = (uint32_t)v;
    soft_fpu_resume(cpu);
    if (m & ~mxcsr_mask(cpu)) return sys_gp0(cpu);
    __asm__ volatile("ldmxcsr %0" ::"m"(m));
    return sys_done(cpu, in);
}

static enum soft_result stmxcsr(struct soft_cpu *cpu, const struct insn *in, bool vex)
{
    uint32_t m;
    enum soft_result r = check_sse(cpu, vex);
    if (r != SOFT_OK) return r;
    soft_fpu_resume(cpu);
    __asm__ volatile("stmxcsr %0" : "=m"(m));
    return sys_done_if(cpu, in, operand_write(cpu, in, 0, 4, m));
}

/* ---- XCR0 ---- */

static enum soft_result xgetbv(struct soft_cpu *cpu, const struct insn *in)
{
    uint32_t n = (uint32_t)cpu->gpr[R_RCX];
    if (!(cpu->cr4 & CR4_OSXSAVE)) return soft_raise(cpu, EXC_UD);
    if (n > 1 || (n == 1 && !feature(cpu, 2))) return sys_gp0(cpu);
    uint64_t v = cpu->xcr0;
    if (n == 1) {
        soft_fpu_resume(cpu);
        v &= host_xinuse();
    }
    cpu->gpr[R_RAX] = (uint32_t)v;
    cpu->gpr[R_RDX] = v >> 32;
    return sys_done(cpu, in);
}

/* SDM vol. 1 13.3: x87 always, AVX needs SSE, the three parts of AVX-512 come together and need AVX. */
static bool xcr0_good(const struct soft_cpu *cpu, uint64_t v)
{
    if ((v & ~cpu->cpuid.xcr0_mask) || !(v & X87)) return false;
    if ((v & AVX) && !(v & SSE)) return false;
    uint64_t avx512 = v & 0xe0;
    return !avx512 || (avx512 == 0xe0 && (v & AVX));
}

static enum soft_result xsetbv(struct soft_cpu *cpu, const struct insn *in)
{
    if (!(cpu->cr4 & CR4_OSXSAVE)) return soft_raise(cpu, EXC_UD);
    if (sys_privileged(cpu)) return SOFT_FAULT;
    uint64_t v = cpu->gpr[R_RDX] << 32 | (uint32_t)cpu->gpr[R_RAX];
    if ((uint32_t)cpu->gpr[R_RCX] || !xcr0_good(cpu, v)) return sys_gp0(cpu);
    cpu->xcr0 = v;
    soft_update_mode(cpu);
    return sys_done(cpu, in);
}

enum soft_result xsave_insn(struct soft_cpu *cpu, const struct insn *in)
{
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_XSAVE: return do_save(cpu, in, SAVE_PLAIN, false);
    case ZYDIS_MNEMONIC_XSAVE64: return do_save(cpu, in, SAVE_PLAIN, true);
    case ZYDIS_MNEMONIC_XSAVEOPT: return do_save(cpu, in, SAVE_OPT, false);
    case ZYDIS_MNEMONIC_XSAVEOPT64: return do_save(cpu, in, SAVE_OPT, true);
    case ZYDIS_MNEMONIC_XSAVEC: return do_save(cpu, in, SAVE_COMPACT, false);
    case ZYDIS_MNEMONIC_XSAVEC64: return do_save(cpu, in, SAVE_COMPACT, true);
    case ZYDIS_MNEMONIC_XSAVES: return do_save(cpu, in, SAVE_SUPERVISOR, false);
    case ZYDIS_MNEMONIC_XSAVES64: return do_save(cpu, in, SAVE_SUPERVISOR, true);
    case ZYDIS_MNEMONIC_XRSTOR: return do_restore(cpu, in, false, false);
    case ZYDIS_MNEMONIC_XRSTOR64: return do_restore(cpu, in, false, true);
    case ZYDIS_MNEMONIC_XRSTORS: return do_restore(cpu, in, true, false);
    case ZYDIS_MNEMONIC_XRSTORS64: return do_restore(cpu, in, true, true);
    case ZYDIS_MNEMONIC_FXSAVE: return do_fxsave(cpu, in, false);
    case ZYDIS_MNEMONIC_FXSAVE64: return do_fxsave(cpu, in, true);
    case ZYDIS_MNEMONIC_FXRSTOR: return do_fxrstor(cpu, in, false);
    case ZYDIS_MNEMONIC_FXRSTOR64: return do_fxrstor(cpu, in, true);
    case ZYDIS_MNEMONIC_LDMXCSR: return ldmxcsr(cpu, in, false);
    case ZYDIS_MNEMONIC_VLDMXCSR: return ldmxcsr(cpu, in, true);
    case ZYDIS_MNEMONIC_STMXCSR: return stmxcsr(cpu, in, false);
    case ZYDIS_MNEMONIC_VSTMXCSR: return stmxcsr(cpu, in, true);
    case ZYDIS_MNEMONIC_XGETBV: return xgetbv(cpu, in);
    case ZYDIS_MNEMONIC_XSETBV: return xsetbv(cpu, in);
    default: return SOFT_NOT_MINE;
    }
}
