/* AdamW on a matrix in one pass over memory: formulas in reference/adamw.c and reference/bf16_adamw.c. A block of 16
 * rows × up to BLOCK_COLUMNS columns is updated row by row and left rounded to bf16 in a buffer (64 KiB of stack); from
 * there both packings (PANELS in bf16.h) are written a whole cache line at a time:
 *
 *   forward    the 16 rows are one panel: 16 × 16 pairs of columns, transposed
 *   backward   16 columns are one panel: rows 2r and 2r + 1 interleaved, a line for each r, 8 lines in a row
 *
 * Included after fast/arrays.h, whose arithmetic it shares. */
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/fast/norm_rows.h"
#include "model/kernels/fast/philox.h"
#include "model/kernels/kernels.h"
#include "model/kernels/fast/simd.h"

/* Blocks are wide because the prefetcher follows a run of addresses: with 512 columns the pass over memory took twice
 * as long. A row of the buffer is a cache line longer than the block, so that its rows do not fall on the same sets. */
enum { BLOCK_ROWS = PANEL_LANES, BLOCK_COLUMNS = 2048, BLOCK_STRIDE = BLOCK_COLUMNS + 32, PAIR = 2 * PANEL_LANES };

/* Two rows of a panel: from[lane][2] of 16 lanes. */
#if defined(__AVX512F__)
enum { CAN_STREAM = 1 };
static ALWAYS_INLINE void put_line(bool stream, bf16 *to, __m512i line) {
    if (stream)
        _mm512_stream_si512((__m512i *)(void *)to, line);
    else
        _mm512_storeu_si512(to, line);
}
static ALWAYS_INLINE void interleave_rows(bool stream, bf16 *to, const bf16 *a, const bf16 *b) {
    __m512i low = _mm512_cvtepu16_epi32(vb_load(a)), high = _mm512_cvtepu16_epi32(vb_load(b));
    put_line(stream, to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}
/* 16 pairs of columns of 16 rows: to[pair][row]. Four rounds, each exchanging blocks half as wide. */
static ALWAYS_INLINE void transpose_pairs(bool stream, bf16 *to, const bf16 *from, size_t stride) {
    __m512i x[16], y[16];
    for (size_t r = 0; r < 16; r++) x[r] = _mm512_loadu_si512(from + r * stride);
    for (size_t r = 0; r < 16; r += 2) {
        y[r] = _mm512_unpacklo_epi32(x[r], x[r + 1]);
        y[r + 1] = _mm512_unpackhi_epi32(x[r], x[r + 1]);
    }
    for (size_t r = 0; r < 16; r += 4) /* x[r + c]: column c of every four, of rows r … r + 3 */
        for (size_t c = 0; c < 2; c++) {
            x[r + 2 * c] = _mm512_unpacklo_epi64(y[r + c], y[r + 2 + c]);
            x[r + 2 * c + 1] = _mm512_unpackhi_epi64(y[r + c], y[r + 2 + c]);
        }
    for (size_t c = 0; c < 4; c++) {
        __m512i even0 = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x88), odd0 = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xdd);
        __m512i even1 = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x88);
        __m512i odd1 = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xdd);
        put_line(stream, to + PAIR * c, _mm512_shuffle_i32x4(even0, even1, 0x88));
        put_line(stream, to + PAIR * (4 + c), _mm512_shuffle_i32x4(odd0, odd1, 0x88));
        put_line(stream, to + PAIR * (8 + c), _mm512_shuffle_i32x4(even0, even1, 0xdd));
        put_line(stream, to + PAIR * (12 + c), _mm512_shuffle_i32x4(odd0, odd1, 0xdd));
    }
}
#else
enum { CAN_STREAM = 0 }; /* half a line at a time */
static inline void interleave_rows(bool stream, bf16 *to, const bf16 *a, const bf16 *b) {
    (void)stream;
    for (size_t i = 0; i < PANEL_LANES; i += 8) {
        __m128i x = vb_load(a + i), y = vb_load(b + i);
        vb_store(to + 2 * i, _mm_unpacklo_epi16(x, y));
        vb_store(to + 2 * i + 8, _mm_unpackhi_epi16(x, y));
    }
}
/* 8 pairs of columns of 8 rows */
static inline void transpose_8_pairs(bf16 *to, const bf16 *from, size_t stride) {
    __m256i x[8], y[8];
    for (size_t r = 0; r < 8; r++) x[r] = _mm256_loadu_si256((const __m256i *)(const void *)(from + r * stride));
    for (size_t r = 0; r < 8; r += 2) {
        y[r] = _mm256_unpacklo_epi32(x[r], x[r + 1]);
        y[r + 1] = _mm256_unpackhi_epi32(x[r], x[r + 1]);
    }
    for (size_t r = 0; r < 8; r += 4)
        for (size_t c = 0; c < 2; c++) {
            x[r + 2 * c] = _mm256_unpacklo_epi64(y[r + c], y[r + 2 + c]);
            x[r + 2 * c + 1] = _mm256_unpackhi_epi64(y[r + c], y[r + 2 + c]);
        }
    for (size_t c = 0; c < 4; c++) {
        __m256i low = _mm256_permute2x128_si256(x[c], x[4 + c], 0x20);
        __m256i high = _mm256_permute2x128_si256(x[c], x[4 + c], 0x31);
        _mm256_storeu_si256((__m256i *)(void *)(to + PAIR * c), low);
        _mm256_storeu_si256((__m256i *)(void *)(to + PAIR * (4 + c)), high);
    }
}
static inline void transpose_pairs(bool stream, bf16 *to, const bf16 *from, size_t stride) {
    (void)stream;
    for (size_t r = 0; r < 16; r += 8)
        for (size_t c = 0; c < 32; c += 16) transpose_8_pairs(to + c / 2 * PAIR + 2 * r, from + r * stride + c, stride);
}
#endif

