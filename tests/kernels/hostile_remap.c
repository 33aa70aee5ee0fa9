// One CPU changes page tables under four that run and read through them: shoot-downs as kernels make them (change, interrupt, INVLPG or
// CR3 there, wait), beside changes that tell nobody because they only add what was missing. Values only grow: nobody may see one older
// than the last shoot-down, nor one that was never there. Another CPU rewrites accessed and dirty bits of the same entries.
// RUN: -c 6
#include "kernel.h"

#define WINDOW TEST_VA
#define PAGES 8u
#define STEPS 400u
#define SECONDS 3ul /* on a busy host fewer steps are enough */
#define FLUSH_VECTOR 0x41
#define DATA 64u

static u64 pages; /* PAGES * 4 of them: what page i shows for value v is at index v % 4 */
static volatile u64 *leaf;
static volatile u32 least[PAGES], most[PAGES];
static volatile u32 stop, wrong, looks[MAX_CPUS], acks, target;
static unsigned readers;

static u64 frame(unsigned i, u32 v)
{
    return pages + (i * 4 + v % 4) * PAGE;
}

/* "mov $v, %eax; ret", and v as data. The frame is not mapped by anyone any more. */
static void fill(unsigned i, u32 v)
{
    u8 *p = phys(frame(i, v));
    *(volatile u32 *)(p + DATA) = v;
    p[3] = 0xb8;
    *(volatile u32 *)(p + 4) = v;
    p[8] = 0xc3;
}

static void on_flush(struct frame *f)
{
    (void)f;
    u32 t = target;
    if (t & 1)
        set_cr3(cr3());
    else
        invlpg(WINDOW + (t >> 1) * PAGE);
    apic_eoi();
    __atomic_add_fetch(&acks, 1, __ATOMIC_SEQ_CST);
}

static void look(unsigned i, bool run)
{
    u64 va = WINDOW + i * PAGE;
    u32 before = least[i], v = run ? ((u32(*)(void))(va + 3))() : *(volatile u32 *)(va + DATA), after = most[i];
    if (v < before || v > after) __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
}

static void reader(void *arg)
{
    u64 me = (u64)arg, seed = me * 77 + 1;
    sti();
    while (!stop) {
        u64 r = random64(&seed);
        for (unsigned k = 0; k < 8; k++) look((unsigned)(r >> 8 * k) % PAGES, r >> (8 * k + 7) & 1);
        looks[me]++;
    }
    cli();
}

/* Takes A and D away where they are set, as a kernel that looks for pages to swap does: the walks of the others put them back. */
static void ager(void *arg)
{
    (void)arg;
    u64 seed = 99;
    sti();
    while (!stop) {
        unsigned i = (unsigned)(random64(&seed) >> 20) % PAGES;
        __atomic_and_fetch(&leaf[i], ~(PTE_A | PTE_D), __ATOMIC_SEQ_CST);
        looks[5]++;
        pause();
    }
    cli();
}

static void shoot(unsigned i, bool all)
{
    acks = 0;
    target = i << 1 | all;
    for (unsigned c = 1; c <= readers + 1; c++) apic_ipi(c, 0x4000 | FLUSH_VECTOR);
    if (all)
        set_cr3(cr3());
    else
        invlpg(WINDOW + i * PAGE);
    while (acks < readers + 1) pause();
}

static void step(unsigned i, unsigned how)
{
    u32 v = most[i] + 1;
    fill(i, v);
    most[i] = v;
    u64 entry = frame(i, v) | PTE_P | PTE_W, old = leaf[i];
    while (!__atomic_compare_exchange_n(&leaf[i], &old, entry, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    shoot(i, how);
    least[i] = v;
}

int main(void)
{
    if (cpus() < 6) panic("needs -c 6");
    readers = 4;
    pages = (u64)pages_alloc(PAGES * 4, PAGE);
    leaf = pte_of(WINDOW, 1);
    for (unsigned i = 0; i < PAGES; i++) {
        fill(i, 0);
        leaf[i] = frame(i, 0) | PTE_P | PTE_W;
    }
    on_vector(FLUSH_VECTOR, on_flush);
    smp_start();
    for (u64 c = 1; c <= readers; c++) smp_run((unsigned)c, reader, (void *)c);
    smp_run(5, ager, NULL);
    u64 seed = 5;
    u64 end = rdtsc() + SECONDS * 1000 * tsc_khz();
    for (unsigned n = 0; n < STEPS && (rdtsc() < end || n < STEPS / 8); n++) {
        u64 r = random64(&seed);
        step((unsigned)(r >> 8) % PAGES, r >> 40 & 1);
        look((unsigned)(r >> 16) % PAGES, r >> 41 & 1);
    }
    for (unsigned c = 1; c <= 5; c++) { /* everyone got on with it */
        u32 now = looks[c];
        while (looks[c] < now + 2) pause();
    }
    stop = 1;
    for (unsigned c = 1; c <= 5; c++) smp_wait(c);
    CHECK_EQ(wrong, 0);
    for (unsigned i = 0; i < PAGES; i++) CHECK_EQ(*(volatile u32 *)(WINDOW + i * PAGE + DATA), most[i]);
    return done();
}
