/* String instructions with and without REP, in all address sizes and both directions.
 *
 * RAM goes through the host's own string instructions, as far as it is contiguous on both sides: with the same element size and the same overlap between
 * host addresses as between guest ones they do exactly what the guest's would. All else goes item by item. The registers are
 * brought up to date before anything can leave, so a fault, an interrupt or an exit finds them at the iteration it belongs to. */
#include "vmm/engine/soft/general.h"
#include "vmm/engine/soft/portio.h"
#include "vmm/engine/soft/ram.h"

/* Without a request to leave, this much is done before the run loop is asked anyway. */
#define STRING_BUDGET (256u << 10)

enum string_kind { STR_MOVS, STR_CMPS, STR_STOS, STR_LODS, STR_SCAS, STR_INS, STR_OUTS };

/* One side of a string operation: items that follow each other in RAM, on the guest's side and on the host's. */
struct span {
    uint64_t items; /* 0: to be found */
    uint8_t *host;  /* of the first item */
    gpa_t gpa;
    bool code; /* translated code must hear about the write */
};

struct string {
    enum string_kind kind;
    unsigned size;  /* of an item */
    unsigned shift; /* 1 << shift == size */
    unsigned addr_size;
    uint64_t mask;    /* of offsets and the count */
    enum cpu_seg seg; /* of the source; the destination is always in ES */
    uint8_t rep;      /* 0 none, 1 REP/REPE, 2 REPNE */
    bool back;
    bool source, dest; /* which of RSI and RDI it uses */
    struct span src, dst;
};

static bool describe(const struct soft_cpu *cpu, const struct insn *in, struct string *s)
{
    struct raw_insn raw = soft_raw_insn(in);
    switch (raw.opcode & 0xfe) {
    case 0xa4: s->kind = STR_MOVS; break;
    case 0xa6: s->kind = STR_CMPS; break;
    case 0xaa: s->kind = STR_STOS; break;
    case 0xac: s->kind = STR_LODS; break;
    case 0xae: s->kind = STR_SCAS; break;
    case 0x6c: s->kind = STR_INS; break;
    case 0x6e: s->kind = STR_OUTS; break;
    default: return false; /* MOVSD and CMPSD are SSE instructions, too */
    }
    s->size = raw.opcode & 1 ? in->op_size : 1;
    if (s->size == 8 && (s->kind == STR_INS || s->kind == STR_OUTS)) s->size = 4;
    s->shift = s->size == 1 ? 0 : s->size == 2 ? 1 : s->size == 4 ? 2 : 3;
    s->addr_size = in->addr_size;
    s->mask = size_mask(in->addr_size);
    s->seg = raw.seg == SEG_COUNT ? SEG_DS : (enum cpu_seg)raw.seg;
    s->rep = raw.rep;
    s->back = cpu->rflags & FL_DF;
    s->source = s->kind == STR_MOVS || s->kind == STR_CMPS || s->kind == STR_LODS || s->kind == STR_OUTS;
    s->dest = s->kind != STR_LODS && s->kind != STR_OUTS;
    return true;
}

static void step(struct soft_cpu *cpu, const struct string *s, unsigned reg, uint64_t items)
{
    uint64_t n = items * s->size;
    soft_gpr_write(cpu, reg, (cpu->gpr[reg] + (s->back ? -n : n)) & s->mask, s->addr_size);
}

static void advance(struct soft_cpu *cpu, const struct string *s, uint64_t items)
{
    if (s->source) step(cpu, s, R_RSI, items);
    if (s->dest) step(cpu, s, R_RDI, items);
    if (s->rep) soft_gpr_write(cpu, R_RCX, (cpu->gpr[R_RCX] - items) & s->mask, s->addr_size);
}

/* ---- the host's own string instructions ---- */

#define SIZED(size, op)      \
    switch (size) {          \
    case 1: op("b"); break;  \
    case 2: op("w"); break;  \
    case 4: op("l"); break;  \
    default: op("q"); break; \
    }

