/* A thin layer over vector registers, so that a fast kernel is written once: vf is VF floats, 16 with AVX-512, 8 with
 * AVX2. Included by the fast_*.h files; which set is meant follows from the flags of the including avx2_*.c or
 * avx512_*.c. Elementwise + - * / work on vf directly (a compiler extension of gcc and clang).
 *
 * Sums over lanes are taken in one fixed order, in fp64. */
#ifndef CRIA_KERNELS_SIMD_H
#define CRIA_KERNELS_SIMD_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "model/core/dtype.h"

/* For functions with arguments that are constants at every call and choose what is compiled. */
#define ALWAYS_INLINE inline __attribute__((always_inline))

static inline float simd_total8(__m256 x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

#if defined(__AVX512F__)

typedef __m512 vf;
enum { VF = 16 };
typedef struct {
    __m512d low, high;
} vd; /* VF doubles */

static inline vf vf_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, vf x) {
    _mm512_storeu_ps(p, x);
}
/* The first n < VF lanes, the others 0. */
static inline vf vf_load_part(const float *p, size_t n) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
static inline void vf_store_part(float *p, size_t n, vf x) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), x);
}
static inline vf vf_set1(float x) {
    return _mm512_set1_ps(x);
}
static inline vf vf_fma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c); /* a·b + c */
}
static inline vf vf_fnma(vf a, vf b, vf c) {
    return _mm512_fnmadd_ps(a, b, c); /* c − a·b */
}
/* b where either is NaN */
static inline vf vf_max(vf a, vf b) {
    return _mm512_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b) {
    return _mm512_min_ps(a, b);
}
static inline vf vf_sqrt(vf x) {
    return _mm512_sqrt_ps(x);
}
static inline vf vf_round(vf x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* x·2^n for whole n */
static inline vf vf_scale2(vf x, vf n) {
    return _mm512_scalef_ps(x, n);
}
/* The same for 1/2 < x < 2 and results that are normal numbers or just infinite */
static inline vf vf_scale2_normal(vf x, vf n) {
    return _mm512_scalef_ps(x, n);
}
/* 0 where x < limit (false for NaN), else y */
static inline vf vf_zero_below(vf y, vf x, vf limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), y);
}
/* x in the lanes from `first` on (any int), `otherwise` in those before */
static inline vf vf_from_lane(vf x, int first, vf otherwise) {
    unsigned before = first <= 0 ? 0 : first >= VF ? 0xffffu : (1u << first) - 1;
    return _mm512_mask_mov_ps(x, (__mmask16)before, otherwise);
}
/* Sum of the lanes in fp32, pairwise */
static inline float vf_total(vf x) {
    __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    return simd_total8(y);
}
static inline vd vd_zero(void) {
    return (vd){_mm512_setzero_pd(), _mm512_setzero_pd()};
}
static inline vd vd_add(vd a, vf x) {
    __m256 high = _mm512_extractf32x8_ps(x, 1);
    return (vd){a.low + _mm512_cvtps_pd(_mm512_castps512_ps256(x)), a.high + _mm512_cvtps_pd(high)};
}
static inline vd vd_add_square(vd a, vf x) {
    __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    return (vd){_mm512_fmadd_pd(low, low, a.low), _mm512_fmadd_pd(high, high, a.high)};
}
/* VF bf16: widening shifts them into the upper half; narrowing rounds to nearest even, NaN becomes quiet. With
 * AVX512-BF16 one instruction narrows, which takes subnormal numbers (below 1.2e-38) for zero. */
