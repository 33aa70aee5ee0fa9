/* Every encoding of every instruction Zydis can decode, found by trying all opcodes of all maps, and grouped by
 * mnemonic so that each mnemonic gets its share of the cases. */
#ifndef NACELLE_DIFF_FORMS_H
#define NACELLE_DIFF_FORMS_H

#include <Zydis/Zydis.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/diff/rng.h"

enum form_enc { ENC_LEGACY, ENC_VEX, ENC_EVEX, ENC_XOP, ENC_3DNOW };

struct form {
    uint16_t mnemonic;
    uint8_t enc;
    uint8_t map; /* legacy: 0 one byte, 1 0F, 2 0F38, 3 0F3A; others: the number in the prefix */
    uint8_t opcode;
    uint8_t pp;    /* 0 none, 1 66, 2 F3, 3 F2, legacy only: 4 66+F3, 5 66+F2 */
    uint8_t w, ll; /* REX.W or VEX.W; VEX.L, EVEX.LL */
    uint8_t modrm; /* mod is 0 (memory) or 3; reg and rm fixed unless *_any */
    bool has_modrm, reg_any, rm_any, vsib, excluded;
    uint8_t tried, ud; /* calibration: runs on the host, and how many of them ended in #UD */
};

enum { EXCLUDE_NO, EXCLUDE_RANDOM, EXCLUDE_SYSTEM, EXCLUDE_OTHER };

struct mnem {
    uint16_t mnemonic;
    uint32_t first, count; /* into forms.form[] */
    uint8_t category;
    uint8_t isa_ext;
    uint16_t isa_set;
    const char *excluded; /* why, or NULL */
    /* coverage */
    uint64_t cases, ud, done; /* run; of these ended natively in #UD; ended in the closing int3 */
    uint64_t in_blocks;
};

struct forms {
    ZydisDecoder decoder;
    unsigned mode;
    struct form *form;
    uint32_t forms;
    struct mnem *mnem;
    uint32_t mnems;
    uint16_t index[ZYDIS_MNEMONIC_MAX_VALUE + 1]; /* mnemonic -> mnem[] + 1 */
};

/* What emit may choose for memory operands: bit masks of GPR numbers. */
struct emit_opt {
    uint16_t bases;   /* 0: all */
    uint16_t indices; /* 0: all */
    bool no_wild;     /* no absolute or RIP-relative operands with unbounded displacements, no odd prefixes */
};

struct insn_code {
    ZydisDecodedInstruction d;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
    uint8_t bytes[16];
    uint8_t len;
};

int forms_init(struct forms *f, unsigned mode);
/* Makes the bytes of one instruction of this form with random registers and operands; false when it came out invalid. */
bool forms_emit(const struct forms *f, const struct form *form, struct rng *r, const struct emit_opt *opt,
                struct insn_code *out);
bool forms_decode(const struct forms *f, const uint8_t *bytes, unsigned len, struct insn_code *out);
/* One of the mnemonic's forms; those that the host answers with #UD are rare, or never taken. */
const struct form *forms_pick(const struct forms *f, const struct mnem *m, struct rng *r, bool working_only);
const struct mnem *forms_find(const struct forms *f, uint16_t mnemonic);

#endif
