/* Host code that every translated block shares: entering, leaving, and the hashed TLB look-up behind the
 * per-site inline caches. Made once per vCPU at the start of its code cache. */
#include "vmm/engine/soft/segment.h"
#include "vmm/engine/soft/tr.h"

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

/* The slot at offset s: if it was empty, appends it to its pool's list of filled ones; else counts the site as hot. Keeps all registers
 * (tmp[7] is free here). Returns where to patch the jump taken when the site is hot enough to be upgraded. */
static uint8_t *emit_note_miss(struct emitter *e, unsigned pool, unsigned s, unsigned r, unsigned site)
{
    struct host_mem tag_high = {(uint8_t)s, INSN_NOREG, 1, 4};
    e8(e, 0x65);
    if (s >= 8) e8(e, 0x41);
    e8(e, 0x81);
    emit_modrm(e, 7, &tag_high, 1);
    e32(e, (uint32_t)(TLB_INVALID >> 32)); /* cmp dword gs:[s+4], high half of TLB_INVALID */
    e8(e, 0x74);                           /* je: it was empty */
    uint8_t *empty = e->p;
    e8(e, 0);
    struct host_mem heat = {(uint8_t)site, INSN_NOREG, 1, offsetof(struct site, heat)};
    e8(e, 0xfe);
    emit_modrm(e, 1, &heat, 1); /* dec byte [site.heat] */
    uint8_t *hot = emit_jcc(e, 4, NULL);
    e8(e, 0xeb); /* jmp past the list */
    uint8_t *skip = e->p;
    e8(e, 0);
    *empty = (uint8_t)(e->p - (empty + 1));
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
    return hot;
}

/* The registers of a look-up: s and three more, kept in tmp[2..4] meanwhile. */
struct look_up {
    unsigned pool, s;
    uint8_t site, page, delta;
};

static void emit_field(struct emitter *e, unsigned reg, const struct look_up *l, uint32_t field)
{
    struct host_mem m = {l->site, INSN_NOREG, 1, (int32_t)field};
    emit_rm32(e, 0x8b, reg, m);
}

/* Puts page and delta into the site's slot, whose offset s becomes; then site becomes the address to go on at. Returns where to patch
 * the jump of a site that is to be upgraded instead. */
static uint8_t *emit_fill(const struct soft_private *p, struct emitter *e, const struct look_up *l, unsigned skip)
{
    emit_field(e, l->s, l, offsetof(struct site, slot));
    uint8_t *hot = emit_note_miss(e, l->pool, l->s, l->page, l->site);
    emit_field(e, l->site, l, offsetof(struct site, retry));
    struct host_mem at_slot = {(uint8_t)l->s, INSN_NOREG, 1, 0};
    e8(e, 0x65);
    emit_rm(e, 0x89, l->page, at_slot);
    at_slot.disp = 8;
    e8(e, 0x65);
    emit_rm(e, 0x89, l->delta, at_slot);
    emit_mov_imm(e, l->page, (uint64_t)(uintptr_t)p->code + skip);
    emit_rr(e, 0x01, l->site, l->page);
    emit_store_gs(e, GS_TMP(5), l->site);
    return hot;
}

static void emit_bring_back(struct emitter *e, const struct look_up *l)
{
    emit_load_gs(e, l->site, GS_TMP(2));
    emit_load_gs(e, l->page, GS_TMP(3));
    emit_load_gs(e, l->delta, GS_TMP(4));
}

static uint8_t *emit_test_site(struct emitter *e, const struct look_up *l, unsigned flag)
{
    struct host_mem flags = {l->site, INSN_NOREG, 1, offsetof(struct site, flags)};
    e8(e, 0xf6);
    emit_modrm(e, 0, &flags, 1);
    e8(e, flag);
    return emit_jcc(e, 5, NULL);
}

