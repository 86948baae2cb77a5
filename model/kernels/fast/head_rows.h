/* Rows of logits for the head of precision bf16, over vectors. Logits are kept as u = log2(e)·z, so that a probability
 * is a power of two, and references are whole numbers: a row's terms change by exact powers of two with the reference.
 * Included by fast/bf16_head.h. */
#ifndef CRIA_KERNELS_HEAD_ROWS_H
#define CRIA_KERNELS_HEAD_ROWS_H

#include <float.h>
#include <math.h>
#include <stdbool.h>

#include "model/kernels/fast/simd.h"

/* What a pass over a piece of a row finds, with t = s·c − ref: max c, Σ 2^t, Σ t·2^t, Σ c. NaN is not a maximum. */
typedef struct {
    float top, sum, moment, total;
} RowPass;

#if defined(__AVX512F__)
/* 2^t, for t < 128; 2^-126 below −126, NaN for NaN. t = k/32 + r: 2^(k/32) from a table, whose entries have the low
 * five bits of k taken out beforehand so that k itself, shifted, joins the exponent; 2^r = 1 + r·(ln 2 + r·c), |r| <=
 * 1/64, within 2e-7. */
static ALWAYS_INLINE vf head_exp2(vf t) {
#define ENTRY(i, bits) ((bits) - ((i) << 18))
    static const int32_t entry[32] __attribute__((aligned(64))) = {
        ENTRY(0, 0x3f800000),  ENTRY(1, 0x3f82cd87),  ENTRY(2, 0x3f85aac3),  ENTRY(3, 0x3f88980f),
        ENTRY(4, 0x3f8b95c2),  ENTRY(5, 0x3f8ea43a),  ENTRY(6, 0x3f91c3d3),  ENTRY(7, 0x3f94f4f0),
        ENTRY(8, 0x3f9837f0),  ENTRY(9, 0x3f9b8d3a),  ENTRY(10, 0x3f9ef532), ENTRY(11, 0x3fa27043),
        ENTRY(12, 0x3fa5fed7), ENTRY(13, 0x3fa9a15b), ENTRY(14, 0x3fad583f), ENTRY(15, 0x3fb123f6),
        ENTRY(16, 0x3fb504f3), ENTRY(17, 0x3fb8fbaf), ENTRY(18, 0x3fbd08a4), ENTRY(19, 0x3fc12c4d),
        ENTRY(20, 0x3fc5672a), ENTRY(21, 0x3fc9b9be), ENTRY(22, 0x3fce248c), ENTRY(23, 0x3fd2a81e),
        ENTRY(24, 0x3fd744fd), ENTRY(25, 0x3fdbfbb8), ENTRY(26, 0x3fe0ccdf), ENTRY(27, 0x3fe5b907),
        ENTRY(28, 0x3feac0c7), ENTRY(29, 0x3fefe4ba), ENTRY(30, 0x3ff5257d), ENTRY(31, 0x3ffa83b3)};
#undef ENTRY
    const vf shift = vf_set1(0x1.8p18f); /* its units are 1/32 */
    t = vf_max(vf_set1(-126), t);        /* t second: NaN passes */
    vf shifted = t + shift, r = t - (shifted - shift);
    __m512i k = _mm512_castps_si512(shifted);
    __m512i power = _mm512_permutex2var_epi32(_mm512_load_si512(entry), k, _mm512_load_si512(entry + 16));
    vf y = _mm512_castsi512_ps(_mm512_add_epi32(power, _mm512_slli_epi32(k, 18)));
    return vf_fma(y * r, vf_fma(vf_set1(0x1.ebfbe0p-3f), r, vf_set1(0x1.62e430p-1f)), y);
}
static ALWAYS_INLINE float head_top(vf x) {
    return _mm512_reduce_max_ps(x);
}
static ALWAYS_INLINE bool head_any_equal(vf a, vf b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ) != 0;
}
#else
static ALWAYS_INLINE vf head_exp2(vf t) {
    return vf_exp2(vf_max(vf_set1(-126), t));
}
static ALWAYS_INLINE float head_top(vf x) {
    return vf_top(x);
}
static ALWAYS_INLINE bool head_any_equal(vf a, vf b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)) != 0;
}
#endif

