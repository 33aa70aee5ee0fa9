/* What becomes of a memory site that misses its inline cache again and again. Until then its cold code is a jump to the shared stub,
 * because most sites never are hot: code for all of them would be three times as large, and cold for the host's caches too.
 *
 * A hot site first runs a trial: its next executions are counted, and how many of them miss. A site that stays on a page for a while keeps
 * its slot and gets the hashed look-up of stubs.c in line behind it. One that roams (a walk through a tree) gets the look-up alone: its
 * slot would only cost a branch that the host cannot predict. Either way a check that serves several accesses gets a way to the variant
 * of the block that checks each on its own, for ranges that cross a page. */
#include "vmm/engine/soft/emit.h"
#include "vmm/engine/soft/xlat.h"

/* Where the pieces of a check lie, counted from site.retry: see emit_check() in translate_mem.c. */
#define AT_TAG 5           /* disp32 in sub s, %gs:tag */
#define AT_COLD 18         /* rel32 of the jump to the cold code */
#define AT_DELTA 27        /* disp32 in mov or add s, %gs:delta */
#define UPGRADE_ROOM 1024u /* host bytes that an upgrade may take */

/* Does the range cross a page border, or is a check that stands before a test for NULL about NULL? `from`: where to patch the jumps taken
 * then; else the scratch holds its address. */
static void emit_split_test(struct emitter *e, const struct site *site, uint8_t *from[2])
{
    unsigned s = site->scratch;
    emit_store_gs(e, GS_TMP(6), s); /* the base register may be RAX, which holds the flags now */
    emit_alu_imm(e, 0, ALU_AND, s, (uint32_t)(PAGE_SIZE - 1));            /* and s32, 4095 */
    emit_alu_imm(e, 0, ALU_CMP, s, (uint32_t)PAGE_SIZE - 1 - site->span); /* cmp s32, 4096 - size */
    from[0] = emit_jcc(e, 7, NULL);
    from[1] = NULL;
    emit_load_gs(e, s, GS_TMP(6));
    if (!(site->flags & SITE_HOISTED)) return;
    emit_alu_imm(e, 1, ALU_CMP, s, (uint32_t)PAGE_SIZE); /* cmp s, 4096 */
    from[1] = emit_jcc(e, 2, NULL);
}

/* On to the variant without merged checks, by a link like any other. */
static void emit_split(struct soft_private *p, struct emitter *e, const struct site *site, uint32_t link,
                       uint8_t *const from[2])
{
    for (unsigned n = 0; n < 2; n++)
        if (from[n]) patch_rel32(from[n], e->p);
    if (site->flags & SITE_FLAGS) { /* as after a check that held */
        e8(e, 0x04);
        e8(e, 0x7f); /* add al, 0x7f */
        e8(e, 0x9e); /* sahf */
    }
    emit_load_saved(e, site->borrowed);
    struct link *l = meta_ptr(p, link);
    uint8_t *jump = emit_jmp(e, NULL);
    patch_rel32(jump, e->p);
    l->jump = (uint32_t)(jump - p->code);
    l->stub = (uint32_t)(e->p - p->code);
    emit_store_gs32_imm(e, GS(exit_info), link);
    emit_jmp(e, p->code + p->stub_exit[HX_LINK]);
}

/* Two registers for the look-up: ones lent out already, else any, to be saved around it. */
static void pick_two(const struct site *site, uint8_t r[2], bool save[2])
{
    uint16_t no = (uint16_t)(1u << R_RSP | 1u << site->scratch | (site->flags & SITE_FLAGS ? 1u << R_RAX : 0));
    uint16_t free = (uint16_t)(site->borrowed & ~site->held & ~no), any = (uint16_t) ~(no | free);
    for (unsigned n = 0; n < 2; n++) {
        save[n] = !free;
        uint16_t *from = free ? &free : &any;
        r[n] = (uint8_t)__builtin_ctz(*from);
        *from &= (uint16_t)(*from - 1);
    }
}

static void keep_two(struct emitter *e, const uint8_t r[2], const bool save[2], bool back)
{
    for (unsigned n = 0; n < 2; n++) {
        if (!save[n]) continue;
        if (back)
            emit_load_gs(e, r[n], GS_TMP(2 + n));
        else
            emit_store_gs(e, GS_TMP(2 + n), r[n]);
    }
}

