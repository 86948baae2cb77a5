/* y = min(max(x, low), high); dx = dy where low <= x <= high, else 0 (PyTorch's convention at the bounds). NaN stays.
 */
#include "model/ops/elementwise.h"

typedef struct {
    float low, high;
} ClampAttributes;

Tensor *op_clamp(Tape *tape, Tensor *x, float low, float high) {
    ClampAttributes attributes = {low, high};
    if (!(low <= high)) return tape_fail(tape, "clamp: low %g is above high %g", (double)low, (double)high);
    return elementwise_unary(tape, &op_specs[OP_clamp], x, &attributes, sizeof attributes);
}

void op_clamp_forward(OpCall *call) {
    const ClampAttributes *a = call->node->attributes;
    const float *x = call->in[0];
    float *y = call->out[0];
    for (size_t i = 0, n = elementwise_count(call); i < n; i++)
        y[i] = x[i] < a->low ? a->low : x[i] > a->high ? a->high : x[i];
}

void op_clamp_backward_inputs(OpCall *call) {
    const ClampAttributes *a = call->node->attributes;
    const float *dy = call->out_grad[0], *x = call->in[0];
    for (size_t i = 0, n = elementwise_count(call); i < n; i++)
        put_gradient(call->in_grad[0], call->accumulate[0], i, x[i] < a->low || x[i] > a->high ? 0.0f : dy[i]);
}
