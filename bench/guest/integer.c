/* Integer programs: classic algorithms, each with the memory and branch behaviour of its kind. */
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

/* ---- sort: the C library's qsort over strings and over numbers ---- */

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int compare_numbers(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

uint64_t bench_sort(uint64_t count)
{
    struct bench_random r = {42};
    uint64_t *number = bench_alloc(count * sizeof *number), h = 0;
    char(*text)[16] = bench_alloc(count * sizeof *text);
    const char **string = bench_alloc(count * sizeof *string);

    for (uint64_t i = 0; i < count; i++) {
        number[i] = bench_next(&r);
        for (int c = 0; c < 15; c++) {
            text[i][c] = (char)('a' + (bench_next(&r) >> 50) % 4);
        }
        string[i] = text[i];
    }
    qsort(number, count, sizeof *number, compare_numbers);
    qsort(string, count, sizeof *string, compare_strings);
    for (uint64_t i = 0; i < count; i += 97) {
        h = bench_mix(bench_mix_bytes(h, string[i], 15), number[i]);
    }
    free(number);
    free(text);
    free(string);
    return h;
}

/* ---- hash: a chained table of strings: insert, look up, delete ---- */

struct entry {
    struct entry *next;
    uint64_t count;
    char key[24];
};

static uint64_t key_hash(const char *key)
{
    uint64_t h = 14695981039346656037ull;

    for (; *key != '\0'; key++) {
        h = (h ^ (unsigned char)*key) * 0x100000001b3ull;
    }
    return h ^ (h >> 32);
}

static struct entry **find(struct entry **table, uint64_t mask, const char *key)
{
    struct entry **at = &table[key_hash(key) & mask];

    while (*at != NULL && strcmp((*at)->key, key) != 0) {
        at = &(*at)->next;
    }
    return at;
}

uint64_t bench_hash(uint64_t operations)
{
    enum { SLOTS = 1 << 15 };
    struct entry **table = bench_alloc(SLOTS * sizeof *table);
    struct bench_random r = {7};
    uint64_t h = 0, live = 0;

    for (uint64_t i = 0; i < operations; i++) {
        uint64_t v = bench_next(&r) >> 8;
        char key[24] = "key-";
        struct entry **at;
        int n = 4;

        for (uint64_t k = v % 50000; k != 0; k /= 10) {
            key[n++] = (char)('0' + k % 10);
        }
        at = find(table, SLOTS - 1, key);
        if (*at == NULL) {
            *at = bench_alloc(sizeof **at);
            memcpy((*at)->key, key, sizeof key);
            live++;
        } else if ((v >> 40) % 4 == 0) {
            struct entry *gone = *at;

            *at = gone->next;
            h = bench_mix(h, gone->count);
            free(gone);
            live--;
        } else {
            (*at)->count += v & 15;
        }
    }
    for (int i = 0; i < SLOTS; i++) {
        while (table[i] != NULL) {
            struct entry *gone = table[i];

            table[i] = gone->next;
            free(gone);
        }
    }
    free(table);
    return bench_mix(h, live);
}

/* ---- sha256 (FIPS 180-4), plain C ---- */

static const uint32_t sha_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotr(uint32_t v, int n)
{
    return v >> n | v << (32 - n);
}

static void sha_block(uint32_t s[8], const unsigned char *p)
{
    uint32_t w[64], v[8];

    for (int i = 0; i < 16; i++) {
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    }
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = rotr(w[i - 15], 7) ^ rotr(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = rotr(w[i - 2], 17) ^ rotr(w[i - 2], 19) ^ w[i - 2] >> 10;

        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    memcpy(v, s, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t s1 = rotr(v[4], 6) ^ rotr(v[4], 11) ^ rotr(v[4], 25), ch = (v[4] & v[5]) ^ (~v[4] & v[6]);
        uint32_t t1 = v[7] + s1 + ch + sha_k[i] + w[i];
        uint32_t s0 = rotr(v[0], 2) ^ rotr(v[0], 13) ^ rotr(v[0], 22),
                 maj = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);

        v[7] = v[6], v[6] = v[5], v[5] = v[4], v[4] = v[3] + t1, v[3] = v[2], v[2] = v[1], v[1] = v[0],
        v[0] = t1 + s0 + maj;
    }
    for (int i = 0; i < 8; i++) {
        s[i] += v[i];
    }
}

uint64_t bench_sha256(uint64_t size)
{
    uint32_t s[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    enum { BUFFER = 1 << 16 };
    unsigned char *buffer = bench_alloc(BUFFER);

    bench_text((char *)buffer, BUFFER, 3);
    for (uint64_t done = 0; done < size; done += 64) {
        sha_block(s, buffer + done % BUFFER);
    }
    free(buffer);
    return bench_mix_bytes(0, s, sizeof s);
}

/* ---- md5 (RFC 1321) ---- */

static const uint32_t md5_k[64] = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391};

static void md5_block(uint32_t s[4], const unsigned char *p)
{
    static const unsigned char shift[16] = {7, 12, 17, 22, 5, 9, 14, 20, 4, 11, 16, 23, 6, 10, 15, 21};
    uint32_t m[16], a = s[0], b = s[1], c = s[2], d = s[3];

    memcpy(m, p, sizeof m);
    for (int i = 0; i < 64; i++) {
        uint32_t f, was = d;
        int g;

        if (i < 16) {
            f = (b & c) | (~b & d), g = i;
        } else if (i < 32) {
            f = (d & b) | (~d & c), g = (5 * i + 1) & 15;
        } else if (i < 48) {
            f = b ^ c ^ d, g = (3 * i + 5) & 15;
        } else {
            f = c ^ (b | ~d), g = (7 * i) & 15;
        }
        f += a + md5_k[i] + m[g];
        a = was, d = c, c = b, b += rotr(f, 32 - shift[i / 16 * 4 + i % 4]);
    }
    s[0] += a, s[1] += b, s[2] += c, s[3] += d;
}

static uint64_t run_md5(uint64_t size)
{
    uint32_t s[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
    enum { BUFFER = 1 << 16 };
    unsigned char *buffer = bench_alloc(BUFFER);

    bench_text((char *)buffer, BUFFER, 4);
    for (uint64_t done = 0; done < size; done += 64) {
        md5_block(s, buffer + done % BUFFER);
    }
    free(buffer);
    return bench_mix_bytes(0, s, sizeof s);
}

/* ---- crc32, a table and a byte at a time ---- */

static uint64_t run_crc32(uint64_t size)
{
    enum { BUFFER = 1 << 18 };
    unsigned char *buffer = bench_alloc(BUFFER);
    uint32_t table[256], crc = ~0u;

    for (uint32_t i = 0; i < 256; i++) {
        uint32_t v = i;

        for (int b = 0; b < 8; b++) {
            v = v & 1 ? v >> 1 ^ 0xedb88320u : v >> 1;
        }
        table[i] = v;
    }
    bench_text((char *)buffer, BUFFER, 5);
    for (uint64_t done = 0; done < size; done += BUFFER) {
        for (int i = 0; i < BUFFER; i++) {
            crc = table[(crc ^ buffer[i]) & 255] ^ crc >> 8;
        }
    }
    free(buffer);
    return ~crc;
}

/* ---- base64, both ways ---- */

static const char b64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static uint64_t run_base64(uint64_t rounds)
{
    enum { RAW = 3 << 15, CODED = RAW / 3 * 4 };
    unsigned char *raw = bench_alloc(RAW), *coded = bench_alloc(CODED), back[256] = {0};
    uint64_t h = 0;

    for (int i = 0; i < 64; i++) {
        back[(unsigned char)b64[i]] = (unsigned char)i;
    }
    bench_text((char *)raw, RAW, 6);
    for (uint64_t k = 0; k < rounds; k++) {
        for (int i = 0, o = 0; i < RAW; i += 3, o += 4) {
            uint32_t v = (uint32_t)raw[i] << 16 | (uint32_t)raw[i + 1] << 8 | raw[i + 2];

            for (int c = 0; c < 4; c++) {
                coded[o + c] = (unsigned char)b64[v >> (18 - 6 * c) & 63];
            }
        }
        coded[k % CODED] ^= 1; /* so that no round is like the last */
        for (int i = 0, o = 0; i < CODED; i += 4, o += 3) {
            uint32_t v = (uint32_t)back[coded[i]] << 18 | (uint32_t)back[coded[i + 1]] << 12 |
                         (uint32_t)back[coded[i + 2]] << 6 | back[coded[i + 3]];

            raw[o] = (unsigned char)(v >> 16), raw[o + 1] = (unsigned char)(v >> 8), raw[o + 2] = (unsigned char)v;
        }
        h = bench_mix(h, raw[k % RAW]);
    }
    h = bench_mix_bytes(h, raw, RAW);
    free(raw);
    free(coded);
    return h;
}

/* ---- string search (Boyer, Moore, Horspool) ---- */

static uint64_t search(const char *text, size_t size, const char *needle, size_t length)
{
    size_t skip[256], hits = 0;

    for (int i = 0; i < 256; i++) {
        skip[i] = length;
    }
    for (size_t i = 0; i + 1 < length; i++) {
        skip[(unsigned char)needle[i]] = length - 1 - i;
    }
    for (size_t at = 0; at + length <= size; at += skip[(unsigned char)text[at + length - 1]]) {
        size_t i = length;

        while (i > 0 && text[at + i - 1] == needle[i - 1]) {
            i--;
        }
        hits += i == 0;
    }
    return hits;
}

static uint64_t run_search(uint64_t rounds)
{
    enum { SIZE = 1 << 21 };
    char *text = bench_alloc(SIZE);
    struct bench_random r = {8};
    uint64_t h = 0;

    bench_text(text, SIZE, 9);
    for (uint64_t k = 0; k < rounds; k++) {
        size_t at = bench_next(&r) % (SIZE - 32);

        h = bench_mix(h, search(text, SIZE, text + at, 4 + k % 12));
    }
    free(text);
    return h;
}

/* ---- regular expressions: the C library's regexec over lines ---- */

static uint64_t run_regex(uint64_t lines)
{
    static const char *const pattern[] = {"(e|t)+[a-n]{2,}[^ ]*s", "^[a-z]+ [a-z]*t[aeo] .*n$", "([a-z])[aeiou]\\1"};
    char *text = bench_alloc(lines * 64 + 1);
    uint64_t h = 0;

    bench_text(text, lines * 64, 10);
    for (int p = 0; p < 3; p++) {
        regex_t re;

        if (regcomp(&re, pattern[p], REG_EXTENDED) != 0) {
            bench_die("regcomp");
        }
        for (uint64_t i = 0; i < lines; i++) {
            char line[65] = {0};
            regmatch_t m[2];

            memcpy(line, text + i * 64, 64);
            if (regexec(&re, line, 2, m, 0) == 0) {
                h = bench_mix(h, (uint64_t)m[0].rm_so * 64 + (uint64_t)m[0].rm_eo);
            }
        }
        regfree(&re);
    }
    free(text);
    return h;
}

/* ---- dijkstra: shortest paths over a random graph, with a binary heap ---- */

struct heap {
    uint64_t *item; /* distance << 20 | node */
    size_t count;
};

static void heap_push(struct heap *q, uint64_t v)
{
    size_t i = q->count++;

    while (i > 0 && q->item[(i - 1) / 2] > v) {
        q->item[i] = q->item[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    q->item[i] = v;
}

static uint64_t heap_pop(struct heap *q)
{
    uint64_t top = q->item[0], v = q->item[--q->count];
    size_t i = 0;

    for (;;) {
        size_t child = 2 * i + 1;

        if (child >= q->count) {
            break;
        }
        child += child + 1 < q->count && q->item[child + 1] < q->item[child];
        if (q->item[child] >= v) {
            break;
        }
        q->item[i] = q->item[child];
        i = child;
    }
    q->item[i] = v;
    return top;
}

static uint64_t run_dijkstra(uint64_t rounds)
{
    enum { NODES = 20000, DEGREE = 8 };
    uint32_t *to = bench_alloc(NODES * DEGREE * 4), *cost = bench_alloc(NODES * DEGREE * 4),
             *far = bench_alloc(NODES * 4);
    struct heap q = {bench_alloc((NODES * DEGREE + 1) * 8), 0};
    struct bench_random r = {11};
    uint64_t h = 0;

    for (int i = 0; i < NODES * DEGREE; i++) {
        to[i] = (uint32_t)((bench_next(&r) >> 20) % NODES);
        cost[i] = 1 + (uint32_t)(bench_next(&r) >> 56);
    }
    for (uint64_t k = 0; k < rounds; k++) {
        memset(far, 0xff, NODES * 4);
        far[k] = 0;
        heap_push(&q, k);
        while (q.count > 0) {
            uint64_t top = heap_pop(&q), node = top & 0xfffff;

            if (top >> 20 > far[node]) {
                continue;
            }
            for (int e = 0; e < DEGREE; e++) {
                uint32_t next = to[node * DEGREE + e], d = (uint32_t)(top >> 20) + cost[node * DEGREE + e];

                if (d < far[next]) {
                    far[next] = d;
                    heap_push(&q, (uint64_t)d << 20 | next);
                }
            }
        }
        h = bench_mix_bytes(h, far, NODES * 4);
    }
    free(to);
    free(cost);
    free(far);
    free(q.item);
    return h;
}

/* ---- integer matrices ---- */

static uint64_t run_matrix(uint64_t n)
{
    int64_t *a = bench_alloc(n * n * 8), *b = bench_alloc(n * n * 8), *c = bench_alloc(n * n * 8);
    struct bench_random r = {12};
    uint64_t h;

    for (uint64_t i = 0; i < n * n; i++) {
        a[i] = (int64_t)(bench_next(&r) >> 48);
        b[i] = (int64_t)(bench_next(&r) >> 48);
    }
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t j = 0; j < n; j++) {
            int64_t sum = 0;

            for (uint64_t k = 0; k < n; k++) {
                sum += a[i * n + k] * b[k * n + j];
            }
            c[i * n + j] = sum;
        }
    }
    h = bench_mix_bytes(0, c, n * n * 8);
    free(a);
    free(b);
    free(c);
    return h;
}

/* ---- queens: recursion and bit tricks, all in registers ---- */

static uint64_t queens(uint32_t all, uint32_t columns, uint32_t left, uint32_t right)
{
    uint64_t count = 0;

    if (columns == all) {
        return 1;
    }
    for (uint32_t free_ = all & ~(columns | left | right); free_ != 0;) {
        uint32_t bit = free_ & -free_;

        free_ ^= bit;
        count += queens(all, columns | bit, (left | bit) << 1, (right | bit) >> 1);
    }
    return count;
}

static uint64_t run_queens(uint64_t n)
{
    return queens((1u << n) - 1, 0, 0, 0);
}

/* ---- bytecode: an interpreter's dispatch loop (indirect jumps, a stack in memory) ---- */

enum op { OP_PUSH, OP_LOAD, OP_STORE, OP_ADD, OP_MUL, OP_XOR, OP_SHR, OP_LESS, OP_JUMP_IF, OP_END };

uint64_t bench_bytecode(uint64_t rounds)
{
    /* i = 0; x = 1; do { x = (x * 6364136223846793005 + i) ^ (x >> 29); i = i + 1; } while (i < rounds) */
    const int64_t code[] = {OP_PUSH,
                            0,
                            OP_STORE,
                            0,
                            OP_PUSH,
                            1,
                            OP_STORE,
                            1,
                            /* 8: */ OP_LOAD,
                            1,
                            OP_PUSH,
                            6364136223846793005,
                            OP_MUL,
                            OP_LOAD,
                            0,
                            OP_ADD,
                            OP_LOAD,
                            1,
                            OP_PUSH,
                            29,
                            OP_SHR,
                            OP_XOR,
                            OP_STORE,
                            1,
                            OP_LOAD,
                            0,
                            OP_PUSH,
                            1,
                            OP_ADD,
                            OP_STORE,
                            0,
                            OP_LOAD,
                            0,
                            OP_PUSH,
                            (int64_t)rounds,
                            OP_LESS,
                            OP_JUMP_IF,
                            8,
                            OP_END};
    static const void *const label[] = {&&push, &&load, &&store, &&add, &&mul, &&xor_, &&shr, &&less, &&jump_if, &&end};
    uint64_t stack[16], variable[4] = {0}, *sp = stack;
    const int64_t *pc = code;

#define NEXT goto *label[*pc++]
    NEXT;
push:
    *sp++ = (uint64_t)*pc++;
    NEXT;
load:
    *sp++ = variable[*pc++];
    NEXT;
store:
    variable[*pc++] = *--sp;
    NEXT;
add:
    sp--, sp[-1] += *sp;
    NEXT;
mul:
    sp--, sp[-1] *= *sp;
    NEXT;
xor_:
    sp--, sp[-1] ^= *sp;
    NEXT;
shr:
    sp--, sp[-1] >>= *sp;
    NEXT;
less:
    sp--, sp[-1] = sp[-1] < *sp;
    NEXT;
jump_if:
    pc = *--sp != 0 ? code + *pc : pc + 1;
    NEXT;
end:
    return variable[1];
#undef NEXT
}

/* ---- json: print a tree, parse it, print it again ---- */

struct json {
    enum { NUMBER, STRING, ARRAY, OBJECT } kind;
    struct json *child, *next;
    char *key, *text;
    int64_t number;
};

static char *put_text(char *out, const char *text)
{
    *out++ = '"';
    for (; *text != '\0'; text++) {
        if (*text == '\n') {
            *out++ = '\\', *out++ = 'n';
        } else {
            *out++ = *text;
        }
    }
    *out++ = '"';
    return out;
}

static char *json_print(char *out, const struct json *v)
{
    if (v->kind == NUMBER) {
        return out + sprintf(out, "%lld", (long long)v->number);
    }
    if (v->kind == STRING) {
        return put_text(out, v->text);
    }
    *out++ = v->kind == ARRAY ? '[' : '{';
    for (const struct json *c = v->child; c != NULL; c = c->next) {
        if (v->kind == OBJECT) {
            out = put_text(out, c->key);
            *out++ = ':';
        }
        out = json_print(out, c);
        *out++ = ',';
    }
    out -= v->child != NULL;
    *out++ = v->kind == ARRAY ? ']' : '}';
    *out = '\0';
    return out;
}

static char *get_text(const char **in)
{
    const char *end = ++*in;
    char *text, *out;

    while (*end != '"') {
        end += *end == '\\' ? 2 : 1;
    }
    text = out = bench_alloc((size_t)(end - *in) + 1);
    for (; *in < end; ++*in) {
        if (**in == '\\') {
            ++*in;
            *out++ = '\n';
        } else {
            *out++ = **in;
        }
    }
    ++*in;
    return text;
}

static struct json *json_parse(const char **in)
{
    struct json *v = bench_alloc(sizeof *v), **tail = &v->child;

    if (**in == '"') {
        v->kind = STRING;
        v->text = get_text(in);
    } else if (**in != '[' && **in != '{') {
        v->kind = NUMBER;
        v->number = strtoll(*in, (char **)in, 10);
    } else {
        v->kind = *(*in)++ == '[' ? ARRAY : OBJECT;
        while (**in != ']' && **in != '}') {
            char *key = NULL;

            if (v->kind == OBJECT) {
                key = get_text(in);
                ++*in;
            }
            *tail = json_parse(in);
            (*tail)->key = key;
            tail = &(*tail)->next;
            *in += **in == ',';
        }
        ++*in;
    }
    return v;
}

static void json_free(struct json *v)
{
    while (v != NULL) {
        struct json *next = v->next;

        json_free(v->child);
        free(v->key);
        free(v->text);
        free(v);
        v = next;
    }
}

static uint64_t run_json(uint64_t rounds)
{
    enum { ITEMS = 1500 };
    char *text = bench_alloc(ITEMS * 200), *out = text, words[64];
    struct bench_random r = {13};
    uint64_t h = 0;

    *out++ = '[';
    for (int i = 0; i < ITEMS; i++) {
        bench_text(words, sizeof words - 1, (uint64_t)i + 1);
        words[63] = '\0';
        out += sprintf(out, "{\"id\":%d,\"name\":", i);
        out = put_text(out, words);
        out += sprintf(out, ",\"tags\":[%d,%d,\"x%d\"],\"sum\":%llu},", i % 7, i % 11, i % 13,
                       (unsigned long long)bench_next(&r) >> 24);
    }
    out[-1] = ']';
    for (uint64_t k = 0; k < rounds; k++) {
        const char *in = text;
        struct json *v = json_parse(&in);

        json_print(text, v);
        json_free(v);
        h = bench_mix_bytes(h, text, 64 + k);
    }
    h = bench_mix(h, strlen(text));
    free(text);
    return h;
}

const struct bench bench_integer[] = {
    {.group = "integer", .name = "sort", .work = 400000, .run = bench_sort},
    {.group = "integer", .name = "hash", .work = 3000000, .run = bench_hash},
    {.group = "integer", .name = "sha256", .work = 40 << 20, .run = bench_sha256},
    {.group = "integer", .name = "md5", .work = 100 << 20, .run = run_md5},
    {.group = "integer", .name = "crc32", .work = 200 << 20, .run = run_crc32},
    {.group = "integer", .name = "base64", .work = 1000, .run = run_base64},
    {.group = "integer", .name = "search", .work = 200, .run = run_search},
    {.group = "integer", .name = "regex", .work = 20000, .run = run_regex},
    {.group = "integer", .name = "dijkstra", .work = 60, .run = run_dijkstra},
    {.group = "integer", .name = "matrix", .work = 600, .run = run_matrix},
    {.group = "integer", .name = "queens", .work = 14, .run = run_queens},
    {.group = "integer", .name = "bytecode", .work = 6000000, .run = bench_bytecode},
    {.group = "integer", .name = "json", .work = 60, .run = run_json},
    {.name = NULL},
};