static void host_movs(uint8_t *d, const uint8_t *s, uint64_t n, unsigned size, bool back)
{
#define FORWARD(x) __asm__ volatile("rep movs" x : "+D"(d), "+S"(s), "+c"(n)::"memory")
#define BACKWARD(x) __asm__ volatile("std\n\trep movs" x "\n\tcld" : "+D"(d), "+S"(s), "+c"(n)::"memory", "cc")
    if (back) {
        SIZED(size, BACKWARD)
    } else {
        SIZED(size, FORWARD)
    }
#undef FORWARD
#undef BACKWARD
}

static void host_stos(uint8_t *d, uint64_t v, uint64_t n, unsigned size, bool back)
{
#define FORWARD(x) __asm__ volatile("rep stos" x : "+D"(d), "+c"(n) : "a"(v) : "memory")
#define BACKWARD(x) __asm__ volatile("std\n\trep stos" x "\n\tcld" : "+D"(d), "+c"(n) : "a"(v) : "memory", "cc")
    if (back) {
        SIZED(size, BACKWARD)
    } else {
        SIZED(size, FORWARD)
    }
#undef FORWARD
#undef BACKWARD
}

/* What LAHF and SETO left in AX, as RFLAGS bits. */
static uint64_t flags_of(uint64_t ax)
{
    return (ax >> 8 & (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF)) | (ax & 0xff ? FL_OF : 0);
}

#define LAST_FLAGS "\n\tcld\n\tlahf\n\tseto %%al"

/* Compares until the REPE (1) or REPNE (2) condition ends it; returns the items done, `*flags` are the last one's. */
static uint64_t host_cmps(const uint8_t *s, const uint8_t *d, uint64_t n, const struct string *str, uint64_t *flags)
{
    uint64_t left = n, ax;
#define RUN(dir, rep, x) \
    __asm__ volatile(dir "\n\t" rep " cmps" x LAST_FLAGS : "+D"(d), "+S"(s), "+c"(left), "=&a"(ax)::"memory", "cc")
#define E_FORWARD(x) RUN("cld", "repe", x)
#define E_BACKWARD(x) RUN("std", "repe", x)
#define NE_FORWARD(x) RUN("cld", "repne", x)
#define NE_BACKWARD(x) RUN("std", "repne", x)
    if (str->rep == 2) {
        if (str->back) {
            SIZED(str->size, NE_BACKWARD)
        } else {
            SIZED(str->size, NE_FORWARD)
        }
    } else if (str->back) {
        SIZED(str->size, E_BACKWARD)
    } else {
        SIZED(str->size, E_FORWARD)
    }
#undef RUN
    *flags = flags_of(ax);
    return n - left;
}

static uint64_t host_scas(uint64_t ax, const uint8_t *d, uint64_t n, const struct string *str, uint64_t *flags)
{
    uint64_t left = n;
#define RUN(dir, rep, x) \
    __asm__ volatile(dir "\n\t" rep " scas" x LAST_FLAGS : "+D"(d), "+c"(left), "+a"(ax)::"memory", "cc")
    if (str->rep == 2) {
        if (str->back) {
            SIZED(str->size, NE_BACKWARD)
        } else {
            SIZED(str->size, NE_FORWARD)
        }
    } else if (str->back) {
        SIZED(str->size, E_BACKWARD)
    } else {
        SIZED(str->size, E_FORWARD)
    }
#undef RUN
    *flags = flags_of(ax);
    return n - left;
}

/* ---- span by span ---- */

/* The host's instruction has a start-up cost of its own, about what it copies a page in. So pages that are neighbours on the host, too, are
 * done by one, but not so many that a request to leave would wait long: some microseconds. */
#define SPAN_MOST (64u << 10)

/* Offsets wrap at the end of the address size: how many of `n` items come before that. */
static uint64_t wrap_span(const struct string *s, uint64_t off, uint64_t n)
{
    uint64_t fits = s->back ? (off >> s->shift) + 1
                            : (s->mask - off + 1) >> s->shift; /* not for 64-bit addresses: they don't wrap in a page */
    return n < fits ? n : fits;
}

