/* The software TLB: what fills it, what empties it, and loads and stores through it. */
#include "tests/unit/soft_rig.h"

#define RW (RP_P | RP_W | RP_U)

static struct tlb_entry *entry(enum soft_mmu_idx idx, uint64_t a)
{
    return &rig.cpu->tlb[idx][(a >> 12) & (TLB_SIZE - 1)];
}

static uint8_t *look(uint64_t a, enum soft_access acc, enum soft_mmu_idx idx)
{
    uint8_t *host = NULL;
    gpa_t gpa = GPA(~0ull);
    assert_int_equal(soft_tlb_lookup(rig.cpu, GVA(a), acc, idx, &host, &gpa), SOFT_OK);
    return host;
}

static uint64_t where(uint64_t a, enum soft_access acc)
{
    uint8_t *host;
    gpa_t gpa = GPA(~0ull);
    assert_int_equal(soft_tlb_lookup(rig.cpu, GVA(a), acc, MMU_KERNEL, &host, &gpa), SOFT_OK);
    return gpa.v;
}

static void test_fill(void **state)
{
    (void)state;
    rig_map(0x5000, 0x7000, RP_P | RP_W);
    assert_ptr_equal(look(0x5123, ACC_READ, MMU_KERNEL), rig.host[0] + 0x7123);
    struct tlb_entry *e = entry(MMU_KERNEL, 0x5000);
    assert_int_equal(e->tag_read, 0x5000);
    assert_int_equal(e->tag_write, TLB_INVALID); /* clean: the first write must come back to set D */
    assert_int_equal(entry(MMU_USER, 0x5000)->tag_read, TLB_INVALID);
    assert_ptr_equal(look(0x5ff8, ACC_WRITE, MMU_KERNEL), rig.host[0] + 0x7ff8);
    assert_int_equal(e->tag_write, 0x5000);
    assert_true(*rig_leaf(0x5000, 12) & RP_D);
    assert_ptr_equal((uint8_t *)(uintptr_t)(e->delta + 0x5000), rig.host[0] + 0x7000);

    rig_map(0x6000, 0x7000, RP_P | RP_U | RP_D | RP_W); /* dirty already: a read fills both */
    look(0x6000, ACC_READ, MMU_USER);
    assert_int_equal(entry(MMU_USER, 0x6000)->tag_write, 0x6000);
    rig_map(0x8000, 0x7000, RP_P | RP_U | RP_D);
    look(0x8000, ACC_READ, MMU_USER);
    assert_int_equal(entry(MMU_USER, 0x8000)->tag_write, TLB_INVALID);
    uint8_t *host;
    gpa_t gpa;
    assert_int_equal(soft_tlb_lookup(rig.cpu, GVA(0x8010), ACC_WRITE, MMU_USER, &host, &gpa), SOFT_FAULT);
    assert_fault(EXC_PF, PF_P | PF_W | PF_U);
}

static void test_not_ram(void **state)
{
    (void)state;
    rig_map(0x5000, RIG_MMIO, RW);
    assert_null(look(0x5008, ACC_READ, MMU_KERNEL));
    assert_int_equal(where(0x5008, ACC_WRITE), RIG_MMIO + 8);
    assert_int_equal(entry(MMU_KERNEL, 0x5000)->tag_read, TLB_INVALID);
    rig_map(0x6000, RIG_ROM_BASE, RW);
    assert_ptr_equal(look(0x6010, ACC_READ, MMU_KERNEL), rig.host[1] + 0x10);
    assert_null(look(0x6010, ACC_WRITE, MMU_KERNEL));
    assert_int_equal(entry(MMU_KERNEL, 0x6000)->tag_write, TLB_INVALID);
    rig_map(0x7000, RIG_RAM - PAGE_SIZE, RW);
    assert_non_null(look(0x7fff, ACC_READ, MMU_KERNEL));
    rig_map(0x8000, RIG_HIGH_BASE, RW);
    assert_ptr_equal(look(0x8001, ACC_WRITE, MMU_KERNEL), rig.host[2] + 1);
    assert_ptr_equal(look(0x8001, ACC_EXEC, MMU_KERNEL), rig.host[2] + 1);
    assert_null(look(0x5001, ACC_EXEC, MMU_KERNEL));
}

/* As the TLB stub of translated code does. */
static void put_site(enum soft_mmu_idx idx, unsigned kind, unsigned i, uint64_t a)
{
    struct site_slot *s = &rig.cpu->site[idx][kind][i];
    uint64_t page = a & PAGE_MASK, delta = entry(idx, a)->delta;
    *s = (struct site_slot){page, i < SITE_COUNT / 2 ? delta : delta + page};
    rig.cpu->site_list[idx][kind][rig.cpu->sites_filled[idx][kind]++] = (uint32_t)((uint8_t *)s - (uint8_t *)rig.cpu);
}

