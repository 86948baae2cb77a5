/* Queries, keys and values of every token as one product, y = x·Wᵀ, with rotary position embedding (Su et al. 2021,
 * Hugging Face's half-split layout) on the first heads of each row as it is stored. A rotation's transpose is the
 * inverse rotation R(-p), so with dz = R(-p)·dy: dx = dz·W, dW += dzᵀ·x.
 *
 * dy may be the caller's array (a seed), so dz goes to the scratch; both products are taken from it at once where both
 * are wanted. */
#include <string.h>

#include "model/core/threads.h"
#include "model/ops/linear.h"

typedef struct {
    int n_heads;
    RotaryTable table;
} QkvAttributes;

Tensor *op_qkv(Tape *tape, Tensor *x, Weight *weight, int n_heads, RotaryTable table) {
    QkvAttributes attributes = {n_heads, table};
    Node *node = tape_node(tape, &op_specs[OP_qkv], 1, &x, weight, &attributes, sizeof attributes);
    if (!node || !linear_fits(tape, "qkv", x, weight)) return NULL;
    if (x->rows != ROWS_TOKENS || n_heads <= 0 || table.head_dim <= 0 || table.head_dim % 2 != 0 ||
        weight->rows < (int64_t)n_heads * table.head_dim)
        return tape_fail(tape, "qkv: %d heads of width %d in rows of width %d; the head width must be even", n_heads,
                         table.head_dim, weight->rows);
    tape_limit_positions(tape, table.n_positions);
    return linear_output(tape, node, weight);
}

static void rotate_rows(void *context, int first, int n_rows) {
    const OpCall *call = context;
    const QkvAttributes *a = call->node->attributes;
    size_t width = (size_t)call->node->weight->rows, at = (size_t)first * width;
    const int32_t *positions = call->batch->positions + first;
    if (call->node->inputs[0]->dtype == DTYPE_BF16)
        kernels()->bf16.rotary((bf16 *)call->out[0] + at, width, n_rows, a->n_heads, a->table.head_dim, positions,
                               a->table.cos_table, a->table.sin_table, false);
    else
        kernels()->rotary((float *)call->out[0] + at, width, n_rows, a->n_heads, a->table.head_dim, positions,
                          a->table.cos_table, a->table.sin_table, false);
}

static void rotate_range(void *context, size_t begin, size_t end, int thread) {
    (void)thread;
    rotate_rows(context, (int)begin, (int)(end - begin));
}

void op_qkv_forward(OpCall *call) {
    enum { GRAIN = 16 };
    const Weight *w = call->node->weight;
    Dtype dtype = call->node->inputs[0]->dtype;
    int rows = call->batch->n_tokens;
    if (!w->adapter) {
        linear_product(call->out[0], dtype, call->in[0], w, dtype, rows, call->scratch, rotate_rows, call);
        return;
    }
    linear_forward(call, rows);
    if (dtype == DTYPE_BF16)
        parallel_for((size_t)rows, GRAIN, rotate_range, call);
    else
        rotate_rows(call, 0, rows); /* takes threads itself */
}

/* dz, in the scratch */
static const void *turned_back(const OpCall *call) {
    const QkvAttributes *a = call->node->attributes;
    size_t width = (size_t)call->node->weight->rows, n = (size_t)call->batch->n_tokens * width;
    if (call->node->inputs[0]->dtype == DTYPE_BF16)
        kernels()->bf16.rotary_copy((bf16 *)(void *)call->scratch, call->out_grad[0], width, width,
                                    call->batch->n_tokens, a->n_heads, a->table.head_dim, call->batch->positions,
                                    a->table.cos_table, a->table.sin_table, true);
    else {
        memcpy(call->scratch, call->out_grad[0], n * sizeof(float));
        kernels()->rotary(call->scratch, width, call->batch->n_tokens, a->n_heads, a->table.head_dim,
                          call->batch->positions, a->table.cos_table, a->table.sin_table, true);
    }
    return call->scratch;
}

/* Floats of dz */
static size_t turned_floats(const Node *node, int rows) {
    size_t n = (size_t)rows * (size_t)node->weight->rows;
    return node->inputs[0]->dtype == DTYPE_BF16 ? (n + 1) / 2 : n;
}

static void backward(OpCall *call, bool inputs, bool weights) {
    linear_backward(call, turned_back(call), inputs, weights,
                    call->scratch + turned_floats(call->node, call->batch->n_tokens));
}

void op_qkv_backward_inputs(OpCall *call) {
    if (!call->node->backward_weights) backward(call, true, false);
}

void op_qkv_backward_weights(OpCall *call) {
    backward(call, call->node->backward_inputs, true);
}

size_t op_qkv_scratch(const Node *node, int capacity) {
    return turned_floats(node, capacity) + adapter_scratch(node, capacity) +
           linear_scratch(node->weight, node->inputs[0]->dtype);
}

double op_qkv_flops(const Node *node, const TapeBatch *batch) {
    return linear_flops(node->weight, batch->n_tokens);
}
