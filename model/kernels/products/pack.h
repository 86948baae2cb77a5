/* Packing of the products' operands, with vectors where the set has them.
 *
 *   panels_pack   B from a row-major weight (bf16.h: PANELS), quantised or not: pairs of the reduction side by side
 *   tokens_pack   the right operand of a weight's gradient, x[tokens, cols], as panels: lanes are columns, the
 *                 reduction runs over tokens
 *   slots_pack    its left operand, dy[tokens, rows], as slots of SLOT rows: slot[s][token / 2][row % SLOT][token % 2],
 *                 what a micro-kernel reads that broadcasts pairs
 *
 * fp32 and fp16 are rounded to nearest even; the bits are those of the reference. */
#ifndef CRIA_KERNELS_PRODUCTS_PACK_H
#define CRIA_KERNELS_PRODUCTS_PACK_H

#include "model/kernels/products/squares.h"

/* Row `row` of a weight that is not quantised, wherever it lies. */
static inline const char *row_major_row(const RowMajor *w, int row) {
    int v = row_major_view(w, row);
    size_t bytes = (size_t)w->cols * dtype_size(w->dtype);
    return (const char *)w->view[v] + (size_t)(row - w->first_row[v]) * bytes;
}

/* Row `row` of a quantised one: its matrix and where in it the row begins. */
typedef struct {
    const Quantised *q; /* NULL: no row, zeros */
    size_t first;
} QuantisedRow;
static inline QuantisedRow quantised_row(const RowMajor *w, int row) {
    int v = row_major_view(w, row);
    return (QuantisedRow){&w->quantised[v], (size_t)(row - w->first_row[v]) * (size_t)w->cols};
}

/* The bytes of columns [col, col + n) of a row. */
typedef struct {
    const char *begin, *end;
} Span;
static inline Span row_major_span(const RowMajor *w, int row, int col, int n) {
    if (w->quantised) {
        const QuantisedRow r = quantised_row(w, row);
        const int per_byte = r.q->kind == QUANTISED_NF4 ? 2 : 1;
        const char *begin = (const char *)r.q->codes + (r.first + (size_t)col) / (size_t)per_byte;
        return (Span){begin, begin + n / per_byte};
    }
    const size_t size = dtype_size(w->dtype);
    const char *begin = row_major_row(w, row) + (size_t)col * size;
    return (Span){begin, begin + (size_t)n * size};
}

#if defined(__AVX512F__)

/* n ≤ 16 elements from `first` on as bfloat16 in the lower halves of 16 lanes; zeros behind them and for NULL. */
static TILE_INLINE __m512i load_lanes(const char *row, Dtype dtype, size_t first, int n) {
    if (!row || n <= 0) return _mm512_setzero_si512();
    const unsigned first_n = n >= 16 ? 0xffffu : (1u << n) - 1;
    const __mmask16 mask = (__mmask16)first_n;
    if (dtype == DTYPE_F32) return _mm512_srli_epi32(tile_round(_mm512_maskz_loadu_ps(mask, row + 4 * first)), 16);
    __m256i half = _mm256_maskz_loadu_epi16(mask, row + 2 * first);
    if (dtype == DTYPE_F16) return _mm512_srli_epi32(tile_round(_mm512_cvtph_ps(half)), 16);
    return _mm512_cvtepu16_epi32(half);
}

