/* Products of bf16 operands with fp64 sums, from the definition; and the packing that fast products read (bf16.h). */
#include "model/core/threads.h"
#include "model/kernels/reference.h"

/* B(lane, d) of a packing or of the rows it would be made from. */
static float row_major_at(const RowMajor *rows, int row, int column) {
    int v = 0;
    while (row >= rows->first_row[v + 1]) v++;
    size_t at = (size_t)(row - rows->first_row[v]) * (size_t)rows->cols + (size_t)column;
    const char *base = (const char *)rows->view[v] + at * dtype_size(rows->dtype);
    float value = 0;
    (void)dtype_read_f32(&value, base, rows->dtype, 1);
    return value;
}

static bf16 panels_at(const Panels *b, int lane, int d) {
    return f32_to_bf16(b->transposed ? row_major_at(b->rows, d, lane) : row_major_at(b->rows, lane, d));
}

static void reference_pack(bf16 *to, size_t panel_stride, const Panels *b, int first_lane, int end_lane,
                           int first_depth, int end_depth) {
    int lanes = end_lane == b->lanes ? (end_lane + PANEL_LANES - 1) / PANEL_LANES * PANEL_LANES : end_lane;
    int depth = end_depth == b->depth ? (end_depth + PANEL_DEPTH - 1) / PANEL_DEPTH * PANEL_DEPTH : end_depth;
    for (int lane = first_lane; lane < lanes; lane++)
        for (int d = first_depth; d < depth; d++) {
            size_t panel = (size_t)(lane - first_lane) / PANEL_LANES, column = (size_t)lane % PANEL_LANES;
            size_t pair = (size_t)(d - first_depth) / 2;
            bf16 *element = to + panel * panel_stride + (pair * PANEL_LANES + column) * 2 + (size_t)(d & 1);
            *element = lane < b->lanes && d < b->depth ? panels_at(b, lane, d) : 0;
        }
}

static float packed_at(const bf16 *packed, size_t panel_stride, int lane, int d) {
    size_t panel = (size_t)lane / PANEL_LANES, column = (size_t)lane % PANEL_LANES, pair = (size_t)d / 2;
    return bf16_to_f32(packed[panel * panel_stride + (pair * PANEL_LANES + column) * 2 + (size_t)(d & 1)]);
}

static void reference_product(const Product *p) {
    size_t panel_stride = panels_elements(PANEL_LANES, p->b.depth);
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < p->m; t++) {
        const bf16 *a = p->a + (size_t)t * p->a_stride;
        for (int lane = 0; lane < p->b.lanes; lane++) {
            double sum = 0;
            for (int d = 0; d < p->b.depth; d++)
                sum += (double)bf16_to_f32(a[d]) * (double)(p->b.packed ? packed_at(p->b.packed, panel_stride, lane, d)
                                                                        : bf16_to_f32(panels_at(&p->b, lane, d)));
            size_t at = (size_t)t * p->c_stride + (size_t)lane;
            if (p->c_dtype == DTYPE_F32) {
                float *c = p->c;
                c[at] = (float)(p->accumulate ? (double)c[at] + sum : sum);
            } else {
                bf16 *c = p->c;
                c[at] = f32_to_bf16((float)(p->accumulate ? (double)bf16_to_f32(c[at]) + sum : sum));
            }
        }
        if (p->finish) p->finish(p->context, t, 1);
    }
}

static void reference_product_weight(float *dw, size_t dw_stride, const bf16 *dy, size_t dy_stride, const bf16 *x,
                                     size_t x_stride, int n_tokens, int rows, int cols) {
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            double sum = 0;
            for (int t = 0; t < n_tokens; t++)
                sum += (double)bf16_to_f32(dy[(size_t)t * dy_stride + (size_t)r]) *
                       (double)bf16_to_f32(x[(size_t)t * x_stride + (size_t)c]);
            float *to = dw + (size_t)r * dw_stride + (size_t)c;
            *to = (float)((double)*to + sum);
        }
}

static void reference_multiply(float *c, size_t c_stride, bool accumulate, const bf16 *a, size_t a_stride, int m,
                               const bf16 *packed, size_t panel_stride, int lanes, int depth) {
    for (int t = 0; t < m; t++)
        for (int lane = 0; lane < lanes; lane++) {
            double sum = 0;
            for (int d = 0; d < depth; d++)
                sum += (double)bf16_to_f32(a[(size_t)t * a_stride + (size_t)d]) *
                       (double)packed_at(packed, panel_stride, lane, d);
            float *to = c + (size_t)t * c_stride + (size_t)lane;
            *to = (float)(accumulate ? (double)*to + sum : sum);
        }
}

static void reference_multiply_transposed(float *c, size_t c_stride, const bf16 *a, size_t a_stride, const bf16 *b,
                                          size_t b_stride, int n_tokens, int rows, int cols, float *scratch) {
    (void)scratch;
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < cols; k++) {
            double sum = 0;
            for (int t = 0; t < n_tokens; t++)
                sum += (double)bf16_to_f32(a[(size_t)t * a_stride + (size_t)r]) *
                       (double)bf16_to_f32(b[(size_t)t * b_stride + (size_t)k]);
            float *to = c + (size_t)r * c_stride + (size_t)k;
            *to = (float)((double)*to + sum);
        }
}

static const ProductBlocks reference_blocks = {reference_multiply, reference_multiply_transposed};

void reference_bf16_products(Bf16Kernels *table) {
    table->pack = reference_pack;
    table->product = reference_product;
    table->product_weight = reference_product_weight;
    table->blocks = &reference_blocks;
}
