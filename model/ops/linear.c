/* y = x·Wᵀ, W[N, K] as Hugging Face stores it; dx = dy·W, dW += dyᵀ·x. In bf16 the operands are bf16 (the weight
 * through its packings) and sums are fp32; dW is fp32. In fp32, a weight that is kept in fewer bits is read into the
 * scratch as it is used, some rows at a time. */
#include "model/core/threads.h"
#include "model/ops/linear.h"

bool linear_fits(Tape *tape, const char *op, const Tensor *x, const Weight *weight) {
    if (x->width == weight->cols) return true;
    tape_fail(tape, "%s: %s is %d×%d and its input has width %d", op, weight->views[0].name, weight->rows, weight->cols,
              x->width);
    return false;
}

Tensor *op_linear(Tape *tape, Tensor *x, Weight *weight) {
    Node *node = tape_node(tape, &op_specs[OP_linear], 1, &x, weight, NULL, 0);
    if (!node || !linear_fits(tape, "linear", x, weight)) return NULL;
    return linear_output(tape, node, weight);
}

Tensor *linear_output(Tape *tape, Node *node, const Weight *weight) {
    const Tensor *x = node->inputs[0];
    Tensor *y = tape_output(tape, node, x->rows, weight->rows, x->dtype);
    if (!weight->adapter) return y;
    if (weight->adapter->dropout > 0 && tape_is_training(tape)) {
        if (x->rows != ROWS_TOKENS) return tape_fail(tape, "%s: dropout is for rows of tokens", node->spec->name);
        tape_require_segment_ids(tape);
    }
    Tensor *u = tape_output(tape, node, x->rows, adapter_width(weight), x->dtype);
    Tensor *z = has_magnitudes(weight) ? tape_output(tape, node, x->rows, weight->rows, x->dtype) : NULL;
    if (u) u->needs_grad = false;
    if (z) z->needs_grad = false;
    return y;
}

/* ---- fp32 from fewer bits ---- */

/* Rows of W that are read at a time: 4 MiB of them, which products with hundreds of rows of x pay for. */
static int widened_rows(const Weight *weight) {
    enum { FLOATS = 1 << 20 };
    int rows = FLOATS / weight->cols;
    return rows < 1 ? 1 : rows < weight->rows ? rows : weight->rows;
}

size_t linear_scratch(const Weight *weight, Dtype dtype) {
    return weight->narrow && dtype == DTYPE_F32 ? (size_t)widened_rows(weight) * (size_t)weight->cols : 0;
}

typedef struct {
    const Weight *weight;
    int first;
    float *to;
} Widened;

static void widen_range(void *context, size_t begin, size_t end, int thread) {
    const Widened *w = context;
    size_t cols = (size_t)w->weight->cols;
    (void)thread;
    for (size_t r = begin; r < end; r++)
        row_major_read(&w->weight->stored, w->first + (int)r, 0, cols, w->to + r * cols);
}

/* Rows from `first` on; returns how many. */
static int widen(const Weight *weight, int first, float *scratch) {
    Widened widened = {weight, first, scratch};
    int step = widened_rows(weight), n = weight->rows - first < step ? weight->rows - first : step;
    parallel_for((size_t)n, 1, widen_range, &widened);
    return n;
}

static void wide_product(float *y, const float *x, const Weight *weight, int rows, float *scratch) {
    enum { FEW_ROWS = 8 }; /* which do not pay for widening all of W in memory */
    size_t k = (size_t)weight->cols;
    if (rows <= FEW_ROWS) {
        kernels()->row_major_product(y, (size_t)weight->rows, x, k, rows, &weight->stored);
        return;
    }
    for (int first = 0, n; first < weight->rows; first += n) {
        n = widen(weight, first, scratch);
        kernels()->gemm(false, true, rows, n, weight->cols, 1.0f, x, k, scratch, k, 0.0f, y + first,
                        (size_t)weight->rows);
    }
}

static void wide_product_inputs(float *dx, bool accumulate, const float *dy, const Weight *weight, int rows,
                                float *scratch) {
    size_t k = (size_t)weight->cols;
    for (int first = 0, n; first < weight->rows; first += n) {
        n = widen(weight, first, scratch);
        kernels()->gemm(false, false, rows, weight->cols, n, 1.0f, dy + first, (size_t)weight->rows, scratch, k,
                        accumulate || first > 0 ? 1.0f : 0.0f, dx, k);
    }
}

/* ---- the three products ---- */

