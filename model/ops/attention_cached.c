/* Attention over a cache of keys and values, for prefill and decoding: the rows' own are stored first. The cache has
 * the dtype of the rows. No backward. */
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
    if (qkv->dtype != cache->dtype)
        return tape_fail(tape, "attention_cached: rows of %s, and the cache is %s", dtype_name(qkv->dtype),
                         dtype_name(cache->dtype));
    tape_limit_positions(tape, cache->max_sequence);
    tape_limit_slots(tape, cache->n_slots);
    return tape_output(tape, node, ROWS_TOKENS, shape.n_heads * shape.head_dim, qkv->dtype);
}

void op_attention_cached_forward(OpCall *call) {
    const CachedAttributes *a = call->node->attributes;
    const AttentionShape *shape = &a->shape;
    size_t head_dim = (size_t)shape->head_dim, keys = (size_t)shape->n_heads * head_dim;
    size_t width = (size_t)shape->n_kv_heads * head_dim;
    CachedAttention c = {.n_tokens = call->batch->n_tokens,
                         .n_heads = shape->n_heads,
                         .n_kv_heads = shape->n_kv_heads,
                         .head_dim = shape->head_dim,
                         .scale = shape->scale,
                         .stride = (size_t)call->node->inputs[0]->width,
                         .positions = call->batch->positions,
                         .slots = call->batch->slots,
                         .pages = a->cache.pages,
                         .page_stride = (size_t)a->cache.slot_pages,
                         .page_size = a->cache.page_size};
    if (a->cache.dtype == DTYPE_BF16) {
        const bf16 *rows = call->in[0];
        kernels()->bf16.cache_store(a->cache.keys, a->cache.values, rows + keys, rows + keys + width, &c);
        kernels()->bf16.attention_cached(call->out[0], rows, a->cache.keys, a->cache.values, &c);
    } else {
        const float *rows = call->in[0];
        kernels()->cache_store(a->cache.keys, a->cache.values, rows + keys, rows + keys + width, &c);
        kernels()->attention_cached(call->out[0], rows, a->cache.keys, a->cache.values, &c);
    }
}

double op_attention_cached_flops(const Node *node, const TapeBatch *batch) {
    const CachedAttributes *a = node->attributes;
    double pairs = 0;
    for (int t = 0; t < batch->n_tokens; t++) pairs += batch->positions[t] + 1;
    return 4.0 * pairs * a->shape.n_heads * a->shape.head_dim;
}
