/* See case.h. */
#include "tests/diff/case.h"

#include <cpuid.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

const uint8_t data_page_kind[DATA_PAGES] = {PK_NONE, PK_RW,   PK_RW,   PK_RO, PK_RW,  PK_NONE,
                                            PK_RW,   PK_MMIO, PK_NONE, PK_RW, PK_NONE};
struct host_info host;
uint8_t (*images)[MEM_SIZE];

uint64_t code_base(unsigned mode)
{
    return mode == MODE_16 ? CODE_BASE : 0;
}

uint64_t data_base(unsigned mode)
{
    return mode == MODE_16 ? DATA_BASE : 0;
}

int mem_page_index(uint64_t va)
{
    if (va >= CODE_BASE && va < CODE_BASE + CODE_PAGES * PAGE)
        return MEM_PAGES - CODE_PAGES + (int)((va - CODE_BASE) / PAGE);
    if (va < DATA_BASE || va >= DATA_BASE + DATA_PAGES * PAGE) return -1;
    unsigned page = (unsigned)((va - DATA_BASE) / PAGE);
    int index = 0;
    if (data_page_kind[page] == PK_NONE) return -1;
    for (unsigned i = 0; i < page; i++) index += data_page_kind[i] != PK_NONE;
    return index;
}

static uint64_t interesting_number(struct rng *r)
{
    static const uint64_t odd[] = {0,
                                   1,
                                   ~0ull,
                                   0x8000000000000000ull,
                                   0x7fffffffffffffffull,
                                   0x3ff0000000000000ull, /* 1.0 */
                                   0x7ff0000000000000ull, /* infinity */
                                   0x7ff8000000000001ull, /* quiet NaN */
                                   0x7ff0000000000001ull, /* signalling NaN */
                                   0x0000000000000001ull,
                                   0x3f8000003f800000ull, /* 1.0f twice */
                                   0x7f8000017fc00001ull,
                                   0x8000000080000000ull,
                                   0x00000001007fffffull,
                                   0xc3e0000000000000ull, /* -2^63 */
                                   0x4f000000cf000000ull};
    switch (rnd_below(r, 4)) {
    case 0: return odd[rnd_below(r, sizeof(odd) / sizeof(*odd))];
    case 1: return rnd_below(r, 256);
    default: return rnd(r);
    }
}

static void make_image(uint8_t *m, unsigned n)
{
    struct rng r = {0x1234567 + n};
    for (unsigned i = 0; i < MEM_SIZE; i += 8) {
        uint64_t v = n % 4 == 0 ? rnd(&r) : interesting_number(&r);
        if (n % 4 == 2 && rnd_pct(&r, 25)) v = DATA_BASE + PAGE + rnd_below(&r, 2 * PAGE);
        if (n % 4 == 3 && rnd_pct(&r, 25)) v = CODE_BASE + rnd_below(&r, 0x900);
        memcpy(m + i, &v, 8);
    }
    /* Only int3 where wild jumps of a few hundred bytes can land, so that they end at once. */
    uint8_t *code = m + (MEM_PAGES - CODE_PAGES) * PAGE;
    memset(code, 0xcc, 0xa00);
    memset(code + 0xe00, 0xcc, 0x200 + 0x400);
    memset(code + PAGE + 0xc00, 0xcc, 0x400);
}

int case_init(void)
{
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) {
        fprintf(stderr, "difffuzz: this CPU or kernel has no XSAVE; the fuzzer needs it\n");
        return -1;
    }
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    host.xcomp = a & XCOMP_ALL;
    if ((host.xcomp & 0xe0) != 0xe0) host.xcomp &= 7;
    static const struct {
        unsigned leaf;
        size_t field;
    } comp[] = {{2, offsetof(struct host_info, off_ymm)},
                {5, offsetof(struct host_info, off_k)},
                {6, offsetof(struct host_info, off_zmmh)},
                {7, offsetof(struct host_info, off_hi16)}};
    for (unsigned i = 0; i < 4; i++) {
        if (!(host.xcomp & (1u << comp[i].leaf))) continue;
        __cpuid_count(13, comp[i].leaf, a, b, c, d);
        memcpy((char *)&host + comp[i].field, &b, 4);
        if (b + a > XSAVE_BYTES) host.xcomp &= 7;
    }
    images = malloc(IMAGES * sizeof(*images));
    if (!images) return -1;
    for (unsigned i = 0; i < IMAGES; i++) make_image(images[i], i);
    return 0;
}

static void mem_copy_in(uint8_t *mem, uint64_t va, const uint8_t *data, unsigned len)
{
    for (unsigned i = 0; i < len; i++) {
        int p = mem_page_index(va + i);
        if (p >= 0) mem[(unsigned)p * PAGE + (va + i) % PAGE] = data[i];
    }
}

