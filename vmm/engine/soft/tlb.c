/* The software TLB (GVA -> HVA) and the three ways to empty it.
 *
 * A guest switches address spaces and fork()s all the time, so a flush must cost what was used, not what could be: bitmaps say
 * which entries are filled, apart for global pages, which a CR3 load leaves alone. The per-site caches of translated
 * code are filled behind our back, but only from this TLB: a permission set without entries has no live sites either. */
#include "vmm/engine/soft/ram.h"
#include "vmm/engine/soft/soft.h"

#define WORDS (TLB_SIZE / 64)
#define SHIFT_LARGE 22 /* 2 and 4 MiB pages are dropped by 4 MiB, which needs no memory of which of both it was */
#define SHIFT_HUGE 30

/* As emit_tlb_index_flags() has it. (Adding a multiple of the upper bits, so that buffers 16 MiB apart do not collide, cost dgemm more than it gained.) */
static inline unsigned slot_of(uint64_t a)
{
    return (unsigned)(a >> PAGE_SHIFT) & (TLB_SIZE - 1);
}

static inline unsigned bloom_hash(uint64_t key, unsigned bits)
{
    return (unsigned)((key * 0x9e3779b97f4a7c15ull) >> (64 - bits));
}

static inline void fill_words(void *dst, uint64_t v, size_t n)
{
    __asm__ volatile("rep stosq" : "+D"(dst), "+c"(n) : "a"(v) : "memory");
}

static inline void drop(struct tlb_entry *e)
{
    e->tag_read = TLB_INVALID;
    e->tag_write = TLB_INVALID;
}

/* ---- data breakpoints ---- */

static inline bool watching(const struct soft_cpu *cpu)
{
    return cpu->dr[7] & 0xff;
}

/* Does an enabled data breakpoint overlap [a, a+len)? Returns its DR6 bits. `write` also matches write-only ones (SDM vol. 3 17.2.4). */
static uint64_t breakpoints(const struct soft_cpu *cpu, uint64_t a, uint64_t len, bool write)
{
    static const uint8_t sizes[4] = {1, 2, 8, 4};
    uint64_t hit = 0, dr7 = cpu->dr[7];
    for (unsigned i = 0; i < 4; i++) {
        if (!(dr7 >> (2 * i) & 3)) continue;
        unsigned kind = dr7 >> (16 + 4 * i) & 3;
        if (!(kind == 3 || (kind == 1 && write))) continue;
        uint64_t size = sizes[dr7 >> (18 + 4 * i) & 3], start = cpu->dr[i] & ~(size - 1);
        if (start - a < len || a - start < size) hit |= 1ull << i;
    }
    return hit;
}

/* ---- filling ---- */

void soft_tlb_note_large(struct soft_cpu *cpu, uint64_t a, uint32_t page_size)
{
    unsigned h = bloom_hash(a >> SHIFT_LARGE, 16);
    cpu->track.large_4m[h / 64] |= 1ull << (h & 63);
    if (page_size == 1u << SHIFT_HUGE) cpu->track.large_1g |= 1ull << bloom_hash(a >> SHIFT_HUGE, 6);
}

static void track(struct soft_cpu *cpu, enum soft_mmu_idx idx, uint64_t page, const struct mmu_result *r)
{
    unsigned i = slot_of(page);
    uint64_t bit = 1ull << (i & 63);
    uint64_t *local = &cpu->track.local[idx][i / 64], *global = &cpu->track.global[idx][i / 64];
    if (r->global) {
        *global |= bit;
        *local &= ~bit;
    } else {
        *local |= bit;
        *global &= ~bit;
    }
    cpu->track.used |= 1u << idx;
    if (!r->global) cpu->track.local_used |= 1u << idx;
    if (r->page_size > PAGE_SIZE) soft_tlb_note_large(cpu, page, r->page_size);
}

/* Site slots outlive the entry that they were filled from. */
static void note_evicted(struct soft_cpu *cpu, enum soft_mmu_idx idx, const struct tlb_entry *e, uint64_t page)
{
    uint64_t old = e->tag_read != TLB_INVALID ? e->tag_read : e->tag_write;
    if (old == TLB_INVALID || old == page) return;
    unsigned h = bloom_hash(old >> PAGE_SHIFT, 10);
    cpu->track.evicted[idx][h / 64] |= 1ull << (h & 63);
}

