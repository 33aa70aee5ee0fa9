/* The bench programs: one static binary, the same file on the host, under Nacelle and under QEMU.
 *
 * A row is one program. FIXED rows do a fixed piece of work and are measured in seconds; their check value must be the
 * same on every machine. LOOP rows repeat an operation n times, n chosen on the spot so that the clock's grain does not
 * show, and are measured in ns per operation, or MB/s where an operation moves bytes. */
#ifndef NACELLE_BENCH_GUEST_BENCH_H
#define NACELLE_BENCH_GUEST_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum bench_kind {
    BENCH_FIXED, /* run(work): work is the size; returns the check value */
    BENCH_LOOP,  /* run(n): does n operations; the return value is ignored */
    BENCH_EXEC,  /* starts a Debian program (argv); the check value is made from what it prints */
};

struct bench {
    const char *group;
    const char *name;
    enum bench_kind kind;
    uint64_t work;  /* FIXED: argument of run; LOOP: the first n to try */
    uint64_t bytes; /* LOOP: bytes moved per operation, 0: report ns per operation */
    uint64_t (*run)(uint64_t work);
    bool (*usable)(void);    /* NULL: always; else whether this CPU has what the row needs */
    const char *const *argv; /* EXEC: program (path below the package root), then arguments */
};

/* Rows by theme, each list ends with a row without a name. */
extern const struct bench bench_integer[];
extern const struct bench bench_library[];
extern const struct bench bench_exec[];
extern const struct bench bench_float[];
extern const struct bench bench_simd[];
extern const struct bench bench_rep[];
extern const struct bench bench_system[];
extern const struct bench bench_parallel[];

/* Single programs that the parallel rows run side by side. */
uint64_t bench_sha256(uint64_t work);
uint64_t bench_sort(uint64_t work);
uint64_t bench_hash(uint64_t work);
uint64_t bench_bytecode(uint64_t work);

/* The seconds that CLOCK_MONOTONIC shows. */
double bench_now(void);

/* Ends the row's own process with a message; for what can only fail when the machine under test is wrong. */
_Noreturn void bench_die(const char *what);

void *bench_alloc(size_t size); /* never NULL, zeroed; freed with free() */

/* A small fast generator (xorshift64*): the same numbers everywhere. */
struct bench_random {
    uint64_t state;
};

static inline uint64_t bench_next(struct bench_random *r)
{
    r->state ^= r->state >> 12;
    r->state ^= r->state << 25;
    r->state ^= r->state >> 27;
    return r->state * 0x2545f4914f6cdd1dull;
}

static inline uint64_t bench_mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9e3779b97f4a7c15ull;
    return h ^ (h >> 29);
}

uint64_t bench_mix_bytes(uint64_t h, const void *data, size_t size);

/* Fills `size` bytes with text that looks like prose to a compressor: words of a fixed vocabulary, Zipf-like. */
void bench_text(char *to, size_t size, uint64_t seed);

#endif
