/* Keys and values of every layer, slot and position: [layers][keys | values][slots, max_sequence, KV·HD]. */
#include <stdlib.h>

#include "model/core/error.h"
#include "model/llama.h"

static size_t layer_elements(const LlamaShape *shape, int n_slots, int max_sequence) {
    return (size_t)n_slots * (size_t)max_sequence * (size_t)shape->n_kv_heads * (size_t)shape->head_dim;
}

size_t kv_cache_bytes(const LlamaShape *shape, int n_slots, int max_sequence) {
    return 2 * (size_t)shape->n_layers * layer_elements(shape, n_slots, max_sequence) * sizeof(float);
}

int kv_cache_new(KvCache **out, const LlamaShape *shape, int n_slots, int max_sequence) {
    int rc = OK;
    KvCache *cache = calloc(1, sizeof *cache);
    *out = NULL;
    if (!cache) FAIL(ERR_FAILED, "out of memory");
    size_t n = layer_elements(shape, n_slots, max_sequence);
    cache->n_layers = shape->n_layers;
    cache->n_slots = n_slots;
    cache->max_sequence = max_sequence;
    cache->bytes = kv_cache_bytes(shape, n_slots, max_sequence);
    cache->layers = calloc((size_t)shape->n_layers, sizeof *cache->layers);
    cache->storage = pages_alloc(cache->bytes);
    if (!cache->layers || !cache->storage)
        FAIL_TO(failed, ERR_FAILED, "out of memory: %zu bytes for keys and values of %d sequences of %d tokens",
                cache->bytes, n_slots, max_sequence);
    for (int layer = 0; layer < shape->n_layers; layer++)
        cache->layers[layer] = (KvLayer){.keys = cache->storage + 2 * n * (size_t)layer,
                                         .values = cache->storage + 2 * n * (size_t)layer + n,
                                         .n_slots = n_slots,
                                         .max_sequence = max_sequence};
    *out = cache;
    return OK;
failed:
    kv_cache_free(cache);
    return rc;
}

void kv_cache_free(KvCache *cache) {
    if (!cache) return;
    pages_free(cache->storage, cache->bytes);
    free(cache->layers);
    free(cache);
}
