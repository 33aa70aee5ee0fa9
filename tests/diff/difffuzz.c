/* difffuzz: runs random user-mode code on the host CPU and on the soft engine and compares every bit of state. */
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "tests/diff/fuzz.h"

#define FINDINGS_MAX 400

struct options {
    uint64_t seed, cases;
    unsigned seconds, mode, keep_going;
    bool blocks, singles, self_test, list, quiet;
    const char *class, *replay, *coverage, *out;
    char *without;
};

struct finding {
    char key[96];
    uint64_t count;
};

static struct fuzz fuzz;
static struct finding finding[FINDINGS_MAX];
static unsigned findings;
static uint64_t ran, skipped, differed, blocks, blocks_done;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* True when a finding of this kind (category of the instruction, and what differed first) is new. */
static bool note_finding(const struct diff_case *c, const struct verdict *v)
{
    char key[96];
    const struct mnem *m = c->insns == 1 ? forms_find(&fuzz.forms, case_mnemonic(c, &fuzz.forms, 0)) : NULL;
    const char *what = m               ? ZydisCategoryGetString((ZydisInstructionCategory)m->category)
                       : c->insns == 1 ? "invalid"
                                       : "block";
    snprintf(key, sizeof(key), "%s %s", what, v->field);
    for (unsigned i = 0; i < findings; i++)
        if (!strcmp(finding[i].key, key)) {
            finding[i].count++;
            return false;
        }
    if (findings < FINDINGS_MAX) {
        memcpy(finding[findings].key, key, sizeof(key));
        finding[findings++].count = 1;
    }
    return true;
}

static void write_replay(const struct options *o, const struct diff_case *c, unsigned count)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/difffuzz-%016" PRIx64 ".case", o->out, c[count - 1].seed);
    FILE *f = fopen(path, "w");
    if (!f) {
        fprintf(stderr, "difffuzz: cannot write %s\n", path);
        return;
    }
    for (unsigned i = 0; i < count; i++) case_write(f, &c[i]);
    fclose(f);
    printf("  replay: difffuzz --mode %u --replay %s\n", c->mode, path);
}

/* The first cases of the batch up to the one that differed: what a finding that needs a history needs. */
static void report(const struct options *o, unsigned index, struct verdict *v)
{
    static struct diff_case history[BATCH], c;
    static struct verdict w;
    memcpy(history, fuzz.batch->cases, (index + 1) * sizeof(*history));
    c = history[index];
    bool crash = !strcmp(v->field, "crashes") || !strcmp(v->field, "hangs");
    bool alone = !crash && !fuzz_one(&fuzz, &c, true, &w) && !w.equal && !w.skipped;
    if (alone) {
        *v = w;
        static struct diff_case whole;
        whole = c;
        /* In the same worker, which is quick; should that have come to depend on what the worker ran before, anew. */
        minimise(&fuzz, &c, false, v);
        if (fuzz_one(&fuzz, &c, true, v) || v->equal || v->skipped) {
            c = whole;
            *v = w;
            minimise(&fuzz, &c, true, v);
        }
    }
    printf("difference: %s, %s%s\n", c.insns == 1 ? ZydisMnemonicGetString(case_mnemonic(&c, &fuzz.forms, 0)) : "block",
           v->field, alone || crash ? "" : " (not when run alone in a new engine: it needs the cases before it)");
    case_print(stdout, &c, &fuzz.forms);
    printf("%s", v->detail);
    if (alone)
        write_replay(o, &c, 1);
    else
        write_replay(o, history, index + 1);
    fflush(stdout);
}

static bool name_matches(const struct mnem *m, const char *class)
{
    return !class || !strcasecmp(class, ZydisMnemonicGetString(m->mnemonic)) ||
           !strcasecmp(class, ZydisCategoryGetString((ZydisInstructionCategory)m->category)) ||
           !strcasecmp(class, ZydisISASetGetString((ZydisISASet)m->isa_set)) ||
           !strcasecmp(class, ZydisISAExtGetString((ZydisISAExt)m->isa_ext));
}

/* --without A,B,...: mnemonics, categories, ISA sets or EVEX encodings to leave out, in blocks too. */
static void leave_out(char *names)
{
    for (char *n = strtok(names, ","); n; n = strtok(NULL, ",")) {
        for (uint32_t i = 0; !strcasecmp(n, "EVEX") && i < fuzz.forms.forms; i++)
            if (fuzz.forms.form[i].enc == ENC_EVEX) fuzz.forms.form[i].excluded = true;
        for (uint32_t i = 0; i < fuzz.forms.mnems; i++)
            if (name_matches(&fuzz.forms.mnem[i], n)) fuzz.forms.mnem[i].excluded = "left out by --without";
    }
}