/* Is the 2 MiB of RAM that the page lies in in one large page of the guest, and in one piece on the host? */
static bool in_large_ram(const struct guest_memory *m, uint64_t gpa, const uint8_t *host, const struct mmu_result *r)
{
    uint64_t start = gpa & ~(uint64_t)(LARGE_SIZE - 1);
    return r->page_size >= LARGE_SIZE && r->readable && soft_ram(m, start, LARGE_SIZE, false) == host - (gpa - start);
}

static struct tlb_entry *fill(struct soft_cpu *cpu, enum soft_mmu_idx idx, uint64_t page, const struct mmu_result *r)
{
    const struct guest_memory *m = soft_memory(cpu);
    uint64_t gpa = r->gpa.v & PAGE_MASK;
    uint8_t *host = soft_ram(m, gpa, PAGE_SIZE, false);
    if (!host || (watching(cpu) && breakpoints(cpu, page, PAGE_SIZE, true))) return NULL;
    bool write = r->writable && soft_ram(m, gpa, PAGE_SIZE, true);
    struct tlb_entry *e = &cpu->tlb[idx][slot_of(page)];
    note_evicted(cpu, idx, e, page);
    e->tag_read = r->readable ? page : TLB_INVALID;
    e->tag_write = write && !soft_page_has_code(cpu, GPA(gpa)) ? page : TLB_INVALID;
    e->delta = (uint64_t)(uintptr_t)host - page;
    e->gpa =
        gpa | (r->global ? TLB_GLOBAL : 0) | (r->page_size > PAGE_SIZE ? TLB_LARGE : 0) | (write ? TLB_WRITE_OK : 0);
    if (!watching(cpu) && in_large_ram(m, gpa, host, r)) e->gpa |= TLB_LARGE_RAM;
    track(cpu, idx, page, r);
    return e;
}

static inline bool tag_matches(const struct tlb_entry *e, enum soft_access acc, uint64_t page)
{
    return (acc == ACC_WRITE ? e->tag_write : e->tag_read) == page;
}

enum soft_result soft_tlb_lookup(struct soft_cpu *cpu, gva_t a, enum soft_access acc, enum soft_mmu_idx idx,
                                 uint8_t **host, gpa_t *gpa)
{
    uint64_t page = a.v & PAGE_MASK;
    struct tlb_entry *e = &cpu->tlb[idx][slot_of(page)];
    *host = NULL;
    if (acc != ACC_EXEC) {
        /* Writes to a page with code always come here; they need no walk while its entry stands. */
        if (acc == ACC_WRITE && e->tag_read == page && (e->gpa & TLB_WRITE_OK) && e->tag_write != page &&
            !soft_page_has_code(cpu, GPA(e->gpa & PAGE_MASK)))
            e->tag_write = page;
        if (tag_matches(e, acc, page)) {
            *gpa = GPA((e->gpa & PAGE_MASK) | (a.v & ~PAGE_MASK));
            *host = (uint8_t *)(uintptr_t)(a.v + e->delta);
            return SOFT_OK;
        }
        if (acc == ACC_WRITE && e->tag_read == page && (e->gpa & TLB_WRITE_OK)) {
            *gpa = GPA((e->gpa & PAGE_MASK) | (a.v & ~PAGE_MASK));
            return SOFT_OK;
        }
    }
    struct mmu_result r;
    enum soft_result res = soft_walk(cpu, a, acc, idx, false, &r);
    if (res != SOFT_OK) return res;
    *gpa = r.gpa;
    if (acc == ACC_EXEC) { /* no tag allows fetches; what was fetched stays found through the translations */
        *host = soft_ram(soft_memory(cpu), r.gpa.v, 1, false);
        return SOFT_OK;
    }
    e = fill(cpu, idx, page, &r);
    if (e && tag_matches(e, acc, page)) *host = (uint8_t *)(uintptr_t)(a.v + e->delta);
    return SOFT_OK;
}

/* Is `page` in the large page of the guest that the entry is about, and such access to it plain memory with the same HVA - GVA? */
static bool same_large_page(struct soft_cpu *cpu, const struct tlb_entry *e, uint64_t from, uint64_t page, bool write)
{
    if (!(e->gpa & TLB_LARGE) || (from ^ page) >> LARGE_SHIFT || watching(cpu)) return false;
    uint64_t gpa = (e->gpa & PAGE_MASK) + page - from;
    return (uint64_t)(uintptr_t)soft_ram(soft_memory(cpu), gpa, PAGE_SIZE, write) == page + e->delta &&
           !(write && soft_page_has_code(cpu, GPA(gpa)));
}

