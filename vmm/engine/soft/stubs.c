/* Host code that every translated block shares: entering, leaving, and the hashed TLB look-up behind the
 * per-site inline caches. Made once per vCPU at the start of its code cache. */
#include "vmm/engine/soft/emit.h"
#include "vmm/engine/soft/xlat.h"

#define CALLEE_SAVED 6
static const uint8_t callee_saved[CALLEE_SAVED] = {R_RBX, R_RBP, R_R12, R_R13, R_R14, R_R15};

static void emit_push(struct emitter *e, unsigned r)
{
    if (r >= 8) e8(e, 0x41);
    e8(e, 0x50 | (r & 7));
}

static void emit_pop(struct emitter *e, unsigned r)
{
    if (r >= 8) e8(e, 0x41);
    e8(e, 0x58 | (r & 7));
}

/* uint32_t enter(struct soft_cpu *, void *host_pc): loads the guest's registers and flags and goes there. %gs already
 * points to the soft_cpu. tmp[1] holds the arithmetic flags and DF to load. */
static void make_enter(struct emitter *e)
{
    for (unsigned i = 0; i < CALLEE_SAVED; i++) emit_push(e, callee_saved[i]);
    emit_store_gs(e, GS(host_rsp), R_RSP);
    emit_store_gs(e, GS(host_pc), R_RSI);
    /* popfq costs tens of cycles: go through SAHF and an addition that sets OF, unless DF is set */
    emit_load_gs(e, R_RAX, GS_TMP(1));
    e8(e, 0xa9);
    e32(e, FL_DF); /* test eax, DF */
    e8(e, 0x74);
    e8(e, 0x02); /* jz +2 */
    e8(e, 0x50);
    e8(e, 0x9d); /* push rax; popfq (only DF matters: the rest is set again below) */
    e8(e, 0x89);
    e8(e, 0xc1); /* mov ecx, eax */
    e8(e, 0xc1);
    e8(e, 0xe9);
    e8(e, 11); /* shr ecx, 11 */
    e8(e, 0x83);
    e8(e, 0xe1);
    e8(e, 1); /* and ecx, 1 */
    e8(e, 0x88);
    e8(e, 0xc4); /* mov ah, al */
    e8(e, 0x80);
    e8(e, 0xc1);
    e8(e, 0x7f); /* add cl, 0x7f: sets OF when cl was 1 */
    e8(e, 0x9e); /* sahf */
    for (unsigned r = 0; r < 16; r++) emit_load_gs(e, r, GS_GPR(r));
    emit_gs(e, 0, 0xff, 4, GS(host_pc)); /* jmp *%gs:host_pc */
}

/* Leaves to C with the code `hx`: all guest registers stored, flags in tmp[1]. */
static void make_exit(struct emitter *e, unsigned hx)
{
    for (unsigned r = 0; r < 16; r++) emit_store_gs(e, GS_GPR(r), r);
    emit_load_gs(e, R_RSP, GS(host_rsp));
    e8(e, 0x9c); /* pushfq */
    e8(e, 0x58); /* pop rax */
    emit_store_gs(e, GS_TMP(1), R_RAX);
    e8(e, 0xfc); /* cld */
    emit_mov_imm(e, R_RAX, hx);
    for (unsigned i = CALLEE_SAVED; i-- > 0;) emit_pop(e, callee_saved[i]);
    e8(e, 0xc3);
}

static void pick_three(unsigned s, uint8_t r[3])
{
    unsigned n = 0;
    for (unsigned c = 0; n < 3; c++)
        if (c != s && c != R_RSP) r[n++] = (uint8_t)c;
}

/* When the slot at offset s was empty: append it to its pool's list of filled ones. Keeps all registers (tmp[7] is free here). */
static void emit_note_filled(struct emitter *e, unsigned pool, unsigned s, unsigned r)
{
    struct host_mem tag_high = {(uint8_t)s, INSN_NOREG, 1, 4};
    e8(e, 0x65);
    if (s >= 8) e8(e, 0x41);
    e8(e, 0x81);
    emit_modrm(e, 7, &tag_high, 1);
    e32(e, (uint32_t)(TLB_INVALID >> 32)); /* cmp dword gs:[s+4], high half of TLB_INVALID */
    e8(e, 0x75);                           /* jne: it was in use */
    uint8_t *skip = e->p;
    e8(e, 0);
    emit_store_gs(e, GS_TMP(7), r);
    uint32_t filled = GS(sites_filled) + pool * (uint32_t)sizeof(uint32_t);
    emit_gs(e, 0, 0x8b, r, filled);
    struct host_mem entry = {INSN_NOREG, (uint8_t)r, 4,
                             (int32_t)(GS(site_list) + pool * SITE_COUNT * (uint32_t)sizeof(uint32_t))};
    e8(e, 0x65);
    emit_rm32(e, 0x89, s, entry);
    struct host_mem one_more = {(uint8_t)r, INSN_NOREG, 1, 1};
    emit_rm32(e, 0x8d, r, one_more);
    emit_gs(e, 0, 0x89, r, filled);
    emit_load_gs(e, r, GS_TMP(7));
    *skip = (uint8_t)(e->p - (skip + 1));
}

/* In: s = linear address, exit_info = meta offset of the site. Finds the page in the TLB, puts it into the site's slot and goes
 * back to the site; otherwise leaves with HX_MEM. Keeps all registers; clobbers flags (sites allow that). */
