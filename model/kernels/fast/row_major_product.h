/* Few rows of fp32 times a weight in fewer bits as it lies, row by row of the weight: a block of 64 of its numbers is
 * widened into L1 and multiplied with every row of x. Sums run in two vectors over the depth, in an order that depends
 * on the width alone. Included by avx2_kernels.c and avx512_kernels.c. */
#include "model/core/threads.h"
#include "model/kernels/fast/simd.h"
#include "model/kernels/kernels.h"
#include "model/kernels/quantised.h"

enum { WIDE = QUANTISED_BLOCK, UNIT_WIDE = 16, ROWS_WIDE = 8 };
_Static_assert(WIDE % (2 * VF) == 0, "two vectors at a time");

static ALWAYS_INLINE __m128i codes_of(const uint8_t *codes) {
    return _mm_loadu_si128((const __m128i *)(const void *)codes);
}

/* Sixteen numbers of one block. */
static ALWAYS_INLINE void widen_int8(float *to, const uint8_t *codes, float scale) {
    __m128i x = codes_of(codes);
#if defined(__AVX512F__)
    vf_store(to, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x)) * vf_set1(scale));
#else
    vf_store(to, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)) * vf_set1(scale));
    vf_store(to + VF, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x))) * vf_set1(scale));
#endif
}

#if !defined(__AVX512F__)
static ALWAYS_INLINE vf nf4_lookup(__m256i index) {
    vf low = _mm256_permutevar8x32_ps(vf_load(nf4_levels), index);
    vf high = _mm256_permutevar8x32_ps(vf_load(nf4_levels + VF), index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28))); /* bit 3 */
}
#endif

static ALWAYS_INLINE void widen_nf4(float *to, const uint8_t *codes, float scale) {
    const __m128i four = _mm_set1_epi8(15);
    __m128i both = _mm_loadl_epi64((const __m128i *)(const void *)codes);
    __m128i index = _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi16(both, 4), four), _mm_and_si128(both, four));
#if defined(__AVX512F__)
    vf_store(to, _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(index), vf_load(nf4_levels)) * vf_set1(scale));
#else
    vf_store(to, nf4_lookup(_mm256_cvtepu8_epi32(index)) * vf_set1(scale));
    vf_store(to + VF, nf4_lookup(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(index, index))) * vf_set1(scale));
#endif
}

/* Elements [at, at + n), n ≤ WIDE, as quantised_read gives them. */
static ALWAYS_INLINE void widen_quantised(float *to, const Quantised *q, const bool is_nf4, size_t at, size_t n) {
    size_t i = 0;
    for (; at % UNIT_WIDE == 0 && i + UNIT_WIDE <= n; i += UNIT_WIDE) {
        float scale = quantised_scale(q, (at + i) / QUANTISED_BLOCK);
        if (is_nf4)
            widen_nf4(to + i, q->codes + (at + i) / 2, scale);
        else
            widen_int8(to + i, q->codes + at + i, scale);
    }
    if (i < n) quantised_read(q, at + i, n - i, to + i);
}

/* Columns [col, col + n) of row `row`, zeros behind them up to WIDE. */
static ALWAYS_INLINE void widen_row(float *to, const RowMajor *w, int v, size_t at, size_t n) {
    for (size_t i = n; i < WIDE; i++) to[i] = 0;
    if (w->quantised && w->quantised[v].kind == QUANTISED_NF4) {
        widen_quantised(to, &w->quantised[v], true, at, n);
    } else if (w->quantised) {
        widen_quantised(to, &w->quantised[v], false, at, n);
    } else if (w->dtype == DTYPE_BF16 && n == WIDE) {
        const char *from = (const char *)w->view[v] + at * sizeof(bf16);
        for (size_t i = 0; i < WIDE; i += VF)
            vf_store(to + i, vf_widen(vb_load((const bf16 *)(const void *)(from + i * sizeof(bf16)))));
    } else { /* a dtype that can be read */
        (void)dtype_read_f32(to, (const char *)w->view[v] + at * dtype_size(w->dtype), w->dtype, n);
    }
}

/* y[r] = x[r]·(row `row` of W) for m ≤ ROWS_WIDE rows of x */
static void row_major_row_product(float *y, size_t y_stride, const float *x, size_t x_stride, int m, const RowMajor *w,
                                  int row) {
    const int v = row_major_view(w, row);
    const size_t cols = (size_t)w->cols, first = (size_t)(row - w->first_row[v]) * cols;
    vf sum[ROWS_WIDE][2];
    float wide[WIDE];
    for (int r = 0; r < m; r++) sum[r][0] = sum[r][1] = vf_zero();
    for (size_t col = 0; col < cols; col += WIDE) {
        const size_t n = cols - col < WIDE ? cols - col : WIDE;
        widen_row(wide, w, v, first + col, n);
        for (int r = 0; r < m; r++) {
            const float *from = x + (size_t)r * x_stride + col;
            for (size_t i = 0; i < n; i += VF) {
                vf *to = &sum[r][i / VF % 2];
                *to = vf_fma(vf_get(from + i, n - i), vf_load(wide + i), *to);
            }
        }
    }
    for (int r = 0; r < m; r++) y[(size_t)r * y_stride] = (float)vf_sum(sum[r][0] + sum[r][1]);
}

static void fast_row_major_product(float *y, size_t y_stride, const float *x, size_t x_stride, int m,
                                   const RowMajor *w) {
    const int rows = w->first_row[w->n_views];
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int row = 0; row < rows; row++)
        for (int r = 0; r < m; r += ROWS_WIDE)
            row_major_row_product(y + (size_t)r * y_stride + row, y_stride, x + (size_t)r * x_stride, x_stride,
                                  m - r < ROWS_WIDE ? m - r : ROWS_WIDE, w, row);
}