static void test_code_page(void **state)
{
    (void)state;
    uint64_t v = 0x1122334455667788;
    rig_map(0x5000, 0x7000, RW);
    look(0x5000, ACC_WRITE, MMU_KERNEL);
    look(0x5000, ACC_WRITE, MMU_KERNEL_AC);
    put_site(MMU_KERNEL, 1, 7, 0x5000);
    rig.code_page[1] = 0x7000;
    soft_tlb_protect_page(rig.cpu, GPA(0x7000));
    assert_int_equal(entry(MMU_KERNEL, 0x5000)->tag_write, TLB_INVALID);
    assert_int_equal(entry(MMU_KERNEL_AC, 0x5000)->tag_write, TLB_INVALID);
    assert_int_equal(entry(MMU_KERNEL, 0x5000)->tag_read, 0x5000);
    assert_int_equal(rig.cpu->site[MMU_KERNEL][1][7].tag, TLB_INVALID);

    assert_null(look(0x5010, ACC_WRITE, MMU_KERNEL));
    assert_int_equal(where(0x5010, ACC_WRITE), 0x7010);
    assert_int_equal(soft_store(rig.cpu, GVA(0x5010), &v, 8, MMU_KERNEL), SOFT_OK);
    assert_int_equal(rig.code_writes, 1);
    assert_int_equal(rig.code_write_gpa, 0x7010);
    assert_int_equal(rig.code_write_len, 8);
    assert_memory_equal(rig.host[0] + 0x7010, &v, 8);
    /* A page without an entry yet behaves the same. */
    rig_map(0x9000, 0x7000, RW);
    assert_int_equal(soft_store(rig.cpu, GVA(0x9020), &v, 8, MMU_KERNEL), SOFT_OK);
    assert_int_equal(rig.code_writes, 2);
    /* When the code is gone, the fast way comes back. */
    rig.code_page[1] = ~0ull;
    assert_non_null(look(0x5010, ACC_WRITE, MMU_KERNEL));
    assert_int_equal(entry(MMU_KERNEL, 0x5000)->tag_write, 0x5000);
    /* Crossing from a plain page into one with code: only that part counts. */
    rig_map(0xa000, 0xa000, RW);
    rig_map(0xb000, 0xb000, RW);
    rig.code_page[0] = 0xb000;
    assert_int_equal(soft_store(rig.cpu, GVA(0xaffd), &v, 8, MMU_KERNEL), SOFT_OK);
    assert_int_equal(rig.code_writes, 3);
    assert_int_equal(rig.code_write_gpa, 0xb000);
    assert_int_equal(rig.code_write_len, 5);
    assert_memory_equal(rig.host[0] + 0xaffd, &v, 8);
}

/* Writing tags that a clean or read-only page must not get through the "no walk needed" way of code pages. */
static void test_code_page_clean(void **state)
{
    (void)state;
    uint8_t *host;
    gpa_t gpa;
    rig.code_page[0] = 0x7000;
    rig_map(0x5000, 0x7000, RW);
    look(0x5000, ACC_READ, MMU_KERNEL);
    rig.code_page[0] = ~0ull;
    assert_non_null(look(0x5000, ACC_WRITE, MMU_KERNEL));
    assert_true(*rig_leaf(0x5000, 12) & RP_D);
    rig_map(0x6000, 0x8000, RP_P | RP_D);
    look(0x6000, ACC_READ, MMU_KERNEL);
    assert_int_equal(soft_tlb_lookup(rig.cpu, GVA(0x6000), ACC_WRITE, MMU_KERNEL, &host, &gpa), SOFT_FAULT);
    assert_fault(EXC_PF, PF_P | PF_W);
}

/* ---- flushes ---- */

static bool cached(enum soft_mmu_idx idx, uint64_t a)
{
    return entry(idx, a)->tag_read == (a & PAGE_MASK) || entry(idx, a)->tag_write == (a & PAGE_MASK);
}

