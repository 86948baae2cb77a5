/* Squares of a row-major weight, 16 rows × 32 depths, turned into 16 pairs of depths × 16 lanes: what a panel is made
 * of. Here those that lie whole in memory, in bf16, int8 or NF4; pack.h has the others.
 *
 * Pieces of 16 bytes of four rows (two with AVX2) are loaded side by side into one register, so that what remains is to
 * turn 4 × 4 numbers of 32 bits in each of its quarters. `stride`: bytes between rows. */
#ifndef CRIA_KERNELS_PRODUCTS_SQUARES_H
#define CRIA_KERNELS_PRODUCTS_SQUARES_H

#include "model/kernels/products/dequantise.h"

enum { PAIR = 2 * PANEL_LANES }; /* elements of one pair of depths in a panel: 64 bytes */
enum { PIECE_BYTES = 16 };

static TILE_INLINE __m128i load_piece(const void *from) {
    return _mm_loadu_si128((const __m128i *)from);
}

#if defined(__AVX512F__)

/* What becomes of a square's pairs: they are stored in a panel, or multiplied at once with those of one row of A and
 * added to the sums of its sixteen lanes, as a tile does it (avx512_products.c, avx512bf16_products.c). */
typedef struct {
    bool at_once; /* multiplied */
    bf16 *to;
    const bf16 *a;
    vf *sum;
} PairSink;

static TILE_INLINE vf multiply_pairs(vf sum, uint32_t a, __m512i b) {
    const __m512i x = _mm512_set1_epi32((int)a);
#if defined(__AVX512BF16__)
    __m512bh left, right;
    memcpy(&left, &x, sizeof left);
    memcpy(&right, &b, sizeof right);
    return _mm512_dpbf16_ps(sum, left, right);
#else
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    sum = vf_fma(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), sum);
    return vf_fma(_mm512_castsi512_ps(_mm512_and_si512(x, upper)), _mm512_castsi512_ps(_mm512_and_si512(b, upper)),
                  sum);
#endif
}

static TILE_INLINE void put_pairs(const PairSink sink, int pair, __m512i pairs) {
    if (sink.at_once)
        *sink.sum = multiply_pairs(*sink.sum, tile_pair(sink.a + 2 * pair), pairs);
    else
        _mm512_storeu_si512(sink.to + pair * PAIR, pairs);
}

/* In quarter q the piece of row 4q. */
static TILE_INLINE __m512i load_pieces(const char *from, size_t stride) {
    __m512i x = _mm512_castsi128_si512(load_piece(from));
    x = _mm512_inserti32x4(x, load_piece(from + 4 * stride), 1);
    x = _mm512_inserti32x4(x, load_piece(from + 8 * stride), 2);
    return _mm512_inserti32x4(x, load_piece(from + 12 * stride), 3);
}

/* Lane r of turned[d]: the d-th of four numbers of 32 bits that row r has there. */
static TILE_INLINE void turn_pieces(__m512i turned[4], const char *from, size_t stride) {
    __m512i a = load_pieces(from, stride), b = load_pieces(from + stride, stride);
    __m512i c = load_pieces(from + 2 * stride, stride), d = load_pieces(from + 3 * stride, stride);
    __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    turned[0] = _mm512_unpacklo_epi64(ab, cd);
    turned[1] = _mm512_unpackhi_epi64(ab, cd);
    ab = _mm512_unpackhi_epi32(a, b);
    cd = _mm512_unpackhi_epi32(c, d);
    turned[2] = _mm512_unpacklo_epi64(ab, cd);
    turned[3] = _mm512_unpackhi_epi64(ab, cd);
}

static TILE_INLINE void square_bf16(const PairSink sink, const char *from, size_t stride) {
    TILE_UNROLL
    for (int piece = 0; piece < 4; piece++) {
        __m512i pair[4];
        turn_pieces(pair, from + (size_t)piece * PIECE_BYTES, stride);
        for (int d = 0; d < 4; d++) put_pairs(sink, 4 * piece + d, pair[d]);
    }
}

/* Finite numbers as bfloat16: the 16 of `low`, then those of `high`. */
static TILE_INLINE __m512i round_two(vf low, vf high) {
#if defined(__AVX512BF16__)
    __m512bh both = _mm512_cvtne2ps_pbh(high, low);
    __m512i bits;
    memcpy(&bits, &both, sizeof bits);
    return bits;
#else
    const __m512i order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
    __m512i packed = _mm512_packus_epi32(_mm512_srli_epi32(tile_round_finite(low), 16),
                                         _mm512_srli_epi32(tile_round_finite(high), 16));
    return _mm512_permutexvar_epi64(order, packed);
#endif
}

/* The 16 words of `low` and those of `high` in turns. */
static TILE_INLINE __m512i round_pairs(vf even, vf odd) {
#if defined(__AVX512BF16__)
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, round_two(even, odd));
#else
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    return _mm512_or_si512(_mm512_srli_epi32(tile_round_finite(even), 16),
                           _mm512_and_si512(tile_round_finite(odd), upper));
#endif
}

static TILE_INLINE __m256i load_codes(const void *from) {
    return _mm256_loadu_si256((const __m256i *)from);
}

