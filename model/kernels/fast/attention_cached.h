/* Attention over a paged cache. A page holds a tile of keys. Rows of the same sequence that follow one another (a
 * prefill) go through the tiles of fast/attention.h, with a block's rows as lanes. A single row (a decoding step) would
 * fill one lane of those, so its lanes run over the head instead: scores are dot products, and o gathers p_j·v_j. A
 * bf16 cache is widened as it is read; everything else is fp32. Included by avx2_kernels.c and avx512_kernels.c behind
 * fast/bf16_attention.h.
 *
 * `half` is a constant at every call: whether q, cache and out are bf16. */
#ifndef CRIA_KERNELS_FAST_ATTENTION_CACHED_H
#define CRIA_KERNELS_FAST_ATTENTION_CACHED_H

#include "model/kernels/fast/attention.h"
#include "model/kernels/fast/bf16_attention.h"
#include "model/kernels/fast/cached_share.h"

static ALWAYS_INLINE vf cached_get(const void *x, size_t at, size_t n, const bool half) {
    return half ? vf_get_bf16((const bf16 *)x + at, n) : vf_get((const float *)x + at, n);
}

/* ---- single rows ---- */

/* scores[j] = q·k_j·scale in powers of 2, four keys at a time */
static ALWAYS_INLINE void row_scores(float *scores, const float *q, const void *k, size_t at, int n_keys, int head_dim,
                                     float scale, const bool half) {
    size_t n = (size_t)head_dim;
    for (int j = 0; j < n_keys; j += 4) {
        size_t key[4];
        vf sum[4];
        for (int u = 0; u < 4; u++) {
            key[u] = at + (size_t)(j + u < n_keys ? j + u : j) * n;
            sum[u] = vf_zero();
        }
        for (size_t i = 0; i < n; i += VF) {
            vf x = vf_get(q + i, n - i);
            for (int u = 0; u < 4; u++) sum[u] = vf_fma(x, cached_get(k, key[u] + i, n - i, half), sum[u]);
        }
        for (int u = 0; u < 4 && j + u < n_keys; u++) scores[j + u] = vf_total(sum[u]) * scale;
    }
}

/* scores become exp(score − top); o and sum follow the new maximum. */
static void row_softmax(float *scores, int n_keys, float *top, float *sum, float *o, int head_dim) {
    size_t n = (size_t)n_keys;
    float old = *top;
    for (int j = 0; j < n_keys; j++) *top = scores[j] > *top ? scores[j] : *top;
    vf shift = vf_set1(*top), total = vf_zero();
    for (size_t j = 0; j < n; j += VF) {
        vf p = vf_exp2(vf_get(scores + j, n - j) - shift);
        if (n - j < VF) p = vf_to_lane(p, (int)(n - j), vf_zero());
        vf_put(scores + j, n - j, p);
        total = total + p;
    }
    float shrink = exp2f(old - *top);
    *sum = *sum * shrink + vf_total(total);
    for (int d = 0; d < head_dim; d++) o[d] *= shrink;
}

/* o += Σ_j p_j·v_j, four vectors of the head at a time */
static ALWAYS_INLINE void row_gather(float *o, const float *p, const void *v, size_t at, int n_keys, int head_dim,
                                     const bool half) {
    enum { WIDE = 4 };
    size_t n = (size_t)head_dim, d = 0;
    for (; d + WIDE * VF <= n; d += WIDE * VF) {
        vf sum[WIDE];
        for (size_t u = 0; u < WIDE; u++) sum[u] = vf_load(o + d + u * VF);
        for (int j = 0; j < n_keys; j++) {
            vf weight = vf_set1(p[j]);
            for (size_t u = 0; u < WIDE; u++)
                sum[u] = vf_fma(weight, cached_get(v, at + (size_t)j * n + d + u * VF, VF, half), sum[u]);
        }
        for (size_t u = 0; u < WIDE; u++) vf_store(o + d + u * VF, sum[u]);
    }
    for (; d < n; d += VF) {
        vf sum = vf_get(o + d, n - d);
        for (int j = 0; j < n_keys; j++)
            sum = vf_fma(vf_set1(p[j]), cached_get(v, at + (size_t)j * n + d, n - d, half), sum);
        vf_put(o + d, n - d, sum);
    }
}

