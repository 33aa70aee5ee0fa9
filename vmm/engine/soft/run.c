/* The main loop of a vCPU: enter translated code, see why it came back, deliver events. */
#include "vmm/engine/soft/portio.h"
#include "vmm/engine/soft/xlat.h"

#define DR6_BS (1ull << 14)

#ifndef SOFT_STEP_ONLY /* -DSOFT_STEP_ONLY=1: no translated blocks, to tell their bugs from those of the C handlers */
#define SOFT_STEP_ONLY 0
#endif

/* ---- mode ---- */

static uint32_t fpu_mode(const struct soft_cpu *cpu)
{
    uint32_t m = 0;
    bool ts = cpu->cr0 & CR0_TS, em = cpu->cr0 & CR0_EM;
    if (ts || em) m |= MODE_NO_X87 | MODE_NO_MMX | MODE_NO_SSE | MODE_NO_AVX | MODE_NO_AVX512;
    if (!(cpu->cr4 & CR4_OSFXSR)) m |= MODE_NO_SSE;
    if (!(cpu->cr4 & CR4_OSXSAVE) || (cpu->xcr0 & 6) != 6) m |= MODE_NO_AVX | MODE_NO_AVX512;
    if ((cpu->xcr0 & 0xe6) != 0xe6) m |= MODE_NO_AVX512;
    return m;
}

static uint8_t data_mmu_idx(const struct soft_cpu *cpu)
{
    if (cpu->cpl == 3) return MMU_USER;
    return (cpu->cr4 & CR4_SMAP) && !(cpu->rflags & FL_AC) ? MMU_KERNEL : MMU_KERNEL_AC;
}

void soft_update_mode(struct soft_cpu *cpu)
{
    uint32_t old = cpu->mode, m = fpu_mode(cpu);
    cpu->mmu_idx = data_mmu_idx(cpu);
    m |= cpu->mmu_idx;
    bool wide = soft_code64(cpu);
    m |= (wide ? 2u : cpu->seg[SEG_CS].attr & SEG_ATTR_DB ? 1u : 0u) << MODE_SIZE_SHIFT;
    if (cpu->cpl == 3 && (cpu->cr0 & CR0_AM) && (cpu->rflags & FL_AC)) m |= MODE_AC;
    if (cpu->cr4 & CR4_SMAP) m |= MODE_SMAP;
    if (cpu->cr4 & CR4_TSD) m |= MODE_TSD;
    if (cpu->efer & EFER_SCE) m |= MODE_SCE;
    if (SOFT_STEP_ONLY || !wide || (cpu->rflags & (FL_TF | FL_DF)) || (cpu->dr[7] & 0xff)) m |= MODE_STEP;
    if (cpu->cpl == 1 || cpu->cpl == 2) m |= MODE_STEP; /* translated code knows only the kernel and programs */
    cpu->mode = m;
    if ((old ^ m) & ~(MODE_IDX_MASK | MODE_STEP | MODE_SIZE_MASK))
        soft_translation_flush(cpu, true, 0, GVA(0)); /* the jump cache knows only the mmu index */
}

void soft_set_rflags(struct soft_cpu *cpu, uint64_t v)
{
    uint64_t changed = cpu->rflags ^ v;
    cpu->rflags = v & ~(uint64_t)FL_IF;
    cpu->if_flag = (v & FL_IF) != 0;
    if (changed & (FL_AC | FL_TF | FL_DF)) soft_update_mode(cpu);
}

/* ---- coming back from translated code ---- */

/* Registers lent out as scratch get their guest values back. */
static void take_back(struct soft_cpu *cpu, uint16_t borrowed)
{
    for (unsigned r = 0; borrowed; r++, borrowed >>= 1)
        if (borrowed & 1) cpu->gpr[r] = cpu->saved[r];
}

