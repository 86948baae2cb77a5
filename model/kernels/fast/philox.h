/* Philox4x32-10 (model/core/philox.h) in the lanes of integer vectors, and stochastic rounding to bf16; what they are
 * for and the order of the counters: reference/bf16_adamw.c. */
#ifndef CRIA_KERNELS_FAST_PHILOX_H
#define CRIA_KERNELS_FAST_PHILOX_H

#include "model/core/philox.h"
#include "model/kernels/fast/simd.h"

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
/* Products of the lower halves of 64-bit lanes; what is in the upper ones does not matter. */
static inline vu vu_multiply(vu a, vu b) {
    return _mm512_mul_epu32(a, b);
}
static inline vu vu_high(vu x) {
    return _mm512_srli_epi64(x, 32);
}
/* The lower halves of 64-bit lanes of both, in turn. */
static inline vu vu_zip(vu even, vu odd) {
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
static inline vu vu_multiply(vu a, vu b) {
    return _mm256_mul_epu32(a, b);
}
static inline vu vu_high(vu x) {
    return _mm256_srli_epi64(x, 32);
}
static inline vu vu_zip(vu even, vu odd) {
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

/* The four words of VF generators whose counters differ in their last word: first, first + 1, … A generator has the
 * lower half of a 64-bit lane, so that a product needs no taking apart; even ones are in one half of the vectors, odd
 * ones in the other. */
static inline void vu_philox(vu words[4], uint32_t c0, uint32_t c1, uint32_t c2, uint32_t first, PhiloxKey key) {
    vu lane[2] = {vu_from(first), vu_high(vu_from(first))};
    vu a[2] = {vu_set1(c0), vu_set1(c0)}, b[2] = {vu_set1(c1), vu_set1(c1)}, c[2] = {vu_set1(c2), vu_set1(c2)};
    for (int round = 0; round < 10; round++) {
        vu k0 = vu_set1(key.word[0]), k1 = vu_set1(key.word[1]);
        for (int i = 0; i < 2; i++) {
            vu product0 = vu_multiply(a[i], vu_set1(0xD2511F53u)), product1 = vu_multiply(c[i], vu_set1(0xCD9E8D57u));
            a[i] = vu_xor3(vu_high(product1), b[i], k0);
            c[i] = vu_xor3(vu_high(product0), lane[i], k1);
            b[i] = product1;
            lane[i] = product0;
        }
        key.word[0] += 0x9E3779B9u;
        key.word[1] += 0xBB67AE85u;
    }
    words[0] = vu_zip(a[0], a[1]), words[1] = vu_zip(b[0], b[1]);
    words[2] = vu_zip(c[0], c[1]), words[3] = vu_zip(lane[0], lane[1]);
}

enum { RANDOM_COLUMNS = 64, RANDOM_VECTORS = RANDOM_COLUMNS / VF };

/* A word for each of 64 columns from `column` (a multiple of 64) on: 16 generators give four words each. */
static inline void random_columns(vu words[RANDOM_VECTORS], PhiloxKey key, uint32_t update, uint64_t row,
                                  size_t column) {
    enum { PARTS = 16 / VF }; /* vectors that hold 16 lanes */
    for (uint32_t part = 0; part < PARTS; part++) {
        vu four[4];
        vu_philox(four, update, (uint32_t)row, (uint32_t)(row >> 32), (uint32_t)(column / 4) + part * VF, key);
        for (uint32_t word = 0; word < 4; word++) words[word * PARTS + part] = four[word];
    }
}

#endif
