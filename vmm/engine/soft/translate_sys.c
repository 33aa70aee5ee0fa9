/* Special instructions that translated code carries out itself, because kernels execute them at every turn: leaving translated code and
 * coming back costs about as much as forty instructions. What is out of the ordinary goes to C all the same, with exact state. */
#include "vmm/engine/soft/tr.h"

/* ---- which ---- */

static bool kernel(const struct tr *t)
{
    return t->idx != MMU_USER; /* CPL 0: the levels between are stepped */
}

static bool string_fits(const struct xinsn *x)
{
    const struct insn *in = &x->in;
    uint8_t op = in->bytes[in->len - 1];
    bool known = op == 0xa4 || op == 0xa5 || op == 0xaa || op == 0xab;
    return known && in->rep == 1 && in->addr_size == 8 && !in->seg_override && !in->lock;
}

static uint8_t ac_kind(const struct tr *t, bool set)
{
    if (!(t->mode & MODE_SMAP) || !kernel(t) || !(t->cpu->cpuid.cr4_mask & CR4_SMAP)) return XK_SPECIAL;
    return (t->idx == MMU_KERNEL_AC) == set ? XK_NOP : XK_GATE;
}

static uint8_t kind_of(const struct tr *t, const struct xinsn *x)
{
    const struct insn *in = &x->in;
    bool ac = t->mode & MODE_AC;
    if (in->lock) return XK_SPECIAL;
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_SWAPGS: return kernel(t) ? XK_SYS : XK_SPECIAL;
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP: return kernel(t) || !(t->mode & MODE_TSD) ? XK_SYS : XK_SPECIAL;
    case ZYDIS_MNEMONIC_PUSHFQ: return ac ? XK_SPECIAL : XK_PUSHF;
    case ZYDIS_MNEMONIC_PUSH:
        return in->has_mem && in->op_size == 8 && in->op[0].kind == OP_MEM && !ac ? XK_PUSH_MEM : XK_SPECIAL;
    case ZYDIS_MNEMONIC_CLAC: return ac_kind(t, false);
    case ZYDIS_MNEMONIC_STAC: return ac_kind(t, true);
    case ZYDIS_MNEMONIC_SYSCALL: return (t->mode & MODE_SCE) && !kernel(t) && !ac ? XK_GATE : XK_SPECIAL;
    case ZYDIS_MNEMONIC_SYSRET: return (t->mode & MODE_SCE) && kernel(t) && in->op_size == 8 ? XK_GATE : XK_SPECIAL;
    case ZYDIS_MNEMONIC_MOVSB:
    case ZYDIS_MNEMONIC_MOVSW:
    case ZYDIS_MNEMONIC_MOVSD:
    case ZYDIS_MNEMONIC_MOVSQ:
    case ZYDIS_MNEMONIC_STOSB:
    case ZYDIS_MNEMONIC_STOSW:
    case ZYDIS_MNEMONIC_STOSD:
    case ZYDIS_MNEMONIC_STOSQ: return string_fits(x) && !ac ? XK_REP : XK_SPECIAL;
    default: return XK_SPECIAL;
    }
}

static bool is_store_string(const struct xinsn *x)
{
    return (x->in.bytes[x->in.len - 1] & 0xfe) == 0xaa;
}

void tr_promote(const struct tr *t, struct xinsn *x)
{
    x->kind = kind_of(t, x);
    if (x->kind == XK_PUSH_MEM) { /* as the load that it is in the first place */
        x->mem_size = 8;
        x->mem_read = true;
        x->mem_write = false;
    } else if (x->kind == XK_REP) {
        uint16_t regs = 1u << R_RCX | 1u << R_RDI | (is_store_string(x) ? 0 : 1u << R_RSI);
        x->reg_write = regs;
        x->reg_read = regs | (is_store_string(x) ? 1u << R_RAX : 0);
        x->reg_kill = 0;
    }
}

bool tr_is_sti(const struct xinsn *x)
{
    return x->kind == XK_SYS && x->in.mnemonic == ZYDIS_MNEMONIC_STI;
}

/* ---- small ones ---- */

static void emit_bswap(struct emitter *e, unsigned w, unsigned reg)
{
    if (w) e8(e, 0x48);
    e8(e, 0x0f);
    e8(e, 0xc8 | reg);
}

