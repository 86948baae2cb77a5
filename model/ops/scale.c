/* y = factor·x + offset; dx = factor·dy. */
#include "model/ops/elementwise.h"

typedef struct {
    float factor, offset;
} ScaleAttributes;

Tensor *op_scale(Tape *tape, Tensor *x, float factor, float offset) {
    ScaleAttributes attributes = {factor, offset};
    return elementwise_unary(tape, &op_specs[OP_scale], x, &attributes, sizeof attributes);
}

void op_scale_forward(OpCall *call) {
    const ScaleAttributes *a = call->node->attributes;
    const float *x = call->in[0];
    float *y = call->out[0];
    for (size_t i = 0, n = elementwise_count(call); i < n; i++) y[i] = a->factor * x[i] + a->offset;
}

void op_scale_backward_inputs(OpCall *call) {
    const ScaleAttributes *a = call->node->attributes;
    const float *dy = call->out_grad[0];
    for (size_t i = 0, n = elementwise_count(call); i < n; i++)
        put_gradient(call->in_grad[0], call->accumulate[0], i, a->factor * dy[i]);
}
