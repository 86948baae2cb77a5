/* The kernels over rows of precision bf16 over vectors; formulas in reference_bf16_rows.c. Included after fast_norm.h,
 * whose fused norm serves both precisions. */
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/kernels/simd.h"

static void fast_bf16_rmsnorm_forward(bf16 *y, float *rstd, const float *x, const float *w, int n_tokens, int width,
                                      float eps) {
    norm_rows(true, NULL, y, rstd, x, NULL, w, n_tokens, width, eps);
}

static void fast_bf16_add_rmsnorm_forward(float *sum, bf16 *y, float *rstd, const float *x, const bf16 *delta,
                                          const float *w, int n_tokens, int width, float eps) {
    norm_rows(true, sum, y, rstd, x, delta, w, n_tokens, width, eps);
}

static void fast_bf16_add_rmsnorm_backward(float *dx, bool accumulate, bf16 *ddelta, float *dw, const float *dsum,
                                           const bf16 *dy, const float *sum, const float *w, const float *rstd,
                                           int n_tokens, int width, float *scratch) {
    NormBackward b = {dx, ddelta, dsum, sum, w, rstd, dy, (size_t)width, accumulate};
    norm_rows_backward(true, b, dw, n_tokens, scratch);
}

/* ---- rotary: products and their sum are rounded as in the reference, so that the bits are the same ---- */

/* p's four floats in every four lanes; neighbouring fours exchanged; odd fours of b, even ones of a */
#if defined(__AVX512F__)
static inline vf vf_repeat4(const float *p) {
    return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
}
static inline vf vf_exchange4(vf x) {
    return _mm512_shuffle_f32x4(x, x, 0xb1);
}
static inline vf vf_alternate4(vf a, vf b) {
    return _mm512_mask_mov_ps(a, 0xf0f0, b);
}
#else
static inline vf vf_repeat4(const float *p) {
    return _mm256_broadcast_ps((const __m128 *)(const void *)p);
}
static inline vf vf_exchange4(vf x) {
    return _mm256_permute2f128_ps(x, x, 1);
}
static inline vf vf_alternate4(vf a, vf b) {
    return _mm256_blend_ps(a, b, 0xf0);
}
#endif

/* Heads of 8: one or two of them are a vector [a | b]; times [cos | cos], plus [b | a] times [−sin | sin]. */
static inline void rotate_heads_of_8(bf16 *y, const bf16 *x, size_t n, const float *cosine, const float *sine,
                                     float direction) {
    vf c = vf_repeat4(cosine), s = vf_repeat4(sine) * vf_set1(direction);
    vf signed_sine = vf_alternate4(-s, s);
    for (size_t i = 0; i < n; i += VF) {
        vf ab = vf_get_bf16(x + i, n - i);
        vf_put_bf16(y + i, n - i, ab * c + vf_exchange4(ab) * signed_sine);
    }
}

static inline void rotate_head(bf16 *y, const bf16 *x, size_t half, const float *cosine, const float *sine,
                               float direction) {
    for (size_t i = 0; i < half; i += VF) {
        size_t n = half - i;
        vf a = vf_get_bf16(x + i, n), b = vf_get_bf16(x + half + i, n);
        vf c = vf_get(cosine + i, n), s = vf_get(sine + i, n) * vf_set1(direction);
        vf_put_bf16(y + i, n, a * c - b * s);
        vf_put_bf16(y + half + i, n, b * c + a * s);
    }
}

/* y may be x */
static void rotate_bf16(bf16 *y, const bf16 *x, int n_heads, size_t half, const float *cosine, const float *sine,
                        float direction) {
    if (half == 4) {
        rotate_heads_of_8(y, x, (size_t)n_heads * 8, cosine, sine, direction);
        return;
    }
    for (int h = 0; h < n_heads; h++, y += 2 * half, x += 2 * half) rotate_head(y, x, half, cosine, sine, direction);
}

static void fast_bf16_rotary(bf16 *x, size_t stride, int n_tokens, int n_heads, int head_dim, const int32_t *positions,
                             const float *cos_table, const float *sin_table, bool inverse) {
    size_t half = (size_t)head_dim / 2;
    for (int t = 0; t < n_tokens; t++) {
        bf16 *row = x + (size_t)t * stride;
        size_t angle = (size_t)positions[t] * half;
        rotate_bf16(row, row, n_heads, half, cos_table + angle, sin_table + angle, inverse ? -1.0f : 1.0f);
    }
}

