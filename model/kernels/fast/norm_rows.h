/* RMSNorm with the residual addition fused, of fp32 rows and of those of precision bf16: formulas in reference/norm.c.
 * Included by fast/norm.h and fast/bf16_rows.h, which say which type an array has. */
#ifndef CRIA_KERNELS_FAST_NORM_ROWS_H
#define CRIA_KERNELS_FAST_NORM_ROWS_H

#include <math.h>
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/fast/fast.h"
#include "model/kernels/fast/simd.h"

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

/* sum = x + delta (delta NULL: x, and sum is not written); its squares are added to `squares`. */
static ALWAYS_INLINE vf norm_add(bool half, float *sum, const float *x, const void *delta, size_t i, size_t n,
                                 vf squares) {
    vf s = vf_get(x + i, n);
    if (delta) {
        s = s + row_get(half, delta, i, n);
        vf_put(sum + i, n, s);
    }
    return vf_fma(s, s, squares);
}

/* A row of n elements: its sum with delta, and y, the norm of that. It is in L1 for the second loop. */
static ALWAYS_INLINE float norm_row(bool half, float *sum, void *y, const float *x, const void *delta, const float *w,
                                    size_t n, float eps) {
    vf even = vf_zero(), odd = vf_zero();
    size_t i = 0;
    for (; i + 2 * VF <= n; i += 2 * VF) {
        even = norm_add(half, sum, x, delta, i, VF, even);
        odd = norm_add(half, sum, x, delta, i + VF, VF, odd);
    }
    for (; i < n; i += VF) even = norm_add(half, sum, x, delta, i, n - i, even);
    float r = (float)(1 / sqrt((double)vf_total(even + odd) / (double)n + (double)eps));
    const float *normed = delta ? sum : x;
    vf scale = vf_set1(r);
    for (i = 0; i + VF <= n; i += VF) row_put(half, y, i, VF, vf_load(normed + i) * scale * vf_load(w + i));
    if (i < n) row_put(half, y, i, n - i, vf_get(normed + i, n - i) * scale * vf_get(w + i, n - i));
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

/* The pointers of one token; dw: its part of a chunk's. NULL where not wanted. */
typedef struct {
    float *dx, *dw;
    void *ddelta;
    const float *dsum, *sum, *w;
    const void *dy;
} NormRow;

static ALWAYS_INLINE vf norm_dot(bool half, const NormRow *p, size_t i, size_t n, vf dot) {
    return vf_fma(row_get(half, p->dy, i, n) * vf_get(p->w + i, n), vf_get(p->sum + i, n), dot);
}

static ALWAYS_INLINE void norm_backward_vector(bool half, bool accumulate, const NormRow *p, vf scale, vf shrink,
                                               size_t i, size_t n) {
    vf g = row_get(half, p->dy, i, n) * scale, s = vf_get(p->sum + i, n);
    vf d = vf_fnma(shrink, s, g * vf_get(p->w + i, n));
    if (p->dw) vf_put(p->dw + i, n, vf_fma(g, s, vf_get(p->dw + i, n)));
    if (p->dsum) d = d + vf_get(p->dsum + i, n);
    if (p->ddelta) row_put(half, p->ddelta, i, n, d);
    if (p->dx && accumulate) d = d + vf_get(p->dx + i, n);
    if (p->dx) vf_put(p->dx + i, n, d);
}

/* Token t; its part of dw is added to dw_D (NULL: none). */
static ALWAYS_INLINE void norm_backward_row(bool half, const NormBackward *b, float *dw_D, int t) {
    size_t D = b->D, i = 0;
    NormRow p = {.dx = row_at(false, b->dx, t, D), .dw = dw_D, .ddelta = row_at(half, b->ddelta, t, D), .w = b->w};
    p.dsum = row_at(false, b->dsum, t, D), p.sum = b->sum + (size_t)t * D, p.dy = row_at(half, b->dy, t, D);
    vf even = vf_zero(), odd = vf_zero();
    for (; i + 2 * VF <= D; i += 2 * VF) {
        even = norm_dot(half, &p, i, VF, even);
        odd = norm_dot(half, &p, i + VF, VF, odd);
    }
    for (; i < D; i += VF) even = norm_dot(half, &p, i, D - i, even);
    double r = b->rstd[t];
    vf scale = vf_set1(b->rstd[t]);
    vf shrink = vf_set1((float)((double)vf_total(even + odd) * r * r * r / (double)D));
    for (i = 0; i + VF <= D; i += VF) norm_backward_vector(half, b->accumulate, &p, scale, shrink, i, VF);
    if (i < D) norm_backward_vector(half, b->accumulate, &p, scale, shrink, i, D - i);
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

#endif