static void precise_at_site(struct soft_cpu *cpu, const struct site *s)
{
    const struct block *b = meta_ptr(cpu->priv, s->block);
    uint64_t flags = cpu->tmp[1];
    if (s->flags & SITE_FLAGS) { /* LAHF in AH, OF in AL */
        uint64_t rax = cpu->gpr[R_RAX];
        flags = (flags & FL_DF) | ((rax >> 8) & (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF)) | (rax & 1 ? FL_OF : 0);
    }
    soft_take_flags(cpu, flags);
    take_back(cpu, s->borrowed);
    cpu->rip = b->rip + s->guest;
}

static bool crosses_page(const struct soft_cpu *cpu, const struct site *s)
{
    uint64_t a = cpu->gpr[s->scratch];
    return (a ^ (a + s->span)) & PAGE_MASK;
}

/* What the check of a merged site fails for again and again, and site.c has a way out for. */
static bool wants_split(const struct soft_cpu *cpu, const struct site *s)
{
    return (s->flags & SITE_MERGED) &&
           (crosses_page(cpu, s) || ((s->flags & SITE_HOISTED) && cpu->gpr[s->scratch] < PAGE_SIZE));
}

/* A check failed in its inline cache and in the TLB. Returns true when the site may try again at *host. */
static bool retry_site(struct soft_cpu *cpu, const struct site *s)
{
    uint64_t a = cpu->gpr[s->scratch];
    const struct block *b = meta_ptr(cpu->priv, s->block);
    if (crosses_page(cpu, s) || b->dead) return false;
    uint8_t *host;
    gpa_t gpa;
    enum soft_access acc = s->flags & SITE_WRITE ? ACC_WRITE : ACC_READ;
    enum soft_result r = soft_tlb_lookup(cpu, GVA(a), acc, (enum soft_mmu_idx)(b->mode & MODE_IDX_MASK), &host, &gpa);
    if (r != SOFT_OK)
        cpu->exc.pending = false; /* the instruction itself will fault, or it turns out that it is not reached */
    return r == SOFT_OK && host && !b->dead;
}

static enum soft_result step_one(struct soft_cpu *cpu);

static enum soft_result memory_exit(struct soft_cpu *cpu, uint32_t *again)
{
    struct site *s = meta_ptr(cpu->priv, (uint32_t)cpu->exit_info);
    cpu->stat[ST_MEM]++;
    if (s->flags & SITE_TRIAL) soft_trial_over(cpu, s);
    if (s->heat == 0 || (wants_split(cpu, s) && --s->heat == 0)) soft_upgrade_site(cpu, s);
    if (retry_site(cpu, s)) {
        *again = s->retry;
        return SOFT_OK;
    }
    precise_at_site(cpu, s);
    if (s->flags & SITE_MERGED) {
        cpu->priv->no_merge_once = true;
        cpu->stat[ST_NOMERGE]++;
        return SOFT_OK;
    }
    return step_one(cpu);
}

/* A host signal costs as much as thousands of instructions: where one came, the divisor is looked at first from now on. */
static void note_divide(struct soft_cpu *cpu, struct block *b, uint64_t gpa)
{
    uint64_t *known = soft_divide_slot(cpu->priv, gpa);
    if (*known == gpa) return;
    *known = gpa;
    soft_retranslate(cpu, b);
}