/* Codes are turned as pairs, words of 16 bits; the 16 of eight rows' pair are widened, scaled and rounded together. */
static TILE_INLINE void square_int8(const PairSink sink, const char *from, size_t stride,
                                    const float scale[PANEL_LANES]) {
    enum { HALF = PANEL_LANES / 2, PIECES = 4 };
    const __m512i first_twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    const vf scales = vf_load(scale);
    const vf low_scale = _mm512_permutexvar_ps(first_twice, scales);
    const vf high_scale = _mm512_permutexvar_ps(_mm512_add_epi32(first_twice, _mm512_set1_epi32(HALF)), scales);
    uint8_t turned[HALF][PIECES * PIECE_BYTES]; /* [pair % 8][rows 0…7: pair / 8 | rows 8…15: pair / 8][rows, 2] */
    __m512i z[HALF], w[HALF];
    for (int i = 0; i < HALF; i++)
        z[i] = _mm512_inserti64x4(_mm512_castsi256_si512(load_codes(from + (size_t)i * stride)),
                                  load_codes(from + (size_t)(i + HALF) * stride), 1);
    for (int i = 0; i < HALF; i += 2) {
        w[i] = _mm512_unpacklo_epi16(z[i], z[i + 1]);
        w[i + 1] = _mm512_unpackhi_epi16(z[i], z[i + 1]);
    }
    for (int i = 0; i < HALF; i += 4)
        for (int j = 0; j < 2; j++) {
            z[i + 2 * j] = _mm512_unpacklo_epi32(w[i + j], w[i + j + 2]);
            z[i + 2 * j + 1] = _mm512_unpackhi_epi32(w[i + j], w[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(turned[2 * i], _mm512_unpacklo_epi64(z[i], z[i + 4]));
        _mm512_storeu_si512(turned[2 * i + 1], _mm512_unpackhi_epi64(z[i], z[i + 4]));
    }
    __asm__ volatile("" ::
                         : "memory"); /* from memory widening takes one instruction, from a quarter of a register two */
    for (int pair = 0; pair < PANEL_DEPTH / 2; pair++) {
        const uint8_t *codes = turned[pair % HALF] + pair / HALF * PIECE_BYTES;
        __m512i low = _mm512_cvtepi8_epi32(load_piece(codes)),
                high = _mm512_cvtepi8_epi32(load_piece(codes + 2 * PIECE_BYTES));
        put_pairs(sink, pair, round_two(_mm512_cvtepi32_ps(low) * low_scale, _mm512_cvtepi32_ps(high) * high_scale));
    }
}

/* A pair of codes is a byte: the four bytes of a lane are four pairs, and a level is looked up by the lower four bits
 * of what they are shifted to. */
static TILE_INLINE void square_nf4(const PairSink sink, const char *from, size_t stride,
                                   const float scale[PANEL_LANES]) {
    const vf levels = vf_load(nf4_levels), scales = vf_load(scale);
    __m512i codes[4];
    turn_pieces(codes, from, stride);
    for (int d = 0; d < 4; d++)
        for (unsigned byte = 0; byte < 4; byte++) {
            __m512i even = _mm512_srli_epi32(codes[d], 8 * byte + 4), odd = _mm512_srli_epi32(codes[d], 8 * byte);
            __m512i pair =
                round_pairs(_mm512_permutexvar_ps(even, levels) * scales, _mm512_permutexvar_ps(odd, levels) * scales);
            put_pairs(sink, 4 * d + (int)byte, pair);
        }
}

#else

typedef struct {
    bf16 *to;
} PairSink;

static TILE_INLINE __m256i load_pieces(const char *from, size_t stride) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load_piece(from)), load_piece(from + 4 * stride), 1);
}

/* Lane r of turned[d]: the d-th of four numbers of 32 bits that row r, of eight, has there. */
static TILE_INLINE void turn_pieces(__m256i turned[4], const char *from, size_t stride) {
    __m256i a = load_pieces(from, stride), b = load_pieces(from + stride, stride);
    __m256i c = load_pieces(from + 2 * stride, stride), d = load_pieces(from + 3 * stride, stride);
    __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    turned[0] = _mm256_unpacklo_epi64(ab, cd);
    turned[1] = _mm256_unpackhi_epi64(ab, cd);
    ab = _mm256_unpackhi_epi32(a, b);
    cd = _mm256_unpackhi_epi32(c, d);
    turned[2] = _mm256_unpacklo_epi64(ab, cd);
    turned[3] = _mm256_unpackhi_epi64(ab, cd);
}

static TILE_INLINE void square_bf16(const PairSink sink, const char *from, size_t stride) {
    enum { HALF = PANEL_LANES / 2 };
    for (int piece = 0; piece < 4; piece++)
        for (int half = 0; half < 2; half++) {
            __m256i pair[4];
            turn_pieces(pair, from + (size_t)(HALF * half) * stride + (size_t)piece * PIECE_BYTES, stride);
            for (int d = 0; d < 4; d++)
                _mm256_storeu_si256((__m256i *)(sink.to + (4 * piece + d) * PAIR + half * PAIR / 2), pair[d]);
        }
}

/* Finite numbers as bfloat16: the 8 of `low`, then those of `high`. */
static TILE_INLINE __m256i round_two(vf low, vf high) {
    __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(tile_round_finite(low), 16),
                                         _mm256_srli_epi32(tile_round_finite(high), 16));
    return _mm256_permute4x64_epi64(packed, _MM_SHUFFLE(3, 1, 2, 0));
}

/* 32 elements of one block. */
static TILE_INLINE void row_int8(bf16 *to, const uint8_t *codes, float scale) {
    for (int i = 0; i < PANEL_DEPTH; i += UNIT) {
        __m128i piece = load_piece(codes + i);
        vf low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(piece));
        vf high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(piece, piece)));
        _mm256_storeu_si256((__m256i *)(to + i), round_two(low * vf_set1(scale), high * vf_set1(scale)));
    }
}

#endif

#endif
