// Code and data under changing address spaces: chains of calls through pages that each space maps its own way, by direct calls, indirect
// ones, and an instruction across each page border. A model says what must come out; every flush that the manual asks for is made and no
// other, so what comes out must be exact. First without PCIDs, then with more of them than anyone keeps.
#include "kernel.h"

#define SPACES 11u  /* PCIDs 1, 2, 3 ... and some far away */
#define PAGES 8u    /* of the window, from WINDOW on */
#define VARIANTS 3u /* of each page's content */
#define WINDOW TEST_VA
/* Offset of a page's function; its first bytes belong to the instruction that runs in from the page before. */
#define ENTRY 64u
#define ACROSS (PAGE - 2)
#define TO_ACROSS 256u /* a jump there */
#define DATA 2048u
#define KEEP (1ul << 63)

static u64 content[PAGES][VARIANTS]; /* physical addresses */
static u64 *table[SPACES];           /* PML4s */
static u64 *leaf[SPACES];            /* page tables of the window */
static u8 now[SPACES][PAGES];        /* the model: which variant is mapped */
static bool dirty[SPACES];           /* changed since its entries were dropped, and not flushed singly */
static bool shared[PAGES];           /* mapped global, the same in all spaces */
static u64 seed = 0x1234567;
static unsigned space, last; /* current, and the one before */
static bool pcids;

static u32 pick(u32 n)
{
    return (u32)(random64(&seed) >> 33) % n;
}

static u32 value(unsigned page, unsigned variant)
{
    return 0x01010101u * (page * VARIANTS + variant + 1);
}

static void put(u8 **p, const char *bytes, unsigned n)
{
    memcpy(*p, bytes, n);
    *p += n;
}

static void put32(u8 **p, u32 v)
{
    memcpy(*p, &v, 4);
    *p += 4;
}

/* f(page) = value + 3 * f(page + 1): calls the next page's function directly (even pages) or through a register (odd ones). */
static void fill(u8 *page, unsigned i, unsigned variant)
{
    u32 v = value(i, variant);
    u8 *p = page;
    memcpy(p, (u8 *)&v + 1, 3); /* the rest of "mov $imm, %eax" that began in the page before; then ret */
    p[3] = 0xc3;
    memcpy(page + DATA, &v, 4);
    page[ACROSS] = 0xb8;
    page[ACROSS + 1] = (u8)v;
    p = page + TO_ACROSS;
    put(&p, "\xe9", 1);
    put32(&p, (u32)(ACROSS - TO_ACROSS - 5));
    p = page + ENTRY;
    if (i == PAGES - 1) {
        put(&p, "\xb8", 1);
        put32(&p, v);
        put(&p, "\xc3", 1);
        return;
    }
    if (i & 1) {
        put(&p, "\xba", 1); /* mov $next, %edx; call *%rdx */
        put32(&p, (u32)(WINDOW + (i + 1) * PAGE + ENTRY));
        put(&p, "\xff\xd2", 2);
    } else {
        put(&p, "\xe8", 1);
        put32(&p, (u32)(PAGE - 5));
    }
    put(&p, "\x8d\x04\x40\x05", 4); /* lea (%rax,%rax,2), %eax; add $v, %eax */
    put32(&p, v);
    put(&p, "\xc3", 1);
}

static void map(unsigned s, unsigned page, unsigned variant)
{
    now[s][page] = (u8)variant;
    ((volatile u64 *)leaf[s])[page] = content[page][variant] | PTE_P | PTE_W | (shared[page] ? PTE_G : 0);
}

static void make_spaces(void)
{
    for (unsigned i = 0; i < PAGES; i++)
        for (unsigned v = 0; v < VARIANTS; v++) {
            content[i][v] = (u64)page_alloc();
            fill((u8 *)content[i][v], i, v);
        }
    shared[2] = true;
    shared[5] = shared[6] = true;
    for (unsigned s = 0; s < SPACES; s++) {
        u64 *pdpt = page_alloc(), *pd = page_alloc();
        table[s] = page_alloc();
        leaf[s] = page_alloc();
        memcpy(table[s], boot_pml4, PAGE);
        memcpy(pdpt, phys(boot_pml4[0] & PTE_ADDR), PAGE);
        table[s][0] = (u64)pdpt | 7;
        pdpt[WINDOW >> 30] = (u64)pd | 7;
        pd[0] = (u64)leaf[s] | 7;
        for (unsigned i = 0; i < PAGES; i++)
            map(s, i, shared[i] ? 0 : i < 4 ? pick(VARIANTS) : 1); /* the last ones agree */
    }
}

static u64 pcid_of(unsigned s)
{
    return s < 8 ? s + 1 : 0x100 * s + s % 3 + 1; /* those would share a slot of a small table with others */
}