/* page = that of the last byte; jumps when the TLB does not have it where the first byte's belongs; else delta = HVA - GVA. */
static uint8_t *emit_find(struct emitter *e, const struct look_up *l, unsigned idx, unsigned write)
{
    struct host_mem span = {l->site, INSN_NOREG, 1, offsetof(struct site, span)};
    e8(e, 0x48);
    e8(e, 0x0f);
    e8(e, 0xb7);
    emit_modrm(e, l->page, &span, 1); /* movzx page, word [site.span] */
    emit_rr(e, 0x01, l->page, l->s);
    emit_alu_imm(e, 1, ALU_AND, l->page, (uint32_t)PAGE_MASK);
    /* delta = TLB index in bytes, from the first byte */
    emit_tlb_index_flags(e, l->delta, l->s);
    uint32_t tlb = GS(tlb) + idx * TLB_SIZE * (uint32_t)sizeof(struct tlb_entry);
    uint32_t tag = write ? offsetof(struct tlb_entry, tag_write) : offsetof(struct tlb_entry, tag_read);
    struct host_mem at_tag = {l->delta, INSN_NOREG, 1, (int32_t)(tlb + tag)};
    e8(e, 0x65);
    emit_rm(e, 0x3b, l->page, at_tag); /* cmp page, gs:[delta + tag] */
    uint8_t *miss = emit_jcc(e, 5, NULL);
    struct host_mem at_delta = {l->delta, INSN_NOREG, 1, (int32_t)(tlb + offsetof(struct tlb_entry, delta))};
    e8(e, 0x65);
    emit_rm(e, 0x8b, l->delta, at_delta);
    return miss;
}

/* reg = offset of the TLB entry for the page at `page`; jumps when that is another page's; else reg = its HVA - GVA. */
static uint8_t *emit_find_page(struct emitter *e, unsigned reg, unsigned page, unsigned idx, unsigned write)
{
    uint32_t tlb = GS(tlb) + idx * TLB_SIZE * (uint32_t)sizeof(struct tlb_entry);
    uint32_t tag = write ? offsetof(struct tlb_entry, tag_write) : offsetof(struct tlb_entry, tag_read);
    struct host_mem at_tag = {(uint8_t)reg, INSN_NOREG, 1, (int32_t)(tlb + tag)};
    struct host_mem at_delta = {(uint8_t)reg, INSN_NOREG, 1, (int32_t)(tlb + offsetof(struct tlb_entry, delta))};
    emit_tlb_index_flags(e, reg, page);
    e8(e, 0x65);
    emit_rm(e, 0x3b, page, at_tag);
    uint8_t *miss = emit_jcc(e, 5, NULL);
    e8(e, 0x65);
    emit_rm(e, 0x8b, reg, at_delta);
    return miss;
}

static uint8_t *emit_span_above(struct emitter *e, const struct look_up *l, unsigned span)
{
    struct host_mem m = {l->site, INSN_NOREG, 1, offsetof(struct site, span)};
    e8(e, 0x66);
    e8(e, 0x83);
    emit_modrm(e, 7, &m, 1); /* cmp word [site.span], span */
    e8(e, span);
    return emit_jcc(e, 7, NULL);
}

/* The bytes on either side of the border, `n` each, to the middle of cpu->bounce. s and delta are the host's addresses of the border. */
static void emit_copy_border(struct emitter *e, const struct look_up *l, int32_t n)
{
    int32_t middle = (int32_t)(sizeof((struct soft_cpu *)0)->bounce / 2);
    for (int32_t at = -n; at < n; at += 8) {
        struct host_mem m = {at < 0 ? (uint8_t)l->s : l->delta, INSN_NOREG, 1, at};
        emit_rm(e, 0x8b, l->page, m);
        emit_store_gs(e, GS(bounce) + (uint32_t)(middle + at), l->page);
    }
}

/* In: s = HVA - GVA, for the operand as it is addressed here. To behind the check, with what that leaves in s. */
static void emit_accept(const struct soft_private *p, struct emitter *e, const struct look_up *l)
{
    struct host_mem flags = {l->site, INSN_NOREG, 1, offsetof(struct site, flags)};
    e8(e, 0xf6);
    emit_modrm(e, 0, &flags, 1);
    e8(e, SITE_HOSTPAGE); /* test byte [site.flags] */
    e8(e, 0x74);          /* jz over the addition */
    uint8_t *skip = e->p;
    e8(e, 0);
    emit_gs(e, 1, 0x03, l->s, GS_TMP(6));
    *skip = (uint8_t)(e->p - (skip + 1));
    emit_field(e, l->site, l, offsetof(struct site, retry));
    emit_mov_imm(e, l->page, (uint64_t)(uintptr_t)p->code + SITE_CHECK_BYTES);
    emit_rr(e, 0x01, l->site, l->page);
    emit_store_gs(e, GS_TMP(5), l->site);
    emit_bring_back(e, l);
    emit_gs(e, 0, 0xff, 4, GS_TMP(5));
}

