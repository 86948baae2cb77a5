/* The innermost loop of an fp32 product: rows × vectors of C in registers, a column of A against a row of B. Included
 * by avx2_peak.c and avx512_peak.c. */
#include "model/kernels/peak.h"
#include "model/kernels/fast/simd.h"

/* 24 sums of 32 registers, or 12 of 16: enough for two multiply-adds a cycle that take four. */
enum { ROWS = VF == 16 ? 8 : 4, VECTORS = 3, SUMS = ROWS * VECTORS };
enum { STEPS = PEAK_OPERAND_BYTES / ((VECTORS * VF + ROWS) * (int)sizeof(float)) / 64 * 64, REGISTER_STEPS = STEPS };

/* What was computed is looked at, or the compiler would leave it out. */
static void use(const vf *sum) {
    volatile float kept = 0;
    vf total = sum[0];
    for (int i = 1; i < SUMS; i++) total += sum[i];
    kept = vf_total(total);
    (void)kept;
}

static double fast_peak_registers(long rounds) {
    vf sum[SUMS], a = vf_set1(0.5f), b = vf_set1(1e-6f);
    for (int i = 0; i < SUMS; i++) sum[i] = vf_set1((float)i);
    for (long step = 0; step < rounds * REGISTER_STEPS; step++) {
#pragma GCC unroll 24
        for (int i = 0; i < SUMS; i++) sum[i] = vf_fma(a, b, sum[i]);
    }
    use(sum);
    return (double)rounds * REGISTER_STEPS * SUMS * VF * 2;
}

static double fast_peak_from_cache(const void *operands, long rounds) {
    vf sum[SUMS];
    for (int i = 0; i < SUMS; i++) sum[i] = vf_set1(0);
    for (long round = 0; round < rounds; round++) {
        const float *b = operands, *a = b + STEPS * VECTORS * VF;
        for (int step = 0; step < STEPS; step++, b += VECTORS * VF, a += ROWS) {
            vf row[VECTORS];
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) row[v] = vf_load(b + v * VF);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                vf x = vf_set1(a[r]);
#pragma GCC unroll 3
                for (int v = 0; v < VECTORS; v++) sum[r * VECTORS + v] = vf_fma(x, row[v], sum[r * VECTORS + v]);
            }
        }
    }
    use(sum);
    return (double)rounds * STEPS * SUMS * VF * 2;
}