static void make_tlb(struct soft_cpu *cpu, struct emitter *e, unsigned idx, unsigned write, unsigned s)
{
    struct soft_private *p = cpu->priv;
    uint8_t r[3];
    pick_three(s, r);
    for (unsigned i = 0; i < 3; i++) emit_store_gs(e, GS_TMP(2 + i), r[i]);
    /* r0 = site */
    emit_gs(e, 0, 0x8b, r[0], GS(exit_info));
    emit_mov_imm(e, r[1], (uint64_t)(uintptr_t)p->meta);
    emit_rr(e, 0x01, r[0], r[1]);
    /* r1 = page of the last byte */
    struct host_mem span = {r[0], INSN_NOREG, 1, offsetof(struct site, span)};
    e8(e, 0x48);
    e8(e, 0x0f);
    e8(e, 0xb7);
    emit_modrm(e, r[1], &span, 1); /* movzx r1, word [site.span] */
    emit_rr(e, 0x01, r[1], s);
    e8(e, 0x48);
    e8(e, 0x81);
    e8(e, 0xe0 | r[1]);
    e32(e, 0xfffff000u); /* and r1, -4096 */
    /* r2 = TLB index in bytes, from the first byte */
    emit_mov_rr(e, r[2], s);
    e8(e, 0x48);
    e8(e, 0xc1);
    e8(e, 0xe8 | r[2]);
    e8(e, 12 - 5); /* shr r2, 7 */
    e8(e, 0x81);
    e8(e, 0xe0 | r[2]);
    e32(e, (TLB_SIZE - 1) << 5); /* and r2d, mask */
    uint32_t tlb = GS(tlb) + idx * TLB_SIZE * (uint32_t)sizeof(struct tlb_entry);
    uint32_t tag = write ? offsetof(struct tlb_entry, tag_write) : offsetof(struct tlb_entry, tag_read);
    struct host_mem at_tag = {r[2], INSN_NOREG, 1, (int32_t)(tlb + tag)};
    e8(e, 0x65);
    emit_rm(e, 0x3b, r[1], at_tag); /* cmp r1, gs:[r2 + tag] */
    uint8_t *miss = emit_jcc(e, 5, NULL);
    /* hit: fill the slot */
    struct host_mem at_delta = {r[2], INSN_NOREG, 1, (int32_t)(tlb + offsetof(struct tlb_entry, delta))};
    e8(e, 0x65);
    emit_rm(e, 0x8b, r[2], at_delta);
    struct host_mem flags = {r[0], INSN_NOREG, 1, offsetof(struct site, flags)};
    e8(e, 0xf6);
    emit_modrm(e, 0, &flags, 1);
    e8(e, SITE_HOSTPAGE); /* test byte [site.flags], HOSTPAGE */
    e8(e, 0x74);
    e8(e, 0x03);                  /* jz +3 */
    emit_rr(e, 0x01, r[2], r[1]); /* add r2, r1 */
    struct host_mem retry = {r[0], INSN_NOREG, 1, offsetof(struct site, retry)};
    struct host_mem slot = {r[0], INSN_NOREG, 1, offsetof(struct site, slot)};
    emit_store_gs(e, GS_TMP(6), s);
    emit_rm32(e, 0x8b, s, slot);
    emit_note_filled(e, idx * 2 + write, s, r[1]);
    struct host_mem at_slot = {(uint8_t)s, INSN_NOREG, 1, 0};
    e8(e, 0x65);
    emit_rm(e, 0x89, r[1], at_slot); /* slot.tag = page */
    at_slot.disp = 8;
    e8(e, 0x65);
    emit_rm(e, 0x89, r[2], at_slot); /* slot.delta */
    emit_rm32(e, 0x8b, s, retry);
    emit_mov_imm(e, r[0], (uint64_t)(uintptr_t)p->code);
    emit_rr(e, 0x01, r[0], s);
    emit_store_gs(e, GS_TMP(5), r[0]);
    emit_load_gs(e, s, GS_TMP(6));
    for (unsigned i = 0; i < 3; i++) emit_load_gs(e, r[i], GS_TMP(2 + i));
    emit_gs(e, 0, 0xff, 4, GS_TMP(5));
    patch_rel32(miss, e->p);
    for (unsigned i = 0; i < 3; i++) emit_load_gs(e, r[i], GS_TMP(2 + i));
    emit_jmp(e, p->code + p->stub_exit[HX_MEM]);
}

void soft_make_stubs(struct soft_cpu *cpu)
{
    struct soft_private *p = cpu->priv;
    struct emitter e = {p->code};
    p->stub_enter = 0;
    make_enter(&e);
    for (unsigned hx = 0; hx < 8; hx++) {
        p->stub_exit[hx] = (uint32_t)(e.p - p->code);
        make_exit(&e, hx);
    }
    for (unsigned idx = 0; idx < MMU_IDX_COUNT; idx++)
        for (unsigned w = 0; w < 2; w++)
            for (unsigned s = 0; s < 16; s++) {
                if (s == R_RSP) continue;
                p->stub_tlb[idx][w][s] = (uint32_t)(e.p - p->code);
                make_tlb(cpu, &e, idx, w, s);
            }
    p->code_stubs_end = (uint32_t)((e.p - p->code + 63) & ~63);
    p->code_used = p->code_stubs_end;
}
