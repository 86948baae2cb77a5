/* y = log(x); dx = dy/x. */
#include <math.h>

#include "model/ops/elementwise.h"

Tensor *op_log(Tape *tape, Tensor *x) {
    return elementwise_unary(tape, &op_specs[OP_log], x, NULL, 0);
}

void op_log_forward(OpCall *call) {
    const float *x = call->in[0];
    float *y = call->out[0];
    for (size_t i = 0, n = elementwise_count(call); i < n; i++) y[i] = logf(x[i]);
}

void op_log_backward_inputs(OpCall *call) {
    const float *dy = call->out_grad[0], *x = call->in[0];
    for (size_t i = 0, n = elementwise_count(call); i < n; i++)
        put_gradient(call->in_grad[0], call->accumulate[0], i, dy[i] / x[i]);
}
