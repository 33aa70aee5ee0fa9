/* Scalar floating point: SSE2 doubles as compilers emit them, no vectors. Built with -fno-tree-vectorize. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

/* Results are compared between machines bit for bit: only + - * / and sqrt, which IEEE 754 defines wholly. */
static uint64_t bits(double v)
{
    uint64_t b;

    memcpy(&b, &v, sizeof b);
    return b;
}

struct body {
    double x[3], v[3], mass;
};

static uint64_t run_nbody(uint64_t steps)
{
    struct body b[5];
    struct bench_random r = {31};
    uint64_t h = 0;

    for (int i = 0; i < 5; i++) {
        for (int d = 0; d < 3; d++) {
            b[i].x[d] = (double)(bench_next(&r) >> 40) / 1e6 + 3 * i;
            b[i].v[d] = (double)(bench_next(&r) >> 40) / 1e9;
        }
        b[i].mass = 1.0 / (i + 1);
    }
    for (uint64_t s = 0; s < steps; s++) {
        for (int i = 0; i < 5; i++) {
            for (int j = i + 1; j < 5; j++) {
                double d[3], square = 0.01, pull;

                for (int k = 0; k < 3; k++) {
                    d[k] = b[i].x[k] - b[j].x[k];
                    square += d[k] * d[k];
                }
                pull = 0.001 / (square * sqrt(square));
                for (int k = 0; k < 3; k++) {
                    b[i].v[k] -= d[k] * b[j].mass * pull;
                    b[j].v[k] += d[k] * b[i].mass * pull;
                }
            }
        }
        for (int i = 0; i < 5; i++) {
            for (int k = 0; k < 3; k++) {
                b[i].x[k] += 0.001 * b[i].v[k];
            }
        }
    }
    for (int i = 0; i < 5; i++) {
        h = bench_mix(h, bits(b[i].x[0]) ^ bits(b[i].v[2]));
    }
    return h;
}

static uint64_t run_mandelbrot(uint64_t size)
{
    uint64_t h = 0;

    for (uint64_t row = 0; row < size; row++) {
        for (uint64_t column = 0; column < size; column++) {
            double cr = 2.0 * (double)column / (double)size - 1.5, ci = 2.0 * (double)row / (double)size - 1.0;
            double zr = 0, zi = 0, r2 = 0, i2 = 0;
            int n = 0;

            for (; n < 100 && r2 + i2 <= 4.0; n++) {
                zi = 2 * zr * zi + ci;
                zr = r2 - i2 + cr;
                r2 = zr * zr;
                i2 = zi * zi;
            }
            h += (uint64_t)n * (row ^ column);
        }
    }
    return h;
}

static double spectral_entry(uint64_t i, uint64_t j)
{
    return 1.0 / (double)((i + j) * (i + j + 1) / 2 + i + 1);
}

static void spectral_times(const double *v, double *to, uint64_t n, bool transposed)
{
    for (uint64_t i = 0; i < n; i++) {
        to[i] = 0;
        for (uint64_t j = 0; j < n; j++) {
            to[i] += (transposed ? spectral_entry(j, i) : spectral_entry(i, j)) * v[j];
        }
    }
}

static uint64_t run_spectral(uint64_t n)
{
    double *u = bench_alloc(n * 8), *v = bench_alloc(n * 8), *t = bench_alloc(n * 8), uv = 0, vv = 0;

    for (uint64_t i = 0; i < n; i++) {
        u[i] = 1;
    }
    for (int k = 0; k < 3; k++) {
        spectral_times(u, t, n, false);
        spectral_times(t, v, n, true);
        spectral_times(v, t, n, false);
        spectral_times(t, u, n, true);
    }
    for (uint64_t i = 0; i < n; i++) {
        uv += u[i] * v[i];
        vv += v[i] * v[i];
    }
    free(u);
    free(v);
    free(t);
    return bits(sqrt(uv / vv));
}

/* In-place radix 2 transform; the twiddle factors come from a recurrence, not from a library's sine. */
static void fft(double *re, double *im, uint64_t n)
{
    for (uint64_t i = 1, j = 0; i < n; i++) {
        uint64_t bit = n >> 1;

        for (; j & bit; bit >>= 1) {
            j ^= bit;
        }
        j ^= bit;
        if (i < j) {
            double a = re[i], b = im[i];

            re[i] = re[j], im[i] = im[j], re[j] = a, im[j] = b;
        }
    }
    for (uint64_t length = 2, level = 0; length <= n; length *= 2, level++) {
        double wr = -1, wi = 0; /* exp(-2 pi i / length), by halving the angle */

        for (uint64_t k = 0; k < level; k++) {
            double half = sqrt((1 - wr) / 2);

            wr = sqrt((1 + wr) / 2);
            wi = -half;
        }
        for (uint64_t i = 0; i < n; i += length) {
            double cr = 1, ci = 0;

            for (uint64_t k = i; k < i + length / 2; k++) {
                uint64_t m = k + length / 2;
                double tr = re[m] * cr - im[m] * ci, ti = re[m] * ci + im[m] * cr, next = cr * wr - ci * wi;

                re[m] = re[k] - tr, im[m] = im[k] - ti;
                re[k] += tr, im[k] += ti;
                ci = cr * wi + ci * wr;
                cr = next;
            }
        }
    }
}

static uint64_t run_fft(uint64_t rounds)
{
    enum { N = 1 << 12 };
    double *re = bench_alloc(N * 8), *im = bench_alloc(N * 8);
    struct bench_random r = {33};
    uint64_t h = 0;

    for (uint64_t k = 0; k < rounds; k++) {
        for (int i = 0; i < N; i++) {
            re[i] = (double)(bench_next(&r) >> 50);
            im[i] = 0;
        }
        fft(re, im, N);
        h = bench_mix(h, bits(re[17]) ^ bits(im[99]));
    }
    free(re);
    free(im);
    return h;
}

const struct bench bench_float[] = {
    {.group = "float", .name = "nbody", .work = 1800000, .run = run_nbody},
    {.group = "float", .name = "mandelbrot", .work = 1280, .run = run_mandelbrot},
    {.group = "float", .name = "spectral", .work = 3200, .run = run_spectral},
    {.group = "float", .name = "fft", .work = 1600, .run = run_fft},
    {.name = NULL},
};
