/* Linux through its 64-bit entry (kernel documentation, "The Linux/x86 Boot Protocol", 64-bit boot protocol): bzImage
 * from protocol 2.12 on, and a plain vmlinux, which has the same entry but no setup header. */
#include <asm/bootparam.h>
#include <errno.h>
#include <string.h>

#include "vmm/boot/boot_internal.h"

#define HDR_OFFSET 0x1f1
#define HDR_MAGIC 0x53726448u /* "HdrS" */
#define ENTRY_64 0x200
#define LOADER_UNDEFINED 0xff
#define DEFAULT_INITRD_MAX 0x7fffffffull /* what current kernels say; a vmlinux has no header to say it */
#define COMMAND_LINE_SIZE 2047

_Static_assert(offsetof(struct boot_params, hdr) == HDR_OFFSET && offsetof(struct boot_params, acpi_rsdp_addr) == 0x70,
               "boot_params layout");

static int refuse(const struct boot_image *b, struct nerr *e, const char *why)
{
    return nerr_set(e, -EINVAL, "kernel %s: %s", b->kernel.path, why);
}

/* Takes the setup header out of the file's first sectors: as long as the header says it is, no longer. */
static int get_header(const struct boot_image *b, const uint8_t *head, struct setup_header *h, struct nerr *e)
{
    uint32_t magic;
    memcpy(&magic, head + 0x202, sizeof(magic));
    if (magic != HDR_MAGIC) return refuse(b, e, "no Linux setup header any more; the file changed, try again");
    size_t end = 0x202 + head[0x201];
    size_t len = end - HDR_OFFSET;
    memset(h, 0, sizeof(*h));
    memcpy(h, head + HDR_OFFSET, len < sizeof(*h) ? len : sizeof(*h));
    if (h->version < 0x020c) return refuse(b, e, "boot protocol older than 2.12 (Linux 3.8); use a newer kernel");
    if (!(h->xloadflags & XLF_KERNEL_64))
        return refuse(b, e, "no 64-bit entry (a 32-bit kernel?); use an x86-64 kernel");
    if (!(h->loadflags & LOADED_HIGH)) return refuse(b, e, "a zImage, loaded below 1 MiB; use a bzImage");
    return 0;
}

/* File range of the protected-mode part. */
static int payload(const struct boot_image *b, const struct setup_header *h, uint64_t *off, uint64_t *len,
                   struct nerr *e)
{
    unsigned sects = h->setup_sects ? h->setup_sects : 4; /* 0 means 4, for historical reasons */
    *off = (uint64_t)(sects + 1) * 512;
    if (b->kernel.size <= *off + ENTRY_64)
        return refuse(b, e, "cut short: it ends in its setup code; get a whole copy");
    *len = b->kernel.size - *off;
    if ((uint64_t)h->syssize * 16 > *len + 15)
        return refuse(b, e, "cut short: smaller than its header says; get a whole copy");
    if (strlen(b->append) > h->cmdline_size)
        return nerr_set(e, -EINVAL, "--append: %zu bytes are more than this kernel takes (%u); shorten it",
                        strlen(b->append), h->cmdline_size);
    return 0;
}

int boot_bzimage_check(const struct boot_image *b, const uint8_t *head, struct nerr *e)
{
    struct setup_header h;
    uint64_t off, len;
    int r = get_header(b, head, &h, e);
    return r ? r : payload(b, &h, &off, &len, e);
}

/* The preferred address, where the kernel needs no relocation; else, if it can move, wherever it fits. */
static int place_kernel(const struct boot_image *b, const struct setup_header *h, uint64_t len, struct boot_place *p,
                        uint64_t *load, struct nerr *e)
{
    uint64_t room = h->init_size > len ? h->init_size : len;
    *load = h->pref_address;
    if (!boot_place_at(p, *load, room, b->kernel.path, e)) return 0;
    if (!h->relocatable_kernel) return -ENOMEM; /* with boot_place_at's message */
    uint64_t align = h->kernel_alignment;
    if (align < PAGE_SIZE || align & (align - 1))
        return refuse(b, e, "broken setup header (kernel_alignment); get a whole copy");
    return boot_place_in(p, 0x100000, GUEST_LOW_RAM_END, room, align, false, b->kernel.path, load, e);
}

