/* struct cpu_state from and to KVM's many structures. */
#include <errno.h>
#include <string.h>

#include "vmm/engine/kvm/kvm.h"

enum {
    MSR_SYSENTER_CS = 0x174,
    MSR_SYSENTER_ESP = 0x175,
    MSR_SYSENTER_EIP = 0x176,
    MSR_PAT = 0x277,
};
enum msr_high {
    MSR_STAR = 0xc0000081,
    MSR_LSTAR = 0xc0000082,
    MSR_CSTAR = 0xc0000083,
    MSR_SFMASK = 0xc0000084,
    MSR_KERNEL_GS_BASE = 0xc0000102,
    MSR_TSC_AUX = 0xc0000103,
};
#define EXC_NMI 2

/* Registers that are plain words of struct cpu_state. */
static const struct {
    uint32_t index;
    size_t offset;
} plain[] = {
    {MSR_STAR, offsetof(struct cpu_state, star)},
    {MSR_LSTAR, offsetof(struct cpu_state, lstar)},
    {MSR_CSTAR, offsetof(struct cpu_state, cstar)},
    {MSR_SFMASK, offsetof(struct cpu_state, sfmask)},
    {MSR_KERNEL_GS_BASE, offsetof(struct cpu_state, kernel_gs_base)},
    {MSR_PAT, offsetof(struct cpu_state, pat)},
    {MSR_SYSENTER_CS, offsetof(struct cpu_state, sysenter_cs)},
    {MSR_SYSENTER_ESP, offsetof(struct cpu_state, sysenter_esp)},
    {MSR_SYSENTER_EIP, offsetof(struct cpu_state, sysenter_eip)},
    {MSR_TSC_AUX, offsetof(struct cpu_state, tsc_aux)}, /* the last: not all CPUs have it */
};
#define PLAIN (sizeof(plain) / sizeof(plain[0]))
struct plain_msrs { /* a struct kvm_msrs with room for them */
    uint32_t nmsrs, pad;
    struct kvm_msr_entry entry[PLAIN];
};

/* ---- general registers ---- */

static void gprs_from_kvm(const struct kvm_regs *r, struct cpu_state *s)
{
    const uint64_t gpr[16] = {r->rax, r->rcx, r->rdx, r->rbx, r->rsp, r->rbp, r->rsi, r->rdi,
                              r->r8,  r->r9,  r->r10, r->r11, r->r12, r->r13, r->r14, r->r15};
    memcpy(s->gpr, gpr, sizeof(gpr));
    s->rip = r->rip;
    s->rflags = r->rflags;
}

static int set_gprs(const struct vcpu *v, const struct cpu_state *s)
{
    const uint64_t *g = s->gpr;
    struct kvm_regs r = {.rax = g[0],
                         .rcx = g[1],
                         .rdx = g[2],
                         .rbx = g[3],
                         .rsp = g[4],
                         .rbp = g[5],
                         .rsi = g[6],
                         .rdi = g[7],
                         .r8 = g[8],
                         .r9 = g[9],
                         .r10 = g[10],
                         .r11 = g[11],
                         .r12 = g[12],
                         .r13 = g[13],
                         .r14 = g[14],
                         .r15 = g[15],
                         .rflags = s->rflags,
                         .rip = s->rip};
    return kvm_ioctl(v->fd, KVM_SET_REGS, &r);
}

/* ---- segments and control registers ---- */

static void segment_from_kvm(const struct kvm_segment *k, struct cpu_segment *s)
{
    s->selector = k->selector;
    s->base = k->base;
    s->limit = k->limit;
    s->attr = (k->type & SEG_ATTR_TYPE) | (k->s ? SEG_ATTR_S : 0) | (uint32_t)(k->dpl & 3) << SEG_ATTR_DPL_SHIFT |
              (k->present ? SEG_ATTR_P : 0) | (k->avl ? SEG_ATTR_AVL : 0) | (k->l ? SEG_ATTR_L : 0) |
              (k->db ? SEG_ATTR_DB : 0) | (k->g ? SEG_ATTR_G : 0) | (k->unusable ? SEG_ATTR_NULL : 0);
}

