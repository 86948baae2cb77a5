/* The residual stream's beginning, fp32 whatever the tape's dtype: y[t] = weight[tokens[t]]; dweight[tokens[t]] +=
 * dy[t], in order of t for each row: threads own columns.
 *
 * With an adapter (weight.h) z[t] = weight[tokens[t]] + scale·B·u[t], u[t] = A[:, tokens[t]], and y = gain∘z, all in
 * fp32, its products are of the step's tokens alone:
 *
 *   dz = gain∘dy   dB += scale·dzᵀ·u   du = scale·dz·B   dA[:, tokens[t]] += du[t], in order of t: threads own rows of
 * A
 */
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/ops/adapter.h"
#include "model/ops/ops.h"
#include "model/ops/registry.h"

enum { ROW_GRAIN = 16 };

Tensor *op_embedding(Tape *tape, Weight *weight) {
    Node *node = tape_node(tape, &op_specs[OP_embedding], 0, NULL, weight, NULL, 0);
    if (!node) return NULL;
    tape_limit_tokens(tape, weight->rows);
    return tape_output(tape, node, ROWS_TOKENS, weight->cols, DTYPE_F32);
}

/* ---- the adapter ---- */

typedef struct {
    const Adapter *adapter;
    const int32_t *tokens;
    float *u; /* [n_tokens, rank], or du */
    int n_tokens;
} Columns;

static void gather_range(void *context, size_t begin, size_t end, int thread) {
    const Columns *c = context;
    const Weight *a = &c->adapter->a;
    const size_t rank = (size_t)c->adapter->rank;
    (void)thread;
    for (size_t t = begin; t < end; t++)
        for (size_t k = 0; k < rank; k++) c->u[t * rank + k] = a->value[k * (size_t)a->cols + (size_t)c->tokens[t]];
}

static void scatter_range(void *context, size_t begin, size_t end, int thread) {
    const Columns *c = context;
    const Weight *a = &c->adapter->a;
    const size_t rank = (size_t)c->adapter->rank;
    (void)thread;
    for (size_t k = begin; k < end; k++)
        for (size_t t = 0; t < (size_t)c->n_tokens; t++)
            a->grad[k * (size_t)a->cols + (size_t)c->tokens[t]] += c->u[t * rank + k];
}

/* z += scale·u·Bᵀ; u is left in the scratch. */
static void add_adapter(const OpCall *call, float *z, float *u) {
    const Weight *weight = call->node->weight;
    const Adapter *adapter = weight->adapter;
    const size_t rank = (size_t)adapter->rank;
    Columns columns = {adapter, call->batch->tokens, u, call->batch->n_tokens};
    parallel_for((size_t)call->batch->n_tokens, ROW_GRAIN, gather_range, &columns);
    kernels()->gemm(false, true, call->batch->n_tokens, weight->cols, adapter->rank, adapter->scale, u, rank,
                    adapter->views[0].b.value, rank, 1, z, (size_t)weight->cols);
}

static void look_up(const OpCall *call, float *y) {
    const Weight *weight = call->node->weight;
    size_t width = (size_t)weight->cols;
    for (int t = 0; t < call->batch->n_tokens; t++, y += width) {
        int32_t row = call->batch->tokens[t];
        if (weight->value)
            memcpy(y, weight->value + (size_t)row * width, width * sizeof *y);
        else
            row_major_read(&weight->stored, row, 0, width, y);
    }
}

void op_embedding_forward(OpCall *call) {
    Weight *weight = call->node->weight;
    look_up(call, call->out[0]);
    if (!weight->adapter) return;
    add_adapter(call, call->out[0], call->scratch);
    if (!has_magnitudes(weight)) return;
    dora_refresh(weight, call->scratch);
    dora_forward(call->out[0], call->out[0], weight, DTYPE_F32, call->batch->n_tokens);
}

/* ---- backward ---- */

static void scatter_columns(void *context, size_t begin, size_t end, int thread) {
    const OpCall *call = context;
    Weight *weight = call->node->weight;
    size_t width = (size_t)weight->cols;
    (void)thread;
    for (int t = 0; t < call->batch->n_tokens; t++) {
        const float *dy = (const float *)call->out_grad[0] + (size_t)t * width;
        const int32_t row = call->batch->tokens[t];
        float *dw = weight->row_slot ? weight->row_grad + (size_t)(weight->row_slot[row] - 1) * width
                                     : weight->grad + (size_t)row * width;
        for (size_t j = begin; j < end; j++) dw[j] += dy[j];
    }
}

static void weight_gradient(OpCall *call) {
    enum { GRAIN = 16 }; /* a cache line */
    Weight *weight = call->node->weight;
    for (int t = 0; weight->row_slot && t < call->batch->n_tokens; t++) {
        int32_t *slot = &weight->row_slot[call->batch->tokens[t]];
        if (*slot == 0) *slot = ++weight->n_row_grads;
    }
    parallel_for((size_t)weight->cols, GRAIN, scatter_columns, call);
}

static void adapter_gradients(OpCall *call) {
    Weight *weight = call->node->weight;
    const Adapter *adapter = weight->adapter;
    const Weight *b = &adapter->views[0].b;
    const int n = call->batch->n_tokens;
    const size_t rank = (size_t)adapter->rank, width = (size_t)weight->cols;
    const float *dz = call->out_grad[0];
    float *u = call->scratch, *du = u + (size_t)n * rank, *z = du + (size_t)n * rank, *scaled = z + (size_t)n * width;
    if (has_magnitudes(weight)) {
        look_up(call, z);
        add_adapter(call, z, u);
        dora_backward(scaled, dz, z, weight, true, DTYPE_F32, n);
        dz = scaled;
    }
    Columns columns = {adapter, call->batch->tokens, u, n};
    parallel_for((size_t)n, ROW_GRAIN, gather_range, &columns);
    kernels()->gemm(true, false, weight->cols, adapter->rank, n, adapter->scale, dz, width, u, rank, 1, b->grad, rank);
    kernels()->gemm(false, false, n, adapter->rank, weight->cols, adapter->scale, dz, width, b->value, rank, 0, du,
                    rank);
    columns.u = du;
    parallel_for(rank, 1, scatter_range, &columns);
}

void op_embedding_backward_weights(OpCall *call) {
    const Weight *weight = call->node->weight;
    if (weight->adapter && weight->adapter->a.trainable) adapter_gradients(call);
    if (weight->trainable) weight_gradient(call);
}

size_t op_embedding_scratch(const Node *node, int capacity) {
    const Weight *weight = node->weight;
    if (!weight->adapter) return 0;
    size_t rows = (size_t)capacity, floats = 2 * rows * (size_t)weight->adapter->rank;
    if (!has_magnitudes(weight)) return floats;
    floats += 2 * rows * (size_t)weight->cols;
    return floats > dora_refresh_scratch(weight) ? floats : dora_refresh_scratch(weight);
}

double op_embedding_flops(const Node *node, const TapeBatch *batch) {
    return adapter_flops(node->weight, batch->n_tokens);
}