/* Columns [first, first + n) of a row; the new parameters go to `rounded` too. */
static ALWAYS_INLINE void update_row(bool half, const AdamwMatrix *w, const AdamwVectors *k, size_t row, size_t first,
                                     size_t n, bf16 *rounded) {
    size_t at = row * (size_t)w->cols + first;
    vu random[RANDOM_VECTORS];
    for (size_t i = 0; i < n; i += VF) {
        size_t rest = n - i, e = at + i;
        if (half && i % RANDOM_COLUMNS == 0)
            random_columns(random, w->rounding, w->update, (uint64_t)w->first_row + row, first + i);
        vf m = row_get(half, w->m, e, rest), v = row_get(half, w->v, e, rest);
        vf p = adamw_vector(k, vf_get(w->param + e, rest), vf_get(w->grad + e, rest), &m, &v);
        vf_put(w->param + e, rest, p);
        if (half) {
            vu words = random[i / VF % RANDOM_VECTORS];
            vb_put((bf16 *)w->m + e, rest, vf_narrow_randomly(m, words));
            vb_put((bf16 *)w->v + e, rest, vf_narrow_randomly(v, vu_upper_halves(words)));
        } else {
            vf_put((float *)w->m + e, rest, m);
            vf_put((float *)w->v + e, rest, v);
        }
        if (w->zero_grad) vf_put(w->grad + e, rest, vf_zero());
        if (rounded) vb_store(rounded + i, vf_narrow(p)); /* beyond the row's end too: the buffer has room */
    }
}

static inline size_t round_up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

/* Both packings of rows [row, row + 16) × columns [first, first + n), from the buffer, whose padding is zero. */
static ALWAYS_INLINE void write_panels(bool stream, const AdamwMatrix *w, const bf16 *rounded, size_t row, size_t first,
                                       size_t n) {
    size_t cols = (size_t)w->cols, end = round_up((size_t)w->rows, PANEL_DEPTH);
    if (w->forward) {
        bf16 *panel = w->forward + row * round_up(cols, PANEL_DEPTH);
        for (size_t c = 0; c < n; c += PANEL_DEPTH)
            transpose_pairs(stream, panel + (first + c) / 2 * PAIR, rounded + c, BLOCK_STRIDE);
    }
    if (!w->backward) return;
    size_t missing = row + BLOCK_ROWS >= (size_t)w->rows ? end - row - BLOCK_ROWS : 0; /* rows of padding below */
    for (size_t c = 0; c < n; c += PANEL_LANES) {
        bf16 *to = w->backward + (first + c) * end + row / 2 * PAIR;
        for (size_t r = 0; r < BLOCK_ROWS; r += 2) {
            const bf16 *pair = rounded + r * BLOCK_STRIDE + c;
            interleave_rows(stream, to + r / 2 * PAIR, pair, pair + BLOCK_STRIDE);
        }
        if (missing > 0) memset(to + BLOCK_ROWS / 2 * PAIR, 0, missing * PANEL_LANES * sizeof *to);
    }
}

/* Stores that go past the caches save reading the lines they replace, a quarter of the time of the pass where it is
 * bound by memory; small matrices are left in the caches, for the next step's products. */
static bool streams(const AdamwMatrix *w) {
    enum { LEAST = 1 << 16, LINE = 64 };
    bool aligned = (uintptr_t)w->forward % LINE == 0 && (uintptr_t)w->backward % LINE == 0;
    return CAN_STREAM && aligned && (size_t)w->rows * (size_t)w->cols >= LEAST;
}

static void update_block(const AdamwMatrix *w, const AdamwVectors *k, size_t row, size_t first, size_t n) {
    _Alignas(64) bf16 rounded[BLOCK_ROWS * BLOCK_STRIDE];
    size_t rows = part_of((size_t)w->rows, row, BLOCK_ROWS), padded = round_up(n, PANEL_DEPTH);
    bool packs = w->forward || w->backward;
    for (size_t r = 0; r < rows; r++) {
        bf16 *to = packs ? rounded + r * BLOCK_STRIDE : NULL;
        if (w->moments == DTYPE_BF16)
            update_row(true, w, k, row + r, first, n, to);
        else
            update_row(false, w, k, row + r, first, n, to);
        if (packs) memset(to + n, 0, (padded - n) * sizeof *to);
    }
    if (!packs) return;
    for (size_t r = rows; r < BLOCK_ROWS; r++) memset(rounded + r * BLOCK_STRIDE, 0, padded * sizeof *rounded);
    if (streams(w)) {
        write_panels(true, w, rounded, row, first, n);
        _mm_sfence(); /* they are not ordered with the stores that tell other threads that this one is done */
    } else
        write_panels(false, w, rounded, row, first, n);
}

/* Blocks, of nearly equal size and in the order of memory, are shared out to threads. */
static void fast_bf16_adamw_matrix(const AdamwMatrix *matrix, AdamwStep step) {
    AdamwVectors k = adamw_vectors(step);
    size_t cols = (size_t)matrix->cols, strips = ((size_t)matrix->rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    size_t in_row = (cols + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
    size_t columns = round_up((cols + in_row - 1) / in_row, RANDOM_COLUMNS);
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (size_t block = 0; block < strips * in_row; block++) {
        size_t row = block / in_row * BLOCK_ROWS, first = block % in_row * columns;
        if (first < cols) update_block(matrix, &k, row, first, part_of(cols, first, columns));
    }
}

static void fast_bf16_adamw(Bf16Kernels *table) {
    table->adamw = fast_bf16_adamw_matrix;
}