void case_fill_memory(const struct diff_case *c, uint8_t mem[MEM_SIZE])
{
    memcpy(mem, images[c->image % IMAGES], MEM_SIZE);
    for (unsigned i = 0; i < c->patches; i++)
        mem_copy_in(mem, c->patch[i].addr, c->patch_data + c->patch[i].off, c->patch[i].len);
    mem_copy_in(mem, c->rip, c->code, c->code_len);
    uint8_t end = 0xcc;
    mem_copy_in(mem, c->rip + c->code_len, &end, 1);
}

void case_patch(struct diff_case *c, uint64_t va, const void *data, unsigned len)
{
    if (c->patches >= PATCH_MAX || c->patch_used + len > PATCH_BYTES || va > 0xfffff000ull) return;
    struct patch *p = &c->patch[c->patches++];
    *p = (struct patch){.addr = (uint32_t)va, .len = (uint16_t)len, .off = (uint16_t)c->patch_used};
    memcpy(c->patch_data + p->off, data, len);
    c->patch_used += len;
}

/* The initial state of each component (SDM vol. 1, 13.6). */
void xsave_normalise(uint8_t *x)
{
    uint64_t bv;
    memcpy(&bv, x + 512, 8);
    if (!(bv & 1)) {
        memset(x, 0, 24);
        memset(x + 32, 0, 128);
        x[0] = 0x7f;
        x[1] = 0x03;
    }
    if (!(bv & 2)) memset(x + 160, 0, 256);
    if ((host.xcomp & 4) && !(bv & 4)) memset(x + host.off_ymm, 0, 256);
    if (host.xcomp & 0xe0) {
        if (!(bv & 0x20)) memset(x + host.off_k, 0, 64);
        if (!(bv & 0x40)) memset(x + host.off_zmmh, 0, 512);
        if (!(bv & 0x80)) memset(x + host.off_hi16, 0, 1024);
    }
    memset(x + 6, 0, 18); /* FOP, FIP, FDP: where the FPU instruction stood is not kept by every CPU */
    memset(x + 28, 0, 4); /* MXCSR_MASK */
    for (unsigned i = 0; i < 8; i++) memset(x + 32 + 16 * i + 10, 0, 6); /* reserved part of the ST registers */
    memset(x + 416, 0, 96);                                              /* free for software */
    memset(x + 512, 0, 64);                                              /* header */
}

void xsave_get_vec(const uint8_t *x, unsigned n, uint8_t out[64])
{
    memset(out, 0, 64);
    if (n >= 16) {
        if (host.xcomp & 0x80) memcpy(out, x + host.off_hi16 + 64 * (n - 16), 64);
        return;
    }
    memcpy(out, x + 160 + 16 * n, 16);
    if (host.xcomp & 4) memcpy(out + 16, x + host.off_ymm + 16 * n, 16);
    if (host.xcomp & 0x40) memcpy(out + 32, x + host.off_zmmh + 32 * n, 32);
}

void xsave_set_vec(uint8_t *x, unsigned n, const uint8_t in[64])
{
    if (n >= 16) {
        if (host.xcomp & 0x80) memcpy(x + host.off_hi16 + 64 * (n - 16), in, 64);
        return;
    }
    memcpy(x + 160 + 16 * n, in, 16);
    if (host.xcomp & 4) memcpy(x + host.off_ymm + 16 * n, in + 16, 16);
    if (host.xcomp & 0x40) memcpy(x + host.off_zmmh + 32 * n, in + 32, 32);
}

uint64_t xsave_get_k(const uint8_t *x, unsigned n)
{
    uint64_t v = 0;
    if (host.xcomp & 0x20) memcpy(&v, x + host.off_k + 8 * n, 8);
    return v;
}

void xsave_set_k(uint8_t *x, unsigned n, uint64_t v)
{
    if (host.xcomp & 0x20) memcpy(x + host.off_k + 8 * n, &v, 8);
}

static void write_hex(FILE *f, const char *name, const uint8_t *p, unsigned len)
{
    fprintf(f, "%s ", name);
    for (unsigned i = 0; i < len; i++) fprintf(f, "%02x", p[i]);
    fprintf(f, "\n");
}

int case_write(FILE *f, const struct diff_case *c)
{
    fprintf(f, "case\nseed %" PRIx64 "\nmode %u\nimage %u\nloops %u\nstack32 %u\n", c->seed, c->mode, c->image,
            c->loops, c->stack32);
    fprintf(f, "rip %" PRIx64 "\nrflags %" PRIx64 "\nfs_base %" PRIx64 "\ngs_base %" PRIx64 "\n", c->rip, c->rflags,
            c->fs_base, c->gs_base);
    fprintf(f, "gpr");
    for (unsigned i = 0; i < 16; i++) fprintf(f, " %" PRIx64, c->gpr[i]);
    fprintf(f, "\ninsns");
    for (unsigned i = 0; i < c->insns; i++) fprintf(f, " %x", c->insn_off[i]);
    fprintf(f, "\n");
    write_hex(f, "code", c->code, c->code_len);
    for (unsigned i = 0; i < c->patches; i++) {
        fprintf(f, "patch %x ", c->patch[i].addr);
        write_hex(f, "", c->patch_data + c->patch[i].off, c->patch[i].len);
    }
    write_hex(f, "xsave", c->xsave, XSAVE_BYTES);
    fprintf(f, "end\n");
    return ferror(f) ? -1 : 0;
}

