/* y = x·rstd·gain, rstd = 1/sqrt(mean(x²) + epsilon) (Zhang and Sennrich 2019, equation 4). Output 1 is rstd, for
 * backward. With x̂ = x·rstd and g = dy·gain: dx = rstd·(g - x̂·mean(g·x̂)), dgain += Σ_t dy·x̂. */
#include "model/kernels/kernels.h"
#include "model/ops/ops.h"
#include "model/ops/registry.h"

typedef struct {
    float epsilon;
} RmsnormAttributes;

Tensor *op_rmsnorm(Tape *tape, Tensor *x, Weight *gain, float epsilon) {
    RmsnormAttributes attributes = {epsilon};
    Node *node = tape_node(tape, &op_specs[OP_rmsnorm], 1, &x, gain, &attributes, sizeof attributes);
    if (!node) return NULL;
    if (x->width != gain->cols)
        return tape_fail(tape, "rmsnorm: %s has %d gains and its input has width %d", gain->views[0].name, gain->cols,
                         x->width);
    Tensor *y = tape_output(tape, node, x->rows, x->width, DTYPE_F32);
    tape_output(tape, node, x->rows, 1, DTYPE_F32);
    return y;
}

void op_rmsnorm_forward(OpCall *call) {
    const RmsnormAttributes *a = call->node->attributes;
    const Tensor *x = call->node->inputs[0];
    kernels()->rmsnorm_forward(call->out[0], call->out[1], call->in[0], call->node->weight->value,
                               batch_rows(call->batch, x->rows), x->width, a->epsilon);
}

void op_rmsnorm_backward_inputs(OpCall *call) {
    const Tensor *x = call->node->inputs[0];
    kernels()->rmsnorm_backward(call->in_grad[0], call->accumulate[0], call->out_grad[0], call->in[0],
                                call->node->weight->value, call->out[1], batch_rows(call->batch, x->rows), x->width);
}

void op_rmsnorm_backward_weights(OpCall *call) {
    const Tensor *x = call->node->inputs[0];
    kernels()->rmsnorm_backward_weight(call->node->weight->grad, call->out_grad[0], call->in[0], call->out[1],
                                       batch_rows(call->batch, x->rows), x->width);
}