/* The same, and no further than the segment's limit. */
static uint64_t limit_span(struct soft_cpu *cpu, const struct string *s, enum cpu_seg seg, uint64_t off,
                           enum soft_access acc, uint64_t n)
{
    uint64_t a;
    n = wrap_span(s, off, n);
    uint64_t low = s->back ? off - ((n - 1) << s->shift) : off;
    if (n > 1 && soft_linear(cpu, seg, low, (uint32_t)(n << s->shift), acc, &a) != SOFT_OK)
        return 1; /* the limit is somewhere in between */
    return n;
}

/* How many of `items`, the first of which is at `a`, lie in its page, which the TLB has, and in those next to it that are so on the host, too.
 * No walks: they would set A and D for pages that the instruction may never reach. */
static uint64_t contiguous(struct soft_cpu *cpu, const struct string *s, uint64_t a, enum soft_access acc,
                           uint64_t items)
{
    uint64_t start = a & PAGE_MASK, end = start + PAGE_SIZE, most = items << s->shift;
    gva_t from = GVA(start);
    if (items > SPAN_MOST >> s->shift) most = SPAN_MOST;
    if (s->back) {
        while (a + s->size - start < most && soft_tlb_goes_on(cpu, from, GVA(start - PAGE_SIZE), acc))
            start -= PAGE_SIZE;
        return ((a - start) >> s->shift) + 1;
    }
    while (end - a < most && soft_tlb_goes_on(cpu, from, GVA(end), acc)) end += PAGE_SIZE;
    return (end - a) >> s->shift;
}

/* Finds as many of `items` from offset `reg` on as lie in one span; false when the item-by-item way is needed (which also finds the
 * exception to raise, if that is why). */
static bool find_span(struct soft_cpu *cpu, const struct string *s, enum cpu_seg seg, unsigned reg,
                      enum soft_access acc, uint64_t items, struct span *p)
{
    uint64_t off = cpu->gpr[reg] & s->mask, a;
    if (soft_linear(cpu, seg, off, s->size, acc, &a) != SOFT_OK) return false;
    uint64_t in_page = a & ~PAGE_MASK;
    if (in_page + s->size > PAGE_SIZE) return false;
    uint64_t n = s->back ? (in_page >> s->shift) + 1 : (PAGE_SIZE - in_page) >> s->shift;
    n = n < items ? n : items;
    if (n > 1 && !soft_code64(cpu))
        n = limit_span(cpu, s, seg, off, acc, n);
    else if (n > 1 && s->addr_size == 4)
        n = wrap_span(s, off, n);
    if (!n) return false;
    if (soft_tlb_lookup(cpu, GVA(a), acc, (enum soft_mmu_idx)cpu->mmu_idx, &p->host, &p->gpa) != SOFT_OK) return false;
    p->code = false;
    if (!p->host && acc == ACC_WRITE && !(cpu->dr[7] & 0xff)) {
        p->host = soft_ram(soft_memory(cpu), p->gpa.v, s->size, true);
        p->code = true;
    }
    if (n < items && p->host && !p->code && s->addr_size == 8 && soft_code64(cpu))
        n = contiguous(cpu, s, a, acc, items);
    p->items = n;
    return p->host;
}

/* Translated code hears of what was written; what is left of the span is for the next time: the two sides' end at different places. */
static void pass(struct soft_cpu *cpu, const struct string *s, struct span *p, uint64_t items)
{
    uint64_t len = items << s->shift, by = s->back ? -len : len;
    if (p->code) soft_code_written(cpu, GPA(s->back ? p->gpa.v - (len - s->size) : p->gpa.v), (uint32_t)len);
    p->items -= items;
    p->host += by;
    p->gpa.v += by;
}

static void set_flags(struct soft_cpu *cpu, uint64_t flags)
{
    cpu->rflags = (cpu->rflags & ~(uint64_t)FL_ARITH) | flags;
}

