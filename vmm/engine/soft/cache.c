/* The code cache of one vCPU: finding, linking and dropping blocks; code written by the guest.
 *
 * Every vCPU translates for itself: no locks on the paths that matter, and code patching concerns one thread only. What vCPUs
 * share is one word per guest page that says who has translations of it. Memory of dead blocks is reclaimed by flushing the whole
 * cache when it is full; until then a dead block's entry leads back to C, so nobody needs to know who jumps to it. */
#include "vmm/engine/soft/emit.h"
#include "vmm/engine/soft/ram.h"
#include "vmm/engine/soft/xlat.h"

#define NEAR_MISS_LIMIT 64
#define COLD_CHUNK (1u << 20)
#define COLD_MOST (64u << 10) /* no block has more */

uint32_t soft_meta_alloc(struct soft_private *p, uint32_t size)
{
    uint32_t at = p->meta_used;
    size = (size + 7) & ~7u;
    if (at + size > META_SIZE) return 0;
    p->meta_used = at + size;
    return at;
}

bool soft_cache_low(const struct soft_private *p)
{
    return soft_code_room(p) < COLD_CHUNK + (128u << 10) || p->meta_used + (64u << 10) > META_SIZE;
}

uint8_t *soft_cold_room(struct soft_private *p)
{
    if (p->cold_end - p->cold_used < COLD_MOST) {
        p->cold_low -= COLD_CHUNK;
        p->cold_used = p->cold_low;
        p->cold_end = p->cold_low + COLD_CHUNK;
    }
    return p->code + p->cold_used;
}