/* Finds the guest instruction of a host fault and makes the state precise. */
static enum soft_result host_fault(struct soft_cpu *cpu)
{
    struct soft_private *p = cpu->priv;
    struct block *b = soft_block_of_host(cpu, p->fault_pc);
    cpu->stat[ST_HOSTFAULT]++;
    if (!b) {
        static const char why[] = "host fault in translated code of no known block";
        cpu->exit->kind = VCPU_EXIT_FAIL;
        soft_copy(cpu->exit->fail, why, sizeof why);
        return SOFT_EXIT;
    }
    const struct imap *map = meta_ptr(p, b->map), *at = NULL;
    uint32_t off = (uint32_t)(p->fault_pc - (uint64_t)(uintptr_t)p->code);
    for (unsigned i = 0; i < b->map_count && map[i].host <= off; i++) at = &map[i];
    if (!at || p->fault_trap == EXC_PF) {
        static const char why[] = "host page fault in translated code: an unchecked access";
        cpu->rip = b->rip;
        cpu->exit->kind = VCPU_EXIT_FAIL;
        soft_copy(cpu->exit->fail, why, sizeof why);
        return SOFT_EXIT;
    }
    soft_take_flags(cpu, cpu->tmp[1]);
    take_back(cpu, at->borrowed);
    cpu->rip = b->rip + at->guest;
    if (p->fault_trap == EXC_DE) note_divide(cpu, b, b->gpa + at->guest);
    if (p->fault_trap == EXC_GP || p->fault_trap == EXC_AC || p->fault_trap == EXC_SS)
        return step_one(cpu); /* by itself it finds the exception that is the guest's */
    if (p->fault_trap == EXC_XM && !(cpu->cr4 & CR4_OSXMMEXCPT)) /* SDM vol. 3 2.5 */
        return soft_raise(cpu, EXC_UD);
    return soft_raise(cpu, (uint8_t)p->fault_trap);
}

/* ---- stepping ---- */

static bool code_breakpoint(struct soft_cpu *cpu)
{
    uint64_t dr7 = cpu->dr[7], linear = cpu->rip + (soft_code64(cpu) ? 0 : cpu->seg[SEG_CS].base), hit = 0;
    if (!(dr7 & 0xff) || (cpu->rflags & FL_RF)) return false;
    for (unsigned i = 0; i < 4; i++)
        if ((dr7 >> (2 * i) & 3) && (dr7 >> (16 + 4 * i) & 3) == 0 && cpu->dr[i] == linear) hit |= 1ull << i;
    if (!hit) return false;
    cpu->exc = (struct soft_exception){.pending = true, .vector = EXC_DB, .dr6 = hit};
    return true;
}

/* Did the instruction leave to ask the VMM for data? Then it starts again later and nothing has happened yet. */
static bool asks_for_data(const struct soft_cpu *cpu)
{
    const struct vcpu_exit *x = cpu->exit;
    return (x->kind == VCPU_EXIT_MMIO && !x->mmio.write) || (x->kind == VCPU_EXIT_IO && !x->io.write);
}

static enum soft_result debug_trap(struct soft_cpu *cpu, uint64_t dr6)
{
    cpu->exc = (struct soft_exception){.pending = true, .vector = EXC_DB, .is_trap_db = true, .dr6 = dr6};
    return SOFT_FAULT;
}

/* Traps due after an instruction that has retired: at once, or when it left with an exit, at the next entry; those of MOV SS after the next
 * instruction (SDM vol. 3 6.8.3), and it has no single-step trap. */
static enum soft_result after_insn(struct soft_cpu *cpu, bool tf, enum soft_result r)
{
    uint64_t db = cpu->pending_db;
    cpu->pending_db = 0;
    if (tf && !cpu->no_step_trap && cpu->irq_shadow != SHADOW_MOV_SS) db |= DR6_BS;
    if (!db) return r;
    if (r == SOFT_OK && cpu->irq_shadow != SHADOW_MOV_SS) return debug_trap(cpu, db);
    cpu->late_db = db;
    return r;
}

/* Between two iterations of a REP: its traps come after the iteration, with RF set in what is pushed (SDM vol. 3 17.3.1.1). */
static enum soft_result after_iteration(struct soft_cpu *cpu, bool step)
{
    uint64_t db = cpu->pending_db | (step ? DR6_BS : 0);
    if (!db) return SOFT_RESTART;
    cpu->pending_db = 0;
    cpu->rflags |= FL_RF;
    return debug_trap(cpu, db);
}

