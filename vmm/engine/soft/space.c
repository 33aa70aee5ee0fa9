/* What was concluded from the guest's mappings of code: the page a fetch comes from, targets of indirect branches, links between
 * blocks of different pages; and how long that holds.
 *
 * Blocks themselves rest on guest-physical pages only. What is said here rests on how a virtual page is mapped, so it ends with
 * INVLPG and MOV CR3. Kernels switch address spaces all the time, and nearly all of it would be concluded again, word for word. So:
 *
 *  - A space is what belongs to one PCID from one flush of it to the next, under a number that is never used again.
 *  - Fetch look-ups carry the number of their space: a switch makes them miss, switching back makes them hit.
 *  - The jump cache is looked at by translated code, which knows nothing of spaces: at a switch its entries are taken out and put aside.
 *  - Links out of a page are left alone. Their page (struct home) says for which space they hold. Nothing gets into a page that is
 *    not global but through a fetch look-up in the current space, or what was concluded from one; and the look-up, when it misses,
 *    checks the page's links and drops those that do not hold. Two spaces that run the same page at the same address take it from
 *    each other: whoever lost a page starts over with a new number, so that it looks again.
 *  - Links between global pages hold in all spaces, and end when a global page with code is flushed. */
#include "vmm/engine/soft/emit.h"
#include "vmm/engine/soft/ram.h"
#include "vmm/engine/soft/xlat.h"

/* ---- pages with code, by address ---- */

