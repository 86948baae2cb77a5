/* Rotary position embedding (Su et al. 2021) in Hugging Face's half-split layout, on the first heads of each row. A
 * rotation's transpose is the inverse rotation: dx = rotate(dy, -position). In place in both directions. */
#include <string.h>

#include "model/kernels/kernels.h"
#include "model/ops/ops.h"
#include "model/ops/registry.h"

typedef struct {
    int n_heads;
    RotaryTable table;
} RotaryAttributes;

Tensor *op_rotary(Tape *tape, Tensor *x, int n_heads, RotaryTable table) {
    RotaryAttributes attributes = {n_heads, table};
    Node *node = tape_node(tape, &op_specs[OP_rotary], 1, &x, NULL, &attributes, sizeof attributes);
    if (!node) return NULL;
    if (x->rows != ROWS_TOKENS || x->width < n_heads * table.head_dim || table.head_dim % 2 != 0)
        return tape_fail(tape, "rotary: %d heads of width %d in rows of width %d; the head width must be even", n_heads,
                         table.head_dim, x->width);
    tape_limit_positions(tape, table.n_positions);
    return tape_output(tape, node, ROWS_TOKENS, x->width, DTYPE_F32);
}

static void rotate(OpCall *call, float *x, bool inverse) {
    const RotaryAttributes *a = call->node->attributes;
    kernels()->rotary(x, (size_t)call->node->inputs[0]->width, call->batch->n_tokens, a->n_heads, a->table.head_dim,
                      call->batch->positions, a->table.cos_table, a->table.sin_table, inverse);
}

static size_t row_bytes(const OpCall *call) {
    return (size_t)call->batch->n_tokens * (size_t)call->node->inputs[0]->width * sizeof(float);
}

void op_rotary_forward(OpCall *call) {
    if (call->out[0] != call->in[0]) memcpy(call->out[0], call->in[0], row_bytes(call));
    rotate(call, call->out[0], false);
}

void op_rotary_backward_inputs(OpCall *call) {
    float *dy = call->out_grad[0], *dx = call->in_grad[0];
    rotate(call, dy, true); /* dy is read by nobody after this */
    if (call->accumulate[0])
        kernels()->add(dx, dx, dy, row_bytes(call) / sizeof *dx);
    else if (dx != dy)
        memcpy(dx, dy, row_bytes(call));
}
