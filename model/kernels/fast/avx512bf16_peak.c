/* See peak.h: fast/peak.h's loop with VDPBF16PS, which multiplies pairs: 16 lanes of two products a vector. */
#include "model/kernels/peak.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#include <stdint.h>

enum { LANES = 16, ROWS = 8, VECTORS = 3, SUMS = ROWS * VECTORS, FLOPS = LANES * 4 };
enum { STEPS = PEAK_OPERAND_BYTES / ((VECTORS * LANES + ROWS) * (int)sizeof(uint32_t)) / 64 * 64 };

static void use(const __m512 *sum) {
    volatile float kept = 0;
    __m512 total = sum[0];
    for (int i = 1; i < SUMS; i++) total = _mm512_add_ps(total, sum[i]);
    kept = _mm512_reduce_add_ps(total);
    (void)kept;
}

static double registers(long rounds) {
    __m512 sum[SUMS];
    __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.5f));
    __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1e-6f), _mm512_set1_ps(1e-6f));
    for (int i = 0; i < SUMS; i++) sum[i] = _mm512_set1_ps((float)i);
    for (long step = 0; step < rounds * STEPS; step++) {
#pragma GCC unroll 24
        for (int i = 0; i < SUMS; i++) sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
    }
    use(sum);
    return (double)rounds * STEPS * SUMS * FLOPS;
}

static double from_cache(const void *operands, long rounds) {
    __m512 sum[SUMS];
    for (int i = 0; i < SUMS; i++) sum[i] = _mm512_setzero_ps();
    for (long round = 0; round < rounds; round++) {
        const uint32_t *b = operands, *a = b + STEPS * VECTORS * LANES; /* pairs */
        for (int step = 0; step < STEPS; step++, b += VECTORS * LANES, a += ROWS) {
            __m512bh row[VECTORS];
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) row[v] = (__m512bh)_mm512_loadu_si512(b + v * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[r]);
#pragma GCC unroll 3
                for (int v = 0; v < VECTORS; v++)
                    sum[r * VECTORS + v] = _mm512_dpbf16_ps(sum[r * VECTORS + v], x, row[v]);
            }
        }
    }
    use(sum);
    return (double)rounds * STEPS * SUMS * FLOPS;
}

const PeakLoops avx512bf16_peak = {registers, from_cache};
#else
const PeakLoops avx512bf16_peak = {NULL, NULL};
#endif