bool soft_tlb_goes_on(struct soft_cpu *cpu, gva_t from, gva_t page, enum soft_access acc)
{
    const struct tlb_entry *tlb = cpu->tlb[cpu->mmu_idx], *e = &tlb[slot_of(from.v)], *next = &tlb[slot_of(page.v)];
    if (!tag_matches(e, acc, from.v)) return false;
    if (tag_matches(next, acc, page.v)) return next->delta == e->delta;
    return same_large_page(cpu, e, from.v, page.v, acc == ACC_WRITE);
}

bool soft_tlb_large_ram(const struct soft_cpu *cpu, unsigned idx, uint64_t page)
{
    const struct tlb_entry *e = &cpu->tlb[idx][slot_of(page)];
    return e->tag_read == page && (e->gpa & TLB_LARGE_RAM);
}

/* ---- flushing: site slots ---- */

/* Those of large pages are few and soon filled again: all go. */
static void drop_large(struct soft_cpu *cpu, unsigned idx)
{
    if (!cpu->large_filled[idx]) return;
    fill_words(cpu->large[idx], TLB_INVALID, sizeof(cpu->large[idx]) / 8);
    cpu->large_filled[idx] = 0;
}

/* Searching the filled slots for those of one page leaves the others to work on; dropping all costs that they are looked up again.
 * After so many searches all go: if they are in use, that is what the searches together have cost; if not, the next ones are cheap. */
#define SITE_SEARCHES 16u

static void drop_sites(struct soft_cpu *cpu, unsigned idx)
{
    drop_large(cpu, idx);
    for (unsigned write = 0; write < 2; write++) {
        for (uint32_t i = 0; i < cpu->sites_filled[idx][write]; i++) {
            struct site_slot *s = (struct site_slot *)((uint8_t *)cpu + cpu->site_list[idx][write][i]);
            s->tag = s->delta = TLB_INVALID;
        }
        cpu->sites_filled[idx][write] = 0;
    }
    cpu->track.site_searches[idx] = 0;
    fill_words(cpu->track.evicted[idx], 0, sizeof(cpu->track.evicted[idx]) / 8);
}

/* The host's address of the page that a filled slot is about. */
static uint64_t slot_host(const struct soft_cpu *cpu, unsigned idx, unsigned write, const struct site_slot *s)
{
    bool holds_page = (uint64_t)(s - cpu->site[idx][write]) >= SITE_COUNT / 2;
    return holds_page ? s->delta : s->delta + s->tag;
}

static bool slot_in_region(const struct soft_cpu *cpu, unsigned idx, unsigned write, const struct site_slot *s,
                           uint64_t a, unsigned shift)
{
    (void)cpu, (void)idx, (void)write;
    return !((s->tag ^ a) >> shift);
}

/* Is it about anything else than a global page that the TLB holds as well? */
static bool slot_not_global(const struct soft_cpu *cpu, unsigned idx, unsigned write, const struct site_slot *s,
                            uint64_t a, unsigned shift)
{
    (void)a, (void)shift;
    const struct tlb_entry *e = &cpu->tlb[idx][slot_of(s->tag)];
    return (write ? e->tag_write : e->tag_read) != s->tag || !(e->gpa & TLB_GLOBAL) ||
           slot_host(cpu, idx, write, s) != e->delta + s->tag;
}

static bool slot_on_host_page(const struct soft_cpu *cpu, unsigned idx, unsigned write, const struct site_slot *s,
                              uint64_t a, unsigned shift)
{
    return !((slot_host(cpu, idx, write, s) ^ a) >> shift);
}

typedef bool slot_test(const struct soft_cpu *cpu, unsigned idx, unsigned write, const struct site_slot *s, uint64_t a,
                       unsigned shift);

/* Empties the slots of one pool that the test is true for. */
static inline void drop_sites_if(struct soft_cpu *cpu, unsigned idx, unsigned write, slot_test *test, uint64_t a,
                                 unsigned shift)
{
    uint32_t *list = cpu->site_list[idx][write], kept = 0;
    for (uint32_t i = 0; i < cpu->sites_filled[idx][write]; i++) {
        struct site_slot *s = (struct site_slot *)((uint8_t *)cpu + list[i]);
        if (test(cpu, idx, write, s, a, shift))
            s->tag = s->delta = TLB_INVALID;
        else
            list[kept++] = list[i];
    }
    cpu->sites_filled[idx][write] = kept;
}