static void test_flush_page(void **state)
{
    (void)state;
    for (uint64_t a = 0x5000; a < 0x9000; a += 0x1000) {
        rig_map(a, a, RW | RP_G);
        for (unsigned idx = 0; idx < 3; idx++) look(a, ACC_WRITE, (enum soft_mmu_idx)idx);
    }
    put_site(MMU_USER, 0, 0, 0x6000);
    put_site(MMU_KERNEL, 1, SITE_COUNT - 1, 0x6000);
    soft_tlb_flush_page(rig.cpu, GVA(0x6abc));
    assert_int_equal(rig.translation_flushes, 1);
    for (unsigned idx = 0; idx < 3; idx++) {
        assert_false(cached((enum soft_mmu_idx)idx, 0x6000)); /* global ones, too (SDM vol. 3 4.10.4.1) */
        assert_true(cached((enum soft_mmu_idx)idx, 0x5000));
        assert_true(cached((enum soft_mmu_idx)idx, 0x7000));
    }
    assert_int_equal(rig.cpu->site[MMU_USER][0][0].tag, TLB_INVALID);
    assert_int_equal(rig.cpu->site[MMU_KERNEL][1][SITE_COUNT - 1].tag, TLB_INVALID);
}

static void test_flush_large_page(void **state)
{
    (void)state;
    *rig_leaf(0x40000000, 21) = 0 | RW | RP_PS | RP_D;
    *rig_leaf(0x40200000, 21) = 0x200000 | RW | RP_PS | RP_D;
    *rig_leaf(0x8000000000, 30) = 0 | RW | RP_PS | RP_D;
    look(0x40001000, ACC_READ, MMU_KERNEL);
    look(0x401ff000, ACC_READ, MMU_USER);
    look(0x8000005000, ACC_READ, MMU_KERNEL);
    look(0x8000206000, ACC_READ, MMU_KERNEL);
    put_site(MMU_USER, 0, 3, 0x401ff000);
    assert_ptr_equal(look(0x401ff123, ACC_READ, MMU_USER), rig.host[0] + 0x1ff123);
    /* An address of the page that has no entry itself ends those that have. */
    soft_tlb_flush_page(rig.cpu, GVA(0x40123456));
    assert_false(cached(MMU_KERNEL, 0x40001000));
    assert_false(cached(MMU_USER, 0x401ff000));
    assert_int_equal(rig.cpu->site[MMU_USER][0][3].tag, TLB_INVALID);
    assert_true(cached(MMU_KERNEL, 0x8000005000));
    soft_tlb_flush_page(rig.cpu, GVA(0x8030000000));
    assert_false(cached(MMU_KERNEL, 0x8000005000));
    assert_false(cached(MMU_KERNEL, 0x8000206000));
}

/* A site outlives the entry it came from when another page takes that; INVLPG must still end it. */
static void test_flush_evicted(void **state)
{
    (void)state;
    uint64_t a = 0x5000, b = a + (uint64_t)TLB_SIZE * PAGE_SIZE;
    rig_map(a, 0x5000, RW);
    rig_map(b, 0x6000, RW);
    look(a, ACC_READ, MMU_KERNEL);
    put_site(MMU_KERNEL, 0, 11, a);
    look(b, ACC_READ, MMU_KERNEL);
    assert_false(cached(MMU_KERNEL, a));
    soft_tlb_flush_page(rig.cpu, GVA(a));
    assert_int_equal(rig.cpu->site[MMU_KERNEL][0][11].tag, TLB_INVALID);
    assert_true(cached(MMU_KERNEL, b));
}

/* INVLPG and MOV CR3 leave the slots of other pages alone. */
static void test_sites_kept(void **state)
{
    (void)state;
    for (uint64_t a = 0x5000; a < 0x9000; a += 0x1000) {
        rig_map(a, a, RW | (a < 0x7000 ? RP_G : 0));
        look(a, ACC_WRITE, MMU_KERNEL);
        look(a, ACC_WRITE, MMU_USER);
    }
    for (unsigned i = 0; i < 4; i++) {
        put_site(MMU_KERNEL, 1, i, 0x5000 + i * 0x1000);
        put_site(MMU_KERNEL, 0, SITE_COUNT - 1 - i, 0x5000 + i * 0x1000);
    }
    const struct site_slot(*s)[SITE_COUNT] = rig.cpu->site[MMU_KERNEL];
    soft_tlb_flush_page(rig.cpu, GVA(0x6000));
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(s[1][i].tag, i == 1 ? TLB_INVALID : 0x5000 + i * 0x1000);
        assert_int_equal(s[0][SITE_COUNT - 1 - i].tag, i == 1 ? TLB_INVALID : 0x5000 + i * 0x1000);
    }
    rig.code_page[0] = 0x8000; /* code now: only the slot for writes goes */
    soft_tlb_protect_page(rig.cpu, GPA(0x8000));
    assert_int_equal(s[1][3].tag, TLB_INVALID);
    assert_int_equal(s[0][SITE_COUNT - 1 - 3].tag, 0x8000);
    soft_tlb_flush_nonglobal(rig.cpu);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(s[1][i].tag, i == 0 ? 0x5000 : TLB_INVALID);
        assert_int_equal(s[0][SITE_COUNT - 1 - i].tag, i == 0 ? 0x5000 : TLB_INVALID);
    }
    /* One that was filled while the page was not global yet, and another page was there: not the one that the TLB calls global. */
    put_site(MMU_KERNEL, 0, 7, 0x5000);
    rig.cpu->site[MMU_KERNEL][0][7].delta += 0x3000;
    look(0x7000, ACC_READ, MMU_KERNEL);
    soft_tlb_flush_nonglobal(rig.cpu);
    assert_int_equal(s[0][7].tag, TLB_INVALID);
    assert_int_equal(s[1][0].tag, 0x5000);
    /* After many searches all go; what must go always goes. */
    for (unsigned n = 0; n < 50; n++) {
        uint64_t a = 0x5000 + n % 2 * 0x1000;
        look(a, ACC_WRITE, MMU_KERNEL);
        put_site(MMU_KERNEL, 1, 20, a);
        soft_tlb_flush_page(rig.cpu, GVA(a));
        assert_int_equal(s[1][20].tag, TLB_INVALID);
    }
}

