/* The translator: a block of guest instructions to host code. docs/design/0002-soft-engine.md tells why it is as it is.
 *
 * Worked example, 64-bit guest code `mov rax,[rdi+8]; add rax,rsi; ret` (RSI, RDI live, R11 unused):
 *     cmp  dword %gs:exit_request, 0      ; safe point (flags are dead: ADD kills them)
 *     jne  cold
 *     mov  %gs:saved.rcx, rcx             ; the stack check of RET, hoisted above ADD
 *     lea  rcx, [rsp]
 *     sub  rcx, %gs:slot.tag ; cmp rcx, 4096-8 ; ja cold
 *     mov  rcx, %gs:slot.delta            ; HVA - GVA of the stack page
 *     mov  %gs:saved.rax, rax             ; RAX is overwritten next: no reload
 *     lea  rax, [rdi+8]; sub ...; cmp ...; ja cold; mov rax, %gs:slot.delta
 *     mov  rax, [rdi+rax+8]               ; the guest's instruction on the host address
 *     add  rax, rsi
 *     mov  rdx, [rsp+rcx] ; lea rsp, [rsp+8] ; jump cache look-up of RDX
 */
#include "vmm/engine/soft/tr.h"

#include <stdlib.h>
#include <string.h>

uint32_t tr_new_link(struct tr *t, uint64_t target)
{
    uint32_t off = soft_meta_alloc(t->p, sizeof(struct link));
    if (!off) {
        t->failed = true;
        return 0;
    }
    struct link *l = meta_ptr(t->p, off);
    *l = (struct link){.target = target, .block = t->b_off, .to_mode = (uint16_t)(t->mode & ~MODE_NO_MERGE)};
    l->cross_page = ((target ^ t->b->rip) & PAGE_MASK) != 0;
    l->back = target <= t->b->rip && tr_is_jump(&t->x[t->n - 1]) && !(t->mode & (MODE_NO_MERGE | MODE_NEST));
    return off;
}

struct cold *tr_new_cold(struct tr *t, enum cold_kind kind, uint8_t *jump)
{
    static _Thread_local struct cold dummy;
    if (t->colds >= MAX_COLD) {
        t->failed = true;
        return &dummy;
    }
    struct cold *c = &t->cold[t->colds++];
    *c = (struct cold){.kind = (uint8_t)kind, .jump = jump, .borrowed = t->borrowed};
    return c;
}

void tr_link_jump(struct tr *t, uint64_t target, uint32_t mode)
{
    tr_restore(t, 0xffff);
    uint8_t *jump = emit_jmp(&t->e, NULL);
    struct cold *c = tr_new_cold(t, COLD_LINK, jump);
    c->meta = tr_new_link(t, target);
    if (c->meta) ((struct link *)meta_ptr(t->p, c->meta))->to_mode = (uint16_t)mode;
}

static void emit_link_jump(struct tr *t, uint64_t target)
{
    tr_link_jump(t, target, t->mode & ~MODE_NO_MERGE);
}

void tr_side_exit(struct tr *t, unsigned cc, uint64_t target)
{
    uint8_t *jump = emit_jcc(&t->e, cc, NULL);
    struct cold *c = tr_new_cold(t, COLD_LINK, jump);
    c->meta = tr_new_link(t, target);
}

/* Looks up the guest address in register `target` (lent) in the jump cache: the host address goes to tmp[0]; a miss goes to *miss, cold
 * code that the caller describes. All flag-free. */