static void drop_sites_in_region(struct soft_cpu *cpu, unsigned idx, uint64_t a, unsigned shift)
{
    if (shift > PAGE_SHIFT) drop_large(cpu, idx); /* the address is in no large page else */
    if (cpu->track.site_searches[idx]++ >= SITE_SEARCHES) {
        drop_sites(cpu, idx);
        return;
    }
    for (unsigned write = 0; write < 2; write++) drop_sites_if(cpu, idx, write, slot_in_region, a, shift);
}

/* ---- flushing: the hashed TLB ---- */

/* Drops the entries named in one bitmap and empties it. */
static void drop_mapped(struct tlb_entry *tlb, uint64_t *map)
{
    for (unsigned w = 0; w < WORDS; w++) {
        for (uint64_t bits = map[w]; bits; bits &= bits - 1) drop(&tlb[w * 64 + (unsigned)__builtin_ctzll(bits)]);
        map[w] = 0;
    }
}

static bool any(const uint64_t *map)
{
    uint64_t all = 0;
    for (unsigned w = 0; w < WORDS; w++) all |= map[w];
    return all;
}

void soft_tlb_init(struct soft_cpu *cpu)
{
    fill_words(cpu->tlb, TLB_INVALID, sizeof(cpu->tlb) / 8);
    fill_words(cpu->large, TLB_INVALID, sizeof(cpu->large) / 8);
    soft_zero(&cpu->track, sizeof(cpu->track));
    cpu->track.walk_epoch = 1;
}

void soft_tlb_flush_all(struct soft_cpu *cpu)
{
    for (unsigned idx = 0; idx < MMU_IDX_COUNT; idx++) {
        if (!(cpu->track.used & 1u << idx)) continue;
        drop_sites(cpu, idx);
        drop_mapped(cpu->tlb[idx], cpu->track.local[idx]);
        drop_mapped(cpu->tlb[idx], cpu->track.global[idx]);
    }
    cpu->track.used = cpu->track.local_used = 0;
    fill_words(cpu->track.large_4m, 0, sizeof(cpu->track.large_4m) / 8);
    cpu->track.large_1g = 0;
    cpu->track.walk_epoch++;
    soft_translation_flush(cpu, true, 0, GVA(0));
}

static void drop_local(struct soft_cpu *cpu)
{
    for (unsigned idx = 0; idx < MMU_IDX_COUNT; idx++) {
        if (!(cpu->track.local_used & 1u << idx)) continue; /* a kernel's own pages are global, all of them */
        if (any(cpu->track.global[idx])) {
            for (unsigned write = 0; write < 2; write++) drop_sites_if(cpu, idx, write, slot_not_global, 0, 0);
            drop_large(cpu, idx);
        } else {
            drop_sites(cpu, idx);
            cpu->track.used &= ~(1u << idx);
        }
        drop_mapped(cpu->tlb[idx], cpu->track.local[idx]);
    }
    cpu->track.local_used = 0;
    cpu->track.walk_epoch++;
}

void soft_tlb_flush_nonglobal(struct soft_cpu *cpu)
{
    drop_local(cpu);
    soft_translation_flush(cpu, false, 0, GVA(0));
}

/* Data entries are not kept across a switch: looking them up again was not what switches cost. */
void soft_tlb_switch(struct soft_cpu *cpu, uint32_t pcid, bool keep)
{
    drop_local(cpu);
    soft_translation_switch(cpu, pcid, keep);
}

void soft_tlb_forget(struct soft_cpu *cpu, uint32_t pcid)
{
    uint32_t now = cpu->cr4 & CR4_PCIDE ? (uint32_t)cpu->cr3 & 0xfff : 0;
    if (pcid == now || pcid == EVERY_PCID) drop_local(cpu);
    soft_translation_forget(cpu, pcid);
}

static void drop_entry(struct soft_cpu *cpu, unsigned idx, unsigned i)
{
    drop(&cpu->tlb[idx][i]);
    cpu->track.local[idx][i / 64] &= ~(1ull << (i & 63));
    cpu->track.global[idx][i / 64] &= ~(1ull << (i & 63));
}