void emit_flags_image(struct emitter *e, unsigned r1, unsigned r2)
{
    emit_store_gs(e, GS_TMP(6), R_RSP);
    emit_load_gs(e, R_RSP, GS(host_rsp));
    e8(e, 0x9c); /* pushfq */
    if (r1 >= 8) e8(e, 0x41);
    e8(e, 0x58 | (r1 & 7)); /* pop r1: the arithmetic flags, and 0x202 as a program always has it */
    emit_load_gs(e, R_RSP, GS_TMP(6));
    emit_movzx16_gs(e, r2, GS(always_zero));
    struct host_mem with_if = {(uint8_t)r1, (uint8_t)r2, 2, -(int32_t)FL_IF};
    emit_lea(e, r1, with_if);
    emit_load_gs(e, r2, GS(rflags));
    struct host_mem with_rest = {(uint8_t)r1, (uint8_t)r2, 1, 0};
    emit_lea(e, r1, with_rest);
}

static void emit_pushf(struct tr *t, unsigned i)
{
    struct host_mem m = tr_access_now(t, i, 0);
    tr_note_map(t, i);
    unsigned r1 = tr_borrow(t, i, (uint16_t)(1u << m.index), false);
    unsigned r2 = tr_borrow(t, i, (uint16_t)(1u << m.index | 1u << r1), false);
    emit_flags_image(&t->e, r1, r2);
    emit_rm(&t->e, 0x89, r1, m);
    tr_move_rsp(t, -8);
}

static void emit_push_mem(struct tr *t, unsigned i)
{
    uint8_t group = t->acc[i].group; /* that of the stack */
    t->x[i].kind = XK_MEM;
    t->acc[i].group = NO_GROUP;
    struct host_mem m = tr_access_now(t, i, 1u << R_RAX);
    unsigned r = tr_borrow(t, i, 1u << R_RAX, false); /* not RAX: the second check may keep the flags there */
    tr_note_map(t, i);
    emit_rm(&t->e, 0x8b, r, m);
    t->x[i].kind = XK_PUSH_MEM;
    t->acc[i].group = group;
    t->held |= (uint16_t)(1u << r); /* the look-up of the second check must not take it for its own */
    m = tr_access_now(t, i, (uint16_t)(1u << r));
    t->held &= (uint16_t) ~(1u << r);
    tr_note_map(t, i);
    emit_rm(&t->e, 0x89, r, m);
    tr_move_rsp(t, -8);
}

static void emit_swapgs(struct tr *t, unsigned i)
{
    uint32_t base = GS(seg) + SEG_GS * (uint32_t)sizeof(struct cpu_segment) + offsetof(struct cpu_segment, base);
    unsigned a = tr_borrow(t, i, 0, false), b = tr_borrow(t, i, (uint16_t)(1u << a), false);
    emit_load_gs(&t->e, a, base);
    emit_load_gs(&t->e, b, GS(kernel_gs_base));
    emit_store_gs(&t->e, GS(kernel_gs_base), a);
    emit_store_gs(&t->e, base, b);
}

/* BSWAP moves halves without touching flags: of a 32-bit register it turns the bytes, of the 64-bit one it turns them back on the other side. */
static void emit_rdtsc(struct tr *t, unsigned i)
{
    struct emitter *e = &t->e;
    bool aux = t->x[i].in.mnemonic == ZYDIS_MNEMONIC_RDTSCP;
    struct host_mem sum = {R_RAX, R_RDX, 1, 0};
    if (aux) { /* it waits for all earlier instructions */
        e8(e, 0x0f);
        e8(e, 0xae);
        e8(e, 0xe8);
    }
    e8(e, 0x0f);
    e8(e, 0x31);
    emit_bswap(e, 0, R_RDX);
    emit_bswap(e, 1, R_RDX);
    emit_lea(e, R_RAX, sum);
    emit_load_gs(e, R_RDX, GS(tsc_offset));
    emit_lea(e, R_RAX, sum);
    emit_mov_rr(e, R_RDX, R_RAX);
    emit_bswap(e, 1, R_RDX);
    emit_bswap(e, 0, R_RDX);
    e8(e, 0x89);
    e8(e, 0xc0); /* mov eax, eax */
    if (aux) emit_gs(e, 0, 0x8b, R_RCX, GS(tsc_aux));
    t->borrowed &= (uint16_t)~t->x[i].reg_kill;
}

static void emit_sys(struct tr *t, unsigned i)
{
    switch (t->x[i].in.mnemonic) {
    case ZYDIS_MNEMONIC_CLI: emit_store_gs8_imm(&t->e, GS(if_flag), 0); break;
    case ZYDIS_MNEMONIC_STI:
        emit_store_gs8_imm(&t->e, GS(if_flag), 1);
        tr_sti_check(t, i + 1);
        break;
    case ZYDIS_MNEMONIC_SWAPGS: emit_swapgs(t, i); break;
    default: emit_rdtsc(t, i); break;
    }
}

