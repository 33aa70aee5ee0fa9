/* The guest's own page tables: one walk for one access (SDM vol. 3 chapter 4).
 *
 * The tables lie in guest RAM and other vCPUs may change them at any moment: each entry is read once, and the accessed
 * and dirty bits go in by compare-exchange against that very value; when it lost a race the walk starts over. */
#include "vmm/engine/soft/ram.h"
#include "vmm/engine/soft/soft.h"

#define PTE_P (1ull << 0)
#define PTE_W (1ull << 1)
#define PTE_U (1ull << 2)
#define PTE_A (1ull << 5)
#define PTE_D (1ull << 6)
#define PTE_PS (1ull << 7)
#define PTE_G (1ull << 8)
#define PTE_NX (1ull << 63)
#define PTE_ADDR 0x000ffffffffff000ull
#define PHYS_RSVD (PTE_ADDR & ~((1ull << SOFT_PHYS_BITS) - 1))

/* One paging-structure entry that the walk used. */
struct entry_ref {
    uint8_t *host; /* NULL: not in RAM, or not writable */
    uint64_t gpa;
    uint64_t value;
};

struct walk {
    const struct guest_memory *memory;
    struct entry_ref ref[4];
    unsigned refs;
    unsigned shift;  /* the leaf maps 1 << shift bytes */
    uint64_t rights; /* U and W: AND over all levels; NX is kept apart because it is ORed */
    uint64_t nx;
    bool wide;                       /* 64-bit entries */
    uint64_t upper_rights, upper_nx; /* the same without the leaf */
};

enum step { STEP_OK, STEP_ABSENT, STEP_RESERVED };

/* Reads an entry. Tables outside RAM read as all ones, like any unclaimed address of a PC. */
static uint64_t read_entry(struct walk *w, uint64_t gpa)
{
    unsigned size = w->wide ? 8 : 4;
    struct entry_ref *r = &w->ref[w->refs++];
    uint8_t *p = soft_ram(w->memory, gpa, size, false);
    r->gpa = gpa;
    r->host = p;
    if (__builtin_expect(!p, 0))
        r->value = w->wide ? ~0ull : 0xffffffffull;
    else if (w->wide)
        r->value = __atomic_load_n((uint64_t *)(void *)p, __ATOMIC_RELAXED);
    else
        r->value = __atomic_load_n((uint32_t *)(void *)p, __ATOMIC_RELAXED);
    return r->value;
}

static uint64_t reserved_bits(const struct soft_cpu *cpu)
{
    uint64_t rsvd = PHYS_RSVD;
    if (!(cpu->efer & EFER_NXE)) rsvd |= PTE_NX;
    if (!(cpu->efer & EFER_LMA))
        rsvd |= 0x7ff0000000000000ull; /* PAE: bits 62:52 are reserved, 4-level: ignored (table 4-10, 4-11) */
    return rsvd;
}

/* 4-level tables from the PML4 (`shift` 39), or PAE ones from the page directory (21) (SDM vol. 3 4.4, 4.5). */
static enum step walk_wide(const struct soft_cpu *cpu, struct walk *w, uint64_t table, unsigned shift, uint64_t a)
{
    uint64_t rsvd = reserved_bits(cpu);
    for (;; shift -= 9) {
        uint64_t v = read_entry(w, table + ((a >> shift) & 0x1ff) * 8);
        if (!(v & PTE_P)) return STEP_ABSENT;
        bool leaf = shift == 12 || (v & PTE_PS);
        uint64_t bad = v & rsvd;
        if (leaf && shift > 12) /* bit 12 is PAT; a PML4E has no PS */
            bad |= shift == 39 ? PTE_PS : v & ((1ull << shift) - 1) & ~0x1fffull;
        if (bad) return STEP_RESERVED;
        w->upper_rights = w->rights;
        w->upper_nx = w->nx;
        w->rights &= v;
        w->nx |= v;
        if (leaf) break;
        table = v & PTE_ADDR;
    }
    w->shift = shift;
    return STEP_OK;
}

/* Two-level tables of 32-bit entries (SDM vol. 3 4.3). PSE-36 is not advertised. */
static enum step walk_narrow(const struct soft_cpu *cpu, struct walk *w, uint64_t a)
{
    uint64_t v = read_entry(w, (cpu->cr3 & 0xfffff000u) + ((a >> 22) & 0x3ff) * 4);
    if (!(v & PTE_P)) return STEP_ABSENT;
    w->rights &= v;
    w->shift = 22;
    if ((v & PTE_PS) && (cpu->cr4 & CR4_PSE)) return v & 0x003fe000u ? STEP_RESERVED : STEP_OK;
    v = read_entry(w, (v & 0xfffff000u) + ((a >> 12) & 0x3ff) * 4);
    if (!(v & PTE_P)) return STEP_ABSENT;
    w->rights &= v;
    w->shift = 12;
    return STEP_OK;
}