/* Does the entry map a page of the naturally aligned region of 1 << shift bytes around `a`? */
static bool entry_in_region(const struct tlb_entry *e, uint64_t a, unsigned shift)
{
    return (e->tag_read != TLB_INVALID && !((e->tag_read ^ a) >> shift)) ||
           (e->tag_write != TLB_INVALID && !((e->tag_write ^ a) >> shift));
}

/* May a site of this permission set hold the page? It has an entry, or had one that another page took. */
static bool maybe_in_sites(const struct soft_cpu *cpu, unsigned idx, uint64_t a)
{
    unsigned h = bloom_hash(a >> PAGE_SHIFT, 10);
    return entry_in_region(&cpu->tlb[idx][slot_of(a)], a, PAGE_SHIFT) ||
           (cpu->track.evicted[idx][h / 64] >> (h & 63) & 1);
}

static void drop_region(struct soft_cpu *cpu, unsigned idx, uint64_t a, unsigned shift)
{
    if (shift == PAGE_SHIFT) {
        if (entry_in_region(&cpu->tlb[idx][slot_of(a)], a, shift)) drop_entry(cpu, idx, slot_of(a));
        return;
    }
    for (unsigned w = 0; w < WORDS; w++)
        for (uint64_t bits = cpu->track.local[idx][w] | cpu->track.global[idx][w]; bits; bits &= bits - 1) {
            unsigned i = w * 64 + (unsigned)__builtin_ctzll(bits);
            if (entry_in_region(&cpu->tlb[idx][i], a, shift)) drop_entry(cpu, idx, i);
        }
}

void soft_tlb_flush_page(struct soft_cpu *cpu, gva_t a)
{
    unsigned shift = PAGE_SHIFT, h = bloom_hash(a.v >> SHIFT_LARGE, 16);
    if (cpu->track.large_1g >> bloom_hash(a.v >> SHIFT_HUGE, 6) & 1)
        shift = SHIFT_HUGE;
    else if (cpu->track.large_4m[h / 64] >> (h & 63) & 1)
        shift = SHIFT_LARGE;
    for (unsigned idx = 0; idx < MMU_IDX_COUNT; idx++) {
        if (!(cpu->track.used & 1u << idx)) continue;
        if (shift != PAGE_SHIFT || maybe_in_sites(cpu, idx, a.v)) drop_sites_in_region(cpu, idx, a.v, shift);
        drop_region(cpu, idx, a.v, shift);
    }
    cpu->track.walk_epoch++;
    soft_translation_flush(cpu, true, shift, a);
}

void soft_tlb_protect_page(struct soft_cpu *cpu, gpa_t page)
{
    uint64_t gpa = page.v & PAGE_MASK;
    uint64_t host = (uint64_t)(uintptr_t)soft_ram(soft_memory(cpu), gpa, PAGE_SIZE, false);
    for (unsigned idx = 0; idx < MMU_IDX_COUNT; idx++) {
        if (!host || !(cpu->track.used & 1u << idx)) continue;
        drop_sites_if(cpu, idx, 1, slot_on_host_page, host, PAGE_SHIFT); /* they may outlive the entry they came from */
        for (unsigned w = 0; w < WORDS; w++)
            for (uint64_t bits = cpu->track.local[idx][w] | cpu->track.global[idx][w]; bits; bits &= bits - 1) {
                struct tlb_entry *e = &cpu->tlb[idx][w * 64 + (unsigned)__builtin_ctzll(bits)];
                if ((e->gpa & PAGE_MASK) == gpa) e->tag_write = TLB_INVALID;
            }
    }
}

/* ---- accesses by C code ---- */

/* Part of an access that lies in one page, with its address resolved. */
struct piece {
    uint8_t *host; /* NULL: not (just) RAM */
    gpa_t gpa;
    uint32_t len;
};

/* One host access each, so that other vCPUs see aligned ones whole. */
#define PACKED_TYPE(bits) \
    struct packed##bits { \
        uint##bits##_t v; \
    } __attribute__((packed, may_alias))
PACKED_TYPE(16);
PACKED_TYPE(32);
PACKED_TYPE(64);