static void fast_bf16_rotary_copy(bf16 *y, const bf16 *x, size_t stride, size_t width, int n_tokens, int n_heads,
                                  int head_dim, const int32_t *positions, const float *cos_table,
                                  const float *sin_table, bool inverse) {
    size_t half = (size_t)head_dim / 2, rotated = (size_t)n_heads * (size_t)head_dim;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        size_t row = (size_t)t * stride, angle = (size_t)positions[t] * half;
        rotate_bf16(y + row, x + row, n_heads, half, cos_table + angle, sin_table + angle, inverse ? -1.0f : 1.0f);
        memcpy(y + row + rotated, x + row + rotated, (width - rotated) * sizeof *y);
    }
}

/* ---- SwiGLU ---- */

/* σ(g), and 1 − σ(g) = e^−g·σ(g), which does not cancel. Both within 2^-13.8: 2^-14 of the reciprocal, 2^-18 of the
 * power, 2^-17 of its argument; that is a 1/50 of the rounding to bf16 that follows (2^-8 at most). The argument
 * is cut at ±120, so that where g < −83 σ stays 2^-120 instead of smaller. */
static ALWAYS_INLINE vf short_sigmoid(vf g, vf *rest) {
    vf bounded = vf_min(vf_set1(120), vf_max(vf_set1(-120), g * vf_set1(-0x1.715476p+0f))); /* NaN passes */
    vf e = vf_exp2_short(bounded), sigmoid = vf_reciprocal(vf_set1(1) + e);
    *rest = e * sigmoid;
    return sigmoid;
}

static void fast_bf16_swiglu_forward(bf16 *y, const bf16 *gate_up, int n_tokens, int width) {
    size_t F = (size_t)width;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        const bf16 *gate = gate_up + 2 * (size_t)t * F, *up = gate + F;
        bf16 *y_F = y + (size_t)t * F;
        for (size_t i = 0; i < F; i += VF) {
            vf g = vf_get_bf16(gate + i, F - i), rest;
            vf_put_bf16(y_F + i, F - i, g * short_sigmoid(g, &rest) * vf_get_bf16(up + i, F - i));
        }
    }
}

static ALWAYS_INLINE void swiglu_backward_row(bool accumulate, bf16 *dgate, bf16 *dup, const bf16 *dy, const bf16 *gate,
                                              const bf16 *up, size_t F) {
    for (size_t i = 0; i < F; i += VF) {
        size_t n = F - i;
        vf g = vf_get_bf16(gate + i, n), rest, sigmoid = short_sigmoid(g, &rest);
        vf d = vf_get_bf16(dy + i, n) * sigmoid;
        vf dg = d * vf_get_bf16(up + i, n) * vf_fma(g, rest, vf_set1(1)), du = d * g;
        if (accumulate) {
            dg = dg + vf_get_bf16(dgate + i, n);
            du = du + vf_get_bf16(dup + i, n);
        }
        vf_put_bf16(dgate + i, n, dg);
        vf_put_bf16(dup + i, n, du);
    }
}

static void fast_bf16_swiglu_backward(bf16 *dgate_up, bool accumulate, const bf16 *dy, const bf16 *gate_up,
                                      int n_tokens, int width) {
    if (!dgate_up) return;
    size_t F = (size_t)width;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        const bf16 *gate = gate_up + 2 * (size_t)t * F, *dy_F = dy + (size_t)t * F;
        bf16 *dgate = dgate_up + 2 * (size_t)t * F;
        if (accumulate)
            swiglu_backward_row(true, dgate, dgate + F, dy_F, gate, gate + F, F);
        else
            swiglu_backward_row(false, dgate, dgate + F, dy_F, gate, gate + F, F);
    }
}

static void fast_bf16_rows(Bf16Kernels *table) {
    table->rmsnorm_forward = fast_bf16_rmsnorm_forward;
    table->add_rmsnorm_forward = fast_bf16_add_rmsnorm_forward;
    table->add_rmsnorm_backward = fast_bf16_add_rmsnorm_backward;
    table->rotary = fast_bf16_rotary;
    table->rotary_copy = fast_bf16_rotary_copy;
    table->swiglu_forward = fast_bf16_swiglu_forward;
    table->swiglu_backward = fast_bf16_swiglu_backward;
}
