/* RMSNorm over vectors; formulas in reference_norm.c. Included by avx2_kernels.c and avx512_kernels.c. */
#include <math.h>
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/fast.h"
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

/* ---- with the residual addition fused, fp32 or bf16 ---- */

/* Element i of an array of floats, or of bf16 where `half`; n elements are left. */
static ALWAYS_INLINE vf row_get(bool half, const void *p, size_t i, size_t n) {
    return half ? vf_get_bf16((const bf16 *)p + i, n) : vf_get((const float *)p + i, n);
}
static ALWAYS_INLINE void row_put(bool half, void *p, size_t i, size_t n, vf x) {
    if (half)
        vf_put_bf16((bf16 *)p + i, n, x);
    else
        vf_put((float *)p + i, n, x);
}
/* Row t of such an array; NULL stays NULL. */
static ALWAYS_INLINE void *row_at(bool half, const void *p, int t, size_t width) {
    size_t size = half ? sizeof(bf16) : sizeof(float);
    return p ? (char *)(uintptr_t)p + (size_t)t * width * size : NULL;
}

/* sum = x + delta (delta NULL: x, and sum is not written), y = its norm: a row of n. It is in L1 for the second loop.
 */
static ALWAYS_INLINE float norm_row(bool half, float *sum, void *y, const float *x, const void *delta, const float *w,
                                    size_t n, float eps) {
    vf squares[2] = {vf_zero(), vf_zero()};
    for (size_t i = 0, u = 0; i < n; i += VF, u ^= 1) {
        vf s = vf_get(x + i, n - i);
        if (delta) {
            s = s + row_get(half, delta, i, n - i);
            vf_put(sum + i, n - i, s);
        }
        squares[u] = vf_fma(s, s, squares[u]);
    }
    float r = (float)(1 / sqrt(vd_sum(vd_add(vd_add(vd_zero(), squares[0]), squares[1])) / (double)n + (double)eps));
    const float *normed = delta ? sum : x;
    vf scale = vf_set1(r);
    for (size_t i = 0; i < n; i += VF)
        row_put(half, y, i, n - i, vf_get(normed + i, n - i) * scale * vf_get(w + i, n - i));
    return r;
}

static ALWAYS_INLINE void norm_rows(bool half, float *sum, void *y, float *rstd, const float *x, const void *delta,
                                    const float *w, int n_tokens, int width, float eps) {
    size_t D = (size_t)width;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        float *sum_D = row_at(false, sum, t, D);
        void *y_D = row_at(half, y, t, D);
        float r = norm_row(half, sum_D, y_D, x + (size_t)t * D, row_at(half, delta, t, D), w, D, eps);
        if (rstd) rstd[t] = r;
    }
}

/* What the backward pass reads and writes; ddelta and dy are bf16 in precision bf16. */
typedef struct {
    float *dx;
    void *ddelta;
    const float *dsum, *sum, *w, *rstd;
    const void *dy;
    size_t D;
    bool accumulate;
} NormBackward;

/* Token t; its part of dw is added to dw_D (NULL: none). */
static ALWAYS_INLINE void norm_backward_row(bool half, const NormBackward *b, float *dw_D, int t) {
    size_t D = b->D;
    const float *sum = b->sum + (size_t)t * D, *dsum = row_at(false, b->dsum, t, D);
    const void *dy = row_at(half, b->dy, t, D);
    float *dx = row_at(false, b->dx, t, D);
    void *ddelta = row_at(half, b->ddelta, t, D);
    vf dot[2] = {vf_zero(), vf_zero()};
    for (size_t i = 0, u = 0; i < D; i += VF, u ^= 1)
        dot[u] = vf_fma(row_get(half, dy, i, D - i) * vf_get(b->w + i, D - i), vf_get(sum + i, D - i), dot[u]);
    double r = b->rstd[t], total = vd_sum(vd_add(vd_add(vd_zero(), dot[0]), dot[1]));
    vf scale = vf_set1(b->rstd[t]), shrink = vf_set1((float)(total * r * r * r / (double)D));
    for (size_t i = 0; i < D; i += VF) {
        size_t n = D - i;
        vf g = row_get(half, dy, i, n) * scale, s = vf_get(sum + i, n);
        vf d = vf_fnma(shrink, s, g * vf_get(b->w + i, n));
        if (dw_D) vf_put(dw_D + i, n, vf_fma(g, s, vf_get(dw_D + i, n)));
        if (dsum) d = d + vf_get(dsum + i, n);
        if (ddelta) row_put(half, ddelta, i, n, d);
        if (dx && b->accumulate) d = d + vf_get(dx + i, n);
        if (dx) vf_put(dx + i, n, d);
    }
}

/* dw += the parts [chunks, D], in fp64, in their order. */
static void norm_join(float *dw, const float *parts, int chunks, size_t D) {
#pragma omp for schedule(static)
    for (size_t i = 0; i < D; i += 16)
        for (size_t at = i; at < D && at < i + 16; at += VF) {
            vd sum = vd_zero();
            for (int c = 0; c < chunks; c++) sum = vd_add(sum, vf_get(parts + (size_t)c * D + at, D - at));
            vf_put(dw + at, D - at, vf_get(dw + at, D - at) + vd_narrow(sum));
        }
}

/* A chunk of NORM_CHUNK tokens sums its part of dw in fp32, so that the error does not grow with the batch, and the
 * chunks do not depend on the number of threads. */
static ALWAYS_INLINE void norm_rows_backward(bool half, NormBackward b, float *dw, int n_tokens, float *parts) {
    int chunks = (n_tokens + NORM_CHUNK - 1) / NORM_CHUNK;
#pragma omp parallel num_threads(threads_count())
    {
#pragma omp for schedule(static)
        for (int c = 0; c < chunks; c++) {
            int first = c * NORM_CHUNK, end = n_tokens - first < NORM_CHUNK ? n_tokens : first + NORM_CHUNK;
            float *part = dw ? parts + (size_t)c * b.D : NULL;
            if (part) memset(part, 0, b.D * sizeof *part);
            for (int t = first; t < end; t++) norm_backward_row(half, &b, part, t);
        }
        if (dw) norm_join(dw, parts, chunks, b.D);
    }
}

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
