/* The backward pass of tiled attention, with the blocks and tiles of fast/attention.h. For each block of queries,
 * packed as qt and gt (g = dL/do), and each tile of keys:
 *
 *   pt = exp(K·qt − L)    dst = scale·pt·(V·gt − δ)        both [keys, lanes]
 *   dqt += Kᵀ·dst         dv += pt·g        dk += dst·q    lanes of the last two run over the head's width
 *
 * dk and dv of a segment and key/value head belong to one thread, which goes through the blocks of queries in order.
 * Where there are too few of those to share out, dq is computed by blocks of queries and then dk and dv by blocks of
 * keys, which computes pt and dst twice but makes the same sums in the same order: the results are the same bits. */
#ifndef CRIA_KERNELS_FAST_ATTENTION_BACKWARD_H
#define CRIA_KERNELS_FAST_ATTENTION_BACKWARD_H

#include "model/kernels/fast/attention.h"

typedef struct {
    AttentionRun run; /* out: what forward gave */
    const float *dout;
    float *dq, *dk, *dv; /* at the strides of q, k, v; NULL where not wanted */
    int n_queries, group;
} BackwardRun;

typedef struct {
    _Alignas(64) float q[MAX_HEAD_DIM * LANES];
    _Alignas(64) float g[MAX_HEAD_DIM * LANES];
    _Alignas(64) float dq[MAX_HEAD_DIM * LANES];
    _Alignas(64) float p[TILE_KEYS * LANES];
    _Alignas(64) float ds[TILE_KEYS * LANES];
    _Alignas(64) float lse[LANES]; /* in powers of 2 */
    _Alignas(64) float delta[LANES];
} BackwardTiles;

/* Packs q and g, and computes delta and lse per lane. Lanes without a query get an lse that makes their p 0. */
static void backward_pack(BackwardTiles *w, const BackwardRun *r, const QueryBlock *b) {
    const AttentionRun *run = &r->run;
    const float no_query = 1e30f;
    block_pack(w->g, b, r->dout, run->out_stride, run->head_dim, 1);
    block_pack(w->q, b, run->out, run->out_stride, run->head_dim, 1); /* o, for a moment */
    for (size_t at = 0; at < b->lanes; at += VF) {
        vf delta = vf_zero();
        for (int d = 0; d < run->head_dim; d++) {
            size_t i = (size_t)d * b->lanes + at;
            delta = vf_fma(vf_load(w->g + i), vf_load(w->q + i), delta);
        }
        vf_store(w->delta + at, delta);
        vf_store(w->lse + at, vf_set1(no_query));
    }
    block_pack(w->q, b, run->q, run->q_stride, run->head_dim, run->scale * log2_e);
    for (int h = 0; h < b->heads; h++)
        for (int i = 0; i < b->n; i++)
            w->lse[h * b->vectors * VF + i] =
                run->lse[(size_t)(b->first + i) * run->lse_stride + (size_t)(b->head + h)] * log2_e;
    if (r->dq) memset(w->dq, 0, (size_t)run->head_dim * b->lanes * sizeof *w->dq);
}

/* Scores in p and V·gt in ds become p and ds. */
static ALWAYS_INLINE void gradient_vector(BackwardTiles *w, size_t lanes, size_t at, int n_keys, int position,
                                          const bool masked, float scale) {
    vf lse = vf_load(w->lse + at), delta = vf_load(w->delta + at), factor = vf_set1(scale);
    for (int j = 0; j < n_keys; j++) {
        float *p_at = w->p + (size_t)j * lanes + at, *ds_at = w->ds + (size_t)j * lanes + at;
        vf p = vf_exp2(vf_load(p_at) - lse);
        if (masked && j > position) p = vf_from_lane(p, j - position, vf_zero());
        vf_store(p_at, p);
        vf_store(ds_at, p * factor * (vf_load(ds_at) - delta));
    }
}

static void gradient_tile(BackwardTiles *w, const KeyTile *tile, const QueryBlock *b, int offset, float scale) {
    for (int v = 0; v < b->heads * b->vectors; v++) {
        int position = vector_position(tile, b, offset, v), n_keys = visible_keys(tile, position);
        if (tile->diagonal)
            gradient_vector(w, b->lanes, (size_t)v * VF, n_keys, position, true, scale);
        else
            gradient_vector(w, b->lanes, (size_t)v * VF, n_keys, position, false, scale);
    }
}

/* to[keys, HD] += from[keys, lanes]·rows[queries, HD], head by head; on the diagonal vector by vector. `to` is the
 * tile's first row, `rows` the block's first query of its first head. */
static void tile_scatter(float *to, size_t to_stride, const KeyTile *tile, const QueryBlock *b, int offset,
                         const float *from, const float *rows, size_t stride, int head_dim) {
    TileProduct t = {.c = to, .a_row = b->lanes, .a_column = 1, .b_stride = stride, .c_stride = to_stride};
    int step = tile->diagonal ? VF : b->n;
    for (int h = 0; h < b->heads; h++)
        for (int i = 0; i < b->n; i += step) {
            int n_queries = b->n - i < step ? b->n - i : step;
            int n_keys = tile->diagonal ? visible_keys(tile, vector_position(tile, b, offset, i / VF)) : tile->n;
            t.a = from + h * b->vectors * VF + i;
            t.b = rows + (size_t)i * stride + (size_t)(h * head_dim);
            tile_add(t, n_keys, head_dim, n_queries);
        }
}

