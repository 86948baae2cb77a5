/* y = 1/(1 + exp(-x)); dx = dy·y·(1 - y). */
#include <math.h>

#include "model/ops/elementwise.h"

Tensor *op_sigmoid(Tape *tape, Tensor *x) {
    return elementwise_unary(tape, &op_specs[OP_sigmoid], x, NULL, 0);
}

/* The exponent is never positive, so nothing overflows. */
static float sigmoid(float x) {
    float e = expf(-fabsf(x));
    return (x >= 0 ? 1.0f : e) / (1.0f + e);
}

void op_sigmoid_forward(OpCall *call) {
    const float *x = call->in[0];
    float *y = call->out[0];
    for (size_t i = 0, n = elementwise_count(call); i < n; i++) y[i] = sigmoid(x[i]);
}

void op_sigmoid_backward_inputs(OpCall *call) {
    const float *dy = call->out_grad[0], *y = call->out[0];
    for (size_t i = 0, n = elementwise_count(call); i < n; i++)
        put_gradient(call->in_grad[0], call->accumulate[0], i, dy[i] * y[i] * (1.0f - y[i]));
}