/* One head of a row against all its keys. */
static ALWAYS_INLINE void attend_row(const CachedCall *in, const CachedRow *row, int head, const bool half) {
    float q[MAX_HEAD_DIM], o[MAX_HEAD_DIM] = {0}, p[TILE_KEYS], top = -INFINITY, sum = 0;
    int head_dim = in->shape->head_dim, end = row->position + 1;
    size_t n = (size_t)head_dim, first = (size_t)head * n;
    for (size_t i = 0; i < n; i += VF) vf_put(q + i, n - i, cached_get(in->q, row->q + first + i, n - i, half));
    for (int j = 0; j < end; j += TILE_KEYS) {
        int n_keys = end - j < TILE_KEYS ? end - j : TILE_KEYS;
        size_t tile = cached_tile(row, j);
        row_scores(p, q, in->keys, tile, n_keys, head_dim, in->shape->scale * log2_e, half);
        row_softmax(p, n_keys, &top, &sum, o, head_dim);
        row_gather(o, p, in->values, tile, n_keys, head_dim, half);
    }
    for (size_t i = 0; i < n; i += VF) {
        vf x = vf_get(o + i, n - i) / vf_set1(sum);
        if (half)
            vf_put_bf16((bf16 *)in->out + row->out + first + i, n - i, x);
        else
            vf_put((float *)in->out + row->out + first + i, n - i, x);
    }
}

/* ---- rows that follow one another ---- */

/* A block of queries, `b` of the run that begins with `row`, against all its keys. */
static ALWAYS_INLINE void cached_block(const CachedCall *in, const CachedRow *row, const QueryBlock *block,
                                       const bool half) {
    ForwardTiles w;
    _Alignas(64) float room[TILE_KEYS * MAX_HEAD_DIM]; /* bf16: rows of the block, of keys, of values, of the block */
    int head_dim = in->shape->head_dim, offset = row->position + block->first;
    size_t heads = (size_t)in->shape->n_heads * (size_t)head_dim, stride = (size_t)head_dim;
    size_t width = (size_t)(block->heads * head_dim), head = (size_t)(block->head * head_dim);
    size_t q = row->q + (size_t)block->first * in->shape->stride + head;
    size_t out = row->out + (size_t)block->first * heads + head;
    QueryBlock b = *block;
    b.head = b.first = 0;
    AttentionRun run = {.q = half ? room : (const float *)in->q + q,
                        .out = half ? room : (float *)in->out + out,
                        .q_stride = half ? width : in->shape->stride,
                        .out_stride = half ? width : heads,
                        .head_dim = head_dim,
                        .offset = offset,
                        .scale = in->shape->scale};
    if (half) widen_rows(room, (const bf16 *)in->q + q, in->shape->stride, b.n, (int)width);
    forward_begin(&w, &run, &b);
    for (int j = 0, end = offset + b.n; j < end; j += TILE_KEYS) {
        KeyTile tile = key_tile(&b, offset, j, end);
        size_t at = cached_tile(row, j);
        if (half) widen_rows(room, (const bf16 *)in->keys + at, stride, tile.n, head_dim);
        tile_scores(w.s, &tile, &b, offset, half ? room : (const float *)in->keys + at, stride, w.q, head_dim);
        softmax_tile(&w, &tile, &b, offset, head_dim);
        if (half) widen_rows(room, (const bf16 *)in->values + at, stride, tile.n, head_dim);
        tile_gather(w.o, &tile, &b, offset, half ? room : (const float *)in->values + at, stride, w.s, head_dim);
    }
    forward_finish(&w, &run, &b);
    if (half) narrow_rows((bf16 *)in->out + out, heads, room, b.n, (int)width, false);
}

/* ---- the rows of the table ---- */

static ALWAYS_INLINE void cached_group(const CachedCall *in, const CachedRow *row, const bool half) {
    int group = in->shape->n_heads / in->shape->n_kv_heads;
    for (int h = 0; h < group; h++) attend_row(in, row, h, half);
}
static void single_row(const CachedCall *in, const CachedRow *row) {
    cached_group(in, row, false);
}
static void half_row(const CachedCall *in, const CachedRow *row) {
    cached_group(in, row, true);
}
static void single_block(const CachedCall *in, const CachedRow *row, const QueryBlock *block) {
    cached_block(in, row, block, false);
}
static void half_block_cached(const CachedCall *in, const CachedRow *row, const QueryBlock *block) {
    cached_block(in, row, block, true);
}

static void fast_attention_cached(float *out, const float *q, const float *keys, const float *values,
                                  const CachedAttention *c) {
    if (c->head_dim > MAX_HEAD_DIM)
        reference_attention_cached(out, q, keys, values, c);
    else
        cached_share(&(CachedCall){c, out, q, keys, values, single_row, single_block});
}

static void fast_bf16_attention_cached(bf16 *out, const bf16 *q, const bf16 *keys, const bf16 *values,
                                       const CachedAttention *c) {
    if (c->head_dim > MAX_HEAD_DIM)
        reference_bf16_attention_cached(out, q, keys, values, c);
    else
        cached_share(&(CachedCall){c, out, q, keys, values, half_row, half_block_cached});
}

#endif
