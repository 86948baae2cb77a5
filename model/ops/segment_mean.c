/* y[s] = mean of x over the tokens of segment s, in fp64 (0 where it is empty); dx[t] = dy[segment of t] / length. */
#include "model/ops/elementwise.h"

Tensor *op_segment_mean(Tape *tape, Tensor *x) {
    Node *node = tape_node(tape, &op_specs[OP_segment_mean], 1, &x, NULL, NULL, 0);
    if (!node) return NULL;
    if (x->rows != ROWS_TOKENS) return tape_fail(tape, "segment_mean: its input has no row for each token");
    return tape_output(tape, node, ROWS_SEGMENTS, x->width, DTYPE_F32);
}

void op_segment_mean_forward(OpCall *call) {
    const float *x = call->in[0];
    float *y = call->out[0];
    int width = call->node->inputs[0]->width;
    for (int s = 0; s < call->batch->n_segments; s++) {
        int begin = call->batch->segment_start[s], end = call->batch->segment_start[s + 1];
        for (int j = 0; j < width; j++) {
            double sum = 0;
            for (int r = begin; r < end; r++) sum += (double)x[r * width + j];
            y[s * width + j] = (float)(end > begin ? sum / (end - begin) : 0.0);
        }
    }
}

void op_segment_mean_backward_inputs(OpCall *call) {
    const float *dy = call->out_grad[0];
    int width = call->node->inputs[0]->width;
    for (int s = 0; s < call->batch->n_segments; s++) {
        int begin = call->batch->segment_start[s], end = call->batch->segment_start[s + 1];
        for (int r = begin; r < end; r++)
            for (int j = 0; j < width; j++)
                put_gradient(call->in_grad[0], call->accumulate[0], (size_t)(r * width + j),
                             dy[s * width + j] / (float)(end - begin));
    }
}