static ALWAYS_INLINE void head_put_pair(bf16 *e, vf a, vf b) {
#if defined(__AVX512BF16__)
    _mm512_storeu_si512(e, (__m512i)_mm512_cvtne2ps_pbh(b, a));
#else
    vb_store(e, vf_narrow(a));
    vb_store(e + VF, vf_narrow(b));
#endif
}

/* One pass over n logits; their powers go to e where `keep`, which has room for whole vectors. `moments`: t·2^t and c
 * are summed too. */
static ALWAYS_INLINE RowPass head_pass(bf16 *e, const float *c, size_t n, float s, float ref, const bool keep,
                                       const bool moments) {
    const vf scale = vf_set1(s), offset = vf_set1(-ref), lowest = vf_set1(-INFINITY);
    vf top = lowest, sum = vf_zero(), moment = vf_zero(), total = vf_zero();
    size_t i = 0;
    for (; i + 2 * VF <= n; i += 2 * VF) {
        vf a = vf_load(c + i), b = vf_load(c + i + VF);
        vf ta = vf_fma(a, scale, offset), tb = vf_fma(b, scale, offset);
        vf ya = head_exp2(ta), yb = head_exp2(tb);
        top = vf_max(b, vf_max(a, top)); /* the known maximum second: it stays where the other is NaN */
        sum = sum + (ya + yb);
        if (keep) head_put_pair(e + i, ya, yb);
        if (!moments) continue;
        moment = vf_fma(ya, vf_max(vf_set1(-126), ta), vf_fma(yb, vf_max(vf_set1(-126), tb), moment));
        total = total + (a + b);
    }
    for (; i < n; i += VF) {
        int left = n - i < VF ? (int)(n - i) : VF;
        vf a = vf_get(c + i, n - i), t = vf_to_lane(vf_fma(a, scale, offset), left, lowest), y = head_exp2(t);
        top = vf_max(vf_to_lane(a, left, lowest), top);
        y = vf_to_lane(y, left, vf_zero());
        sum = sum + y;
        if (keep) vb_store(e + i, vf_narrow(y));
        if (moments) moment = vf_fma(y, vf_max(vf_set1(-126), t), moment);
        total = total + a;
    }
    return (RowPass){head_top(top), vf_total(sum), moments ? vf_total(moment) : 0, moments ? vf_total(total) : 0};
}

static RowPass head_pass_any(bf16 *e, const float *c, size_t n, float s, float ref, bool keep, bool moments) {
    if (moments) return keep ? head_pass(e, c, n, s, ref, true, true) : head_pass(e, c, n, s, ref, false, true);
    return keep ? head_pass(e, c, n, s, ref, true, false) : head_pass(e, c, n, s, ref, false, false);
}

static inline float head_row_top(const float *c, size_t n) {
    vf top = vf_set1(-INFINITY);
    size_t i = 0;
    for (; i + VF <= n; i += VF) top = vf_max(vf_load(c + i), top);
    float best = head_top(top);
    for (; i < n; i++) best = c[i] > best ? c[i] : best;
    return best;
}

/* The first place of a value that is there. */
static inline int head_row_find(const float *c, int n, float value) {
    int i = 0;
    while (n - i > VF && !head_any_equal(vf_load(c + i), vf_set1(value))) i += VF;
    while (i < n - 1 && c[i] != value) i++;
    return i;
}

/* e·factor in place over whole vectors; exact for a power of two, but for what falls below the smallest number. */
static inline void head_row_scale(bf16 *e, size_t n, float factor) {
    for (size_t i = 0; i < n; i += VF) vb_store(e + i, vf_narrow(vf_set1(factor) * vf_widen(vb_load(e + i))));
}

/* to = factor·x, rounded to bf16 */
static inline void head_scaled_row(bf16 *to, const bf16 *x, size_t n, float factor) {
    for (size_t i = 0; i < n; i += VF) vf_put_bf16(to + i, n - i, vf_set1(factor) * vf_get_bf16(x + i, n - i));
}

/* 2^n for whole n <= 0; 0 below the normal numbers */
static inline float head_power(float n) {
    if (n < -126) return 0;
    uint32_t bits = (uint32_t)((int)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

#endif
