/* The quick decoder against Zydis: every form it takes on, bit for bit; and that it does take on what is common. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "vmm/engine/soft/decode.h"

static uint64_t seed = 0x9e3779b97f4a7c15ull;

static uint8_t any(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint8_t)(seed >> 32);
}

static unsigned long compared, taken;

/* Padding is of no interest: both are made in memory that was all the same, and none of them writes to it. */
static void must_be_same(const uint8_t *b, const void *quick, const void *full)
{
    const uint8_t *q = quick, *f = full;
    unsigned same = 0;
    while (same < sizeof(struct xinsn) && q[same] == f[same]) same++;
    if (same == sizeof(struct xinsn)) return;
    for (unsigned i = 0; i < 15; i++) print_message("%02x ", b[i]);
    print_message("\n");
    for (unsigned i = same; i < sizeof(struct xinsn); i++)
        if (q[i] != f[i]) print_message("byte %u of struct xinsn: quick %02x, Zydis %02x\n", i, q[i], f[i]);
    fail_msg("the quick decoder differs from Zydis");
}

static void compare(const uint8_t *b, unsigned avail)
{
    struct xinsn quick, full;
    memset(&quick, 0, sizeof quick);
    memset(&full, 0, sizeof full);
    compared++;
    if (!soft_decode_quick(b, avail, 0x7fff12345678, &quick)) return;
    taken++;
    if (soft_decode_zydis(b, avail, 8, 0x7fff12345678, &full))
        fail_msg("Zydis knows no such instruction: %02x %02x %02x", b[0], b[1], b[2]);
    must_be_same(b, &quick, &full);
}

static void fill(uint8_t *b, unsigned from)
{
    for (unsigned i = from; i < 15; i++) b[i] = any();
}

/* All prefixes it knows, all REX, all opcodes of both maps, all ModRM, and some SIB, displacements and constants. */
static void all_forms(void **state)
{
    (void)state;
    static const uint8_t prefixes[][2] = {{0, 0},    {0x66, 0},    {0xf3, 0},    {0xf2, 0},    {0x64, 0},
                                          {0x65, 0}, {0x66, 0x65}, {0x65, 0x66}, {0xf3, 0x65}, {0x66, 0xf3},
                                          {0x2e, 0}, {0xf0, 0},    {0x67, 0}};
    for (unsigned p = 0; p < sizeof prefixes / sizeof *prefixes; p++)
        for (unsigned rex = 0x3f; rex < 0x50; rex++)
            for (unsigned op = 0; op < 512; op++) {
                uint8_t b[16];
                unsigned n = 0;
                for (unsigned k = 0; k < 2; k++)
                    if (prefixes[p][k]) b[n++] = prefixes[p][k];
                if (rex >= 0x40) b[n++] = (uint8_t)rex;
                if (op >= 256) b[n++] = 0x0f;
                b[n++] = (uint8_t)op;
                for (unsigned modrm = 0; modrm < 256; modrm++) {
                    b[n] = (uint8_t)modrm;
                    fill(b, n + 1);
                    unsigned long before = taken;
                    compare(b, 15);
                    if (taken == before && modrm > 8 && modrm % 16)
                        modrm |= 7; /* not one of its: a few tries will do */
                }
            }
    print_message("%lu encodings, %lu taken on\n", compared, taken);
    assert_true(taken > 500000);
}

static void all_sib(void **state)
{
    (void)state;
    static const uint8_t ops[] = {0x8b, 0x89, 0x8d, 0xff, 0x83, 0x01};
    for (unsigned k = 0; k < sizeof ops; k++)
        for (unsigned rex = 0x40; rex < 0x50; rex++)
            for (unsigned mod = 0; mod < 3; mod++)
                for (unsigned sib = 0; sib < 256; sib++) {
                    uint8_t b[16] = {(uint8_t)rex, ops[k], (uint8_t)(mod << 6 | (any() & 0x38) | 4), (uint8_t)sib};
                    fill(b, 4);
                    compare(b, 15);
                }
}

/* All values of a one-byte constant; those of more bytes at their edges. */
static void constants(void **state)
{
    (void)state;
    static const uint8_t ops[] = {0x83, 0xc1, 0xc0, 0x80, 0x6b, 0xc6};
    static const uint8_t edges[] = {0, 1, 0x7f, 0x80, 0xff};
    for (unsigned k = 0; k < sizeof ops; k++)
        for (unsigned rex = 0x40; rex < 0x50; rex += 8)
            for (unsigned ext = 0; ext < 8; ext++)
                for (unsigned v = 0; v < 256; v++) {
                    uint8_t b[16] = {(uint8_t)rex, ops[k], (uint8_t)(0xc0 | ext << 3 | 2), (uint8_t)v};
                    fill(b, 4);
                    compare(b, 15);
                }
    static const uint8_t wide[] = {0x05, 0x3d, 0x68, 0xa9, 0xb8, 0xbb, 0xe8, 0xe9, 0x81, 0xc7, 0x69};
    for (unsigned k = 0; k < sizeof wide; k++)
        for (unsigned rex = 0x40; rex < 0x50; rex += 8)
            for (unsigned e = 0; e < sizeof edges; e++)
                for (unsigned at = 2; at < 12; at++) {
                    uint8_t b[16] = {(uint8_t)rex, wide[k], 0xc0};
                    b[at] = edges[e];
                    compare(b, 15);
                }
}

/* Too few bytes: never taken on. */
static void cut_short(void **state)
{
    (void)state;
    for (unsigned n = 0; n < 200000; n++) {
        uint8_t b[16];
        struct xinsn x;
        fill(b, 0);
        if (!soft_decode_quick(b, 15, 0, &x)) continue;
        for (unsigned avail = 0; avail < x.in.len; avail++) {
            struct xinsn y;
            assert_false(soft_decode_quick(b, avail, 0, &y));
        }
        assert_true(soft_decode_quick(b, x.in.len, 0, &x));
    }
}

static void common_ones_are_taken(void **state)
{
    (void)state;
    static const uint8_t code[][15] = {
        {0x48, 0x89, 0xe5},             /* mov rbp, rsp */
        {0x55},                         /* push rbp */
        {0xc3},                         /* ret */
        {0x31, 0xc0},                   /* xor eax, eax */
        {0x48, 0x8b, 0x44, 0x24, 0x08}, /* mov rax, [rsp+8] */
        {0x0f, 0x84},                   /* je */
        {0xe8},                         /* call */
        {0xff, 0x15},                   /* call [rip+x] */
        {0x48, 0x8d, 0x05},             /* lea rax, [rip+x] */
        {0xf3, 0x0f, 0x6f, 0x06},       /* movdqu xmm0, [rsi] */
        {0x66, 0x0f, 0xef, 0xc0},       /* pxor xmm0, xmm0 */
        {0x65, 0x48, 0x8b, 0x04, 0x25}, /* mov rax, gs:[x] */
        {0x0f, 0xb6, 0x00},             /* movzx eax, [rax] */
        {0x84, 0xe4},                   /* test ah, ah */
    };
    struct xinsn x;
    for (unsigned i = 0; i < sizeof code / sizeof *code; i++)
        if (!soft_decode_quick(code[i], 15, 0, &x)) fail_msg("instruction %u is left to Zydis", i);
}

static int init(void **state)
{
    (void)state;
    soft_decode_init();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_forms),
        cmocka_unit_test(all_sib),
        cmocka_unit_test(constants),
        cmocka_unit_test(cut_short),
        cmocka_unit_test(common_ones_are_taken),
    };
    return cmocka_run_group_tests(tests, init, NULL);
}
