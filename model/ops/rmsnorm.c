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
    Tensor *y = tape_output(tape, node, x->rows, x->width, tape_dtype(tape));
    Tensor *rstd = tape_output(tape, node, x->rows, 1, DTYPE_F32);
    if (rstd) rstd->needs_grad = false;
    return y;
}

static bool narrow(const OpCall *call) {
    return call->node->outputs[0]->dtype == DTYPE_BF16;
}

void op_rmsnorm_forward(OpCall *call) {
    const RmsnormAttributes *a = call->node->attributes;
    const Tensor *x = call->node->inputs[0];
    const float *gain = call->node->weight->value;
    int rows = batch_rows(call->batch, x->rows);
    if (narrow(call))
        kernels()->bf16.rmsnorm_forward(call->out[0], call->out[1], call->in[0], gain, rows, x->width, a->epsilon);
    else
        kernels()->rmsnorm_forward(call->out[0], call->out[1], call->in[0], gain, rows, x->width, a->epsilon);
}

/* The pass that add_rmsnorm.c takes over its sum, without what flows in beside the norm. */
static void backward(OpCall *call, float *dgain) {
    const Tensor *x = call->node->inputs[0];
    const float *gain = call->node->weight->value;
    int rows = batch_rows(call->batch, x->rows);
    if (narrow(call))
        kernels()->bf16.add_rmsnorm_backward(call->in_grad[0], call->accumulate[0], NULL, dgain, NULL,
                                             call->out_grad[0], call->in[0], gain, call->out[1], rows, x->width,
                                             call->scratch);
    else
        kernels()->add_rmsnorm_backward(call->in_grad[0], call->accumulate[0], NULL, dgain, NULL, call->out_grad[0],
                                        call->in[0], gain, call->out[1], rows, x->width, call->scratch);
}

void op_rmsnorm_backward_inputs(OpCall *call) {
    if (!call->node->backward_weights) backward(call, NULL);
}

void op_rmsnorm_backward_weights(OpCall *call) {
    backward(call, call->node->weight->grad);
}

size_t op_rmsnorm_scratch(const Node *node, int capacity) {
    return norm_scratch(capacity, node->inputs[0]->width);
}
