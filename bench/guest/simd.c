/* Vector programs, with intrinsics: single and double precision, bytes, AES. */
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_aes(void)
{
    return __builtin_cpu_supports("aes");
}

static void fill(float *v, uint64_t n, uint64_t seed)
{
    struct bench_random r = {seed};

    for (uint64_t i = 0; i < n; i++) {
        v[i] = (float)(bench_next(&r) >> 48) / 1024.0f;
    }
}

__attribute__((target("avx2,fma"))) static uint64_t run_saxpy(uint64_t rounds)
{
    enum { N = 8192 };
    float *x = aligned_alloc(64, N * 4), *y = aligned_alloc(64, N * 4);
    uint64_t h;

    fill(x, N, 41);
    fill(y, N, 42);
    for (uint64_t k = 0; k < rounds; k++) {
        __m256 a = _mm256_set1_ps((k & 1) != 0 ? 1.25f : -1.25f);

        for (int i = 0; i < N; i += 16) {
            _mm256_store_ps(y + i, _mm256_fmadd_ps(a, _mm256_load_ps(x + i), _mm256_load_ps(y + i)));
            _mm256_store_ps(y + i + 8, _mm256_fmadd_ps(a, _mm256_load_ps(x + i + 8), _mm256_load_ps(y + i + 8)));
        }
    }
    h = bench_mix_bytes(0, y, N * 4);
    free(x);
    free(y);
    return h;
}

/* c += a * b in 4 x 8 register blocks. */
__attribute__((target("avx2,fma"))) static uint64_t run_dgemm(uint64_t n)
{
    double *a = aligned_alloc(64, n * n * 8), *b = aligned_alloc(64, n * n * 8), *c = aligned_alloc(64, n * n * 8);
    struct bench_random r = {43};
    uint64_t h;

    for (uint64_t i = 0; i < n * n; i++) {
        a[i] = (double)(bench_next(&r) >> 48);
        b[i] = (double)(bench_next(&r) >> 48) / 256;
    }
    for (uint64_t j = 0; j < n; j += 8) {
        for (uint64_t i = 0; i < n; i += 4) {
            __m256d sum[4][2]; /* stays in registers once the loops over u are unrolled */

#pragma GCC unroll 4
            for (int u = 0; u < 4; u++) {
                sum[u][0] = sum[u][1] = _mm256_setzero_pd();
            }
            for (uint64_t k = 0; k < n; k++) {
                __m256d low = _mm256_load_pd(b + k * n + j), high = _mm256_load_pd(b + k * n + j + 4);

#pragma GCC unroll 4
                for (int u = 0; u < 4; u++) {
                    __m256d v = _mm256_broadcast_sd(a + (i + (uint64_t)u) * n + k);

                    sum[u][0] = _mm256_fmadd_pd(v, low, sum[u][0]);
                    sum[u][1] = _mm256_fmadd_pd(v, high, sum[u][1]);
                }
            }
#pragma GCC unroll 4
            for (int u = 0; u < 4; u++) {
                _mm256_store_pd(c + (i + (uint64_t)u) * n + j, sum[u][0]);
                _mm256_store_pd(c + (i + (uint64_t)u) * n + j + 4, sum[u][1]);
            }
        }
    }
    h = bench_mix_bytes(0, c, n * n * 8);
    free(a);
    free(b);
    free(c);
    return h;
}

/* SSE single precision: a 5-tap filter over a line. */
static uint64_t run_filter(uint64_t rounds)
{
    enum { N = 16384 };
    float *x = aligned_alloc(64, (N + 16) * 4), *y = aligned_alloc(64, (N + 16) * 4);
    uint64_t h;

    fill(x, N + 16, 44);
    for (uint64_t k = 0; k < rounds; k++) {
        float *swap = x;

        for (int i = 0; i < N; i += 4) {
            __m128 sum = _mm_mul_ps(_mm_loadu_ps(x + i), _mm_set1_ps(0.1f));

            sum = _mm_add_ps(sum, _mm_mul_ps(_mm_loadu_ps(x + i + 1), _mm_set1_ps(0.2f)));
            sum = _mm_add_ps(sum, _mm_mul_ps(_mm_loadu_ps(x + i + 2), _mm_set1_ps(0.4f)));
            sum = _mm_add_ps(sum, _mm_mul_ps(_mm_loadu_ps(x + i + 3), _mm_set1_ps(0.2f)));
            sum = _mm_add_ps(sum, _mm_mul_ps(_mm_loadu_ps(x + i + 4), _mm_set1_ps(0.1f)));
            _mm_store_ps(y + i, sum);
        }
        memcpy(y + N, x + N, 64);
        x = y;
        y = swap;
    }
    h = bench_mix_bytes(0, x, N * 4);
    free(x);
    free(y);
    return h;
}