/* 4 MiB pages of 32-bit paging: both halves go. */
static void test_flush_4m_page(void **state)
{
    (void)state;
    rig.cpu->efer = 0;
    rig.cpu->cr4 = CR4_PSE;
    *(uint32_t *)rig_ram(RIG_TABLES + 0x100 * 4) = 0 | RW | RP_PS;
    look(0x40001000, ACC_READ, MMU_KERNEL);
    look(0x40201000, ACC_READ, MMU_KERNEL);
    soft_tlb_flush_page(rig.cpu, GVA(0x40300000));
    assert_false(cached(MMU_KERNEL, 0x40001000));
    assert_false(cached(MMU_KERNEL, 0x40201000));
}

static void test_flush_nonglobal(void **state)
{
    (void)state;
    rig_map(0x5000, 0x5000, RW | RP_G);
    rig_map(0x6000, 0x6000, RW);
    look(0x5000, ACC_WRITE, MMU_KERNEL);
    look(0x6000, ACC_WRITE, MMU_KERNEL);
    look(0x6000, ACC_WRITE, MMU_USER);
    put_site(MMU_KERNEL, 0, 9, 0x6000);
    soft_tlb_flush_nonglobal(rig.cpu);
    assert_true(cached(MMU_KERNEL, 0x5000));
    assert_false(cached(MMU_KERNEL, 0x6000));
    assert_false(cached(MMU_USER, 0x6000));
    assert_int_equal(rig.cpu->site[MMU_KERNEL][0][9].tag, TLB_INVALID);
    /* Sites filled from entries that survived must go, too. */
    put_site(MMU_KERNEL, 1, 4, 0x5000);
    soft_tlb_flush_all(rig.cpu);
    assert_false(cached(MMU_KERNEL, 0x5000));
    assert_int_equal(rig.cpu->site[MMU_KERNEL][1][4].tag, TLB_INVALID);
}

/* Without CR4.PGE the G bit means nothing. */
static void test_global_needs_pge(void **state)
{
    (void)state;
    rig.cpu->cr4 &= ~(uint64_t)CR4_PGE;
    rig_map(0x5000, 0x5000, RW | RP_G);
    look(0x5000, ACC_WRITE, MMU_KERNEL);
    soft_tlb_flush_nonglobal(rig.cpu);
    assert_false(cached(MMU_KERNEL, 0x5000));
}

/* No valid entry may be forgotten by the bookkeeping, whatever the order of fills and flushes. */
static void test_flush_random(void **state)
{
    (void)state;
    static uint8_t kind[4096]; /* of page i at 0x10000000 + i pages: 0 local, 1 global */
    for (unsigned i = 0; i < 4096; i++) {
        kind[i] = rig_random() & 1;
        rig_map(0x10000000 + i * PAGE_SIZE, 0x1000 * (i % 64), RW | RP_D | (kind[i] ? RP_G : 0));
    }
    for (unsigned round = 0; round < 300; round++) {
        for (unsigned n = rig_random() % 2000; n; n--)
            look(0x10000000 + (rig_random() & 4095) * PAGE_SIZE, rig_random() & 1 ? ACC_READ : ACC_WRITE,
                 (enum soft_mmu_idx)(rig_random() % 3));
        unsigned what = rig_random() % 3;
        uint64_t page = 0x10000000 + (rig_random() & 4095) * PAGE_SIZE;
        if (what == 0) soft_tlb_flush_all(rig.cpu);
        if (what == 1) soft_tlb_flush_nonglobal(rig.cpu);
        if (what == 2) soft_tlb_flush_page(rig.cpu, GVA(page));
        for (unsigned idx = 0; idx < 3; idx++)
            for (unsigned i = 0; i < TLB_SIZE; i++) {
                uint64_t tag = rig.cpu->tlb[idx][i].tag_read;
                if (tag == TLB_INVALID) continue;
                assert_int_not_equal(what, 0);
                if (what == 1) assert_int_equal(kind[(tag - 0x10000000) >> 12], 1);
                if (what == 2) assert_int_not_equal(tag, page);
            }
    }
}