static struct cold *emit_lookup(struct tr *t, unsigned target, enum cold_kind kind)
{
    struct emitter *e = &t->e;
    uint16_t keep = (uint16_t)(1u << target | 1u << R_RCX);
    if (!(t->borrowed & (1u << R_RCX))) {
        emit_store_gs(e, GS_SAVED(R_RCX), R_RCX);
        t->borrowed |= 1u << R_RCX;
    }
    unsigned r2 = tr_borrow(t, t->n - 1, keep, false);
    uint32_t base = GS(jump) + t->idx * JUMP_CACHE_SIZE * (uint32_t)sizeof(struct jump_slot);
    if (target >= 8) e8(e, 0x41);
    e8(e, 0x0f);
    e8(e, 0xb7);
    e8(e, 0xc0 | R_RCX << 3 | (target & 7)); /* movzx ecx, target16 */
    struct host_mem twice = {R_RCX, R_RCX, 1, 0};
    emit_rm32(e, 0x8d, R_RCX, twice); /* lea ecx, [rcx+rcx] */
    struct host_mem host = {INSN_NOREG, R_RCX, 8, (int32_t)(base + 8)};
    e8(e, 0x65);
    emit_rm(e, 0x8b, r2, host);
    struct host_mem tag = {INSN_NOREG, R_RCX, 8, (int32_t)base};
    e8(e, 0x65);
    emit_rm(e, 0x8b, R_RCX, tag);
    struct host_mem sum = {R_RCX, (uint8_t)target, 1, 0};
    emit_lea(e, R_RCX, sum);
    emit_store_gs(e, GS_TMP(0), r2);
    e8(e, 0xe3);
    e8(e, 5); /* jrcxz over the jump */
    struct cold *c = tr_new_cold(t, kind, emit_jmp(e, NULL));
    c->scratch = (uint8_t)target;
    return c;
}

/* Jump through the jump cache to the guest address in register `target` (lent). `rsp_back` undoes what the instruction did to RSP. */
static void emit_indirect(struct tr *t, unsigned target, int32_t rsp_back)
{
    uint32_t info = soft_meta_alloc(t->p, sizeof(struct branch));
    t->held = 0;
    if (!info) {
        t->failed = true;
        return;
    }
    *(struct branch *)meta_ptr(t->p, info) = (struct branch){t->x[t->n - 1].in.rip, rsp_back};
    emit_lookup(t, target, COLD_LOOKUP)->meta = info;
    tr_restore(t, 0xffff);
    emit_gs(&t->e, 0, 0xff, 4, GS_TMP(0));
}

/* A copy of the instruction for C; 0 when there is no room. */
uint32_t tr_keep_insn(struct tr *t, unsigned i)
{
    uint32_t off = soft_meta_alloc(t->p, sizeof(struct xinsn));
    if (off)
        *(struct xinsn *)meta_ptr(t->p, off) = t->x[i];
    else
        t->failed = true;
    return off;
}

struct host_mem tr_access_now(struct tr *t, unsigned i, uint16_t forbidden)
{
    struct host_mem m = {INSN_NOREG, INSN_NOREG, 1, 0};
    tr_access(t, i, forbidden, &m);
    return m;
}

void tr_note_map(struct tr *t, unsigned i)
{
    struct imap *m = &t->map[t->maps++];
    m->host = (uint32_t)(t->e.p - t->p->code);
    m->guest = (uint16_t)(t->x[i].in.rip - t->b->rip);
    m->borrowed = t->borrowed;
}

void tr_move_rsp(struct tr *t, int32_t by)
{
    struct host_mem m = {R_RSP, INSN_NOREG, 1, by};
    emit_lea(&t->e, R_RSP, m);
}

static void emit_push_constant(struct tr *t, unsigned i, uint64_t v, uint16_t forbidden)
{
    struct emitter *e = &t->e;
    struct host_mem m = tr_access_now(t, i, forbidden);
    m.base = R_RSP;
    m.disp = -8;
    if (fits_simm32(v)) {
        tr_note_map(t, i);
        e8(e, 0x48 | rex_xb(&m));
        e8(e, 0xc7);
        emit_modrm(e, 0, &m, 1);
        e32(e, (uint32_t)v);
    } else {
        unsigned r = tr_borrow(t, i, (uint16_t)(1u << m.index | forbidden), false);
        tr_note_map(t, i);
        emit_mov_imm(e, r, v);
        emit_rm(e, 0x89, r, m);
    }
    tr_move_rsp(t, -8);
}

static void emit_push_insn(struct tr *t, unsigned i)
{
    const struct insn *in = &t->x[i].in;
    if (in->op[0].kind == OP_IMM) {
        emit_push_constant(t, i, in->op[0].imm, 0);
        return;
    }
    struct host_mem m = tr_access_now(t, i, 0);
    tr_note_map(t, i);
    emit_rm(&t->e, 0x89, in->op[0].reg, m);
    tr_move_rsp(t, -8);
}

