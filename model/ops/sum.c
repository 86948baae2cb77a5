/* y = sum of x over its live rows, in fp64; dx[r] = dy. */
#include "model/ops/elementwise.h"

Tensor *op_sum(Tape *tape, Tensor *x) {
    Node *node = tape_node(tape, &op_specs[OP_sum], 1, &x, NULL, NULL, 0);
    if (!node) return NULL;
    return tape_output(tape, node, ROWS_ONE, x->width, DTYPE_F32);
}

void op_sum_forward(OpCall *call) {
    const float *x = call->in[0];
    float *y = call->out[0];
    int width = call->node->inputs[0]->width;
    {
        int s = 0, begin = 0, end = batch_rows(call->batch, call->node->inputs[0]->rows);
        for (int j = 0; j < width; j++) {
            double sum = 0;
            for (int r = begin; r < end; r++) sum += (double)x[r * width + j];
            y[s * width + j] = (float)(sum);
        }
    }
}

void op_sum_backward_inputs(OpCall *call) {
    const float *dy = call->out_grad[0];
    int width = call->node->inputs[0]->width;
    {
        int s = 0, begin = 0, end = batch_rows(call->batch, call->node->inputs[0]->rows);
        for (int r = begin; r < end; r++)
            for (int j = 0; j < width; j++)
                put_gradient(call->in_grad[0], call->accumulate[0], (size_t)(r * width + j), dy[s * width + j]);
    }
}