/* One instruction, with what must happen around it: shadow, breakpoints, single-step trap. */
static enum soft_result step_one(struct soft_cpu *cpu)
{
    bool tf = cpu->rflags & FL_TF;
    uint8_t shadow = cpu->irq_shadow;
    uint64_t had_rf = cpu->rflags & FL_RF, count = cpu->gpr[R_RCX];
    /* AMD's CPUs take instruction breakpoints even right after MOV SS. */
    if ((shadow != SHADOW_MOV_SS || cpu->cpuid.amd) && code_breakpoint(cpu)) return SOFT_FAULT;
    cpu->no_step_trap = false;
    cpu->pending_db = 0;
    enum soft_result r = soft_step(cpu);
    if (r == SOFT_FAULT) cpu->late_db = 0;
    if (r == SOFT_RESTART) return after_iteration(cpu, tf && cpu->gpr[R_RCX] != count);
    if (r == SOFT_FAULT || (r == SOFT_EXIT && asks_for_data(cpu))) return r;
    if (shadow) cpu->irq_shadow = 0;
    if (had_rf && (cpu->rflags & FL_RF)) cpu->rflags &= ~(uint64_t)FL_RF;
    cpu->pending_db |= cpu->late_db;
    cpu->late_db = 0;
    return after_insn(cpu, tf, r);
}

/* ---- events ---- */

static bool deliver(struct soft_cpu *cpu, uint8_t vector, enum soft_result *r)
{
    cpu->halted = false;
    cpu->stat[ST_INTERRUPT]++;
    *r = soft_deliver_interrupt(cpu, vector);
    return true;
}

/* Looks at NMI and interrupts; true when one was delivered (*r tells how that went). */
static bool take_interrupt(struct soft_cpu *cpu, enum soft_result *r)
{
    const struct vcpu_irq_port *port = cpu->port;
    struct soft_private *p = cpu->priv;
    if (!port) return false;
    if (cpu->irq_shadow) { /* look again after the instruction in the shadow */
        atomic_store(&cpu->exit_request, 1);
        return false;
    }
    soft_fpu_park(cpu);
    soft_tell_cr8(cpu);
    /* While one NMI is handled only one more is remembered (SDM vol. 3 6.7.1). */
    while ((cpu->nmi_blocked || !p->nmi_waiting) && port->take_nmi(port->ctx)) p->nmi_waiting = true;
    if (p->nmi_waiting && !cpu->nmi_blocked) {
        p->nmi_waiting = false;
        return deliver(cpu, EXC_NMI, r);
    }
    cpu->irq_waiting = 0;
    if (port->pending(port->ctx) < 0) return false;
    if (!cpu->if_flag) {
        cpu->irq_waiting = 1;
        return false;
    }
    int vector = port->acknowledge(port->ctx);
    return vector >= 0 && deliver(cpu, (uint8_t)vector, r);
}

/* The VMM has answered: make the answer available to the instruction that asked. */
static void finish_read(struct soft_cpu *cpu, const struct vcpu_exit *exit)
{
    struct soft_private *p = cpu->priv;
    uint32_t kind = p->pending_read;
    p->pending_read = 0;
    if (kind == PENDING_MMIO && cpu->io.count < SOFT_IO_PIECES) {
        uint32_t n = cpu->io.count++;
        cpu->io.replay[n].addr = exit->mmio.addr.v;
        cpu->io.replay[n].len = exit->mmio.len;
        soft_copy(cpu->io.replay[n].data, exit->mmio.data, 8);
    } else if (kind == PENDING_PIO && cpu->io.in) {
        uint64_t v = 0;
        soft_copy(&v, exit->io.data, exit->io.size);
        soft_gpr_write(cpu, R_RAX, v, exit->io.size);
        cpu->rip = cpu->io.in_next;
        cpu->io.in = false;
    } else if (kind == PENDING_PIO) {
        soft_port_complete(cpu, exit);
    }
}

static void note_pending_read(struct soft_cpu *cpu)
{
    if (asks_for_data(cpu)) cpu->priv->pending_read = cpu->exit->kind == VCPU_EXIT_MMIO ? PENDING_MMIO : PENDING_PIO;
}

