/* Page walks against a model that reads the manual another way: it collects the entries first and judges afterwards. */
#include <pthread.h>
#include <stdatomic.h>

#include "tests/unit/soft_rig.h"

/* ---- the model ---- */

struct model_entry {
    uint64_t gpa, value;
    unsigned shift; /* its position: 39, 30, 21, 12 (or 22, 12) */
};

struct model {
    bool fault;
    uint32_t code;
    uint64_t gpa, size;
    bool readable, writable, global;
    struct model_entry e[4];
    unsigned n;
};

static uint64_t model_read(uint64_t gpa, unsigned size)
{
    uint64_t v = 0;
    if (!guest_memory_read(&rig.memory, GPA(gpa), &v, size)) v = size == 8 ? ~0ull : 0xffffffffull;
    return v;
}

static bool has_ps(const struct soft_cpu *c, const struct model_entry *e)
{
    if (e->shift == 22) return (c->cr4 & CR4_PSE) && (e->value & RP_PS);
    return (e->shift == 21 || e->shift == 30) && (e->value & RP_PS);
}

/* Reserved bits by the tables of SDM vol. 3 chapter 4: 4-4 to 4-6 (32-bit), 4-8 to 4-11 (PAE), 4-15 to 4-20 (4-level). */
static uint64_t reserved(const struct soft_cpu *c, const struct model_entry *e)
{
    bool ps = has_ps(c, e);
    uint64_t r = 0;
    if (!(c->cr4 & CR4_PAE)) return ps ? 0x3fe000 : 0;
    for (unsigned b = SOFT_PHYS_BITS; b < 52; b++) r |= 1ull << b;
    if (!(c->efer & EFER_LMA))
        for (unsigned b = 52; b < 63; b++) r |= 1ull << b;
    if (!(c->efer & EFER_NXE)) r |= RP_NX;
    if (e->shift == 39) r |= RP_PS;
    for (unsigned b = 13; ps && b < e->shift; b++) r |= 1ull << b;
    return r;
}

static bool allowed(const struct soft_cpu *c, const struct model *m, enum soft_access acc, enum soft_mmu_idx idx)
{
    bool u = true, w = true, nx = false;
    for (unsigned i = 0; i < m->n; i++) {
        u &= !!(m->e[i].value & RP_U);
        w &= !!(m->e[i].value & RP_W);
        nx |= (c->efer & EFER_NXE) && (c->cr4 & CR4_PAE) && (m->e[i].value & RP_NX);
    }
    bool user_mode = idx == MMU_USER;
    switch (acc) {
    case ACC_EXEC:
        if (nx) return false;
        if (user_mode) return u;
        return !u || !(c->cr4 & CR4_SMEP);
    case ACC_WRITE:
        if (user_mode) return u && w;
        if (u && (c->cr4 & CR4_SMAP) && idx != MMU_KERNEL_AC) return false;
        return w || !(c->cr0 & CR0_WP);
    default:
        if (user_mode) return u;
        return !(u && (c->cr4 & CR4_SMAP) && idx != MMU_KERNEL_AC);
    }
}

