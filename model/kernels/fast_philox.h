/* Philox4x32-10 (model/core/philox.h) in the lanes of integer vectors, and stochastic rounding to bf16; what they are
 * for and the order of the counters: reference_bf16_adamw.c. */
#ifndef CRIA_KERNELS_FAST_PHILOX_H
#define CRIA_KERNELS_FAST_PHILOX_H

#include "model/core/philox.h"
#include "model/kernels/simd.h"

/* vu: VF words of 32 bits */
#if defined(__AVX512F__)
typedef __m512i vu;

static inline vu vu_set1(uint32_t x) {
    return _mm512_set1_epi32((int)x);
}
/* first, first + 1, … */
static inline vu vu_from(uint32_t first) {
    return _mm512_add_epi32(vu_set1(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
static inline vu vu_xor3(vu a, vu b, vu c) {
    return _mm512_ternarylogic_epi32(a, b, c, 0x96);
}
/* The lower halves of the lanes' products; *high: the upper ones. */
static inline vu vu_multiply(vu a, uint32_t by, vu *high) {
    vu factor = vu_set1(by), even = _mm512_mul_epu32(a, factor),
       odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), factor);
    *high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
    return _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
}
/* The lower halves of the words `random`, below bits that go into the upper halves of x's. */
static inline vb vf_narrow_randomly(vf x, vu random) {
    vu bits = _mm512_castps_si512(x), moved = _mm512_add_epi32(bits, _mm512_and_si512(random, vu_set1(0xffff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_or_epi32(moved, nan, bits, vu_set1(0x400000)), 16));
}
static inline vu vu_upper_halves(vu x) {
    return _mm512_srli_epi32(x, 16);
}

#else
typedef __m256i vu;

static inline vu vu_set1(uint32_t x) {
    return _mm256_set1_epi32((int)x);
}
static inline vu vu_from(uint32_t first) {
    return _mm256_add_epi32(vu_set1(first), simd_lane_index());
}
static inline vu vu_xor3(vu a, vu b, vu c) {
    return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
}
static inline vu vu_multiply(vu a, uint32_t by, vu *high) {
    vu factor = vu_set1(by), even = _mm256_mul_epu32(a, factor),
       odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), factor);
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
static inline vb vf_narrow_randomly(vf x, vu random) {
    vu bits = _mm256_castps_si256(x), moved = _mm256_add_epi32(bits, _mm256_and_si256(random, vu_set1(0xffff)));
    vu nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    moved = _mm256_blendv_epi8(moved, _mm256_or_si256(bits, vu_set1(0x400000)), nan);
    return simd_lower_halves(_mm256_srli_epi32(moved, 16));
}
static inline vu vu_upper_halves(vu x) {
    return _mm256_srli_epi32(x, 16);
}
#endif

/* The four words of every lane's generator; c3, the last word of the counter, differs from lane to lane. */
static inline void vu_philox(vu words[4], uint32_t c0, uint32_t c1, uint32_t c2, vu c3, PhiloxKey key) {
    vu a = vu_set1(c0), b = vu_set1(c1), c = vu_set1(c2), d = c3;
    for (int round = 0; round < 10; round++) {
        vu high0, high1, low0 = vu_multiply(a, 0xD2511F53u, &high0), low1 = vu_multiply(c, 0xCD9E8D57u, &high1);
        a = vu_xor3(high1, b, vu_set1(key.word[0]));
        c = vu_xor3(high0, d, vu_set1(key.word[1]));
        b = low1;
        d = low0;
        key.word[0] += 0x9E3779B9u;
        key.word[1] += 0xBB67AE85u;
    }
    words[0] = a, words[1] = b, words[2] = c, words[3] = d;
}

enum { RANDOM_COLUMNS = 64, RANDOM_VECTORS = RANDOM_COLUMNS / VF };

/* A word for each of 64 columns from `column` (a multiple of 64) on: 16 generators give four words each. */
static inline void random_columns(vu words[RANDOM_VECTORS], PhiloxKey key, uint32_t update, uint64_t row,
                                  size_t column) {
    enum { PARTS = 16 / VF }; /* vectors that hold 16 lanes */
    for (uint32_t part = 0; part < PARTS; part++) {
        vu four[4];
        vu_philox(four, update, (uint32_t)row, (uint32_t)(row >> 32), vu_from((uint32_t)(column / 4) + part * VF), key);
        for (uint32_t word = 0; word < 4; word++) words[word * PARTS + part] = four[word];
    }
}

#endif