/* The next MMIO write of an instruction that has retired becomes an exit. */
static bool next_write(struct soft_cpu *cpu)
{
    struct soft_private *p = cpu->priv;
    if (p->write_next >= p->writes) return false;
    struct vcpu_exit *x = cpu->exit;
    x->kind = VCPU_EXIT_MMIO;
    x->mmio.addr = GPA(cpu->io.write[p->write_next].addr);
    x->mmio.len = cpu->io.write[p->write_next].len;
    x->mmio.write = true;
    soft_copy(x->mmio.data, cpu->io.write[p->write_next].data, 8);
    p->write_next++;
    return true;
}

static void retire_io(struct soft_cpu *cpu)
{
    struct soft_private *p = cpu->priv;
    soft_io_retire(cpu);
    p->writes = cpu->io.writes;
    p->write_next = 0;
    cpu->io.writes = 0;
}

/* ---- the loop ---- */

static bool canonical(uint64_t a)
{
    return (uint64_t)((int64_t)(a << 16) >> 16) == a;
}

/* The block at RIP by the jump cache, before the tables are asked. 0: not there. */
static uint32_t known_host(const struct soft_cpu *cpu)
{
    const struct jump_slot *s = &cpu->jump[cpu->mode & MODE_IDX_MASK][cpu->rip & (JUMP_CACHE_SIZE - 1)];
    return s->neg_rip == -cpu->rip ? (uint32_t)(s->host - (uint64_t)(uintptr_t)cpu->priv->code) : 0;
}

/* A branch back that is taken often may end a loop with others inside it: those become one block (translate_nest.c). */
static bool leads_to_nest(struct soft_private *p, struct link *l)
{
    const struct block *from = meta_ptr(p, l->block);
    const struct nest_head *head = soft_nest_head(p, l->target);
    if (l->rounds == NEST_NEVER) return false;
    if (l->nest) {
        p->nest_end = head->end;
        return head->rip == l->target;
    }
    p->nest_end = from->rip + from->guest_len;
    if (!l->back || p->nest_end - l->target > NEST_BYTES) return false;
    if (l->rounds < NEST_HEAT) l->rounds++;
    return l->rounds == NEST_HEAT;
}

static struct block *find_nest(struct soft_cpu *cpu, struct link *link, enum soft_result *r)
{
    struct soft_private *p = cpu->priv;
    uint32_t generation = p->generation;
    struct block *b = soft_find_block(cpu, MODE_NEST, r);
    if (!b && *r == SOFT_OK && link && generation == p->generation) link->rounds = NEST_NEVER;
    if (!b) return NULL;
    struct nest_head *head = soft_nest_head(p, b->rip);
    if (head->rip == b->rip) return b;
    *head = (struct nest_head){b->rip, b->rip + b->guest_len};
    soft_end_blocks_at(cpu, b);
    return b;
}

/* The block that a link, if it is one, or a block that died leads to. */
static struct block *find_next(struct soft_cpu *cpu, struct link *link, uint32_t dead, enum soft_result *r)
{
    struct soft_private *p = cpu->priv;
    bool nest = link && leads_to_nest(p, link), no_merge = link && link->no_merge;
    if (dead) {
        const struct block *was = meta_ptr(p, dead);
        nest = was->mode & MODE_NEST;
        no_merge = was->mode & MODE_NO_MERGE; /* the plain one would lead to where it came from, for ever */
        p->nest_end = was->rip + was->guest_len;
    }
    struct block *b = nest ? find_nest(cpu, link, r) : NULL;
    return b || *r != SOFT_OK ? b : soft_find_block(cpu, no_merge ? MODE_NO_MERGE : 0, r);
}

/* A branch back is not linked before it is known what it ends. */
static void link_when_ripe(struct soft_cpu *cpu, struct link *l, struct block *to)
{
    if (!l->rounds || l->rounds >= NEST_HEAT) soft_link(cpu, l, to);
}

