/* y = a + b, the residual connection; da = dy, db = dy. The sum is usually written over b (a block's output), and a's
 * gradient is dy itself. */
#include <string.h>

#include "model/kernels/kernels.h"
#include "model/ops/elementwise.h"

Tensor *op_add(Tape *tape, Tensor *a, Tensor *b) {
    return elementwise_binary(tape, &op_specs[OP_add], a, b);
}

void op_add_forward(OpCall *call) {
    kernels()->add(call->out[0], call->in[0], call->in[1], elementwise_count(call));
}

void op_add_backward_inputs(OpCall *call) {
    const float *dy = call->out_grad[0];
    size_t n = elementwise_count(call);
    for (int i = 0; i < 2; i++) {
        float *dx = call->in_grad[i];
        if (!dx) continue;
        if (call->accumulate[i])
            kernels()->add(dx, dx, dy, n);
        else if (dx != dy)
            memcpy(dx, dy, n * sizeof *dx);
    }
}