/* r[0] = offset of the TLB entry, r[1] = page of the operand's last byte; jumps away (to be patched) when the entry is another page's. */
static uint8_t *emit_probe(struct emitter *e, const struct site *site, unsigned idx, const uint8_t r[2])
{
    unsigned s = site->scratch;
    emit_tlb_index_flags(e, r[0], s);
    struct host_mem last = {(uint8_t)s, INSN_NOREG, 1, site->span};
    emit_lea(e, r[1], last);
    emit_alu_imm(e, 1, ALU_AND, r[1], 0xfffff000u);
    uint32_t tlb = GS(tlb) + idx * TLB_SIZE * (uint32_t)sizeof(struct tlb_entry);
    bool write = site->flags & SITE_WRITE;
    uint32_t tag_at = write ? offsetof(struct tlb_entry, tag_write) : offsetof(struct tlb_entry, tag_read);
    struct host_mem tag = {r[0], INSN_NOREG, 1, (int32_t)(tlb + tag_at)};
    e8(e, 0x65);
    emit_rm(e, 0x3b, r[1], tag);
    return emit_jcc(e, 5, NULL);
}

/* opcode s or r[0], delta of the TLB entry at r[0] */
static void emit_delta(struct emitter *e, unsigned opcode, unsigned reg, unsigned idx, unsigned entry)
{
    uint32_t tlb = GS(tlb) + idx * TLB_SIZE * (uint32_t)sizeof(struct tlb_entry);
    struct host_mem delta = {(uint8_t)entry, INSN_NOREG, 1, (int32_t)(tlb + offsetof(struct tlb_entry, delta))};
    e8(e, 0x65);
    emit_rm(e, opcode, reg, delta);
}

/* Fills the slot from r[1] (page) and r[0] (delta, or made the page's host address) and leaves the check's result in s. Accesses that go
 * from page to page would fill it each time for nothing: only addresses at the start of a cache line do. */
static void emit_fill(struct emitter *e, const struct site *site, const uint8_t r[2])
{
    unsigned s = site->scratch;
    bool hostpage = site->flags & SITE_HOSTPAGE;
    struct host_mem sum = {(uint8_t)s, r[0], 1, 0};
    e8(e, 0x40 | (s >= 8));
    e8(e, 0xf6);
    e8(e, 0xc0 | (s & 7));
    e8(e, 0x38); /* test s8, 0x38 */
    if (hostpage)
        emit_lea(e, s, sum);
    else
        emit_mov_rr(e, s, r[0]);
    e8(e, 0x75); /* jnz past the stores */
    uint8_t *skip = e->p;
    e8(e, 0);
    if (hostpage) emit_rr(e, 0x01, r[0], r[1]);
    emit_store_gs(e, site->slot, r[1]);
    emit_store_gs(e, site->slot + 8, r[0]);
    *skip = (uint8_t)(e->p - (skip + 1));
}

static void emit_to_stub(struct soft_private *p, struct emitter *e, const struct site *site, unsigned idx)
{
    emit_store_gs32_imm(e, GS(exit_info), (uint32_t)((const uint8_t *)site - p->meta));
    emit_jmp(e, p->code + p->stub_tlb[idx][site->flags & SITE_WRITE ? 1 : 0][site->scratch]);
}

static void emit_to_c(struct soft_private *p, struct emitter *e, const struct site *site)
{
    emit_store_gs32_imm(e, GS(exit_info), (uint32_t)((const uint8_t *)site - p->meta));
    emit_jmp(e, p->code + p->stub_exit[HX_MEM]);
}

/* Behind a look-up that found the page (entry: r[0]; page: r[1]): when it is part of a large one, fills that slot, too. */
static void emit_fill_large(struct emitter *e, const struct site *site, unsigned idx, uint32_t large,
                            const uint8_t r[2])
{
    uint32_t tlb = GS(tlb) + idx * TLB_SIZE * (uint32_t)sizeof(struct tlb_entry);
    struct host_mem flags = {r[0], INSN_NOREG, 1, (int32_t)(tlb + offsetof(struct tlb_entry, gpa))};
    e8(e, 0x65);
    if (r[0] >= 8) e8(e, 0x41);
    e8(e, 0xf6);
    emit_modrm(e, 0, &flags, 1);
    e8(e, TLB_LARGE_RAM); /* test byte [entry.gpa] */
    uint8_t *skip = emit_jcc(e, 4, NULL);
    emit_alu_imm(e, 1, ALU_AND, r[1], ~(LARGE_SIZE - 1));
    emit_store_gs(e, large, r[1]);
    emit_delta(e, site->flags & SITE_HOSTPAGE ? 0x03 : 0x8b, r[1], idx, r[0]);
    emit_store_gs(e, large + 8, r[1]);
    emit_store_gs32_imm(e, GS(large_filled) + idx * (uint32_t)sizeof(uint32_t), 1);
    patch_rel32(skip, e->p);
}

