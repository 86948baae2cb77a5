/* How attention over a paged cache is shared out among threads: single rows (of decoding sequences), a unit for each
 * key/value head, and rows of one sequence that follow one another (of a prompt), as blocks of queries. What a unit
 * does is the including file's. */
#ifndef CRIA_KERNELS_CACHED_SHARE_H
#define CRIA_KERNELS_CACHED_SHARE_H

#include <omp.h>

#include "model/kernels/fast/attention_blocks.h"

_Static_assert((int)CACHE_PAGE == (int)TILE_KEYS, "a page holds a tile");

/* Of row t and key/value head kv. */
typedef struct {
    size_t q, out, kv; /* elements: of the head's first query, of its output, of the head in a page */
    size_t page;       /* elements of a page */
    const int32_t *pages;
    int position;
} CachedRow;

typedef struct CachedCall {
    const CachedAttention *shape;
    void *out;
    const void *q, *keys, *values;
    /* All query heads of the row's key/value head. */
    void (*row)(const struct CachedCall *call, const CachedRow *row);
    /* A block of queries of the run that begins with the row. */
    void (*block)(const struct CachedCall *call, const CachedRow *row, const QueryBlock *block);
} CachedCall;

static inline CachedRow cached_row(const CachedAttention *c, int t, int kv) {
    size_t HD = (size_t)c->head_dim, H = (size_t)c->n_heads, first = (size_t)kv * (H / (size_t)c->n_kv_heads) * HD;
    return (CachedRow){.q = (size_t)t * c->stride + first,
                       .out = (size_t)t * H * HD + first,
                       .kv = (size_t)kv * CACHE_PAGE * HD,
                       .page = c->page_size,
                       .pages = c->pages + (size_t)c->slots[t] * c->page_stride,
                       .position = c->positions[t]};
}
/* Where the keys (values) of the tile that begins with position j are, in elements. */
static inline size_t cached_tile(const CachedRow *row, int j) {
    return (size_t)row->pages[j / CACHE_PAGE] * row->page + row->kv;
}

/* Rows from t on that follow one another in one sequence. */
static int rows_in_sequence(const CachedAttention *c, int t) {
    int n = 1;
    while (t + n < c->n_tokens && c->slots[t + n] == c->slots[t] && c->positions[t + n] == c->positions[t] + n) n++;
    return n;
}

/* Units that a thread takes at a time: what follows is in reach of prefetches, and uneven lengths even out. */
static inline int cached_chunk(int units) {
    enum { CHUNKS = 8 }; /* for each thread */
    return units / (CHUNKS * omp_get_num_threads()) + 1;
}

/* n rows from t on, each on its own. Worksharing: all threads of the team call it. */
static void cached_rows(const CachedCall *call, int t, int n) {
    int n_kv_heads = call->shape->n_kv_heads;
#pragma omp for collapse(2) schedule(dynamic, cached_chunk(n *n_kv_heads)) nowait
    for (int i = t; i < t + n; i++)
        for (int kv = 0; kv < n_kv_heads; kv++) {
            CachedRow row = cached_row(call->shape, i, kv);
            call->row(call, &row);
        }
}

/* n rows from t on that follow one another. Worksharing. */
static void cached_blocks(const CachedCall *call, int t, int n) {
    int group = call->shape->n_heads / call->shape->n_kv_heads, n_kv_heads = call->shape->n_kv_heads;
    int blocks = blocks_of(n, block_queries(group)), head_blocks = blocks_of(group, block_heads(group));
#pragma omp for collapse(3) schedule(dynamic, 1) nowait
    for (int i = 0; i < blocks; i++)
        for (int kv = 0; kv < n_kv_heads; kv++)
            for (int h = 0; h < head_blocks; h++) {
                CachedRow row = cached_row(call->shape, t, kv);
                QueryBlock b = query_block(h * block_heads(group), group, (blocks - 1 - i) * block_queries(group), n);
                call->block(call, &row, &b);
            }
}

/* Multiply-adds worth a fork and join. */
static bool cached_worth_threads(const CachedAttention *c) {
    enum { FORK_WORK = 1 << 16 };
    double work = 0;
    for (int t = 0; t < c->n_tokens && work < FORK_WORK; t++)
        work += 2.0 * (c->positions[t] + 1) * c->n_heads * c->head_dim;
    return work >= FORK_WORK;
}

static void cached_share(const CachedCall *call) {
    enum { PREFILL = 4 }; /* rows that are worth a block, most lanes of which may be empty */
    const CachedAttention *c = call->shape;
#pragma omp parallel num_threads(threads_count()) if (cached_worth_threads(c))
    for (int t = 0; t < c->n_tokens;) {
        int n = rows_in_sequence(c, t);
        if (n >= PREFILL) {
            cached_blocks(call, t, n);
        } else { /* as many single rows as follow */
            while (t + n < c->n_tokens) {
                int next = rows_in_sequence(c, t + n);
                if (next >= PREFILL) break;
                n += next;
            }
            cached_rows(call, t, n);
        }
        t += n;
    }
}

#endif