static TILE_INLINE __m512i join_pairs(__m512i even, __m512i odd) {
    return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

static TILE_INLINE void pack_pair(bf16 *to, const char *even, const char *odd, Dtype dtype, size_t first, int n) {
    __m512i pair = join_pairs(load_lanes(even, dtype, first, n), load_lanes(odd, dtype, first, n));
    _mm512_storeu_si512(to, pair);
}

/* 16 pairs of depths, n ≤ 32 of the depths there, of one row. */
static TILE_INLINE __m512i load_depths(const char *row, Dtype dtype, size_t first, int n) {
    if (row && dtype == DTYPE_BF16) {
        __mmask32 mask = n >= 32 ? 0xffffffffu : (1u << n) - 1;
        return _mm512_maskz_loadu_epi16(mask, row + 2 * first);
    }
    __m256i low = _mm512_cvtepi32_epi16(load_lanes(row, dtype, first, n));
    __m256i high = _mm512_cvtepi32_epi16(load_lanes(row, dtype, first + 16, n - 16));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* 16 rows of 16 lanes of 32 bits, turned about the diagonal. */
static TILE_INLINE void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) { /* columns i, i + 4, i + 8, i + 12 of rows 0…7 and 8…15 */
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

/* The same of a quantised row. */
static TILE_INLINE __m512i dequantise_depths(QuantisedRow row, const bool is_nf4, Nf4Block *nf4, size_t first, int n) {
    const size_t at = row.first + first;
    if (!row.q) return _mm512_setzero_si512();
    if (is_nf4 && n >= 2 * UNIT && at % (2 * UNIT) == 0) {
        if (nf4->block != at / QUANTISED_BLOCK) *nf4 = nf4_block(row.q, at / QUANTISED_BLOCK);
        return nf4_two_units(nf4, row.q->codes + at / 2);
    }
    __m256i low = unit_first(dequantise_unit(row.q, is_nf4, nf4, at), n), high = _mm256_setzero_si256();
    if (n > UNIT) high = unit_first(dequantise_unit(row.q, is_nf4, nf4, at + UNIT), n - UNIT);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* What the blocks are multiplied by that sixteen rows of one matrix, `cols` wide, have at `at` of the first row. */
typedef struct {
    float scale[PANEL_LANES];
} SquareScales;
static TILE_INLINE void square_scales(SquareScales *s, const Quantised *q, const bool is_nf4, size_t at, size_t cols) {
    (void)is_nf4;
    for (size_t i = 0; i < PANEL_LANES; i++) s->scale[i] = quantised_scale(q, (at + i * cols) / QUANTISED_BLOCK);
}

/* The 32 elements from there on; those of a row are of one block. */
static TILE_INLINE void whole_square(const PairSink sink, const Quantised *q, const bool is_nf4, size_t at, size_t cols,
                                     const SquareScales *scales) {
    if (is_nf4)
        square_nf4(sink, (const char *)q->codes + at / 2, cols / 2, scales->scale);
    else
        square_int8(sink, (const char *)q->codes + at, cols, scales->scale);
}

static TILE_INLINE void pack_quantised_square(bf16 *to, const QuantisedRow lane[16], const bool is_nf4,
                                              Nf4Block nf4[16], size_t first, int n) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = dequantise_depths(lane[i], is_nf4, &nf4[i], first, n);
    transpose16(r);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * PAIR, r[i]);
}

static TILE_INLINE void pack_units(bf16 *to, __m256i even, __m256i odd) {
    _mm512_storeu_si512(to, join_pairs(_mm512_cvtepu16_epi32(even), _mm512_cvtepu16_epi32(odd)));
}

static TILE_INLINE void pack_square(bf16 *to, const char *const lane[16], Dtype dtype, size_t first, int n) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = load_depths(lane[i], dtype, first, n);
    transpose16(r);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * PAIR, r[i]);
}

#else

static TILE_INLINE bf16 load_element(const char *row, Dtype dtype, size_t at) {
    bf16 half;
    float full;
    if (dtype == DTYPE_F32) {
        memcpy(&full, row + 4 * at, sizeof full);
        return f32_to_bf16(full);
    }
    memcpy(&half, row + 2 * at, sizeof half);
    return dtype == DTYPE_F16 ? f32_to_bf16(f16_to_f32(half)) : half;
}

static TILE_INLINE void pack_pair(bf16 *to, const char *even, const char *odd, Dtype dtype, size_t first, int n) {
    for (int i = 0; i < PANEL_LANES; i++) {
        to[2 * i] = even && i < n ? load_element(even, dtype, first + (size_t)i) : 0;
        to[2 * i + 1] = odd && i < n ? load_element(odd, dtype, first + (size_t)i) : 0;
    }
}