static struct model model_walk(const struct soft_cpu *c, uint64_t a, enum soft_access acc, enum soft_mmu_idx idx)
{
    struct model m = {0};
    static const unsigned long_shifts[] = {39, 30, 21, 12}, pae_shifts[] = {21, 12}, old_shifts[] = {22, 12};
    bool lm = c->efer & EFER_LMA, pae = c->cr4 & CR4_PAE;
    const unsigned *shifts = lm ? long_shifts : pae ? pae_shifts : old_shifts;
    unsigned levels = lm ? 4 : 2, bits = pae ? 9 : 10, width = pae ? 8 : 4;
    uint64_t table = lm ? c->cr3 & 0x3ffffffff000 : c->cr3 & 0xfffff000;
    uint32_t ctx = (acc == ACC_WRITE ? PF_W : 0) | (idx == MMU_USER ? PF_U : 0);
    if (acc == ACC_EXEC && ((c->cr4 & CR4_SMEP) || (pae && (c->efer & EFER_NXE)))) ctx |= PF_I;
    m.fault = true;
    m.code = ctx;
    if (!lm && pae) {
        uint64_t p = c->pdpte[a >> 30 & 3];
        if (!(p & 1)) return m;
        table = p & 0x3ffffffff000;
    }
    for (unsigned l = 0; l < levels; l++) {
        struct model_entry *e = &m.e[m.n++];
        e->shift = shifts[l];
        e->gpa = table + (a >> e->shift & ((1u << bits) - 1)) * width;
        e->value = model_read(e->gpa, width);
        if (!(e->value & 1)) return m;
        if (e->value & reserved(c, e)) {
            m.code = ctx | PF_P | PF_RSVD;
            return m;
        }
        if (has_ps(c, e)) break;
        table = e->value & 0x3ffffffff000;
    }
    const struct model_entry *leaf = &m.e[m.n - 1];
    m.code = ctx | PF_P;
    m.size = 1ull << leaf->shift;
    m.gpa = (leaf->value & 0x3ffffffff000 & ~(m.size - 1)) | (a & (m.size - 1));
    m.fault = !allowed(c, &m, acc, idx);
    m.readable = allowed(c, &m, ACC_READ, idx);
    m.writable = allowed(c, &m, ACC_WRITE, idx) && (acc == ACC_WRITE || (leaf->value & RP_D));
    m.global = (leaf->value & RP_G) && (c->cr4 & CR4_PGE);
    return m;
}

/* ---- comparing ---- */

static unsigned long compared, faults;

static bool writable_ram(uint64_t gpa)
{
    return guest_memory_ptr(&rig.memory, GPA(gpa), 4, true) != NULL;
}

/* Walks and compares result, error code and every entry afterwards with the model. */
static void check_one_walk(uint64_t a, enum soft_access acc, enum soft_mmu_idx idx)
{
    struct soft_cpu *c = rig.cpu;
    unsigned width = c->cr4 & CR4_PAE ? 8 : 4;
    struct model m = model_walk(c, a, acc, idx);
    struct mmu_result r;
    c->exc.pending = false;
    enum soft_result res = soft_walk(c, GVA(a), acc, idx, false, &r);
    compared++;
    faults += m.fault;
    assert_int_equal(res, m.fault ? SOFT_FAULT : SOFT_OK);
    for (unsigned i = 0; i < m.n; i++) {
        uint64_t want = m.e[i].value;
        if (!m.fault && writable_ram(m.e[i].gpa)) {
            want |= RP_A;
            if (i == m.n - 1 && acc == ACC_WRITE) want |= RP_D;
        }
        uint64_t is = model_read(m.e[i].gpa, width);
        /* One entry can serve at several levels when tables point at themselves: then just ask for A. */
        bool twice = false;
        for (unsigned k = 0; k < m.n; k++) twice |= k != i && m.e[k].gpa == m.e[i].gpa;
        if (!twice) assert_int_equal(is, want);
    }
    if (m.fault) {
        assert_true(c->exc.pending && c->exc.has_error);
        assert_int_equal(c->exc.vector, EXC_PF);
        assert_int_equal(c->exc.cr2, a);
        assert_int_equal(c->exc.error, m.code);
        return;
    }
    assert_false(c->exc.pending);
    assert_int_equal(r.gpa.v, m.gpa);
    assert_int_equal(r.page_size, m.size);
    assert_int_equal(r.readable, m.readable);
    if (writable_ram(m.e[m.n - 1].gpa)) assert_int_equal(r.writable, m.writable);
    assert_int_equal(r.global, m.global);
}

/* Once from the root, and once with what the first walk left in the paging-structure cache. */
static void check_walk(uint64_t a, enum soft_access acc, enum soft_mmu_idx idx)
{
    soft_tlb_flush_nonglobal(rig.cpu);
    check_one_walk(a, acc, idx);
    check_one_walk(a, acc, idx);
}

