/* y = min(a, b) elementwise; dy goes to the smaller operand, to a when they are equal. NaN in either stays. */
#include <math.h>

#include "model/ops/elementwise.h"

Tensor *op_min(Tape *tape, Tensor *a, Tensor *b) {
    return elementwise_binary(tape, &op_specs[OP_min], a, b);
}

static bool takes_b(float a, float b) {
    return b < a || isnan(b);
}

void op_min_forward(OpCall *call) {
    const float *a = call->in[0], *b = call->in[1];
    float *y = call->out[0];
    for (size_t i = 0, n = elementwise_count(call); i < n; i++) y[i] = takes_b(a[i], b[i]) ? b[i] : a[i];
}

void op_min_backward_inputs(OpCall *call) {
    const float *dy = call->out_grad[0], *a = call->in[0], *b = call->in[1];
    for (int k = 0; k < 2; k++)
        for (size_t i = 0, n = elementwise_count(call); call->in_grad[k] && i < n; i++)
            put_gradient(call->in_grad[k], call->accumulate[k], i, takes_b(a[i], b[i]) == (k == 1) ? dy[i] : 0.0f);
}
