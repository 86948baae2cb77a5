/* Attention over a cache of keys and values, for prefill and decoding: the rows' own are stored first. The cache has
 * the dtype of the rows. No backward. */
#include <string.h>

#include "model/core/threads.h"
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

/* Keys and values of rows [begin, end), into their pages */
static void store_rows(void *context, size_t begin, size_t end, int thread) {
    const OpCall *call = context;
    const CachedAttributes *a = call->node->attributes;
    size_t KV = (size_t)a->shape.n_kv_heads, size = dtype_size(a->cache.dtype), head = (size_t)a->shape.head_dim * size;
    size_t keys = (size_t)a->shape.n_heads * head, width = (size_t)call->node->inputs[0]->width * size;
    (void)thread;
    for (size_t t = begin; t < end; t++) {
        int32_t position = call->batch->positions[t], slot = call->batch->slots[t];
        int32_t page = a->cache.pages[slot * a->cache.slot_pages + position / CACHE_PAGE];
        size_t to = ((size_t)page * KV * CACHE_PAGE + (size_t)(position % CACHE_PAGE)) * head;
        const char *from = (const char *)call->in[0] + t * width + keys;
        for (size_t kv = 0; kv < KV; kv++, to += CACHE_PAGE * head) {
            memcpy((char *)a->cache.keys + to, from + kv * head, head);
            memcpy((char *)a->cache.values + to, from + (KV + kv) * head, head);
        }
    }
}

void op_attention_cached_forward(OpCall *call) {
    enum { GRAIN = 64 };
    const CachedAttributes *a = call->node->attributes;
    CachedAttention c = {.n_tokens = call->batch->n_tokens,
                         .n_heads = a->shape.n_heads,
                         .n_kv_heads = a->shape.n_kv_heads,
                         .head_dim = a->shape.head_dim,
                         .scale = a->shape.scale,
                         .q_stride = (size_t)call->node->inputs[0]->width,
                         .positions = call->batch->positions,
                         .slots = call->batch->slots,
                         .pages = a->cache.pages,
                         .page_stride = (size_t)a->cache.slot_pages};
    parallel_for((size_t)c.n_tokens, GRAIN, store_rows, call);
    if (a->cache.dtype == DTYPE_BF16)
        kernels()->bf16.attention_cached(call->out[0], call->in[0], a->cache.keys, a->cache.values, &c);
    else
        kernels()->attention_cached(call->out[0], call->in[0], a->cache.keys, a->cache.values, &c);
}

double op_attention_cached_flops(const Node *node, const TapeBatch *batch) {
    const CachedAttributes *a = node->attributes;
    double pairs = 0;
    for (int t = 0; t < batch->n_tokens; t++) pairs += batch->positions[t] + 1;
    return 4.0 * pairs * a->shape.n_heads * a->shape.head_dim;
}
