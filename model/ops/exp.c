/* y = exp(x); dx = dy·y. */
#include <math.h>

#include "model/ops/elementwise.h"

Tensor *op_exp(Tape *tape, Tensor *x) {
    return elementwise_unary(tape, &op_specs[OP_exp], x, NULL, 0);
}

void op_exp_forward(OpCall *call) {
    const float *x = call->in[0];
    float *y = call->out[0];
    for (size_t i = 0, n = elementwise_count(call); i < n; i++) y[i] = expf(x[i]);
}

void op_exp_backward_inputs(OpCall *call) {
    const float *dy = call->out_grad[0], *y = call->out[0];
    for (size_t i = 0, n = elementwise_count(call); i < n; i++)
        put_gradient(call->in_grad[0], call->accumulate[0], i, dy[i] * y[i]);
}
