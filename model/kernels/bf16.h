/* The kernels of `precision: bf16`: activations, and the operands of every product, are bfloat16; every sum, norm,
 * softmax, log-sum-exp and weight gradient, and the residual stream, are fp32. They are rows of the same table
 * (kernels()->bf16.name), with the same rules as kernels.h: nothing allocates or fails, references beside the fast
 * ones, bitwise repeatable for one table and one number of threads, NULL for an output that is not wanted.
 *
 * Rounding to bf16 is to nearest even; NaN stays NaN. Gradients of bf16 activations are bf16 (they are the operands of
 * the next product). Where `accumulate` is true a bf16 output is read, added to in fp32 and rounded again.
 *
 * PANELS. A product with packed B reads it as panels of 16 lanes, pairs of the reduction side by side, as VDPBF16PS and
 * TDPBF16PS want it. With B(lane, d), 0 <= lane < lanes, 0 <= d < depth:
 *
 *   packed[lane / 16][d / 2][lane % 16][d % 2]      lanes padded with zeros to a multiple of 16, depth to one of 32
 *
 * so a panel is contiguous: padded depth × 16 elements, and 16 pairs of it (depth 32) are one AMX tile of 1 KiB. A
 * weight W[N, K] has two packings: `forward` (lanes N, depth K) for y = x·Wᵀ and `backward` (lanes K, depth N) for
 * dx = dy·W.
 */
#ifndef CRIA_KERNELS_BF16_H
#define CRIA_KERNELS_BF16_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/core/dtype.h"
#include "model/core/philox.h"

struct HeadResults;
struct HeadAdapter;
struct Segments;
struct AdamwStep;
struct CachedAttention;

enum { PANEL_LANES = 16, PANEL_DEPTH = 32, PANEL_MAX_VIEWS = 3 };

/* A weight W[rows, cols] where it is kept row-major: up to three ranges of rows, each contiguous somewhere (the three
 * matrices that make one QKV lie apart in a file). Any alignment. What is quantised is rounded to bf16 when a product
 * reads it. */
typedef struct {
    Dtype dtype; /* DTYPE_F32, DTYPE_BF16 or DTYPE_F16 */
    int n_views, cols;
    const void *view[PANEL_MAX_VIEWS];  /* [view_rows, cols] each */
    int first_row[PANEL_MAX_VIEWS + 1]; /* of each view; the last entry is the number of rows */
    struct Quantised *quantised;        /* [n_views] in place of dtype and view, or NULL */
} RowMajor;

/* Which view has row `row`. */
static inline int row_major_view(const RowMajor *w, int row) {
    int v = 0;
    while (v + 1 < w->n_views && row >= w->first_row[v + 1]) v++;
    return v;
}
/* Elements [first, first + n) of a row, as fp32. */
void row_major_read(const RowMajor *w, int row, size_t first, size_t n, float *out);

/* One of a weight's two uses: packed beforehand, or packed from `rows` a few panels at a time in cache as they are
 * used (frozen weights). */
typedef struct {
    int lanes, depth;
    const bf16 *packed;   /* NULL: `rows` */
    const RowMajor *rows; /* may be NULL where packed is given */
    bool transposed;      /* of `rows`: false: lane = row, d = column (forward); true: lane = column, d = row */
} Panels;

/* Elements of the packing, padding included. */
static inline size_t panels_elements(int lanes, int depth) {
    size_t l = ((size_t)lanes + PANEL_LANES - 1) / PANEL_LANES * PANEL_LANES;
    size_t d = ((size_t)depth + PANEL_DEPTH - 1) / PANEL_DEPTH * PANEL_DEPTH;
    return l * d;
}

/* c[m, lanes] = a[m, depth]·B, or c += … */
typedef struct {
    int m;
    const bf16 *a; /* row-major; a_stride elements between rows */
    size_t a_stride;
    Panels b;
    void *c; /* row-major; c_stride elements between rows */
    size_t c_stride;
    Dtype c_dtype; /* DTYPE_F32 or DTYPE_BF16 */
    bool accumulate;
    /* Called once for every row, in blocks, when all its lanes are stored and still in cache, by the thread that made
     * them (several threads at once). NULL: nothing. */
    void (*finish)(void *context, int first_row, int n_rows);
    void *context;
} Product;

/* As AttentionInputs of kernels.h, in bf16. */
typedef struct {
    int n_heads, n_kv_heads, head_dim;
    float scale;
    const bf16 *q, *k, *v;
    size_t q_stride, kv_stride;
} AttentionInputsBf16;

/* Serial products of blocks that are in cache, for kernels that share out the work themselves (the head). */
typedef struct {
    /* c[m, lanes] = (or +=) a[m, depth]·B, fp32; panel p of B begins at packed + p·panel_stride. depth: any; pairs
     * beyond it up to a multiple of 32 are zero in B. What a holds beyond its rows' depth is not used. */
    void (*multiply)(float *c, size_t c_stride, bool accumulate, const bf16 *a, size_t a_stride, int m,
                     const bf16 *packed, size_t panel_stride, int lanes, int depth);
    /* c[rows, cols] += aᵀ·b over n_tokens rows of a[n_tokens, rows] and b[n_tokens, cols]; `scratch` has
     * product_block_scratch(n_tokens, rows, cols) floats. */
    void (*multiply_transposed)(float *c, size_t c_stride, const bf16 *a, size_t a_stride, const bf16 *b,
                                size_t b_stride, int n_tokens, int rows, int cols, float *scratch);
} ProductBlocks;

/* AdamW on W[rows, cols], its new packings written in the same pass. With fp32 moments param, m and v get the bits that
 * `adamw` of the same table gives them. bf16 moments are rounded stochastically (reference/bf16_adamw.c says why) with
 * numbers that follow from (rounding, update, row of the whole parameter, column) alone. */
