/* Products, packings and transposes of small tiles of bf16, for VDPBF16PS: what tiled attention in bf16 is made of.
 *
 * The unit is a Pair: two bf16 that lie side by side along the reduction, the earlier one in the lower half. Every
 * product is c[m, n] += A·B with A read one pair at a time, so that either order of it will do, and B a vector of 16
 * pairs at a time. */
#ifndef CRIA_KERNELS_PAIR_TILE_H
#define CRIA_KERNELS_PAIR_TILE_H

#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "model/core/dtype.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))

typedef int32_t Pair;

enum { PAIR_VF = 16 };

static ALWAYS_INLINE __m512 pair_dot(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

static ALWAYS_INLINE __mmask16 pair_mask(int n) {
    return (__mmask16)(n >= PAIR_VF ? 0xffffu : (1u << n) - 1);
}

/* (low, high) rounded to bf16, lane by lane */
static ALWAYS_INLINE __m512i pair_join(__m512 low, __m512 high) {
    const __m512i turn = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                          21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(turn, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

static ALWAYS_INLINE __m512 pair_low(__m512i x) {
    return (__m512)_mm512_slli_epi32(x, 16);
}
static ALWAYS_INLINE __m512 pair_high(__m512i x) {
    return (__m512)_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000u));
}

/* c[m, n] += A·B over k pairs: A(i, p) = a[i·a_row + p·a_column]; n is a multiple of 16. a_row is an argument, and a
 * constant: offsets that are known leave the address registers to c.
 *
 * Where only half of a vector's lanes are used (n <= 8), `quads`: k counts quads, a reads two pairs at once, and row p
 * of b holds column d of pair 2p in lane 2d, of pair 2p + 1 in lane 2d + 1. The sums of column d are then in these two
 * lanes of c, to be added at the end. */
typedef struct {
    const Pair *a, *b;
    float *c;
    size_t a_column, b_stride, c_stride;
} PairProduct;

static ALWAYS_INLINE __m512i pair_broadcast(const Pair *a, const bool quads) {
    int64_t two;
    if (!quads) return _mm512_set1_epi32(*a);
    memcpy(&two, a, sizeof two);
    return _mm512_set1_epi64(two);
}

/* rows × vectors of c in registers over all of k; both are constants at every call, so the loops over them unroll. */
static ALWAYS_INLINE void pair_registers(const int rows, const int vectors, const int a_row, const bool quads,
                                         const PairProduct *t, int i, size_t column, int k) {
    __m512 sum[8][4];
    float *c = t->c + (size_t)i * t->c_stride + column;
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sum[r][v] = _mm512_loadu_ps(c + (size_t)r * t->c_stride + v * PAIR_VF);
    const Pair *a = t->a + i * a_row, *b = t->b + column;
    for (int p = 0; p < k; p++, a += t->a_column, b += t->b_stride) {
        __m512i row[4];
        for (int v = 0; v < vectors; v++) row[v] = _mm512_loadu_si512(b + v * PAIR_VF);
        for (int r = 0; r < rows; r++) {
            __m512i x = pair_broadcast(a + r * a_row, quads);
            for (int v = 0; v < vectors; v++) sum[r][v] = pair_dot(sum[r][v], x, row[v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) _mm512_storeu_ps(c + (size_t)r * t->c_stride + v * PAIR_VF, sum[r][v]);
}

static ALWAYS_INLINE void pair_rows(const int rows, const int vectors, const int a_row, const bool quads,
                                    const PairProduct *t, size_t column, int m, int k) {
    int i = 0;
    for (; i + rows <= m; i += rows) pair_registers(rows, vectors, a_row, quads, t, i, column, k);
    for (; rows > 4 && i + 4 <= m; i += 4) pair_registers(4, vectors, a_row, quads, t, i, column, k);
    for (; i < m; i++) pair_registers(1, vectors, a_row, quads, t, i, column, k);
}

static ALWAYS_INLINE void pair_add(const int a_row, PairProduct t, int m, int n, int k) {
    int vectors = n / PAIR_VF;
    size_t column = 0;
    for (; vectors >= 4; vectors -= 4, column += 4 * PAIR_VF) pair_rows(4, 4, a_row, false, &t, column, m, k);
    if (vectors == 3) pair_rows(8, 3, a_row, false, &t, column, m, k);
    if (vectors == 2) pair_rows(8, 2, a_row, false, &t, column, m, k);
    if (vectors == 1) pair_rows(8, 1, a_row, false, &t, column, m, k);
}

/* The same for `quads`, n = 16 */
static ALWAYS_INLINE void pair_add_quads(const int a_row, PairProduct t, int m, int k) {
    pair_rows(8, 1, a_row, true, &t, 0, m, k);
}

/* Four rows: to[c], quarter q, is column 4·q + c of all of them. */
static ALWAYS_INLINE void pair_turn_quarters(__m512i to[4], __m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab_low = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
    __m512i cd_low = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
    to[0] = _mm512_unpacklo_epi64(ab_low, cd_low);
    to[1] = _mm512_unpackhi_epi64(ab_low, cd_low);
    to[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
    to[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
}

/* Sixteen rows of sixteen pairs, turned about the diagonal. */
static ALWAYS_INLINE void pair_turn(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 4) pair_turn_quarters(r + i, r[i], r[i + 1], r[i + 2], r[i + 3]);
    for (int c = 0; c < 4; c++) { /* the quarters of rows 0 … 3 beside those of 4 … 7, of 8 … 11 beside 12 … 15 */
        t[c] = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
        t[4 + c] = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
        t[8 + c] = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    }
    for (int c = 0; c < 4; c++) {
        r[c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0x88);
        r[8 + c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0xdd);
        r[4 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0x88);
        r[12 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0xdd);
    }
}

/* Columns [2·first, 2·first + 2·columns) of up to 16 rows as r[column pair], a lane to a row; zero elsewhere. */
static ALWAYS_INLINE void pair_columns(__m512i r[16], const bf16 *rows, size_t stride, int n, int first, int columns) {
    __mmask16 mask = pair_mask(columns);
    for (int i = 0; i < 16; i++) {
        const bf16 *row = rows + (size_t)i * stride + 2 * first;
        r[i] = i < n ? _mm512_maskz_loadu_epi32(mask, row) : _mm512_setzero_si512();
    }
    pair_turn(r);
}

/* to[pairs, 16 lanes]: n <= 16 rows, pairs along the row, a lane to a row; lanes without a row are 0. */
static void pair_pack_lanes(Pair *to, size_t to_stride, const bf16 *rows, size_t stride, int n, int pairs) {
    for (int p = 0; p < pairs; p += 16) {
        __m512i r[16];
        int columns = pairs - p < 16 ? pairs - p : 16;
        pair_columns(r, rows, stride, n, p, columns);
        for (int c = 0; c < columns; c++) _mm512_storeu_si512(to + (size_t)(p + c) * to_stride, r[c]);
    }
}

/* The reverse: n <= 16 rows = (or +=) factor·from[2·pairs, 16 lanes]ᵀ, factor by lane */
static void pair_unpack_lanes(bf16 *rows, size_t stride, const float *from, size_t from_stride, int n, int pairs,
                              __m512 factor, bool add) {
    for (int p = 0; p < pairs; p += 16) {
        __m512i r[16];
        int columns = pairs - p < 16 ? pairs - p : 16;
        if (add) pair_columns(r, rows, stride, n, p, columns);
        for (int c = 0; c < 16; c++) {
            if (c >= columns) {
                r[c] = _mm512_setzero_si512();
                continue;
            }
            const float *at = from + (size_t)(2 * (p + c)) * from_stride;
            __m512 low = _mm512_loadu_ps(at) * factor, high = _mm512_loadu_ps(at + from_stride) * factor;
            r[c] = add ? pair_join(low + pair_low(r[c]), high + pair_high(r[c])) : pair_join(low, high);
        }
        pair_turn(r);
        for (int i = 0; i < n; i++)
            _mm512_mask_storeu_epi32(rows + (size_t)i * stride + 2 * p, pair_mask(columns), r[i]);
    }
}

/* to[n_padded / 4, pairs, 4]: four rows side by side; rows beyond n are 0. n_padded is a multiple of 4. */
static void pair_pack_quads(Pair *to, const bf16 *rows, size_t stride, int n, int n_padded, int pairs) {
    for (int i = 0; i < n_padded; i += 4, to += 4 * pairs)
        for (int p = 0; p < pairs; p += 16) {
            __m512i r[4], t[4];
            int columns = pairs - p < 16 ? pairs - p : 16;
            for (int u = 0; u < 4; u++)
                r[u] = i + u < n ? _mm512_maskz_loadu_epi32(pair_mask(columns), rows + (size_t)(i + u) * stride + 2 * p)
                                 : _mm512_setzero_si512();
            pair_turn_quarters(t, r[0], r[1], r[2], r[3]);
            for (int u = 0; u < 4; u += 2) { /* t[c], quarter q: column 4·q + c */
                r[u] = _mm512_shuffle_i32x4(t[u], t[u + 1], 0x44);
                r[u + 1] = _mm512_shuffle_i32x4(t[u], t[u + 1], 0xee);
            }
            __m512i whole[4] = {_mm512_shuffle_i32x4(r[0], r[2], 0x88), _mm512_shuffle_i32x4(r[0], r[2], 0xdd),
                                _mm512_shuffle_i32x4(r[1], r[3], 0x88), _mm512_shuffle_i32x4(r[1], r[3], 0xdd)};
            for (int q = 0; q < 4 && 4 * q < columns; q++)
                _mm512_mask_storeu_epi32(to + 4 * (p + 4 * q), pair_mask(4 * (columns - 4 * q)), whole[q]);
        }
}

/* to[n_padded / 2, padded width]: pairs of rows; what lies beyond n rows or the width is 0. n_padded is even, the
 * padded width a multiple of 16. */
static void pair_pack_row_pairs(Pair *to, const bf16 *rows, size_t stride, int n, int n_padded, int width, int padded) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int i = 0; i < n_padded; i += 2, to += padded)
        for (int d = 0; d < width; d += 32) {
            __mmask32 mask = width - d >= 32 ? 0xffffffffu : (1u << (width - d)) - 1;
            const bf16 *row = rows + (i < n ? (size_t)i * stride : 0) + d;
            __m512i a = _mm512_maskz_loadu_epi16(i < n ? mask : 0, row);
            __m512i b = _mm512_maskz_loadu_epi16(i + 1 < n ? mask : 0, row + (i + 1 < n ? stride : 0));
            _mm512_storeu_si512(to + d, _mm512_permutex2var_epi16(a, low, b));
            if (d + 16 < padded) _mm512_storeu_si512(to + d + 16, _mm512_permutex2var_epi16(a, high, b));
        }
}

/* Rows [n, 16] of pairs, of which 8 columns are used, become rows [n / 2, 16] of quads, in place. */
static void pair_interleave(Pair *rows, int n) {
    const __m512i turn = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int i = 0; i < n; i += 2) {
        __m512i a = _mm512_loadu_si512(rows + i * PAIR_VF), b = _mm512_loadu_si512(rows + (i + 1) * PAIR_VF);
        _mm512_storeu_si512(rows + i / 2 * PAIR_VF, _mm512_permutex2var_epi32(a, turn, b));
    }
}

/* Sums of columns from those of their two lanes */
static ALWAYS_INLINE __m512 pair_add_lanes(__m512 x) {
    const __m512i even = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 14, 12, 10, 8, 6, 4, 2, 0);
    return _mm512_permutexvar_ps(even, x + _mm512_movehdup_ps(x));
}

/* 2^x of n vectors where the result is rounded to bf16 in any case (2^-8): the fraction of x above floor(x) through a
 * polynomial for 2^r on [0, 1] fitted for least relative error, 7.5e-5, and the floor into the exponent. Results below
 * the smallest normal number are as good as 0; NaN for NaN. Step by step over all n, a constant: a chain waits for
 * itself. */
static ALWAYS_INLINE void pair_exp2(const int n, __m512 x[]) {
    enum { FRACTION_ABOVE_FLOOR = 9, MOST = 8 }; /* no bits kept, rounding down, no exception */
    __m512 r[MOST], p[MOST];
    for (int i = 0; i < n; i++) r[i] = _mm512_reduce_ps(x[i], FRACTION_ABOVE_FLOOR);
    for (int i = 0; i < n; i++)
        p[i] = _mm512_fmadd_ps(_mm512_set1_ps(0x1.3f96a4p-4f), r[i], _mm512_set1_ps(0x1.cefc4cp-3f));
    for (int i = 0; i < n; i++) p[i] = _mm512_fmadd_ps(p[i], r[i], _mm512_set1_ps(0x1.64444cp-1f));
    for (int i = 0; i < n; i++) p[i] = _mm512_fmadd_ps(p[i], r[i], _mm512_set1_ps(0x1.fff632p-1f));
    for (int i = 0; i < n; i++) x[i] = _mm512_scalef_ps(p[i], x[i]);
}

/* log x for normal x: x = m·2^e with 3/4 <= m < 3/2, log m = 2·artanh(z), z = (m − 1)/(m + 1), whose series is cut
 * after z^7 (1e-7). */
static inline __m512 pair_log(__m512 x) {
    __m512 m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
    __m512 e = _mm512_getexp_ps(x / m), one = _mm512_set1_ps(1);
    __m512 z = (m - one) / (m + one), z2 = z * z;
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(2.0f / 7), z2, _mm512_set1_ps(2.0f / 5));
    p = _mm512_fmadd_ps(p, z2, _mm512_set1_ps(2.0f / 3));
    p = _mm512_fmadd_ps(p, z2, _mm512_set1_ps(2));
    return _mm512_fmadd_ps(e, _mm512_set1_ps(0x1.62e430p-1f), p * z);
}

#endif
