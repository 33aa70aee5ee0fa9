/* Multiboot 1 (Multiboot Specification 0.6.96): header in the first 8 KiB, 32-bit entry, EBX points to the boot
 * information. ELF images and images that name their own addresses (the "a.out kludge"). */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/boot/boot_internal.h"

#define HEADER_MAGIC 0x1badb002u
#define BOOT_MAGIC 0x2badb002u
#define HEADER_ADDRESSES (1u << 16)
/* Bits 0 and 1 (aligned modules, memory information) are always granted. Bit 2 asks for a video mode, which there is none of. */
#define HEADER_MUST_KNOW 0xffffu
#define HEADER_GRANTED 0x7u

#define INFO_MEMORY (1u << 0)
#define INFO_CMDLINE (1u << 2)
#define INFO_MODULES (1u << 3)
#define INFO_MMAP (1u << 6)
#define INFO_LOADER (1u << 9)

#define LOW_KIB 639 /* mem_lower: up to the EBDA */

struct header {
    uint32_t magic, flags, checksum;
    uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr; /* with HEADER_ADDRESSES */
};

struct info {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4];
    uint32_t mmap_length, mmap_addr, drives_length, drives_addr, config_table, boot_loader_name, apm_table, vbe[4];
    uint8_t framebuffer[28];
};
_Static_assert(offsetof(struct info, mmap_length) == 44 && offsetof(struct info, boot_loader_name) == 64 &&
                   sizeof(struct info) == 116,
               "multiboot information layout");

struct module_entry {
    uint32_t start, end, string, reserved;
};

struct mmap_entry {
    uint32_t size; /* of what follows */
    uint64_t addr, len;
    uint32_t type;
} __attribute__((packed));

struct area {
    struct info info;
    struct module_entry module[BOOT_MAX_MODULES];
    struct mmap_entry map[BOOT_MAX_RANGES];
};

/* Offset of the header in the file's head, or -1. */
static long find_header(const uint8_t *head, uint64_t size, struct header *h)
{
    uint64_t n = size < BOOT_HEAD_SIZE ? size : BOOT_HEAD_SIZE;
    for (uint64_t off = 0; off + 12 <= n; off += 4) {
        memcpy(h, head + off, 12);
        if (h->magic != HEADER_MAGIC || h->magic + h->flags + h->checksum != 0) continue;
        memset((uint8_t *)h + 12, 0, sizeof(*h) - 12);
        if (!(h->flags & HEADER_ADDRESSES)) return (long)off;
        if (off + sizeof(*h) <= n) {
            memcpy(h, head + off, sizeof(*h));
            return (long)off;
        }
    }
    return -1;
}

bool boot_multiboot_is(const uint8_t *head, uint64_t size)
{
    struct header h;
    return find_header(head, size, &h) >= 0;
}

int boot_multiboot_check(const struct boot_image *b, const uint8_t *head, struct nerr *e)
{
    struct header h;
    struct boot_elf elf;
    if (find_header(head, b->kernel.size, &h) < 0)
        return nerr_set(e, -EINVAL, "kernel %s: no multiboot header any more; the file changed, try again",
                        b->kernel.path);
    if (h.flags & HEADER_MUST_KNOW & ~HEADER_GRANTED)
        return nerr_set(
            e, -EINVAL,
            "kernel %s: its multiboot header requires features 0x%x, which are not known here; use another kernel",
            b->kernel.path, h.flags & HEADER_MUST_KNOW & ~HEADER_GRANTED);
    if (h.flags & HEADER_ADDRESSES) return 0;
    if (!boot_elf_is(head))
        return nerr_set(e, -EINVAL,
                        "kernel %s: its multiboot header names no addresses and it is no ELF file; use another kernel",
                        b->kernel.path);
    return boot_elf_parse(&b->kernel, &elf, e);
}

static int bad_addresses(const struct boot_image *b, struct nerr *e)
{
    return nerr_set(e, -EINVAL,
                    "kernel %s: the addresses in its multiboot header contradict each other; the image is broken",
                    b->kernel.path);
}

/* Images that say themselves where they go. */
static int load_addressed(const struct boot_image *b, const struct header *h, uint64_t off, struct boot_place *p,
                          uint64_t *entry, struct nerr *e)
{
    if (h->header_addr < h->load_addr || h->header_addr - h->load_addr > off) return bad_addresses(b, e);
    uint64_t from = off - (h->header_addr - h->load_addr), len = b->kernel.size - from;
    if (h->load_end_addr) {
        if (h->load_end_addr < h->load_addr || h->load_end_addr - h->load_addr > len) return bad_addresses(b, e);
        len = h->load_end_addr - h->load_addr;
    }
    uint64_t end = h->load_addr + len;
    if (h->bss_end_addr) {
        if (h->bss_end_addr < end) return bad_addresses(b, e);
        end = h->bss_end_addr;
    }
    if (end == h->load_addr || h->entry_addr < h->load_addr || h->entry_addr >= end) return bad_addresses(b, e);
    int r = boot_place_at(p, h->load_addr, end - h->load_addr, b->kernel.path, e);
    if (r) return r;
    uint8_t *dst = boot_place_ptr(p, h->load_addr, end - h->load_addr);
    r = boot_file_read(&b->kernel, from, dst, len, e);
    memset(dst + len, 0, end - h->load_addr - len);
    *entry = h->entry_addr;
    return r;
}