/* ---- to another mode ---- */

static void emit_ac(struct tr *t, unsigned i)
{
    struct emitter *e = &t->e;
    bool set = t->x[i].in.mnemonic == ZYDIS_MNEMONIC_STAC;
    uint8_t idx = set ? MMU_KERNEL_AC : MMU_KERNEL;
    uint32_t mode = (t->mode & ~(MODE_IDX_MASK | MODE_NO_MERGE)) | idx;
    unsigned r = tr_borrow(t, i, 0, false);
    struct host_mem changed = {(uint8_t)r, INSN_NOREG, 1, set ? (int32_t)FL_AC : -(int32_t)FL_AC};
    emit_load_gs(e, r, GS(rflags));
    emit_lea(e, r, changed); /* it was the other way, or this would not be that mode */
    emit_store_gs(e, GS(rflags), r);
    emit_store_gs32_imm(e, GS(mode), mode);
    emit_store_gs8_imm(e, GS(mmu_idx), idx);
    t->held = 0;
    tr_link_jump(t, t->next_rip, mode);
}

/* The stubs do it; they leave with the instruction when they cannot. */
static void emit_call_gate(struct tr *t, unsigned i)
{
    struct emitter *e = &t->e;
    t->held = 0;
    tr_restore(t, 0xffff);
    emit_store_gs32_imm(e, GS(exit_info), tr_keep_insn(t, i));
    if (t->x[i].in.mnemonic == ZYDIS_MNEMONIC_SYSRET) {
        emit_jmp(e, t->p->code + t->p->stub_sysret);
        return;
    }
    emit_mov_imm(e, R_RCX, t->next_rip);
    emit_jmp(e, t->p->code + t->p->stub_syscall[(t->mode & MODE_SMAP) != 0]);
}

/* ---- strings ---- */

static void stash_flags(struct emitter *e)
{
    emit_store_gs(e, GS_TMP(4), R_RAX);
    e8(e, 0x9f); /* lahf */
    e8(e, 0x0f);
    e8(e, 0x90);
    e8(e, 0xc0); /* seto al */
    emit_store_gs(e, GS_TMP(5), R_RAX);
    emit_load_gs(e, R_RAX, GS_TMP(4));
}

void emit_unstash_flags(struct emitter *e)
{
    emit_store_gs(e, GS_TMP(4), R_RAX);
    emit_load_gs(e, R_RAX, GS_TMP(5));
    e8(e, 0x04);
    e8(e, 0x7f);
    e8(e, 0x9e);
    emit_load_gs(e, R_RAX, GS_TMP(4));
}

struct way_out {
    uint8_t *jump[8];
    unsigned n;
};

static void leave_if(struct emitter *e, unsigned cc, struct way_out *w)
{
    w->jump[w->n++] = emit_jcc(e, cc, NULL);
}

/* One side of a string: `s` becomes HVA - GVA of the page of `reg` when all of RCX items lie in it and the TLB has it. */
static void string_side(struct tr *t, unsigned reg, bool write, unsigned shift, unsigned s, unsigned u,
                        struct way_out *w)
{
    struct emitter *e = &t->e;
    uint32_t tlb = GS(tlb) + t->idx * TLB_SIZE * (uint32_t)sizeof(struct tlb_entry);
    uint32_t tag = write ? offsetof(struct tlb_entry, tag_write) : offsetof(struct tlb_entry, tag_read);
    struct host_mem end = {(uint8_t)u, R_RCX, (uint8_t)(1u << shift), 0};
    struct host_mem at_tag = {(uint8_t)u, INSN_NOREG, 1, (int32_t)(tlb + tag)};
    struct host_mem at_delta = {(uint8_t)u, INSN_NOREG, 1, (int32_t)(tlb + offsetof(struct tlb_entry, delta))};
    emit_mov_rr(e, u, reg);
    emit_alu_imm(e, 0, ALU_AND, u, (uint32_t)(PAGE_SIZE - 1));
    emit_lea(e, u, end);
    emit_alu_imm(e, 1, ALU_CMP, u, (uint32_t)PAGE_SIZE);
    leave_if(e, 7, w);
    emit_mov_rr(e, s, reg);
    emit_alu_imm(e, 1, ALU_AND, s, (uint32_t)PAGE_MASK);
    emit_tlb_index_flags(e, u, reg);
    e8(e, 0x65);
    emit_rm(e, 0x3b, s, at_tag); /* cmp s, gs:[u + tag] */
    leave_if(e, 5, w);
    e8(e, 0x65);
    emit_rm(e, 0x8b, s, at_delta);
}

