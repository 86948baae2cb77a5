/* The cache of keys and values of many sequences, for generation, in pages (Kwon et al. 2023, section 4): a sequence's
 * slot lists the pages that hold its positions, CACHE_PAGE to a page. Sequences that begin alike share the pages of
 * what they have in common; whoever writes to a shared page gets a copy of its own first. Of the memory that is mapped
 * only pages that were written to are taken. */
#ifndef CRIA_MODEL_KV_CACHE_H
#define CRIA_MODEL_KV_CACHE_H

#include "model/core/dtype.h"
#include "model/ops/ops.h"
#include "model/shape.h"

typedef struct {
    int n_slots, max_sequence; /* positions of a slot */
    int n_pages;               /* 0: enough for every slot to be full by itself */
    Dtype dtype;               /* that of the tape's activations: DTYPE_F32 or DTYPE_BF16 */
} KvCacheOptions;

typedef struct KvCache {
    KvCacheOptions options;
    int n_layers, slot_pages; /* pages of a full slot */
    KvLayer *layers;
    int32_t *pages;      /* [n_slots, slot_pages] */
    int *n_held;         /* [n_slots] pages that the slot lists */
    int32_t *references; /* [n_pages] slots that list the page */
    int32_t *unused;     /* a stack of pages */
    int n_unused;
    size_t page_bytes; /* of all layers */
    void *storage;
    size_t bytes;
} KvCache;

int kv_cache_new(KvCache **cache, const LlamaShape *shape, KvCacheOptions options);
void kv_cache_free(KvCache *cache);

/* The slot's positions [first, end) may be written from now on: it has pages for them that no other slot lists. Those
 * before `first` must be there. An error where no page is left. */
int kv_cache_extend(KvCache *cache, int slot, int first, int end);
/* Slot `to` gives up what it has, and begins with the first n positions of `from`, without copying them. */
void kv_cache_share(KvCache *cache, int to, int from, int n);
/* Gives up the pages beyond the slot's first n positions. */
void kv_cache_truncate(KvCache *cache, int slot, int n);

#endif