static void go(unsigned s, bool keep)
{
    last = space;
    space = s;
    if (!pcids) {
        set_cr3((u64)table[s]);
        dirty[s] = false;
        return;
    }
    if (dirty[s]) keep = false;
    set_cr3((u64)table[s] | pcid_of(s) | (keep ? KEEP : 0));
    if (!keep) dirty[s] = false;
}

static u32 chain(unsigned s, unsigned from)
{
    u32 r = 0;
    for (unsigned i = PAGES; i-- > from;) r = value(i, now[s][i]) + (i == PAGES - 1 ? 0 : 3 * r);
    return r;
}

static bool right(void)
{
    unsigned from = pick(PAGES), page = pick(PAGES);
    u32 got;
    __asm__ volatile("call *%1" : "=a"(got) : "r"(WINDOW + from * PAGE + ENTRY) : "rdx", "memory", "cc");
    bool ok = CHECK_EQ(got, chain(space, from));
    if (from < PAGES - 1) {
        __asm__ volatile("call *%1"
                         : "=a"(got)
                         : "r"(WINDOW + from * PAGE + (pick(4) ? TO_ACROSS : ACROSS))
                         : "memory", "cc");
        ok &= CHECK_EQ(got, (value(from + 1, now[space][from + 1]) & ~0xffu) | (u8)value(from, now[space][from]));
    }
    ok &= CHECK_EQ(*(volatile u32 *)(WINDOW + page * PAGE + DATA), value(page, now[space][page]));
    return ok;
}

static void invpcid(u64 type, u64 pcid, u64 va)
{
    u64 d[2] = {pcid, va};
    __asm__ volatile("invpcid %0, %1" ::"m"(d), "r"(type) : "memory");
}

static unsigned private_page(void)
{
    unsigned page;
    do page = pick(PAGES);
    while (shared[page]);
    return page;
}

static void remap_here(void)
{
    unsigned page = private_page();
    u64 va = WINDOW + page * PAGE + pick(PAGE);
    if (pick(4) == 0) { /* by way of nothing: filling it in needs no flush */
        ((volatile u64 *)leaf[space])[page] = 0;
        invlpg(va);
        map(space, page, pick(VARIANTS));
        return;
    }
    map(space, page, pick(VARIANTS));
    switch (pick(pcids && HAS_INVPCID ? 4 : 2)) {
    case 0: invlpg(va); break;
    case 1: go(space, false); break;
    case 2: invpcid(0, pcid_of(space), va); break;
    default: invpcid(1, pcid_of(space), 0); break;
    }
}

static void remap_there(void)
{
    unsigned s = pick(SPACES), page = private_page();
    if (s == space) return;
    map(s, page, pick(VARIANTS));
    if (!pcids) return;
    unsigned how = HAS_INVPCID ? pick(5) : 4;
    if (how == 0) invpcid(0, pcid_of(s), WINDOW + page * PAGE);
    if (how == 1) invpcid(1, pcid_of(s), 0);
    if (how == 2) invpcid(2, 0, 0);
    if (how == 3) invpcid(3, 0, 0);
    if (how == 4) dirty[s] = true;
}

static void remap_shared(void)
{
    unsigned page = pick(3) ? 5 + pick(2) : 2, variant = pick(VARIANTS);
    for (unsigned s = 0; s < SPACES; s++) map(s, page, variant);
    if (pick(3)) {
        invlpg(WINDOW + page * PAGE); /* of all PCIDs, when it is global */
    } else {
        set_cr4(cr4() ^ CR4_PGE);
        right();
        set_cr4(cr4() ^ CR4_PGE);
    }
}

static bool rounds(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        unsigned what = pick(16);
        if (what < 9)
            go(pick(3) ? pick(SPACES) : last, true);
        else if (what < 10)
            go(pick(SPACES), false);
        else if (what < 12)
            remap_here();
        else if (what < 15)
            remap_there();
        else
            remap_shared();
        for (unsigned k = 0; k < 3; k++)
            if (!right()) {
                print("  round %u, PCIDs %u, what %u, space %u\n", i, pcids, what, space);
                return false;
            }
    }
    return true;
}

int main(void)
{
    u64 base = cr3();
    set_cr4(cr4() | CR4_PGE);
    make_spaces();
    go(0, false);
    if (rounds(4000) && HAS_PCID) {
        for (unsigned turn = 0; turn < 3; turn++) {
            set_cr3(base);
            set_cr4(cr4() | CR4_PCIDE);
            pcids = true;
            for (unsigned s = 0; s < SPACES; s++) dirty[s] = true;
            go(turn, false);
            if (!rounds(8000)) break;
            set_cr3(base);
            set_cr4(cr4() & ~CR4_PCIDE); /* drops all entries */
            pcids = false;
            go(1, false);
            if (!rounds(500)) break;
        }
    }
    pcids = false;
    set_cr3(base);
    if (!HAS_PCID) skip("PCID");
    return done();
}