void linear_product(void *y, Dtype y_dtype, const void *x, const Weight *weight, Dtype dtype, int rows, float *scratch,
                    LinearFinish finish, void *context) {
    size_t n = (size_t)weight->rows, k = (size_t)weight->cols;
    if (dtype == DTYPE_BF16) {
        kernels()->bf16.product(&(Product){.m = rows,
                                           .a = x,
                                           .a_stride = k,
                                           .b = weight_forward(weight),
                                           .c = y,
                                           .c_stride = n,
                                           .c_dtype = y_dtype,
                                           .finish = finish,
                                           .context = context});
        return;
    }
    if (weight->narrow)
        wide_product(y, x, weight, rows, scratch);
    else
        kernels()->gemm(false, true, rows, weight->rows, weight->cols, 1.0f, x, k, weight->value, k, 0.0f, y, n);
    if (finish) finish(context, 0, rows);
}

void linear_product_inputs(void *dx, bool accumulate, const void *dy, const Weight *weight, Dtype dtype, int rows,
                           float *scratch) {
    size_t n = (size_t)weight->rows, k = (size_t)weight->cols;
    if (dtype == DTYPE_BF16)
        kernels()->bf16.product(&(Product){.m = rows,
                                           .a = dy,
                                           .a_stride = n,
                                           .b = weight_backward(weight),
                                           .c = dx,
                                           .c_stride = k,
                                           .c_dtype = DTYPE_BF16,
                                           .accumulate = accumulate});
    else if (weight->narrow)
        wide_product_inputs(dx, accumulate, dy, weight, rows, scratch);
    else
        kernels()->gemm(false, false, rows, weight->cols, weight->rows, 1.0f, dy, n, weight->value, k,
                        accumulate ? 1.0f : 0.0f, dx, k);
}

void linear_product_weights(const Weight *weight, const void *dy, const void *x, Dtype dtype, int rows) {
    size_t n = (size_t)weight->rows, k = (size_t)weight->cols;
    if (dtype == DTYPE_BF16)
        kernels()->bf16.product_weight(weight->grad, k, dy, n, x, k, rows, weight->rows, weight->cols);
    else
        kernels()->gemm(true, false, weight->rows, weight->cols, rows, 1.0f, dy, n, x, k, 1.0f, weight->grad, k);
}

static int rows_of(const OpCall *call) {
    return batch_rows(call->batch, call->node->inputs[0]->rows);
}

void linear_forward(OpCall *call, int rows) {
    Weight *w = call->node->weight;
    Dtype dtype = call->node->inputs[0]->dtype;
    bool magnitudes = has_magnitudes(w);
    void *sum = magnitudes ? call->out[2] : call->out[0];
    linear_product(sum, dtype, call->in[0], w, dtype, rows, call->scratch, NULL, NULL);
    if (!w->adapter) return;
    adapter_forward(call, sum, rows);
    if (!magnitudes) return;
    dora_refresh(w, call->scratch);
    dora_forward(call->out[0], sum, w, dtype, rows);
}

void op_linear_forward(OpCall *call) {
    linear_forward(call, rows_of(call));
}

void linear_backward(OpCall *call, const void *dz, bool inputs, bool weights, float *scratch) {
    Weight *w = call->node->weight;
    Dtype dtype = call->node->inputs[0]->dtype;
    int rows = rows_of(call);
    void *dx = inputs ? call->in_grad[0] : NULL;
    if (has_magnitudes(w)) { /* dz is that of y, and may be the caller's array */
        dora_backward(scratch, dz, call->out[2], w, weights, dtype, rows);
        dz = scratch;
        scratch += dora_scratch(w, dtype, rows);
    }
    if (weights && w->trainable) linear_product_weights(w, dz, call->in[0], dtype, rows);
    if (dx) linear_product_inputs(dx, call->accumulate[0], dz, w, dtype, rows, scratch);
    if (w->adapter) adapter_backward(call, dx, dz, weights, rows, scratch);
}

/* With an adapter both parts share its inner gradient. */
void op_linear_backward_inputs(OpCall *call) {
    bool taken = call->node->weight->adapter && call->node->backward_weights;
    if (!taken) linear_backward(call, call->out_grad[0], true, false, call->scratch);
}

void op_linear_backward_weights(OpCall *call) {
    bool inputs = call->node->weight->adapter && call->node->backward_inputs;
    linear_backward(call, call->out_grad[0], inputs, true, call->scratch);
}

size_t op_linear_scratch(const Node *node, int capacity) {
    return adapter_scratch(node, capacity) + linear_scratch(node->weight, node->inputs[0]->dtype);
}

double linear_flops(const Weight *weight, int rows) {
    return 2.0 * rows * (double)weight_elements(weight) + adapter_flops(weight, rows);
}

double op_linear_flops(const Node *node, const TapeBatch *batch) {
    return linear_flops(node->weight, batch_rows(batch, node->inputs[0]->rows));
}