enum paging { P_LONG, P_PAE, P_OLD };

static void set_paging(enum paging p)
{
    struct soft_cpu *c = rig.cpu;
    c->cr4 = p == P_OLD ? CR4_PSE : CR4_PAE;
    c->efer = p == P_LONG ? EFER_LMA | EFER_LME : 0;
}

/* ---- tests ---- */

#define LEAF_SHIFTS_LONG 3
/* Builds tables for address `a` with the leaf at depth `depth` (levels from the top) and returns where the entries are. */
static unsigned build(enum paging p, unsigned depth, uint64_t a, void *where[4])
{
    static const unsigned shifts[3][4] = {{39, 30, 21, 12}, {21, 12}, {22, 12}};
    unsigned width = p == P_OLD ? 4 : 8;
    uint64_t table = RIG_TABLES;
    rig.cpu->cr3 = RIG_TABLES;
    if (p == P_PAE) rig.cpu->pdpte[a >> 30 & 3] = RIG_TABLES | RP_P;
    for (unsigned i = 0; i < depth; i++) {
        unsigned s = shifts[p][i];
        where[i] = rig_ram(table + (a >> s & (p == P_OLD ? 0x3ff : 0x1ff)) * width);
        table += PAGE_SIZE;
    }
    return shifts[p][depth - 1];
}

static void put(enum paging p, void *where, uint64_t v)
{
    if (p == P_OLD)
        *(uint32_t *)where = (uint32_t)v;
    else
        *(uint64_t *)where = v;
}

static const struct {
    enum paging p;
    unsigned depth;
} shapes[] = {
    {P_LONG, 4}, {P_LONG, 3}, {P_LONG, 2}, {P_PAE, 2}, {P_PAE, 1}, {P_OLD, 2}, {P_OLD, 1},
};

/* Every combination of rights at the leaf and at one level above, controls, privilege and kind of access. */
static void test_permissions(void **state)
{
    (void)state;
    struct soft_cpu *c = rig.cpu;
    for (unsigned sh = 0; sh < sizeof(shapes) / sizeof(*shapes); sh++) {
        enum paging p = shapes[sh].p;
        unsigned depth = shapes[sh].depth;
        uint64_t a = 0x40201000;
        void *where[4];
        set_paging(p);
        unsigned shift = build(p, depth, a, where);
        uint64_t cr4 = c->cr4, efer = c->efer;
        for (unsigned combo = 0; combo < 64 * 32; combo++) {
            unsigned leaf = combo & 7, upper = combo >> 3 & 7, ctl = combo >> 6;
            c->cr4 = cr4 | (ctl & 1 ? CR4_SMEP : 0) | (ctl & 2 ? CR4_SMAP : 0);
            c->cr0 = CR0_PE | CR0_PG | (ctl & 4 ? CR0_WP : 0);
            c->efer = efer | (ctl & 8 ? EFER_NXE : 0); /* 32-bit tables know no NX, whatever EFER says */
            for (unsigned acc = 0; acc < 3; acc++)
                for (unsigned idx = 0; idx < MMU_IDX_COUNT; idx++) {
                    for (unsigned i = 0; i < depth; i++) {
                        bool is_leaf = i == depth - 1;
                        unsigned rights = is_leaf ? leaf : i == (sh + combo) % (depth > 1 ? depth - 1 : 1) ? upper : 3;
                        uint64_t v = RP_P | (rights & 1 ? RP_W : 0) | (rights & 2 ? RP_U : 0) |
                                     (rights & 4 && p != P_OLD ? RP_NX : 0);
                        v |= is_leaf ? (shift > 12 ? RP_PS : 0) | (ctl & 16 ? RP_D : 0)
                                     : RIG_TABLES + (i + 1) * PAGE_SIZE;
                        put(p, where[i], v);
                    }
                    check_walk(a, (enum soft_access)acc, (enum soft_mmu_idx)idx);
                }
        }
    }
    assert_true(compared > 100000 && faults > 10000 && compared - faults > 10000);
}