/* One block of queries against keys [key_begin, key_end). */
static void backward_block(const BackwardRun *r, const QueryBlock *b, int key_begin, int key_end, bool accumulate) {
    const AttentionRun *run = &r->run;
    int head_dim = run->head_dim, last = b->first + b->n, end = key_end < last ? key_end : last;
    size_t stride = run->kv_stride, head = (size_t)(b->head * head_dim), first = (size_t)b->first;
    const float *dout = r->dout + first * run->out_stride + head, *q = run->q + first * run->q_stride + head;
    BackwardTiles w;
    backward_pack(&w, r, b);
    for (int j = key_begin; j < end; j += TILE_KEYS) {
        KeyTile tile = key_tile(b, 0, j, end);
        size_t row = (size_t)j * stride;
        tile_scores(w.p, &tile, b, 0, run->k + row, stride, w.q, head_dim);
        tile_scores(w.ds, &tile, b, 0, run->v + row, stride, w.g, head_dim);
        gradient_tile(&w, &tile, b, 0, run->scale);
        if (r->dq) tile_gather(w.dq, &tile, b, 0, run->k + row, stride, w.ds, head_dim);
        if (r->dv) tile_scatter(r->dv + row, stride, &tile, b, 0, w.p, dout, run->out_stride, head_dim);
        if (r->dk) tile_scatter(r->dk + row, stride, &tile, b, 0, w.ds, q, run->q_stride, head_dim);
    }
    if (r->dq) block_unpack(r->dq, run->q_stride, b, w.dq, head_dim, 1, accumulate);
}

static void zero_rows(float *x, size_t stride, int begin, int end, int width) {
    for (int j = begin; x && j < end; j++) memset(x + (size_t)j * stride, 0, (size_t)width * sizeof *x);
}

typedef struct {
    float *dq, *dk, *dv;
    const float *dout, *out, *lse;
    const AttentionInputs *in;
    Segments segments;
    bool accumulate;
} BackwardArrays;

static BackwardRun backward_run(const BackwardArrays *a, int s, int kv) {
    const Segments segments = a->segments;
    int first = segments.segment_start[s], group = a->in->n_heads / a->in->n_kv_heads;
    size_t row = (size_t)first, head_dim = (size_t)a->in->head_dim, head = (size_t)(kv * group) * head_dim;
    /* the run only reads out and lse here */
    BackwardRun r = {.run = attention_run((float *)(uintptr_t)a->out, (float *)(uintptr_t)a->lse, a->in, first, kv)};
    r.dout = a->dout + row * r.run.out_stride + head;
    r.dq = a->dq ? a->dq + row * a->in->q_stride + head : NULL;
    r.dk = a->dk ? a->dk + row * a->in->kv_stride + (size_t)kv * head_dim : NULL;
    r.dv = a->dv ? a->dv + row * a->in->kv_stride + (size_t)kv * head_dim : NULL;
    r.n_queries = segments.segment_start[s + 1] - first;
    r.group = group;
    return r;
}

static void fast_backward_keys(const void *context, int s, int kv, int first, int begin, int end, bool with_dq) {
    const BackwardArrays *a = context;
    BackwardRun r = backward_run(a, s, kv);
    if (!with_dq) r.dq = NULL;
    if (!a->accumulate) {
        zero_rows(r.dk, r.run.kv_stride, begin, end, r.run.head_dim);
        zero_rows(r.dv, r.run.kv_stride, begin, end, r.run.head_dim);
    }
    for (int i = first; i < r.n_queries; i += block_queries(r.group))
        for (int h = 0; h < r.group; h += block_heads(r.group)) {
            QueryBlock b = query_block(h, r.group, i, r.n_queries);
            backward_block(&r, &b, begin, end, a->accumulate);
        }
}

static void fast_backward_queries(const void *context, int s, int kv, int head, int first) {
    const BackwardArrays *a = context;
    BackwardRun r = backward_run(a, s, kv);
    QueryBlock b = query_block(head, r.group, first, r.n_queries);
    r.dk = r.dv = NULL;
    backward_block(&r, &b, 0, r.n_queries, a->accumulate);
}

static void fast_attention_backward(float *dq, float *dk, float *dv, bool accumulate, const float *dout,
                                    const float *out, const float *lse, const AttentionInputs *in, Segments segments,
                                    float *scratch) {
    if (in->head_dim > MAX_HEAD_DIM) {
        reference_attention_backward(dq, dk, dv, accumulate, dout, out, lse, in, segments, scratch);
        return;
    }
    BackwardArrays a = {dq, dk, dv, dout, out, lse, in, segments, accumulate};
    BackwardWork work = {&a, fast_backward_keys, fast_backward_queries};
    backward_share(&work, in->n_heads, in->n_kv_heads, dq, dk || dv, segments);
}

#endif