static uint32_t *home_bucket(struct soft_private *p, uint64_t page)
{
    return &p->home_hash[(page >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> (64 - HOME_HASH_BITS)];
}

/* gpa NO_PAGE: whichever is mapped there. */
static struct home *find_home(struct soft_private *p, uint64_t page, uint64_t gpa)
{
    for (uint32_t at = *home_bucket(p, page); at;) {
        struct home *h = meta_ptr(p, at);
        if (h->page == page && (h->gpa == gpa || gpa == NO_PAGE)) return h;
        at = h->next;
    }
    return NULL;
}

static struct home *new_home(struct soft_private *p, uint64_t page, uint64_t gpa)
{
    uint32_t off = soft_meta_alloc(p, sizeof(struct home)), *bucket = home_bucket(p, page);
    if (!off) return NULL;
    struct home *h = meta_ptr(p, off);
    *h = (struct home){.page = page, .gpa = gpa, .next = *bucket};
    *bucket = off;
    return h;
}

static unsigned bloom(uint64_t page)
{
    return (unsigned)((page >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 48);
}

/* ---- spaces ---- */

static struct soft_space *current(struct soft_private *p)
{
    return &p->space[p->current];
}

/* Nothing that was concluded in it counts any more. */
static void renew(struct soft_private *p, struct soft_space *s)
{
    s->id = ++p->space_ids;
    s->saved = 0;
}

static void renew_all(struct soft_private *p)
{
    for (unsigned i = 0; i < SPACES; i++) renew(p, &p->space[i]);
}

static uint32_t pcid_now(const struct soft_cpu *cpu)
{
    return cpu->cr4 & CR4_PCIDE ? (uint32_t)cpu->cr3 & 0xfff : 0;
}

/* ---- links ---- */

/* Can a block at `rip` depend on how the region of 1 << shift bytes around `a` is mapped? It may go on in the page after its own. */
static bool touches(uint64_t rip, uint64_t a, unsigned shift)
{
    return !((rip ^ a) >> shift) || !(((rip + PAGE_SIZE) ^ a) >> shift);
}

static void unlink_one(struct soft_private *p, struct link *l)
{
    patch_rel32(p->code + l->jump, p->code + l->stub);
    l->linked = false;
}

/* shift 0: all of them */
static void unlink_list(struct soft_private *p, uint32_t *at, unsigned shift, uint64_t a)
{
    while (*at) {
        struct link *l = meta_ptr(p, *at);
        const struct block *b = meta_ptr(p, l->block);
        if (shift && !touches(l->target, a, shift) && !touches(b->rip, a, shift)) {
            at = &l->next;
            continue;
        }
        unlink_one(p, l);
        *at = l->next;
    }
}

static bool maps_to(struct soft_cpu *cpu, const struct block *b, uint64_t linear, uint64_t gpa)
{
    struct mmu_result r;
    enum soft_mmu_idx idx = (b->mode & MODE_IDX_MASK) == MMU_USER ? MMU_USER : MMU_KERNEL;
    return soft_walk(cpu, GVA(linear), ACC_EXEC, idx, true, &r) == SOFT_OK && (r.gpa.v & PAGE_MASK) == gpa;
}

/* Would the current space have made the same link? */
static bool link_holds(struct soft_cpu *cpu, const struct link *l)
{
    const struct block *to = meta_ptr(cpu->priv, l->to);
    if (!maps_to(cpu, to, to->rip, to->gpa & PAGE_MASK)) return false;
    return to->gpa2 == NO_PAGE || maps_to(cpu, to, (to->rip | ~PAGE_MASK) + 1, to->gpa2);
}

/* Its links become those of the current space. */
static void take_home(struct soft_cpu *cpu, struct home *h)
{
    struct soft_private *p = cpu->priv;
    uint64_t owner = h->space;
    for (unsigned i = 0; i < SPACES; i++)
        if (p->space[i].id == owner) renew(p, &p->space[i]);
    for (uint32_t *at = &h->links; *at;) {
        struct link *l = meta_ptr(p, *at);
        if (link_holds(cpu, l)) {
            at = &l->next;
            continue;
        }
        unlink_one(p, l);
        *at = l->next;
    }
    h->space = current(p)->id;
}

/* A fetch look-up found this page for the first time since the space began, or since it was pushed out. */
static void enter_page(struct soft_cpu *cpu, uint64_t page, uint64_t gpa)
{
    struct soft_private *p = cpu->priv;
    struct home *h = find_home(p, page, gpa);
    if (!h) h = new_home(p, page, gpa);
    if (!h) {
        current(p)->passing = true; /* no room to note it: no other space may believe that it is alone with this page */
        for (unsigned i = 0; i < SPACES; i++)
            if (i != p->current) renew(p, &p->space[i]);
    } else if (h->space != current(p)->id) {
        take_home(cpu, h);
    }
}

/* The same for a global page. Links from a time when it was not global have nobody to look after them now. */
static void enter_global_page(struct soft_private *p, uint64_t page, uint64_t gpa)
{
    unsigned h = bloom(page);
    p->code_pages[h / 64] |= 1ull << (h & 63);
    struct home *once = find_home(p, page, gpa);
    if (once) unlink_list(p, &once->links, 0, 0);
}

/* Which list a link belongs to; NULL: don't link. */
static uint32_t *link_list(struct soft_private *p, const struct block *from, const struct block *to)
{
    if (from->global) return &p->cross_links[to->global];
    struct home *h = find_home(p, from->rip & PAGE_MASK, from->gpa & PAGE_MASK);
    return h && h->space == current(p)->id ? &h->links : NULL;
}

void soft_link(struct soft_cpu *cpu, struct link *l, struct block *to)
{
    struct soft_private *p = cpu->priv;
    const struct block *from = meta_ptr(p, l->block);
    if (l->linked || (uint16_t)to->mode != l->to_mode) return;
    if (l->cross_page || to->gpa2 != NO_PAGE) {
        uint32_t *list = link_list(p, from, to);
        if (!list) return;
        l->next = *list;
        *list = (uint32_t)((uint8_t *)l - p->meta);
    }
    l->to = (uint32_t)((uint8_t *)to - p->meta);
    l->linked = true;
    /* a round that crossed a page border is over: on with the next strip */
    bool strip = to->strip && from->mode & MODE_NO_MERGE && from->rip == to->rip;
    patch_rel32(p->code + l->jump, p->code + (strip ? to->strip : to->host));
}

/* ---- the jump cache ---- */

static struct jump_slot *jump_at(struct soft_cpu *cpu, uint32_t v)
{
    return &cpu->jump[v >> 16][v & 0xffff];
}

static void clear_jumps(struct soft_cpu *cpu, unsigned list, unsigned shift, uint64_t a)
{
    struct soft_private *p = cpu->priv;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < p->jumps_filled[list]; i++) {
        uint32_t v = p->jump_filled[list][i];
        struct jump_slot *s = jump_at(cpu, v);
        if (shift && !touches(-s->neg_rip, a, shift))
            p->jump_filled[list][kept++] = v;
        else
            s->neg_rip = JUMP_EMPTY(v & 0xffff);
    }
    p->jumps_filled[list] = kept;
}

void soft_fill_jump(struct soft_cpu *cpu, const struct block *b)
{
    struct soft_private *p = cpu->priv;
    uint32_t idx = b->mode & MODE_IDX_MASK, n = (uint32_t)(b->rip & (JUMP_CACHE_SIZE - 1)), list = b->global;
    if (p->jumps_filled[list] == JUMP_CACHE_SIZE) clear_jumps(cpu, list, 0, 0);
    struct jump_slot *s = &cpu->jump[idx][n];
    s->host = (uint64_t)(uintptr_t)(p->code + b->host);
    s->neg_rip = -b->rip;
    p->jump_filled[list][p->jumps_filled[list]++] = idx << 16 | n;
}

/* Takes the space's entries out, and keeps the latest. */
static void put_jumps_aside(struct soft_cpu *cpu, struct soft_space *s)
{
    struct soft_private *p = cpu->priv;
    uint32_t n = p->jumps_filled[0];
    s->saved = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t v = p->jump_filled[0][i];
        struct jump_slot *j = jump_at(cpu, v);
        if (n - i <= SPACE_JUMPS && j->neg_rip != JUMP_EMPTY(v & 0xffff))
            s->jump[s->saved++] = (struct saved_jump){
                .neg_rip = j->neg_rip, .host = (uint32_t)(j->host - (uint64_t)(uintptr_t)p->code), .slot = v};
        j->neg_rip = JUMP_EMPTY(v & 0xffff);
    }
    p->jumps_filled[0] = 0;
}

