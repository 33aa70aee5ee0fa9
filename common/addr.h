/* Address types. The three kinds of address never mix by accident:
 *   gva_t   guest virtual (linear) address, what guest instructions use
 *   gpa_t   guest physical address, what guest page tables and devices use
 *   void *  host virtual address
 * A gpa_t becomes a pointer only through guest_memory_ptr() (vmm/memory/memory.h). */
#ifndef NACELLE_COMMON_ADDR_H
#define NACELLE_COMMON_ADDR_H

#include <stdint.h>

typedef struct {
    uint64_t v;
} gva_t;

typedef struct {
    uint64_t v;
} gpa_t;

#define GVA(x) ((gva_t){(uint64_t)(x)})
#define GPA(x) ((gpa_t){(uint64_t)(x)})

#define PAGE_SHIFT 12
#define PAGE_SIZE 4096ul
#define PAGE_MASK (~(PAGE_SIZE - 1))

#endif