static void emit_pop_insn(struct tr *t, unsigned i)
{
    const struct insn *in = &t->x[i].in;
    struct host_mem m = tr_access_now(t, i, 0);
    tr_note_map(t, i);
    emit_rm(&t->e, 0x8b, in->op[0].reg, m);
    if (in->op[0].reg != R_RSP) tr_move_rsp(t, 8);
    t->borrowed &= (uint16_t) ~(1u << in->op[0].reg);
}

static void emit_leave(struct tr *t, unsigned i)
{
    struct host_mem m = tr_access_now(t, i, 0);
    struct host_mem above = {R_RBP, INSN_NOREG, 1, 8};
    emit_store_gs(&t->e, GS_SAVED(R_RSP), R_RSP); /* moved before the load, which may find that this is no address */
    tr_note_map(t, i);
    t->map[t->maps - 1].borrowed |= 1u << R_RSP;
    emit_lea(&t->e, R_RSP, above);
    emit_rm(&t->e, 0x8b, R_RBP, m);
}

static void emit_ret(struct tr *t, unsigned i)
{
    const struct insn *in = &t->x[i].in;
    struct host_mem m = tr_access_now(t, i, 1u << R_RCX);
    unsigned target = tr_borrow(t, i, (uint16_t)(1u << R_RCX | 1u << m.index), false);
    tr_note_map(t, i);
    emit_rm(&t->e, 0x8b, target, m);
    int32_t by = 8 + (in->ops ? (int32_t)(uint16_t)in->op[0].imm : 0);
    tr_move_rsp(t, by);
    emit_indirect(t, target, -by);
}

static void emit_indirect_branch(struct tr *t, unsigned i, bool call)
{
    const struct xinsn *x = &t->x[i];
    unsigned target;
    if (x->in.has_mem) {
        struct host_mem m = tr_access_now(t, i, 1u << R_RCX);
        target = tr_borrow(
            t, i, (uint16_t)(1u << R_RCX | (m.index < 16 ? 1u << m.index : 0) | (m.base < 16 ? 1u << m.base : 0)),
            false);
        tr_note_map(t, i);
        emit_rm(&t->e, 0x8b, target, m);
    } else {
        target = tr_borrow(t, i, 1u << R_RCX, false);
        emit_mov_rr(&t->e, target, x->in.op[0].reg);
    }
    if (!call) {
        emit_indirect(t, target, 0);
        return;
    }
    /* The target is looked up before anything is pushed: an unknown one may be no address, and then nothing must have been (C does all). */
    emit_lookup(t, target, COLD_SPECIAL)->meta = tr_keep_insn(t, i);
    struct xinsn keep = t->x[i];
    t->x[i].kind = XK_CALL; /* for the push, which is checked on its own: [rsp-8] */
    t->acc[i].group = NO_GROUP;
    emit_push_constant(t, i, keep.in.rip + keep.in.len, 0);
    t->x[i] = keep;
    t->held = 0;
    tr_restore(t, 0xffff);
    emit_gs(&t->e, 0, 0xff, 4, GS_TMP(0));
}

void tr_cold_special(struct tr *t, uint8_t *const *jump, unsigned n, uint32_t info, bool flags)
{
    struct cold *c = tr_new_cold(t, COLD_SPECIAL, jump[0]);
    c->meta = info;
    c->flags = flags;
    c->more = (uint8_t)(n - 1);
    for (unsigned k = 1; k < n; k++) c->other[k - 1] = jump[k];
}

static void emit_special(struct tr *t, unsigned i)
{
    tr_restore(t, 0xffff);
    uint32_t off = tr_keep_insn(t, i);
    emit_store_gs32_imm(&t->e, GS(exit_info), off);
    emit_jmp(&t->e, t->p->code + t->p->stub_exit[HX_SPECIAL]);
}

