/* How tiled attention is cut: blocks of queries, tiles of keys, and which keys of a tile a query sees. Shared by the
 * fp32 and the bf16 kernels. */
#ifndef CRIA_KERNELS_ATTENTION_BLOCKS_H
#define CRIA_KERNELS_ATTENTION_BLOCKS_H

#include <stdbool.h>

#include "model/kernels/simd.h"

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

#endif
