/* A vCPU of the soft engine without its translator, with a little guest memory: for tests of the C handlers.
 * What the translator and the run loop would supply is here as weak doubles that record what they were told. */
#ifndef NACELLE_TESTS_SOFT_RIG_H
#define NACELLE_TESTS_SOFT_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "vmm/engine/soft/soft.h"

#define RIG_RAM (4u << 20)       /* slot 0 at 0 */
#define RIG_ROM_BASE 0x800000ull /* slot 1: 64 KiB, read-only */
#define RIG_ROM_SIZE 0x10000u
#define RIG_HIGH_BASE 0x100000000ull /* slot 2: 1 MiB */
#define RIG_HIGH_SIZE (1u << 20)
#define RIG_MMIO 0x900000ull   /* nothing is there */
#define RIG_TABLES 0x100000ull /* page tables grow from here: PML4 (or PDPT/PD) first */

struct rig {
    struct soft_cpu *cpu;
    struct guest_memory memory;
    struct vcpu_exit exit;
    uint8_t *host[3];
    uint64_t next_table;
    uint64_t code_page[4]; /* GPAs of pages that "hold code"; ~0 when unused */
    unsigned code_writes;
    uint64_t code_write_gpa;
    uint32_t code_write_len;
    unsigned translation_flushes;
    bool flush_was_page;
};
static struct rig rig;

__attribute__((weak)) const struct guest_memory *soft_memory(const struct soft_cpu *cpu)
{
    (void)cpu;
    return &rig.memory;
}
__attribute__((weak)) bool soft_page_has_code(struct soft_cpu *cpu, gpa_t page)
{
    (void)cpu;
    assert_int_equal(page.v & ~PAGE_MASK, 0);
    for (unsigned i = 0; i < 4; i++)
        if (rig.code_page[i] == page.v) return true;
    return false;
}
__attribute__((weak)) void soft_code_written(struct soft_cpu *cpu, gpa_t a, uint32_t len)
{
    (void)cpu;
    rig.code_writes++;
    rig.code_write_gpa = a.v;
    rig.code_write_len = len;
}
__attribute__((weak)) void soft_translation_flush(struct soft_cpu *cpu, bool global, unsigned shift, gva_t a)
{
    (void)cpu, (void)global, (void)a;
    rig.flush_was_page = shift == 12;
    rig.translation_flushes++;
}
__attribute__((weak)) void soft_translation_switch(struct soft_cpu *cpu, uint32_t pcid, bool keep)
{
    (void)cpu, (void)pcid, (void)keep;
    rig.translation_flushes++;
}
__attribute__((weak)) void soft_translation_forget(struct soft_cpu *cpu, uint32_t pcid)
{
    (void)cpu, (void)pcid;
    rig.translation_flushes++;
}
__attribute__((weak)) void soft_update_mode(struct soft_cpu *cpu)
{
    cpu->mmu_idx = cpu->cpl == 3 ? MMU_USER : cpu->rflags & FL_AC ? MMU_KERNEL_AC : MMU_KERNEL;
}

static inline void rig_slot(unsigned i, uint64_t base, uint64_t size, bool readonly)
{
    rig.host[i] = aligned_alloc(PAGE_SIZE, size);
    assert_non_null(rig.host[i]);
    memset(rig.host[i], 0, size);
    rig.memory.slot[i] =
        (struct memory_slot){.base = GPA(base), .size = size, .host = rig.host[i], .readonly = readonly};
    rig.memory.slots = i + 1;
    rig.memory.ram_size += size;
}

static inline void rig_flat_segments(uint32_t attr_extra)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        rig.cpu->seg[i] =
            (struct cpu_segment){.selector = 8, .limit = 0xffffffff, .attr = 0x93 | SEG_ATTR_G | attr_extra};
    rig.cpu->seg[SEG_CS].attr |= 0x0b;
}

/* 4-level paging on, nothing mapped, 64-bit code at CPL 0. */
static inline int rig_setup(void **state)
{
    (void)state;
    memset(&rig, 0, sizeof(rig));
    memset(rig.code_page, 0xff, sizeof(rig.code_page));
    rig_slot(0, 0, RIG_RAM, false);
    rig_slot(1, RIG_ROM_BASE, RIG_ROM_SIZE, true);
    rig_slot(2, RIG_HIGH_BASE, RIG_HIGH_SIZE, false);
    rig.cpu = aligned_alloc(64, (sizeof(*rig.cpu) + 63) & ~63ul);
    assert_non_null(rig.cpu);
    memset(rig.cpu, 0, sizeof(*rig.cpu));
    rig.cpu->exit = &rig.exit;
    rig.cpu->cr0 = CR0_PE | CR0_PG | CR0_WP | CR0_AM;
    rig.cpu->cr4 = CR4_PAE | CR4_PGE;
    rig.cpu->efer = EFER_LMA | EFER_LME | EFER_NXE;
    rig.cpu->cr3 = RIG_TABLES;
    rig.cpu->rflags = FL_1;
    rig.cpu->mmu_idx = MMU_KERNEL;
    rig_flat_segments(0);
    rig.cpu->seg[SEG_CS].attr |= SEG_ATTR_L;
    rig.next_table = RIG_TABLES + PAGE_SIZE;
    soft_tlb_init(rig.cpu);
    return 0;
}

static inline int rig_teardown(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 3; i++) free(rig.host[i]);
    free(rig.cpu);
    return 0;
}

static inline void *rig_ram(uint64_t gpa)
{
    if (gpa < RIG_RAM) return rig.host[0] + gpa;
    if (gpa - RIG_ROM_BASE < RIG_ROM_SIZE) return rig.host[1] + (gpa - RIG_ROM_BASE);
    if (gpa - RIG_HIGH_BASE < RIG_HIGH_SIZE) return rig.host[2] + (gpa - RIG_HIGH_BASE);
    return NULL;
}

#define RP_P 1ull
#define RP_W 2ull
#define RP_U 4ull
#define RP_A 0x20ull
#define RP_D 0x40ull
#define RP_PS 0x80ull
#define RP_G 0x100ull
#define RP_NX (1ull << 63)
#define RP_ADDR 0x000ffffffffff000ull

/* The leaf entry for `gva` at level `shift` (12, 21, 30) of 4-level tables, upper levels made with all rights. */
static inline uint64_t *rig_leaf(uint64_t gva, unsigned shift)
{
    uint64_t table = rig.cpu->cr3 & RP_ADDR;
    for (unsigned s = 39;; s -= 9) {
        uint64_t *e = (uint64_t *)rig_ram(table + ((gva >> s) & 511) * 8);
        if (s == shift) return e;
        if (!(*e & RP_P)) {
            *e = rig.next_table | RP_P | RP_W | RP_U;
            rig.next_table += PAGE_SIZE;
            assert_true(rig.next_table < RIG_RAM);
        }
        table = *e & RP_ADDR;
    }
}
static inline void rig_map(uint64_t gva, uint64_t gpa, uint64_t flags)
{
    *rig_leaf(gva, 12) = gpa | flags;
}

static inline uint64_t rig_random(void)
{
    static uint64_t s = 0x243f6a8885a308d3ull;
    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return s * 0x2545f4914f6cdd1dull;
}

#define assert_fault(vec, err)                        \
    do {                                              \
        assert_true(rig.cpu->exc.pending);            \
        assert_int_equal(rig.cpu->exc.vector, (vec)); \
        assert_int_equal(rig.cpu->exc.error, (err));  \
        rig.cpu->exc.pending = false;                 \
    } while (0)

#endif
