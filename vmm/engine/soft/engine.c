/* The software engine behind engine.h: creation, state in and out, kicks. */
#define _GNU_SOURCE
#include "common/clock.h"
#include "vmm/engine/soft/system.h"
#include "vmm/engine/soft/xlat.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

struct vcpu {
    struct soft_cpu *cpu;
};

struct engine {
    struct soft_engine soft;
    struct vcpu vcpu[ENGINE_MAX_VCPUS];
};

const struct guest_memory *soft_memory(const struct soft_cpu *cpu)
{
    return cpu->engine->memory;
}

static void *reserve(size_t size, int prot)
{
    void *p = mmap(NULL, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* Code and TLBs are spread over many pages: large ones spare the host's TLBs. */
static void prefer_large(void *p, size_t size)
{
    (void)madvise(p, size, MADV_HUGEPAGE);
}

/* Of these only a small part is used, here and there: large pages would take up the rest as well. */
static void prefer_small(void *p, size_t size)
{
    if (p) (void)madvise(p, size, MADV_NOHUGEPAGE);
}

static void unreserve(void *p, size_t size)
{
    if (p) munmap(p, size);
}

static uint64_t memory_top(const struct guest_memory *m)
{
    uint64_t top = 0;
    for (unsigned i = 0; i < m->slots; i++)
        if (m->slot[i].base.v + m->slot[i].size > top) top = m->slot[i].base.v + m->slot[i].size;
    return top;
}

static int soft_create(const struct engine_config *cfg, struct engine **out, struct nerr *e)
{
    if (cfg->vcpus < 1 || cfg->vcpus > ENGINE_MAX_VCPUS)
        return nerr_set(e, -EINVAL, "%u vCPUs: the soft engine runs 1 to %d", cfg->vcpus, ENGINE_MAX_VCPUS);
    struct engine *g = calloc(1, sizeof *g);
    if (!g) return nerr_set(e, -ENOMEM, "no memory for the soft engine");
    g->soft.memory = cfg->memory;
    g->soft.vcpus = cfg->vcpus;
    g->soft.code_pages = memory_top(cfg->memory) >> PAGE_SHIFT;
    g->soft.code_map = reserve(g->soft.code_pages * 8, PROT_READ | PROT_WRITE);
    int r = g->soft.code_map ? soft_signals_init(e) : nerr_set(e, -ENOMEM, "no memory for the soft engine's code map");
    if (r) {
        unreserve((void *)g->soft.code_map, g->soft.code_pages * 8);
        free(g);
        return r;
    }
    soft_decode_init();
    soft_fpu_init();
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    g->soft.tsc_base = host_tsc();
    g->soft.wall_base_ns = (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
    *out = g;
    return 0;
}

static void free_cpu(struct soft_cpu *cpu)
{
    struct soft_private *p = cpu->priv;
    if (p) {
        free(p->translator);
        unreserve(p->code, CODE_CACHE_SIZE);
        unreserve(p->meta, META_SIZE);
        unreserve(p->order, BLOCKS_MAX * sizeof *p->order);
        unreserve(p, sizeof *p);
    }
    unreserve(cpu->xsave, CPU_XSAVE_SIZE);
    soft_thread_unbind(cpu);
    unreserve(cpu, sizeof *cpu);
}

static void soft_destroy(struct engine *g)
{
    for (unsigned i = 0; i < ENGINE_MAX_VCPUS; i++)
        if (g->vcpu[i].cpu) free_cpu(g->vcpu[i].cpu);
    unreserve((void *)g->soft.code_map, g->soft.code_pages * 8);
    free(g);
}

static struct soft_cpu *new_cpu(void)
{
    struct soft_cpu *cpu = reserve(sizeof *cpu, PROT_READ | PROT_WRITE);
    if (!cpu) return NULL;
    struct soft_private *p = reserve(sizeof *p, PROT_READ | PROT_WRITE);
    cpu->priv = p;
    cpu->xsave = reserve(CPU_XSAVE_SIZE, PROT_READ | PROT_WRITE);
    if (p) {
        /* Writable and executable: this vCPU's own code generator and nothing else writes here, at offsets it computed
         * itself; the guest reaches only RAM, through checked addresses. */
        p->code = reserve(CODE_CACHE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC);
        prefer_large(p->code, CODE_CACHE_SIZE);
        p->meta = reserve(META_SIZE, PROT_READ | PROT_WRITE);
        prefer_small(p->meta, META_SIZE);
        prefer_small(p, sizeof *p);
        prefer_small(cpu, sizeof *cpu);
        p->order = reserve(BLOCKS_MAX * sizeof *p->order, PROT_READ | PROT_WRITE);
        prefer_small(p->order, BLOCKS_MAX * sizeof *p->order);
    }
    if (!p || !cpu->xsave || !p->code || !p->meta || !p->order) {
        free_cpu(cpu);
        return NULL;
    }
    return cpu;
}

/* Most code of a boot never runs again, and its translations are the larger part of the VMM's memory: a vCPU that wakes up after a pause
 * starts anew when it has many of them. What it still runs is translated again, once: after each time twice as much may gather. */
#define TRIM_FIRST (6u << 20) /* bytes of host code */
#define TRIM_IDLE_MS 300u
#define KEEP (2ull << 20) /* a large page; the shared stubs are in it */

static int soft_set_state(struct vcpu *v, const struct cpu_state *s, struct nerr *e);

static int soft_vcpu_create(struct engine *g, unsigned id, const struct vcpu_irq_port *port, struct vcpu **out,
                            struct nerr *e)
{
    if (id >= g->soft.vcpus || g->vcpu[id].cpu)
        return nerr_set(e, -EINVAL, "vCPU %u cannot be created (of %u, each once)", id, g->soft.vcpus);
    struct soft_cpu *cpu = new_cpu();
    if (!cpu) return nerr_set(e, -ENOMEM, "no memory for vCPU %u", id);
    cpu->id = id;
    cpu->vcpus = g->soft.vcpus;
    cpu->tsc_khz = host_tsc_hz() / 1000;
    cpu->pvclock.tsc_base = g->soft.tsc_base;
    cpu->pvclock.wall_base_ns = g->soft.wall_base_ns;
    cpu->port = port;
    cpu->engine = &g->soft;
    cpu->priv->meta_used = 64;
    cpu->priv->trim_at = TRIM_FIRST;
    for (unsigned i = 0; i < MMU_IDX_COUNT; i++) cpu->jump[i][0].neg_rip = JUMP_EMPTY(0);
    for (unsigned i = 0; i < ITLB_SIZE; i++) cpu->priv->itlb[i].tag = TLB_INVALID;
    soft_tlb_init(cpu);
    soft_init_stack_slots(cpu);
    soft_make_stubs(cpu);
    soft_cpuid_init(cpu);
    g->vcpu[id].cpu = cpu;
    g->soft.cpu[id] = cpu;
    struct cpu_state *reset = aligned_alloc(64, sizeof *reset);
    if (!reset) return nerr_set(e, -ENOMEM, "no memory for vCPU %u", id);
    cpu_state_reset(reset);
    int r = soft_set_state(&g->vcpu[id], reset, e);
    free(reset);
    *out = &g->vcpu[id];
    return r;
}

static int soft_get_state(struct vcpu *v, struct cpu_state *s)
{
    const struct soft_cpu *cpu = v->cpu;
    memset(s, 0, sizeof *s);
    memcpy(s->gpr, cpu->gpr, sizeof s->gpr);
    s->rip = cpu->rip;
    s->rflags = soft_get_rflags(cpu);
    memcpy(s->seg, cpu->seg, sizeof s->seg);
    s->tr = cpu->tr;
    s->ldtr = cpu->ldtr;
    s->gdt = cpu->gdt;
    s->idt = cpu->idt;
    s->cr0 = cpu->cr0;
    s->cr2 = cpu->cr2;
    s->cr3 = cpu->cr3;
    s->cr4 = cpu->cr4;
    s->cr8 = cpu->port ? cpu->port->get_cr8(cpu->port->ctx) : 0;
    s->efer = cpu->efer;
    s->xcr0 = cpu->xcr0;
    memcpy(s->dr, cpu->dr, sizeof s->dr);
    s->star = cpu->star;
    s->lstar = cpu->lstar;
    s->cstar = cpu->cstar;
    s->sfmask = cpu->sfmask;
    s->kernel_gs_base = cpu->kernel_gs_base;
    s->tsc_aux = cpu->tsc_aux;
    s->pat = cpu->pat;
    s->sysenter_cs = cpu->sysenter_cs;
    s->sysenter_esp = cpu->sysenter_esp;
    s->sysenter_eip = cpu->sysenter_eip;
    s->tsc_offset = cpu->tsc_offset;
    s->halted = cpu->halted;
    s->irq_shadow = cpu->irq_shadow != 0;
    s->nmi_blocked = cpu->nmi_blocked;
    s->nmi_pending = cpu->priv->nmi_waiting;
    s->event = cpu->priv->event;
    if (cpu->late_db && !s->event.kind) { /* a trap of the last instruction, which left for I/O */
        s->event = (struct cpu_event){.kind = CPU_EVENT_EXCEPTION, .vector = EXC_DB};
        s->dr[6] = (s->dr[6] & ~15ull) | cpu->late_db;
    }
    s->msrs = soft_get_msrs(v->cpu, s->msr);
    memcpy(s->xsave, cpu->xsave, CPU_XSAVE_SIZE);
    return 0;
}

/* What this engine's CPU doesn't have, it can't be set to. */
static int check_state(const struct soft_cpu *cpu, const struct cpu_state *s, struct nerr *e)
{
    uint64_t cr4 = s->cr4 & ~cpu->cpuid.cr4_mask, efer = s->efer & ~(cpu->cpuid.efer_mask | EFER_LMA),
             xcr0 = s->xcr0 & ~(cpu->cpuid.xcr0_mask | 1);
    if (cr4 || efer || xcr0)
        return nerr_set(e, -ENOTSUP,
                        "state: the guest uses what the soft engine lacks here (CR4 0x%llx, EFER 0x%llx, XCR0 0x%llx)",
                        (unsigned long long)cr4, (unsigned long long)efer, (unsigned long long)xcr0);
    if (s->event.kind >= CPU_EVENT_KINDS || (s->event.kind == CPU_EVENT_EXCEPTION && s->event.vector > 31))
        return nerr_set(e, -EINVAL, "state: event %u with vector %u is none", s->event.kind, s->event.vector);
    if (s->msrs > CPU_MAX_MSRS) return nerr_set(e, -EINVAL, "state: %u registers are too many", s->msrs);
    return 0;
}

/* PAE paging keeps four entries inside the CPU, which MOV CR3 loads (SDM vol. 3 4.4.1). They are in memory, too. */
static void load_pdptes(struct soft_cpu *cpu)
{
    memset(cpu->pdpte, 0, sizeof cpu->pdpte);
    if ((cpu->cr0 & CR0_PG) && (cpu->cr4 & CR4_PAE) && !(cpu->efer & EFER_LMA))
        guest_memory_read(cpu->engine->memory, GPA(cpu->cr3 & 0xffffffe0), cpu->pdpte, sizeof cpu->pdpte);
}

/* FSW.ES and B follow from the exceptions and their masks (SDM vol. 1 8.1.3.3). A CPU finds that when it loads the image, but a guest may run on
 * without the image ever being loaded. */
static void settle_summary(uint8_t *image)
{
    uint16_t fcw, fsw;
    memcpy(&fcw, image, 2);
    memcpy(&fsw, image + 2, 2);
    fsw = fsw & ~fcw & 0x3f ? fsw | 0x8080 : fsw & 0x7f7f;
    memcpy(image + 2, &fsw, 2);
}

/* The XSAVE image goes to the host's XRSTOR, which faults on a bad one: header and MXCSR must be sound. */
static int set_fpu(struct soft_cpu *cpu, const uint8_t *image, struct nerr *e)
{
    uint64_t header[8];
    uint32_t mxcsr;
    memcpy(header, image + 512, sizeof header);
    memcpy(&mxcsr, image + 24, 4);
    if (mxcsr & ~0xffffu) return nerr_set(e, -EINVAL, "state: MXCSR 0x%x has reserved bits set", mxcsr);
    for (unsigned i = 1; i < 8; i++)
        if (header[i])
            return nerr_set(e, -EINVAL, "state: XSAVE header word %u is not zero (standard format wanted)", i);
    if (header[0] & ~(uint64_t)(soft_fpu_host_mask() ? soft_fpu_host_mask() : 3))
        return nerr_set(e, -EINVAL, "state: XSAVE features 0x%llx are not all offered by this host",
                        (unsigned long long)header[0]);
    memcpy(cpu->xsave, image, CPU_XSAVE_SIZE);
    settle_summary(cpu->xsave);
    cpu->fpu_live = false;
    return 0;
}

static int soft_set_state(struct vcpu *v, const struct cpu_state *s, struct nerr *e)
{
    struct soft_cpu *cpu = v->cpu;
    int r = check_state(cpu, s, e);
    if (!r) r = set_fpu(cpu, s->xsave, e);
    if (r) return r;
    memcpy(cpu->gpr, s->gpr, sizeof s->gpr);
    cpu->rip = s->rip;
    memcpy(cpu->seg, s->seg, sizeof s->seg);
    cpu->tr = s->tr;
    cpu->ldtr = s->ldtr;
    cpu->gdt = s->gdt;
    cpu->idt = s->idt;
    cpu->cr0 = s->cr0;
    cpu->cr2 = s->cr2;
    cpu->cr3 = s->cr3;
    cpu->cr4 = s->cr4;
    cpu->cr8.known = false;
    if (cpu->port) cpu->port->set_cr8(cpu->port->ctx, (uint8_t)s->cr8);
    cpu->efer = s->efer;
    cpu->xcr0 = s->xcr0;
    memcpy(cpu->dr, s->dr, sizeof s->dr);
    cpu->star = s->star;
    cpu->lstar = s->lstar;
    cpu->cstar = s->cstar;
    cpu->sfmask = s->sfmask;
    cpu->kernel_gs_base = s->kernel_gs_base;
    cpu->tsc_aux = s->tsc_aux;
    cpu->pat = s->pat;
    cpu->sysenter_cs = s->sysenter_cs;
    cpu->sysenter_esp = s->sysenter_esp;
    cpu->sysenter_eip = s->sysenter_eip;
    cpu->tsc_offset = s->tsc_offset;
    if (cpu->port && cpu->port->set_tsc_offset) cpu->port->set_tsc_offset(cpu->port->ctx, s->tsc_offset);
    cpu->halted = s->halted;
    cpu->irq_shadow = s->irq_shadow ? SHADOW_STI : 0;
    cpu->nmi_blocked = s->nmi_blocked;
    cpu->priv->nmi_waiting = s->nmi_pending;
    cpu->priv->event = s->event;
    cpu->late_db = cpu->pending_db = 0;
    atomic_store(&cpu->exit_request, 1); /* look at the port: its pending interrupts may be others now */
    cpu->cpl =
        (s->cr0 & CR0_PE) ? (s->rflags & FL_VM ? 3 : (uint8_t)(s->seg[SEG_SS].attr >> SEG_ATTR_DPL_SHIFT & 3)) : 0;
    cpu->exc.pending = false;
    memset(&cpu->io, 0, sizeof cpu->io);
    cpu->priv->pending_read = cpu->priv->writes = cpu->priv->write_next = 0;
    soft_set_rflags(cpu, s->rflags);
    soft_tlb_flush_all(cpu);
    soft_update_mode(cpu);
    load_pdptes(cpu);
    unsigned done = soft_set_msrs(cpu, s->msr, s->msrs);
    if (done < s->msrs)
        return nerr_set(e, -ENOTSUP,
                        "state: the soft engine does not take 0x%llx in register 0x%x, which the guest uses",
                        (unsigned long long)s->msr[done].value, s->msr[done].index);
    return 0;
}

/* ---- the paravirtual clock (pvclock.c): nanoseconds since tsc_base ---- */

static int soft_get_clock(struct engine *g, uint64_t *ns)
{
    *ns = clock_muldiv(host_tsc() - g->soft.tsc_base, 1000000000ull, host_tsc_hz());
    return 0;
}

/* Guests see it with the next set_state of each vCPU, which writes their clock page anew. */
static int soft_set_clock(struct engine *g, uint64_t ns)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    g->soft.tsc_base = host_tsc() - clock_muldiv(ns, host_tsc_hz(), 1000000000ull);
    g->soft.wall_base_ns = (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec - ns;
    for (unsigned i = 0; i < ENGINE_MAX_VCPUS; i++) {
        if (!g->vcpu[i].cpu) continue;
        g->vcpu[i].cpu->pvclock.tsc_base = g->soft.tsc_base;
        g->vcpu[i].cpu->pvclock.wall_base_ns = g->soft.wall_base_ns;
    }
    return 0;
}

static void trim_after_idling(struct soft_cpu *cpu)
{
    struct soft_private *p = cpu->priv;
    uint64_t since = cpu->halt_tsc;
    cpu->halt_tsc = 0;
    if (!since || soft_code_bytes(p) < p->trim_at || host_tsc() - since < TRIM_IDLE_MS * cpu->tsc_khz) return;
    p->trim_at *= 2;
    soft_cache_flush(cpu);
    (void)madvise(p->code + KEEP, CODE_CACHE_SIZE - KEEP, MADV_DONTNEED);
    (void)madvise(p->meta, META_SIZE, MADV_DONTNEED);
}

static void soft_run(struct vcpu *v, struct vcpu_exit *exit)
{
    int r = soft_thread_bind(v->cpu);
    if (r) {
        exit->kind = VCPU_EXIT_FAIL;
        strncpy(exit->fail, "the vCPU's thread could not be set up (alternate stack, %gs)", sizeof exit->fail - 1);
        return;
    }
    trim_after_idling(v->cpu);
    soft_run_loop(v->cpu, exit);
    if (exit->kind == VCPU_EXIT_HLT) v->cpu->halt_tsc = host_tsc();
}

static void soft_kick(struct vcpu *v)
{
    atomic_store(&v->cpu->kick_request, 1);
    atomic_store(&v->cpu->exit_request, 1);
}

static void soft_interrupt(struct vcpu *v)
{
    atomic_store(&v->cpu->exit_request, 1);
}

static unsigned soft_stats(struct vcpu *v, struct engine_stat *s, unsigned max)
{
    static const char *const names[ST_COUNT] = {
        [ST_BLOCKS] = "blocks translated",
        [ST_CACHE_FLUSH] = "code cache flushes",
        [ST_LINK] = "exits: branch not linked",
        [ST_LOOKUP] = "exits: indirect branch",
        [ST_MEM] = "exits: memory slow path",
        [ST_SPECIAL] = "exits: special instruction",
        [ST_STEP] = "instructions stepped",
        [ST_REQUEST] = "exits: request",
        [ST_HOSTFAULT] = "exits: host fault",
        [ST_DEAD] = "exits: dead block",
        [ST_KILLED] = "blocks dropped (code written)",
        [ST_NOMERGE] = "merged checks failed",
        [ST_EXCEPTION] = "exceptions delivered",
        [ST_INTERRUPT] = "interrupts delivered",
        [ST_PARK] = "FPU state parked",
    };
    unsigned n = 0;
    for (unsigned i = 0; i < ST_COUNT && n < max; i++)
        if (names[i]) s[n++] = (struct engine_stat){names[i], v->cpu->stat[i]};
    if (n + 2 <= max) {
        s[n++] = (struct engine_stat){"code cache bytes", soft_code_bytes(v->cpu->priv)};
        s[n++] = (struct engine_stat){"code records bytes", v->cpu->priv->meta_used};
    }
    return n;
}

/* Device DMA into pages with code: every vCPU that has translations drops them before it goes on. */
static void soft_memory_written(struct engine *g, gpa_t a, uint64_t len)
{
    soft_dma_written(&g->soft, a, len);
}

const struct engine_ops engine_soft = {
    .name = "soft",
    .create = soft_create,
    .destroy = soft_destroy,
    .vcpu_create = soft_vcpu_create,
    .get_state = soft_get_state,
    .set_state = soft_set_state,
    .run = soft_run,
    .kick = soft_kick,
    .interrupt = soft_interrupt,
    .stats = soft_stats,
    .memory_written = soft_memory_written,
    .get_clock = soft_get_clock,
    .set_clock = soft_set_clock,
};
