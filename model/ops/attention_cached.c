/* Attention over a cache of keys and values, for prefill and decoding: the rows' own are stored first. No backward. */
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
    return tape_output(tape, node, ROWS_TOKENS, shape.n_heads * shape.head_dim, DTYPE_F32);
}

static size_t slot_stride(const CachedAttributes *a) {
    return (size_t)a->cache.max_sequence * (size_t)(a->shape.n_kv_heads * a->shape.head_dim);
}

void op_attention_cached_forward(OpCall *call) {
    const CachedAttributes *a = call->node->attributes;
    const AttentionShape *shape = &a->shape;
    size_t head_dim = (size_t)shape->head_dim, kv_width = (size_t)shape->n_kv_heads * head_dim;
    size_t stride = (size_t)call->node->inputs[0]->width;
    const float *qkv = call->in[0], *keys = qkv + (size_t)shape->n_heads * head_dim, *values = keys + kv_width;
    for (int t = 0; t < call->batch->n_tokens; t++) {
        size_t row = (size_t)call->batch->slots[t] * slot_stride(a) + (size_t)call->batch->positions[t] * kv_width;
        memcpy(a->cache.keys + row, keys + (size_t)t * stride, kv_width * sizeof(float));
        memcpy(a->cache.values + row, values + (size_t)t * stride, kv_width * sizeof(float));
    }
    kernels()->attention_cached(call->out[0], qkv, stride, call->batch->n_tokens, shape->n_heads, shape->n_kv_heads,
                                shape->head_dim, shape->scale, call->batch->positions, call->batch->slots,
                                a->cache.keys, a->cache.values, slot_stride(a));
}

double op_attention_cached_flops(const Node *node, const TapeBatch *batch) {
    const CachedAttributes *a = node->attributes;
    double pairs = 0;
    for (int t = 0; t < batch->n_tokens; t++) pairs += batch->positions[t] + 1;
    return 4.0 * pairs * a->shape.n_heads * a->shape.head_dim;
}