static inline void move(void *dst, const void *src, uint32_t len)
{
    uint8_t *d = dst;
    const uint8_t *s = src;
    if (len > 128) {
        soft_copy(dst, src, len);
        return;
    }
    for (; len >= 8; len -= 8, d += 8, s += 8)
        ((volatile struct packed64 *)d)->v = ((const volatile struct packed64 *)s)->v;
    if (len & 4) {
        ((volatile struct packed32 *)d)->v = ((const volatile struct packed32 *)s)->v;
        d += 4;
        s += 4;
    }
    if (len & 2) {
        ((volatile struct packed16 *)d)->v = ((const volatile struct packed16 *)s)->v;
        d += 2;
        s += 2;
    }
    if (len & 1) *(volatile uint8_t *)d = *(const volatile uint8_t *)s;
}

/* Devices see naturally sized accesses only. */
static uint8_t mmio_size(uint32_t left)
{
    return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

static enum soft_result mmio_read(struct soft_cpu *cpu, uint64_t a, uint8_t *dst, uint32_t len)
{
    while (len) {
        uint8_t n = mmio_size(len);
        if (cpu->io.next >= SOFT_IO_PIECES) {
            for (unsigned i = 0; i < n; i++) dst[i] = 0xff;
        } else if (cpu->io.next < cpu->io.count && cpu->io.replay[cpu->io.next].addr == a &&
                   cpu->io.replay[cpu->io.next].len == n) {
            move(dst, cpu->io.replay[cpu->io.next++].data, n);
        } else {
            cpu->io.count = cpu->io.next; /* another vCPU may have changed what this instruction reads */
            cpu->exit->kind = VCPU_EXIT_MMIO;
            cpu->exit->mmio.addr = GPA(a);
            cpu->exit->mmio.len = n;
            cpu->exit->mmio.write = false;
            return SOFT_EXIT;
        }
        a += n, dst += n, len -= n;
    }
    return SOFT_OK;
}

static void mmio_write(struct soft_cpu *cpu, uint64_t a, const uint8_t *src, uint32_t len)
{
    while (len && cpu->io.writes < SOFT_IO_PIECES) {
        uint8_t n = mmio_size(len);
        cpu->io.write[cpu->io.writes].addr = a;
        cpu->io.write[cpu->io.writes].len = n;
        move(cpu->io.write[cpu->io.writes++].data, src, n);
        a += n, src += n, len -= n;
    }
}

static enum soft_result read_piece(struct soft_cpu *cpu, const struct piece *p, uint8_t *dst)
{
    const uint8_t *host = p->host ? p->host : soft_ram(soft_memory(cpu), p->gpa.v, p->len, false);
    if (!host) return mmio_read(cpu, p->gpa.v, dst, p->len);
    move(dst, host, p->len);
    return SOFT_OK;
}

static void write_piece(struct soft_cpu *cpu, const struct piece *p, const uint8_t *src)
{
    if (p->host) {
        move(p->host, src, p->len);
        return;
    }
    uint8_t *host = soft_ram(soft_memory(cpu), p->gpa.v, p->len, true);
    if (!host) {
        mmio_write(cpu, p->gpa.v, src, p->len);
        return;
    }
    move(host, src, p->len);
    soft_write_fence();
    if (soft_page_has_code(cpu, GPA(p->gpa.v & PAGE_MASK))) soft_code_written(cpu, p->gpa, p->len);
}

/* Resolves an access of at most a page in one or two pieces; returns the first fault. */
static enum soft_result resolve(struct soft_cpu *cpu, gva_t a, uint32_t len, enum soft_access acc,
                                enum soft_mmu_idx idx, bool sys, struct piece p[2])
{
    uint32_t room = (uint32_t)(PAGE_SIZE - (a.v & ~PAGE_MASK));
    p[0].len = len < room ? len : room;
    p[1].len = len - p[0].len;
    enum soft_result r = soft_tlb_lookup(cpu, a, acc, idx, &p[0].host, &p[0].gpa);
    if (r != SOFT_OK || !p[1].len) return r;
    uint64_t next = a.v + p[0].len;
    if (!soft_long_mode(cpu) || (!sys && !soft_code64(cpu))) next = (uint32_t)next; /* linear addresses wrap at 4 GiB */
    return soft_tlb_lookup(cpu, GVA(next), acc, idx, &p[1].host, &p[1].gpa);
}

/* #AC, at CPL 3 only (SDM vol. 3 6.15, interrupt 17). Not for vectors: those that need alignment raise #GP, the others don't care. */
static inline bool misaligned(const struct soft_cpu *cpu, uint64_t a, uint32_t len, enum soft_mmu_idx idx)
{
    return idx == MMU_USER && (cpu->rflags & FL_AC) && (cpu->cr0 & CR0_AM) && len <= 8 && !(len & (len - 1)) &&
           (a & (len - 1));
}

static enum soft_result load_slow(struct soft_cpu *cpu, gva_t a, uint8_t *dst, uint32_t len, enum soft_mmu_idx idx,
                                  bool sys)
{
    struct piece p[2];
    if (len > PAGE_SIZE)
        return soft_raise_err(cpu, EXC_GP, 0); /* no instruction does; a caller's mistake must not run over dst */
    enum soft_result r = resolve(cpu, a, len, ACC_READ, idx, sys, p);
    if (r == SOFT_OK) r = read_piece(cpu, &p[0], dst);
    if (r == SOFT_OK && p[1].len) r = read_piece(cpu, &p[1], dst + p[0].len);
    if (r == SOFT_OK && !sys && watching(cpu)) cpu->pending_db |= breakpoints(cpu, a.v, len, false);
    return r;
}

static enum soft_result store_slow(struct soft_cpu *cpu, gva_t a, const uint8_t *src, uint32_t len,
                                   enum soft_mmu_idx idx, bool sys)
{
    struct piece p[2];
    if (len > PAGE_SIZE) return soft_raise_err(cpu, EXC_GP, 0);
    enum soft_result r = resolve(cpu, a, len, ACC_WRITE, idx, sys, p);
    if (r != SOFT_OK) return r;
    write_piece(cpu, &p[0], src);
    if (p[1].len) write_piece(cpu, &p[1], src + p[0].len);
    if (!sys && watching(cpu)) cpu->pending_db |= breakpoints(cpu, a.v, len, true);
    return SOFT_OK;
}

void soft_note_access(struct soft_cpu *cpu, gva_t a, uint32_t len, bool write)
{
    if (watching(cpu)) cpu->pending_db |= breakpoints(cpu, a.v, len, write);
}

enum soft_result soft_load(struct soft_cpu *cpu, gva_t a, void *dst, uint32_t len, enum soft_mmu_idx idx)
{
    uint64_t page = a.v & PAGE_MASK;
    const struct tlb_entry *e = &cpu->tlb[idx][slot_of(page)];
    if (misaligned(cpu, a.v, len, idx)) return soft_raise_err(cpu, EXC_AC, 0);
    if (e->tag_read != page || (a.v & ~PAGE_MASK) + len > PAGE_SIZE) return load_slow(cpu, a, dst, len, idx, false);
    move(dst, (const uint8_t *)(uintptr_t)(a.v + e->delta), len);
    return SOFT_OK;
}

enum soft_result soft_store(struct soft_cpu *cpu, gva_t a, const void *src, uint32_t len, enum soft_mmu_idx idx)
{
    uint64_t page = a.v & PAGE_MASK;
    const struct tlb_entry *e = &cpu->tlb[idx][slot_of(page)];
    if (misaligned(cpu, a.v, len, idx)) return soft_raise_err(cpu, EXC_AC, 0);
    if (e->tag_write != page || (a.v & ~PAGE_MASK) + len > PAGE_SIZE) return store_slow(cpu, a, src, len, idx, false);
    move((uint8_t *)(uintptr_t)(a.v + e->delta), src, len);
    return SOFT_OK;
}

enum soft_result soft_probe_store(struct soft_cpu *cpu, gva_t a, uint32_t len, enum soft_mmu_idx idx)
{
    struct piece p[2];
    if (misaligned(cpu, a.v, len, idx)) return soft_raise_err(cpu, EXC_AC, 0);
    return len ? resolve(cpu, a, len, ACC_WRITE, idx, false, p) : SOFT_OK;
}

enum soft_result soft_load_sys(struct soft_cpu *cpu, uint64_t a, void *dst, uint32_t len)
{
    return load_slow(cpu, GVA(a), dst, len, MMU_KERNEL, true);
}

enum soft_result soft_store_sys(struct soft_cpu *cpu, uint64_t a, const void *src, uint32_t len)
{
    return store_slow(cpu, GVA(a), src, len, MMU_KERNEL, true);
}
