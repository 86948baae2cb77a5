/* Storage: [pages][layers][keys | values][KV·CACHE_PAGE·HD]. */
#include "model/kv_cache.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/arena.h"
#include "model/kernels/kernels.h"

static int pages_for(int n) {
    return (n + CACHE_PAGE - 1) / CACHE_PAGE;
}

static char *page_at(const KvCache *cache, int32_t page) {
    return (char *)cache->storage + (size_t)page * cache->page_bytes;
}

static int allocate(KvCache *cache) {
    const KvCacheOptions *o = &cache->options;
    size_t slots = (size_t)o->n_slots, pages = (size_t)o->n_pages;
    cache->layers = calloc((size_t)cache->n_layers, sizeof *cache->layers);
    cache->pages = calloc(slots * (size_t)cache->slot_pages, sizeof *cache->pages);
    cache->n_held = calloc(slots, sizeof *cache->n_held);
    cache->references = calloc(pages, sizeof *cache->references);
    cache->unused = malloc(pages * sizeof *cache->unused);
    cache->storage = pages_alloc(cache->bytes);
    pages_large(cache->storage, cache->bytes);
    if (cache->layers && cache->pages && cache->n_held && cache->references && cache->unused && cache->storage)
        return OK;
    FAIL(ERR_FAILED, "out of memory: %zu bytes for keys and values of %d sequences of %d tokens", cache->bytes,
         o->n_slots, o->max_sequence);
}

int kv_cache_new(KvCache **out, const LlamaShape *shape, KvCacheOptions options) {
    KvCache *cache = calloc(1, sizeof *cache);
    *out = NULL;
    if (!cache) FAIL(ERR_FAILED, "out of memory");
    cache->options = options;
    cache->n_layers = shape->n_layers;
    cache->slot_pages = pages_for(options.max_sequence);
    if (options.n_pages == 0) cache->options.n_pages = options.n_slots * cache->slot_pages;
    size_t elements = CACHE_PAGE * (size_t)(shape->n_kv_heads * shape->head_dim), size = dtype_size(options.dtype);
    cache->page_bytes = 2 * (size_t)shape->n_layers * elements * size;
    cache->bytes = (size_t)cache->options.n_pages * cache->page_bytes;
    int rc = allocate(cache);
    if (rc != OK) {
        kv_cache_free(cache);
        return rc;
    }
    for (int layer = 0; layer < cache->n_layers; layer++)
        cache->layers[layer] = (KvLayer){.keys = page_at(cache, 0) + (size_t)(2 * layer) * elements * size,
                                         .values = page_at(cache, 0) + (size_t)(2 * layer + 1) * elements * size,
                                         .page_size = cache->page_bytes / size,
                                         .pages = cache->pages,
                                         .slot_pages = cache->slot_pages,
                                         .n_slots = options.n_slots,
                                         .max_sequence = options.max_sequence,
                                         .dtype = options.dtype};
    for (int32_t page = cache->options.n_pages - 1; page >= 0; page--) cache->unused[cache->n_unused++] = page;
    *out = cache;
    return OK;
}

void kv_cache_free(KvCache *cache) {
    if (!cache) return;
    pages_free(cache->storage, cache->bytes);
    free(cache->layers);
    free(cache->pages);
    free(cache->n_held);
    free(cache->references);
    free(cache->unused);
    free(cache);
}

static int32_t *slot_pages(const KvCache *cache, int slot) {
    return cache->pages + (size_t)slot * (size_t)cache->slot_pages;
}

static int take_page(KvCache *cache, int32_t *page) {
    if (cache->n_unused == 0) FAIL(ERR_FAILED, "all %d pages of the cache are in use", cache->options.n_pages);
    *page = cache->unused[--cache->n_unused];
    cache->references[*page] = 1;
    return OK;
}

static void drop_page(KvCache *cache, int32_t page) {
    if (--cache->references[page] == 0) cache->unused[cache->n_unused++] = page;
}

int kv_cache_extend(KvCache *cache, int slot, int first, int end) {
    int32_t *held = slot_pages(cache, slot), page;
    for (int i = first / CACHE_PAGE; i < pages_for(end); i++) {
        bool listed = i < cache->n_held[slot];
        if (listed && cache->references[held[i]] == 1) continue;
        TRY(take_page(cache, &page));
        if (listed) {
            memcpy(page_at(cache, page), page_at(cache, held[i]), cache->page_bytes);
            drop_page(cache, held[i]);
        } else {
            cache->n_held[slot]++;
        }
        held[i] = page;
    }
    return OK;
}

void kv_cache_truncate(KvCache *cache, int slot, int n) {
    const int32_t *held = slot_pages(cache, slot);
    while (cache->n_held[slot] > pages_for(n)) drop_page(cache, held[--cache->n_held[slot]]);
}

void kv_cache_share(KvCache *cache, int to, int from, int n) {
    if (to == from) {
        kv_cache_truncate(cache, to, n);
        return;
    }
    kv_cache_truncate(cache, to, 0);
    cache->n_held[to] = pages_for(n);
    memcpy(slot_pages(cache, to), slot_pages(cache, from), (size_t)pages_for(n) * sizeof(int32_t));
    for (int i = 0; i < pages_for(n); i++) cache->references[slot_pages(cache, to)[i]]++;
}