static void bring_jumps_back(struct soft_cpu *cpu, const struct soft_space *s)
{
    struct soft_private *p = cpu->priv;
    for (uint32_t i = 0; i < s->saved; i++) {
        struct jump_slot *j = jump_at(cpu, s->jump[i].slot);
        j->host = (uint64_t)(uintptr_t)(p->code + s->jump[i].host);
        j->neg_rip = s->jump[i].neg_rip;
        p->jump_filled[0][i] = s->jump[i].slot;
    }
    p->jumps_filled[0] = s->saved;
}

/* ---- the end of conclusions ---- */

/* The current space starts over. */
static void start_over(struct soft_cpu *cpu)
{
    struct soft_private *p = cpu->priv;
    renew(p, current(p));
    clear_jumps(cpu, 0, 0, 0);
    unlink_list(p, &p->cross_links[0], 0, 0);
}

static void flush_everything(struct soft_cpu *cpu)
{
    struct soft_private *p = cpu->priv;
    uint32_t pcid = pcid_now(cpu);
    p->current = pcid % SPACES;
    current(p)->pcid = pcid;
    renew_all(p);
    start_over(cpu);
    clear_jumps(cpu, 1, 0, 0);
    unlink_list(p, &p->cross_links[1], 0, 0);
    for (unsigned i = 0; i < ITLB_SIZE; i++) p->itlb[i].tag = TLB_INVALID;
    soft_zero(p->code_pages, sizeof p->code_pages);
}

static bool forget_fetches(struct soft_private *p, uint64_t a, unsigned shift)
{
    bool any = false;
    unsigned first = shift == PAGE_SHIFT ? (a >> PAGE_SHIFT) & (ITLB_SIZE - 1) : 0;
    unsigned last = shift == PAGE_SHIFT ? first : ITLB_SIZE - 1;
    for (unsigned i = first; i <= last; i++) {
        if (p->itlb[i].tag == TLB_INVALID || (p->itlb[i].tag ^ a) >> shift) continue;
        p->itlb[i].tag = TLB_INVALID;
        any = true;
    }
    return any;
}