/* INVLPG inside a large page that only fetches went through: what hangs on it goes as a whole. */
static void test_flush_large_code_page(void **state)
{
    (void)state;
    *rig_leaf(0x40000000, 21) = 0 | RW | RP_PS;
    look(0x40001000, ACC_EXEC, MMU_KERNEL);
    soft_tlb_flush_page(rig.cpu, GVA(0x40123000));
    assert_false(rig.flush_was_page);
    soft_tlb_flush_page(rig.cpu, GVA(0x80000000));
    assert_true(rig.flush_was_page);
}

/* ---- loads and stores ---- */

static void test_sizes(void **state)
{
    (void)state;
    static uint8_t pattern[4096], got[4096];
    for (unsigned i = 0; i < 4096; i++) pattern[i] = (uint8_t)rig_random();
    for (uint64_t a = 0; a < 4; a++) rig_map(0x10000 + a * 0x1000, 0x20000 - a * 0x2000, RW);
    for (unsigned round = 0; round < 20000; round++) {
        uint32_t len = round < 600 ? 1 + round % 200 : 1 + (uint32_t)(rig_random() % 4096);
        uint64_t off = round < 600 ? 0x1000 - (round * 7) % 220 : rig_random() % 0x2000;
        const uint8_t *src = pattern + rig_random() % (4097 - len);
        memset(got, 0xee, sizeof(got));
        assert_int_equal(soft_store(rig.cpu, GVA(0x10000 + off), src, len, MMU_KERNEL), SOFT_OK);
        assert_int_equal(soft_load(rig.cpu, GVA(0x10000 + off), got, len, MMU_KERNEL), SOFT_OK);
        assert_memory_equal(got, src, len);
        for (uint32_t i = 0; i < len; i++) {
            uint64_t va = 0x10000 + off + i, pa = 0x20000 - (va - 0x10000) / 0x1000 * 0x2000 + (va & 0xfff);
            if (rig.host[0][pa] != src[i])
                fail_msg("byte %u of %u at +%#lx went elsewhere", i, len, (unsigned long)off);
        }
        if (len < 4096) assert_int_equal(got[len], 0xee);
    }
}

static void test_cross_fault(void **state)
{
    (void)state;
    uint64_t v = 0x8877665544332211, before;
    rig_map(0x5000, 0x7000, RW);
    memcpy(&before, rig.host[0] + 0x7ff8, 8);
    assert_int_equal(soft_store(rig.cpu, GVA(0x5ffc), &v, 8, MMU_USER), SOFT_FAULT);
    assert_int_equal(rig.cpu->exc.cr2, 0x6000);
    assert_fault(EXC_PF, PF_W | PF_U);
    assert_memory_equal(rig.host[0] + 0x7ff8, &before, 8);
    rig_map(0x6000, 0x9000, RP_P | RP_U);
    assert_int_equal(soft_load(rig.cpu, GVA(0x5ffc), &v, 8, MMU_USER), SOFT_OK);
    assert_int_equal(soft_store(rig.cpu, GVA(0x5ffc), &v, 8, MMU_USER), SOFT_FAULT);
    assert_int_equal(rig.cpu->exc.cr2, 0x6000);
    assert_fault(EXC_PF, PF_P | PF_W | PF_U);
    assert_int_equal(soft_probe_store(rig.cpu, GVA(0x5ffc), 8, MMU_USER), SOFT_FAULT);
    assert_fault(EXC_PF, PF_P | PF_W | PF_U);
    assert_int_equal(soft_probe_store(rig.cpu, GVA(0x5ff8), 8, MMU_USER), SOFT_OK);
    /* The first page's fault goes first. */
    assert_int_equal(soft_load(rig.cpu, GVA(0x4fff), &v, 4, MMU_USER), SOFT_FAULT);
    assert_int_equal(rig.cpu->exc.cr2, 0x4fff);
}

