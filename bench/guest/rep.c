/* Bandwidth of the string instructions, over buffers that fit into the second level cache and one that does not. */
#include <stdlib.h>

#include "bench.h"

enum { SMALL = 64 << 10, LARGE = 16 << 20 };

static char *buffer(void)
{
    static char *memory; /* touched once, so that page faults are no part of the measure */

    if (memory == NULL) {
        memory = aligned_alloc(4096, 2 * LARGE);
        if (memory == NULL) {
            bench_die("out of memory");
        }
        for (size_t i = 0; i < 2 * (size_t)LARGE; i += 4096) {
            memory[i] = (char)i;
        }
    }
    return memory;
}

static void movsb(void *to, const void *from, size_t n)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

static void movsq(void *to, const void *from, size_t n)
{
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

static void stosb(void *to, size_t n)
{
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(5) : "memory");
}

static void stosq(void *to, size_t n)
{
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(n) : "a"(5) : "memory");
}

static uint64_t run_movsb(uint64_t n)
{
    char *b = buffer();

    while (n-- > 0) {
        movsb(b, b + LARGE, SMALL);
    }
    return 0;
}

static uint64_t run_movsq(uint64_t n)
{
    char *b = buffer();

    while (n-- > 0) {
        movsq(b, b + LARGE, SMALL / 8);
    }
    return 0;
}

static uint64_t run_movsq_large(uint64_t n)
{
    char *b = buffer();

    while (n-- > 0) {
        movsq(b, b + LARGE, LARGE / 8);
    }
    return 0;
}

static uint64_t run_stosb(uint64_t n)
{
    char *b = buffer();

    while (n-- > 0) {
        stosb(b, SMALL);
    }
    return 0;
}

static uint64_t run_stosq(uint64_t n)
{
    char *b = buffer();

    while (n-- > 0) {
        stosq(b, SMALL / 8);
    }
    return 0;
}

/* A page at a time, as kernels clear and copy pages. */
static uint64_t run_page(uint64_t n)
{
    char *b = buffer();

    while (n-- > 0) {
        size_t at = (n % 512) * 4096;

        stosq(b + at, 512);
        movsq(b + at, b + LARGE + at, 512);
    }
    return 0;
}

const struct bench bench_rep[] = {
    {.group = "rep", .name = "movsb-64K", .kind = BENCH_LOOP, .work = 1, .bytes = SMALL, .run = run_movsb},
    {.group = "rep", .name = "movsq-64K", .kind = BENCH_LOOP, .work = 1, .bytes = SMALL, .run = run_movsq},
    {.group = "rep", .name = "movsq-16M", .kind = BENCH_LOOP, .work = 1, .bytes = LARGE, .run = run_movsq_large},
    {.group = "rep", .name = "stosb-64K", .kind = BENCH_LOOP, .work = 1, .bytes = SMALL, .run = run_stosb},
    {.group = "rep", .name = "stosq-64K", .kind = BENCH_LOOP, .work = 1, .bytes = SMALL, .run = run_stosq},
    {.group = "rep", .name = "page-clear-copy", .kind = BENCH_LOOP, .work = 8, .bytes = 8192, .run = run_page},
    {.name = NULL},
};