/* ---- the paging-structure cache ---- */

/* Most walks are for neighbours of earlier ones. What the processor remembers of the levels above the page table until the next flush,
 * we remember, too. Only walks that worked are remembered, with their A bits set; and a walk from here that doesn't work is done again
 * in full, so that a guest that granted rights without a flush sees no fault it would not see otherwise. */
static inline uint64_t walk_tag(const struct soft_cpu *cpu, uint64_t a)
{
    return (a >> 21 & 0x7ffffff) | cpu->track.walk_epoch << 27;
}

static inline struct soft_walk_slot *walk_slot(struct soft_cpu *cpu, uint64_t a)
{
    return &cpu->track.walk[(a >> 21 ^ a >> 30) % SOFT_WALK_SLOTS];
}

static bool walk_remembered(struct soft_cpu *cpu, struct walk *w, uint64_t a)
{
    const struct soft_walk_slot *s = walk_slot(cpu, a);
    if (s->tag != walk_tag(cpu, a)) return false;
    unsigned off = (unsigned)(a >> 12 & 0x1ff) * 8;
    uint64_t v = __atomic_load_n((const uint64_t *)(const void *)(s->host + off), __ATOMIC_RELAXED);
    if (!(v & PTE_P) || (v & reserved_bits(cpu))) return false;
    w->wide = true;
    w->refs = 1;
    w->ref[0] = (struct entry_ref){.host = NULL, .gpa = s->gpa + off, .value = v};
    w->rights = s->rights & v;
    w->nx = s->nx | v;
    w->shift = 12;
    return true;
}

static void remember_walk(struct soft_cpu *cpu, const struct walk *w, uint64_t a)
{
    const struct entry_ref *leaf = &w->ref[w->refs - 1];
    if (w->shift != 12 || !w->wide || w->refs < 2 || !leaf->host) return;
    *walk_slot(cpu, a) = (struct soft_walk_slot){
        .tag = walk_tag(cpu, a),
        .gpa = leaf->gpa & PAGE_MASK,
        .host = leaf->host - (leaf->gpa & ~PAGE_MASK),
        .rights = w->upper_rights,
        .nx = w->upper_nx,
    };
}

/* ---- walks ---- */

static enum step walk_tables(const struct soft_cpu *cpu, struct walk *w, uint64_t a)
{
    w->refs = 0;
    w->rights = PTE_U | PTE_W;
    w->nx = 0;
    w->wide = cpu->cr4 & CR4_PAE;
    if (cpu->efer & EFER_LMA) return walk_wide(cpu, w, cpu->cr3 & PTE_ADDR & ~PHYS_RSVD, 39, a);
    if (!w->wide) return walk_narrow(cpu, w, a);
    uint64_t pdpte = cpu->pdpte[(a >> 30) & 3];
    if (!(pdpte & PTE_P)) return STEP_ABSENT; /* its reserved bits were checked when CR3 was loaded */
    return walk_wide(cpu, w, pdpte & PTE_ADDR & ~PHYS_RSVD, 21, a);
}

/* SDM vol. 3 4.6.1 */
static bool permitted(const struct soft_cpu *cpu, const struct walk *w, enum soft_access acc, enum soft_mmu_idx idx)
{
    bool user_page = w->rights & PTE_U;
    bool nx = (w->nx & PTE_NX) && (cpu->efer & EFER_NXE);
    if (idx == MMU_USER) {
        if (!user_page) return false;
        return acc == ACC_READ ? true : acc == ACC_WRITE ? (w->rights & PTE_W) != 0 : !nx;
    }
    if (acc == ACC_EXEC) return !nx && !(user_page && (cpu->cr4 & CR4_SMEP));
    if (user_page && idx == MMU_KERNEL && (cpu->cr4 & CR4_SMAP)) return false;
    return acc == ACC_READ || (w->rights & PTE_W) || !(cpu->cr0 & CR0_WP);
}

static enum soft_result page_fault(struct soft_cpu *cpu, uint64_t a, enum soft_access acc, enum soft_mmu_idx idx,
                                   uint32_t code)
{
    if (acc == ACC_WRITE) code |= PF_W;
    if (idx == MMU_USER) code |= PF_U;
    /* SDM vol. 3 4.7: I is only there when something can make a fetch differ from a read. */
    if (acc == ACC_EXEC && ((cpu->cr4 & CR4_SMEP) || ((cpu->efer & EFER_NXE) && (cpu->cr4 & CR4_PAE)))) code |= PF_I;
    soft_raise_err(cpu, EXC_PF, code);
    cpu->exc.cr2 = a;
    return SOFT_FAULT;
}