static uint32_t *candidates;
static unsigned candidate_count;

static int choose_candidates(const struct options *o)
{
    candidates = calloc(fuzz.forms.mnems, sizeof(*candidates));
    for (uint32_t i = 0; candidates && i < fuzz.forms.mnems; i++)
        if (!fuzz.forms.mnem[i].excluded && name_matches(&fuzz.forms.mnem[i], o->class))
            candidates[candidate_count++] = i;
    if (!candidate_count)
        fprintf(stderr, "difffuzz: no instruction, category or ISA set is called '%s'; --list shows them all\n",
                o->class ? o->class : "");
    return candidate_count ? 0 : -1;
}

static bool invalid_too; /* not when only one class of instructions is wanted */

static bool make_single(struct diff_case *c, struct rng *r)
{
    const struct mnem *m = &fuzz.forms.mnem[candidates[rnd_below(r, candidate_count)]];
    const struct form *form = forms_pick(&fuzz.forms, m, r, false);
    if (form && rnd_pct(r, 4) && invalid_too) return gen_invalid(c, &fuzz.forms, form, rnd(r));
    return form && gen_single(c, &fuzz.forms, form, rnd(r));
}

/* Tries every encoding on the host, so that those it lacks (#UD) need not fill the cases. */
static int calibrate(void)
{
    struct form *of[BATCH];
    struct rng r = {99};
    for (uint32_t i = 0, round = 0; round < 2;) {
        unsigned n = 0;
        while (n < BATCH && round < 2) {
            struct form *t = &fuzz.forms.form[i];
            const struct mnem *m = forms_find(&fuzz.forms, t->mnemonic);
            if (!m->excluded && gen_single(&fuzz.batch->cases[n], &fuzz.forms, t, rnd(&r))) of[n++] = t;
            if (++i == fuzz.forms.forms) {
                i = 0;
                round++;
            }
        }
        fuzz.batch->count = n;
        if (n && workers_run(fuzz.worker, 1)) /* the first worker is the native one */
            return -1;
        for (unsigned k = 0; k < n; k++) {
            const struct diff_result *res = &fuzz.batch->results[SIDE_NATIVE][k];
            if (res->status != RUN_DONE || (fuzz.batch->cases[k].rflags & 0x100) ||
                (res->vector == 14 && res->cr2 == res->rip))
                continue;
            of[k]->tried++;
            of[k]->ud += res->vector == 6;
        }
    }
    return 0;
}

static void make_batch(const struct options *o, struct rng *r, bool block[BATCH])
{
    unsigned n = 0;
    while (n < BATCH) {
        block[n] = o->blocks && (!o->singles || rnd_pct(r, 50));
        if (block[n] ? gen_block(&fuzz.batch->cases[n], &fuzz.forms, rnd(r)) : make_single(&fuzz.batch->cases[n], r))
            n++;
    }
    fuzz.batch->count = BATCH;
}

/* Returns how many of the batch's cases differed in a new way. */
static int run_batch(const struct options *o, const bool block[BATCH])
{
    static struct verdict v[BATCH];
    static struct diff_case kept[BATCH];
    int fresh = 0;
    if (workers_run(fuzz.worker, SIDES)) {
        fprintf(stderr, "difffuzz: cannot start a worker\n");
        return -1;
    }
    unsigned count = fuzz.batch->count;
    bool any = false;
    for (unsigned i = 0; i < count; i++) {
        const struct diff_result *native = &fuzz.batch->results[SIDE_NATIVE][i];
        compare_results(&fuzz.batch->cases[i], &fuzz.forms, native, &fuzz.batch->results[SIDE_ENGINE][i], &v[i]);
        ran++;
        skipped += v[i].skipped;
        blocks += block[i];
        blocks_done += block[i] && native->vector == 3;
        if (!v[i].skipped) coverage_count(&fuzz, &fuzz.batch->cases[i], native, block[i]);
        any |= !v[i].equal;
    }
    if (!any) return 0;
    memcpy(kept, fuzz.batch->cases, count * sizeof(*kept));
    for (unsigned i = 0; i < count; i++) {
        if (v[i].equal || v[i].skipped) continue;
        differed++;
        if (!note_finding(&kept[i], &v[i])) continue;
        fresh++;
        if (!o->self_test) {
            memcpy(fuzz.batch->cases, kept, count * sizeof(*kept));
            report(o, i, &v[i]);
        }
        if (findings >= o->keep_going) break;
    }
    return fresh;
}

