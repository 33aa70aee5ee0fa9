/* Names that users give: of machines, disks, network cards. */
#ifndef NACELLE_COMMON_NAME_H
#define NACELLE_COMMON_NAME_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* 1 to `most` letters of ASCII, digits, '.', '_' and '-': they go into paths, JSON and options as they are. */
static inline bool name_good(const char *name, size_t most)
{
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
    return n && !name[n] && n <= most;
}

#endif
