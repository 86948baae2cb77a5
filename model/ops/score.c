/* y[t, r] = w[r]·x[t] for a few rows of weights, sums in fp64; dx[t] = Σ_r dy[t, r]·w[r] in order of r, dw[r] += Σ_t
 * dy[t, r]·x[t] in order of t: threads own rows in the first two, columns in the last. */
#include "model/core/threads.h"
#include "model/ops/linear.h"

enum { GRAIN_ROWS = 16, GRAIN_COLUMNS = 64 };

Tensor *op_score(Tape *tape, Tensor *x, Weight *weight) {
    Node *node = tape_node(tape, &op_specs[OP_score], 1, &x, weight, NULL, 0);
    if (!node || !linear_fits(tape, "score", x, weight)) return NULL;
    return tape_output(tape, node, x->rows, weight->rows, DTYPE_F32);
}

static int rows_of(const OpCall *call) {
    return batch_rows(call->batch, call->node->inputs[0]->rows);
}

static float element(const void *x, Dtype dtype, size_t i) {
    return dtype == DTYPE_BF16 ? bf16_to_f32(((const bf16 *)x)[i]) : ((const float *)x)[i];
}

static void score_rows(void *context, size_t begin, size_t end, int thread) {
    const OpCall *call = context;
    const Weight *weight = call->node->weight;
    Dtype dtype = call->node->inputs[0]->dtype;
    size_t width = (size_t)weight->cols, n = (size_t)weight->rows;
    float *y = call->out[0];
    (void)thread;
    for (size_t e = begin * n; e < end * n; e++) {
        size_t t = e / n;
        const float *w = weight->value + e % n * width;
        double sum = 0;
        for (size_t i = 0; i < width; i++) sum += (double)element(call->in[0], dtype, t * width + i) * (double)w[i];
        y[e] = (float)sum;
    }
}

void op_score_forward(OpCall *call) {
    parallel_for((size_t)rows_of(call), GRAIN_ROWS, score_rows, call);
}

static void input_rows(void *context, size_t begin, size_t end, int thread) {
    const OpCall *call = context;
    const Weight *weight = call->node->weight;
    Dtype dtype = call->node->inputs[0]->dtype;
    size_t width = (size_t)weight->cols, n = (size_t)weight->rows;
    const float *dy = call->out_grad[0];
    float *wide = call->in_grad[0];
    bf16 *narrow = call->in_grad[0];
    (void)thread;
    for (size_t t = begin; t < end; t++) {
        for (size_t i = 0; i < width; i++) {
            size_t at = t * width + i;
            float after = call->accumulate[0] ? element(call->in_grad[0], dtype, at) : 0.0f;
            for (size_t r = 0; r < n; r++) after += dy[t * n + r] * weight->value[r * width + i];
            if (dtype == DTYPE_BF16)
                narrow[at] = f32_to_bf16(after);
            else
                wide[at] = after;
        }
    }
}

void op_score_backward_inputs(OpCall *call) {
    parallel_for((size_t)rows_of(call), GRAIN_ROWS, input_rows, call);
}

static void weight_columns(void *context, size_t begin, size_t end, int thread) {
    const OpCall *call = context;
    const Weight *weight = call->node->weight;
    Dtype dtype = call->node->inputs[0]->dtype;
    size_t width = (size_t)weight->cols, n = (size_t)weight->rows, rows = (size_t)rows_of(call);
    const float *dy = call->out_grad[0];
    (void)thread;
    for (size_t t = 0; t < rows; t++)
        for (size_t r = 0; r < n; r++)
            for (size_t i = begin; i < end; i++)
                weight->grad[r * width + i] += dy[t * n + r] * element(call->in[0], dtype, t * width + i);
}

void op_score_backward_weights(OpCall *call) {
    parallel_for((size_t)call->node->weight->cols, GRAIN_COLUMNS, weight_columns, call);
}

double op_score_flops(const Node *node, const TapeBatch *batch) {
    return linear_flops(node->weight, batch_rows(batch, node->inputs[0]->rows));
}
