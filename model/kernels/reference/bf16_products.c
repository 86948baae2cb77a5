/* The products of bf16.h from their definitions, with fp64 sums: the product of two bfloat16 is exact in fp64. */
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/reference/reference.h"

static float widened(bf16 bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

/* W(row, col) in bf16, whatever it is kept in. */
static bf16 weight_at(const RowMajor *w, int row, int col) {
    float value;
    row_major_read(w, row, (size_t)col, 1, &value);
    return f32_to_bf16(value);
}

static size_t round_up(int n, int to) {
    return ((size_t)n + (size_t)to - 1) / (size_t)to * (size_t)to;
}

static bf16 panels_at(const Panels *b, int lane, int d) {
    if (!b->packed) return b->transposed ? weight_at(b->rows, d, lane) : weight_at(b->rows, lane, d);
    const bf16 *panel = b->packed + (size_t)(lane / PANEL_LANES) * round_up(b->depth, PANEL_DEPTH) * PANEL_LANES;
    return panel[(size_t)(d / 2) * 2 * PANEL_LANES + (size_t)(lane % PANEL_LANES) * 2 + (size_t)(d % 2)];
}

float reference_panels_at(const Panels *b, int lane, int d) {
    return bf16_to_f32(panels_at(b, lane, d));
}

static void reference_pack(bf16 *to, size_t panel_stride, const Panels *b, int first_lane, int end_lane,
                           int first_depth, int end_depth) {
    const Panels rows = {b->lanes, b->depth, NULL, b->rows, b->transposed};
    int lanes = (int)round_up(end_lane - first_lane, PANEL_LANES);
    int depth = (int)round_up(end_depth - first_depth, PANEL_DEPTH);
    for (int i = 0; i < lanes; i++)
        for (int d = 0; d < depth; d++) {
            bf16 *at = to + (size_t)(i / PANEL_LANES) * panel_stride + (size_t)(d / 2) * 2 * PANEL_LANES;
            bool inside = first_lane + i < end_lane && first_depth + d < end_depth;
            at[i % PANEL_LANES * 2 + d % 2] = inside ? panels_at(&rows, first_lane + i, first_depth + d) : 0;
        }
}

static void store(void *c, Dtype dtype, size_t at, bool accumulate, double sum) {
    if (dtype == DTYPE_BF16) {
        bf16 *to = (bf16 *)c + at;
        *to = f32_to_bf16((float)(accumulate ? sum + (double)widened(*to) : sum));
    } else {
        float *to = (float *)c + at;
        *to = (float)(accumulate ? sum + (double)*to : sum);
    }
}

/* Rows [row, row + n) of C, n ≤ ROWS; a lane of B is gathered DEPTHS at a time. */
enum { ROWS = 32, DEPTHS = 1024 };
static void product_rows(const Product *p, int row, int n) {
    for (int lane = 0; lane < p->b.lanes; lane++) {
        double sum[ROWS] = {0};
        float b[DEPTHS];
        for (int d = 0; d < p->b.depth; d += DEPTHS) {
            int depth = p->b.depth - d < DEPTHS ? p->b.depth - d : DEPTHS;
            for (int i = 0; i < depth; i++) b[i] = widened(panels_at(&p->b, lane, d + i));
            for (int r = 0; r < n; r++) {
                const bf16 *a = p->a + (size_t)(row + r) * p->a_stride + d;
                for (int i = 0; i < depth; i++) sum[r] += (double)widened(a[i]) * (double)b[i];
            }
        }
        for (int r = 0; r < n; r++)
            store(p->c, p->c_dtype, (size_t)(row + r) * p->c_stride + (size_t)lane, p->accumulate, sum[r]);
    }
}

static void product_range(void *context, size_t begin, size_t end, int thread) {
    (void)thread;
    const Product *p = context;
    for (size_t row = begin; row < end; row += ROWS) {
        int n = end - row < ROWS ? (int)(end - row) : ROWS;
        product_rows(p, (int)row, n);
        if (p->finish) p->finish(p->context, (int)row, n);
    }
}

static void reference_product(const Product *product) {
    Product copy = *product;
    if (copy.m > 0) parallel_for((size_t)copy.m, 1, product_range, &copy);
}

/* Row r of c += aᵀ·b */
static void transposed_row(float *c, const bf16 *a, size_t a_stride, const bf16 *b, size_t b_stride, int n_tokens,
                           int cols) {
    for (int col = 0; col < cols; col++) {
        double sum = (double)c[col];
        for (size_t t = 0; t < (size_t)n_tokens; t++)
            sum += (double)widened(a[t * a_stride]) * (double)widened(b[t * b_stride + (size_t)col]);
        c[col] = (float)sum;
    }
}

static void reference_product_weight(float *dw, size_t dw_stride, const bf16 *dy, size_t dy_stride, const bf16 *x,
                                     size_t x_stride, int n_tokens, int rows, int cols) {
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int r = 0; r < rows; r++)
        transposed_row(dw + (size_t)r * dw_stride, dy + r, dy_stride, x, x_stride, n_tokens, cols);
}

static void reference_multiply(float *c, size_t c_stride, bool accumulate, const bf16 *a, size_t a_stride, int m,
                               const bf16 *packed, size_t panel_stride, int lanes, int depth) {
    for (int r = 0; r < m; r++)
        for (int lane = 0; lane < lanes; lane++) {
            const bf16 *b = packed + (size_t)(lane / PANEL_LANES) * panel_stride + lane % PANEL_LANES * 2;
            double sum = 0;
            for (int d = 0; d < depth; d++)
                sum += (double)widened(a[(size_t)r * a_stride + (size_t)d]) *
                       (double)widened(b[d / 2 * 2 * PANEL_LANES + d % 2]);
            store(c, DTYPE_F32, (size_t)r * c_stride + (size_t)lane, accumulate, sum);
        }
}

static void reference_multiply_transposed(float *c, size_t c_stride, const bf16 *a, size_t a_stride, const bf16 *b,
                                          size_t b_stride, int n_tokens, int rows, int cols, float *scratch) {
    (void)scratch;
    for (int r = 0; r < rows; r++)
        transposed_row(c + (size_t)r * c_stride, a + r, a_stride, b, b_stride, n_tokens, cols);
}

void reference_bf16_products(Bf16Kernels *table) {
    static const ProductBlocks blocks = {reference_multiply, reference_multiply_transposed};
    table->pack = reference_pack;
    table->blocks = &blocks;
    table->product = reference_product;
    table->product_weight = reference_product_weight;
}