/* Leaves before instruction i when exit_request is set; `wide`: or irq_waiting. */
static void emit_request(struct tr *t, unsigned i, enum cold_kind kind, unsigned wide)
{
    struct emitter *e = &t->e;
    uint8_t *jump;
    if (t->fl_live[i] == 0) {
        emit_gs(e, wide, 0x83, 7, GS(exit_request));
        e8(e, 0); /* cmp dword or qword, 0 */
        jump = emit_jcc(e, 5, NULL);
        tr_new_cold(t, kind, jump)->rip = t->x[i].in.rip;
        return;
    }
    /* keeps the flags: JRCXZ */
    bool lent = t->borrowed & (1u << R_RCX);
    if (!lent) emit_store_gs(e, GS_TMP(7), R_RCX);
    emit_gs(e, wide, 0x8b, R_RCX, GS(exit_request));
    uint8_t skip = (uint8_t)(5 + (lent ? 0 : 9));
    e8(e, 0xe3);
    e8(e, skip); /* jrcxz */
    if (!lent) emit_load_gs(e, R_RCX, GS_TMP(7));
    jump = emit_jmp(e, NULL);
    tr_new_cold(t, kind, jump)->rip = t->x[i].in.rip;
    if (!lent) emit_load_gs(e, R_RCX, GS_TMP(7));
}

void tr_request_check(struct tr *t, unsigned i)
{
    if (t->fl_live[i] && t->held & (1u << R_RCX)) return;
    emit_request(t, i, COLD_REQUEST, 0);
}

/* Between STI and instruction i, its shadow: if an interrupt waits, C makes that one by itself. */
void tr_sti_check(struct tr *t, unsigned i)
{
    emit_request(t, i, COLD_STI, 1);
}

static void emit_insn(struct tr *t, unsigned i)
{
    struct xinsn *x = &t->x[i];
    tr_restore(t, x->reg_read & (uint16_t)~t->held);
    switch (x->kind) {
    case XK_NOP: break;
    case XK_COPY:
        if (tr_is_divide(x)) tr_divide_check(t, i, NULL);
        tr_note_map(t, i);
        emit_reencoded(&t->e, x, NULL);
        t->borrowed &= (uint16_t)~x->reg_kill;
        break;
    case XK_MEM: {
        struct host_mem m = tr_access_now(t, i, 0);
        tr_note_map(t, i);
        if (tr_is_divide(x)) tr_divide_check(t, i, &m);
        emit_reencoded(&t->e, x, &m);
        t->borrowed &= (uint16_t)~x->reg_kill;
        break;
    }
    case XK_LEA_RIP: {
        uint64_t v = x->in.rip + x->in.len + (uint64_t)x->in.mem.disp;
        if (x->in.addr_size == 4) v = (uint32_t)v;
        if (x->in.op[0].size == 4) v = (uint32_t)v;
        emit_mov_imm(&t->e, x->in.op[0].reg, v);
        t->borrowed &= (uint16_t)~x->reg_kill;
        break;
    }
    case XK_PUSH: emit_push_insn(t, i); break;
    case XK_POP: emit_pop_insn(t, i); break;
    case XK_LEAVE: emit_leave(t, i); break;
    case XK_JMP:
        if (t->nest)
            tr_nest_jump(t, i);
        else
            emit_link_jump(t, x->in.rip + x->in.len + x->in.op[0].imm);
        break;
    case XK_JCC:
        if (t->nest)
            tr_nest_jump(t, i);
        else if (t->loop && i == t->n - 1)
            tr_back_edge(t, x->cc);
        else
            tr_side_exit(t, x->cc, x->in.rip + x->in.len + x->in.op[0].imm);
        break;
    case XK_CALL:
        emit_push_constant(t, i, x->in.rip + x->in.len, 0);
        t->held = 0;
        emit_link_jump(t, x->in.rip + x->in.len + x->in.op[0].imm);
        break;
    case XK_RET: emit_ret(t, i); break;
    case XK_JMP_IND: emit_indirect_branch(t, i, false); break;
    case XK_CALL_IND: emit_indirect_branch(t, i, true); break;
    case XK_PUSH_MEM:
    case XK_PUSHF:
    case XK_SYS:
    case XK_REP:
    case XK_GATE: tr_emit_sys(t, i); break;
    default: emit_special(t, i); break;
    }
}

static void emit_link_stub(struct tr *t, uint32_t link, uint8_t *jump)
{
    struct link *l = meta_ptr(t->p, link);
    l->jump = (uint32_t)(jump - t->p->code);
    l->stub = (uint32_t)(t->apart.p - t->p->code);
    patch_rel32(jump, t->apart.p);
    emit_store_gs32_imm(&t->apart, GS(exit_info), link);
    emit_jmp(&t->apart, t->p->code + t->p->stub_exit[HX_LINK]);
}

