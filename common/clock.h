/* Host clocks. All functions may be called from any thread. */
#ifndef NACELLE_COMMON_CLOCK_H
#define NACELLE_COMMON_CLOCK_H

#include <stdint.h>

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t clock_mono_ns(void);
/* The host's time stamp counter now. */
uint64_t host_tsc(void);
/* Its frequency: from CPUID where the host tells it, else measured against CLOCK_MONOTONIC (the first call takes up to 20 ms). Never 0. */
uint64_t host_tsc_hz(void);
/* a * b / c with a 128-bit product; saturates. c > 0. */
uint64_t clock_muldiv(uint64_t a, uint64_t b, uint64_t c);

#endif
