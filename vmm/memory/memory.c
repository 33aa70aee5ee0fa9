/* Guest physical memory. Untouched guest RAM must cost the host nothing, so the slots are MAP_NORESERVE anonymous
 * memory; a slot is aligned to 2 MiB so that the host can back it with huge pages where the guest does use it. */
#include "vmm/memory/memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_SIZE (2ull << 20)
#define MIN_SIZE (1ull << 20)
/* 46 bits of guest physical address are more than any host here can back; the check keeps the arithmetic below safe. */
#define MAX_SIZE (1ull << 46)

/* Maps `size` bytes at a multiple of 2 MiB: asks for 2 MiB more and gives the ends back. The PROT_NONE page that stays
 * behind the slot catches an access of the VMM's own that runs over the end. */
static uint8_t *map_aligned(uint64_t size)
{
    size_t whole = size + HUGE_SIZE + PAGE_SIZE;
    uint8_t *p = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    uint8_t *start = (uint8_t *)(((uintptr_t)p + HUGE_SIZE - 1) & ~(uintptr_t)(HUGE_SIZE - 1));
    uint8_t *end = start + size + PAGE_SIZE;
    if (start > p) munmap(p, (size_t)(start - p));
    if (end < p + whole) munmap(end, (size_t)(p + whole - end));
    if (mprotect(start, size, PROT_READ | PROT_WRITE)) {
        munmap(start, size + PAGE_SIZE);
        return NULL;
    }
    madvise(start, size, MADV_HUGEPAGE); /* advice only: hosts without huge pages refuse it, and that is fine */
    madvise(start, size,
            MADV_DONTDUMP); /* a core file of the VMM is about the VMM, and guest RAM is the guest's business */
    return start;
}

static int add_slot(struct guest_memory *m, uint64_t base, uint64_t size, struct nerr *e)
{
    uint8_t *host = map_aligned(size);
    if (!host) {
        int err = errno;
        return nerr_set(e, -err, "guest memory: cannot map %llu MiB: %s; use a smaller --memory",
                        (unsigned long long)(size >> 20), strerror(err));
    }
    m->slot[m->slots++] = (struct memory_slot){.base = GPA(base), .size = size, .host = host};
    m->ram_size += size;
    return 0;
}

int guest_memory_create(struct guest_memory *m, uint64_t size, struct nerr *e)
{
    memset(m, 0, sizeof(*m));
    if (size < MIN_SIZE || size > MAX_SIZE || size % PAGE_SIZE)
        return nerr_set(e, -EINVAL,
                        "guest memory: %llu bytes are no valid size; use a multiple of 4 KiB from 1 MiB to 64 TiB",
                        (unsigned long long)size);
    uint64_t low = size < GUEST_LOW_RAM_END ? size : GUEST_LOW_RAM_END;
    int r = add_slot(m, 0, low, e);
    if (!r && size > low) r = add_slot(m, GUEST_HIGH_RAM_BASE, size - low, e);
    if (r) guest_memory_destroy(m);
    return r;
}

void guest_memory_destroy(struct guest_memory *m)
{
    for (unsigned i = 0; i < m->slots; i++) munmap(m->slot[i].host, m->slot[i].size + PAGE_SIZE);
    memset(m, 0, sizeof(*m));
}

void *guest_memory_ptr(const struct guest_memory *m, gpa_t a, uint64_t len, bool write)
{
    for (unsigned i = 0; i < m->slots; i++) {
        const struct memory_slot *s = &m->slot[i];
        if (a.v < s->base.v) return NULL; /* sorted: no later slot can hold it either */
        uint64_t off = a.v - s->base.v;
        if (off < s->size && len <= s->size - off) return write && s->readonly ? NULL : s->host + off;
    }
    return NULL;
}

bool guest_memory_read(const struct guest_memory *m, gpa_t a, void *dst, uint64_t len)
{
    const void *p = guest_memory_ptr(m, a, len, false);
    if (!p) return false;
    memcpy(dst, p, len);
    return true;
}

bool guest_memory_write(const struct guest_memory *m, gpa_t a, const void *src, uint64_t len)
{
    void *p = guest_memory_ptr(m, a, len, true);
    if (!p) return false;
    memcpy(p, src, len);
    return true;
}
