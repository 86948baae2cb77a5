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
    if (x->rows != ROWS_TOKENS || n_heads <= 0 || table.head_dim <= 0 || table.head_dim % 2 != 0 ||
        x->width < (int64_t)n_heads * table.head_dim)
        return tape_fail(tape, "rotary: %d heads of width %d in rows of width %d; the head width must be even", n_heads,
                         table.head_dim, x->width);
    tape_limit_positions(tape, table.n_positions);
    return tape_output(tape, node, ROWS_TOKENS, x->width, DTYPE_F32);
}

/* Rotates rows first … first + n_rows - 1 of the batch, which start at x. */
static void rotate(const OpCall *call, float *x, int first, int n_rows, bool inverse) {
    const RotaryAttributes *a = call->node->attributes;
    kernels()->rotary(x, (size_t)call->node->inputs[0]->width, n_rows, a->n_heads, a->table.head_dim,
                      call->batch->positions + first, a->table.cos_table, a->table.sin_table, inverse);
}

static size_t row_floats(const OpCall *call) {
    return (size_t)call->node->inputs[0]->width;
}

void op_rotary_forward(OpCall *call) {
    int n_tokens = call->batch->n_tokens;
    if (call->out[0] != call->in[0])
        memcpy(call->out[0], call->in[0], (size_t)n_tokens * row_floats(call) * sizeof(float));
    rotate(call, call->out[0], 0, n_tokens, false);
}

/* dy may be the caller's array (a seed), so it is left alone: where dx is added to, a row at a time is rotated aside.
 */
void op_rotary_backward_inputs(OpCall *call) {
    const float *dy = call->out_grad[0];
    float *dx = call->in_grad[0], *row = call->scratch;
    size_t width = row_floats(call);
    int n_tokens = call->batch->n_tokens;
    if (!call->accumulate[0]) {
        if (dx != dy) memcpy(dx, dy, (size_t)n_tokens * width * sizeof *dx);
        rotate(call, dx, 0, n_tokens, true);
        return;
    }
    for (int t = 0; t < n_tokens; t++) {
        memcpy(row, dy + (size_t)t * width, width * sizeof *row);
        rotate(call, row, t, 1, true);
        for (size_t j = 0; j < width; j++) dx[(size_t)t * width + j] += row[j];
    }
}

size_t op_rotary_scratch(const Node *node, int capacity) {
    (void)capacity;
    return (size_t)node->inputs[0]->width;
}
