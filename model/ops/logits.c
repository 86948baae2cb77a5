/* A linear layer whose output is fp32 whatever its input: what a sampler reads. No backward: training has the fused
 * head (head.c). */
#include "model/ops/linear.h"

Tensor *op_logits(Tape *tape, Tensor *hidden, Weight *weight) {
    Node *node = tape_node(tape, &op_specs[OP_logits], 1, &hidden, weight, NULL, 0);
    if (!node || !linear_fits(tape, "logits", hidden, weight)) return NULL;
    return tape_output(tape, node, hidden->rows, weight->rows, DTYPE_F32);
}

void op_logits_forward(OpCall *call) {
    const Tensor *hidden = call->node->inputs[0];
    linear_product(call->out[0], DTYPE_F32, call->in[0], call->node->weight, hidden->dtype,
                   batch_rows(call->batch, hidden->rows), call->scratch, NULL, NULL);
    if (call->node->weight->adapter)
        adapter_logits(call, call->out[0], batch_rows(call->batch, hidden->rows), call->scratch);
}

size_t op_logits_scratch(const Node *node, int capacity) {
    Dtype dtype = node->inputs[0]->dtype;
    size_t product = linear_scratch(node->weight, dtype),
           adapter = adapter_logits_scratch(node->weight, dtype, capacity);
    return product > adapter ? product : adapter;
}

double op_logits_flops(const Node *node, const TapeBatch *batch) {
    return linear_flops(node->weight, batch_rows(batch, node->inputs[0]->rows));
}