/* The page of the operand's last byte (in `page`) is not in the TLB where that of the first belongs. When it crosses a page border, may be
 * accessed on both sides and belongs to no other check, it is done without C: where the pages are neighbours on the host as well, on
 * the spot; else reads are of a copy. Jumps that nothing came of are left in no[]. */
static unsigned emit_crossing(struct soft_cpu *cpu, struct emitter *e, const struct look_up *l, unsigned idx,
                              unsigned write, uint8_t *no[6])
{
    struct soft_private *p = cpu->priv;
    unsigned n = 0;
    no[n++] = emit_test_site(e, l, SITE_MERGED | SITE_RETRY);
    emit_mov_rr(e, l->delta, l->s);
    emit_alu_imm(e, 1, ALU_AND, l->delta, (uint32_t)PAGE_MASK);
    emit_rr(e, 0x39, l->delta, l->page); /* cmp */
    no[n++] = emit_jcc(e, 4, NULL);      /* je: in one page */
    no[n++] = emit_find_page(e, l->s, l->delta, idx, write);
    no[n++] = emit_find_page(e, l->delta, l->page, idx, write);
    emit_rr(e, 0x39, l->s, l->delta);
    uint8_t *apart = emit_jcc(e, 5, NULL);
    emit_accept(p, e, l);
    patch_rel32(apart, e->p);
    if (write) {
        no[n++] = emit_jmp(e, NULL);
        return n;
    }
    unsigned half = sizeof cpu->bounce / 2;
    no[n++] = emit_span_above(e, l, half - 1);
    emit_rr(e, 0x01, l->s, l->page);
    emit_rr(e, 0x01, l->delta, l->page);
    uint8_t *large = emit_span_above(e, l, 15);
    emit_copy_border(e, l, 16);
    uint8_t *small = emit_jmp(e, NULL);
    patch_rel32(large, e->p);
    emit_copy_border(e, l, (int32_t)half);
    patch_rel32(small, e->p);
    emit_load_gs(e, l->page, GS_TMP(6));
    emit_alu_imm(e, 1, ALU_AND, l->page, (uint32_t)PAGE_MASK);
    emit_mov_imm(e, l->s, (uint64_t)(uintptr_t)cpu->bounce + half - PAGE_SIZE);
    emit_rr(e, 0x29, l->s, l->page); /* sub: the border is the middle of the copy */
    emit_accept(p, e, l);
    return n;
}

/* In: s = linear address - tag in the site's slot, exit_info = meta offset of the site. Finds the page in the TLB, puts it into the slot and
 * goes on behind the check with its result in s (or at the check, for sites that compute more); otherwise leaves with HX_MEM and the
 * address in s. Keeps all other registers; clobbers flags (sites allow that). */
static void make_tlb(struct soft_cpu *cpu, struct emitter *e, unsigned idx, unsigned write, unsigned s)
{
    struct soft_private *p = cpu->priv;
    uint8_t r[3], *hot[3];
    pick_three(s, r);
    struct look_up l = {.pool = idx * 2 + write, .s = s, .site = r[0], .page = r[1], .delta = r[2]};
    for (unsigned i = 0; i < 3; i++) emit_store_gs(e, GS_TMP(2 + i), r[i]);
    emit_gs(e, 0, 0x8b, l.site, GS(exit_info));
    emit_mov_imm(e, l.page, (uint64_t)(uintptr_t)p->meta);
    emit_rr(e, 0x01, l.site, l.page);
    emit_field(e, l.page, &l, offsetof(struct site, slot));
    struct host_mem tag = {l.page, INSN_NOREG, 1, 0};
    e8(e, 0x65);
    emit_rm(e, 0x03, s, tag); /* the address */
    emit_store_gs(e, GS_TMP(6), s);
    uint8_t *miss = emit_find(e, &l, idx, write);
    uint8_t *other = emit_test_site(e, &l, SITE_HOSTPAGE | SITE_RETRY);
    hot[0] = emit_fill(p, e, &l, SITE_CHECK_BYTES);
    emit_mov_rr(e, s, l.delta);
    emit_bring_back(e, &l);
    emit_gs(e, 0, 0xff, 4, GS_TMP(5));

    patch_rel32(other, e->p);
    uint8_t *retry = emit_test_site(e, &l, SITE_RETRY);
    emit_rr(e, 0x01, l.delta, l.page); /* the page's host address */
    hot[1] = emit_fill(p, e, &l, SITE_CHECK_BYTES);
    emit_load_gs(e, s, GS_TMP(6));
    emit_alu_imm(e, 0, ALU_AND, s, (uint32_t)PAGE_SIZE - 1);
    emit_rr(e, 0x01, s, l.delta); /* the operand's */
    emit_bring_back(e, &l);
    emit_gs(e, 0, 0xff, 4, GS_TMP(5));

    patch_rel32(retry, e->p);
    hot[2] = emit_fill(p, e, &l, 0);
    emit_load_gs(e, s, GS_TMP(6));
    emit_bring_back(e, &l);
    emit_gs(e, 0, 0xff, 4, GS_TMP(5));

    uint8_t *no[6];
    patch_rel32(miss, e->p);
    unsigned others = emit_crossing(cpu, e, &l, idx, write, no);
    for (unsigned i = 0; i < others; i++) patch_rel32(no[i], e->p);
    for (unsigned i = 0; i < 3; i++) patch_rel32(hot[i], e->p);
    emit_load_gs(e, s, GS_TMP(6));
    emit_bring_back(e, &l);
    emit_jmp(e, p->code + p->stub_exit[HX_MEM]);
}