static void flush_region(struct soft_cpu *cpu, uint64_t a, unsigned shift)
{
    struct soft_private *p = cpu->priv;
    unsigned h = bloom(a);
    bool page = shift == PAGE_SHIFT, fetched = forget_fetches(p, a, shift);
    bool global = !page || (p->code_pages[h / 64] >> (h & 63) & 1);
    if (global) {
        renew_all(p); /* links of any space may lead there */
        clear_jumps(cpu, 1, shift, a);
        unlink_list(p, &p->cross_links[1], shift, a);
    }
    if (global || fetched || find_home(p, a & PAGE_MASK, NO_PAGE)) start_over(cpu);
}

void soft_translation_flush(struct soft_cpu *cpu, bool global, unsigned shift, gva_t a)
{
    if (!cpu->priv) return;
    if (shift)
        flush_region(cpu, a.v, shift);
    else if (global)
        flush_everything(cpu);
    else
        start_over(cpu);
}

void soft_translation_switch(struct soft_cpu *cpu, uint32_t pcid, bool keep)
{
    struct soft_private *p = cpu->priv;
    if (!p) return;
    struct soft_space *from = current(p), *to = &p->space[pcid % SPACES];
    unlink_list(p, &p->cross_links[0], 0, 0);
    put_jumps_aside(cpu, from);
    if (from->passing) {
        from->passing = false;
        renew(p, from);
    }
    if (!keep || to->pcid != pcid) renew(p, to);
    to->pcid = pcid;
    p->current = pcid % SPACES;
    bring_jumps_back(cpu, to);
}

void soft_translation_forget(struct soft_cpu *cpu, uint32_t pcid)
{
    struct soft_private *p = cpu->priv;
    if (!p) return;
    struct soft_space *s = &p->space[pcid % SPACES];
    if (pcid == EVERY_PCID) renew_all(p);
    if (pcid == EVERY_PCID || (s->pcid == pcid && s == current(p)))
        start_over(cpu);
    else if (s->pcid == pcid)
        renew(p, s);
}

/* The code cache is being emptied. */
void soft_space_reset(struct soft_cpu *cpu)
{
    struct soft_private *p = cpu->priv;
    clear_jumps(cpu, 0, 0, 0);
    clear_jumps(cpu, 1, 0, 0);
    renew_all(p);
    p->cross_links[0] = p->cross_links[1] = 0;
    soft_zero(p->home_hash, sizeof p->home_hash);
}

/* ---- fetch look-ups ---- */

enum soft_result soft_code_page(struct soft_cpu *cpu, uint64_t linear, struct code_page *out)
{
    struct soft_private *p = cpu->priv;
    uint64_t page = linear & PAGE_MASK;
    uint8_t idx = cpu->cpl == 3 ? MMU_USER : MMU_KERNEL;
    struct fetch *f = &p->itlb[(linear >> PAGE_SHIFT) & (ITLB_SIZE - 1)];
    if (f->tag != page || f->idx != idx || (f->space && f->space != current(p)->id)) {
        struct mmu_result r;
        enum soft_result res = soft_walk(cpu, GVA(linear), ACC_EXEC, (enum soft_mmu_idx)idx, false, &r);
        if (res != SOFT_OK) return res;
        f->tag = page;
        f->idx = idx;
        f->gpa = r.gpa.v & PAGE_MASK;
        f->host = soft_ram(soft_memory(cpu), f->gpa, PAGE_SIZE, false);
        if (r.global) {
            enter_global_page(p, page, f->gpa);
        } else {
            enter_page(cpu, page, f->gpa);
        }
        f->space = r.global ? 0 : current(p)->id;
    }
    out->gpa = f->gpa;
    out->host = f->host;
    out->global = !f->space;
    return SOFT_OK;
}
