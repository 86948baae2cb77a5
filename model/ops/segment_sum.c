/* y[s] = sum of x over the tokens of segment s, in fp64; dx[t] = dy[segment of t]. */
#include "model/ops/reduce.h"

Tensor *op_segment_sum(Tape *tape, Tensor *x) {
    Node *node = tape_node(tape, &op_specs[OP_segment_sum], 1, &x, NULL, NULL, 0);
    if (!node) return NULL;
    if (x->rows != ROWS_TOKENS) return tape_fail(tape, "segment_sum: its input has no row for each token");
    tape_require_segments(tape);
    return tape_output(tape, node, ROWS_SEGMENTS, x->width, DTYPE_F32);
}

void op_segment_sum_forward(OpCall *call) {
    float *y = call->out[0];
    int width = call->node->inputs[0]->width;
    const int32_t *start = call->batch->segment_start;
    for (int s = 0; s < call->batch->n_segments; s++)
        reduce_rows(y + (size_t)s * (size_t)width, call->in[0], start[s], start[s + 1], width, 1);
}

void op_segment_sum_backward_inputs(OpCall *call) {
    const float *dy = call->out_grad[0];
    int width = call->node->inputs[0]->width;
    const int32_t *start = call->batch->segment_start;
    for (int s = 0; s < call->batch->n_segments; s++)
        spread_row(call->in_grad[0], call->accumulate[0], dy + (size_t)s * (size_t)width, start[s], start[s + 1], width,
                   1);
}
