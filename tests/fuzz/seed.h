/* What a real guest did to a device (see record/record.c), done again: as it was, or with mistakes in it.
 *
 * A seed is a sequence of events: a letter, the number of a BAR, then offset and size as base-128 numbers, the lowest seven bits first.
 *   W, C  a write to the BAR or to configuration space: the value follows as a number
 *   R     a read of the BAR
 *   M     guest memory at that address: the bytes follow */
#ifndef NACELLE_TESTS_FUZZ_SEED_H
#define NACELLE_TESTS_FUZZ_SEED_H

#include "fuzz.h"

struct fuzz_seed {
    const uint8_t *begin, *end;
};
/* Links a file of tests/fuzz/seeds/ into the program: FUZZ_SEED(name, "file") makes a struct fuzz_seed. */
#define FUZZ_SEED(name, file)                                              \
    __asm__(".pushsection .rodata\n"                                       \
            "fuzz_seed_" #name ": .incbin \"tests/fuzz/seeds/" file "\"\n" \
            "fuzz_seed_" #name "_end: .byte 0\n"                           \
            ".popsection\n");                                              \
    extern const uint8_t fuzz_seed_##name[], fuzz_seed_##name##_end[];     \
    static const struct fuzz_seed name = {fuzz_seed_##name, fuzz_seed_##name##_end}

/* RAM of the guests that seeds were recorded from, in bytes: a replay's rig has as much. */
#define FUZZ_SEED_RAM (128ull << 20)

/* Replays seed[first] on the function in `slot`. With `wild` 0 to the letter; else one event in `wild` is left out, done twice, changed, or the start
 * of a jump to somewhere else in this seed or in another of the `seeds`. `between` runs behind each event. */
void fuzz_replay(struct fuzz_rig *r, unsigned slot, const struct fuzz_seed *seed, unsigned seeds, unsigned first,
                 unsigned wild, void (*between)(void));

#endif
