/* Page allocation and page tables. Memory below 1 GiB is mapped one to one. */
#include "kernel.h"

extern u8 image_end[];

void *phys(u64 pa)
{
    return (void *)pa;
}

void *pages_alloc(unsigned n, u64 align)
{
    static u64 next;
    static volatile u32 lock;
    while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE)) pause();
    /* Clear of the image and of the modules or tables that a loader may put right behind it. */
    if (!next) next = ((u64)image_end + 0x800000 - 1) & ~0x3ffffful;
    next = (next + align - 1) & ~(align - 1);
    void *p = phys(next);
    next += n * PAGE;
    __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
    if (next > 60ul << 20) panic("test out of memory");
    return memset(p, 0, n * PAGE);
}

void *page_alloc(void)
{
    return pages_alloc(1, PAGE);
}

u64 *pte_of(u64 va, unsigned level)
{
    u64 *table = phys(cr3() & PTE_ADDR);
    for (unsigned l = 4;; l--) {
        u64 *e = &table[va >> (12 + 9 * (l - 1)) & 511];
        if (l == level) return e;
        if (!(*e & PTE_P)) *e = (u64)page_alloc() | PTE_P | PTE_W | PTE_U;
        if (*e & PTE_PS) panic("pte_of: %lx is a large page", va);
        table = phys(*e & PTE_ADDR);
    }
}

void map_page(u64 va, u64 pa, u64 flags)
{
    *pte_of(va, 1) = pa | flags | PTE_P;
    invlpg(va);
}