/* The look-up in line, entered with the address in s. `roams`: the site's slot is not used, but perhaps `large`, one for a large page (or 0);
 * else the slot is filled, a first time through the stub, which notes it. `link`: where ranges that cross a page go, or 0. */
static void emit_lookup(struct soft_private *p, struct emitter *e, const struct site *site, unsigned idx, bool roams,
                        uint32_t large, uint32_t link)
{
    unsigned s = site->scratch;
    uint8_t r[2], *empty = NULL;
    bool save[2];
    pick_two(site, r, save);
    if (!roams) {
        emit_gs(e, 0, 0x81, 7, site->slot + 4); /* cmp dword gs:[slot.tag+4], empty */
        e32(e, (uint32_t)(TLB_INVALID >> 32));
        empty = emit_jcc(e, 4, NULL);
    }
    keep_two(e, r, save, false);
    uint8_t *miss = emit_probe(e, site, idx, r);
    if (roams) {
        if (large) emit_fill_large(e, site, idx, large, r);
        emit_delta(e, site->flags & SITE_HOSTPAGE ? 0x03 : 0x8b, s, idx, r[0]);
    } else {
        emit_delta(e, 0x8b, r[0], idx, r[0]);
        emit_fill(e, site, r);
    }
    keep_two(e, r, save, true);
    emit_jmp(e, p->code + site->retry + SITE_CHECK_BYTES);
    patch_rel32(miss, e->p);
    keep_two(e, r, save, true);
    uint8_t *split[2];
    if (link) {
        emit_split_test(e, site, split);
        emit_to_c(p, e, site);
        emit_split(p, e, site, link, split);
        if (!empty) return;
    } /* else to the stub, which knows what to do about page borders */
    if (empty) patch_rel32(empty, e->p);
    emit_gs(e, 1, 0x2b, s, site->slot); /* the stub adds the tag again */
    emit_to_stub(p, e, site, idx);
}

/* The check once more, counting: against the site's slot, or in the second trial that for a large page. Entered with the address in s. */
static void emit_trial(struct soft_private *p, struct emitter *e, const struct site *site, unsigned idx,
                       const struct site_trial *t, unsigned trial)
{
    uint32_t at = GS(trial) + trial * (uint32_t)sizeof(struct site_trial), slot = t->large ? t->large : site->slot;
    unsigned s = site->scratch;
    emit_gs(e, 0, 0xff, 1, at + (uint32_t)offsetof(struct site_trial, left)); /* dec dword */
    uint8_t *over = emit_jcc(e, 4, NULL);
    emit_gs(e, 1, 0x2b, s, slot);
    emit_alu_imm(e, 1, ALU_CMP, s, (t->large ? LARGE_SIZE : (uint32_t)PAGE_SIZE) - 1 - site->span);
    uint8_t *miss = emit_jcc(e, 7, NULL);
    if (t->large) emit_store_gs32_imm(e, at + (uint32_t)offsetof(struct site_trial, hit), 1);
    emit_gs(e, 1, site->flags & SITE_HOSTPAGE ? 0x03 : 0x8b, s, slot + 8);
    emit_jmp(e, p->code + site->retry + SITE_CHECK_BYTES);
    patch_rel32(miss, e->p);
    emit_gs(e, 0, 0xff, 0, at + (uint32_t)offsetof(struct site_trial, misses)); /* inc dword */
    if (t->large) {
        emit_gs(e, 0, 0xd1, 5, at + (uint32_t)offsetof(struct site_trial, hit));   /* shr dword, 1 */
        emit_gs(e, 0, 0x83, 2, at + (uint32_t)offsetof(struct site_trial, turns)); /* adc dword, */
        e8(e, 0);                                                                  /* 0 */
        emit_gs(e, 1, 0x03, s, slot);                                              /* the address again */
        emit_lookup(p, e, site, idx, true, t->large, t->link);
    } else {
        emit_to_stub(p, e, site, idx);
    }
    patch_rel32(over, e->p);
    emit_to_c(p, e, site);
}

static uint32_t split_link(struct soft_private *p, const struct site *site)
{
    uint32_t off = soft_meta_alloc(p, sizeof(struct link));
    if (!off) return 0;
    const struct block *b = meta_ptr(p, site->block);
    *(struct link *)meta_ptr(p, off) =
        (struct link){.target = b->rip + site->guest,
                      .block = site->block,
                      .no_merge = true,
                      .to_mode = (uint16_t)(b->mode | MODE_NO_MERGE),
                      .cross_page = ((b->rip ^ (b->rip + site->guest)) & PAGE_MASK) != 0};
    return off;
}

