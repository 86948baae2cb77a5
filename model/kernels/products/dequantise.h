/* Quantised elements as bfloat16, 16 or 32 at a time, for pack.h: what quantised_read gives, rounded. NF4's product
 * with the scale and its rounding are made of the 16 levels, once for a block, and then looked up. Sixteen elements
 * that begin at a multiple of 16 are in one block; others are read one by one. */
#ifndef CRIA_KERNELS_PRODUCTS_DEQUANTISE_H
#define CRIA_KERNELS_PRODUCTS_DEQUANTISE_H

#include "model/kernels/products/tile.h"
#include "model/kernels/quantised.h"

enum { UNIT = 16 };

/* 16 bfloat16 */
static TILE_INLINE __m256i unit_round(const float *x) {
    bf16 bits[UNIT];
    for (int i = 0; i < UNIT; i += (int)VF) tile_narrow(bits + i, vf_load(x + i));
    return _mm256_loadu_si256((const __m256i *)bits);
}

static inline __m256i unit_one_by_one(const Quantised *q, size_t at) {
    float x[UNIT] = {0};
    size_t left = q->elements - at;
    quantised_read(q, at, left < UNIT ? left : UNIT, x);
    return unit_round(x);
}

/* The levels of one block. */
typedef struct {
    size_t block;
#if defined(__AVX512F__)
    __m256i levels; /* 16 bfloat16 */
#else
    __m128i low, high; /* their bytes */
#endif
} Nf4Block;

static TILE_INLINE Nf4Block nf4_block(const Quantised *q, size_t block) {
    float level[UNIT];
    vf scale = vf_set1(quantised_scale(q, block));
    for (size_t l = 0; l < UNIT; l += VF) vf_store(level + l, vf_load(nf4_levels + l) * scale);
    __m256i levels = unit_round(level);
#if defined(__AVX512F__)
    return (Nf4Block){block, levels};
#else
    const __m128i bytes = _mm_set1_epi16(0xff);
    __m128i first = _mm256_castsi256_si128(levels), last = _mm256_extracti128_si256(levels, 1);
    return (Nf4Block){block, _mm_packus_epi16(_mm_and_si128(first, bytes), _mm_and_si128(last, bytes)),
                      _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(last, 8))};
#endif
}

/* 16 elements from 8 bytes. */
static TILE_INLINE __m256i nf4_unit(const Nf4Block *block, const uint8_t *codes) {
    __m128i both = _mm_loadl_epi64((const __m128i *)(const void *)codes);
#if defined(__AVX512F__)
    __m256i wide = _mm256_cvtepu8_epi32(both); /* an index's higher bits are not looked at */
    return _mm256_permutexvar_epi16(_mm256_or_si256(_mm256_srli_epi32(wide, 4), _mm256_slli_epi32(wide, 16)),
                                    block->levels);
#else
    const __m128i four = _mm_set1_epi8(15);
    __m128i even = _mm_and_si128(_mm_srli_epi16(both, 4), four), odd = _mm_and_si128(both, four);
    __m128i index = _mm_unpacklo_epi8(even, odd);
    __m128i low = _mm_shuffle_epi8(block->low, index), high = _mm_shuffle_epi8(block->high, index);
    return _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
#endif
}

static TILE_INLINE __m256i int8_unit(const Quantised *q, size_t at) {
    vf scale = vf_set1(quantised_scale(q, at / QUANTISED_BLOCK));
    __m128i codes = _mm_loadu_si128((const __m128i *)(const void *)(q->codes + at));
    float x[UNIT];
#if defined(__AVX512F__)
    vf_store(x, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)) * scale);
#else
    vf_store(x, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)) * scale);
    vf_store(x + VF, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(codes, codes))) * scale);
#endif
    return unit_round(x);
}

#if defined(__AVX512F__)
/* 32 elements of one block from 16 bytes. */
static TILE_INLINE __m512i nf4_two_units(const Nf4Block *block, const uint8_t *codes) {
    __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)codes));
    return _mm512_permutexvar_epi16(_mm512_or_si512(_mm512_srli_epi32(wide, 4), _mm512_slli_epi32(wide, 16)),
                                    _mm512_broadcast_i64x4(block->levels));
}
#endif

/* 16 elements from `at` on. `nf4`: of the last block that was read, or {.block = SIZE_MAX}. */
static TILE_INLINE __m256i dequantise_unit(const Quantised *q, const bool is_nf4, Nf4Block *nf4, size_t at) {
    if (at % UNIT != 0) return unit_one_by_one(q, at);
    if (!is_nf4) return int8_unit(q, at);
    if (nf4->block != at / QUANTISED_BLOCK) *nf4 = nf4_block(q, at / QUANTISED_BLOCK);
    return nf4_unit(nf4, q->codes + at / 2);
}

/* The first n of 16 elements, zeros behind them. */
static TILE_INLINE __m256i unit_first(__m256i x, int n) {
#if defined(__AVX512F__)
    return n >= UNIT ? x : _mm256_maskz_mov_epi16((__mmask16)((1u << (n > 0 ? n : 0)) - 1), x);
#else
    const __m256i index = _mm256_set_epi16(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm256_and_si256(x, _mm256_cmpgt_epi16(_mm256_set1_epi16((short)(n < UNIT ? n : UNIT)), index));
#endif
}

#endif
