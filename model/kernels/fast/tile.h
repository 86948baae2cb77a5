/* Small products and transposes on tiles that are in the first-level caches: what tiled attention is made of. Included
 * by fast/attention.h. */
#ifndef CRIA_KERNELS_FAST_TILE_H
#define CRIA_KERNELS_FAST_TILE_H

#include "model/kernels/fast/simd.h"

/* C[m,n] = A·B, or C + A·B where `add`. A is read one element at a time, A(i,p) = a[i·a_row + p·a_column], so either
 * order will do; B and C are row-major and are read and written a vector at a time. */
typedef struct {
    const float *a, *b;
    float *c;
    size_t a_row, a_column, b_stride, c_stride;
} TileProduct;

/* `rows` × `vectors` of C in registers over all of k; the last vector has `last` lanes. rows, vectors, whole and add
 * are constants at every call, so the loops over them unroll. */
static ALWAYS_INLINE void tile_registers(const int rows, const int vectors, const bool whole, const bool add,
                                         const TileProduct *t, int i, size_t column, int k, size_t last) {
    vf sum[8][4];
    float *c = t->c + (size_t)i * t->c_stride + column;
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) {
            const float *from = c + (size_t)r * t->c_stride + v * VF;
            sum[r][v] = !add ? vf_zero() : whole || v < vectors - 1 ? vf_load(from) : vf_get(from, last);
        }
    const float *a = t->a + (size_t)i * t->a_row, *b = t->b + column;
    for (int p = 0; p < k; p++, a += t->a_column, b += t->b_stride) {
        vf row[4];
        for (int v = 0; v < vectors; v++)
            row[v] = whole || v < vectors - 1 ? vf_load(b + v * VF) : vf_get(b + v * VF, last);
        for (int r = 0; r < rows; r++) {
            vf x = vf_set1(a[(size_t)r * t->a_row]);
            for (int v = 0; v < vectors; v++) sum[r][v] = vf_fma(x, row[v], sum[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) {
            float *to = c + (size_t)r * t->c_stride + v * VF;
            if (whole || v < vectors - 1)
                vf_store(to, sum[r][v]);
            else
                vf_put(to, last, sum[r][v]);
        }
}

static ALWAYS_INLINE void tile_rows(const int rows, const int vectors, const bool whole, const bool add,
                                    const TileProduct *t, size_t column, int m, int k, size_t last) {
    int i = 0;
    for (; i + rows <= m; i += rows) tile_registers(rows, vectors, whole, add, t, i, column, k, last);
    for (; rows > 4 && i + 4 <= m; i += 4) tile_registers(4, vectors, whole, add, t, i, column, k, last);
    for (; i < m; i++) tile_registers(1, vectors, whole, add, t, i, column, k, last);
}

/* Sizes of the register tile: 32 registers with AVX-512, 16 with AVX2. */
enum { TILE_VECTORS = VF == 16 ? 4 : 2, TILE_WIDE_ROWS = 4, TILE_NARROW_ROWS = 8 };

static ALWAYS_INLINE void tile_columns(const bool add, const TileProduct *t, int m, int n, int k) {
    size_t column = 0, rest = (size_t)n;
    for (; rest >= TILE_VECTORS * VF; column += TILE_VECTORS * VF, rest -= TILE_VECTORS * VF)
        tile_rows(TILE_WIDE_ROWS, TILE_VECTORS, true, add, t, column, m, k, VF);
    for (; rest >= VF; column += VF, rest -= VF) tile_rows(TILE_NARROW_ROWS, 1, true, add, t, column, m, k, VF);
    if (rest > 0) tile_rows(TILE_NARROW_ROWS, 1, false, add, t, column, m, k, rest);
}

static void tile_set(TileProduct t, int m, int n, int k) {
    tile_columns(false, &t, m, n, k);
}
static void tile_add(TileProduct t, int m, int n, int k) {
    tile_columns(true, &t, m, n, k);
}

/* Eight rows of eight, turned about the diagonal. */
static ALWAYS_INLINE void transpose8(float *to, size_t to_stride, const float *from, size_t from_stride, float scale,
                                     bool add) {
    __m256 r[8], t[8];
    for (size_t i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(from + i * from_stride);
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], _MM_SHUFFLE(1, 0, 1, 0));
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], _MM_SHUFFLE(3, 2, 3, 2));
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], _MM_SHUFFLE(1, 0, 1, 0));
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], _MM_SHUFFLE(3, 2, 3, 2));
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    for (size_t i = 0; i < 8; i++) {
        __m256 x = t[i] * _mm256_set1_ps(scale);
        if (add) x = x + _mm256_loadu_ps(to + i * to_stride);
        _mm256_storeu_ps(to + i * to_stride, x);
    }
}

/* to[c][r] = scale·from[r][c], or that much more where `add` */
static void transpose(float *to, size_t to_stride, const float *from, size_t from_stride, int rows, int columns,
                      float scale, bool add) {
    int whole_rows = rows & ~7, whole_columns = columns & ~7;
    for (int r = 0; r < whole_rows; r += 8)
        for (int c = 0; c < whole_columns; c += 8)
            transpose8(to + (size_t)c * to_stride + r, to_stride, from + (size_t)r * from_stride + c, from_stride,
                       scale, add);
    for (int r = 0; r < rows; r++)
        for (int c = r < whole_rows ? whole_columns : 0; c < columns; c++) {
            float x = scale * from[(size_t)r * from_stride + (size_t)c];
            float *at = to + (size_t)c * to_stride + r;
            *at = add ? *at + x : x;
        }
}

#endif