/* Sets `bits` in one entry unless they are there. False when the entry changed since it was read. */
static bool mark_entry(struct soft_cpu *cpu, const struct walk *w, struct entry_ref *r, uint64_t bits)
{
    if (__builtin_expect((r->value & bits) == bits, 1)) return true;
    unsigned size = w->wide ? 8 : 4;
    uint8_t *p = soft_ram(w->memory, r->gpa, size, true);
    if (!p) return true; /* tables in ROM or nowhere: there is nothing to set */
    bool done;
    if (w->wide) {
        uint64_t old = r->value;
        done = __atomic_compare_exchange_n((uint64_t *)(void *)p, &old, r->value | bits, false, __ATOMIC_SEQ_CST,
                                           __ATOMIC_RELAXED);
    } else {
        uint32_t old = (uint32_t)r->value;
        done = __atomic_compare_exchange_n((uint32_t *)(void *)p, &old, (uint32_t)(r->value | bits), false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    }
    if (!done) return false;
    r->value |= bits;
    if (soft_page_has_code(cpu, GPA(r->gpa & PAGE_MASK))) soft_code_written(cpu, GPA(r->gpa), size);
    return true;
}

/* Only a walk that is going to succeed marks anything, as processors do for the leaf. */
static bool mark_used(struct soft_cpu *cpu, struct walk *w, bool dirty)
{
    unsigned leaf = w->refs - 1;
    for (unsigned i = 0; i < leaf; i++)
        if (!mark_entry(cpu, w, &w->ref[i], PTE_A)) return false;
    return mark_entry(cpu, w, &w->ref[leaf], dirty ? PTE_A | PTE_D : PTE_A);
}

static enum soft_result walk_unpaged(gva_t a, struct mmu_result *r)
{
    *r = (struct mmu_result){.gpa = GPA((uint32_t)a.v), .page_size = PAGE_SIZE, .writable = true, .readable = true};
    return SOFT_OK;
}

static inline void finish_walk(const struct soft_cpu *cpu, const struct walk *w, uint64_t a, enum soft_mmu_idx idx,
                               struct mmu_result *r)
{
    uint64_t leaf = w->ref[w->refs - 1].value, in_page = (1ull << w->shift) - 1;
    r->gpa = GPA((leaf & PTE_ADDR & ~in_page) | (a & in_page));
    r->page_size = 1u << w->shift;
    r->writable = (leaf & PTE_D) && permitted(cpu, w, ACC_WRITE, idx);
    r->readable = permitted(cpu, w, ACC_READ, idx);
    r->global = (leaf & PTE_G) && (cpu->cr4 & CR4_PGE);
}

enum soft_result soft_walk(struct soft_cpu *cpu, gva_t a, enum soft_access acc, enum soft_mmu_idx idx, bool probe,
                           struct mmu_result *r)
{
    if (!(cpu->cr0 & CR0_PG)) return walk_unpaged(a, r);
    bool long_mode = cpu->efer & EFER_LMA;
    if (long_mode && (uint64_t)((int64_t)(a.v << 16) >> 16) !=
                         a.v) /* for callers that didn't check; tags never match such an address */
        return probe ? SOFT_FAULT : soft_raise_err(cpu, EXC_GP, 0);
    if (!long_mode) a.v = (uint32_t)a.v;

    struct walk w;
    bool dirty = acc == ACC_WRITE && !probe;
    w.memory = soft_memory(cpu);
    if (walk_remembered(cpu, &w, a.v) && permitted(cpu, &w, acc, idx) && mark_used(cpu, &w, dirty)) {
        finish_walk(cpu, &w, a.v, idx, r);
        return SOFT_OK;
    }
    do {
        enum step s = walk_tables(cpu, &w, a.v);
        if (__builtin_expect(s != STEP_OK, 0))
            return probe ? SOFT_FAULT : page_fault(cpu, a.v, acc, idx, s == STEP_ABSENT ? 0 : PF_P | PF_RSVD);
        if (!permitted(cpu, &w, acc, idx)) return probe ? SOFT_FAULT : page_fault(cpu, a.v, acc, idx, PF_P);
    } while (!mark_used(cpu, &w, dirty));
    remember_walk(cpu, &w, a.v);
    if (acc == ACC_EXEC && w.shift > PAGE_SHIFT) soft_tlb_note_large(cpu, a.v, 1u << w.shift);
    finish_walk(cpu, &w, a.v, idx, r);
    return SOFT_OK;
}
