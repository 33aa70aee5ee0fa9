/* One differential case: a user-mode CPU and memory state plus code, and what became of it. Cases and results lie in
 * memory shared by the parent (which makes and compares them) and the two workers (which run them).
 *
 * Both sides see the same virtual layout:
 *   DATA_BASE  pages of several kinds (enum page_kind), so that operands cross borders and fault
 *   CODE_BASE  two pages, readable, writable and executable: operands may hit the page that holds the code
 */
#ifndef NACELLE_DIFF_CASE_H
#define NACELLE_DIFF_CASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "tests/diff/rng.h"

#define DATA_BASE 0x10000000ull
#define DATA_PAGES 11
#define CODE_BASE 0x20000000ull
#define CODE_PAGES 2
#define PAGE 4096u

enum page_kind {
    PK_NONE, /* not present */
    PK_RW,
    PK_RO,
    PK_MMIO, /* RAM for the native side, no RAM for the engine: every access leaves to the harness */
};
extern const uint8_t data_page_kind[DATA_PAGES];
/* Index of the page in a memory image, or -1 when the address is in no mapped page. */
int mem_page_index(uint64_t va);

#define MEM_PAGES 9 /* mapped data pages, then the code pages */
#define MEM_SIZE (MEM_PAGES * PAGE)
#define IMAGES 16

#define CODE_MAX 1024
#define PATCH_MAX 12
#define PATCH_BYTES 2048
#define XSAVE_BYTES 2752 /* up to and including Hi16_ZMM in the standard layout of every CPU known to us */

/* The bits of XCR0 a case loads and compares: x87, SSE, AVX, AVX-512 (opmask, ZMM_Hi256, Hi16_ZMM). */
#define XCOMP_ALL 0xe7ull

struct patch {
    uint32_t addr; /* virtual address inside the window */
    uint16_t len;
    uint16_t off; /* of its bytes in patch_data */
};

/* Which code segment a case runs in. 16-bit code has segments of its own: the two pages of code, and the data window with
 * a limit inside its last mapped page, so that limits are met, too. */
enum { MODE_64 = 64, MODE_32 = 32, MODE_16 = 16 };
#define SEL_CODE64 0x33 /* the selectors Linux gives to user programs ... */
#define SEL_CODE32 0x23
#define SEL_DATA 0x2b
#define SEL_CODE16 0x07 /* ... and those of the LDT made here */
#define SEL_DATA16 0x0f
#define SEL_STACK32 0x17 /* as SEL_DATA16, but for ESP instead of SP */
#define LIMIT_CODE16 0xffff
#define LIMIT_DATA16 0x9ffb
/* The base of the code segment and of the data segments; a case's rip is linear, a result's is an offset. */
uint64_t code_base(unsigned mode);
uint64_t data_base(unsigned mode);

struct diff_case {
    uint64_t seed; /* it was generated from; for the report only */
    uint64_t gpr[16];
    uint64_t rip, rflags;
    uint64_t fs_base, gs_base;
    uint32_t mode;
    uint32_t image; /* which of the IMAGES memory images it starts with */
    uint32_t insns; /* instructions in code, without the closing int3 */
    uint32_t code_len;
    uint32_t patches, patch_used;
    bool stack32; /* MODE_16: the stack segment is SEL_STACK32 */
    bool loops;   /* may execute instructions more than once */
    struct patch patch[PATCH_MAX];
    uint16_t insn_off[64];  /* where in code[] each instruction (of a block: each slot) begins */
    uint8_t code[CODE_MAX]; /* loaded at rip, followed by int3 */
    uint8_t patch_data[PATCH_BYTES];
    _Alignas(64) uint8_t xsave[XSAVE_BYTES];
};

enum run_status {
    RUN_NONE, /* not run (yet) */
    RUN_DONE, /* ended in exception `vector` */
    RUN_SKIP, /* cannot be compared (it made a system call, or the MMIO page cannot serve it) */
    RUN_HANG,
    RUN_CRASH, /* the worker died on it */
    RUN_FAIL,  /* the engine said so: see text */
};

struct diff_result {
    uint32_t status;
    uint32_t vector, error;
    uint64_t cr2;
    uint64_t gpr[16], rip, rflags, fs_base, gs_base;
    uint16_t cs, ss, ds, es, fs, gs;
    char text[120];
    _Alignas(64) uint8_t xsave[XSAVE_BYTES]; /* standard format, components in their initial state filled in */
    _Alignas(64) uint8_t mem[MEM_SIZE];
};

/* Host properties, filled once by case_init(). */
struct host_info {
    uint64_t xcomp;                              /* XCOMP_ALL & XCR0 */
    uint32_t off_ymm, off_k, off_zmmh, off_hi16; /* offsets in the standard XSAVE image */
};
extern struct host_info host;

/* The memory images: random bytes, numbers, pointers; code pages filled with int3 around a data part. */
extern uint8_t (*images)[MEM_SIZE];

/* Returns 0, or -1 when the host lacks what the fuzzer itself needs (XSAVE), having said so on stderr. */
int case_init(void);
/* The memory a case starts from: image, patches, code. */
void case_fill_memory(const struct diff_case *c, uint8_t mem[MEM_SIZE]);
/* Adds a patch; silently dropped when it does not fit or is not wholly mapped. */
void case_patch(struct diff_case *c, uint64_t va, const void *data, unsigned len);
/* Replaces components that XSTATE_BV calls initial by their initial values and clears what is never compared. */
void xsave_normalise(uint8_t *x);
/* Bytes of vector register `n` (0..31) lane by lane in an XSAVE image: 64 bytes. */
void xsave_get_vec(const uint8_t *x, unsigned n, uint8_t out[64]);
void xsave_set_vec(uint8_t *x, unsigned n, const uint8_t in[64]);
uint64_t xsave_get_k(const uint8_t *x, unsigned n);
void xsave_set_k(uint8_t *x, unsigned n, uint64_t v);

/* Replay files: text, one field a line. Return 0 or -1 (message on stderr). */
int case_write(FILE *f, const struct diff_case *c);
int case_read(FILE *f, struct diff_case *c);

#endif