/* Linear addresses of 32-bit code wrap at 4 GiB; those of 64-bit code end in #GP at the canonical hole. */
static void test_wrap(void **state)
{
    (void)state;
    uint32_t v = 0x44332211;
    rig_map(0xfffff000, 0x7000, RW);
    rig_map(0x0, 0x9000, RW);
    rig_map(0x100000000, 0xa000, RW);
    assert_int_equal(soft_store(rig.cpu, GVA(0xfffffffe), &v, 4, MMU_USER), SOFT_OK);
    assert_int_equal(*(uint16_t *)rig_ram(0xa000), 0x4433);
    rig.cpu->seg[SEG_CS].attr &= ~SEG_ATTR_L;
    assert_int_equal(soft_store(rig.cpu, GVA(0xfffffffe), &v, 4, MMU_USER), SOFT_OK);
    assert_int_equal(*(uint16_t *)rig_ram(0x9000), 0x4433);
    rig.cpu->seg[SEG_CS].attr |= SEG_ATTR_L;
    rig_map(0x7ffffffff000, 0x7000, RW);
    assert_int_equal(soft_store(rig.cpu, GVA(0x7ffffffffffe), &v, 4, MMU_USER), SOFT_FAULT);
    assert_fault(EXC_GP, 0);
}

/* ---- MMIO ---- */

/* Answers the read that cpu->exit asks for, as the run loop does. */
static void answer(uint64_t addr, uint8_t len, uint64_t value)
{
    assert_int_equal(rig.exit.kind, VCPU_EXIT_MMIO);
    assert_false(rig.exit.mmio.write);
    assert_int_equal(rig.exit.mmio.addr.v, addr);
    assert_int_equal(rig.exit.mmio.len, len);
    unsigned i = rig.cpu->io.count++;
    rig.cpu->io.replay[i].addr = addr;
    rig.cpu->io.replay[i].len = len;
    memcpy(rig.cpu->io.replay[i].data, &value, 8);
}

static void test_mmio_read(void **state)
{
    (void)state;
    uint64_t v = 0, w = 0;
    rig_map(0x5000, RIG_MMIO, RW);
    soft_io_begin(rig.cpu);
    assert_int_equal(soft_load(rig.cpu, GVA(0x5010), &v, 4, MMU_KERNEL), SOFT_EXIT);
    answer(RIG_MMIO + 0x10, 4, 0xdeadbeef);
    soft_io_begin(rig.cpu);
    assert_int_equal(soft_load(rig.cpu, GVA(0x5010), &v, 4, MMU_KERNEL), SOFT_OK);
    assert_int_equal(v, 0xdeadbeef);
    /* A second read of the same instruction is a new access, even of the same place. */
    assert_int_equal(soft_load(rig.cpu, GVA(0x5010), &w, 4, MMU_KERNEL), SOFT_EXIT);
    answer(RIG_MMIO + 0x10, 4, 0x12345678);
    soft_io_begin(rig.cpu);
    assert_int_equal(soft_load(rig.cpu, GVA(0x5010), &v, 4, MMU_KERNEL), SOFT_OK);
    assert_int_equal(soft_load(rig.cpu, GVA(0x5010), &w, 4, MMU_KERNEL), SOFT_OK);
    assert_int_equal(v, 0xdeadbeef);
    assert_int_equal(w, 0x12345678);
    soft_io_retire(rig.cpu);
    assert_int_equal(soft_load(rig.cpu, GVA(0x5010), &v, 4, MMU_KERNEL), SOFT_EXIT);
    /* What was answered for another address is not taken. */
    answer(RIG_MMIO + 0x10, 4, 1);
    soft_io_begin(rig.cpu);
    assert_int_equal(soft_load(rig.cpu, GVA(0x5020), &v, 4, MMU_KERNEL), SOFT_EXIT);
    assert_int_equal(rig.exit.mmio.addr.v, RIG_MMIO + 0x20);
    assert_int_equal(rig.cpu->io.count, 0);
}

/* A 24-byte read that crosses from RAM into MMIO: RAM part, then 8, 8, 4 and 1. */
static void test_mmio_pieces(void **state)
{
    (void)state;
    uint8_t got[24];
    rig_map(0x5000, 0x7000, RW);
    rig_map(0x6000, RIG_MMIO, RW);
    memcpy(rig.host[0] + 0x7ffd, "abc", 3);
    static const uint8_t lens[] = {8, 8, 4, 1};
    uint64_t at = RIG_MMIO, value = 0x0706050403020100;
    for (unsigned i = 0; i < 4; i++) {
        soft_io_begin(rig.cpu);
        assert_int_equal(soft_load(rig.cpu, GVA(0x5ffd), got, 24, MMU_KERNEL), SOFT_EXIT);
        answer(at, lens[i], value + 0x1010101010101010 * i);
        at += lens[i];
    }
    soft_io_begin(rig.cpu);
    assert_int_equal(soft_load(rig.cpu, GVA(0x5ffd), got, 24, MMU_KERNEL), SOFT_OK);
    static const uint8_t want[24] = {'a',  'b',  'c',  0,    1,    2,    3,    4,    5,    6,    7,    0x10,
                                     0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x20, 0x21, 0x22, 0x23, 0x30};
    assert_memory_equal(got, want, 24);
}

