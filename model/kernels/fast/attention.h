/* Tiled attention (formulas in reference/attention.c; tiles with a running maximum as in Dao et al. 2022). Included by
 * avx2_kernels.c and avx512_kernels.c.
 *
 * Lanes run over queries. A block of queries of one segment, of one or several heads that share a key/value head, is
 * turned once into qt[HD, lanes]; then for each tile of keys
 *
 *   st[keys, lanes] = K·qt        rows of K are read where they are, one element at a time
 *   pt = exp(st − top)            maximum and sum run down the keys: no sums across lanes
 *   ot[HD, lanes] += Vᵀ·pt
 *
 * and ot is turned back at the end. Tiles that no query of the block may see are not visited; in tiles on the diagonal
 * each vector of queries stops at its last visible key. Powers are of 2: log2(e) goes into the scale of qt. A block's
 * result does not depend on who computes it, so blocks are handed out to threads as they come. */
#ifndef CRIA_KERNELS_FAST_ATTENTION_H
#define CRIA_KERNELS_FAST_ATTENTION_H

#include <math.h>
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/fast/attention_blocks.h"
#include "model/kernels/fast/tile.h"
#include "model/kernels/kernels.h"
#include "model/kernels/reference/reference.h"

/* Queries, keys and values of one segment and one key/value head; row 0 of k is position 0, row 0 of q is position
 * `offset` (0 unless keys come from a cache). out and lse point at query 0 and the first of the heads. */
typedef struct {
    const float *q, *k, *v;
    float *out, *lse;
    size_t q_stride, kv_stride, out_stride, lse_stride;
    int head_dim, offset;
    float scale;
} AttentionRun;

/* to[HD, lanes] = scale·rows of the block; lanes without a query are 0. */
static void block_pack(float *to, const QueryBlock *b, const float *rows, size_t stride, int head_dim, float scale) {
    size_t head_lanes = (size_t)(b->vectors * VF);
    if (b->n % VF != 0) memset(to, 0, (size_t)head_dim * b->lanes * sizeof *to);
    for (int h = 0; h < b->heads; h++)
        transpose(to + (size_t)h * head_lanes, b->lanes,
                  rows + (size_t)b->first * stride + (size_t)((b->head + h) * head_dim), stride, b->n, head_dim, scale,
                  false);
}

/* Rows of the block = (or +=) scale·from[HD, lanes], turned back. */
static void block_unpack(float *rows, size_t stride, const QueryBlock *b, const float *from, int head_dim, float scale,
                         bool add) {
    size_t head_lanes = (size_t)(b->vectors * VF);
    for (int h = 0; h < b->heads; h++)
        transpose(rows + (size_t)b->first * stride + (size_t)((b->head + h) * head_dim), stride,
                  from + (size_t)h * head_lanes, b->lanes, head_dim, b->n, scale, add);
}

/* `rows` is the tile's first: to[keys, lanes] = rows[keys, HD]·packed[HD, lanes], as far as visible */
static void tile_scores(float *to, const KeyTile *tile, const QueryBlock *b, int offset, const float *rows,
                        size_t stride, const float *packed, int head_dim) {
    TileProduct t = {rows, packed, to, stride, 1, b->lanes, b->lanes};
    if (!tile->diagonal) {
        tile_set(t, tile->n, (int)b->lanes, head_dim);
        return;
    }
    for (int v = 0; v < b->heads * b->vectors; v++, t.b += VF, t.c += VF)
        tile_set(t, visible_keys(tile, vector_position(tile, b, offset, v)), VF, head_dim);
}

/* to[HD, lanes] += rows[keys, HD]ᵀ·from[keys, lanes], as far as visible */
static void tile_gather(float *to, const KeyTile *tile, const QueryBlock *b, int offset, const float *rows,
                        size_t stride, const float *from, int head_dim) {
    TileProduct t = {rows, from, to, 1, stride, b->lanes, b->lanes};
    if (!tile->diagonal) {
        tile_add(t, head_dim, (int)b->lanes, tile->n);
        return;
    }
    for (int v = 0; v < b->heads * b->vectors; v++, t.b += VF, t.c += VF)
        tile_add(t, head_dim, VF, visible_keys(tile, vector_position(tile, b, offset, v)));
}

typedef struct {
    _Alignas(64) float q[MAX_HEAD_DIM * LANES];
    _Alignas(64) float o[MAX_HEAD_DIM * LANES];
    _Alignas(64) float s[TILE_KEYS * LANES];
    _Alignas(64) float top[LANES];
    _Alignas(64) float sum[LANES];
} ForwardTiles;

/* One vector of queries: the tile's scores become exp(score − top); top, sum and the column of o follow the maximum. */
static ALWAYS_INLINE void softmax_vector(ForwardTiles *w, size_t lanes, size_t at, int n_keys, int position,
                                         const bool masked, int head_dim) {
    float *s = w->s + at;
    vf hidden = vf_set1(-INFINITY), old = vf_load(w->top + at), top[2] = {old, old};
    for (int j = 0; j < n_keys; j++) {
        vf x = vf_load(s + (size_t)j * lanes);
        if (masked && j > position) {
            x = vf_from_lane(x, j - position, hidden);
            vf_store(s + (size_t)j * lanes, x);
        }
        top[j & 1] = vf_max(top[j & 1], x);
    }
    vf new = vf_max(top[0], top[1]), shrink = vf_exp2(old - new), sum = vf_zero();
    for (int j = 0; j < n_keys; j++) {
        vf p = vf_exp2(vf_load(s + (size_t)j * lanes) - new);
        vf_store(s + (size_t)j * lanes, p);
        sum = sum + p;
    }
    vf_store(w->top + at, new);
    vf_store(w->sum + at, vf_fma(vf_load(w->sum + at), shrink, sum));
    for (int d = 0; d < head_dim; d++) {
        float *o = w->o + (size_t)d * lanes + at;
        vf_store(o, vf_load(o) * shrink);
    }
}