static void segment_to_kvm(const struct cpu_segment *s, struct kvm_segment *k)
{
    *k = (struct kvm_segment){
        .base = s->base,
        .limit = s->limit,
        .selector = s->selector,
        .type = s->attr & SEG_ATTR_TYPE,
        .present = !!(s->attr & SEG_ATTR_P),
        .dpl = s->attr >> SEG_ATTR_DPL_SHIFT & 3,
        .db = !!(s->attr & SEG_ATTR_DB),
        .s = !!(s->attr & SEG_ATTR_S),
        .l = !!(s->attr & SEG_ATTR_L),
        .g = !!(s->attr & SEG_ATTR_G),
        .avl = !!(s->attr & SEG_ATTR_AVL),
        .unusable = !!(s->attr & SEG_ATTR_NULL),
    };
}

static void sregs_from_kvm(const struct kvm_sregs *k, struct cpu_state *s)
{
    const struct kvm_segment *seg[SEG_COUNT] = {&k->es, &k->cs, &k->ss, &k->ds, &k->fs, &k->gs};
    for (unsigned i = 0; i < SEG_COUNT; i++) segment_from_kvm(seg[i], &s->seg[i]);
    segment_from_kvm(&k->tr, &s->tr);
    segment_from_kvm(&k->ldt, &s->ldtr);
    s->gdt = (struct cpu_table){.base = k->gdt.base, .limit = k->gdt.limit};
    s->idt = (struct cpu_table){.base = k->idt.base, .limit = k->idt.limit};
    s->cr0 = k->cr0;
    s->cr2 = k->cr2;
    s->cr3 = k->cr3;
    s->cr4 = k->cr4;
    s->cr8 = k->cr8;
    s->efer = k->efer;
}

/* An interrupt on its way to the guest travels in here; the APIC's base is the LAPIC's state and stays. */
static int set_sregs(const struct vcpu *v, const struct cpu_state *s)
{
    struct kvm_sregs k;
    int r = kvm_ioctl(v->fd, KVM_GET_SREGS, &k);
    if (r < 0) return r;
    struct kvm_segment *seg[SEG_COUNT] = {&k.es, &k.cs, &k.ss, &k.ds, &k.fs, &k.gs};
    for (unsigned i = 0; i < SEG_COUNT; i++) segment_to_kvm(&s->seg[i], seg[i]);
    segment_to_kvm(&s->tr, &k.tr);
    segment_to_kvm(&s->ldtr, &k.ldt);
    k.gdt = (struct kvm_dtable){.base = s->gdt.base, .limit = s->gdt.limit};
    k.idt = (struct kvm_dtable){.base = s->idt.base, .limit = s->idt.limit};
    k.cr0 = s->cr0;
    k.cr2 = s->cr2;
    k.cr3 = s->cr3;
    k.cr4 = s->cr4;
    k.cr8 = s->cr8;
    k.efer = s->efer;
    memset(k.interrupt_bitmap, 0, sizeof(k.interrupt_bitmap));
    return kvm_ioctl(v->fd, KVM_SET_SREGS, &k);
}

/* ---- debug registers ---- */

static void debug_from_kvm(const struct kvm_debugregs *d, struct cpu_state *s)
{
    for (unsigned i = 0; i < 4; i++) s->dr[i] = d->db[i];
    s->dr[6] = d->dr6;
    s->dr[7] = d->dr7;
}

static int set_debug(const struct vcpu *v, const struct cpu_state *s)
{
    struct kvm_debugregs d = {.db = {s->dr[0], s->dr[1], s->dr[2], s->dr[3]}, .dr6 = s->dr[6], .dr7 = s->dr[7]};
    return kvm_ioctl(v->fd, KVM_SET_DEBUGREGS, &d);
}

/* ---- events ---- */

static void events_from_kvm(const struct kvm_vcpu_events *k, struct cpu_state *s)
{
    s->irq_shadow = k->interrupt.shadow;
    s->nmi_blocked = k->nmi.masked;
    s->nmi_pending = k->nmi.pending > 2 ? 2 : k->nmi.pending;
    if (k->exception.injected || k->exception.pending)
        s->event = (struct cpu_event){.kind = CPU_EVENT_EXCEPTION,
                                      .vector = k->exception.nr,
                                      .has_error = k->exception.has_error_code,
                                      .error = k->exception.error_code};
    else if (k->nmi.injected)
        s->event = (struct cpu_event){.kind = CPU_EVENT_NMI, .vector = EXC_NMI};
    else if (k->interrupt.injected)
        s->event = (struct cpu_event){.kind = CPU_EVENT_INTERRUPT, .vector = k->interrupt.nr};
}