static int load_kernel(const struct boot_image *b, struct boot_place *p, uint64_t *entry, struct nerr *e)
{
    uint8_t *head = calloc(1, BOOT_HEAD_SIZE);
    struct header h;
    struct boot_elf elf;
    if (!head) return nerr_set(e, -ENOMEM, "kernel %s: out of memory", b->kernel.path);
    uint64_t n = b->kernel.size < BOOT_HEAD_SIZE ? b->kernel.size : BOOT_HEAD_SIZE;
    int r = boot_file_read(&b->kernel, 0, head, n, e);
    if (!r) r = boot_multiboot_check(b, head, e);
    long off = r ? -1 : find_header(head, n, &h);
    free(head);
    if (r) return r;
    if (h.flags & HEADER_ADDRESSES) return load_addressed(b, &h, (uint64_t)off, p, entry, e);
    r = boot_elf_parse(&b->kernel, &elf, e);
    if (!r) r = boot_elf_load(&b->kernel, &elf, p, entry, e);
    if (!r && *entry > UINT32_MAX)
        r = nerr_set(e, -EINVAL, "kernel %s: its entry point lies in none of its segments; the image is broken",
                     b->kernel.path);
    return r;
}

/* Modules go right behind the kernel, as boot loaders do it: small kernels map little more than that. */
static int load_modules(const struct boot_image *b, struct boot_place *p, struct area *a, struct nerr *e)
{
    uint64_t lo = 0x100000;
    for (unsigned i = 0; i < p->n; i++)
        if (p->used[i].end > lo) lo = p->used[i].end;
    for (unsigned i = 0; i < b->modules; i++) {
        uint64_t at, string;
        int r = boot_put_module(p, &b->module[i].file, lo, GUEST_LOW_RAM_END, false, &at, e);
        if (!r) r = boot_put_string(p, b->module[i].args, "module string", &string, e);
        if (r) return r;
        a->module[i] = (struct module_entry){
            .start = (uint32_t)at, .end = (uint32_t)(at + b->module[i].file.size), .string = (uint32_t)string};
    }
    return 0;
}

/* The command line starts with the kernel's name: kernels take it for argv[0]. */
static int put_cmdline(const struct boot_image *b, struct boot_place *p, uint64_t *addr, struct nerr *e)
{
    char *text;
    if (asprintf(&text, "%s%s%s", b->kernel.path, *b->append ? " " : "", b->append) < 0)
        return nerr_set(e, -ENOMEM, "kernel command line: out of memory");
    int r = boot_put_string(p, text, "kernel command line", addr, e);
    free(text);
    return r;
}

static void fill_memory(struct area *a, const struct boot_place *p)
{
    uint64_t upper_end = 0x100000;
    for (unsigned i = 0; i < p->map->ranges; i++) {
        const struct boot_memory_range *m = &p->map->range[i];
        a->map[i] = (struct mmap_entry){
            .size = sizeof(struct mmap_entry) - 4, .addr = m->addr, .len = m->size, .type = m->type};
        if (m->type == BOOT_RAM && m->addr == 0x100000) upper_end = m->addr + m->size;
    }
    a->info.mem_lower = LOW_KIB;
    a->info.mem_upper = (uint32_t)((upper_end - 0x100000) >> 10);
}

int boot_multiboot_load(const struct boot_image *b, struct boot_place *p, struct cpu_state *s, struct nerr *e)
{
    struct area a;
    uint64_t entry, cmdline, loader, at;
    memset(&a, 0, sizeof(a));
    int r = load_kernel(b, p, &entry, e);
    if (!r) r = load_modules(b, p, &a, e);
    if (!r) r = put_cmdline(b, p, &cmdline, e);
    if (!r) r = boot_put_string(p, "nacelle", "boot loader name", &loader, e);
    if (!r) r = boot_place_in(p, 0x1000, 0x9fc00, sizeof(a), 16, false, "multiboot information", &at, e);
    if (!r) r = boot_start_32(p, entry, s, e);
    if (r) return r;
    fill_memory(&a, p);
    a.info.flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MMAP | INFO_LOADER;
    a.info.cmdline = (uint32_t)cmdline;
    a.info.boot_loader_name = (uint32_t)loader;
    a.info.mods_count = b->modules;
    a.info.mods_addr = (uint32_t)(at + offsetof(struct area, module));
    a.info.mmap_addr = (uint32_t)(at + offsetof(struct area, map));
    a.info.mmap_length = (uint32_t)(p->map->ranges * sizeof(struct mmap_entry));
    memcpy(boot_place_ptr(p, at, sizeof(a)), &a, sizeof(a));
    s->gpr[0] = BOOT_MAGIC;
    s->gpr[3] = at; /* EBX */
    return 0;
}