/* Finds both sides' spans, as far as they are not known, and returns how many of `items` both have; 0 when one cannot be found. */
static uint64_t find_spans(struct soft_cpu *cpu, struct string *s, uint64_t items)
{
    bool write = s->kind == STR_MOVS || s->kind == STR_STOS;
    if (s->source) {
        if (!s->src.items && !find_span(cpu, s, s->seg, R_RSI, ACC_READ, items, &s->src)) return 0;
        if (s->src.items < items) items = s->src.items;
    }
    if (!s->dst.items && !find_span(cpu, s, SEG_ES, R_RDI, write ? ACC_WRITE : ACC_READ, items, &s->dst)) return 0;
    return s->dst.items < items ? s->dst.items : items;
}

/* Does up to `items` items; 0 when the next one needs the slow way. */
static uint64_t bulk(struct soft_cpu *cpu, struct string *s, uint64_t items)
{
    uint64_t flags = cpu->rflags & FL_ARITH;
    if (s->kind == STR_INS || s->kind == STR_OUTS || s->kind == STR_LODS) return 0;
    if (cpu->mmu_idx == MMU_USER && (cpu->rflags & FL_AC) && (cpu->cr0 & CR0_AM))
        return 0; /* every item's alignment counts */
    items = find_spans(cpu, s, items);
    if (!items) return 0;
    uint8_t *src = s->src.host, *dst = s->dst.host;
    switch (s->kind) {
    case STR_MOVS: host_movs(dst, src, items, s->size, s->back); break;
    case STR_STOS: host_stos(dst, cpu->gpr[R_RAX], items, s->size, s->back); break;
    case STR_CMPS: items = host_cmps(src, dst, items, s, &flags); break;
    default: items = host_scas(cpu->gpr[R_RAX], dst, items, s, &flags); break;
    }
    set_flags(cpu, flags);
    if (s->source) pass(cpu, s, &s->src, items);
    pass(cpu, s, &s->dst, items);
    return items;
}

/* ---- item by item ---- */

static enum soft_result load_item(struct soft_cpu *cpu, const struct string *s, enum cpu_seg seg, unsigned reg,
                                  uint64_t *v)
{
    uint64_t a;
    enum soft_result r = soft_linear(cpu, seg, cpu->gpr[reg] & s->mask, s->size, ACC_READ, &a);
    return r == SOFT_OK ? soft_load_u64(cpu, a, v, s->size) : r;
}

static enum soft_result store_item(struct soft_cpu *cpu, const struct string *s, uint64_t v)
{
    uint64_t a;
    enum soft_result r = soft_linear(cpu, SEG_ES, cpu->gpr[R_RDI] & s->mask, s->size, ACC_WRITE, &a);
    return r == SOFT_OK ? soft_store_u64(cpu, a, v, s->size) : r;
}

static void compare(struct soft_cpu *cpu, uint64_t a, uint64_t b, unsigned size)
{
    unsigned up = 64 - size * 8; /* at the top of a register all flags but AF and PF come out right */
    uint64_t ax, low;
    __asm__("cmpq %2, %1\n\tlahf\n\tseto %%al" : "=&a"(ax) : "r"(a << up), "r"(b << up) : "cc");
    __asm__("cmpb %2, %1\n\tlahf\n\tseto %%al" : "=&a"(low) : "q"((uint8_t)a), "q"((uint8_t)b) : "cc");
    uint64_t of_low = FL_AF | FL_PF;
    set_flags(cpu, (flags_of(ax) & ~of_low) | (flags_of(low) & of_low));
}

/* A port is read only once the store is known to succeed: reading has side effects. */
static enum soft_result ins_item(struct soft_cpu *cpu, const struct string *s)
{
    uint64_t a;
    uint32_t v;
    enum soft_result r = soft_linear(cpu, SEG_ES, cpu->gpr[R_RDI] & s->mask, s->size, ACC_WRITE, &a);
    if (r == SOFT_OK) r = soft_probe_store(cpu, GVA(a), s->size, (enum soft_mmu_idx)cpu->mmu_idx);
    if (r == SOFT_OK) r = soft_port_read(cpu, (uint16_t)cpu->gpr[R_RDX], s->size, &v);
    return r == SOFT_OK ? soft_store_u64(cpu, a, v, s->size) : r;
}

