/* The residual connection alone: sum = x + delta, the stream fp32, a block's output an activation; dx = dsum, ddelta =
 * dsum. (add_rmsnorm.c does it together with the norm behind; apart, the norm can be recomputed in the backward pass.)
 */
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/ops/ops.h"
#include "model/ops/registry.h"

Tensor *op_residual(Tape *tape, Tensor *x, Tensor *delta) {
    Node *node = tape_node(tape, &op_specs[OP_residual], 2, (Tensor *[]){x, delta}, NULL, NULL, 0);
    if (!node) return NULL;
    if (x->rows != delta->rows || x->width != delta->width)
        return tape_fail(tape, "residual: the stream has width %d and what is added %d, and must have as many rows",
                         x->width, delta->width);
    return tape_output(tape, node, x->rows, x->width, DTYPE_F32);
}

enum { GRAIN = 4096 };

static size_t elements(const OpCall *call) {
    const Tensor *x = call->node->inputs[0];
    return (size_t)batch_rows(call->batch, x->rows) * (size_t)x->width;
}

static bool narrow(const OpCall *call) {
    return call->node->inputs[1]->dtype == DTYPE_BF16;
}

static void add_narrow(void *context, size_t begin, size_t end, int thread) {
    const OpCall *call = context;
    const float *x = call->in[0];
    const bf16 *delta = call->in[1];
    float *sum = call->out[0];
    (void)thread;
    for (size_t i = begin; i < end; i++) {
        uint32_t bits = (uint32_t)delta[i] << 16;
        float wide;
        memcpy(&wide, &bits, sizeof wide);
        sum[i] = x[i] + wide;
    }
}

void op_residual_forward(OpCall *call) {
    if (narrow(call))
        parallel_for(elements(call), GRAIN, add_narrow, call);
    else
        kernels()->add(call->out[0], call->in[0], call->in[1], elements(call));
}

static void give_narrow(void *context, size_t begin, size_t end, int thread) {
    const OpCall *call = context;
    const float *dsum = call->out_grad[0];
    bf16 *ddelta = call->in_grad[1];
    bool add = call->accumulate[1];
    (void)thread;
    for (size_t i = begin; i < end; i++) ddelta[i] = f32_to_bf16(add ? bf16_to_f32(ddelta[i]) + dsum[i] : dsum[i]);
}

static void give_wide(float *to, bool add, const float *from, size_t n) {
    if (add)
        kernels()->add(to, to, from, n);
    else if (to != from)
        memcpy(to, from, n * sizeof *to);
}

void op_residual_backward_inputs(OpCall *call) {
    if (call->in_grad[1] && narrow(call))
        parallel_for(elements(call), GRAIN, give_narrow, call);
    else if (call->in_grad[1])
        give_wide(call->in_grad[1], call->accumulate[1], call->out_grad[0], elements(call));
    if (call->in_grad[0]) give_wide(call->in_grad[0], call->accumulate[0], call->out_grad[0], elements(call));
}