/* ---- system calls ---- */

static void emit_test32(struct emitter *e, unsigned reg, uint32_t imm)
{
    if (reg >= 8) e8(e, 0x41);
    e8(e, 0xf7);
    e8(e, 0xc0 | (reg & 7));
    e32(e, imm);
}

static void emit_shr32(struct emitter *e, unsigned reg, unsigned by)
{
    if (reg >= 8) e8(e, 0x41);
    e8(e, 0xc1);
    e8(e, 0xe8 | (reg & 7));
    e8(e, by);
}

static void emit_mov32(struct emitter *e, unsigned dst, unsigned src)
{
    unsigned rex = (src >= 8 ? 4u : 0) | (dst >= 8 ? 1u : 0);
    if (rex) e8(e, 0x40 | rex);
    e8(e, 0x89);
    e8(e, 0xc0 | (src & 7) << 3 | (dst & 7));
}

/* movzx ecx, word; lea ecx, [rcx+rcx]: how the jump cache is indexed (scaled by 8) */
static void emit_jump_index(struct emitter *e, unsigned reg)
{
    struct host_mem twice = {(uint8_t)reg, (uint8_t)reg, 1, 0};
    emit_rm32(e, 0x8d, reg, twice);
}

/* `reg` holds the index; `host` gets the host address, and `reg` becomes what is zero when added to the target's address. */
static void emit_jump_load(struct emitter *e, unsigned idx, unsigned reg, unsigned host)
{
    uint32_t base = GS(jump) + idx * JUMP_CACHE_SIZE * (uint32_t)sizeof(struct jump_slot);
    struct host_mem at_host = {INSN_NOREG, (uint8_t)reg, 8, (int32_t)(base + offsetof(struct jump_slot, host))};
    struct host_mem at_rip = {INSN_NOREG, (uint8_t)reg, 8, (int32_t)(base + offsetof(struct jump_slot, neg_rip))};
    e8(e, 0x65);
    emit_rm(e, 0x8b, host, at_host);
    e8(e, 0x65);
    emit_rm(e, 0x8b, reg, at_rip);
}

static void emit_flat(struct emitter *e, unsigned seg, uint32_t attr)
{
    uint32_t at = GS(seg) + seg * (uint32_t)sizeof(struct cpu_segment);
    emit_store_gs32_imm(e, at + offsetof(struct cpu_segment, attr), attr);
    emit_store_gs32_imm(e, at + offsetof(struct cpu_segment, limit), 0xffffffff);
    emit_gs(e, 1, 0xc7, 0, at + offsetof(struct cpu_segment, base));
    e32(e, 0);
}

static void emit_selector(struct emitter *e, unsigned seg, unsigned reg)
{
    e8(e, 0x66);
    emit_gs(e, 0, 0x89, reg,
            GS(seg) + seg * (uint32_t)sizeof(struct cpu_segment) + offsetof(struct cpu_segment, selector));
}

static void emit_ring(struct emitter *e, unsigned dpl, unsigned idx)
{
    emit_flat(e, SEG_CS, ATTR_CODE64 | dpl << SEG_ATTR_DPL_SHIFT);
    emit_flat(e, SEG_SS, ATTR_DATA | dpl << SEG_ATTR_DPL_SHIFT);
    emit_store_gs8_imm(e, GS(cpl), dpl);
    emit_store_gs8_imm(e, GS(mmu_idx), idx);
    emit_gs(e, 0, 0x81, 4, GS(mode));
    e32(e, ~MODE_IDX_MASK); /* and dword */
    emit_gs(e, 0, 0x81, 1, GS(mode));
    e32(e, idx); /* or dword */
}

