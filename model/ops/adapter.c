/* LoRA (Hu et al. 2022, equation 3) on the views of a weight. In bf16 the scale is multiplied into u and du, which are
 * rows of rank numbers, so that the products need none. */
#include "model/ops/adapter.h"

#include "model/kernels/kernels.h"

int adapter_width(const Weight *weight) {
    return weight->adapter ? weight->adapter->n * weight->adapter->rank : 0;
}

/* Floats that hold so many elements, in whole cache lines. */
static size_t floats_for(size_t elements, Dtype dtype) {
    return arena_round_up(elements * dtype_size(dtype)) / sizeof(float);
}

size_t dora_scratch(const Weight *weight, Dtype dtype, int rows) {
    return floats_for((size_t)rows * (size_t)weight->rows, dtype);
}

/* du and its like in bf16; x' or a part of dx; the gradient of z. Forward's needs are less, but for the norms. */
size_t adapter_scratch(const Node *node, int rows) {
    const Weight *weight = node->weight;
    Dtype dtype = node->inputs[0]->dtype;
    if (!weight->adapter) return 0;
    size_t n = (size_t)rows, floats = 2 * n * (size_t)adapter_width(weight);
    if (weight->adapter->dropout > 0) floats += floats_for(n * (size_t)weight->cols, dtype);
    if (!has_magnitudes(weight)) return floats;
    floats += dora_scratch(weight, dtype, rows);
    return floats > dora_refresh_scratch(weight) ? floats : dora_refresh_scratch(weight);
}

static void scale_narrow(bf16 *to, const bf16 *from, float scale, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] = f32_to_bf16(scale * bf16_to_f32(from[i]));
}

/* ---- bf16 ---- */

/* c (+)= a·(the weight)ᵀ, or a·(the weight) where backward */
static void product(bf16 *c, size_t c_stride, bool add, const bf16 *a, size_t a_stride, Panels b, int rows) {
    kernels()->bf16.product(&(Product){.m = rows,
                                       .a = a,
                                       .a_stride = a_stride,
                                       .b = b,
                                       .c = c,
                                       .c_stride = c_stride,
                                       .c_dtype = DTYPE_BF16,
                                       .accumulate = add});
}

static void forward_narrow(bf16 *y, bf16 *u, const bf16 *x, const Weight *weight, int rows, bf16 *scaled) {
    const Adapter *adapter = weight->adapter;
    size_t width = (size_t)adapter_width(weight), rank = (size_t)adapter->rank;
    product(u, width, false, x, (size_t)weight->cols, weight_forward(&adapter->a), rows);
    scale_narrow(scaled, u, adapter->scale, (size_t)rows * width);
    for (int v = 0; v < adapter->n; v++)
        product(y + adapter->views[v].first_row, (size_t)weight->rows, true, scaled + (size_t)v * rank, width,
                weight_forward(&adapter->views[v].b), rows);
}

/* dA += duᵀ·x, dx (+)= du·A, of the scaled du. */
static void inner_narrow(bf16 *dx, bool add, const bf16 *du, const bf16 *x, const Weight *weight, bool weights,
                         int rows) {
    const Adapter *adapter = weight->adapter;
    size_t width = (size_t)adapter_width(weight), cols = (size_t)weight->cols;
    if (weights)
        kernels()->bf16.product_weight(adapter->a.grad, cols, du, width, x, cols, rows, adapter->a.rows, weight->cols);
    if (dx) product(dx, cols, add, du, width, weight_backward(&adapter->a), rows);
}

static void backward_narrow(bf16 *dx, bool add, const bf16 *dz, const bf16 *x, const bf16 *u, const Weight *weight,
                            bool weights, int rows, bf16 *scratch) {
    const Adapter *adapter = weight->adapter;
    size_t width = (size_t)adapter_width(weight), rank = (size_t)adapter->rank, n = (size_t)rows * width;
    size_t stride = (size_t)weight->rows;
    bf16 *du = scratch, *scaled = scratch + n;
    for (int v = 0; v < adapter->n; v++)
        product(du + (size_t)v * rank, width, false, dz + adapter->views[v].first_row, stride,
                weight_backward(&adapter->views[v].b), rows);
    scale_narrow(du, du, adapter->scale, n);
    if (weights) scale_narrow(scaled, u, adapter->scale, n);
    for (int v = 0; weights && v < adapter->n; v++)
        kernels()->bf16.product_weight(adapter->views[v].b.grad, rank, dz + adapter->views[v].first_row, stride,
                                       scaled + (size_t)v * rank, width, rows, adapter->views[v].b.rows, adapter->rank);
    inner_narrow(dx, add, du, x, weight, weights, rows);
}