static int set_events(const struct vcpu *v, const struct cpu_state *s)
{
    struct kvm_vcpu_events k = {.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW};
    k.interrupt.shadow = s->irq_shadow ? KVM_X86_SHADOW_INT_STI : 0;
    k.nmi.masked = s->nmi_blocked;
    k.nmi.pending = s->nmi_pending > 2 ? 2 : s->nmi_pending;
    switch (s->event.kind) {
    case CPU_EVENT_EXCEPTION:
        k.exception.injected = 1;
        k.exception.nr = s->event.vector;
        k.exception.has_error_code = s->event.has_error;
        k.exception.error_code = s->event.error;
        break;
    case CPU_EVENT_NMI: k.nmi.injected = 1; break;
    case CPU_EVENT_INTERRUPT:
        k.interrupt.injected = 1;
        k.interrupt.nr = s->event.vector;
        break;
    default: break;
    }
    return kvm_ioctl(v->fd, KVM_SET_VCPU_EVENTS, &k);
}

static int get_halted(const struct vcpu *v, struct cpu_state *s)
{
    struct kvm_mp_state mp;
    int r = kvm_ioctl(v->fd, KVM_GET_MP_STATE, &mp);
    s->halted = mp.mp_state == KVM_MP_STATE_HALTED;
    return r;
}

/* Of an application processor at power-on the LAPIC's state says that it waits for a SIPI (set_lapic). */
static int set_halted(const struct vcpu *v, const struct cpu_state *s)
{
    struct kvm_mp_state mp = {.mp_state = s->halted ? KVM_MP_STATE_HALTED : KVM_MP_STATE_RUNNABLE};
    return kvm_ioctl(v->fd, KVM_SET_MP_STATE, &mp);
}

/* ---- FPU ---- */

static int get_fpu(const struct vcpu *v, struct cpu_state *s)
{
    struct kvm_xcrs x = {0};
    _Static_assert(sizeof(struct kvm_xsave) == CPU_XSAVE_SIZE, "KVM's image is the interface's");
    int r = kvm_ioctl(v->fd, KVM_GET_XCRS, &x);
    s->xcr0 = 1;
    for (uint32_t i = 0; r >= 0 && i < x.nr_xcrs; i++)
        if (x.xcrs[i].xcr == 0) s->xcr0 = x.xcrs[i].value;
    if (r >= 0) r = kvm_ioctl(v->fd, KVM_GET_XSAVE, s->xsave);
    memset(s->xsave + 464, 0, 48); /* of the legacy area: free for software's use, KVM leaves notes there */
    return r;
}

static int set_fpu(const struct vcpu *v, const struct cpu_state *s, struct nerr *e)
{
    struct kvm_xcrs x = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = s->xcr0}}};
    int r = kvm_ioctl(v->fd, KVM_SET_XCRS, &x);
    /* Without XSAVE there is no XCR0, and 1 says as much. */
    if (r < 0 && s->xcr0 != 1)
        return nerr_set(e, r, "state: XCR0 0x%llx asks for registers that this host does not offer",
                        (unsigned long long)s->xcr0);
    r = kvm_ioctl(v->fd, KVM_SET_XSAVE, s->xsave);
    return r < 0 ? nerr_set(e, r, "state: KVM refuses the FPU's state: %s", strerror(-r)) : 0;
}

/* ---- plain words ---- */

static void plain_table(struct plain_msrs *m, const struct cpu_state *s)
{
    memset(m, 0, sizeof(*m));
    m->nmsrs = PLAIN;
    for (unsigned i = 0; i < PLAIN; i++) {
        m->entry[i].index = plain[i].index;
        if (s) memcpy(&m->entry[i].data, (const uint8_t *)s + plain[i].offset, 8);
    }
}

static int get_plain(const struct vcpu *v, struct cpu_state *s)
{
    struct plain_msrs m;
    plain_table(&m, NULL);
    int r = kvm_ioctl(v->fd, KVM_GET_MSRS, &m);
    for (unsigned i = 0; i < PLAIN; i++) memcpy((uint8_t *)s + plain[i].offset, &m.entry[i].data, 8);
    return r < 0 ? r : r < (int)PLAIN - 1 ? -EIO : 0;
}