static void emit_cold(struct tr *t, const struct cold *c)
{
    struct emitter *e = &t->apart;
    uint8_t *start = e->p;
    patch_rel32(c->jump, start);
    switch (c->kind) {
    case COLD_SITE:
        emit_store_gs32_imm(e, GS(exit_info), c->meta);
        emit_jmp(e, t->p->code + t->p->stub_tlb[c->idx][c->write][c->scratch]);
        break;
    case COLD_LINK: {
        uint8_t *jump = c->jump;
        if (c->borrowed) { /* registers come back on the way out, then a patchable jump: not cold once it is linked */
            patch_rel32(jump, t->e.p);
            emit_load_saved(&t->e, c->borrowed);
            jump = emit_jmp(&t->e, NULL);
        }
        emit_link_stub(t, c->meta, jump);
        break;
    }
    case COLD_STI: emit_store_gs8_imm(e, GS(irq_shadow), SHADOW_STI); /* fall through */
    case COLD_REQUEST:
        emit_load_saved(e, c->borrowed);
        emit_store_gs_imm(e, GS(rip), c->rip);
        emit_jmp(e, t->p->code + t->p->stub_exit[HX_REQUEST]);
        break;
    case COLD_SPECIAL:
        for (unsigned n = 0; n < c->more; n++) patch_rel32(c->other[n], start);
        if (c->flags) emit_unstash_flags(e);
        emit_load_saved(e, c->borrowed);
        emit_store_gs32_imm(e, GS(exit_info), c->meta);
        emit_jmp(e, t->p->code + t->p->stub_exit[HX_SPECIAL]);
        break;
    case COLD_LOCAL: /* not cold either */
        patch_rel32(c->jump, t->e.p);
        emit_load_saved(&t->e, c->borrowed);
        emit_jmp(&t->e, t->label[c->meta].entry);
        break;
    case COLD_LOOKUP:
        emit_store_gs(e, GS(rip), c->scratch);
        emit_store_gs32_imm(e, GS(exit_info), c->meta);
        emit_load_saved(e, c->borrowed);
        emit_jmp(e, t->p->code + t->p->stub_exit[HX_LOOKUP]);
        break;
    }
}

static bool gated(uint32_t mode, uint8_t gate)
{
    switch (gate) {
    case GATE_X87:
    case GATE_FWAIT: return mode & MODE_NO_X87;
    case GATE_MMX: return mode & MODE_NO_MMX;
    case GATE_SSE: return mode & MODE_NO_SSE;
    case GATE_AVX: return mode & MODE_NO_AVX;
    case GATE_AVX512: return mode & MODE_NO_AVX512;
    default: return false;
    }
}

/* Instructions that the inline paths leave to C although their kind is plain. */
static bool too_odd(const struct tr *t, const struct xinsn *x)
{
    const struct insn_mem *m = &x->in.mem;
    if (gated(t->mode, x->gate)) return true;
    if (!x->in.has_mem && !tr_is_stack(x)) return false;
    if ((t->mode & MODE_AC) && x->kind != XK_COPY && x->kind != XK_LEA_RIP && x->kind != XK_NOP) return true;
    if (x->kind == XK_COPY || x->kind == XK_LEA_RIP || x->kind == XK_NOP) return false;
    if (x->bit_string) {
        uint64_t at = (uint64_t)m->disp + (m->base == INSN_RIP ? x->in.rip + x->in.len : 0);
        if (x->in.addr_size != 8 || x->in.op_size == 2) return true;
        if (m->base >= 16 && !fits_simm32(at)) return true;
    }
    if (x->mem_size > 1024) return true;
    return false;
}

static bool ends_block(const struct xinsn *x, uint64_t rip)
{
    switch (x->kind) {
    case XK_JMP:
    case XK_CALL:
    case XK_RET:
    case XK_JMP_IND:
    case XK_CALL_IND:
    case XK_SPECIAL:
    case XK_STEP:
    case XK_GATE: return true;
    case XK_JCC: return x->in.rip + x->in.len + x->in.op[0].imm <= rip || (int64_t)x->in.op[0].imm < 0;
    default: return false;
    }
}

static void mark_undefined(struct xinsn *x, uint64_t at)
{
    memset(x, 0, sizeof *x);
    x->kind = XK_SPECIAL;
    x->in.rip = at;
    x->in.len = 1;
    x->in.code_size = 8;
}