/* ---- fp32 ---- */

static void forward_wide(float *y, float *u, const float *x, const Weight *weight, int rows) {
    const Adapter *adapter = weight->adapter;
    size_t width = (size_t)adapter_width(weight), rank = (size_t)adapter->rank, cols = (size_t)weight->cols;
    kernels()->gemm(false, true, rows, adapter->a.rows, weight->cols, 1, x, cols, adapter->a.value, cols, 0, u, width);
    for (int v = 0; v < adapter->n; v++)
        kernels()->gemm(false, true, rows, adapter->views[v].b.rows, adapter->rank, adapter->scale,
                        u + (size_t)v * rank, width, adapter->views[v].b.value, rank, 1,
                        y + adapter->views[v].first_row, (size_t)weight->rows);
}

static void inner_wide(float *dx, bool add, const float *du, const float *x, const Weight *weight, bool weights,
                       int rows) {
    const Adapter *adapter = weight->adapter;
    size_t width = (size_t)adapter_width(weight), cols = (size_t)weight->cols;
    if (weights)
        kernels()->gemm(true, false, adapter->a.rows, weight->cols, rows, 1, du, width, x, cols, 1, adapter->a.grad,
                        cols);
    if (dx)
        kernels()->gemm(false, false, rows, weight->cols, adapter->a.rows, 1, du, width, adapter->a.value, cols,
                        add ? 1 : 0, dx, cols);
}

static void backward_wide(float *dx, bool add, const float *dz, const float *x, const float *u, const Weight *weight,
                          bool weights, int rows, float *du) {
    const Adapter *adapter = weight->adapter;
    size_t width = (size_t)adapter_width(weight), rank = (size_t)adapter->rank, stride = (size_t)weight->rows;
    for (int v = 0; v < adapter->n; v++) {
        const Weight *b = &adapter->views[v].b;
        const float *dz_view = dz + adapter->views[v].first_row;
        kernels()->gemm(false, false, rows, adapter->rank, b->rows, adapter->scale, dz_view, stride, b->value, rank, 0,
                        du + (size_t)v * rank, width);
        if (weights)
            kernels()->gemm(true, false, b->rows, adapter->rank, rows, adapter->scale, dz_view, stride,
                            u + (size_t)v * rank, width, 1, b->grad, rank);
    }
    inner_wide(dx, add, du, x, weight, weights, rows);
}

/* ---- either ---- */

static void forward_either(void *y, void *u, const void *x, const Weight *weight, Dtype dtype, int rows,
                           float *scratch) {
    if (dtype == DTYPE_BF16)
        forward_narrow(y, u, x, weight, rows, (bf16 *)(void *)scratch);
    else
        forward_wide(y, u, x, weight, rows);
}

static void backward_either(void *dx, bool add, const void *dz, const void *x, const void *u, const Weight *weight,
                            bool weights, Dtype dtype, int rows, float *scratch) {
    if (dtype == DTYPE_BF16)
        backward_narrow(dx, add, dz, x, u, weight, weights, rows, (bf16 *)(void *)scratch);
    else
        backward_wide(dx, add, dz, x, u, weight, weights, rows, scratch);
}

/* Room for x' behind what the products use. */
static float *dropped(const OpCall *call, float *scratch, int rows) {
    return scratch + 2 * (size_t)rows * (size_t)adapter_width(call->node->weight);
}

void adapter_forward(OpCall *call, void *y, int rows) {
    const void *x = call->in[0];
    float *x_dropped = dropped(call, call->scratch, rows);
    if (dropout_applies(call)) {
        dropout_rows(call, x_dropped, x, false, rows);
        x = x_dropped;
    }
    forward_either(y, call->out[1], x, call->node->weight, call->node->inputs[0]->dtype, rows, call->scratch);
}

void adapter_backward(OpCall *call, void *dx, const void *dz, bool weights, int rows, float *scratch) {
    const Weight *weight = call->node->weight;
    Dtype dtype = call->node->inputs[0]->dtype;
    float *x_dropped = dropped(call, scratch, rows);
    if (!dropout_applies(call)) {
        backward_either(dx, true, dz, call->in[0], call->out[1], weight, weights, dtype, rows, scratch);
        return;
    }
    if (weights) dropout_rows(call, x_dropped, call->in[0], false, rows);
    /* du·A goes where x' was, when dA has been made of it */
    backward_either(dx ? x_dropped : NULL, false, dz, x_dropped, call->out[1], weight, weights, dtype, rows, scratch);
    if (dx) dropout_rows(call, dx, x_dropped, true, rows);
}