/* Each bit of each entry by itself: present, reserved, ignored, A, D, G, PS, NX. */
static void test_each_bit(void **state)
{
    (void)state;
    for (unsigned sh = 0; sh < sizeof(shapes) / sizeof(*shapes); sh++) {
        enum paging p = shapes[sh].p;
        unsigned depth = shapes[sh].depth;
        uint64_t a = 0x80605123;
        for (unsigned round = 0; round < 8; round++) {
            void *where[4];
            set_paging(p);
            unsigned shift = build(p, depth, a, where);
            if (round & 1 && p != P_OLD) rig.cpu->efer |= EFER_NXE;
            rig.cpu->cr4 |= round & 2 ? CR4_PGE : 0;
            if (round & 4) rig.cpu->cr4 &= ~(uint64_t)CR4_PSE;
            for (unsigned level = 0; level < depth; level++)
                for (unsigned bit = 0; bit < (p == P_OLD ? 32 : 64); bit++)
                    for (unsigned acc = 0; acc < 3; acc++) {
                        for (unsigned i = 0; i < depth; i++) {
                            uint64_t v = RP_P | RP_W | RP_U |
                                         (i == depth - 1 ? (shift > 12 ? RP_PS : 0) : RIG_TABLES + (i + 1) * PAGE_SIZE);
                            put(p, where[i], i == level ? v ^ 1ull << bit : v);
                        }
                        check_walk(a, (enum soft_access)acc, MMU_USER);
                    }
        }
    }
}

/* Tables full of noise, pointing anywhere, at themselves, and out of memory. */
static void test_noise(void **state)
{
    (void)state;
    struct soft_cpu *c = rig.cpu;
    for (unsigned round = 0; round < 60000; round++) {
        enum paging p = (enum paging)(rig_random() % 3);
        set_paging(p);
        c->cr4 |= rig_random() & (CR4_SMEP | CR4_SMAP | CR4_PGE | CR4_PSE);
        c->cr0 = CR0_PE | CR0_PG | (rig_random() & CR0_WP);
        if (p != P_OLD) c->efer |= rig_random() & EFER_NXE;
        static const uint64_t places[] = {RIG_TABLES,       RIG_TABLES + 0x1000, RIG_TABLES + 0x2000,
                                          RIG_HIGH_BASE,    RIG_ROM_BASE,        RIG_MMIO,
                                          RIG_RAM - 0x1000, 0x3ffffffff000,      0xfffff000};
        for (unsigned t = 0; t < 3; t++)
            for (unsigned k = 0; k < 4; k++) {
                uint64_t v = places[rig_random() % 9] | (rig_random() & 0xfff) | RP_P;
                if (rig_random() % 4 == 0) v |= rig_random() & RP_NX;
                if (rig_random() % 8 == 0) v ^= 1ull << rig_random() % 64;
                if (rig_random() % 4) v &= ~RP_PS;
                put(P_LONG, rig_ram(RIG_TABLES + t * PAGE_SIZE + (rig_random() & 3) * 8), v);
            }
        c->cr3 = places[rig_random() % 9] | (rig_random() & 0x18);
        for (unsigned i = 0; i < 4; i++) c->pdpte[i] = places[rig_random() % 9] | (rig_random() & 1);
        uint64_t a =
            (rig_random() & 3) << 39 | (rig_random() & 3) << 30 | (rig_random() & 3) << 21 | (rig_random() & 0x3fff);
        if (p != P_LONG) a = (uint32_t)a;
        check_walk(a, (enum soft_access)(rig_random() % 3), (enum soft_mmu_idx)(rig_random() % 3));
    }
}

