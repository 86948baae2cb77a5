/* AdamW on a matrix (formulas in reference/adamw.c), and its packings (PANELS in bf16.h).
 *
 * bf16 moments. v changes by (1 − β2)·(g² − v) a step, relative to v by 2^-10 with β2 = 0.999; neighbouring bf16
 * numbers are 2^-8 to 2^-7 apart, so that rounding to nearest would put v back where it was for ever. Therefore both
 * moments are rounded up or down at random, with the probabilities that make the expected value exact: 16 random bits
 * are added below the 16 bits that stay, and what is then below is cut off (Gupta et al. 2015, section 3.1). v and m
 * follow their fp32 values without bias. The price is noise: each rounding has variance f·(1 − f)·ulp² <= ulp²/4 (f:
 * the fraction of an ulp that is cut off), and the recurrence remembers 1 / (1 − β²) of them, so that the relative
 * standard deviation of v is at most 2^-8 / sqrt(1 − β2²), 1.3 % for β2 = 0.95 and 8.7 % for 0.999 (measured on noise:
 * 0.8 and 3.5 %), and that of the step half of it; that of m at most 0.9 % for β1 = 0.9 (0.5 %). The update itself uses
 * the moments before they are rounded. NaN stays NaN.
 *
 * The random bits of column c of row r are one word of Philox: counter (update, r, r / 2^32, 16·(c / 64) + c % 16),
 * word c / 16 % 4 (16 generators side by side give four vectors of 16 columns in place); m takes its lower half, v its
 * upper. */
#include <math.h>
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/reference/reference.h"

static uint32_t random_word(const AdamwMatrix *w, size_t row, size_t column) {
    uint64_t r = (uint64_t)w->first_row + row;
    uint32_t words[4];
    uint32_t block = (uint32_t)(column / 64 * 16 + column % 16);
    philox4x32(words, (uint32_t[4]){w->update, (uint32_t)r, (uint32_t)(r >> 32), block}, w->rounding);
    return words[column / 16 % 4];
}

static bf16 round_stochastically(float x, uint32_t random) {
    uint32_t bits;
    if (isnan(x)) return f32_to_bf16(x);
    memcpy(&bits, &x, sizeof bits);
    return (bf16)((bits + (random & 0xffff)) >> 16);
}

/* As reference_adamw, with the moments widened before and rounded after. */
static void update_row_bf16(const AdamwMatrix *w, AdamwStep step, size_t row) {
    enum { CHUNK = 256 };
    size_t cols = (size_t)w->cols, at = row * cols;
    for (size_t first = 0; first < cols; first += CHUNK) {
        size_t n = cols - first < CHUNK ? cols - first : CHUNK;
        bf16 *m = (bf16 *)w->m + at + first, *v = (bf16 *)w->v + at + first;
        float m32[CHUNK], v32[CHUNK];
        for (size_t i = 0; i < n; i++) m32[i] = bf16_to_f32(m[i]), v32[i] = bf16_to_f32(v[i]);
        reference_adamw(w->param + at + first, m32, v32, w->grad + at + first, n, step);
        for (size_t i = 0; i < n; i++) {
            uint32_t random = random_word(w, row, first + i);
            m[i] = round_stochastically(m32[i], random);
            v[i] = round_stochastically(v32[i], random >> 16);
        }
    }
}

/* packed[lane / 16][d / 2][lane % 16][d % 2] of the value at lane·lane_stride + d·depth_stride */
static void pack(bf16 *packed, const float *from, size_t lanes, size_t depth, size_t lane_stride, size_t depth_stride) {
    size_t padded = (depth + PANEL_DEPTH - 1) / PANEL_DEPTH * PANEL_DEPTH;
    memset(packed, 0, panels_elements((int)lanes, (int)depth) * sizeof *packed);
    for (size_t lane = 0; lane < lanes; lane++)
        for (size_t d = 0; d < depth; d++) {
            size_t pair = lane / PANEL_LANES * padded / 2 + d / 2;
            packed[(pair * PANEL_LANES + lane % PANEL_LANES) * 2 + d % 2] =
                f32_to_bf16(from[lane * lane_stride + d * depth_stride]);
        }
}

static void adamw(const AdamwMatrix *w, AdamwStep step) {
    size_t rows = (size_t)w->rows, cols = (size_t)w->cols;
    if (w->moments == DTYPE_F32)
        reference_adamw(w->param, w->m, w->v, w->grad, rows * cols, step);
    else
        for (size_t row = 0; row < rows; row++) update_row_bf16(w, step, row);
    if (w->zero_grad) memset(w->grad, 0, rows * cols * sizeof *w->grad);
    if (w->forward) pack(w->forward, w->param, rows, cols, cols, 1);
    if (w->backward) pack(w->backward, w->param, cols, rows, 1, cols);
}

void reference_bf16_adamw(Bf16Kernels *table) {
    table->adamw = adamw;
}