typedef __m256i vb;
static inline vf vf_widen(vb x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
static inline vb vf_narrow(vf x) {
#if defined(__AVX512BF16__)
    return (vb)_mm512_cvtneps_pbh(x);
#else
    __m512i bits = _mm512_castps_si512(x), upper = _mm512_srli_epi32(bits, 16);
    __m512i half = _mm512_add_epi32(_mm512_and_si512(upper, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40)));
#endif
}
static inline vb vb_load(const bf16 *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}
static inline void vb_store(bf16 *p, vb x) {
    _mm256_storeu_si256((__m256i *)p, x);
}
static inline vb vb_load_part(const bf16 *p, size_t n) {
    return _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
}
static inline void vb_store_part(bf16 *p, size_t n, vb x) {
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), x);
}
/* 8 lanes, the others 0: a whole store, from which a load of the same bytes is served at once; after one of a part of
 * the lanes it waits. */
static inline vb vb_load8(const bf16 *p) {
    return _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)p));
}
static inline void vb_store8(bf16 *p, vb x) {
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(x));
}
static inline vf vf_load8(const float *p) {
    return _mm512_zextps256_ps512(_mm256_loadu_ps(p));
}
/* 1/x within 2^-14 */
static inline vf vf_reciprocal(vf x) {
    return _mm512_rcp14_ps(x);
}
static inline vf vd_narrow(vd a) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(a.low)), _mm512_cvtpd_ps(a.high), 1);
}
static inline double vd_sum(vd a) {
    double lane[8];
    _mm512_storeu_pd(lane, a.low + a.high);
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

#elif defined(__AVX2__)

typedef __m256 vf;
enum { VF = 8 };
typedef struct {
    __m256d low, high;
} vd; /* VF doubles */

static inline __m256i simd_lane_index(void) {
    return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
}
/* all ones in the first n lanes */
static inline __m256i simd_first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), simd_lane_index());
}
static inline vf vf_load(const float *p) {
    return _mm256_loadu_ps(p);
}
static inline void vf_store(float *p, vf x) {
    _mm256_storeu_ps(p, x);
}
/* The first n < VF lanes, the others 0. */
static inline vf vf_load_part(const float *p, size_t n) {
    return _mm256_maskload_ps(p, simd_first((int)n));
}
static inline void vf_store_part(float *p, size_t n, vf x) {
    _mm256_maskstore_ps(p, simd_first((int)n), x);
}
static inline vf vf_set1(float x) {
    return _mm256_set1_ps(x);
}
static inline vf vf_fma(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c); /* a·b + c */
}
static inline vf vf_fnma(vf a, vf b, vf c) {
    return _mm256_fnmadd_ps(a, b, c); /* c − a·b */
}
/* b where either is NaN */
static inline vf vf_max(vf a, vf b) {
    return _mm256_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b) {
    return _mm256_min_ps(a, b);
}
static inline vf vf_sqrt(vf x) {
    return _mm256_sqrt_ps(x);
}
static inline vf vf_round(vf x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf simd_power2(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
/* x·2^n for whole n; two factors, since 2^n itself may be out of range where x·2^n is not. |n| is cut at 252. */
static inline vf vf_scale2(vf x, vf n) {
    __m256i whole = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(n, vf_set1(-252)), vf_set1(252)));
    __m256i half = _mm256_srai_epi32(whole, 1);
    return x * simd_power2(half) * simd_power2(_mm256_sub_epi32(whole, half));
}
/* The same for 1/2 < x < 2 and results that are normal numbers or just infinite: n joins the exponent's bits. */
static inline vf vf_scale2_normal(vf x, vf n) {
    __m256i bits = _mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23));
    return _mm256_castsi256_ps(bits);
}
/* 0 where x < limit (false for NaN), else y */
static inline vf vf_zero_below(vf y, vf x, vf limit) {
    return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLT_UQ), y);
}
/* x in the lanes from `first` on (any int), `otherwise` in those before */
static inline vf vf_from_lane(vf x, int first, vf otherwise) {
    return _mm256_blendv_ps(x, otherwise, _mm256_castsi256_ps(simd_first(first)));
}
/* Sum of the lanes in fp32, pairwise */
static inline float vf_total(vf x) {
    return simd_total8(x);
}
static inline vd vd_zero(void) {
    return (vd){_mm256_setzero_pd(), _mm256_setzero_pd()};
}
static inline vd vd_add(vd a, vf x) {
    __m128 high = _mm256_extractf128_ps(x, 1);
    return (vd){a.low + _mm256_cvtps_pd(_mm256_castps256_ps128(x)), a.high + _mm256_cvtps_pd(high)};
}
static inline vd vd_add_square(vd a, vf x) {
    __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    return (vd){_mm256_fmadd_pd(low, low, a.low), _mm256_fmadd_pd(high, high, a.high)};
}
/* VF bf16: widening shifts them into the upper half; narrowing rounds to nearest even, NaN becomes quiet. */
typedef __m128i vb;
static inline vf vf_widen(vb x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
static inline vb simd_lower_halves(__m256i x) {
    return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
static inline vb vf_narrow(vf x) {
    __m256i bits = _mm256_castps_si256(x), upper = _mm256_srli_epi32(bits, 16);
    __m256i half = _mm256_add_epi32(_mm256_and_si256(upper, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    return simd_lower_halves(_mm256_blendv_epi8(rounded, quiet, nan));
}
static inline vb vb_load(const bf16 *p) {
    return _mm_loadu_si128((const __m128i *)p);
}
static inline void vb_store(bf16 *p, vb x) {
    _mm_storeu_si128((__m128i *)p, x);
}
static inline vb vb_load_part(const bf16 *p, size_t n) {
    bf16 lanes[VF] = {0};
    memcpy(lanes, p, n * sizeof *p);
    return vb_load(lanes);
}
static inline void vb_store_part(bf16 *p, size_t n, vb x) {
    bf16 lanes[VF];
    vb_store(lanes, x);
    memcpy(p, lanes, n * sizeof *p);
}
static inline vb vb_load8(const bf16 *p) {
    return vb_load(p);
}
static inline void vb_store8(bf16 *p, vb x) {
    vb_store(p, x);
}
static inline vf vf_load8(const float *p) {
    return vf_load(p);
}
/* 1/x within 2^-21: the approximation's 1.5·2^-12 squared by one step of Newton's method */
static inline vf vf_reciprocal(vf x) {
    vf r = _mm256_rcp_ps(x);
    return r * _mm256_fnmadd_ps(x, r, _mm256_set1_ps(2));
}
static inline vf vd_narrow(vd a) {
    return _mm256_set_m128(_mm256_cvtpd_ps(a.high), _mm256_cvtpd_ps(a.low));
}
static inline double vd_sum(vd a) {
    double lane[4];
    _mm256_storeu_pd(lane, a.low + a.high);
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

#else
#error "simd.h is for files compiled with AVX2 and FMA, or AVX-512"
#endif

static inline vf vf_zero(void) {
    return vf_set1(0);
}
/* min(n, VF) lanes, the others 0 */
static inline vf vf_get(const float *p, size_t n) {
    return n >= VF ? vf_load(p) : vf_load_part(p, n);
}
static inline void vf_put(float *p, size_t n, vf x) {
    if (n >= VF)
        vf_store(p, x);
    else
        vf_store_part(p, n, x);
}
/* The same of bf16 */
static inline vf vf_get_bf16(const bf16 *p, size_t n) {
    return vf_widen(n >= VF ? vb_load(p) : vb_load_part(p, n));
}
static inline void vb_put(bf16 *p, size_t n, vb x) {
    if (n >= VF)
        vb_store(p, x);
    else
        vb_store_part(p, n, x);
}
static inline void vf_put_bf16(bf16 *p, size_t n, vf x) {
    vb_put(p, n, vf_narrow(x));
}
/* x in the first n lanes, `otherwise` in the others */
static inline vf vf_to_lane(vf x, int n, vf otherwise) {
    return vf_from_lane(otherwise, n, x);
}
static inline double vf_sum(vf x) {
    return vd_sum(vd_add(vd_zero(), x));
}
static inline float vf_top(vf x) {
    float lane[VF], top;
    vf_store(lane, x);
    top = lane[0];
    for (int i = 1; i < VF; i++) top = lane[i] > top ? lane[i] : top;
    return top;
}

/* 2^x. The fraction r = x − round(x) goes through a polynomial for 2^r on [−½, ½], fitted for least relative error
 * (2.0e-9 before rounding; 0.91 ulp measured after it), and the whole part into the exponent. 0 below the smallest
 * normal number, +infinity above the largest, NaN for NaN. */
static inline vf vf_exp2(vf x) {
    vf bounded = vf_min(vf_set1(128), x); /* x second: NaN passes */
    vf whole = vf_round(bounded), r = bounded - whole;
    vf p = vf_set1(0x1.41fb9cp-13f);
    p = vf_fma(p, r, vf_set1(0x1.5f3e68p-10f));
    p = vf_fma(p, r, vf_set1(0x1.3b2d4ep-7f));
    p = vf_fma(p, r, vf_set1(0x1.c6aee8p-5f));
    p = vf_fma(p, r, vf_set1(0x1.ebfbdcp-3f));
    p = vf_fma(p, r, vf_set1(0x1.62e430p-1f));
    p = vf_fma(p, r, vf_set1(1));
    return vf_zero_below(vf_scale2_normal(p, whole), x, vf_set1(-126));
}

/* e^x, in the same way (1.02 ulp measured): r = x − n·ln 2 with ln 2 in two parts (Cody and Waite 1980), |r| ≤ ½·ln 2.
 */
static inline vf vf_exp(vf x) {
    vf bounded = vf_min(vf_set1(89), vf_max(vf_set1(-89), x)); /* x second: NaN passes */
    vf whole = vf_round(bounded * vf_set1(0x1.715476p+0f));
    vf r = vf_fnma(whole, vf_set1(0x1.62e400p-1f), bounded);
    r = vf_fnma(whole, vf_set1(0x1.7f7d1cp-20f), r);
    vf p = vf_set1(0x1.6ae70cp-10f);
    p = vf_fma(p, r, vf_set1(0x1.126792p-7f));
    p = vf_fma(p, r, vf_set1(0x1.555822p-5f));
    p = vf_fma(p, r, vf_set1(0x1.55541ap-3f));
    p = vf_fma(p, r, vf_set1(0x1.fffffcp-2f));
    p = vf_fma(p, r, vf_set1(1));
    p = vf_fma(p, r, vf_set1(1));
    return vf_zero_below(vf_scale2(p, whole), x, vf_set1(-0x1.5d589ep+6f));
}

/* 2^x within 2^-18, for −126 <= x <= 126: where the result is rounded to bf16. */
static inline vf vf_exp2_short(vf x) {
    vf whole = vf_round(x), r = x - whole;
    vf p = vf_set1(0x1.3997d6p-7f);
    p = vf_fma(p, r, vf_set1(0x1.ca1444p-5f));
    p = vf_fma(p, r, vf_set1(0x1.ec06dap-3f));
    p = vf_fma(p, r, vf_set1(0x1.62e0dcp-1f));
    p = vf_fma(p, r, vf_set1(0x1.ffffe8p-1f));
    return vf_scale2_normal(p, whole);
}

/* Elementwise over arrays: how the tests measure the two above. */
static inline void simd_exp2_array(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += VF) vf_put(y + i, n - i, vf_exp2(vf_get(x + i, n - i)));
}
static inline void simd_exp_array(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += VF) vf_put(y + i, n - i, vf_exp(vf_get(x + i, n - i)));
}

/* 1 / (1 + e^−x) */
static inline vf vf_sigmoid(vf x) {
    return vf_set1(1) / (vf_set1(1) + vf_exp(-x));
}

#endif