static void put32(uint8_t *at, uint32_t v)
{
    __builtin_memcpy(at, &v, 4);
}

/* Each thread of a program or kernel has a stack: after a switch all sites that use it would look it up, each for itself. So they share a
 * few slots, and only the first does. Not one slot: a call from one page of the stack into the next would empty it and fill it again
 * each time. */
#define STACK_SLOTS 8u

static uint32_t slot_offset(const struct soft_cpu *cpu, const struct site_slot *slot)
{
    return (uint32_t)((const uint8_t *)slot - (const uint8_t *)cpu);
}

uint32_t soft_stack_slot(struct soft_cpu *cpu, unsigned idx, bool write, uint64_t rip)
{
    return slot_offset(cpu, &cpu->site[idx][write][(rip >> 8) % STACK_SLOTS]);
}

uint32_t soft_site_slot(struct soft_cpu *cpu, unsigned idx, bool write, bool hostpage)
{
    uint32_t half = SITE_COUNT / 2, room = half - STACK_SLOTS;
    uint32_t given = cpu->priv->next_slot[idx][write][hostpage]++;
    struct site_slot *slot = &cpu->site[idx][write][given % room + (hostpage ? half : STACK_SLOTS)];
    if (given < room) slot->tag = slot->delta = TLB_INVALID; /* made when first given out: most never are */
    return slot_offset(cpu, slot);
}

void soft_init_stack_slots(struct soft_cpu *cpu)
{
    for (unsigned idx = 0; idx < MMU_IDX_COUNT; idx++)
        for (unsigned n = 0; n < 2 * STACK_SLOTS; n++) {
            struct site_slot *slot = &cpu->site[idx][n & 1][n >> 1];
            slot->tag = slot->delta = TLB_INVALID;
        }
}

static unsigned site_idx(const struct soft_private *p, const struct site *site)
{
    return ((const struct block *)meta_ptr(p, site->block))->mode & MODE_IDX_MASK;
}

static void take_code(struct soft_private *p, const struct emitter *e)
{
    p->code_used = ((uint32_t)(e->p - p->code) + 15) & ~15u;
}

/* Begins with the check at `check` again, as it was before a trial, but for the slot and what is compared with. */
static void write_check(uint8_t *check, const struct site *site, uint32_t slot, uint32_t size)
{
    struct emitter at = {check};
    emit_gs(&at, 1, 0x2b, site->scratch, slot);
    emit_alu_imm(&at, 1, ALU_CMP, site->scratch, size - 1 - site->span);
    put32(check + AT_DELTA, slot + 8);
}

enum verdict { KEEPS_SLOT, ROAMS, ROAMS_LARGE };

/* A page-crossing range is no miss of the slot: what it wants is the split. */
static void decide(struct soft_cpu *cpu, struct site *site, enum verdict verdict, uint32_t large)
{
    struct soft_private *p = cpu->priv;
    uint32_t link = 0; /* not that of a trial, which may be linked */
    unsigned idx = site_idx(p, site);
    uint8_t *check = p->code + site->retry;
    uint32_t slot = verdict == ROAMS_LARGE ? large : site->slot;
    site->flags = (uint16_t)((site->flags & ~SITE_TRIAL) | SITE_UPGRADED);
    if (soft_code_room(p) < UPGRADE_ROOM) return; /* the cache is full and about to be flushed */
    if (site->flags & SITE_MERGED && !(link = split_link(p, site))) return;
    struct emitter e = {p->code + p->code_used}, at = {check};
    if (verdict == ROAMS) {
        emit_jmp(&at, e.p);
    } else {
        write_check(check, site, slot, verdict == ROAMS_LARGE ? LARGE_SIZE : (uint32_t)PAGE_SIZE);
        patch_rel32(check + AT_COLD, e.p);
        emit_gs(&e, 1, 0x03, site->scratch, slot); /* add s, tag: the address again */
    }
    emit_lookup(p, &e, site, idx, verdict != KEEPS_SLOT, verdict == ROAMS_LARGE ? large : 0, link);
    take_code(p, &e);
}

static uint32_t trial_runs(const struct site_trial *t)
{
    return t->large ? LARGE_RUNS : TRIAL_RUNS;
}

