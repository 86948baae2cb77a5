/* y = mean of x over its live rows, in fp64 (0 where there are none); dx[r] = dy / rows. */
#include "model/ops/reduce.h"

Tensor *op_mean(Tape *tape, Tensor *x) {
    Node *node = tape_node(tape, &op_specs[OP_mean], 1, &x, NULL, NULL, 0);
    if (!node) return NULL;
    return tape_output(tape, node, ROWS_ONE, x->width, DTYPE_F32);
}

void op_mean_forward(OpCall *call) {
    float *y = call->out[0];
    int width = call->node->inputs[0]->width;
    int rows = batch_rows(call->batch, call->node->inputs[0]->rows);
    reduce_rows(y, call->in[0], 0, rows, width, mean_factor(rows));
}

void op_mean_backward_inputs(OpCall *call) {
    const float *dy = call->out_grad[0];
    int width = call->node->inputs[0]->width;
    int rows = batch_rows(call->batch, call->node->inputs[0]->rows);
    spread_row(call->in_grad[0], call->accumulate[0], dy, 0, rows, width, mean_factor(rows));
}