/* boot_params, command line and initrd: what both kinds of Linux image need. `h` is the header to hand over. */
static int put_params(const struct boot_image *b, const struct setup_header *h, struct boot_place *p, gpa_t rsdp,
                      uint64_t *where, struct nerr *e)
{
    uint64_t cmdline, initrd = 0, top = h->initrd_addr_max ? (uint64_t)h->initrd_addr_max + 1 : DEFAULT_INITRD_MAX + 1;
    if (top > GUEST_LOW_RAM_END) top = GUEST_LOW_RAM_END;
    int r = boot_place_in(p, 0x1000, 0x9fc00, sizeof(struct boot_params), PAGE_SIZE, false, "boot_params", where, e);
    if (!r) r = boot_put_string(p, b->append, "kernel command line", &cmdline, e);
    if (!r && b->modules) r = boot_put_module(p, &b->module[0].file, 0x100000, top, true, &initrd, e);
    if (r) return r;
    struct boot_params bp;
    memset(&bp, 0, sizeof(bp));
    bp.hdr = *h;
    bp.hdr.type_of_loader = LOADER_UNDEFINED;
    bp.hdr.vid_mode = 0xffff; /* "normal" */
    bp.hdr.cmd_line_ptr = (uint32_t)cmdline;
    bp.hdr.setup_data = 0;
    if (initrd) {
        bp.hdr.ramdisk_image = (uint32_t)initrd;
        bp.hdr.ramdisk_size = (uint32_t)b->module[0].file.size;
    }
    bp.acpi_rsdp_addr = rsdp.v;
    for (unsigned i = 0; i < p->map->ranges; i++) {
        const struct boot_memory_range *m = &p->map->range[i];
        bp.e820_table[i] = (struct boot_e820_entry){.addr = m->addr, .size = m->size, .type = m->type};
    }
    bp.e820_entries = (uint8_t)p->map->ranges;
    memcpy(boot_place_ptr(p, *where, sizeof(bp)), &bp, sizeof(bp));
    return 0;
}

int boot_bzimage_load(const struct boot_image *b, struct boot_place *p, gpa_t rsdp, struct cpu_state *s, struct nerr *e)
{
    uint8_t head[1024];
    struct setup_header h;
    uint64_t off, len, load, params;
    int r = boot_file_read(&b->kernel, 0, head, sizeof(head), e);
    if (!r) r = get_header(b, head, &h, e);
    if (!r) r = payload(b, &h, &off, &len, e);
    if (!r) r = place_kernel(b, &h, len, p, &load, e);
    if (!r) r = boot_file_read(&b->kernel, off, boot_place_ptr(p, load, len), len, e);
    if (r) return r;
    h.code32_start = (uint32_t)load;
    r = put_params(b, &h, p, rsdp, &params, e);
    if (!r) r = boot_start_64(p, load + ENTRY_64, s, e);
    if (!r) s->gpr[6] = params; /* RSI */
    return r;
}

int boot_vmlinux_load(const struct boot_image *b, struct boot_place *p, gpa_t rsdp, struct cpu_state *s, struct nerr *e)
{
    struct boot_elf elf;
    uint64_t entry, params;
    struct setup_header h = {.boot_flag = 0xaa55,
                             .header = HDR_MAGIC,
                             .version = 0x020c,
                             .loadflags = LOADED_HIGH,
                             .cmdline_size = COMMAND_LINE_SIZE,
                             .kernel_alignment = 0x200000,
                             .xloadflags = XLF_KERNEL_64};
    int r = boot_elf_parse(&b->kernel, &elf, e);
    if (!r) r = boot_elf_load(&b->kernel, &elf, p, &entry, e);
    if (!r && entry > UINT32_MAX) r = refuse(b, e, "its entry point lies in none of its segments; the image is broken");
    if (!r && strlen(b->append) > COMMAND_LINE_SIZE)
        r = nerr_set(e, -EINVAL, "--append: %zu bytes are more than Linux takes (%d); shorten it", strlen(b->append),
                     COMMAND_LINE_SIZE);
    if (!r) r = put_params(b, &h, p, rsdp, &params, e);
    if (!r) r = boot_start_64(p, entry, s, e);
    if (!r) s->gpr[6] = params; /* RSI */
    return r;
}