/* Sixteen rows as they come from elsewhere, zeros where there is none. */
typedef struct {
    bf16 row[PANEL_LANES][PANEL_DEPTH];
} RoundedRows;

static inline void pack_rounded(bf16 *to, const RoundedRows *rounded) {
    square_bf16((PairSink){.to = to}, (const char *)rounded->row, sizeof rounded->row[0]);
}

static TILE_INLINE void pack_square(bf16 *to, const char *const lane[16], Dtype dtype, size_t first, int n) {
    RoundedRows rounded;
    for (int i = 0; i < PANEL_LANES; i++)
        for (int d = 0; d < PANEL_DEPTH; d++)
            rounded.row[i][d] = lane[i] && d < n ? load_element(lane[i], dtype, first + (size_t)d) : 0;
    pack_rounded(to, &rounded);
}

static TILE_INLINE void pack_quantised_square(bf16 *to, const QuantisedRow lane[16], const bool is_nf4,
                                              Nf4Block nf4[16], size_t first, int n) {
    RoundedRows rounded;
    for (int i = 0; i < PANEL_LANES; i++)
        for (int d = 0; d < PANEL_DEPTH; d += UNIT) {
            __m256i unit = _mm256_setzero_si256();
            if (lane[i].q && d < n)
                unit =
                    unit_first(dequantise_unit(lane[i].q, is_nf4, &nf4[i], lane[i].first + first + (size_t)d), n - d);
            _mm256_storeu_si256((__m256i *)(rounded.row[i] + d), unit);
        }
    pack_rounded(to, &rounded);
}

typedef struct {
    float scale[PANEL_LANES];  /* INT8 */
    Nf4Block nf4[PANEL_LANES]; /* NF4 */
} SquareScales;
static TILE_INLINE void square_scales(SquareScales *s, const Quantised *q, const bool is_nf4, size_t at, size_t cols) {
    for (size_t i = 0; i < PANEL_LANES; i++) {
        const size_t block = (at + i * cols) / QUANTISED_BLOCK;
        if (is_nf4)
            s->nf4[i] = nf4_block(q, block);
        else
            s->scale[i] = quantised_scale(q, block);
    }
}

static TILE_INLINE void whole_square(const PairSink sink, const Quantised *q, const bool is_nf4, size_t at, size_t cols,
                                     const SquareScales *scales) {
    RoundedRows rounded;
    for (size_t i = 0; i < PANEL_LANES; i++, at += cols) {
        /* cppcheck-suppress uninitvar ; it is where the row goes */
        if (!is_nf4) row_int8(rounded.row[i], q->codes + at, scales->scale[i]);
        for (size_t d = 0; is_nf4 && d < PANEL_DEPTH; d += UNIT)
            _mm256_storeu_si256((__m256i *)(rounded.row[i] + d), nf4_unit(&scales->nf4[i], q->codes + (at + d) / 2));
    }
    pack_rounded(sink.to, &rounded);
}

