/* PVH: the Xen project's "x86/HVM direct boot ABI". A 32-bit entry named by an ELF note, hvm_start_info in EBX. */
#include <errno.h>
#include <string.h>

#include "vmm/boot/boot_internal.h"

#define START_MAGIC 0x336ec578u

struct start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
    uint32_t memmap_entries, reserved;
};

struct modlist_entry {
    uint64_t paddr, size, cmdline_paddr, reserved;
};

struct memmap_entry {
    uint64_t addr, size;
    uint32_t type, reserved;
};

/* Everything the start info points to, in one claimed piece. */
struct pvh_area {
    struct start_info info;
    struct modlist_entry module;
    struct memmap_entry map[BOOT_MAX_RANGES];
};

static void fill(struct pvh_area *a, uint64_t at, const struct boot_place *p, uint64_t cmdline, gpa_t rsdp)
{
    memset(a, 0, sizeof(*a));
    a->info.magic = START_MAGIC;
    a->info.version = 1;
    a->info.cmdline_paddr = cmdline;
    a->info.rsdp_paddr = rsdp.v;
    a->info.memmap_paddr = at + offsetof(struct pvh_area, map);
    a->info.memmap_entries = p->map->ranges;
    for (unsigned i = 0; i < p->map->ranges; i++)
        a->map[i] = (struct memmap_entry){p->map->range[i].addr, p->map->range[i].size, p->map->range[i].type, 0};
}

int boot_pvh_load(const struct boot_image *b, struct boot_place *p, gpa_t rsdp, struct cpu_state *s, struct nerr *e)
{
    struct boot_elf elf;
    struct pvh_area area;
    uint64_t elf_entry, at, cmdline, initrd = 0;
    int r = boot_elf_parse(&b->kernel, &elf, e);
    if (!r && !elf.has_pvh)
        r = nerr_set(e, -EINVAL, "kernel %s: its PVH note went away while it was read; try again", b->kernel.path);
    if (!r) r = boot_elf_load(&b->kernel, &elf, p, &elf_entry, e);
    if (!r && b->modules) r = boot_put_module(p, &b->module[0].file, 0x100000, GUEST_LOW_RAM_END, true, &initrd, e);
    if (!r) r = boot_put_string(p, b->append, "kernel command line", &cmdline, e);
    if (!r) r = boot_place_in(p, 0x1000, 0x9fc00, sizeof(area), 16, false, "PVH start info", &at, e);
    if (!r) r = boot_start_32(p, elf.pvh_entry, s, e);
    if (r) return r;
    fill(&area, at, p, cmdline, rsdp);
    if (initrd) {
        area.info.nr_modules = 1;
        area.info.modlist_paddr = at + offsetof(struct pvh_area, module);
        area.module = (struct modlist_entry){.paddr = initrd, .size = b->module[0].file.size};
    }
    memcpy(boot_place_ptr(p, at, sizeof(area)), &area, sizeof(area));
    s->gpr[3] = at; /* EBX */
    return 0;
}
