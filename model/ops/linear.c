/* y = x·Wᵀ, W[N, K] as Hugging Face stores it; dx = dy·W, dW += dyᵀ·x. */
#include "model/kernels/kernels.h"
#include "model/ops/ops.h"
#include "model/ops/registry.h"

Tensor *op_linear(Tape *tape, Tensor *x, Weight *weight) {
    Node *node = tape_node(tape, &op_specs[OP_linear], 1, &x, weight, NULL, 0);
    if (!node) return NULL;
    if (x->width != weight->cols)
        return tape_fail(tape, "linear: %s is %d×%d and its input has width %d", weight->views[0].name, weight->rows,
                         weight->cols, x->width);
    return tape_output(tape, node, x->rows, weight->rows, DTYPE_F32);
}

void op_linear_forward(OpCall *call) {
    const Weight *w = call->node->weight;
    int rows = batch_rows(call->batch, call->node->inputs[0]->rows);
    size_t n = (size_t)w->rows, k = (size_t)w->cols;
    kernels()->gemm(false, true, rows, w->rows, w->cols, 1.0f, call->in[0], k, w->value, k, 0.0f, call->out[0], n);
}

void op_linear_backward_inputs(OpCall *call) {
    const Weight *w = call->node->weight;
    int rows = batch_rows(call->batch, call->node->inputs[0]->rows);
    size_t n = (size_t)w->rows, k = (size_t)w->cols;
    kernels()->gemm(false, false, rows, w->cols, w->rows, 1.0f, call->out_grad[0], n, w->value, k,
                    call->accumulate[0] ? 1.0f : 0.0f, call->in_grad[0], k);
}

void op_linear_backward_weights(OpCall *call) {
    const Weight *w = call->node->weight;
    int rows = batch_rows(call->batch, call->node->inputs[0]->rows);
    size_t n = (size_t)w->rows, k = (size_t)w->cols;
    kernels()->gemm(true, false, w->rows, w->cols, rows, 1.0f, call->out_grad[0], n, call->in[0], k, 1.0f, w->grad, k);
}

double op_linear_flops(const Node *node, const TapeBatch *batch) {
    return 2.0 * batch_rows(batch, node->inputs[0]->rows) * (double)weight_elements(node->weight);
}
