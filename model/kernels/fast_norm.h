/* RMSNorm over vectors; formulas in reference_norm.c. Included by avx2_kernels.c and avx512_kernels.c. */
#include <math.h>

#include "model/core/threads.h"
#include "model/kernels/fast_norm_rows.h"
#include "model/kernels/kernels.h"
#include "model/kernels/simd.h"

/* Σ a·b·c (c = 1 where NULL): four sums in lanes, so that additions overlap, joined in a fixed order in fp64. */
static inline double row_dot3(const float *a, const float *b, const float *c, size_t n) {
    vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    size_t i = 0;
    for (; i + 4 * VF <= n; i += 4 * VF)
        for (size_t u = 0; u < 4; u++) {
            size_t at = i + u * VF;
            vf ab = vf_load(a + at);
            if (c) ab = ab * vf_load(c + at);
            sum[u] = vf_fma(ab, vf_load(b + at), sum[u]);
        }
    for (size_t u = 0; i < n; i += VF, u = (u + 1) & 3) {
        vf ab = vf_get(a + i, n - i);
        if (c) ab = ab * vf_get(c + i, n - i);
        sum[u] = vf_fma(ab, vf_get(b + i, n - i), sum[u]);
    }
    return vd_sum(vd_add(vd_add(vd_add(vd_add(vd_zero(), sum[0]), sum[1]), sum[2]), sum[3]));
}

static void fast_rmsnorm_backward(float *dx, bool accumulate, const float *dy, const float *x, const float *w,
                                  const float *rstd, int n_tokens, int width) {
    if (!dx) return;
    size_t D = (size_t)width;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        const float *dy_D = dy + (size_t)t * D, *x_D = x + (size_t)t * D;
        float *dx_D = dx + (size_t)t * D;
        double r = rstd[t];
        vf scale = vf_set1(rstd[t]), shrink = vf_set1((float)(row_dot3(dy_D, x_D, w, D) * r * r * r / width));
        for (size_t i = 0; i < D; i += VF) {
            vf d = scale * (vf_get(w + i, D - i) * vf_get(dy_D + i, D - i));
            d = vf_fnma(shrink, vf_get(x_D + i, D - i), d);
            if (accumulate) d = d + vf_get(dx_D + i, D - i);
            vf_put(dx_D + i, D - i, d);
        }
    }
}

enum { WEIGHT_COLUMNS = 1024, WEIGHT_TOKENS = 128 };

/* dw += Σ dy·x·r over tokens [first, end), for n <= WEIGHT_COLUMNS columns. */
static void weight_chunk(float *dw, const float *dy, const float *x, const float *rstd, size_t width, size_t n,
                         int first, int end) {
    _Alignas(64) float sum[WEIGHT_COLUMNS] = {0};
    for (int t = first; t < end; t++) {
        const float *dy_D = dy + (size_t)t * width, *x_D = x + (size_t)t * width;
        vf r = vf_set1(rstd[t]);
        size_t i = 0;
        for (; i + VF <= n; i += VF)
            vf_store(sum + i, vf_fma(vf_load(dy_D + i), vf_load(x_D + i) * r, vf_load(sum + i)));
        if (i < n) {
            vf d =
                vf_fma(vf_load_part(dy_D + i, n - i), vf_load_part(x_D + i, n - i) * r, vf_load_part(sum + i, n - i));
            vf_store_part(sum + i, n - i, d);
        }
    }
    for (size_t i = 0; i < n; i += VF) vf_put(dw + i, n - i, vf_get(dw + i, n - i) + vf_get(sum + i, n - i));
}

/* Columns are shared out to threads; each sums its columns over all tokens, a chunk of tokens at a time, so that the
 * error grows with the chunk and not with the batch. */
static void fast_rmsnorm_backward_weight(float *dw, const float *dy, const float *x, const float *rstd, int n_tokens,
                                         int width) {
    size_t D = (size_t)width, threads = (size_t)threads_count();
    size_t columns = ((D + threads - 1) / threads + 15) / 16 * 16; /* per thread, whole cache lines */
    if (columns > WEIGHT_COLUMNS) columns = WEIGHT_COLUMNS;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (size_t i = 0; i < D; i += columns)
        for (int first = 0; first < n_tokens; first += WEIGHT_TOKENS) {
            int end = n_tokens - first < WEIGHT_TOKENS ? n_tokens : first + WEIGHT_TOKENS;
            weight_chunk(dw + i, dy + i, x + i, rstd, D, D - i < columns ? D - i : columns, first, end);
        }
}

/* ---- with the residual addition fused ---- */

static void fast_add_rmsnorm_forward(float *sum, float *y, float *rstd, const float *x, const float *delta,
                                     const float *w, int n_tokens, int width, float eps) {
    norm_rows(false, sum, y, rstd, x, delta, w, n_tokens, width, eps);
}

static void fast_add_rmsnorm_backward(float *dx, bool accumulate, float *ddelta, float *dw, const float *dsum,
                                      const float *dy, const float *sum, const float *w, const float *rstd,
                                      int n_tokens, int width, float *scratch) {
    NormBackward b = {dx, ddelta, dsum, sum, w, rstd, dy, (size_t)width, accumulate};
    norm_rows_backward(false, b, dw, n_tokens, scratch);
}

static void fast_rmsnorm_forward(float *y, float *rstd, const float *x, const float *w, int n_tokens, int width,
                                 float eps) {
    norm_rows(false, NULL, y, rstd, x, NULL, w, n_tokens, width, eps);
}