static void softmax_tile(ForwardTiles *w, const KeyTile *tile, const QueryBlock *b, int offset, int head_dim) {
    for (int v = 0; v < b->heads * b->vectors; v++) {
        int position = vector_position(tile, b, offset, v), n_keys = visible_keys(tile, position);
        if (n_keys == 0) continue;
        if (tile->diagonal)
            softmax_vector(w, b->lanes, (size_t)v * VF, n_keys, position, true, head_dim);
        else
            softmax_vector(w, b->lanes, (size_t)v * VF, n_keys, position, false, head_dim);
    }
}

static void forward_finish(ForwardTiles *w, const AttentionRun *run, const QueryBlock *b) {
    for (size_t at = 0; at < b->lanes; at += VF) {
        vf inverse = vf_set1(1) / vf_load(w->sum + at);
        for (int d = 0; d < run->head_dim; d++) {
            float *o = w->o + (size_t)d * b->lanes + at;
            vf_store(o, vf_load(o) * inverse);
        }
    }
    block_unpack(run->out, run->out_stride, b, w->o, run->head_dim, 1, false);
    for (int h = 0; run->lse && h < b->heads; h++)
        for (int i = 0; i < b->n; i++) {
            size_t lane = (size_t)(h * b->vectors * VF + i);
            run->lse[(size_t)(b->first + i) * run->lse_stride + (size_t)(b->head + h)] =
                w->top[lane] * ln_2 + logf(w->sum[lane]);
        }
}

static void forward_begin(ForwardTiles *w, const AttentionRun *run, const QueryBlock *b) {
    block_pack(w->q, b, run->q, run->q_stride, run->head_dim, run->scale * log2_e);
    for (size_t i = 0; i < b->lanes; i++) {
        w->top[i] = -INFINITY;
        w->sum[i] = 0;
    }
    memset(w->o, 0, (size_t)run->head_dim * b->lanes * sizeof *w->o);
}

static void forward_block(const AttentionRun *run, const QueryBlock *b) {
    ForwardTiles w;
    forward_begin(&w, run, b);
    int end = run->offset + b->first + b->n;
    for (int j = 0; j < end; j += TILE_KEYS) {
        KeyTile tile = key_tile(b, run->offset, j, end);
        size_t row = (size_t)j * run->kv_stride;
        tile_scores(w.s, &tile, b, run->offset, run->k + row, run->kv_stride, w.q, run->head_dim);
        softmax_tile(&w, &tile, b, run->offset, run->head_dim);
        tile_gather(w.o, &tile, b, run->offset, run->v + row, run->kv_stride, w.s, run->head_dim);
    }
    forward_finish(&w, run, b);
}

/* Segment `s` and key/value head `kv` of the inputs. */
static AttentionRun attention_run(float *out, float *lse, const AttentionInputs *in, int first_row, int kv) {
    size_t head_dim = (size_t)in->head_dim, row = (size_t)first_row, heads = (size_t)in->n_heads;
    size_t group = heads / (size_t)in->n_kv_heads, head = (size_t)kv * group;
    AttentionRun run = {.q_stride = in->q_stride,
                        .kv_stride = in->kv_stride,
                        .out_stride = heads * head_dim,
                        .lse_stride = heads,
                        .head_dim = in->head_dim,
                        .scale = in->scale};
    run.q = in->q + row * in->q_stride + head * head_dim;
    run.k = in->k + row * in->kv_stride + (size_t)kv * head_dim;
    run.v = in->v + row * in->kv_stride + (size_t)kv * head_dim;
    run.out = out ? out + (row * heads + head) * head_dim : NULL;
    run.lse = lse ? lse + row * heads + head : NULL;
    return run;
}

static void fast_attention_forward(float *out, float *lse, const AttentionInputs *in, Segments segments) {
    if (in->head_dim > MAX_HEAD_DIM) {
        reference_attention_forward(out, lse, in, segments);
        return;
    }
    int group = in->n_heads / in->n_kv_heads, head_blocks = blocks_of(group, block_heads(group));
#pragma omp parallel num_threads(threads_count())
    for (int s = 0; s < segments.n_segments; s++) {
        int first_row = segments.segment_start[s], n = segments.segment_start[s + 1] - first_row;
        int blocks = blocks_of(n, block_queries(group));
#pragma omp for collapse(3) schedule(dynamic, 1) nowait
        for (int i = 0; i < blocks; i++) /* the last blocks see the most keys: they go first */
            for (int kv = 0; kv < in->n_kv_heads; kv++)
                for (int h = 0; h < head_blocks; h++) {
                    AttentionRun run = attention_run(out, lse, in, first_row, kv);
                    QueryBlock b =
                        query_block(h * block_heads(group), group, (blocks - 1 - i) * block_queries(group), n);
                    forward_block(&run, &b);
                }
    }
}

#endif
