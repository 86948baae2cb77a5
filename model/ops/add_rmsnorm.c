/* The residual connection and the norm behind it in one pass over memory: sum = x + delta, y = RMSNorm(sum) (rmsnorm.c
 * has the formulas). x and the sum are the residual stream (fp32), delta a block's output and y the next one's input
 * (activations). Outputs: sum, y, rstd. Backward: d = dsum + RMSNorm'(dy); dx = d, ddelta = d. */
#include "model/kernels/kernels.h"
#include "model/ops/ops.h"
#include "model/ops/registry.h"

typedef struct {
    float epsilon;
} AddRmsnormAttributes;
enum { SUM = 0, NORMED = 1, RSTD = 2 };

Normed op_add_rmsnorm(Tape *tape, Tensor *x, Tensor *delta, Weight *gain, float epsilon) {
    Normed none = {0};
    AddRmsnormAttributes attributes = {epsilon};
    Node *node =
        tape_node(tape, &op_specs[OP_add_rmsnorm], 2, (Tensor *[]){x, delta}, gain, &attributes, sizeof attributes);
    if (!node) return none;
    if (x->width != gain->cols || delta->width != x->width || delta->rows != x->rows) {
        tape_fail(tape, "add_rmsnorm: %s has %d gains and its inputs have width %d and %d, and must have as many rows",
                  gain->views[0].name, gain->cols, x->width, delta->width);
        return none;
    }
    Normed out = {.sum = tape_output(tape, node, x->rows, x->width, DTYPE_F32),
                  .y = tape_output(tape, node, x->rows, x->width, tape_dtype(tape))};
    Tensor *rstd = tape_output(tape, node, x->rows, 1, DTYPE_F32);
    if (rstd) rstd->needs_grad = false;
    return out;
}

void op_add_rmsnorm_forward(OpCall *call) {
    const AddRmsnormAttributes *a = call->node->attributes;
    const Tensor *x = call->node->inputs[0];
    int rows = batch_rows(call->batch, x->rows);
    const float *gain = call->node->weight->value;
    if (call->node->inputs[1]->dtype == DTYPE_BF16)
        kernels()->bf16.add_rmsnorm_forward(call->out[SUM], call->out[NORMED], call->out[RSTD], call->in[0],
                                            call->in[1], gain, rows, x->width, a->epsilon);
    else
        kernels()->add_rmsnorm_forward(call->out[SUM], call->out[NORMED], call->out[RSTD], call->in[0], call->in[1],
                                       gain, rows, x->width, a->epsilon);
}

static void add_gradient(const OpCall *call, const void *from, size_t n) {
    bf16 *narrow = call->in_grad[1];
    if (call->node->inputs[1]->dtype == DTYPE_F32) {
        kernels()->add(call->in_grad[1], call->in_grad[1], from, n);
        return;
    }
    for (size_t i = 0; i < n; i++)
        narrow[i] = f32_to_bf16(bf16_to_f32(narrow[i]) + bf16_to_f32(((const bf16 *)from)[i]));
}

/* One pass serves dx, ddelta and the gain's gradient. (A delta with another consumer, which no Llama has, takes its
 * part from the scratch.) */
static void backward(OpCall *call, float *dgain) {
    const Tensor *x = call->node->inputs[0];
    int rows = batch_rows(call->batch, x->rows);
    const float *gain = call->node->weight->value;
    float *dx = call->in_grad[0], *dsum = call->out_grad[SUM], *rest = call->scratch;
    void *ddelta = call->accumulate[1] ? (void *)rest : call->in_grad[1];
    if (call->accumulate[1]) rest += (size_t)rows * (size_t)x->width;
    if (call->node->inputs[1]->dtype == DTYPE_BF16)
        kernels()->bf16.add_rmsnorm_backward(dx, call->accumulate[0], ddelta, dgain, dsum, call->out_grad[NORMED],
                                             call->out[SUM], gain, call->out[RSTD], rows, x->width, rest);
    else
        kernels()->add_rmsnorm_backward(dx, call->accumulate[0], ddelta, dgain, dsum, call->out_grad[NORMED],
                                        call->out[SUM], gain, call->out[RSTD], rows, x->width, rest);
    if (call->accumulate[1]) add_gradient(call, ddelta, (size_t)rows * (size_t)x->width);
}

void op_add_rmsnorm_backward_inputs(OpCall *call) {
    if (!call->node->backward_weights) backward(call, NULL);
}

void op_add_rmsnorm_backward_weights(OpCall *call) {
    backward(call, call->node->weight->grad);
}

size_t op_add_rmsnorm_scratch(const Node *node, int capacity) {
    size_t width = (size_t)node->inputs[0]->width;
    return norm_scratch(capacity, node->inputs[0]->width) + (size_t)capacity * width;
}