static void test_no_paging(void **state)
{
    (void)state;
    struct mmu_result r;
    rig.cpu->cr0 = CR0_PE;
    rig.cpu->efer = 0;
    assert_int_equal(soft_walk(rig.cpu, GVA(0x123456789abull), ACC_WRITE, MMU_USER, false, &r), SOFT_OK);
    assert_int_equal(r.gpa.v, 0x456789ab);
    assert_true(r.readable && r.writable && !r.global && r.page_size == PAGE_SIZE);
}

static void test_not_canonical(void **state)
{
    (void)state;
    struct mmu_result r;
    rig_map(0x7ffffffff000, 0x5000, RP_P | RP_W);
    rig_map(0xffff800000000000, 0x6000, RP_P | RP_W);
    assert_int_equal(soft_walk(rig.cpu, GVA(0x7fffffffffff), ACC_READ, MMU_KERNEL, false, &r), SOFT_OK);
    assert_int_equal(soft_walk(rig.cpu, GVA(0xffff800000000000), ACC_READ, MMU_KERNEL, false, &r), SOFT_OK);
    assert_int_equal(soft_walk(rig.cpu, GVA(0x800000000000), ACC_READ, MMU_KERNEL, false, &r), SOFT_FAULT);
    assert_fault(EXC_GP, 0);
    assert_int_equal(soft_walk(rig.cpu, GVA(0xffff7fffffffffff), ACC_READ, MMU_KERNEL, true, &r), SOFT_FAULT);
    assert_false(rig.cpu->exc.pending);
}

static void test_probe(void **state)
{
    (void)state;
    struct mmu_result r;
    rig_map(0x5000, 0x7000, RP_P | RP_W);
    assert_int_equal(soft_walk(rig.cpu, GVA(0x5000), ACC_WRITE, MMU_KERNEL, true, &r), SOFT_OK);
    assert_int_equal(*rig_leaf(0x5000, 12) & (RP_A | RP_D), RP_A);
    assert_false(r.writable);
    assert_int_equal(soft_walk(rig.cpu, GVA(0x5000), ACC_READ, MMU_USER, true, &r), SOFT_FAULT);
    assert_int_equal(soft_walk(rig.cpu, GVA(0x6000), ACC_READ, MMU_USER, true, &r), SOFT_FAULT);
    assert_false(rig.cpu->exc.pending);
}

/* A table that holds translated code, too: the code must hear about its A bit. */
static void test_marks_in_code_page(void **state)
{
    (void)state;
    struct mmu_result r;
    rig_map(0x5000, 0x7000, RP_P | RP_W);
    uint64_t table = rig.next_table - PAGE_SIZE;
    rig.code_page[0] = table;
    assert_int_equal(soft_walk(rig.cpu, GVA(0x5000), ACC_READ, MMU_KERNEL, false, &r), SOFT_OK);
    assert_int_equal(rig.code_writes, 1);
    assert_int_equal(rig.code_write_gpa, table + 5 * 8);
    assert_int_equal(rig.code_write_len, 8);
    assert_int_equal(soft_walk(rig.cpu, GVA(0x5000), ACC_READ, MMU_KERNEL, false, &r), SOFT_OK);
    assert_int_equal(rig.code_writes, 1);
}

static uint64_t walk_gpa(uint64_t a)
{
    struct mmu_result r;
    assert_int_equal(soft_walk(rig.cpu, GVA(a), ACC_READ, MMU_KERNEL, false, &r), SOFT_OK);
    return r.gpa.v;
}