/* Runs translated code from `host` until it has to be looked at. SOFT_OK: go on at RIP. */
static enum soft_result run_translated(struct soft_cpu *cpu, uint32_t host)
{
    struct soft_private *p = cpu->priv;
    struct link *link = NULL;
    uint32_t generation = p->generation, dead = 0;
    enum soft_result r = SOFT_OK;
    for (;;) {
        soft_fpu_resume(cpu);
        enum soft_host_exit hx = soft_enter(cpu, host);
        link = NULL;
        dead = 0;
        switch (hx) {
        case HX_MEM: {
            uint32_t again = 0;
            r = memory_exit(cpu, &again);
            if (!again) return r;
            host = again;
            continue;
        }
        case HX_HOSTFAULT: return host_fault(cpu);
        case HX_SPECIAL: {
            struct xinsn *x = meta_ptr(p, (uint32_t)cpu->exit_info);
            soft_take_flags(cpu, cpu->tmp[1]);
            cpu->rip = x->in.rip;
            cpu->stat[ST_SPECIAL]++;
            if (x->kind == XK_STEP) return step_one(cpu);
            return x->kind == XK_COPY || x->kind == XK_MEM ? soft_raise(cpu, EXC_DE) : soft_exec_insn(cpu, x);
        }
        case HX_REQUEST:
            soft_take_flags(cpu, cpu->tmp[1]);
            cpu->stat[ST_REQUEST]++;
            return SOFT_OK;
        case HX_LINK:
            link = meta_ptr(p, (uint32_t)cpu->exit_info);
            cpu->rip = link->target;
            cpu->stat[ST_LINK]++;
            break;
        case HX_DEAD:
            dead = (uint32_t)cpu->exit_info;
            cpu->rip = ((struct block *)meta_ptr(p, dead))->rip;
            cpu->stat[ST_DEAD]++;
            break;
        default:
            cpu->stat[ST_LOOKUP]++;
            if (!canonical(cpu->rip)) {
                const struct branch *from = meta_ptr(p, (uint32_t)cpu->exit_info);
                soft_take_flags(cpu, cpu->tmp[1]);
                cpu->rip = from->rip;
                cpu->gpr[R_RSP] += (uint64_t)(int64_t)from->rsp_back;
                return soft_raise_err(cpu, EXC_GP, 0);
            }
            break;
        }
        soft_take_flags(cpu, cpu->tmp[1]);
        if (atomic_load_explicit(&cpu->exit_request, memory_order_relaxed)) return SOFT_OK;
        struct block *b = find_next(cpu, link, dead, &r);
        if (!b) return r != SOFT_OK ? r : step_one(cpu);
        if (generation != p->generation)
            generation = p->generation;
        else if (link)
            link_when_ripe(cpu, link, b);
        else if (dead)
            soft_forward_dead(cpu, dead, b);
        else
            soft_fill_jump(cpu, b);
        soft_give_flags(cpu);
        host = b->host;
    }
}

static enum soft_result run_some(struct soft_cpu *cpu)
{
    enum soft_result r;
    if ((cpu->mode & MODE_STEP) || cpu->irq_shadow || cpu->io.count || cpu->io.have) return step_one(cpu);
    uint32_t extra = 0;
    if (cpu->priv->no_merge_once) {
        cpu->priv->no_merge_once = false;
        extra = MODE_NO_MERGE;
    }
    uint32_t host = extra ? 0 : known_host(cpu);
    if (!host) {
        struct block *b = soft_find_block(cpu, extra, &r);
        if (!b) return r != SOFT_OK ? r : step_one(cpu);
        host = b->host;
        if (!extra) soft_fill_jump(cpu, b);
    }
    cpu->rflags &= ~(uint64_t)FL_RF;
    soft_give_flags(cpu);
    return run_translated(cpu, host);
}