static uint32_t hash_block(uint64_t gpa, uint64_t rip, uint32_t mode)
{
    uint64_t h = (gpa ^ (rip >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull ^ (uint64_t)mode << 40) * 0xff51afd7ed558ccdull;
    return (uint32_t)(h >> (64 - BLOCK_HASH_BITS));
}

static uint32_t hash_page(uint64_t gpa)
{
    return (uint32_t)((gpa >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> (64 - PAGE_HASH_BITS));
}

/* ---- which vCPUs have code of a page ---- */

static _Atomic uint64_t *code_word(const struct soft_cpu *cpu, uint64_t gpa)
{
    uint64_t n = gpa >> PAGE_SHIFT;
    return n < cpu->engine->code_pages ? &cpu->engine->code_map[n] : NULL;
}

bool soft_page_has_code(struct soft_cpu *cpu, gpa_t page)
{
    _Atomic uint64_t *w = code_word(cpu, page.v);
    return w && atomic_load_explicit(w, memory_order_seq_cst) != 0;
}

/* ---- messages between vCPUs ---- */

static void inbox_lock(struct soft_inbox *b)
{
    while (atomic_exchange_explicit(&b->lock, 1, memory_order_acquire)) __builtin_ia32_pause();
}

static void inbox_unlock(struct soft_inbox *b)
{
    atomic_store_explicit(&b->lock, 0, memory_order_release);
}

/* Returns the number that inbox.done must reach. */
static uint64_t post(struct soft_cpu *to, uint64_t gpa, uint32_t len)
{
    struct soft_inbox *b = &to->priv->inbox;
    inbox_lock(b);
    if (b->count < INBOX_SIZE) {
        b->msg[b->count].gpa = gpa;
        b->msg[b->count].len = len;
        b->count++;
    } else {
        b->overflow = true;
    }
    uint64_t n = ++b->posted;
    atomic_store(&to->inbox_flag, 1);
    inbox_unlock(b);
    atomic_store(&to->exit_request, 1);
    return n;
}

static void kill_range(struct soft_cpu *cpu, uint64_t gpa, uint32_t len);

static void drop_everything(struct soft_cpu *cpu)
{
    soft_cache_flush(cpu);
    soft_tlb_flush_all(cpu);
}

void soft_drain_inbox(struct soft_cpu *cpu)
{
    struct soft_inbox *b = &cpu->priv->inbox;
    inbox_lock(b);
    atomic_store(&cpu->inbox_flag, 0);
    if (b->overflow) drop_everything(cpu);
    for (unsigned i = 0; i < b->count && !b->overflow; i++) {
        if (b->msg[i].len)
            kill_range(cpu, b->msg[i].gpa, b->msg[i].len);
        else
            soft_tlb_protect_page(cpu, GPA(b->msg[i].gpa));
    }
    b->count = 0;
    b->overflow = false;
    atomic_store(&b->done, b->posted);
    inbox_unlock(b);
}

/* Waits until `other` has taken the message, or runs no guest code (then it looks into its inbox before it does). */
static void await(struct soft_cpu *cpu, struct soft_cpu *other, uint64_t number)
{
    unsigned spins = 0;
    while (atomic_load(&other->priv->inbox.done) < number && atomic_load(&other->in_run)) {
        if (atomic_load(&cpu->inbox_flag)) soft_drain_inbox(cpu); /* it may be waiting for us likewise */
        if (++spins < 200) {
            __builtin_ia32_pause();
        } else {
            long r;
            __asm__ volatile("syscall" : "=a"(r) : "a"(24 /* sched_yield */) : "rcx", "r11", "memory");
        }
    }
}

/* Returns when no vCPU can write to the page any more without looking whether it has code. */
static void protect_page(struct soft_cpu *cpu, uint64_t page)
{
    uint64_t number[ENGINE_MAX_VCPUS];
    struct soft_engine *g = cpu->engine;
    soft_tlb_protect_page(cpu, GPA(page));
    for (unsigned i = 0; i < g->vcpus; i++)
        if (i != cpu->id && g->cpu[i]) number[i] = post(g->cpu[i], page, 0);
    for (unsigned i = 0; i < g->vcpus; i++)
        if (i != cpu->id && g->cpu[i]) await(cpu, g->cpu[i], number[i]);
}

/* This vCPU is about to translate code of this page: from now on every write to the page must be seen, by whichever vCPU. The write
 * tags of the TLBs carry that, so others must have dropped theirs before the first byte of code is read. */
static void claim_page(struct soft_cpu *cpu, uint64_t page)
{
    _Atomic uint64_t *w = code_word(cpu, page);
    uint64_t bit = 1ull << cpu->id;
    if (!w || (atomic_load(w) & bit)) return;
    struct soft_engine *g = cpu->engine;
    _Atomic uint32_t *claims = &g->claims[hash_page(page) % CLAIM_LOCKS];
    atomic_fetch_add(claims, 1);
    /* It was protected before, unless another vCPU is about to: then do it all once more rather than wait. */
    if (atomic_fetch_or(w, bit) == 0 || atomic_load(claims) > 1) protect_page(cpu, page);
    atomic_fetch_sub(claims, 1);
}

static bool claimed(const struct soft_cpu *cpu, uint64_t page)
{
    _Atomic uint64_t *w = code_word(cpu, page);
    return !w || (atomic_load(w) >> cpu->id & 1);
}

/* A page, and the one that the block may go on in (or the same again). While this vCPU waits for others it takes their messages:
 * one of them may drop the last code that it had of such a page, and with it the claim. */
static void claim_pages(struct soft_cpu *cpu, uint64_t page, uint64_t next)
{
    do {
        claim_page(cpu, page);
        claim_page(cpu, next);
    } while (!claimed(cpu, page) || !claimed(cpu, next));
}

static void release_page(struct soft_cpu *cpu, uint64_t page)
{
    _Atomic uint64_t *w = code_word(cpu, page);
    if (w) atomic_fetch_and(w, ~(1ull << cpu->id));
}

/* ---- killing blocks ---- */

static void unhash(struct soft_private *p, struct block *b, uint32_t off)
{
    uint32_t *at = &p->hash[hash_block(b->gpa, b->rip, b->mode)];
    while (*at && *at != off) at = &((struct block *)meta_ptr(p, *at))->next_hash;
    if (*at) *at = b->next_hash;
}

static void kill_block(struct soft_private *p, struct block *b, uint32_t off)
{
    unhash(p, b, off);
    b->dead = true;
    for (unsigned n = 0; n < (b->strip ? 2u : 1u); n++) {
        struct emitter e = {p->code + (n ? b->strip : b->host)};
        emit_store_gs32_imm(&e, GS(exit_info), off);
        emit_jmp(&e, p->code + p->stub_exit[HX_DEAD]);
    }
}

/* Walks one of the two lists of blocks by page. A block across a border is in both: dead ones met in the other are taken out then. */
static unsigned kill_listed(struct soft_private *p, bool second, uint64_t gpa, uint32_t len, bool *left)
{
    uint64_t page = gpa & PAGE_MASK;
    uint32_t *at = second ? &p->page2_hash[hash_page(page)] : &p->page_hash[hash_page(page)];
    unsigned killed = 0;
    while (*at) {
        uint32_t off = *at;
        struct block *b = meta_ptr(p, off);
        uint32_t *next = second ? &b->next_page2 : &b->next_page;
        uint64_t start = second ? b->gpa2 : b->gpa;
        uint64_t end =
            second ? b->gpa2 + b->guest_len : b->gpa + b->guest_len; /* in the second page: at most that far */
        bool here = (start & PAGE_MASK) == page;
        bool hit = here && !b->dead && gpa < end && start < gpa + len;
        if (hit) {
            kill_block(p, b, off);
            killed++;
        } else if (here && !b->dead) {
            *left = true;
        }
        if (b->dead)
            *at = *next;
        else
            at = next;
    }
    return killed;
}

/* Drops this vCPU's blocks that overlap [gpa, gpa+len) (in one page); returns how many. */
static unsigned kill_overlapping(struct soft_cpu *cpu, uint64_t gpa, uint32_t len, bool *left)
{
    *left = false;
    unsigned killed = kill_listed(cpu->priv, false, gpa, len, left) + kill_listed(cpu->priv, true, gpa, len, left);
    cpu->stat[ST_KILLED] += killed;
    return killed;
}

static void kill_range(struct soft_cpu *cpu, uint64_t gpa, uint32_t len)
{
    struct soft_private *p = cpu->priv;
    while (len) {
        uint64_t page = gpa & PAGE_MASK;
        uint32_t n = (uint32_t)(page + PAGE_SIZE - gpa);
        if (n > len) n = len;
        bool left;
        unsigned killed = kill_overlapping(cpu, gpa, n, &left);
        /* A page that is written again and again beside its code holds data by now: give it back to the fast path. */
        unsigned k = (page >> PAGE_SHIFT) & 63;
        if (killed || p->near_miss[k].page != page) {
            p->near_miss[k].page = page;
            p->near_miss[k].misses = 0;
        } else if (++p->near_miss[k].misses > NEAR_MISS_LIMIT && left) {
            kill_overlapping(cpu, page, PAGE_SIZE, &left);
        }
        if (!left) release_page(cpu, page);
        gpa += n;
        len -= n;
    }
}

void soft_code_written(struct soft_cpu *cpu, gpa_t a, uint32_t len)
{
    struct soft_engine *g = cpu->engine;
    uint64_t others = 0;
    soft_write_fence();
    for (uint64_t page = a.v & PAGE_MASK; page < a.v + len; page += PAGE_SIZE) {
        _Atomic uint64_t *w = code_word(cpu, page);
        if (w) others |= atomic_load(w);
    }
    if (others & 1ull << cpu->id) kill_range(cpu, a.v, len);
    others &= ~(1ull << cpu->id);
    for (unsigned i = 0; others && i < g->vcpus; i++)
        if (others & 1ull << i && g->cpu[i]) post(g->cpu[i], a.v, len);
}

void soft_cache_flush(struct soft_cpu *cpu)
{
    struct soft_private *p = cpu->priv;
    soft_space_reset(cpu);
    soft_zero(p->hash, sizeof p->hash);
    for (uint32_t i = 0; i < 1u << PAGE_HASH_BITS; i++) {
        for (uint32_t at = p->page_hash[i]; at; at = ((struct block *)meta_ptr(p, at))->next_page)
            release_page(cpu, ((struct block *)meta_ptr(p, at))->gpa);
        for (uint32_t at = p->page2_hash[i]; at; at = ((struct block *)meta_ptr(p, at))->next_page2)
            release_page(cpu, ((struct block *)meta_ptr(p, at))->gpa2);
        p->page_hash[i] = 0;
        p->page2_hash[i] = 0;
    }
    soft_forget_trials(cpu);
    p->ordered = 0;
    p->code_used = p->code_stubs_end;
    p->cold_used = p->cold_end = p->cold_low = CODE_CACHE_SIZE;
    p->meta_used = 64; /* offset 0 means none */
    p->generation++;
    cpu->stat[ST_CACHE_FLUSH]++;
}

/* Whoever still jumps to a dead block goes on to the one that took its place. */
void soft_forward_dead(struct soft_cpu *cpu, uint32_t dead, const struct block *to)
{
    struct soft_private *p = cpu->priv;
    const struct block *b = meta_ptr(p, dead);
    if (((b->mode ^ to->mode) & ~MODE_NEST) || b->gpa != to->gpa || b->rip != to->rip ||
        (b->gpa2 != to->gpa2 && to->gpa2 != NO_PAGE))
        return; /* another page is mapped there now: only a look-up may lead to it */
    struct emitter e = {p->code + b->host}, strip = {p->code + b->strip};
    emit_jmp(&e, p->code + to->host);
    if (b->strip) emit_jmp(&strip, p->code + to->host);
}

/* ---- finding code ---- */

/* Bytes outside RAM read as ones: an undefined instruction. */
enum soft_result soft_fetch(struct soft_cpu *cpu, uint8_t *bytes, unsigned *avail)
{
    uint64_t linear = cpu->rip;
    if (!soft_code64(cpu)) linear = (uint32_t)(cpu->rip + cpu->seg[SEG_CS].base);
    unsigned n = 0;
    *avail = 0;
    while (n < 15) {
        struct code_page c;
        uint64_t at = linear + n;
        if (!soft_code64(cpu)) {
            at = (uint32_t)at;
            if (cpu->rip + n > cpu->seg[SEG_CS].limit) {
                if (n) break;
                return soft_raise_err(cpu, EXC_GP, 0);
            }
        } else if ((int64_t)(at << 16) >> 16 != (int64_t)at) {
            if (n) break;
            return soft_raise_err(cpu, EXC_GP, 0);
        }
        enum soft_result res = soft_code_page(cpu, at, &c);
        if (res != SOFT_OK) {
            if (n == 0) return res;
            cpu->exc.pending = false; /* only if the instruction reaches that far */
            break;
        }
        unsigned room = (unsigned)(PAGE_SIZE - (at & ~PAGE_MASK)), k = 15 - n < room ? 15 - n : room;
        for (unsigned i = 0; i < k; i++) bytes[n + i] = c.host ? c.host[(at & ~PAGE_MASK) + i] : 0xff;
        n += k;
    }
    *avail = n;
    return SOFT_OK;
}

static void insert(struct soft_cpu *cpu, struct block *b)
{
    struct soft_private *p = cpu->priv;
    uint32_t off = (uint32_t)((uint8_t *)b - p->meta);
    if (p->ordered < BLOCKS_MAX) p->order[p->ordered++] = off;
    uint32_t *h = &p->hash[hash_block(b->gpa, b->rip, b->mode)];
    b->next_hash = *h;
    *h = off;
    uint32_t *g = &p->page_hash[hash_page(b->gpa)];
    b->next_page = *g;
    *g = off;
    if (b->gpa2 == NO_PAGE) return;
    uint32_t *g2 = &p->page2_hash[hash_page(b->gpa2)];
    b->next_page2 = *g2;
    *g2 = off;
}

/* Is the second page of a block across a border still the one it was made from? */
static bool second_page_same(struct soft_cpu *cpu, struct block *b)
{
    struct code_page next;
    if (b->gpa2 == NO_PAGE) return true;
    if (soft_code_page(cpu, (b->rip | ~PAGE_MASK) + 1, &next) == SOFT_OK) {
        b->global &= next.global;
        return next.gpa == b->gpa2;
    }
    cpu->exc.pending = false;
    return false;
}

/* A block that begins near the end of its page may go on in the next, so that a loop across the border is as fast as others. */
#define NEAR_END 128u

static bool next_page(struct soft_cpu *cpu, uint64_t rip, uint32_t mode, struct code_page *next)
{
    if ((rip & ~PAGE_MASK) < PAGE_SIZE - (mode & MODE_NEST ? NEST_BYTES : NEAR_END)) return false;
    if (soft_code_page(cpu, (rip | ~PAGE_MASK) + 1, next) != SOFT_OK) {
        cpu->exc.pending = false; /* stepping will raise it, when execution gets there */
        return false;
    }
    return next->host != NULL;
}

/* 64-bit code only. NULL with *res SOFT_OK: this place must be stepped. */
struct block *soft_find_block(struct soft_cpu *cpu, uint32_t extra_mode, enum soft_result *res)
{
    struct soft_private *p = cpu->priv;
    struct code_page page;
    uint64_t rip = cpu->rip;
    uint32_t mode = cpu->mode | extra_mode;
    *res = SOFT_OK;
    if ((int64_t)(rip << 16) >> 16 != (int64_t)rip) {
        *res = soft_raise_err(cpu, EXC_GP, 0);
        return NULL;
    }
    *res = soft_code_page(cpu, rip, &page);
    if (*res != SOFT_OK || !page.host) return NULL;
    uint64_t gpa = page.gpa + (rip & ~PAGE_MASK);
    for (uint32_t at = p->hash[hash_block(gpa, rip, mode)]; at;) {
        struct block *b = meta_ptr(p, at);
        if (b->gpa == gpa && b->rip == rip && b->mode == mode && second_page_same(cpu, b)) {
            b->global &= page.global; /* the page may be mapped otherwise than when the block was made */
            return b;
        }
        at = b->next_hash;
    }
    soft_fpu_park(cpu);
    if (soft_cache_low(p)) {
        soft_cache_flush(cpu);
        *res = soft_code_page(cpu, rip, &page); /* what was known of the page is gone as well */
        if (*res != SOFT_OK || !page.host) return NULL;
    }
    struct code_page next;
    bool two = next_page(cpu, rip, mode, &next);
    claim_pages(cpu, page.gpa, two ? next.gpa : page.gpa);
    struct block *b = soft_translate(cpu, rip, &page, two ? &next : NULL, mode);
    if (!b) return NULL;
    cpu->stat[ST_BLOCKS]++;
    insert(cpu, b);
    return b;
}

/* The block whose host code contains this host address. */
struct block *soft_block_of_host(struct soft_cpu *cpu, uint64_t host_pc)
{
    struct soft_private *p = cpu->priv;
    uint64_t off = host_pc - (uint64_t)(uintptr_t)p->code;
    uint32_t lo = 0, hi = p->ordered;
    if (off >= p->code_used) return NULL;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if (((struct block *)meta_ptr(p, p->order[mid]))->host <= off)
            lo = mid + 1;
        else
            hi = mid;
    }
    struct block *b = lo ? meta_ptr(p, p->order[lo - 1]) : NULL;
    return b && off < b->host_end ? b : NULL;
}

void soft_retranslate(struct soft_cpu *cpu, struct block *b)
{
    if (!b->dead) kill_block(cpu->priv, b, (uint32_t)((uint8_t *)b - cpu->priv->meta));
}

void soft_end_blocks_at(struct soft_cpu *cpu, const struct block *nest)
{
    struct soft_private *p = cpu->priv;
    for (uint32_t at = p->page_hash[hash_page(nest->gpa)]; at;) {
        struct block *b = meta_ptr(p, at);
        bool runs_into = b->rip < nest->rip && nest->rip - b->rip < b->guest_len && !(b->mode & MODE_NEST);
        at = b->next_page;
        if (runs_into && ((b->gpa ^ nest->gpa) & PAGE_MASK) == 0) soft_retranslate(cpu, b);
    }
}

/* From any thread. */
void soft_dma_written(struct soft_engine *g, gpa_t a, uint64_t len)
{
    for (uint64_t page = a.v & PAGE_MASK; page < a.v + len; page += PAGE_SIZE) {
        uint64_t n = page >> PAGE_SHIFT;
        uint64_t who = n < g->code_pages ? atomic_load(&g->code_map[n]) : 0;
        for (unsigned i = 0; who && i < g->vcpus; i++)
            if (who & 1ull << i && g->cpu[i]) post(g->cpu[i], page, (uint32_t)PAGE_SIZE);
    }
}
