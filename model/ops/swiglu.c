/* y = silu(gate)·up (Shazeer 2020); with σ = sigmoid(gate): dup = dy·gate·σ, dgate = dy·up·σ·(1 + gate·(1 - σ)). */
#include "model/kernels/kernels.h"
#include "model/ops/ops.h"
#include "model/ops/registry.h"

Tensor *op_swiglu(Tape *tape, Tensor *gate_up) {
    Node *node = tape_node(tape, &op_specs[OP_swiglu], 1, &gate_up, NULL, NULL, 0);
    if (!node) return NULL;
    if (gate_up->width % 2 != 0) return tape_fail(tape, "swiglu: gate | up has odd width %d", gate_up->width);
    return tape_output(tape, node, gate_up->rows, gate_up->width / 2, gate_up->dtype);
}

void op_swiglu_forward(OpCall *call) {
    const Tensor *y = call->node->outputs[0];
    int rows = batch_rows(call->batch, y->rows);
    if (y->dtype == DTYPE_BF16)
        kernels()->bf16.swiglu_forward(call->out[0], call->in[0], rows, y->width);
    else
        kernels()->swiglu_forward(call->out[0], call->in[0], rows, y->width);
}

void op_swiglu_backward_inputs(OpCall *call) {
    const Tensor *y = call->node->outputs[0];
    int rows = batch_rows(call->batch, y->rows);
    if (y->dtype == DTYPE_BF16)
        kernels()->bf16.swiglu_backward(call->in_grad[0], call->accumulate[0], call->out_grad[0], call->in[0], rows,
                                        y->width);
    else
        kernels()->swiglu_backward(call->in_grad[0], call->accumulate[0], call->out_grad[0], call->in[0], rows,
                                   y->width);
}
