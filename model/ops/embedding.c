/* The residual stream's beginning, fp32 whatever the tape's dtype: y[t] = weight[tokens[t]]; dweight[tokens[t]] +=
 * dy[t], in order of t for each row: threads own columns. */
#include <string.h>

#include "model/core/threads.h"
#include "model/ops/ops.h"
#include "model/ops/registry.h"

Tensor *op_embedding(Tape *tape, Weight *weight) {
    Node *node = tape_node(tape, &op_specs[OP_embedding], 0, NULL, weight, NULL, 0);
    if (!node) return NULL;
    tape_limit_tokens(tape, weight->rows);
    return tape_output(tape, node, ROWS_TOKENS, weight->cols, DTYPE_F32);
}

void op_embedding_forward(OpCall *call) {
    const Weight *weight = call->node->weight;
    size_t width = (size_t)weight->cols;
    float *y = call->out[0];
    for (int t = 0; t < call->batch->n_tokens; t++, y += width) {
        int32_t row = call->batch->tokens[t];
        if (weight->value)
            memcpy(y, weight->value + (size_t)row * width, width * sizeof *y);
        else
            row_major_read(&weight->stored, row, 0, width, y);
    }
}

static void scatter_columns(void *context, size_t begin, size_t end, int thread) {
    const OpCall *call = context;
    Weight *weight = call->node->weight;
    size_t width = (size_t)weight->cols;
    (void)thread;
    for (int t = 0; t < call->batch->n_tokens; t++) {
        const float *dy = (const float *)call->out_grad[0] + (size_t)t * width;
        const int32_t row = call->batch->tokens[t];
        float *dw = weight->row_slot ? weight->row_grad + (size_t)(weight->row_slot[row] - 1) * width
                                     : weight->grad + (size_t)row * width;
        for (size_t j = begin; j < end; j++) dw[j] += dy[j];
    }
}

void op_embedding_backward_weights(OpCall *call) {
    enum { GRAIN = 16 }; /* a cache line */
    Weight *weight = call->node->weight;
    for (int t = 0; weight->row_slot && t < call->batch->n_tokens; t++) {
        int32_t *slot = &weight->row_slot[call->batch->tokens[t]];
        if (*slot == 0) *slot = ++weight->n_row_grads;
    }
    parallel_for((size_t)weight->cols, GRAIN, scatter_columns, call);
}