/* From what an instruction is to what it becomes in this mode. */
static void adapt(const struct tr *t, struct xinsn *x)
{
    if (too_odd(t, x))
        x->kind = XK_STEP;
    else if (x->in.mnemonic == ZYDIS_MNEMONIC_STD) /* to MODE_STEP */
        x->kind = XK_STEP;
    else if (x->in.mnemonic == ZYDIS_MNEMONIC_CLD) /* DF is clear already */
        x->kind = XK_NOP;
    else if (x->kind == XK_SPECIAL)
        tr_promote(t, x);
}

/* STI looks after the instruction in its shadow; when that is in another block C must. */
static void lone_sti(struct tr *t)
{
    if (t->n && tr_is_sti(&t->x[t->n - 1])) t->x[t->n - 1].kind = XK_SPECIAL;
}

/* Up to 15 bytes at offset `off` from the start of the first page. Copied: another vCPU may write them meanwhile. */
static unsigned copy_code(const struct code_page *page, const struct code_page *next, unsigned off, uint8_t bytes[15])
{
    unsigned end = (unsigned)PAGE_SIZE * (next ? 2 : 1), n = end - off < 15 ? end - off : 15;
    for (unsigned i = 0; i < n; i++) {
        unsigned at = off + i;
        const struct code_page *in = at < PAGE_SIZE || !next ? page : next;
        bytes[i] = in->host[at & (PAGE_SIZE - 1)];
    }
    return n;
}

/* Decodes up to the end of the block or of the page(s); false when not even one instruction is whole there. */
static bool gather(struct tr *t, uint64_t rip, const struct code_page *page, const struct code_page *next)
{
    uint64_t start = rip & PAGE_MASK, end = PAGE_SIZE * (next ? 2 : 1), at = rip;
    uint64_t stop = t->mode & MODE_NEST ? t->p->nest_end : 0;
    t->n = 0;
    while (t->n < (stop ? NEST_MAX_INSNS : BLOCK_MAX_INSNS) - 1 && at - start < end) {
        struct xinsn *x = &t->x[t->n];
        uint8_t bytes[15];
        unsigned n = copy_code(page, next, (unsigned)(at - start), bytes);
        int r = soft_decode(bytes, n, 8, at, x);
        if (r == -1 && n == 15) {
            mark_undefined(x, at);
        } else if (r < 0) {
            break;
        }
        adapt(t, x);
        t->n++;
        at += x->in.len;
        if (stop ? at >= stop : ends_block(x, rip) || soft_nest_head(t->p, at)->rip == at) break;
    }
    t->next_rip = at;
    t->before_nest = !stop && soft_nest_head(t->p, at)->rip == at;
    if (stop) return at == stop && tr_plan_nest(t, rip);
    lone_sti(t);
    return t->n > 0;
}

/* The boundary for the safe point: the first where the flags are dead, else the entry; never that behind STI. A block that goes on in another
 * mode has none: no loop is made of such blocks alone. */
static unsigned request_boundary(const struct tr *t)
{
    const struct xinsn *last = &t->x[t->n - 1];
    if (last->kind == XK_GATE && (last->in.mnemonic == ZYDIS_MNEMONIC_STAC || last->in.mnemonic == ZYDIS_MNEMONIC_CLAC))
        return BLOCK_MAX_INSNS;
    for (unsigned i = 0; i < t->n; i++)
        if (t->fl_live[i] == 0 && !(i && tr_is_sti(&t->x[i - 1]))) return i;
    return 0;
}

/* All instructions once. Inner loops of a nest may be gone through several times (t->again). */
static void emit_round(struct tr *t, unsigned safe)
{
    for (unsigned i = 0; i < t->n && !t->failed; i++) {
        if (t->nest) tr_nest_label(t, i);
        if (t->nest && t->unreachable) continue;
        if (i == safe && t->strip_rounds == NO_REG && !t->nest)
            tr_request_check(t, i); /* loops in strips and nests have their own */
        tr_begin_groups(t, i);
        emit_insn(t, i);
        tr_end_groups(t, i);
        if (t->again == NO_LABEL) continue;
        i = t->again - 1u;
        t->again = NO_LABEL;
    }
}