/* Requests of others. Returns true when run() must return. */
static bool handle_requests(struct soft_cpu *cpu, enum soft_result *r)
{
    atomic_store(&cpu->exit_request, 0);
    if (atomic_load(&cpu->inbox_flag)) soft_drain_inbox(cpu);
    if (atomic_exchange(&cpu->kick_request, 0)) {
        atomic_store(&cpu->exit_request, 1); /* interrupts are looked at when run() comes again */
        cpu->exit->kind = VCPU_EXIT_KICKED;
        return true;
    }
    /* Between the VMM's answer to a read and the instruction that takes it nothing may come: the device has seen the read. */
    if (cpu->io.have || cpu->io.count)
        atomic_store(&cpu->exit_request, 1);
    else
        take_interrupt(cpu, r);
    return false;
}

/* One turn; true: leave to the VMM with cpu->exit. */
static bool turn(struct soft_cpu *cpu)
{
    enum soft_result r = SOFT_OK;
    if (cpu->late_db && cpu->irq_shadow != SHADOW_MOV_SS) {
        r = debug_trap(cpu, cpu->late_db);
        cpu->late_db = 0;
    } else if (atomic_load_explicit(&cpu->exit_request, memory_order_relaxed)) {
        if (handle_requests(cpu, &r)) return true;
    } else if (cpu->irq_waiting && cpu->if_flag && !cpu->io.have && !cpu->io.count) {
        take_interrupt(cpu, &r);
    }
    if (r == SOFT_OK && cpu->halted) {
        if (take_interrupt(cpu, &r)) {
            cpu->halted = false;
        } else {
            cpu->exit->kind = VCPU_EXIT_HLT;
            return true;
        }
    }
    if (r == SOFT_OK) r = run_some(cpu);
    for (;;) {
        switch (r) {
        case SOFT_FAULT:
            if (!cpu->exc.is_trap_db) /* a trap: the instruction is complete */
                cpu->io.writes = 0;
            cpu->io.have = false;
            retire_io(cpu);
            cpu->stat[ST_EXCEPTION]++;
            r = soft_deliver_exception(cpu);
            if (r == SOFT_OK) return next_write(cpu);
            continue;
        case SOFT_EXIT:
            note_pending_read(cpu);
            if (cpu->priv->pending_read) return true;
            retire_io(cpu);
            return true;
        default:
            if (cpu->io.count || cpu->io.writes || cpu->io.have) {
                cpu->io.have = false;
                retire_io(cpu);
                return next_write(cpu);
            }
            return false;
        }
    }
}

/* What the state that was set had on its way. True: the CPU shut down over it. */
static bool deliver_restored(struct soft_cpu *cpu)
{
    struct cpu_event ev = cpu->priv->event;
    cpu->priv->event.kind = CPU_EVENT_NONE;
    if (ev.kind == CPU_EVENT_NONE) return false;
    cpu->halted = false;
    if (ev.kind != CPU_EVENT_EXCEPTION) return soft_deliver_interrupt(cpu, ev.vector) != SOFT_OK;
    cpu->exc = (struct soft_exception){.pending = true,
                                       .vector = ev.vector,
                                       .has_error = ev.has_error,
                                       .is_trap_db = ev.vector == EXC_DB,
                                       .error = ev.error,
                                       .cr2 = cpu->cr2};
    return soft_deliver_exception(cpu) != SOFT_OK;
}

void soft_run_loop(struct soft_cpu *cpu, struct vcpu_exit *exit)
{
    cpu->exit = exit;
    if (cpu->priv->pending_read) finish_read(cpu, exit);
    atomic_store(&cpu->in_run, 1);
    if (atomic_load(&cpu->inbox_flag)) soft_drain_inbox(cpu);
    if (!deliver_restored(cpu) && !next_write(cpu))
        while (!turn(cpu))
            ;
    soft_fpu_park(cpu);
    if (cpu->port) soft_tell_cr8(cpu);
    cpu->cr8.known = false;
    atomic_store(&cpu->in_run, 0);
}