typedef struct {
    float *param, *grad;
    void *m, *v;
    Dtype moments; /* DTYPE_F32 or DTYPE_BF16 */
    int rows, cols;
    bool zero_grad;           /* the gradient is left zero, in the same pass */
    bf16 *forward, *backward; /* packings to write, or NULL */
    /* For bf16 moments alone: */
    PhiloxKey rounding; /* philox_key(seed, PHILOX_ROUNDING, …) of the parameter */
    uint32_t update;    /* number of the update */
    int64_t first_row;  /* row 0 is this row of the whole parameter */
} AdamwMatrix;

typedef struct {
    /* Packs lanes [first_lane, end_lane) × depths [first_depth, end_depth) of b->rows: `to` is where the first panel's
     * first pair goes, panels are panel_stride elements apart. first_lane is a multiple of 16, first_depth of 32; the
     * ends too, or they are b's, and then the padding is written as well. Serial. */
    void (*pack)(bf16 *to, size_t panel_stride, const Panels *b, int first_lane, int end_lane, int first_depth,
                 int end_depth);
    const ProductBlocks *blocks;
    void (*product)(const Product *product);
    /* dw[rows, cols] += dyᵀ·x over n_tokens rows, fp32. */
    void (*product_weight)(float *dw, size_t dw_stride, const bf16 *dy, size_t dy_stride, const bf16 *x,
                           size_t x_stride, int n_tokens, int rows, int cols);

    /* y = x·rstd·w: fp32 stream in, bf16 out; rstd may be NULL. */
    void (*rmsnorm_forward)(bf16 *y, float *rstd, const float *x, const float *w, int n_tokens, int width, float eps);
    /* sum = x + delta (sum may be x), then y and rstd of sum. One pass over memory. */
    void (*add_rmsnorm_forward)(float *sum, bf16 *y, float *rstd, const float *x, const bf16 *delta, const float *w,
                                int n_tokens, int width, float eps);
    /* dx = dsum (NULL: 0) + the norm's gradient, fp32 (dx may be dsum); ddelta: the same in bf16 (it may be dy), or
     * NULL; dw (added to) or NULL. accumulate: dx is also added to what it holds (then it is not dsum); ddelta is not.
     * One pass over memory; `scratch` has norm_scratch() floats, used for dw. */
    void (*add_rmsnorm_backward)(float *dx, bool accumulate, bf16 *ddelta, float *dw, const float *dsum, const bf16 *dy,
                                 const float *sum, const float *w, const float *rstd, int n_tokens, int width,
                                 float *scratch);
    /* In place, as kernels.h. May be called by several threads at once on rows of their own (it takes no threads). */
    void (*rotary)(bf16 *x, size_t stride, int n_tokens, int n_heads, int head_dim, const int32_t *positions,
                   const float *cos_table, const float *sin_table, bool inverse);
    /* y = rotated x: the same out of place, all threads; columns [n_heads·head_dim, width) are copied. */
    void (*rotary_copy)(bf16 *y, const bf16 *x, size_t stride, size_t width, int n_tokens, int n_heads, int head_dim,
                        const int32_t *positions, const float *cos_table, const float *sin_table, bool inverse);

    void (*swiglu_forward)(bf16 *y, const bf16 *gate_up, int n_tokens, int width);
    void (*swiglu_backward)(bf16 *dgate_up, bool accumulate, const bf16 *dy, const bf16 *gate_up, int n_tokens,
                            int width);

    void (*attention_forward)(bf16 *out, float *lse, const AttentionInputsBf16 *in, struct Segments segments);
    /* dq, dk, dv have the strides of q, k, v. `scratch` has attention_backward_scratch() floats. */
    void (*attention_backward)(bf16 *dq, bf16 *dk, bf16 *dv, bool accumulate, const bf16 *dout, const bf16 *out,
                               const float *lse, const AttentionInputsBf16 *in, struct Segments segments,
                               float *scratch);
    /* The cache is bf16. */
    void (*cache_store)(bf16 *keys, bf16 *values, const bf16 *k, const bf16 *v, const struct CachedAttention *c);
    void (*attention_cached)(bf16 *out, const bf16 *q, const bf16 *keys, const bf16 *values,
                             const struct CachedAttention *c);

    /* The head, as kernels.h: forward has lanes = vocab, depth = width; backward lanes = width, depth = vocab. The
     * results are computed from fp32 logits. `scratch` has head_scratch_bf16() floats. */
    void (*head_forward)(struct HeadResults out, const bf16 *x, Panels forward, const struct HeadAdapter *adapter,
                         const int32_t *targets, const float *mask, int n_tokens, float logit_scale, float *scratch);
    void (*head_backward)(bf16 *dx, bool accumulate, float *dw, const float *dlogprob, const bf16 *x, Panels forward,
                          Panels backward, const struct HeadAdapter *adapter, const float *lse, const int32_t *targets,
                          int n_tokens, float logit_scale, float *scratch);
    void (*head_forward_backward)(struct HeadResults out, bf16 *dx, float *dw, const float *dlogprob, const bf16 *x,
                                  Panels forward, Panels backward, const struct HeadAdapter *adapter,
                                  const int32_t *targets, int n_tokens, float logit_scale, float *scratch);

    void (*adamw)(const AdamwMatrix *matrix, struct AdamwStep step);
} Bf16Kernels;

/* Floats of scratch for any table and the current number of threads. */
size_t product_block_scratch(int n_tokens, int rows, int cols);
size_t norm_scratch(int n_tokens, int width);
size_t head_scratch_bf16(int n_tokens, int width, int rank, int vocab);

#endif
