/* y = silu(gate)·up (Shazeer 2020); with σ = sigmoid(gate): dup = dy·gate·σ, dgate = dy·up·σ·(1 + gate·(1 - σ)). */
#include "model/kernels/kernels.h"
#include "model/ops/ops.h"
#include "model/ops/registry.h"

Tensor *op_swiglu(Tape *tape, Tensor *gate_up) {
    Node *node = tape_node(tape, &op_specs[OP_swiglu], 1, &gate_up, NULL, NULL, 0);
    if (!node) return NULL;
    if (gate_up->width % 2 != 0) return tape_fail(tape, "swiglu: gate | up has odd width %d", gate_up->width);
    return tape_output(tape, node, gate_up->rows, gate_up->width / 2, DTYPE_F32);
}

void op_swiglu_forward(OpCall *call) {
    const Tensor *y = call->node->outputs[0];
    kernels()->swiglu_forward(call->out[0], call->in[0], batch_rows(call->batch, y->rows), y->width);
}

void op_swiglu_backward_inputs(OpCall *call) {
    const Tensor *y = call->node->outputs[0];
    kernels()->swiglu_backward(call->in_grad[0], call->accumulate[0], call->out_grad[0], call->in[0],
                               batch_rows(call->batch, y->rows), y->width);
}
