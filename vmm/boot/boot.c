/* Opens what is to be booted, finds out its format, and calls the loader for it. */
#define _GNU_SOURCE
#include "vmm/boot/boot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/boot/boot_internal.h"

static int no_kernel(const struct boot_image *b, const char *why, struct nerr *e)
{
    return nerr_set(e, -ENOEXEC, "kernel %s: %s; give a bzImage, a PVH or Linux ELF file, or a multiboot kernel",
                    b->kernel.path, why);
}

static int identify_elf(struct boot_image *b, struct nerr *e)
{
    struct boot_elf elf;
    int r = boot_elf_parse(&b->kernel, &elf, e);
    if (r) return r;
    b->format = elf.has_pvh ? BOOT_PVH : BOOT_VMLINUX;
    if (elf.has_pvh) return 0;
    /* Linux is linked in the upper half of the address space; a user program never is. */
    if (elf.is64 && elf.high_half && !elf.has_interp) return 0;
    return no_kernel(b, "an ELF file, but no kernel (no PVH note, no multiboot header, not linked as Linux is)", e);
}

/* The order is the field's: a Linux image with its own header first, then what says explicitly that it is a kernel. */
static int identify(struct boot_image *b, const uint8_t *head, struct nerr *e)
{
    if (b->kernel.size == 0) return no_kernel(b, "an empty file", e);
    if (memcmp(head + 0x202, "HdrS", 4) == 0 && head[0x1fe] == 0x55 && head[0x1ff] == 0xaa) {
        b->format = BOOT_BZIMAGE;
        return boot_bzimage_check(b, head, e);
    }
    if (boot_multiboot_is(head, b->kernel.size)) {
        b->format = BOOT_MULTIBOOT;
        return boot_multiboot_check(b, head, e);
    }
    if (boot_elf_is(head)) return identify_elf(b, e);
    if (head[0] == 0x1f && head[1] == 0x8b) return no_kernel(b, "a gzip file", e);
    return no_kernel(b, "not a kernel (no known header)", e);
}

/* One piece of a module list, up to a single comma; a doubled comma stands for itself. Returns the rest, or NULL at the end. */
static const char *next_module(const char *list, char *out)
{
    for (; *list; list++) {
        if (*list == ',' && list[1] != ',') break;
        if (*list == ',') list++;
        *out++ = *list;
    }
    *out = 0;
    return *list ? list + 1 : NULL;
}

/* `text` is a module's string: the file's name, then perhaps a space and arguments. */
static int add_module(struct boot_image *b, const char *text, bool whole, struct nerr *e)
{
    if (b->modules == BOOT_MAX_MODULES) return nerr_set(e, -E2BIG, "--initrd: more than %d modules", BOOT_MAX_MODULES);
    struct boot_module *m = &b->module[b->modules];
    char *path = whole ? strdup(text) : strndup(text, strcspn(text, " "));
    m->args = strdup(text);
    int r =
        path && m->args ? boot_file_open(&m->file, "initrd", path, e) : nerr_set(e, -ENOMEM, "--initrd: out of memory");
    free(path);
    if (r) {
        free(m->args);
        m->args = NULL;
        return r;
    }
    b->modules++;
    return 0;
}

static int open_modules(struct boot_image *b, const char *initrd, struct nerr *e)
{
    if (b->format != BOOT_MULTIBOOT) return add_module(b, initrd, true, e);
    char *text = malloc(strlen(initrd) + 1);
    if (!text) return nerr_set(e, -ENOMEM, "--initrd: out of memory");
    int r = 0;
    for (const char *rest = initrd; rest && !r;) {
        rest = next_module(rest, text);
        r = add_module(b, text, false, e);
    }
    free(text);
    return r;
}

static int open_kernel(struct boot_image *b, const char *kernel, struct nerr *e)
{
    int r = boot_file_open(&b->kernel, "kernel", kernel, e);
    if (r) return r;
    uint8_t *head = calloc(1, BOOT_HEAD_SIZE);
    if (!head) return nerr_set(e, -ENOMEM, "kernel %s: out of memory", kernel);
    r = boot_file_read(&b->kernel, 0, head, b->kernel.size < BOOT_HEAD_SIZE ? b->kernel.size : BOOT_HEAD_SIZE, e);
    if (!r) r = identify(b, head, e);
    free(head);
    return r;
}

int boot_open(const char *kernel, const char *initrd, const char *append, struct boot_image **out, struct nerr *e)
{
    struct boot_image *b = calloc(1, sizeof(*b));
    *out = NULL;
    if (!b || !(b->append = strdup(append ? append : ""))) {
        free(b);
        return nerr_set(e, -ENOMEM, "kernel %s: out of memory", kernel);
    }
    int r = open_kernel(b, kernel, e);
    if (!r && initrd) r = open_modules(b, initrd, e);
    if (r) {
        boot_close(b);
        return r;
    }
    *out = b;
    return 0;
}

void boot_close(struct boot_image *b)
{
    if (!b) return;
    boot_file_close(&b->kernel);
    for (unsigned i = 0; i < b->modules; i++) {
        boot_file_close(&b->module[i].file);
        free(b->module[i].args);
    }
    free(b->append);
    free(b);
}

int boot_load(struct boot_image *b, const struct guest_memory *memory, const struct boot_memory_map *map, gpa_t rsdp,
              struct cpu_state *state, struct nerr *e)
{
    struct boot_place p = {.memory = memory, .map = map};
    switch (b->format) {
    case BOOT_BZIMAGE: return boot_bzimage_load(b, &p, rsdp, state, e);
    case BOOT_PVH: return boot_pvh_load(b, &p, rsdp, state, e);
    case BOOT_MULTIBOOT: return boot_multiboot_load(b, &p, state, e);
    case BOOT_VMLINUX: return boot_vmlinux_load(b, &p, rsdp, state, e);
    }
    return nerr_set(e, -EINVAL, "unknown boot format");
}