/* RCX has been set to the return address and exit_info to the instruction, which C gets when the handler's code is not known or when it is to
 * run with flags that make another mode. SYSCALL of SDM vol. 2, from 64-bit code. */
static void make_syscall(struct soft_cpu *cpu, struct emitter *e, unsigned idx)
{
    struct soft_private *p = cpu->priv;
    struct host_mem sum = {R_RCX, R_R11, 1, 0};
    uint32_t keep = ~(FL_ARITH | FL_DF | FL_IF | FL_1);
    emit_store_gs(e, GS_TMP(3), R_RCX);
    emit_movzx16_gs(e, R_RCX, GS(lstar));
    emit_jump_index(e, R_RCX);
    emit_jump_load(e, idx, R_RCX, R_R11);
    emit_store_gs(e, GS_TMP(0), R_R11);
    emit_load_gs(e, R_R11, GS(lstar));
    emit_lea(e, R_RCX, sum);
    e8(e, 0xe3);
    e8(e, 5);
    uint8_t *unknown = emit_jmp(e, NULL);
    emit_flags_image(e, R_R11, R_RCX);
    emit_load_gs(e, R_RCX, GS(sfmask));
    e8(e, 0x48);
    e8(e, 0xf7);
    e8(e, 0xd1);                    /* not rcx */
    emit_rr(e, 0x21, R_RCX, R_R11); /* and rcx, r11: the new flags */
    emit_test32(e, R_RCX, FL_AC | FL_TF);
    uint8_t *odd = emit_jcc(e, 5, NULL);
    emit_store_gs(e, GS_TMP(4), R_RCX);
    emit_shr32(e, R_RCX, 9);
    emit_alu_imm(e, 0, ALU_AND, R_RCX, 1);
    emit_gs(e, 0, 0x88, R_RCX, GS(if_flag));
    emit_load_gs(e, R_RCX, GS_TMP(4));
    emit_alu_imm(e, 0, ALU_AND, R_RCX, keep);
    emit_store_gs(e, GS(rflags), R_RCX);
    emit_ring(e, 0, idx);
    emit_movzx16_gs(e, R_RCX, GS(star) + 4);
    emit_alu_imm(e, 0, ALU_AND, R_RCX, ~3u);
    emit_selector(e, SEG_CS, R_RCX);
    emit_alu_imm(e, 0, ALU_ADD, R_RCX, 8);
    emit_selector(e, SEG_SS, R_RCX);
    emit_gs(e, 0, 0xf7, 0, GS_TMP(4));
    e32(e, FL_ARITH); /* test dword: any left? Not with Linux */
    uint8_t *some = emit_jcc(e, 5, NULL);
    emit_mov_imm(e, R_RCX, 1);
    emit_alu_imm(e, 0, ALU_ADD, R_RCX, 0); /* all six become 0 */
    uint8_t *go = e->p;
    emit_load_gs(e, R_RCX, GS_TMP(3));
    emit_gs(e, 0, 0xff, 4, GS_TMP(0));
    patch_rel32(some, e->p);
    emit_load_gs(e, R_RCX, GS_TMP(4));
    emit_alu_imm(e, 0, ALU_AND, R_RCX, FL_ARITH);
    emit_store_gs(e, GS_TMP(6), R_RSP);
    emit_load_gs(e, R_RSP, GS(host_rsp));
    emit_push(e, R_RCX);
    e8(e, 0x9d); /* popfq */
    emit_load_gs(e, R_RSP, GS_TMP(6));
    emit_jmp(e, go);
    patch_rel32(odd, e->p); /* the flags as they were, from the image */
    emit_alu_imm(e, 0, ALU_AND, R_R11, FL_ARITH);
    emit_store_gs(e, GS_TMP(6), R_RSP);
    emit_load_gs(e, R_RSP, GS(host_rsp));
    emit_push(e, R_R11);
    e8(e, 0x9d);
    emit_load_gs(e, R_RSP, GS_TMP(6));
    patch_rel32(unknown, e->p);
    emit_jmp(e, p->code + p->stub_exit[HX_SPECIAL]);
}

/* SYSRET to 64-bit code. To C: when an interrupt may be due, when the target is not known (which includes that it is not canonical), when the flags
 * make another mode. */
