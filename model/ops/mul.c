/* y = a·b elementwise; da = dy·b, db = dy·a. */
#include "model/ops/elementwise.h"

Tensor *op_mul(Tape *tape, Tensor *a, Tensor *b) {
    return elementwise_binary(tape, &op_specs[OP_mul], a, b);
}

void op_mul_forward(OpCall *call) {
    const float *a = call->in[0], *b = call->in[1];
    float *y = call->out[0];
    for (size_t i = 0, n = elementwise_count(call); i < n; i++) y[i] = a[i] * b[i];
}

void op_mul_backward_inputs(OpCall *call) {
    const float *dy = call->out_grad[0];
    for (int k = 0; k < 2; k++) {
        const float *other = call->in[1 - k];
        for (size_t i = 0, n = elementwise_count(call); call->in_grad[k] && i < n; i++)
            put_gradient(call->in_grad[k], call->accumulate[k], i, dy[i] * other[i]);
    }
}