/* Its executions are counted from now on. */
static void observe(struct soft_cpu *cpu, struct site *site, unsigned n)
{
    struct soft_private *p = cpu->priv;
    struct emitter e = {p->code + p->code_used}, at = {p->code + site->retry};
    cpu->trial[n].left = trial_runs(&cpu->trial[n]);
    cpu->trial[n].site = (uint32_t)((uint8_t *)site - p->meta);
    site->flags |= SITE_TRIAL;
    emit_jmp(&at, e.p);
    emit_trial(p, &e, site, site_idx(p, site), &cpu->trial[n], n);
    take_code(p, &e);
}

/* Is there a large page about `page`? An array that has them may begin and end with small ones. */
static bool large_about(const struct soft_cpu *cpu, unsigned idx, uint64_t page)
{
    static const uint64_t away[] = {0, LARGE_SIZE, LARGE_SIZE + PAGE_SIZE}; /* not each page need be in the TLB */
    for (unsigned n = 0; n < sizeof away / sizeof *away; n++)
        if (soft_tlb_large_ram(cpu, idx, page + away[n]) || soft_tlb_large_ram(cpu, idx, page - away[n])) return true;
    return false;
}

/* A site that roams in a large page of the guest, as through an array of its own, may be checked against that instead of 4 KiB. Only one that
 * reads: which pages may be written is another question for each, as there may be code in them. How well that does is a second trial. */
static bool try_large(struct soft_cpu *cpu, struct site *site, unsigned n)
{
    struct soft_private *p = cpu->priv;
    unsigned idx = site_idx(p, site);
    const struct site_slot *slot = (const struct site_slot *)((const uint8_t *)cpu + site->slot);
    if (site->flags & SITE_WRITE || !large_about(cpu, idx, slot->tag)) return false;
    if (soft_code_room(p) < 2 * UPGRADE_ROOM) return false;
    uint32_t link = site->flags & SITE_MERGED ? split_link(p, site) : 0;
    if (site->flags & SITE_MERGED && !link) return false;
    struct site_slot *large = cpu->large[idx][site->flags & SITE_HOSTPAGE ? 1 : 0];
    cpu->trial[n] = (struct site_trial){.large = slot_offset(cpu, &large[p->next_large++ % LARGE_SLOTS]), .link = link};
    observe(cpu, site, n);
    return true;
}

static void end_trial(struct soft_cpu *cpu, unsigned n, bool more)
{
    struct site_trial t = cpu->trial[n];
    struct site *site = meta_ptr(cpu->priv, t.site);
    uint32_t runs = trial_runs(&t) - t.left;
    cpu->trial[n].site = 0;
    if (t.large) {
        /* A stream through pages of either kind misses for long, then hits for long, which the host predicts. */
        bool stays = t.misses * 8 <= runs || (t.misses * 4 <= 3 * runs && t.turns * 16 <= runs);
        decide(cpu, site, stays ? ROAMS_LARGE : ROAMS, t.large);
        return;
    }
    runs -= t.misses; /* after a miss the check is done again */
    bool roams = t.misses * 8 > runs;
    if (!(roams && more && try_large(cpu, site, n))) decide(cpu, site, roams ? ROAMS : KEEPS_SLOT, 0);
}

static void begin_trial(struct soft_cpu *cpu, struct site *site)
{
    struct soft_private *p = cpu->priv;
    unsigned n = p->next_trial++ % SITE_TRIALS;
    if (cpu->trial[n].site) end_trial(cpu, n, false);
    if (soft_code_room(p) < UPGRADE_ROOM) return;
    uint8_t *check = p->code + site->retry;
    if (site->flags & SITE_SHARED) {
        site->flags &= (uint16_t)~SITE_SHARED;
        site->slot = soft_site_slot(cpu, site_idx(p, site), site->flags & SITE_WRITE, false);
        put32(check + AT_TAG, site->slot);
        put32(check + AT_DELTA, site->slot + 8);
    }
    cpu->trial[n] = (struct site_trial){.large = 0};
    observe(cpu, site, n);
}

void soft_upgrade_site(struct soft_cpu *cpu, struct site *site)
{
    site->heat = SITE_HEAT; /* asked again later, when nothing can be done now */
    if (site->flags & (SITE_RETRY | SITE_UPGRADED | SITE_TRIAL)) return;
    begin_trial(cpu, site);
}

void soft_trial_over(struct soft_cpu *cpu, struct site *site)
{
    uint32_t off = (uint32_t)((uint8_t *)site - cpu->priv->meta);
    for (unsigned n = 0; n < SITE_TRIALS; n++)
        if (cpu->trial[n].site == off && cpu->trial[n].left == 0) end_trial(cpu, n, true);
}

void soft_forget_trials(struct soft_cpu *cpu)
{
    for (unsigned n = 0; n < SITE_TRIALS; n++) cpu->trial[n].site = 0;
}
