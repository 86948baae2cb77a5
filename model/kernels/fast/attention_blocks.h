/* How tiled attention is cut: blocks of queries, tiles of keys, and which keys of a tile a query sees. Shared by the
 * fp32 and the bf16 kernels. */
#ifndef CRIA_KERNELS_ATTENTION_BLOCKS_H
#define CRIA_KERNELS_ATTENTION_BLOCKS_H

#include <stdbool.h>

#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "model/kernels/fast/simd.h"

enum { LANES = 64, TILE_KEYS = 64, MAX_HEAD_DIM = 256, LANE_VECTORS = LANES / VF };

static const float log2_e = 0x1.715476p+0f, ln_2 = 0x1.62e430p-1f;

/* A block: `heads` heads from `head` on, `n` queries from `first` on; each head has `vectors` vectors of lanes. */
typedef struct {
    int head, heads, first, n, vectors;
    size_t lanes; /* in all heads: the stride of the transposed arrays */
} QueryBlock;

/* How a group of heads is cut: as many heads as fit the lanes, then as many queries as fit beside them. */
static inline int block_heads(int group) {
    return group < LANE_VECTORS ? group : LANE_VECTORS;
}
static inline int block_queries(int group) {
    return LANE_VECTORS / block_heads(group) * VF;
}

static inline QueryBlock query_block(int head, int group, int first, int n_queries) {
    QueryBlock b = {.head = head, .first = first};
    int limit = block_queries(group);
    b.heads = group - head < block_heads(group) ? group - head : block_heads(group);
    b.n = n_queries - first < limit ? n_queries - first : limit;
    b.vectors = (b.n + VF - 1) / VF;
    b.lanes = (size_t)(b.heads * b.vectors * VF);
    return b;
}

/* A tile of keys against a block. `diagonal`: some query does not see some key. */
typedef struct {
    int begin, n;
    bool diagonal;
} KeyTile;

static inline KeyTile key_tile(const QueryBlock *b, int offset, int begin, int end) {
    int n = end - begin < TILE_KEYS ? end - begin : TILE_KEYS;
    return (KeyTile){begin, n, begin + n - 1 > offset + b->first};
}

/* Position, relative to the tile, of the first query of the v-th vector: lane l sees keys j <= position + l. */
static inline int vector_position(const KeyTile *tile, const QueryBlock *b, int offset, int v) {
    return offset + b->first + v % b->vectors * VF - tile->begin;
}

/* Keys of the tile that some lane of the vector sees. */
static inline int visible_keys(const KeyTile *tile, int position) {
    int n = position + VF;
    return n < 0 ? 0 : n < tile->n ? n : tile->n;
}

static inline int blocks_of(int n, int size) {
    return (n + size - 1) / size;
}

/* Enough units of a segment and a key/value head for all threads to end at about the same time */
static inline bool enough_units(Segments segments, int n_kv_heads) {
    enum { UNITS_PER_THREAD = 4 };
    int threads = threads_count();
    return threads == 1 || segments.n_segments * n_kv_heads >= UNITS_PER_THREAD * threads;
}

/* The backward pass, cut for threads. */
typedef struct {
    const void *context;
    /* dk and dv of keys [begin, end) of segment s and key/value head kv, from the queries from `first` on (a multiple
     * of a block's); with_dq: the queries' own gradients too. */
    void (*keys)(const void *context, int s, int kv, int first, int begin, int end, bool with_dq);
    /* dq of the block of queries that begins with `first` and, of the group, with `head` */
    void (*queries)(const void *context, int s, int kv, int head, int first);
} BackwardWork;

/* A unit is a segment and a key/value head. */
static void backward_whole(const BackwardWork *work, int n_kv_heads, Segments segments) {
#pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(threads_count())
    for (int s = 0; s < segments.n_segments; s++)
        for (int kv = 0; kv < n_kv_heads; kv++)
            work->keys(work->context, s, kv, 0, 0, segments.segment_start[s + 1] - segments.segment_start[s], true);
}

/* A unit is a block of queries for dq, then a block of keys for dk and dv. */
static void backward_split(const BackwardWork *work, int n_heads, int n_kv_heads, bool dq, bool dkv,
                           Segments segments) {
    enum { KEYS = 4 * TILE_KEYS };
    int group = n_heads / n_kv_heads, step = block_queries(group), head_blocks = blocks_of(group, block_heads(group));
#pragma omp parallel num_threads(threads_count())
    for (int s = 0; s < segments.n_segments; s++) {
        int n = segments.segment_start[s + 1] - segments.segment_start[s];
        int query_blocks = dq ? blocks_of(n, step) : 0, key_blocks = dkv ? blocks_of(n, KEYS) : 0;
#pragma omp for collapse(3) schedule(dynamic, 1) nowait
        for (int i = 0; i < query_blocks; i++)
            for (int kv = 0; kv < n_kv_heads; kv++)
                for (int h = 0; h < head_blocks; h++)
                    work->queries(work->context, s, kv, h * block_heads(group), (query_blocks - 1 - i) * step);
#pragma omp for collapse(2) schedule(dynamic, 1) nowait
        for (int j = 0; j < key_blocks; j++)
            for (int kv = 0; kv < n_kv_heads; kv++) {
                int end = (j + 1) * KEYS < n ? (j + 1) * KEYS : n;
                work->keys(work->context, s, kv, j * KEYS / step * step, j * KEYS, end, false);
            }
    }
}

static inline void backward_share(const BackwardWork *work, int n_heads, int n_kv_heads, bool dq, bool dkv,
                                  Segments segments) {
    if (enough_units(segments, n_kv_heads))
        backward_whole(work, n_kv_heads, segments);
    else
        backward_split(work, n_heads, n_kv_heads, dq, dkv, segments);
}

#endif
