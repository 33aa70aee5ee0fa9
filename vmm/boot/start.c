/* The boot vCPU at a kernel's entry point: registers, GDT, page tables. They live in low memory, in spots that the kernel
 * left free, and kernels replace them within their first page of code. */
#include <errno.h>
#include <string.h>

#include "vmm/boot/boot_internal.h"

/* Above the real-mode IVT and BIOS data area, below the EBDA. */
#define LOW_START 0x1000ull
#define LOW_END 0x9fc00ull

#define CR0_PE 0x1ull
#define CR0_ET 0x10ull
#define CR0_NE 0x20ull
#define CR0_WP 0x10000ull
#define CR0_PG 0x80000000ull
#define CR4_PAE 0x20ull
#define EFER_LME 0x100ull
#define EFER_LMA 0x400ull

#define PTE_P 0x1ull
#define PTE_W 0x2ull
#define PTE_PS 0x80ull

/* Flat 4 GiB segments: code readable and accessed, data writable and accessed (SDM vol. 3, 3.4.5). */
#define CODE64 0x00af9b000000ffffull
#define CODE32 0x00cf9b000000ffffull
#define DATA32 0x00cf93000000ffffull
/* A busy 32-bit TSS of 104 bytes at 0, as the PVH protocol asks for in TR. */
#define TSS_LIMIT 0x67
#define TSS_ATTR 0x008bu

static struct cpu_segment flat(uint16_t selector, uint64_t descriptor)
{
    return (struct cpu_segment){
        .selector = selector, .attr = (uint32_t)(descriptor >> 40) & 0xf0ff, .limit = 0xffffffffu, .base = 0};
}

/* Builds the GDT {null, [1], [2], ...} and loads the segment registers from it. */
static int set_segments(struct boot_place *p, struct cpu_state *s, unsigned code, uint64_t code_desc, unsigned data,
                        struct nerr *e)
{
    uint64_t gdt[4] = {0};
    uint64_t addr;
    gdt[code / 8] = code_desc;
    gdt[data / 8] = DATA32;
    int r = boot_place_in(p, LOW_START, LOW_END, sizeof(gdt), 16, false, "start-up GDT", &addr, e);
    if (r) return r;
    memcpy(boot_place_ptr(p, addr, sizeof(gdt)), gdt, sizeof(gdt));
    s->gdt = (struct cpu_table){.base = addr, .limit = (uint16_t)((data / 8 + 1) * 8 - 1)};
    s->idt = (struct cpu_table){.base = 0, .limit = 0};
    for (unsigned i = 0; i < SEG_COUNT; i++)
        s->seg[i] = i == SEG_CS ? flat((uint16_t)code, code_desc) : flat((uint16_t)data, DATA32);
    s->tr = (struct cpu_segment){.attr = TSS_ATTR, .limit = TSS_LIMIT};
    return 0;
}

/* Firmware leaves the FPU as FNINIT does, not in its power-on state (control word 0x37f, not 0x40); C kernels rely on it. */
static void start_common(struct cpu_state *s, uint64_t entry)
{
    cpu_state_reset(s);
    s->gpr[2] = 0; /* the CPU's signature, left in EDX by a reset */
    s->xsave[0] = 0x7f;
    s->xsave[1] = 0x03;
    s->xsave[4] = 0; /* abridged tag word: all empty */
    s->rip = entry;
    s->rflags = 2;
}

int boot_start_32(struct boot_place *p, uint64_t entry, struct cpu_state *s, struct nerr *e)
{
    if (entry > UINT32_MAX)
        return nerr_set(e, -EINVAL, "kernel: its 32-bit entry point 0x%llx lies above 4 GiB; the image is broken",
                        (unsigned long long)entry);
    start_common(s, entry);
    s->cr0 = CR0_PE | CR0_ET;
    return set_segments(p, s, 0x08, CODE32, 0x10, e);
}

/* Six pages: PML4, PDPT, four directories of 2 MiB pages. 2 MiB, since not every engine offers 1 GiB pages. */
static int identity_map(struct boot_place *p, uint64_t *root, struct nerr *e)
{
    int r = boot_place_in(p, LOW_START, LOW_END, 6 * PAGE_SIZE, PAGE_SIZE, false, "start-up page tables", root, e);
    if (r) return r;
    uint64_t *t = boot_place_ptr(p, *root, 6 * PAGE_SIZE);
    memset(t, 0, 6 * PAGE_SIZE);
    t[0] = (*root + PAGE_SIZE) | PTE_P | PTE_W;
    for (unsigned i = 0; i < 4; i++) t[512 + i] = (*root + (2 + i) * PAGE_SIZE) | PTE_P | PTE_W;
    for (uint64_t i = 0; i < 4 * 512; i++) t[1024 + i] = (i << 21) | PTE_P | PTE_W | PTE_PS;
    return 0;
}

int boot_start_64(struct boot_place *p, uint64_t entry, struct cpu_state *s, struct nerr *e)
{
    uint64_t root;
    start_common(s, entry);
    int r = set_segments(p, s, 0x10, CODE64, 0x18, e);
    if (!r) r = identity_map(p, &root, e);
    if (r) return r;
    s->cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    s->cr3 = root;
    s->cr4 = CR4_PAE;
    s->efer = EFER_LME | EFER_LMA;
    return 0;
}

int boot_put_string(struct boot_place *p, const char *text, const char *what, uint64_t *addr, struct nerr *e)
{
    uint64_t len = strlen(text) + 1;
    int r = boot_place_in(p, LOW_START, LOW_END, len, 16, false, what, addr, e);
    if (!r) memcpy(boot_place_ptr(p, *addr, len), text, len);
    return r;
}

int boot_put_module(struct boot_place *p, const struct boot_file *f, uint64_t lo, uint64_t hi, bool high,
                    uint64_t *addr, struct nerr *e)
{
    int r = boot_place_in(p, lo, hi, f->size, PAGE_SIZE, high, f->path, addr, e);
    if (!r && f->size) r = boot_file_read(f, 0, boot_place_ptr(p, *addr, f->size), f->size, e);
    return r;
}
