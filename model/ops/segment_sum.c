/* y[s] = sum of x over the tokens of segment s, in fp64; dx[t] = dy[segment of t]. */
#include "model/ops/elementwise.h"

Tensor *op_segment_sum(Tape *tape, Tensor *x) {
    Node *node = tape_node(tape, &op_specs[OP_segment_sum], 1, &x, NULL, NULL, 0);
    if (!node) return NULL;
    if (x->rows != ROWS_TOKENS) return tape_fail(tape, "segment_sum: its input has no row for each token");
    return tape_output(tape, node, ROWS_SEGMENTS, x->width, DTYPE_F32);
}

void op_segment_sum_forward(OpCall *call) {
    const float *x = call->in[0];
    float *y = call->out[0];
    int width = call->node->inputs[0]->width;
    for (int s = 0; s < call->batch->n_segments; s++) {
        int begin = call->batch->segment_start[s], end = call->batch->segment_start[s + 1];
        for (int j = 0; j < width; j++) {
            double sum = 0;
            for (int r = begin; r < end; r++) sum += (double)x[r * width + j];
            y[s * width + j] = (float)(sum);
        }
    }
}

void op_segment_sum_backward_inputs(OpCall *call) {
    const float *dy = call->out_grad[0];
    int width = call->node->inputs[0]->width;
    for (int s = 0; s < call->batch->n_segments; s++) {
        int begin = call->batch->segment_start[s], end = call->batch->segment_start[s + 1];
        for (int r = begin; r < end; r++)
            for (int j = 0; j < width; j++)
                put_gradient(call->in_grad[0], call->accumulate[0], (size_t)(r * width + j), dy[s * width + j]);
    }
}