/* ---- in two steps ---- */

size_t adapter_inner_floats(const Weight *weight, Dtype dtype, int rows) {
    return floats_for((size_t)rows * (size_t)adapter_width(weight), dtype);
}

size_t adapter_dropped_floats(const Weight *weight, Dtype dtype, int rows) {
    return weight->adapter->dropout > 0 ? floats_for((size_t)rows * (size_t)weight->cols, dtype) : 0;
}

/* u = scale·x·Aᵀ */
static void inner(void *u, const void *x, const Weight *weight, Dtype dtype, int rows) {
    const Adapter *adapter = weight->adapter;
    size_t width = (size_t)adapter_width(weight), cols = (size_t)weight->cols;
    if (dtype == DTYPE_BF16) {
        product(u, width, false, x, cols, weight_forward(&adapter->a), rows);
        scale_narrow(u, u, adapter->scale, (size_t)rows * width);
    } else {
        kernels()->gemm(false, true, rows, adapter->a.rows, weight->cols, adapter->scale, x, cols, adapter->a.value,
                        cols, 0, u, width);
    }
}

void adapter_inner(OpCall *call, void *u, int rows, float *dropped_x) {
    const void *x = call->in[0];
    if (dropout_applies(call)) {
        dropout_rows(call, dropped_x, x, false, rows);
        x = dropped_x;
    }
    inner(u, x, call->node->weight, call->node->inputs[0]->dtype, rows);
}

static void inner_backward(void *dx, bool add, void *du, const void *x, const OpCall *call, bool weights, int rows) {
    if (call->node->inputs[0]->dtype == DTYPE_BF16)
        inner_narrow(dx, add, du, x, call->node->weight, weights, rows);
    else
        inner_wide(dx, add, du, x, call->node->weight, weights, rows);
}

void adapter_inner_backward(OpCall *call, void *dx, void *du, bool weights, int rows, float *dropped_x) {
    const Weight *weight = call->node->weight;
    size_t n = (size_t)rows * (size_t)adapter_width(weight);
    float scale = weight->adapter->scale, *wide = du;
    if (call->node->inputs[0]->dtype == DTYPE_BF16)
        scale_narrow(du, du, scale, n);
    else
        for (size_t i = 0; i < n; i++) wide[i] *= scale;
    if (!dropout_applies(call)) {
        inner_backward(dx, true, du, call->in[0], call, weights, rows);
        return;
    }
    inner_backward(NULL, false, du, dropped_x, call, weights, rows);
    if (!dx) return;
    inner_backward(dropped_x, false, du, NULL, call, false, rows); /* dA has been made of x' */
    dropout_rows(call, dx, dropped_x, true, rows);
}

size_t adapter_logits_scratch(const Weight *weight, Dtype dtype, int rows) {
    if (!weight->adapter) return 0;
    size_t floats = adapter_inner_floats(weight, dtype, rows);
    return has_magnitudes(weight) && floats < dora_refresh_scratch(weight) ? dora_refresh_scratch(weight) : floats;
}

void adapter_logits(OpCall *call, float *y, int rows, float *scratch) {
    Weight *weight = call->node->weight;
    const Adapter *adapter = weight->adapter;
    Dtype dtype = call->node->inputs[0]->dtype;
    const size_t rank = (size_t)adapter->rank, stride = (size_t)weight->rows;
    inner(scratch, call->in[0], weight, dtype, rows);
    if (dtype == DTYPE_BF16)
        kernels()->bf16.product(&(Product){.m = rows,
                                           .a = (const bf16 *)(const void *)scratch,
                                           .a_stride = rank,
                                           .b = weight_forward(&adapter->views[0].b),
                                           .c = y,
                                           .c_stride = stride,
                                           .c_dtype = DTYPE_F32,
                                           .accumulate = true});
    else
        kernels()->gemm(false, true, rows, weight->rows, adapter->rank, 1, scratch, rank, adapter->views[0].b.value,
                        rank, 1, y, stride);
    if (!has_magnitudes(weight)) return;
    dora_refresh(weight, scratch);
    dora_forward(y, y, weight, DTYPE_F32, rows);
}

double adapter_flops(const Weight *weight, int rows) {
    const Adapter *adapter = weight->adapter;
    if (!adapter) return 0;
    double elements = adapter->of_tokens ? 0 : (double)weight_elements(&adapter->a); /* a token's column is looked up */
    for (int v = 0; v < adapter->n; v++) elements += (double)weight_elements(&adapter->views[v].b);
    return 2.0 * rows * elements;
}