static int run_fuzz(const struct options *o)
{
    struct rng r = {o->seed};
    bool block[BATCH];
    double begin = now(), said = begin;
    while ((!o->cases || ran < o->cases) && (!o->seconds || now() - begin < o->seconds)) {
        make_batch(o, &r, block);
        if (run_batch(o, block) < 0) return 2;
        if (findings >= o->keep_going) break;
        if (!o->quiet && now() - said > 10) {
            said = now();
            printf("%.0f s: %" PRIu64 " cases, %" PRIu64 " differ\n", said - begin, ran, differed);
            fflush(stdout);
        }
    }
    double took = now() - begin;
    printf("%u-bit: %" PRIu64 " cases in %.1f s (%.0f per second), %" PRIu64 " skipped, %" PRIu64
           " differ in %u ways\n",
           o->mode, ran, took, (double)ran / took, skipped, differed, findings);
    if (blocks)
        printf("  %" PRIu64 " blocks, %.0f%% of them ran to their end\n", blocks,
               100.0 * (double)blocks_done / (double)blocks);
    for (unsigned i = 0; i < findings; i++) printf("  %8" PRIu64 "  %s\n", finding[i].count, finding[i].key);
    return findings ? 1 : 0;
}

/* Runs one batch of a replay file: 1 when something differs. The last case of all is shown even if not. */
static int replay_batch(unsigned n, bool last_shown)
{
    static struct verdict v;
    int bad = 0;
    fuzz.batch->count = n;
    if (workers_run(fuzz.worker, SIDES)) return 2;
    for (unsigned i = 0; i < n; i++) {
        const struct diff_case *c = &fuzz.batch->cases[i];
        compare_results(c, &fuzz.forms, &fuzz.batch->results[SIDE_NATIVE][i], &fuzz.batch->results[SIDE_ENGINE][i], &v);
        bad |= !v.equal;
        if (v.equal && !(last_shown && i + 1 == n)) continue;
        case_print(stdout, c, &fuzz.forms);
        printf("%s%s", v.detail, v.skipped ? "  skipped\n" : v.equal ? "  equal\n" : "");
    }
    return bad;
}

static int run_replay(const struct options *o)
{
    FILE *f = fopen(o->replay, "r");
    unsigned n = BATCH, all = 0;
    int bad = 0;
    if (!f) {
        fprintf(stderr, "difffuzz: cannot open %s\n", o->replay);
        return 2;
    }
    while (n == BATCH && bad < 2) {
        for (n = 0; n < BATCH && !case_read(f, &fuzz.batch->cases[n]);) n++;
        all += n;
        if (n) bad |= replay_batch(n, n < BATCH);
    }
    fclose(f);
    if (!all) fprintf(stderr, "difffuzz: %s holds no case\n", o->replay);
    return all ? bad : 2;
}

/* Native against native: nothing may differ; then with a wrong result slipped in: it must be found, and only that. */
static int run_self_test(struct options *o)
{
    o->quiet = true;
    o->keep_going = FINDINGS_MAX;
    int clean = run_fuzz(o);
    if (clean) {
        printf("FAIL diff/self-test: the host CPU differs from itself\n");
        return 1;
    }
    worker_stop(&fuzz.worker[SIDE_ENGINE]);
    fuzz.worker[SIDE_ENGINE].kind = RUNNER_NATIVE_BROKEN;
    if (worker_start(&fuzz.worker[SIDE_ENGINE])) return 2;
    ran = 0;
    bool memory = false, flags = false, vector = false;
    run_fuzz(o);
    for (unsigned i = 0; i < findings; i++) {
        memory |= strstr(finding[i].key, "memory") != NULL;
        flags |= strstr(finding[i].key, "rflags") != NULL;
        vector |= strstr(finding[i].key, "vector") != NULL;
    }
    bool ok = memory && flags && vector;
    printf("%s diff/self-test: wrong flags%s, wrong memory%s, wrong vector registers%s found\n", ok ? "PASS" : "FAIL",
           flags ? "" : " not", memory ? "" : " not", vector ? "" : " not");
    return ok ? 0 : 1;
}

