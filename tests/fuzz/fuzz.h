/* Device fuzzing: a program per device feeds it random accesses, random guest memory and a back end that answers when it likes, under
 * AddressSanitizer and UBSan. A case is a seed: the same seed does the same things, all on one thread.
 *
 * A program gives fuzz_case() and fuzz_name; fuzz.c has main(). fuzz_check() fails the case with a message. */
#ifndef NACELLE_TESTS_FUZZ_H
#define NACELLE_TESTS_FUZZ_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/bus/pci.h"

extern const char *const fuzz_name;
/* One case, with the random numbers below seeded. */
void fuzz_case(void);

/* ---- random numbers ---- */
uint64_t fuzz_bits(void);
/* Below n; n > 0. */
static inline uint64_t fuzz_below(uint64_t n)
{
    return fuzz_bits() % n;
}
/* True once in n times. */
static inline bool fuzz_one_in(uint64_t n)
{
    return fuzz_bits() % n == 0;
}
/* A number as mistakes are made with: small, a power of two and its neighbours, all ones, or any. */
uint64_t fuzz_odd_number(void);

/* Ends the program when the condition does not hold; the seed says how to come back. */
#define fuzz_check(cond)                                   \
    do {                                                   \
        if (!(cond)) fuzz_fail(__FILE__, __LINE__, #cond); \
    } while (0)
_Noreturn void fuzz_fail(const char *file, int line, const char *what);

/* ---- a bus to put a device on ---- */
/* Bytes from address 0: 4 MiB unless a case sets something else before its rig is made. */
extern uint64_t fuzz_ram;
#define FUZZ_RAM fuzz_ram

struct fuzz_rig {
    struct bus bus;
    struct guest_memory memory;
    struct pci_bus *pci;
    struct pci_layout layout;
    struct pci_irq_sink sink;
    bool line[24];
    uint64_t msis;
    uint8_t *written; /* per byte of RAM: a device said that it wrote it */
};

struct fuzz_rig *fuzz_rig_new(void);
void fuzz_rig_free(struct fuzz_rig *r);
uint32_t fuzz_config_read(struct fuzz_rig *r, unsigned slot, unsigned reg, unsigned size);
void fuzz_config_write(struct fuzz_rig *r, unsigned slot, unsigned reg, unsigned size, uint32_t v);
/* Something random to the configuration space of a slot, by ECAM or by ports, with a taste for what has effects. */
void fuzz_config_access(struct fuzz_rig *r, unsigned slot);
/* Where a memory BAR is now, whether it decodes or not; sets memory decoding and bus mastering when `on`. */
uint64_t fuzz_bar(struct fuzz_rig *r, unsigned slot, unsigned bar, bool on);
/* An address that devices should not trust: RAM, its edges, none, wrapping round. */
uint64_t fuzz_address(void);
/* Random bytes into [a, a + len) of guest memory. */
void fuzz_fill(struct fuzz_rig *r, uint64_t a, uint64_t len);

#endif