/* Count lines and find a byte, 32 at a time, as memchr and wc do. */
__attribute__((target("avx2,popcnt,bmi"))) static uint64_t run_count(uint64_t rounds)
{
    enum { N = 1 << 18 };
    char *text = aligned_alloc(64, N);
    uint64_t lines = 0, at = 0;

    bench_text(text, N, 45);
    for (uint64_t k = 0; k < rounds; k++) {
        __m256i line = _mm256_set1_epi8('\n'), other = _mm256_set1_epi8((char)('a' + k % 26));

        for (int i = 0; i < N; i += 32) {
            __m256i v = _mm256_load_si256((const __m256i *)(text + i));

            lines += (uint64_t)__builtin_popcount((unsigned)_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, line)));
            at ^= (uint64_t)(unsigned)_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, other)) + (uint64_t)i;
        }
    }
    free(text);
    return bench_mix(lines, at);
}

/* Blend two pictures, 8 bits a channel, SSE2. */
static uint64_t run_blend(uint64_t rounds)
{
    enum { N = 1 << 16 };
    uint8_t *a = aligned_alloc(64, N), *b = aligned_alloc(64, N);
    const __m128i zero = _mm_setzero_si128();
    uint64_t h;

    bench_text((char *)a, N, 46);
    bench_text((char *)b, N, 47);
    for (uint64_t k = 0; k < rounds; k++) {
        __m128i f = _mm_set1_epi16((short)(64 + k % 128)), g = _mm_sub_epi16(_mm_set1_epi16(256), f);

        for (int i = 0; i < N; i += 16) {
            __m128i x = _mm_load_si128((const __m128i *)(a + i)), y = _mm_load_si128((const __m128i *)(b + i));
            __m128i low = _mm_add_epi16(_mm_mullo_epi16(_mm_unpacklo_epi8(x, zero), f),
                                        _mm_mullo_epi16(_mm_unpacklo_epi8(y, zero), g));
            __m128i high = _mm_add_epi16(_mm_mullo_epi16(_mm_unpackhi_epi8(x, zero), f),
                                         _mm_mullo_epi16(_mm_unpackhi_epi8(y, zero), g));

            x = _mm_packus_epi16(_mm_srli_epi16(low, 8), _mm_srli_epi16(high, 8));
            _mm_store_si128((__m128i *)(a + i), _mm_avg_epu8(x, _mm_adds_epu8(y, _mm_set1_epi8(3))));
        }
    }
    h = bench_mix_bytes(0, a, N);
    free(a);
    free(b);
    return h;
}

/* AES-128 rounds over a buffer, four blocks in flight, as counter mode does. */
__attribute__((target("aes,sse4.1"))) static uint64_t run_aes(uint64_t size)
{
    __m128i key[11], sum = _mm_setzero_si128(), at = _mm_setzero_si128(), one = _mm_set_epi64x(0, 1);
    struct bench_random r = {48};
    uint64_t out[2];

    for (int i = 0; i < 11; i++) {
        key[i] = _mm_set_epi64x((long long)bench_next(&r), (long long)bench_next(&r));
    }
    for (uint64_t done = 0; done < size; done += 64) {
        __m128i block[4];

        for (int b = 0; b < 4; b++) {
            block[b] = _mm_xor_si128(at, key[0]);
            at = _mm_add_epi64(at, one);
        }
        for (int i = 1; i < 10; i++) {
            for (int b = 0; b < 4; b++) {
                block[b] = _mm_aesenc_si128(block[b], key[i]);
            }
        }
        for (int b = 0; b < 4; b++) {
            sum = _mm_xor_si128(sum, _mm_aesenclast_si128(block[b], key[10]));
        }
    }
    _mm_storeu_si128((__m128i *)out, sum);
    return bench_mix(out[0], out[1]);
}

const struct bench bench_simd[] = {
    {.group = "simd", .name = "saxpy-fma", .work = 80000, .run = run_saxpy, .usable = has_avx2},
    {.group = "simd", .name = "dgemm-fma", .work = 768, .run = run_dgemm, .usable = has_avx2},
    {.group = "simd", .name = "filter-sse", .work = 12000, .run = run_filter},
    {.group = "simd", .name = "count-avx2", .work = 20000, .run = run_count, .usable = has_avx2},
    {.group = "simd", .name = "blend-sse2", .work = 20000, .run = run_blend},
    {.group = "simd", .name = "aes-ni", .work = 320 << 20, .run = run_aes, .usable = has_aes},
    {.name = NULL},
};
