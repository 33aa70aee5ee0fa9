/* Private header of vmm/boot: files, placement, and one function per format. */
#ifndef NACELLE_VMM_BOOT_INTERNAL_H
#define NACELLE_VMM_BOOT_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>

#include "vmm/boot/boot.h"

/* An open file that is only ever read at checked offsets. It may change under us: a short read is an error. */
struct boot_file {
    int fd; /* -1: none */
    uint64_t size;
    char *path; /* owned */
};

/* Opens a regular file; `what` is for messages ("kernel", "initrd"). */
int boot_file_open(struct boot_file *f, const char *what, const char *path, struct nerr *e);
void boot_file_close(struct boot_file *f);
/* Reads exactly `len` bytes at `off`; an error when the file has fewer. */
int boot_file_read(const struct boot_file *f, uint64_t off, void *dst, uint64_t len, struct nerr *e);

/* A multiboot module, or (the only one) the initrd. */
struct boot_module {
    struct boot_file file;
    char *args; /* owned: the module's string, file name included */
};

#define BOOT_MAX_MODULES 32
#define BOOT_HEAD_SIZE 8192 /* the multiboot header lies in the first 8 KiB; every other header before that */

enum boot_format { BOOT_BZIMAGE, BOOT_PVH, BOOT_MULTIBOOT, BOOT_VMLINUX };

struct boot_image {
    enum boot_format format;
    struct boot_file kernel;
    struct boot_module module[BOOT_MAX_MODULES];
    unsigned modules;
    char *append; /* owned, never NULL */
};

/* ---- place.c: what goes where in guest memory ---- */
#define BOOT_MAX_PLACED 96

struct boot_place {
    const struct guest_memory *memory;
    const struct boot_memory_map *map;
    struct {
        uint64_t start, end;
        const char *what;
    } used[BOOT_MAX_PLACED];
    unsigned n;
};

/* Claims exactly [start, start+size): it must be usable RAM that nobody claimed. */
int boot_place_at(struct boot_place *p, uint64_t start, uint64_t size, const char *what, struct nerr *e);
/* Claims `size` bytes somewhere in [lo, hi), as low as possible or (`high`) as high as possible. `align` is a power of 2. */
int boot_place_in(struct boot_place *p, uint64_t lo, uint64_t hi, uint64_t size, uint64_t align, bool high,
                  const char *what, uint64_t *start, struct nerr *e);
/* The host bytes of a claimed range. */
void *boot_place_ptr(const struct boot_place *p, uint64_t start, uint64_t size);

/* ---- elf.c ---- */
struct boot_elf {
    bool is64;
    uint64_t entry;
    uint64_t phoff;
    uint16_t phnum, phentsize, type, machine;
    bool high_half; /* a loaded segment is linked in the upper half: a kernel, no program */
    bool has_interp;
    bool has_pvh;
    uint64_t pvh_entry;
};

/* True when `head` (BOOT_HEAD_SIZE bytes, zero-filled behind the file's end) starts an ELF file. */
bool boot_elf_is(const uint8_t *head);
/* Checks header and program headers, looks for the PVH note. */
int boot_elf_parse(const struct boot_file *f, struct boot_elf *elf, struct nerr *e);
/* Loads every PT_LOAD at its physical address. `*entry`: the entry point as a physical address. */
int boot_elf_load(const struct boot_file *f, const struct boot_elf *elf, struct boot_place *p, uint64_t *entry,
                  struct nerr *e);

/* ---- one per format: `check` looks at the file alone, `load` does the work ---- */
int boot_bzimage_check(const struct boot_image *b, const uint8_t *head, struct nerr *e);
int boot_bzimage_load(const struct boot_image *b, struct boot_place *p, gpa_t rsdp, struct cpu_state *s,
                      struct nerr *e);
int boot_vmlinux_load(const struct boot_image *b, struct boot_place *p, gpa_t rsdp, struct cpu_state *s,
                      struct nerr *e);
int boot_pvh_load(const struct boot_image *b, struct boot_place *p, gpa_t rsdp, struct cpu_state *s, struct nerr *e);
bool boot_multiboot_is(const uint8_t *head, uint64_t size);
int boot_multiboot_check(const struct boot_image *b, const uint8_t *head, struct nerr *e);
int boot_multiboot_load(const struct boot_image *b, struct boot_place *p, struct cpu_state *s, struct nerr *e);

/* ---- start.c: the vCPU at the kernel's entry, with the descriptor tables and page tables it needs ---- */
/* 64-bit long mode, first 4 GiB identity-mapped, CS 0x10, data 0x18 (Linux boot protocol, "64-bit boot protocol"). */
int boot_start_64(struct boot_place *p, uint64_t entry, struct cpu_state *s, struct nerr *e);
/* 32-bit protected mode, paging off, flat segments, CS 0x08, data 0x10. */
int boot_start_32(struct boot_place *p, uint64_t entry, struct cpu_state *s, struct nerr *e);
/* Copies a string with its zero into low memory. */
int boot_put_string(struct boot_place *p, const char *text, const char *what, uint64_t *addr, struct nerr *e);
/* Loads a module or initrd into [lo, hi). An empty file places nothing and gives 0. */
int boot_put_module(struct boot_place *p, const struct boot_file *f, uint64_t lo, uint64_t hi, bool high,
                    uint64_t *addr, struct nerr *e);

#endif
