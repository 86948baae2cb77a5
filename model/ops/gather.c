/* y[i] = x[index[i]], whole rows; dx[index[i]] += dy[i], in order of i. An index outside x's live rows gives NaN, which
 * the loss then shows. */
#include <math.h>
#include <string.h>

#include "model/ops/elementwise.h"

Tensor *op_gather(Tape *tape, Tensor *x, Tensor *index) {
    Node *node = tape_node(tape, &op_specs[OP_gather], 2, (Tensor *[]){x, index}, NULL, NULL, 0);
    if (!node) return NULL;
    if (index->dtype != DTYPE_I32 || index->width != 1)
        return tape_fail(tape, "gather: the index must be int32 of width 1");
    return tape_output(tape, node, index->rows, x->width, DTYPE_F32);
}

void op_gather_forward(OpCall *call) {
    const Tensor *x_tensor = call->node->inputs[0];
    const float *x = call->in[0];
    const int32_t *index = call->in[1];
    float *y = call->out[0];
    int rows = batch_rows(call->batch, x_tensor->rows), n = batch_rows(call->batch, call->node->inputs[1]->rows);
    size_t width = (size_t)x_tensor->width;
    for (int i = 0; i < n; i++) {
        if (index[i] >= 0 && index[i] < rows)
            memcpy(y + (size_t)i * width, x + (size_t)index[i] * width, width * sizeof *y);
        else
            for (size_t j = 0; j < width; j++) y[(size_t)i * width + j] = NAN;
    }
}

void op_gather_backward_inputs(OpCall *call) {
    const Tensor *x_tensor = call->node->inputs[0];
    const float *dy = call->out_grad[0];
    const int32_t *index = call->in[1];
    float *dx = call->in_grad[0];
    int rows = batch_rows(call->batch, x_tensor->rows), n = batch_rows(call->batch, call->node->inputs[1]->rows);
    size_t width = (size_t)x_tensor->width;
    if (!call->accumulate[0]) memset(dx, 0, (size_t)rows * width * sizeof *dx);
    for (int i = 0; i < n; i++)
        for (size_t j = 0; j < width && index[i] >= 0 && index[i] < rows; j++)
            dx[(size_t)index[i] * width + j] += dy[(size_t)i * width + j];
}