/* One item without moving the registers. SOFT_EXIT: an access that must be made first (CMPS, LODS, INS ...), but for OUTS the item
 * is done and leaves with the exit; `*done` tells. */
static enum soft_result item(struct soft_cpu *cpu, const struct string *s, bool *done)
{
    uint64_t v, w;
    enum soft_result r;
    *done = false;
    switch (s->kind) {
    case STR_MOVS:
        r = load_item(cpu, s, s->seg, R_RSI, &v);
        if (r == SOFT_OK) r = store_item(cpu, s, v);
        break;
    case STR_STOS: r = store_item(cpu, s, cpu->gpr[R_RAX]); break;
    case STR_LODS:
        r = load_item(cpu, s, s->seg, R_RSI, &v);
        if (r == SOFT_OK) soft_gpr_write(cpu, R_RAX, v, s->size);
        break;
    case STR_CMPS:
        r = load_item(cpu, s, s->seg, R_RSI, &v);
        if (r == SOFT_OK) r = load_item(cpu, s, SEG_ES, R_RDI, &w);
        if (r == SOFT_OK) compare(cpu, v, w, s->size);
        break;
    case STR_SCAS:
        r = load_item(cpu, s, SEG_ES, R_RDI, &w);
        if (r == SOFT_OK) compare(cpu, cpu->gpr[R_RAX], w, s->size);
        break;
    case STR_INS: r = ins_item(cpu, s); break;
    default:
        r = load_item(cpu, s, s->seg, R_RSI, &v);
        if (r == SOFT_OK) r = soft_port_write(cpu, (uint16_t)cpu->gpr[R_RDX], s->size, (uint32_t)v);
        *done = r == SOFT_EXIT;
        break;
    }
    *done = *done || r == SOFT_OK;
    return r;
}

/* Is the instruction over after the items done so far? */
static bool finished(const struct soft_cpu *cpu, const struct string *s)
{
    if (!s->rep || !(cpu->gpr[R_RCX] & s->mask)) return true;
    if (s->kind != STR_CMPS && s->kind != STR_SCAS) return false;
    return (s->rep == 1) != !!(cpu->rflags & FL_ZF);
}

/* Something wants its turn between two iterations: the VMM (MMIO), a trap, or whoever asked the vCPU to leave. */
static bool must_leave(struct soft_cpu *cpu)
{
    return cpu->io.count || cpu->io.writes || cpu->pending_db || (cpu->rflags & FL_TF) ||
           atomic_load_explicit(&cpu->exit_request, memory_order_relaxed);
}

enum soft_result soft_string_insn(struct soft_cpu *cpu, const struct insn *in)
{
    struct string s = {0};
    if (!describe(cpu, in, &s)) return SOFT_NOT_MINE;
    /* Before RCX is looked at: CPUs refuse a forbidden port also when there would be no iteration. */
    if ((s.kind == STR_INS || s.kind == STR_OUTS) && soft_port_check(cpu, (uint16_t)cpu->gpr[R_RDX], s.size) != SOFT_OK)
        return SOFT_FAULT;
    if (s.rep && !(cpu->gpr[R_RCX] & s.mask)) {
        soft_advance(cpu, in);
        return SOFT_OK;
    }
    for (uint64_t bytes = 0; bytes < STRING_BUDGET;) {
        enum soft_result r = SOFT_OK;
        uint64_t items = s.rep ? cpu->gpr[R_RCX] & s.mask : 1;
        items = bulk(cpu, &s, cpu->rflags & FL_TF ? 1 : items);
        cpu->exc.pending = false; /* bulk() tries what may not work; item() raises what is to be raised */
        if (!items) {
            bool done;
            s.src.items = s.dst.items = 0;
            r = item(cpu, &s, &done);
            if (!done) return r;
            items = 1;
        }
        advance(cpu, &s, items);
        bytes += items * s.size;
        if (finished(cpu, &s)) {
            soft_advance(cpu, in);
            return r;
        }
        if (r != SOFT_OK || must_leave(cpu)) {
            soft_io_retire(cpu);
            return r == SOFT_OK ? SOFT_RESTART : r;
        }
    }
    return SOFT_RESTART;
}