static void test_mmio_write(void **state)
{
    (void)state;
    enum { FITS = SOFT_IO_PIECES * 8 };
    static uint8_t data[FITS + 64]; /* more than one instruction can write or read */
    for (unsigned i = 0; i < sizeof(data); i++) data[i] = (uint8_t)i;
    rig_map(0x5000, RIG_MMIO, RW);
    rig_map(0x6000, 0x7000, RW);
    soft_io_begin(rig.cpu);
    assert_int_equal(soft_store(rig.cpu, GVA(0x5ff1), data, 32, MMU_KERNEL), SOFT_OK);
    assert_int_equal(rig.cpu->io.writes, 4); /* 8 + 4 + 2 + 1, then RAM */
    uint64_t at = RIG_MMIO + 0xff1;
    unsigned n = 0;
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(rig.cpu->io.write[i].addr, at);
        assert_int_equal(rig.cpu->io.write[i].len, 8 >> i);
        assert_memory_equal(rig.cpu->io.write[i].data, data + n, 8 >> i);
        at += 8 >> i;
        n += 8 >> i;
    }
    assert_memory_equal(rig.host[0] + 0x7000, data + 15, 17);
    /* Stores to ROM are device writes; the ROM stays as it is. */
    rig_map(0x8000, RIG_ROM_BASE, RW);
    soft_io_begin(rig.cpu);
    assert_int_equal(soft_store(rig.cpu, GVA(0x8004), data + 1, 4, MMU_KERNEL), SOFT_OK);
    assert_int_equal(rig.cpu->io.writes, 1);
    assert_int_equal(rig.cpu->io.write[0].addr, RIG_ROM_BASE + 4);
    assert_int_equal(rig.host[1][4], 0);
    /* More than fits is lost, not written past the queue. */
    soft_io_begin(rig.cpu);
    assert_int_equal(soft_store(rig.cpu, GVA(0x5000), data, sizeof(data), MMU_KERNEL), SOFT_OK);
    assert_int_equal(rig.cpu->io.writes, SOFT_IO_PIECES);
    for (unsigned i = 0; i < SOFT_IO_PIECES; i++) {
        rig.cpu->io.replay[i].addr = RIG_MMIO + i * 8;
        rig.cpu->io.replay[i].len = 8;
    }
    rig.cpu->io.count = SOFT_IO_PIECES;
    memset(data, 0, sizeof(data));
    assert_int_equal(soft_load(rig.cpu, GVA(0x5000), data, sizeof(data), MMU_KERNEL), SOFT_OK);
    assert_int_equal(data[FITS], 0xff);
    assert_int_equal(data[sizeof(data) - 1], 0xff);
}

/* ---- #AC, data breakpoints, system accesses ---- */

static void test_alignment(void **state)
{
    (void)state;
    uint8_t buf[16] = {0};
    rig_map(0x5000, 0x7000, RW);
    for (unsigned on = 0; on < 8; on++)
        for (uint32_t len = 1; len <= 16; len++)
            for (unsigned off = 0; off < 16; off++) {
                enum soft_mmu_idx idx = on & 1 ? MMU_USER : MMU_KERNEL;
                rig.cpu->rflags = FL_1 | (on & 2 ? FL_AC : 0);
                rig.cpu->cr0 = CR0_PE | CR0_PG | (on & 4 ? CR0_AM : 0);
                bool power = len == 2 || len == 4 || len == 8;
                bool ac = on == 7 && power && off % len;
                enum soft_result r = soft_load(rig.cpu, GVA(0x5100 + off), buf, len, idx);
                assert_int_equal(r, ac ? SOFT_FAULT : SOFT_OK);
                if (ac) assert_fault(EXC_AC, 0);
                assert_int_equal(soft_store(rig.cpu, GVA(0x5100 + off), buf, len, idx), r);
                rig.cpu->exc.pending = false;
                assert_int_equal(soft_probe_store(rig.cpu, GVA(0x5100 + off), len, idx), r);
                rig.cpu->exc.pending = false;
            }
}