/* Upper levels are remembered until a flush, whichever; rights that grew count at once. */
static void test_remembered(void **state)
{
    (void)state;
    struct mmu_result r;
    for (unsigned flush = 0; flush < 3; flush++) {
        rig_map(0x5000, 0x7000, RP_P | RP_W);
        rig_map(0x6000, 0x8000, RP_P | RP_W);
        uint64_t *pde = rig_leaf(0x5000, 21), old = *pde, *other = rig_ram(0x300000);
        other[6] = 0x9000 | RP_P | RP_W;
        soft_tlb_flush_all(rig.cpu);
        assert_int_equal(walk_gpa(0x5000), 0x7000);
        *pde = 0x300000 | RP_P | RP_W | RP_U;
        assert_int_equal(walk_gpa(0x6000),
                         0x8000); /* as on a processor: no flush, no promise; but it shows that walks are short */
        if (flush == 0) soft_tlb_flush_all(rig.cpu);
        if (flush == 1) soft_tlb_flush_nonglobal(rig.cpu);
        if (flush == 2)
            soft_tlb_flush_page(rig.cpu,
                                GVA(0x123456000)); /* INVLPG ends them for all addresses (SDM vol. 3 4.10.4.1) */
        assert_int_equal(walk_gpa(0x6000), 0x9000);
        *pde = old;
        soft_tlb_flush_all(rig.cpu);
        /* A read-only directory entry is remembered, then made writable without a flush. */
        *pde = old & ~(RP_W | RP_U);
        assert_int_equal(walk_gpa(0x5000), 0x7000);
        assert_int_equal(soft_walk(rig.cpu, GVA(0x5000), ACC_WRITE, MMU_KERNEL, false, &r), SOFT_FAULT);
        assert_fault(EXC_PF, PF_P | PF_W);
        *pde = old;
        assert_int_equal(soft_walk(rig.cpu, GVA(0x5000), ACC_WRITE, MMU_KERNEL, false, &r), SOFT_OK);
        assert_int_equal(soft_walk(rig.cpu, GVA(0x6000), ACC_READ, MMU_USER, false, &r), SOFT_FAULT);
        assert_fault(EXC_PF, PF_P | PF_U);
        rig_map(0x7000, 0x7000, 0); /* not present: found by the short way, reported by the long one */
        assert_int_equal(soft_walk(rig.cpu, GVA(0x7000), ACC_READ, MMU_KERNEL, false, &r), SOFT_FAULT);
        assert_fault(EXC_PF, 0);
        rig_map(0x7000, 0xa000, RP_P);
        assert_int_equal(walk_gpa(0x7123), 0xa123);
    }
}

/* Another vCPU takes pages away all the time: A and D must never appear in an entry that isn't present. */
static atomic_bool race_over;
static _Atomic unsigned race_bad;

static void *unmapper(void *entry)
{
    uint64_t *e = entry;
    for (unsigned round = 0; !atomic_load(&race_over); round++) {
        __atomic_store_n(e, 0x7000 | RP_P | RP_W, __ATOMIC_SEQ_CST);
        for (volatile unsigned i = 0; i < round % 64; i++) {
        }
        __atomic_exchange_n(e, 0xabc000, __ATOMIC_SEQ_CST);
        for (unsigned i = 0; i < 20; i++)
            if (__atomic_load_n(e, __ATOMIC_SEQ_CST) != 0xabc000) atomic_fetch_add(&race_bad, 1);
    }
    return NULL;
}

static void test_race(void **state)
{
    (void)state;
    pthread_t t;
    struct mmu_result r;
    rig_map(0x5000, 0x7000, RP_P | RP_W);
    assert_int_equal(pthread_create(&t, NULL, unmapper, rig_leaf(0x5000, 12)), 0);
    unsigned ok = 0, fault = 0;
    for (unsigned i = 0; i < 3000000 || (i < 30000000 && (!ok || !fault)); i++) {
        if (soft_walk(rig.cpu, GVA(0x5000), ACC_WRITE, MMU_KERNEL, false, &r) == SOFT_OK) {
            assert_int_equal(r.gpa.v, 0x7000);
            assert_true(r.writable);
            ok++;
        } else {
            fault++;
        }
    }
    atomic_store(&race_over, true);
    pthread_join(t, NULL);
    assert_int_equal(race_bad, 0);
    assert_true(ok > 0 && fault > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_permissions, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_each_bit, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_noise, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_no_paging, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_not_canonical, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_probe, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_marks_in_code_page, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_remembered, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_race, rig_setup, rig_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