static unsigned read_hex(const char *s, uint8_t *out, unsigned max)
{
    unsigned n = 0, v;
    while (*s == ' ') s++;
    for (; n < max && sscanf(s, "%2x", &v) == 1 && s[0] > ' ' && s[1] > ' '; s += 2) out[n++] = (uint8_t)v;
    return n;
}

static void read_list(char *s, uint64_t *out, unsigned max, unsigned *count)
{
    char *next = s;
    *count = 0;
    while (*count < max) {
        uint64_t v = strtoull(s, &next, 16);
        if (next == s) break;
        out[(*count)++] = v;
        s = next;
    }
}

/* "set NAME VALUE": one register of a case written by hand. VALUE is hexadecimal; for vectors the bytes from the lowest on. */
static void set_state(struct diff_case *c, const char *text)
{
    char name[16] = "", value[160] = "";
    unsigned n = 0;
    if (sscanf(text, "%15s %159s", name, value) != 2) return;
    uint64_t v = strtoull(value, NULL, 16);
    if (!strcmp(name, "fcw"))
        memcpy(c->xsave, &v, 2);
    else if (!strcmp(name, "fsw"))
        memcpy(c->xsave + 2, &v, 2);
    else if (!strcmp(name, "mxcsr"))
        memcpy(c->xsave + 24, &v, 4);
    else if (sscanf(name, "gpr%u", &n) == 1 && n < 16)
        c->gpr[n] = v;
    else if (sscanf(name, "k%u", &n) == 1 && n < 8)
        xsave_set_k(c->xsave, n, v);
    else if (sscanf(name, "vec%u", &n) == 1 && n < 32) {
        uint8_t bytes[64] = {0};
        read_hex(value, bytes, sizeof(bytes));
        xsave_set_vec(c->xsave, n, bytes);
    }
    v = host.xcomp;
    if (name[0] == 'k' || name[0] == 'v' || name[0] == 'f') memcpy(c->xsave + 512, &v, 8);
}

int case_read(FILE *f, struct diff_case *c)
{
    static char line[8192];
    uint64_t list[64];
    unsigned n;
    bool begun = false;
    memset(c, 0, sizeof(*c));
    c->mode = MODE_64;
    while (fgets(line, sizeof(line), f)) {
        char *arg = strchr(line, ' ');
        char *val = arg ? arg + 1 : line + strlen(line);
        if (arg) *arg = 0;
        line[strcspn(line, "\n")] = 0;
        if (!strcmp(line, "case")) {
            begun = true;
            c->insns = 1;
            c->rip = CODE_BASE + 0x100;
            c->rflags = 0x202;
            set_state(c, "fcw 37f");
            set_state(c, "mxcsr 1f80");
        } else if (!strcmp(line, "set"))
            set_state(c, val);
        else if (!strcmp(line, "end"))
            return begun ? 0 : -1;
        else if (!strcmp(line, "seed"))
            c->seed = strtoull(val, NULL, 16);
        else if (!strcmp(line, "mode"))
            c->mode = (uint32_t)strtoul(val, NULL, 10);
        else if (!strcmp(line, "image"))
            c->image = (uint32_t)strtoul(val, NULL, 10);
        else if (!strcmp(line, "loops"))
            c->loops = strtoul(val, NULL, 10) != 0;
        else if (!strcmp(line, "stack32"))
            c->stack32 = strtoul(val, NULL, 10) != 0;
        else if (!strcmp(line, "rip"))
            c->rip = strtoull(val, NULL, 16);
        else if (!strcmp(line, "rflags"))
            c->rflags = strtoull(val, NULL, 16);
        else if (!strcmp(line, "fs_base"))
            c->fs_base = strtoull(val, NULL, 16);
        else if (!strcmp(line, "gs_base"))
            c->gs_base = strtoull(val, NULL, 16);
        else if (!strcmp(line, "gpr")) {
            read_list(val, c->gpr, 16, &n);
        } else if (!strcmp(line, "insns")) {
            read_list(val, list, 64, &c->insns);
            for (n = 0; n < c->insns; n++) c->insn_off[n] = (uint16_t)list[n];
        } else if (!strcmp(line, "code"))
            c->code_len = read_hex(val, c->code, CODE_MAX);
        else if (!strcmp(line, "patch")) {
            uint8_t buf[PATCH_BYTES];
            char *hex;
            uint64_t va = strtoull(val, &hex, 16);
            case_patch(c, va, buf, read_hex(hex, buf, sizeof(buf)));
        } else if (!strcmp(line, "xsave"))
            read_hex(val, c->xsave, XSAVE_BYTES);
    }
    return -1;
}
