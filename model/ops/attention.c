/* Causal grouped-query attention within segments; the scores are never stored, only their log-sum-exp (output 1), as in
 * FlashAttention (Dao et al. 2022). Input: rows of queries | keys | values. */
#include <math.h>

#include "model/kernels/kernels.h"
#include "model/ops/attention.h"
#include "model/ops/registry.h"

float attention_scale(AttentionShape shape) {
    return shape.scale != 0 ? shape.scale : 1.0f / sqrtf((float)shape.head_dim);
}

bool attention_fits(Tape *tape, const Tensor *qkv, AttentionShape shape) {
    bool sensible = shape.n_heads > 0 && shape.n_kv_heads > 0 && shape.head_dim > 0;
    if (sensible && shape.n_heads % shape.n_kv_heads == 0 && qkv->rows == ROWS_TOKENS &&
        ((int64_t)shape.n_heads + 2 * (int64_t)shape.n_kv_heads) * shape.head_dim == qkv->width)
        return true;
    tape_fail(tape, "attention: %d heads and %d key/value heads of width %d do not make one row of width %d a token",
              shape.n_heads, shape.n_kv_heads, shape.head_dim, qkv->width);
    return false;
}

Tensor *op_attention(Tape *tape, Tensor *qkv, AttentionShape shape) {
    shape.scale = attention_scale(shape);
    Node *node = tape_node(tape, &op_specs[OP_attention], 1, &qkv, NULL, &shape, sizeof shape);
    if (!node) return NULL;
    if (!attention_fits(tape, qkv, shape)) return NULL;
    tape_require_segments(tape);
    Tensor *out = tape_output(tape, node, ROWS_TOKENS, shape.n_heads * shape.head_dim, qkv->dtype);
    Tensor *lse = tape_output(tape, node, ROWS_TOKENS, shape.n_heads, DTYPE_F32);
    if (lse) lse->needs_grad = false;
    return out;
}

/* Where keys and values begin in a row, in elements. */
static size_t keys_at(const AttentionShape *shape) {
    return (size_t)shape->n_heads * (size_t)shape->head_dim;
}
static size_t values_at(const AttentionShape *shape) {
    return keys_at(shape) + (size_t)shape->n_kv_heads * (size_t)shape->head_dim;
}

static AttentionInputs inputs(const OpCall *call) {
    const AttentionShape *shape = call->node->attributes;
    const float *qkv = call->in[0];
    size_t stride = (size_t)call->node->inputs[0]->width;
    return (AttentionInputs){.n_heads = shape->n_heads,
                             .n_kv_heads = shape->n_kv_heads,
                             .head_dim = shape->head_dim,
                             .scale = shape->scale,
                             .q = qkv,
                             .k = qkv + keys_at(shape),
                             .v = qkv + values_at(shape),
                             .q_stride = stride,
                             .kv_stride = stride};
}

static AttentionInputsBf16 narrow_inputs(const OpCall *call) {
    const AttentionShape *shape = call->node->attributes;
    const bf16 *qkv = call->in[0];
    size_t stride = (size_t)call->node->inputs[0]->width;
    return (AttentionInputsBf16){.n_heads = shape->n_heads,
                                 .n_kv_heads = shape->n_kv_heads,
                                 .head_dim = shape->head_dim,
                                 .scale = shape->scale,
                                 .q = qkv,
                                 .k = qkv + keys_at(shape),
                                 .v = qkv + values_at(shape),
                                 .q_stride = stride,
                                 .kv_stride = stride};
}

static bool narrow(const OpCall *call) {
    return call->node->inputs[0]->dtype == DTYPE_BF16;
}

static Segments segments(const OpCall *call) {
    return (Segments){call->batch->n_segments, call->batch->segment_start};
}

void op_attention_forward(OpCall *call) {
    if (narrow(call)) {
        AttentionInputsBf16 in = narrow_inputs(call);
        kernels()->bf16.attention_forward(call->out[0], call->out[1], &in, segments(call));
    } else {
        AttentionInputs in = inputs(call);
        kernels()->attention_forward(call->out[0], call->out[1], &in, segments(call));
    }
}

void op_attention_backward_inputs(OpCall *call) {
    const AttentionShape *shape = call->node->attributes;
    if (narrow(call)) {
        AttentionInputsBf16 in = narrow_inputs(call);
        bf16 *dqkv = call->in_grad[0];
        kernels()->bf16.attention_backward(dqkv, dqkv + keys_at(shape), dqkv + values_at(shape), call->accumulate[0],
                                           call->out_grad[0], call->out[0], call->out[1], &in, segments(call),
                                           call->scratch);
    } else {
        AttentionInputs in = inputs(call);
        float *dqkv = call->in_grad[0];
        kernels()->attention_backward(dqkv, dqkv + keys_at(shape), dqkv + values_at(shape), call->accumulate[0],
                                      call->out_grad[0], call->out[0], call->out[1], &in, segments(call),
                                      call->scratch);
    }
}

size_t op_attention_scratch(const Node *node, int capacity) {
    const AttentionShape *shape = node->attributes;
    return attention_backward_scratch(capacity, shape->n_heads, shape->head_dim);
}

/* Two products over the unmasked half: 2·2·HD per pair of positions and head. */
double op_attention_flops(const Node *node, const TapeBatch *batch) {
    const AttentionShape *shape = node->attributes;
    double pairs = 0;
    for (int s = 0; s < batch->n_segments; s++) {
        double length = batch->segment_start[s + 1] - batch->segment_start[s];
        pairs += length * (length + 1) / 2;
    }
    return 4.0 * pairs * shape->n_heads * shape->head_dim;
}
