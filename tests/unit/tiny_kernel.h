/* The smallest kernel there is, for machines whose scripted engine never runs it: a multiboot image that names its own addresses. */
#ifndef NACELLE_TESTS_TINY_KERNEL_H
#define NACELLE_TESTS_TINY_KERNEL_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define TINY_KERNEL_AT 0x200000u /* guest-physical */

/* Writes it to `path`; -1 when that fails. */
static inline int tiny_kernel_write(const char *path)
{
    static uint32_t image[0x400];
    const uint32_t magic = 0x1badb002, flags = 0x10000, at = TINY_KERNEL_AT;
    /* magic, flags, checksum; addresses of the header, the load's begin, its end (0: the file's), BSS's end, the entry */
    const uint32_t header[8] = {magic, flags, 0u - magic - flags, at, at, 0, at + 0x3000, at + sizeof header};
    memset(image, 0x90, sizeof image);
    memcpy(image, header, sizeof header);
    FILE *f = fopen(path, "w");
    if (!f) return -1;
    size_t written = fwrite(image, sizeof image, 1, f);
    return fclose(f) == 0 && written == 1 ? 0 : -1;
}

#endif
