/* y = log(1/(1 + exp(-x))) = min(x, 0) - log1p(exp(-|x|)); dx = dy·sigmoid(-x). */
#include <math.h>

#include "model/ops/elementwise.h"

Tensor *op_log_sigmoid(Tape *tape, Tensor *x) {
    return elementwise_unary(tape, &op_specs[OP_log_sigmoid], x, NULL, 0);
}

static float sigmoid(float x) {
    float e = expf(-fabsf(x)); /* never overflows */
    return (x >= 0 ? 1.0f : e) / (1.0f + e);
}

void op_log_sigmoid_forward(OpCall *call) {
    const float *x = call->in[0];
    float *y = call->out[0];
    for (size_t i = 0, n = elementwise_count(call); i < n; i++) y[i] = fminf(x[i], 0.0f) - log1pf(expf(-fabsf(x[i])));
}

void op_log_sigmoid_backward_inputs(OpCall *call) {
    const float *dy = call->out_grad[0], *x = call->in[0];
    for (size_t i = 0, n = elementwise_count(call); i < n; i++)
        put_gradient(call->in_grad[0], call->accumulate[0], i, dy[i] * sigmoid(-x[i]));
}