static void make_sysret(struct soft_cpu *cpu, struct emitter *e)
{
    struct soft_private *p = cpu->priv;
    struct host_mem sum = {R_RCX, R_RAX, 1, 0};
    uint32_t keep = 0x3c7fd7u & ~(FL_ARITH | FL_DF | FL_IF | FL_1);
    emit_store_gs(e, GS_TMP(3), R_RCX);
    emit_store_gs(e, GS_TMP(4), R_RAX);
    emit_store_gs(e, GS_TMP(5), R_RDX);
    emit_load_gs(e, R_RCX, GS(exit_request)); /* and irq_waiting */
    e8(e, 0xe3);
    e8(e, 5);
    uint8_t *due = emit_jmp(e, NULL);
    emit_movzx16_gs(e, R_RCX, GS_TMP(3));
    emit_jump_index(e, R_RCX);
    emit_jump_load(e, MMU_USER, R_RCX, R_RDX);
    emit_load_gs(e, R_RAX, GS_TMP(3));
    emit_lea(e, R_RCX, sum);
    e8(e, 0xe3);
    e8(e, 5);
    uint8_t *unknown = emit_jmp(e, NULL);
    e8(e, 0x9f); /* lahf */
    e8(e, 0x0f);
    e8(e, 0x90);
    e8(e, 0xc0); /* seto al */
    emit_test32(e, R_R11, FL_AC | FL_TF | FL_DF);
    uint8_t *odd = emit_jcc(e, 5, NULL);
    emit_store_gs(e, GS_TMP(0), R_RDX);
    emit_mov32(e, R_RCX, R_R11);
    emit_shr32(e, R_RCX, 9);
    emit_alu_imm(e, 0, ALU_AND, R_RCX, 1);
    emit_gs(e, 0, 0x88, R_RCX, GS(if_flag));
    emit_mov32(e, R_RCX, R_R11);
    emit_alu_imm(e, 0, ALU_AND, R_RCX, keep);
    emit_store_gs(e, GS(rflags), R_RCX);
    emit_ring(e, 3, MMU_USER);
    emit_movzx16_gs(e, R_RCX, GS(star) + 6);
    emit_alu_imm(e, 0, ALU_ADD, R_RCX, 8);
    emit_alu_imm(e, 0, ALU_OR, R_RCX, 3);
    emit_selector(e, SEG_SS, R_RCX);
    emit_movzx16_gs(e, R_RCX, GS(star) + 6);
    emit_alu_imm(e, 0, ALU_ADD, R_RCX, 16);
    emit_alu_imm(e, 0, ALU_OR, R_RCX, 3);
    emit_selector(e, SEG_CS, R_RCX);
    emit_mov32(e, R_RAX, R_R11);
    emit_mov32(e, R_RCX, R_R11);
    emit_shr32(e, R_RCX, 11);
    emit_alu_imm(e, 0, ALU_AND, R_RCX, 1);
    e8(e, 0x88);
    e8(e, 0xc4); /* mov ah, al */
    e8(e, 0x80);
    e8(e, 0xc1);
    e8(e, 0x7f); /* add cl, 0x7f: OF */
    e8(e, 0x9e); /* sahf */
    emit_load_gs(e, R_RCX, GS_TMP(3));
    emit_load_gs(e, R_RAX, GS_TMP(4));
    emit_load_gs(e, R_RDX, GS_TMP(5));
    emit_gs(e, 0, 0xff, 4, GS_TMP(0));
    patch_rel32(odd, e->p);
    e8(e, 0x04);
    e8(e, 0x7f);
    e8(e, 0x9e);
    patch_rel32(unknown, e->p);
    patch_rel32(due, e->p);
    emit_load_gs(e, R_RCX, GS_TMP(3));
    emit_load_gs(e, R_RAX, GS_TMP(4));
    emit_load_gs(e, R_RDX, GS_TMP(5));
    emit_jmp(e, p->code + p->stub_exit[HX_SPECIAL]);
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
    for (unsigned smap = 0; smap < 2; smap++) {
        p->stub_syscall[smap] = (uint32_t)(e.p - p->code);
        make_syscall(cpu, &e, smap ? MMU_KERNEL : MMU_KERNEL_AC);
    }
    p->stub_sysret = (uint32_t)(e.p - p->code);
    make_sysret(cpu, &e);
    p->code_stubs_end = (uint32_t)((e.p - p->code + 63) & ~63);
    p->code_used = p->code_stubs_end;
    p->cold_used = p->cold_end = p->cold_low = CODE_CACHE_SIZE;
}
