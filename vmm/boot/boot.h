/* Boot loaders: put a kernel into guest memory and say in which state the boot vCPU starts it. Known formats: Linux
 * bzImage (64-bit entry), ELF with a PVH note, multiboot 1, ELF64 Linux vmlinux (64-bit entry).
 *
 * Files are hostile: every offset, size and address in them is checked against the file, the memory map and what was
 * placed before. Files are read straight into guest memory, never wholly into the VMM's own.
 *
 * Ownership: boot_open() opens the files and keeps them open, so that a guest reset loads what the run started with even
 * when the names are gone; boot_close() closes them. Threads: one at a time. */
#ifndef NACELLE_VMM_BOOT_H
#define NACELLE_VMM_BOOT_H

#include <stdint.h>

#include "common/addr.h"
#include "common/error.h"
#include "vmm/engine/engine.h"
#include "vmm/memory/memory.h"

/* Memory map as firmware would report it (ACPI 6.4 table 15.4). */
enum boot_memory_type { BOOT_RAM = 1, BOOT_RESERVED = 2, BOOT_ACPI = 3 };

struct boot_memory_range {
    uint64_t addr, size; /* bytes */
    uint32_t type;       /* enum boot_memory_type */
};

#define BOOT_MAX_RANGES 32

struct boot_memory_map {
    struct boot_memory_range range[BOOT_MAX_RANGES]; /* sorted, disjoint */
    unsigned ranges;
};

/* The PC's usual map over the slots: the legacy hole from 640 KiB (less 1 KiB of EBDA) to 1 MiB is reserved. */
void boot_memory_map_init(struct boot_memory_map *map, const struct guest_memory *memory);
/* Gives [addr, addr+size) the type `type`, cutting what was there. -EINVAL on overflow, -ENOSPC when the table is full. */
int boot_memory_map_set(struct boot_memory_map *map, uint64_t addr, uint64_t size, uint32_t type, struct nerr *e);

struct boot_image;

/* Opens kernel and initrd (may be NULL), finds out the format and checks what can be checked without memory. `append`
 * may be NULL; it is copied. On multiboot `initrd` is a list "file args,file2 args". */
int boot_open(const char *kernel, const char *initrd, const char *append, struct boot_image **out, struct nerr *e);
void boot_close(struct boot_image *b); /* NULL is fine */

/* Loads everything into `memory`, whose contents may be anything, and fills the state of the boot vCPU. `rsdp` is the
 * address of the ACPI root pointer, 0 for none. May be called again after a reset. */
int boot_load(struct boot_image *b, const struct guest_memory *memory, const struct boot_memory_map *map, gpa_t rsdp,
              struct cpu_state *state, struct nerr *e);

#endif