static int set_plain(const struct vcpu *v, const struct cpu_state *s, struct nerr *e)
{
    struct plain_msrs m;
    plain_table(&m, s);
    int r = kvm_ioctl(v->fd, KVM_SET_MSRS, &m);
    if (r < 0) return nerr_set(e, r, "state: KVM refuses registers: %s", strerror(-r));
    if (r == PLAIN || (r == PLAIN - 1 && s->tsc_aux == 0)) return 0;
    return nerr_set(e, -EINVAL, "state: KVM refuses 0x%llx for register 0x%x", (unsigned long long)m.entry[r].data,
                    m.entry[r].index);
}

/* ---- the whole ---- */

/* All of it while the vCPU does not run, so the order does not matter but where one depends on another. */
int kvm_get_state(struct vcpu *v, struct cpu_state *s)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_debugregs debug;
    struct kvm_vcpu_events events;
    memset(s, 0, sizeof(*s));
    int r = get_halted(v, s); /* first: it makes KVM act on an INIT or SIPI that waits */
    if (r >= 0) r = kvm_ioctl(v->fd, KVM_GET_REGS, &regs);
    if (r >= 0) r = kvm_ioctl(v->fd, KVM_GET_SREGS, &sregs);
    if (r >= 0) r = kvm_ioctl(v->fd, KVM_GET_DEBUGREGS, &debug);
    if (r >= 0) r = kvm_ioctl(v->fd, KVM_GET_VCPU_EVENTS, &events);
    if (r < 0) return r;
    gprs_from_kvm(&regs, s);
    sregs_from_kvm(&sregs, s);
    debug_from_kvm(&debug, s);
    events_from_kvm(&events, s);
    r = get_fpu(v, s);
    if (r >= 0) r = get_plain(v, s);
    if (r >= 0) r = kvm_get_tsc_offset(v, &s->tsc_offset);
    if (r >= 0) r = kvm_get_msrs(v, s);
    return r < 0 ? r : 0;
}

static int refused(const struct cpu_state *s, const char *what, int r, struct nerr *e)
{
    return nerr_set(e, r,
                    "state: KVM refuses %s (CR0 0x%llx, CR4 0x%llx, EFER 0x%llx): %s; does this host lack a feature "
                    "the guest uses?",
                    what, (unsigned long long)s->cr0, (unsigned long long)s->cr4, (unsigned long long)s->efer,
                    strerror(-r));
}

static int check(const struct cpu_state *s, struct nerr *e)
{
    uint32_t mxcsr;
    memcpy(&mxcsr, s->xsave + 24, 4);
    if (mxcsr & ~0xffffu) return nerr_set(e, -EINVAL, "state: MXCSR 0x%x has reserved bits set", mxcsr);
    if (s->event.kind >= CPU_EVENT_KINDS || (s->event.kind == CPU_EVENT_EXCEPTION && s->event.vector > 31))
        return nerr_set(e, -EINVAL, "state: event %u with vector %u is none", s->event.kind, s->event.vector);
    return 0;
}

int kvm_set_state(struct vcpu *v, const struct cpu_state *s, struct nerr *e)
{
    int r = check(s, e);
    if (r) return r;
    kvm_vcpu_abandon_io(v);
    r = set_halted(v, s);
    if (r < 0) return refused(s, "its run state", r, e);
    r = set_sregs(v, s);
    if (r < 0) return refused(s, "the control registers", r, e);
    r = set_gprs(v, s);
    if (r < 0) return refused(s, "the general registers", r, e);
    r = set_debug(v, s);
    if (r < 0) return refused(s, "the debug registers", r, e);
    r = set_fpu(v, s, e);
    if (!r) r = set_plain(v, s, e);
    if (r) return r;
    r = kvm_set_tsc_offset(v, s->tsc_offset);
    if (r < 0) return refused(s, "the time stamp counter's offset", r, e);
    r = kvm_set_msrs(v, s, e);
    if (r) return r;
    r = set_events(v, s); /* the last: setting registers drops what was on its way */
    return r < 0 ? refused(s, "its events", r, e) : 0;
}