/* The way on to the next block. */
static void emit_way_on(struct tr *t)
{
    const struct xinsn *last = &t->x[t->n - 1];
    if (ends_block(last, t->b->rip) && last->kind != XK_JCC) return;
    t->held = 0;
    emit_link_jump(t, t->next_rip);
    if (t->before_nest && !t->failed) ((struct link *)meta_ptr(t->p, t->cold[t->colds - 1].meta))->nest = true;
}

static void emit_body(struct tr *t)
{
    unsigned safe = request_boundary(t);
    t->loop = t->strip = NULL;
    t->strip_rounds = NO_REG;
    t->again = NO_LABEL;
    t->ahead = 0;
    if (t->nest)
        tr_begin_nest(t);
    else if (tr_is_self_loop(t))
        tr_begin_loop(t);
    emit_round(t, safe);
    emit_way_on(t);
    if (t->nest) tr_patch_nest(t);
    if (t->strip_rounds != NO_REG && !t->failed) {
        tr_begin_strip(t);
        while (tr_copy_round(t)) emit_round(t, safe);
        emit_way_on(t);
    }
    for (unsigned i = 0; i < t->colds && !t->failed; i++) emit_cold(t, &t->cold[i]);
}

struct block *soft_translate(struct soft_cpu *cpu, uint64_t rip, const struct code_page *page,
                             const struct code_page *next, uint32_t mode)
{
    struct soft_private *p = cpu->priv;
    if (!p->translator) p->translator = calloc(1, sizeof *p->translator);
    struct tr *t = p->translator;
    if (!t) return NULL;
    t->cpu = cpu;
    t->p = p;
    t->mode = mode;
    t->idx = mode & MODE_IDX_MASK;
    t->failed = false;
    t->nest = mode & MODE_NEST;
    t->borrowed = t->held = 0;
    t->colds = t->maps = 0;
    if (!gather(t, rip, page, next)) return NULL;
    if (!((rip ^ (t->next_rip - 1)) & PAGE_MASK)) next = NULL; /* it ends before */
    tr_analyze(t);
    t->b_off = soft_meta_alloc(p, sizeof(struct block));
    if (!t->b_off) return NULL;
    t->b = meta_ptr(p, t->b_off);
    *t->b = (struct block){.rip = rip,
                           .gpa = page->gpa + (rip & (PAGE_SIZE - 1)),
                           .gpa2 = next ? next->gpa : NO_PAGE,
                           .mode = mode,
                           .host = p->code_used,
                           .guest_len = (uint16_t)(t->next_rip - rip),
                           .global = page->global && (!next || next->global)};
    t->e.p = p->code + p->code_used;
    t->apart.p = soft_cold_room(p);
    emit_body(t);
    uint32_t map_bytes = (uint32_t)(t->maps * sizeof(struct imap));
    t->b->map = soft_meta_alloc(p, map_bytes ? map_bytes : 1);
    if (t->failed || !t->b->map) return NULL;
    memcpy(meta_ptr(p, t->b->map), t->map, map_bytes);
    t->b->map_count = (uint16_t)t->maps;
    uint32_t end = (uint32_t)(t->e.p - p->code);
    if (end < t->b->host + BLOCK_MIN) end = t->b->host + BLOCK_MIN;
    t->b->host_end = end;
    p->code_used = (end + 15) & ~15u;
    p->cold_used = (uint32_t)(t->apart.p - p->code);
    return t->b;
}

uint32_t soft_make_thunk(struct soft_cpu *cpu, const struct xinsn *x, uint8_t *scratch)
{
    struct soft_private *p = cpu->priv;
    struct emitter e = {p->code + p->code_used};
    uint32_t at = p->code_used;
    *scratch = NO_REG;
    if (x->kind == XK_MEM) {
        uint16_t used = x->reg_read | x->reg_write | 1u << R_RSP;
        unsigned s = 0;
        while (s < 15 && (used & (1u << s))) s++;
        *scratch = (uint8_t)s;
        emit_load_gs(&e, s, GS_TMP(5));
        struct host_mem m = {(uint8_t)s, INSN_NOREG, 1, 0};
        emit_reencoded(&e, x, &m);
    } else {
        emit_reencoded(&e, x, NULL);
    }
    emit_jmp(&e, p->code + p->stub_exit[HX_THUNK]);
    p->code_used = (uint32_t)((e.p - p->code + 15) & ~15);
    return at;
}
