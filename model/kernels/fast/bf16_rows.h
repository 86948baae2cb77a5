/* The kernels over rows of precision bf16 over vectors; formulas in reference/bf16_rows.c. */
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/fast/norm_rows.h"
#include "model/kernels/kernels.h"
#include "model/kernels/fast/simd.h"

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

/* Pairs [i, i + 8) of a head. */
static inline void rotate_8_pairs(bf16 *y, const bf16 *x, size_t half, const float *cosine, const float *sine,
                                  vf direction) {
    vf a = vf_widen(vb_load8(x)), b = vf_widen(vb_load8(x + half)), c = vf_load8(cosine),
       s = vf_load8(sine) * direction;
    vb_store8(y, vf_narrow(a * c - b * s));
    vb_store8(y + half, vf_narrow(b * c + a * s));
}

static ALWAYS_INLINE void rotate_pairs(bf16 *y, const bf16 *x, size_t half, const float *cosine, const float *sine,
                                       vf direction, size_t n) {
    vf a = vf_get_bf16(x, n), b = vf_get_bf16(x + half, n), c = vf_get(cosine, n), s = vf_get(sine, n) * direction;
    vf_put_bf16(y, n, a * c - b * s);
    vf_put_bf16(y + half, n, b * c + a * s);
}

/* Heads of 48 (half = 24) end with 8 pairs. */
static inline void rotate_head(bf16 *y, const bf16 *x, size_t half, const float *cosine, const float *sine,
                               vf direction) {
    size_t i = 0;
    for (; i + VF <= half; i += VF) rotate_pairs(y + i, x + i, half, cosine + i, sine + i, direction, VF);
    if (half - i == 8)
        rotate_8_pairs(y + i, x + i, half, cosine + i, sine + i, direction);
    else if (i < half)
        rotate_pairs(y + i, x + i, half, cosine + i, sine + i, direction, half - i);
}

/* y may be x */
static void rotate_bf16(bf16 *y, const bf16 *x, int n_heads, size_t half, const float *cosine, const float *sine,
                        float direction) {
    if (half == 4) {
        rotate_heads_of_8(y, x, (size_t)n_heads * 8, cosine, sine, direction);
        return;
    }
    for (int h = 0; h < n_heads; h++, y += 2 * half, x += 2 * half)
        rotate_head(y, x, half, cosine, sine, vf_set1(direction));
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

static ALWAYS_INLINE void swiglu_vector(bf16 *y, const bf16 *gate, const bf16 *up, size_t n) {
    vf g = vf_get_bf16(gate, n), rest;
    vf_put_bf16(y, n, g * short_sigmoid(g, &rest) * vf_get_bf16(up, n));
}

static void fast_bf16_swiglu_forward(bf16 *y, const bf16 *gate_up, int n_tokens, int width) {
    size_t F = (size_t)width;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        const bf16 *gate = gate_up + 2 * (size_t)t * F, *up = gate + F;
        bf16 *y_F = y + (size_t)t * F;
        size_t i = 0;
        for (; i + VF <= F; i += VF) swiglu_vector(y_F + i, gate + i, up + i, VF);
        if (i < F) swiglu_vector(y_F + i, gate + i, up + i, F - i);
    }
}

static ALWAYS_INLINE void swiglu_backward_vector(bool accumulate, bf16 *dgate, bf16 *dup, const bf16 *dy,
                                                 const bf16 *gate, const bf16 *up, size_t n) {
    vf g = vf_get_bf16(gate, n), rest, sigmoid = short_sigmoid(g, &rest), d = vf_get_bf16(dy, n) * sigmoid;
    vf dg = d * vf_get_bf16(up, n) * vf_fma(g, rest, vf_set1(1)), du = d * g;
    if (accumulate) {
        dg = dg + vf_get_bf16(dgate, n);
        du = du + vf_get_bf16(dup, n);
    }
    vf_put_bf16(dgate, n, dg);
    vf_put_bf16(dup, n, du);
}

static ALWAYS_INLINE void swiglu_backward_row(bool accumulate, bf16 *dgate, const bf16 *dy, const bf16 *gate,
                                              size_t F) {
    bf16 *dup = dgate + F;
    const bf16 *up = gate + F;
    size_t i = 0;
    for (; i + VF <= F; i += VF) swiglu_backward_vector(accumulate, dgate + i, dup + i, dy + i, gate + i, up + i, VF);
    if (i < F) swiglu_backward_vector(accumulate, dgate + i, dup + i, dy + i, gate + i, up + i, F - i);
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
            swiglu_backward_row(true, dgate, dy_F, gate, F);
        else
            swiglu_backward_row(false, dgate, dy_F, gate, F);
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
