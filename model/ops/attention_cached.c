/* Attention over a cache of keys and values, for prefill and decoding: the rows' own are stored first. The cache is
 * fp32, and so is the arithmetic; bf16 rows are widened into the scratch and the result is narrowed. No backward. */
#include <string.h>

#include "model/kernels/kernels.h"
#include "model/ops/attention.h"
#include "model/ops/registry.h"

typedef struct {
    AttentionShape shape;
    KvLayer cache;
} CachedAttributes;

Tensor *op_attention_cached(Tape *tape, Tensor *qkv, AttentionShape shape, const KvLayer *cache) {
    if (!cache) return tape_fail(tape, "attention_cached: the cache is missing");
    shape.scale = attention_scale(shape);
    CachedAttributes attributes = {shape, *cache};
    Node *node = tape_node(tape, &op_specs[OP_attention_cached], 1, &qkv, NULL, &attributes, sizeof attributes);
    if (!node) return NULL;
    if (!attention_fits(tape, qkv, shape)) return NULL;
    tape_limit_positions(tape, cache->max_sequence);
    tape_limit_slots(tape, cache->n_slots);
    return tape_output(tape, node, ROWS_TOKENS, shape.n_heads * shape.head_dim, qkv->dtype);
}

static size_t slot_stride(const CachedAttributes *a) {
    return (size_t)a->cache.max_sequence * (size_t)(a->shape.n_kv_heads * a->shape.head_dim);
}

static void attend(const OpCall *call, float *out, const float *qkv) {
    const CachedAttributes *a = call->node->attributes;
    const AttentionShape *shape = &a->shape;
    size_t head_dim = (size_t)shape->head_dim, kv_width = (size_t)shape->n_kv_heads * head_dim;
    size_t stride = (size_t)call->node->inputs[0]->width;
    const float *keys = qkv + (size_t)shape->n_heads * head_dim, *values = keys + kv_width;
    for (int t = 0; t < call->batch->n_tokens; t++) {
        size_t row = (size_t)call->batch->slots[t] * slot_stride(a) + (size_t)call->batch->positions[t] * kv_width;
        memcpy(a->cache.keys + row, keys + (size_t)t * stride, kv_width * sizeof(float));
        memcpy(a->cache.values + row, values + (size_t)t * stride, kv_width * sizeof(float));
    }
    kernels()->attention_cached(out, qkv, stride, call->batch->n_tokens, shape->n_heads, shape->n_kv_heads,
                                shape->head_dim, shape->scale, call->batch->positions, call->batch->slots,
                                a->cache.keys, a->cache.values, slot_stride(a));
}

void op_attention_cached_forward(OpCall *call) {
    const Tensor *qkv = call->node->inputs[0], *out = call->node->outputs[0];
    size_t n_in = (size_t)call->batch->n_tokens * (size_t)qkv->width;
    size_t n_out = (size_t)call->batch->n_tokens * (size_t)out->width;
    if (qkv->dtype == DTYPE_F32) {
        attend(call, call->out[0], call->in[0]);
        return;
    }
    const bf16 *from = call->in[0];
    bf16 *to = call->out[0];
    float *wide = call->scratch, *wide_out = wide + n_in;
    for (size_t i = 0; i < n_in; i++) wide[i] = bf16_to_f32(from[i]);
    attend(call, wide_out, wide);
    for (size_t i = 0; i < n_out; i++) to[i] = f32_to_bf16(wide_out[i]);
}

size_t op_attention_cached_scratch(const Node *node, int capacity) {
    const Tensor *qkv = node->inputs[0];
    if (qkv->dtype == DTYPE_F32) return 0;
    return (size_t)capacity * (size_t)(qkv->width + node->outputs[0]->width);
}

double op_attention_cached_flops(const Node *node, const TapeBatch *batch) {
    const CachedAttributes *a = node->attributes;
    double pairs = 0;
    for (int t = 0; t < batch->n_tokens; t++) pairs += batch->positions[t] + 1;
    return 4.0 * pairs * a->shape.n_heads * a->shape.head_dim;
}