static void test_data_breakpoints(void **state)
{
    (void)state;
    uint64_t v = 0;
    rig_map(0x5000, 0x7000, RW);
    rig_map(0x6000, 0x8000, RW);
    /* DR0: 4 bytes at 0x5010, writes, local. DR2: 8 bytes at 0x5020, reads and writes, global. DR3: execution at 0x6000. */
    rig.cpu->dr[0] = 0x5012; /* its low bits are ignored */
    rig.cpu->dr[2] = 0x5020;
    rig.cpu->dr[3] = 0x6000;
    rig.cpu->dr[7] = 1 | 2 << 4 | 1 << 6 | 0xdull << 16 | 0xbull << 24;
    static const struct {
        uint64_t a;
        uint32_t len;
        uint64_t read, write;
    } t[] = {
        {0x5010, 4, 0, 1}, {0x500f, 1, 0, 0}, {0x500f, 2, 0, 1}, {0x5013, 1, 0, 1}, {0x5014, 8, 0, 0},
        {0x5008, 8, 0, 0}, {0x5020, 1, 4, 4}, {0x5027, 1, 4, 4}, {0x5028, 1, 0, 0}, {0x5013, 8, 0, 1},
        {0x5018, 8, 0, 0}, {0x5019, 8, 4, 4}, {0x6000, 4, 0, 0},
    };
    for (unsigned i = 0; i < sizeof(t) / sizeof(*t); i++) {
        soft_io_begin(rig.cpu);
        assert_int_equal(soft_load(rig.cpu, GVA(t[i].a), &v, t[i].len, MMU_KERNEL), SOFT_OK);
        assert_int_equal(rig.cpu->pending_db, t[i].read);
        soft_io_begin(rig.cpu);
        assert_int_equal(soft_store(rig.cpu, GVA(t[i].a), &v, t[i].len, MMU_KERNEL), SOFT_OK);
        assert_int_equal(rig.cpu->pending_db, t[i].write);
    }
    assert_null(look(0x5800, ACC_READ, MMU_KERNEL)); /* watched pages have no tags */
    assert_null(look(0x5800, ACC_WRITE, MMU_KERNEL));
    assert_int_equal(entry(MMU_KERNEL, 0x5000)->tag_read, TLB_INVALID);
    assert_non_null(look(0x6800, ACC_WRITE, MMU_KERNEL));
    /* System accesses don't trap, and neither do faulting ones. */
    soft_io_begin(rig.cpu);
    assert_int_equal(soft_store_sys(rig.cpu, 0x5010, &v, 8), SOFT_OK);
    *rig_leaf(0x5000, 12) = 0;
    assert_int_equal(soft_store(rig.cpu, GVA(0x5010), &v, 8, MMU_KERNEL), SOFT_FAULT);
    assert_int_equal(rig.cpu->pending_db, 0);
}

static void test_system_access(void **state)
{
    (void)state;
    uint64_t v = 7, w = 0;
    rig.cpu->cr4 |= CR4_SMAP;
    rig.cpu->rflags |= FL_AC;
    rig.cpu->cpl = 3;
    rig.cpu->mmu_idx = MMU_USER;
    rig_map(0x5000, 0x7000, RP_P | RP_W);
    rig_map(0x6000, 0x8000, RW);
    assert_int_equal(soft_store_sys(rig.cpu, 0x5001, &v, 8), SOFT_OK); /* neither CPL nor #AC matters */
    assert_int_equal(soft_load_sys(rig.cpu, 0x5001, &w, 8), SOFT_OK);
    assert_int_equal(w, 7);
    assert_int_equal(soft_load_sys(rig.cpu, 0x6000, &w, 8), SOFT_FAULT); /* SMAP does, whatever AC (SDM vol. 3 4.6.1) */
    assert_fault(EXC_PF, PF_P);
    assert_int_equal(soft_load_u64(rig.cpu, 0x5000, &w, 8), SOFT_FAULT);
    assert_fault(EXC_PF, PF_P | PF_U);
    assert_int_equal(soft_load(rig.cpu, GVA(0x5000), &w, 5000, MMU_KERNEL), SOFT_FAULT);
}

#define T(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_fill),
        T(test_not_ram),
        T(test_code_page),
        T(test_code_page_clean),
        T(test_flush_page),
        T(test_flush_large_page),
        T(test_flush_evicted),
        T(test_sites_kept),
        T(test_flush_4m_page),
        T(test_flush_nonglobal),
        T(test_global_needs_pge),
        T(test_flush_random),
        T(test_flush_large_code_page),
        T(test_sizes),
        T(test_cross_fault),
        T(test_wrap),
        T(test_mmio_read),
        T(test_mmio_pieces),
        T(test_mmio_write),
        T(test_alignment),
        T(test_data_breakpoints),
        T(test_system_access),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