static TILE_INLINE void pack_units(bf16 *to, __m256i even, __m256i odd) {
    __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
    _mm256_storeu_si256((__m256i *)to, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256((__m256i *)(to + PAIR / 2), _mm256_permute2x128_si256(low, high, 0x31));
}

#endif

/* The line that is `ahead` bytes behind goes to L2. Beyond the weight's end nothing happens. */
static TILE_INLINE void fetch_ahead(const char *at, size_t ahead) {
    __builtin_prefetch((const void *)((uintptr_t)at + ahead), 0, 2);
}

/* Whether the sixteen rows from `lane` on are there and lie together. */
static inline bool lie_together(const Panels *b, int lane) {
    return lane + PANEL_LANES <= b->lanes &&
           row_major_view(b->rows, lane) == row_major_view(b->rows, lane + PANEL_LANES - 1);
}

/* Lane = row of the weight: squares of 16 lanes × 32 depths are turned in registers. Meanwhile the same depths of the
 * rows that come `ahead` rows later are fetched; 0: none. Returns the depth at which it left off: only whole squares.
 */
static inline int panel_pack_together(bf16 *to, const Panels *b, int lane, int first_depth, int end_depth, int ahead) {
    const size_t stride = (size_t)b->rows->cols * sizeof(bf16);
    const char *from = row_major_row(b->rows, lane) + (size_t)first_depth * sizeof(bf16);
    int d = first_depth;
    for (; end_depth - d >= PANEL_DEPTH; d += PANEL_DEPTH, to += PANEL_DEPTH * PANEL_LANES) {
        for (size_t i = 0; ahead > 0 && i < PANEL_LANES; i++) fetch_ahead(from + i * stride, (size_t)ahead * stride);
        square_bf16((PairSink){.to = to}, from, stride);
        from += PANEL_DEPTH * sizeof(bf16);
    }
    return d;
}

static inline void panel_pack_rows(bf16 *to, const Panels *b, int lane, int first_depth, int end_depth, int ahead) {
    const char *row[PANEL_LANES];
    int d = first_depth;
    if (b->rows->dtype == DTYPE_BF16 && lie_together(b, lane)) {
        d = panel_pack_together(to, b, lane, first_depth, end_depth, ahead);
        to += (d - first_depth) * PANEL_LANES;
    }
    for (int i = 0; i < PANEL_LANES && d < end_depth; i++)
        row[i] = lane + i < b->lanes ? row_major_row(b->rows, lane + i) : NULL;
    for (; d < end_depth; d += PANEL_DEPTH, to += PANEL_DEPTH * PANEL_LANES) {
        size_t at = (size_t)d;
        int n = end_depth - d;
        /* a constant dtype at each call: no test of it in the loops */
        if (b->rows->dtype == DTYPE_BF16)
            pack_square(to, row, DTYPE_BF16, at, n);
        else if (b->rows->dtype == DTYPE_F16)
            pack_square(to, row, DTYPE_F16, at, n);
        else
            pack_square(to, row, DTYPE_F32, at, n);
    }
}

/* Lane = column: two rows of the weight make a pair, whole rows of panels at a time. */
static inline void panels_pack_columns(bf16 *to, size_t panel_stride, const Panels *b, int first_lane, int end_lane,
                                       int first_depth, int end_depth) {
    Dtype dtype = b->rows->dtype;
    int padded = first_depth + (end_depth - first_depth + PANEL_DEPTH - 1) / PANEL_DEPTH * PANEL_DEPTH;
    for (int d = first_depth; d < padded; d += 2, to += PAIR) {
        const char *even = d < end_depth ? row_major_row(b->rows, d) : NULL;
        const char *odd = d + 1 < end_depth ? row_major_row(b->rows, d + 1) : NULL;
        bf16 *panel = to;
        for (int lane = first_lane; lane < end_lane; lane += PANEL_LANES, panel += panel_stride) {
            if (dtype == DTYPE_BF16)
                pack_pair(panel, even, odd, DTYPE_BF16, (size_t)lane, end_lane - lane);
            else if (dtype == DTYPE_F16)
                pack_pair(panel, even, odd, DTYPE_F16, (size_t)lane, end_lane - lane);
            else
                pack_pair(panel, even, odd, DTYPE_F32, (size_t)lane, end_lane - lane);
        }
    }
}

/* The same of a quantised weight whose rows begin at multiples of 32, so that what a square has of a row is of one
 * block. */
static TILE_INLINE int panel_pack_quantised_together(bf16 *to, const Panels *b, const bool is_nf4, int lane,
                                                     int first_depth, int end_depth, int ahead) {
    enum { LINE = 64 };
    const size_t per_byte = is_nf4 ? 2 : 1, cols = (size_t)b->rows->cols, stride = cols / per_byte;
    const QuantisedRow row = quantised_row(b->rows, lane);
    SquareScales scales;
    int d = first_depth;
    for (; end_depth - d >= PANEL_DEPTH; d += PANEL_DEPTH, to += PANEL_DEPTH * PANEL_LANES) {
        const char *from = (const char *)row.q->codes + (row.first + (size_t)d) / per_byte;
        const bool next_line = ahead > 0 && (size_t)(d - first_depth) % (LINE * per_byte) == 0;
        for (size_t i = 0; next_line && i < PANEL_LANES; i++) fetch_ahead(from + i * stride, (size_t)ahead * stride);
        const size_t at = row.first + (size_t)d;
        const bool same_blocks = d > first_depth && at % QUANTISED_BLOCK != 0 && cols % QUANTISED_BLOCK == 0;
        if (!same_blocks) square_scales(&scales, row.q, is_nf4, at, cols);
        whole_square((PairSink){.to = to}, row.q, is_nf4, at, cols, &scales);
    }
    return d;
}

static TILE_INLINE void panel_pack_quantised_rows(bf16 *to, const Panels *b, const bool is_nf4, int lane,
                                                  int first_depth, int end_depth, int ahead) {
    QuantisedRow row[PANEL_LANES] = {{NULL, 0}};
    Nf4Block nf4[PANEL_LANES];
    int d = first_depth;
    if (b->rows->cols % PANEL_DEPTH == 0 && lie_together(b, lane)) {
        d = panel_pack_quantised_together(to, b, is_nf4, lane, first_depth, end_depth, ahead);
        to += (d - first_depth) * PANEL_LANES;
    }
    for (int i = 0; i < PANEL_LANES && d < end_depth; i++) {
        nf4[i].block = SIZE_MAX;
        if (lane + i < b->lanes) row[i] = quantised_row(b->rows, lane + i);
    }
    for (; d < end_depth; d += PANEL_DEPTH, to += PANEL_DEPTH * PANEL_LANES)
        pack_quantised_square(to, row, is_nf4, nf4, (size_t)d, end_depth - d);
}

static TILE_INLINE void panels_pack_quantised_columns(bf16 *to, size_t panel_stride, const Panels *b, const bool is_nf4,
                                                      int first_lane, int end_lane, int first_depth, int end_depth) {
    const int padded = first_depth + (end_depth - first_depth + PANEL_DEPTH - 1) / PANEL_DEPTH * PANEL_DEPTH;
    for (int d = first_depth; d < padded; d += 2, to += PAIR) {
        bf16 *panel = to;
        QuantisedRow row[2] = {{NULL, 0}};
        Nf4Block nf4[2];
        for (int i = 0; i < 2; i++) {
            nf4[i].block = SIZE_MAX;
            if (d + i < end_depth) row[i] = quantised_row(b->rows, d + i);
        }
        for (int lane = first_lane; lane < end_lane; lane += PANEL_LANES, panel += panel_stride) {
            __m256i pair[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
            for (int i = 0; i < 2 && row[i].q; i++)
                pair[i] = unit_first(dequantise_unit(row[i].q, is_nf4, &nf4[i], row[i].first + (size_t)lane),
                                     end_lane - lane);
            pack_units(panel, pair[0], pair[1]);
        }
    }
}

static TILE_INLINE void panels_pack_quantised(bf16 *to, size_t panel_stride, const Panels *b, const bool is_nf4,
                                              int first_lane, int end_lane, int first_depth, int end_depth, int ahead) {
    if (b->transposed) {
        panels_pack_quantised_columns(to, panel_stride, b, is_nf4, first_lane, end_lane, first_depth, end_depth);
        return;
    }
    for (int lane = first_lane; lane < end_lane; lane += PANEL_LANES, to += panel_stride)
        panel_pack_quantised_rows(to, b, is_nf4, lane, first_depth, end_depth, ahead);
}

/* `ahead`: of a weight that is not transposed, as panel_pack_rows has it. */
static void panels_pack_ahead(bf16 *to, size_t panel_stride, const Panels *b, int first_lane, int end_lane,
                              int first_depth, int end_depth, int ahead) {
    if (b->rows->quantised) { /* all of its views alike */
        if (b->rows->quantised->kind == QUANTISED_NF4)
            panels_pack_quantised(to, panel_stride, b, true, first_lane, end_lane, first_depth, end_depth, ahead);
        else
            panels_pack_quantised(to, panel_stride, b, false, first_lane, end_lane, first_depth, end_depth, ahead);
        return;
    }
    if (b->transposed) {
        panels_pack_columns(to, panel_stride, b, first_lane, end_lane, first_depth, end_depth);
        return;
    }
    for (int lane = first_lane; lane < end_lane; lane += PANEL_LANES, to += panel_stride)
        panel_pack_rows(to, b, lane, first_depth, end_depth, ahead);
}

/* The row `pack` of the table. */
static void panels_pack(bf16 *to, size_t panel_stride, const Panels *b, int first_lane, int end_lane, int first_depth,
                        int end_depth) {
    panels_pack_ahead(to, panel_stride, b, first_lane, end_lane, first_depth, end_depth, 0);
}

/* Tokens [first, end) of all n_tokens of x; `to` is where the panels of all of them begin. `end` is even or n_tokens,
 * and then zeros follow it up to a multiple of 32. */
static void tokens_pack(bf16 *to, size_t panel_stride, const bf16 *x, size_t stride, int first, int end, int cols) {
    int padded = (end + 1) / 2 * 2;
    for (int t = first; t < padded; t += 2) {
        const char *even = (const char *)(x + (size_t)t * stride);
        const char *odd = t + 1 < end ? (const char *)(x + (size_t)(t + 1) * stride) : NULL;
        bf16 *panel = to + (size_t)t * PANEL_LANES;
        for (int col = 0; col < cols; col += PANEL_LANES, panel += panel_stride)
            pack_pair(panel, even, odd, DTYPE_BF16, (size_t)col, cols - col);
    }
}

/* Zeros for the depths [first, end) of all panels. */
static void tokens_pad(bf16 *to, size_t panel_stride, int first, int end, int cols) {
    if (first >= end) return;
    for (int col = 0; col < cols; col += PANEL_LANES, to += panel_stride)
        memset(to + (size_t)first * PANEL_LANES, 0, (size_t)(end - first) * PANEL_LANES * sizeof *to);
}

#if defined(__AVX512F__)
/* Slots of eight rows, `slot_stride` elements apart: 16 rows of a pair of tokens are two slots' worth. */
enum { SLOT = 8 };
static inline void slots_pack(bf16 *to, size_t slot_stride, const bf16 *x, size_t stride, int n_tokens, int rows) {
    for (int t = 0; t < n_tokens; t += 2, to += 2 * SLOT) {
        const char *even = (const char *)(x + (size_t)t * stride);
        const char *odd = t + 1 < n_tokens ? (const char *)(x + (size_t)(t + 1) * stride) : NULL;
        bf16 *slot = to;
        for (int r = 0; r < rows; r += 16, slot += 2 * slot_stride) {
            __m512i pair = join_pairs(load_lanes(even, DTYPE_BF16, (size_t)r, rows - r),
                                      load_lanes(odd, DTYPE_BF16, (size_t)r, rows - r));
            _mm256_storeu_si256((__m256i *)slot, _mm512_castsi512_si256(pair));
            if (rows - r > SLOT)
                _mm256_storeu_si256((__m256i *)(slot + slot_stride), _mm512_extracti64x4_epi64(pair, 1));
        }
    }
}
#else
enum { SLOT = 6 };
static inline void slots_pack(bf16 *to, size_t slot_stride, const bf16 *x, size_t stride, int n_tokens, int rows) {
    for (int t = 0; t < n_tokens; t += 2, to += 2 * SLOT)
        for (int r = 0; r < rows; r++) {
            bf16 *pair = to + (size_t)(r / SLOT) * slot_stride + 2 * (r % SLOT);
            pair[0] = x[(size_t)t * stride + (size_t)r];
            pair[1] = t + 1 < n_tokens ? x[(size_t)(t + 1) * stride + (size_t)r] : 0;
        }
}
#endif

#endif
