/* See fuzz.h. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "tests/diff/fuzz.h"

void coverage_count(struct fuzz *z, const struct diff_case *c, const struct diff_result *native, bool block)
{
    for (unsigned i = 0; i < c->insns; i++) {
        uint16_t name = case_mnemonic(c, &z->forms, i);
        struct mnem *m = z->forms.index[name] ? &z->forms.mnem[z->forms.index[name] - 1] : NULL;
        if (!m) continue;
        if (block) {
            m->in_blocks++;
            continue;
        }
        m->cases++;
        m->ud += native->vector == 6;
        m->done += native->vector == 3;
    }
}

/* Some cases of such an instruction end in something else first: the fetch that faults, a pending x87 exception. */
static bool lacking(const struct mnem *m)
{
    return !m->done && m->cases && m->ud > m->cases / 2;
}

static const char *status_of(const struct mnem *m)
{
    if (m->excluded) return m->excluded;
    if (!m->cases) return "never made";
    if (lacking(m)) return "the host lacks it (always #UD, compared as such)";
    if (!m->done) return "always faults in user mode (compared as such)";
    return NULL;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(ZydisMnemonicGetString((*(const struct mnem *const *)a)->mnemonic),
                  ZydisMnemonicGetString((*(const struct mnem *const *)b)->mnemonic));
}

int coverage_write(const struct forms *f, const char *path, bool only_missing)
{
    FILE *out = path ? fopen(path, "w") : stdout;
    const struct mnem **sorted = calloc(f->mnems, sizeof(*sorted));
    unsigned run = 0, absent = 0, faulting = 0, excluded = 0;
    if (!out || !sorted) return -1;
    for (uint32_t i = 0; i < f->mnems; i++) {
        const struct mnem *m = sorted[i] = &f->mnem[i];
        if (m->excluded)
            excluded++;
        else if (lacking(m))
            absent++;
        else if (m->cases && !m->done)
            faulting++;
        else if (m->done)
            run++;
    }
    qsort(sorted, f->mnems, sizeof(*sorted), by_name);
    fprintf(out, "# What the differential fuzzer covers (%u-bit code)\n\n", f->mode);
    fprintf(
        out,
        "Made by `difffuzz --coverage FILE`. Every mnemonic that Zydis decodes in %u-bit mode, out of %u encodings: "
        "%u run to their end on both sides and are compared, %u always fault in user mode and are compared as faults, "
        "%u are lacking on the host this list was made on and are compared as #UD, %u are excluded.\n\n",
        f->mode, f->forms, run, faulting, absent, excluded);
    fprintf(out, "| Mnemonic | Category | ISA | Single cases | ended normally | in blocks | Remark |\n");
    fprintf(out, "| --- | --- | --- | --: | --: | --: | --- |\n");
    for (uint32_t i = 0; i < f->mnems; i++) {
        const struct mnem *m = sorted[i];
        const char *why = status_of(m);
        if (only_missing && !why) continue;
        fprintf(out, "| %s | %s | %s | %" PRIu64 " | %" PRIu64 " | %" PRIu64 " | %s |\n",
                ZydisMnemonicGetString(m->mnemonic), ZydisCategoryGetString((ZydisInstructionCategory)m->category),
                ZydisISASetGetString((ZydisISASet)m->isa_set), m->cases, m->done, m->in_blocks, why ? why : "");
    }
    free(sorted);
    return path ? fclose(out) : 0;
}