/* REP STOS and REP MOVS that stay in a page on either side; else C does them, page by page. */
static void emit_rep(struct tr *t, unsigned i)
{
    struct emitter *e = &t->e;
    const struct xinsn *x = &t->x[i];
    bool live = t->fl_live[i] != 0, movs = !is_store_string(x);
    uint8_t op = x->in.bytes[x->in.len - 1];
    unsigned size = op & 1 ? x->in.op_size : 1, shift = (unsigned)__builtin_ctz(size);
    uint16_t no = 1u << R_RAX | 1u << R_RCX | 1u << R_RSI | 1u << R_RDI;
    struct way_out out = {.n = 0};
    unsigned d = tr_borrow(t, i, no, false), u = tr_borrow(t, i, (uint16_t)(no | 1u << d), false), s = NO_REG;
    if (movs) s = tr_borrow(t, i, (uint16_t)(no | 1u << d | 1u << u), false);
    uint32_t info = tr_keep_insn(t, i);
    if (live) stash_flags(e);
    emit_alu_imm(e, 1, ALU_CMP, R_RCX, (uint32_t)PAGE_SIZE >> shift);
    leave_if(e, 7, &out);
    string_side(t, R_RDI, true, shift, d, u, &out);
    if (movs) string_side(t, R_RSI, false, shift, s, u, &out);
    struct host_mem to = {R_RDI, (uint8_t)d, 1, 0}, from = {R_RSI, (uint8_t)s, 1, 0};
    emit_lea(e, R_RDI, to);
    if (movs) emit_lea(e, R_RSI, from);
    if (size == 2) e8(e, 0x66);
    e8(e, 0xf3);
    if (size == 8) e8(e, 0x48);
    e8(e, op);
    emit_rr(e, 0x29, R_RDI, d);
    if (movs) emit_rr(e, 0x29, R_RSI, s);
    if (live) emit_unstash_flags(e);
    tr_cold_special(t, out.jump, out.n, info, live);
}

/* ---- division ---- */

/* mov or movzx rcx, divisor */
static void emit_load_divisor(struct emitter *e, const struct insn_op *o, const struct host_mem *m)
{
    unsigned size = o->size, r = o->reg_class == RC_GPR_HIGH8 ? o->reg + 4u : o->reg;
    unsigned rex = (size == 8 ? 8u : 0) | (m ? rex_xb(m) : r >= 8 ? 1u : 0);
    bool low_byte = !m && size == 1 && o->reg_class != RC_GPR_HIGH8; /* SPL .. DIL need a REX prefix */
    if (rex || low_byte) e8(e, 0x40 | rex);
    if (size <= 2) e8(e, 0x0f);
    e8(e, size == 1 ? 0xb6 : size == 2 ? 0xb7 : 0x8b);
    if (m)
        emit_modrm(e, R_RCX, m, 1);
    else
        e8(e, 0xc0 | R_RCX << 3 | (r & 7));
}

void tr_divide_check(struct tr *t, unsigned i, const struct host_mem *m)
{
    struct emitter *e = &t->e;
    const struct xinsn *x = &t->x[i];
    uint64_t gpa = t->b->gpa + (x->in.rip - t->b->rip);
    if (*soft_divide_slot(t->p, gpa) != gpa) return;
    uint32_t info = tr_keep_insn(t, i);
    emit_store_gs(e, GS_TMP(7), R_RCX);
    emit_load_divisor(e, &x->in.op[0], m);
    e8(e, 0xe3);
    e8(e, 2); /* jrcxz over the jump */
    e8(e, 0xeb);
    uint8_t *nonzero = e->p;
    e8(e, 0);
    emit_load_gs(e, R_RCX, GS_TMP(7));
    uint8_t *zero = emit_jmp(e, NULL);
    *nonzero = (uint8_t)(e->p - (nonzero + 1));
    emit_load_gs(e, R_RCX, GS_TMP(7));
    tr_cold_special(t, &zero, 1, info, false);
}

void tr_emit_sys(struct tr *t, unsigned i)
{
    switch (t->x[i].kind) {
    case XK_PUSH_MEM: emit_push_mem(t, i); break;
    case XK_PUSHF: emit_pushf(t, i); break;
    case XK_REP: emit_rep(t, i); break;
    case XK_SYS: emit_sys(t, i); break;
    default:
        if (t->x[i].in.mnemonic == ZYDIS_MNEMONIC_STAC || t->x[i].in.mnemonic == ZYDIS_MNEMONIC_CLAC)
            emit_ac(t, i);
        else
            emit_call_gate(t, i);
        break;
    }
}