static void usage(void)
{
    printf("difffuzz: runs random user-mode code on the host CPU and on the soft engine and compares all state\n"
           "  --seed N        start of the random sequence (default 1)\n"
           "  --seconds S, --cases N   end after that (default: endless)\n"
           "  --blocks        only blocks; --singles: only single instructions (default: both)\n"
           "  --class NAME    only this mnemonic, category or ISA set (single instructions)\n"
           "  --without A,B   leave these out\n"
           "  --mode 64|32|16 64-bit code, or 32 or 16-bit code in compatibility mode\n"
           "  --keep-going N  end after N kinds of differences (default 1)\n"
           "  --replay FILE   run a replay file\n"
           "  --out DIR       where replay files go (default: here)\n"
           "  --coverage FILE write what was covered; --list: print what was not, and why\n"
           "  --self-test     prove the harness: native against native, then with injected errors\n"
           "Exit status: 0 no difference, 1 a difference, 2 it could not run.\n");
}

static int parse(struct options *o, int argc, char **argv)
{
    static const struct option opts[] = {{"seed", 1, 0, 's'},
                                         {"seconds", 1, 0, 't'},
                                         {"cases", 1, 0, 'n'},
                                         {"blocks", 0, 0, 'b'},
                                         {"singles", 0, 0, 'i'},
                                         {"class", 1, 0, 'c'},
                                         {"list", 0, 0, 'l'},
                                         {"replay", 1, 0, 'r'},
                                         {"self-test", 0, 0, 'S'},
                                         {"coverage", 1, 0, 'C'},
                                         {"mode", 1, 0, 'm'},
                                         {"keep-going", 1, 0, 'k'},
                                         {"out", 1, 0, 'o'},
                                         {"quiet", 0, 0, 'q'},
                                         {"without", 1, 0, 'w'},
                                         {"help", 0, 0, 'h'},
                                         {0, 0, 0, 0}};
    *o = (struct options){.seed = 1, .mode = MODE_64, .keep_going = 1, .blocks = true, .singles = true, .out = "."};
    for (int k; (k = getopt_long(argc, argv, "", opts, NULL)) != -1;) {
        switch (k) {
        case 's': o->seed = strtoull(optarg, NULL, 0); break;
        case 't': o->seconds = (unsigned)atoi(optarg); break;
        case 'n': o->cases = strtoull(optarg, NULL, 0); break;
        case 'b': o->singles = false; break;
        case 'i': o->blocks = false; break;
        case 'c':
            o->class = optarg;
            o->blocks = false;
            break;
        case 'l': o->list = true; break;
        case 'r': o->replay = optarg; break;
        case 'S': o->self_test = true; break;
        case 'C': o->coverage = optarg; break;
        case 'm': o->mode = (unsigned)atoi(optarg); break;
        case 'k': o->keep_going = (unsigned)atoi(optarg); break;
        case 'o': o->out = optarg; break;
        case 'w': o->without = optarg; break;
        case 'q': o->quiet = true; break;
        default: usage(); return k == 'h' ? 1 : -1;
        }
    }
    if (optind < argc || (o->mode != MODE_64 && o->mode != MODE_32 && o->mode != MODE_16) ||
        (!o->blocks && !o->singles)) {
        usage();
        return -1;
    }
    if (o->mode == MODE_16) /* the block generator writes 32 and 64-bit code */
        o->blocks = false;
    if (o->list && !o->cases && !o->seconds) o->cases = 200000;
    return 0;
}

int main(int argc, char **argv)
{
    struct options o;
    int p = parse(&o, argc, argv);
    if (p) return p > 0 ? 0 : 2;
    if (case_init() || forms_init(&fuzz.forms, o.mode)) return 2;
    if (o.without) leave_out(o.without);
    invalid_too = !o.class;
    if (choose_candidates(&o)) return 2;
    fuzz.batch = batch_create();
    if (!fuzz.batch) return 2;
    for (unsigned i = 0; i < SIDES; i++) {
        fuzz.worker[i] = (struct worker){.side = (enum side)i, .batch = fuzz.batch};
        fuzz.worker[i].kind = i == SIDE_ENGINE && !o.self_test && !o.list ? RUNNER_SOFT : RUNNER_NATIVE;
        if (worker_start(&fuzz.worker[i])) return 2;
    }
    if (!o.replay && calibrate()) return 2;
    int status = o.replay ? run_replay(&o) : o.self_test ? run_self_test(&o) : run_fuzz(&o);
    if (o.list) coverage_write(&fuzz.forms, NULL, true);
    if (o.coverage && coverage_write(&fuzz.forms, o.coverage, false))
        fprintf(stderr, "difffuzz: cannot write %s\n", o.coverage);
    for (unsigned i = 0; i < SIDES; i++) worker_stop(&fuzz.worker[i]);
    return status;
}
