/* The backward pass of tiled attention in bf16, with the blocks, tiles and packings of pair_attention.h. For each block
 * of queries, packed as qt and gt (g = dL/do, lanes are queries) and as pairs of queries, and each tile of keys:
 *
 *   pt = 2^(scale·log2(e)·K·qt − L)    dst = pt·(V·gt − δ)    in registers, then rounded to bf16
 *   dqt[HD, lanes] += Kᵀ·dst           K and dst as pairs of keys
 *   dv[keys, HD] += pt·g               pt and g as pairs of queries
 *   dk[keys, HD] += dst·q              the same
 *
 * −δ is where the sums of V·gt begin; the scale is left to the end of dq and dk. All sums are fp32.
 *
 * dk and dv of a segment and key/value head are summed in a thread's slot of the scratch, over the blocks of queries in
 * order. Where there are too few such units to share out, dq is computed by blocks of queries and then dk and dv by
 * blocks of keys: pt and dst twice, the same sums in the same order, the same bits. */
#ifndef CRIA_KERNELS_PAIR_ATTENTION_BACKWARD_H
#define CRIA_KERNELS_PAIR_ATTENTION_BACKWARD_H

#include <omp.h>

#include "model/kernels/fast/pair_attention.h"

typedef struct {
    PairRun run; /* out: what forward gave */
    const bf16 *dout;
    bf16 *dq, *dk, *dv; /* at the strides of q, k, v; NULL where not wanted */
    bool accumulate;
} PairGradients;

/* Keys [begin, end) of a run: packed, and the sums of their gradients. */
typedef struct {
    int begin, end;
    float *dk, *dv;        /* [keys, padded] */
    Pair *k, *v, *k_pairs; /* [keys/4, HD/2, 4] twice, [keys/2, padded] */
} KeySlot;

typedef struct {
    _Alignas(64) Pair q[MAX_PAIRS * LANES], g[MAX_PAIRS * LANES];                           /* [HD/2, lanes] */
    _Alignas(64) Pair q_pairs[LANES / 2 * MAX_HEAD_DIM], g_pairs[LANES / 2 * MAX_HEAD_DIM]; /* [lanes/2, padded] */
    _Alignas(64) float dq[MAX_HEAD_DIM * LANES];
    _Alignas(64) Pair p[TILE_KEYS * LANES / 2], ds[TILE_KEYS * LANES / 2]; /* pairs of queries */
    _Alignas(64) Pair ds_keys[TILE_KEYS / 2 * LANES];                      /* pairs of keys */
    _Alignas(64) float lse[LANES], delta[LANES];                           /* lse in powers of 2; −δ */
    Ahead ahead;
} PairBackward;

static void fill_slot(KeySlot *slot, float *memory, const PairRun *r, int begin, int end) {
    int n = padded_keys(end - begin);
    size_t sums = (size_t)n * (size_t)r->padded, row = (size_t)begin * r->kv_stride;
    *slot = (KeySlot){.begin = begin, .end = end, .dk = memory, .dv = memory + sums};
    slot->k = (Pair *)(void *)(memory + 2 * sums);
    slot->v = slot->k + n * r->pairs;
    slot->k_pairs = slot->v + n * r->pairs;
    memset(memory, 0, 2 * sums * sizeof *memory);
    pair_pack_quads(slot->k, r->k + row, r->kv_stride, end - begin, n, r->pairs);
    pair_pack_quads(slot->v, r->v + row, r->kv_stride, end - begin, n, r->pairs);
    pair_pack_row_pairs(slot->k_pairs, r->k + row, r->kv_stride, end - begin, n, r->head_dim, r->padded);
}

/* Heads whose sums of dk and dv are made by quads (pair_tile.h) */
static bool narrow(int head_dim) {
    return head_dim <= PAIR_VF / 2;
}

/* rows = (or +=) scale·sums */
static void store_sums(bf16 *rows, size_t stride, const float *sums, int padded, int n, int width, float scale,
                       bool add) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (int i = 0; i < n; i++)
        for (int d = 0; d < width; d += PAIR_VF) {
            bf16 *at = rows + (size_t)i * stride + d;
            __mmask16 mask = pair_mask(width - d);
            __m512 x = _mm512_loadu_ps(sums + (size_t)i * (size_t)padded + d) * factor;
            if (narrow(width)) x = pair_add_lanes(x);
            if (add) x = x + (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at)), 16);
            _mm256_mask_storeu_epi16(at, mask, (__m256i)_mm512_cvtneps_pbh(x));
        }
}

/* −δ by lanes; o takes the place of dq for a moment. */
static void pack_delta(PairBackward *w, const PairRun *r, const QueryBlock *b) {
    Pair *o = (Pair *)(void *)w->dq;
    pair_block_lanes(o, b, r->out, r->out_stride, r->head_dim);
    for (size_t lane = 0; lane < b->lanes; lane += PAIR_VF) {
        __m512 delta = _mm512_setzero_ps();
        for (int p = 0; p < r->pairs; p++)
            delta =
                pair_dot(delta, _mm512_load_si512(w->g + p * LANES + lane), _mm512_load_si512(o + p * LANES + lane));
        _mm512_store_ps(w->delta + lane, -delta);
    }
}

/* Packs q and g both ways, and −δ and lse per lane. Lanes without a query get an lse that makes their p 0. */
static void pack_block(PairBackward *w, const PairGradients *g, const QueryBlock *b) {
    const PairRun *r = &g->run;
    const float no_query = 1e30f;
    int lanes = b->vectors * PAIR_VF;
    pair_block_lanes(w->q, b, r->q, r->q_stride, r->head_dim);
    pair_block_lanes(w->g, b, g->dout, r->out_stride, r->head_dim);
    pack_delta(w, r, b);
    for (int h = 0; h < b->heads; h++) {
        size_t head = (size_t)((b->head + h) * r->head_dim), first = (size_t)b->first;
        size_t to = (size_t)(h * lanes / 2 * r->padded);
        const bf16 *q = r->q + first * r->q_stride + head, *dout = g->dout + first * r->out_stride + head;
        pair_pack_row_pairs(w->q_pairs + to, q, r->q_stride, b->n, lanes, r->head_dim, r->padded);
        pair_pack_row_pairs(w->g_pairs + to, dout, r->out_stride, b->n, lanes, r->head_dim, r->padded);
        const float *lse = r->lse + first * r->lse_stride + (size_t)(b->head + h);
        for (int i = 0; i < lanes; i++)
            w->lse[h * lanes + i] = i < b->n ? lse[(size_t)i * r->lse_stride] * log2_e : no_query;
    }
    if (narrow(r->head_dim)) {
        pair_interleave(w->q_pairs, (int)b->lanes / 2);
        pair_interleave(w->g_pairs, (int)b->lanes / 2);
    }
    if (g->dq) memset(w->dq, 0, (size_t)r->head_dim * LANES * sizeof *w->dq);
}

/* p and ds of one vector and two keys, stored in pairs of queries, ds in pairs of keys as well */
static ALWAYS_INLINE void store_pairs(PairBackward *w, int j, int v, __m512 p0, __m512 p1, __m512 ds0, __m512 ds1) {
    const __m512i turn = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                          21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i p = (__m512i)_mm512_cvtne2ps_pbh(p1, p0), ds = (__m512i)_mm512_cvtne2ps_pbh(ds1, ds0);
    size_t at = (size_t)(j * LANES / 2 + v * PAIR_VF / 2);
    _mm256_store_si256((__m256i *)(void *)(w->p + at), _mm512_castsi512_si256(p));
    _mm256_store_si256((__m256i *)(void *)(w->p + at + LANES / 2), _mm512_extracti64x4_epi64(p, 1));
    _mm256_store_si256((__m256i *)(void *)(w->ds + at), _mm512_castsi512_si256(ds));
    _mm256_store_si256((__m256i *)(void *)(w->ds + at + LANES / 2), _mm512_extracti64x4_epi64(ds, 1));
    _mm512_store_si512(w->ds_keys + j / 2 * LANES + v * PAIR_VF, _mm512_permutexvar_epi16(turn, ds));
}

/* p and ds of keys [j, j + rows) and of `vectors` vectors from v on */
static ALWAYS_INLINE void gradient_registers(const int rows, const int vectors, const bool masked, PairBackward *w,
                                             const Pair *k, const Pair *value, int j, int v, int pairs, float scale,
                                             int position) {
    __m512 s[8][2], g[8][2];
    for (int u = 0; u < vectors; u++) {
        __m512 delta = _mm512_load_ps(w->delta + (v + u) * PAIR_VF);
        for (int r = 0; r < rows; r++) {
            s[r][u] = _mm512_setzero_ps();
            g[r][u] = delta;
        }
    }
    const Pair *qt = w->q + v * PAIR_VF, *gt = w->g + v * PAIR_VF;
    k += j * pairs;
    value += j * pairs;
    for (int p = 0; p < pairs; p++, k += KEY_ROWS, value += KEY_ROWS, qt += LANES, gt += LANES)
        for (int r = 0; r < rows; r++) {
            __m512i x = _mm512_set1_epi32(k[r]), y = _mm512_set1_epi32(value[r]);
            for (int u = 0; u < vectors; u++) {
                s[r][u] = pair_dot(s[r][u], x, _mm512_load_si512(qt + u * PAIR_VF));
                g[r][u] = pair_dot(g[r][u], y, _mm512_load_si512(gt + u * PAIR_VF));
            }
        }
    const __m512 factor = _mm512_set1_ps(scale);
    ahead_row(&w->ahead);
    for (int u = 0; u < vectors; u++) {
        __m512 x[8], lse = _mm512_load_ps(w->lse + (v + u) * PAIR_VF);
        for (int r = 0; r < rows; r++) x[r] = _mm512_fmsub_ps(s[r][u], factor, lse);
        pair_exp2(rows, x);
        for (int r = 0; r < rows; r++) {
            int hidden = j + r - position; /* lanes that do not see the key */
            unsigned lanes = masked && hidden > 0 ? (hidden >= PAIR_VF ? 0 : 0xffffu << hidden) : 0xffff;
            __mmask16 seen = (__mmask16)lanes;
            if (masked) x[r] = _mm512_maskz_mov_ps(seen, x[r]);
            g[r][u] = _mm512_maskz_mul_ps(seen, x[r], g[r][u]);
        }
        for (int r = 0; r < rows; r += 2) store_pairs(w, j + r, v + u, x[r], x[r + 1], g[r][u], g[r + 1][u]);
    }
}

/* to[n_keys, HD] += from·rows over pairs [begin, end) of queries */
static void scatter_pairs(float *to, const PairRun *r, int n_keys, const Pair *from, const Pair *rows, int begin,
                          int end) {
    size_t padded = (size_t)r->padded;
    PairProduct t = {from + begin, rows + (size_t)begin * padded, to, 1, padded, padded};
    if (narrow(r->head_dim)) {
        t.b = rows + begin / 2 * PAIR_VF;
        t.a_column = 2;
        pair_add_quads(LANES / 2, t, n_keys, (end - begin) / 2);
    } else {
        pair_add(LANES / 2, t, n_keys, r->padded, end - begin);
    }
}

/* dk or dv += from·pairs of queries; on the diagonal, for 16 keys at a time, the vectors that see them. */
static void scatter(float *to, const PairRun *r, const QueryBlock *b, const KeyTile *tile, const Pair *from,
                    const Pair *rows) {
    enum { VECTOR_PAIRS = PAIR_VF / 2 };
    if (!tile->diagonal) {
        scatter_pairs(to, r, padded_keys(tile->n), from, rows, 0, (int)b->lanes / 2);
        return;
    }
    for (int j = 0; j < tile->n; j += PAIR_VF)
        for (int h = 0; h < b->heads; h++) {
            int v = 0, n = padded_keys(tile->n - j < PAIR_VF ? tile->n - j : PAIR_VF);
            while (v < b->vectors && visible_keys(tile, vector_position(tile, b, 0, v)) <= j) v++;
            scatter_pairs(to + (size_t)j * (size_t)r->padded, r, n, from + j * LANES / 2, rows,
                          (h * b->vectors + v) * VECTOR_PAIRS, (h + 1) * b->vectors * VECTOR_PAIRS);
        }
}

static ALWAYS_INLINE void gradient_pairs(const int pairs, PairBackward *w, const PairRun *r, const QueryBlock *b,
                                         const KeyTile *tile, const Pair *k, const Pair *value) {
    int vectors = b->heads * b->vectors, n_keys = padded_keys(tile->n), v = 0;
    float scale = r->scale * log2_e;
    for (; !tile->diagonal && v + 2 <= vectors; v += 2)
        for (int j = 0; j < n_keys; j += KEY_ROWS)
            gradient_registers(KEY_ROWS, 2, false, w, k, value, j, v, pairs, scale, 0);
    for (; v < vectors; v++) {
        int position = vector_position(tile, b, 0, v), seen = padded_keys(visible_keys(tile, position));
        for (int j = 0; j < seen; j += KEY_ROWS)
            gradient_registers(KEY_ROWS, 1, true, w, k, value, j, v, pairs, scale,
                               tile->diagonal ? position : TILE_KEYS);
    }
}

static void gradient_tile(PairBackward *w, const PairRun *r, const QueryBlock *b, const KeyTile *tile, const Pair *k,
                          const Pair *value) {
    if (r->pairs == SHORT_PAIRS) /* known, the loop over them unrolls */
        gradient_pairs(SHORT_PAIRS, w, r, b, tile, k, value);
    else
        gradient_pairs(r->pairs, w, r, b, tile, k, value);
}

static void gather(PairBackward *w, const PairRun *r, const QueryBlock *b, const KeyTile *tile, const Pair *k_pairs) {
    PairProduct t = {k_pairs, w->ds_keys, w->dq, (size_t)r->padded, LANES, LANES};
    if (!tile->diagonal) {
        pair_add(1, t, r->head_dim, (int)b->lanes, padded_keys(tile->n) / 2);
        return;
    }
    for (int v = 0; v < b->heads * b->vectors; v++, t.b += PAIR_VF, t.c += PAIR_VF)
        pair_add(1, t, r->head_dim, PAIR_VF, padded_keys(visible_keys(tile, vector_position(tile, b, 0, v))) / 2);
}

/* One block of queries against the keys of a slot. */
static void backward_block(PairBackward *w, const PairGradients *g, const QueryBlock *b, const KeySlot *slot) {
    const PairRun *r = &g->run;
    int last = b->first + b->n, end = slot->end < last ? slot->end : last;
    pack_block(w, g, b);
    for (int j = slot->begin; j < end; j += TILE_KEYS) {
        KeyTile tile = pair_tile(b, 0, j, end);
        int at = j - slot->begin;
        gradient_tile(w, r, b, &tile, slot->k + at * r->pairs, slot->v + at * r->pairs);
        if (g->dq) gather(w, r, b, &tile, slot->k_pairs + at / 2 * r->padded);
        if (g->dv) scatter(slot->dv + at * r->padded, r, b, &tile, w->p, w->g_pairs);
        if (g->dk) scatter(slot->dk + at * r->padded, r, b, &tile, w->ds, w->q_pairs);
    }
    for (int v = 0; g->dq && v < b->heads * b->vectors; v++) {
        int first = v % b->vectors * PAIR_VF, n = b->n - first < PAIR_VF ? b->n - first : PAIR_VF;
        bf16 *to = g->dq + (size_t)(b->first + first) * r->q_stride + (b->head + v / b->vectors) * r->head_dim;
        pair_unpack_lanes(to, r->q_stride, w->dq + v * PAIR_VF, LANES, n, r->pairs, _mm512_set1_ps(r->scale),
                          g->accumulate);
    }
}

typedef struct {
    bf16 *dq, *dk, *dv;
    const bf16 *dout, *out;
    const float *lse;
    const AttentionInputsBf16 *in;
    Segments segments;
    bool accumulate;
    float *scratch;
    size_t slot; /* floats of a thread's */
} PairArrays;

static PairGradients pair_gradients(const PairArrays *a, int s, int kv) {
    size_t row = (size_t)a->segments.segment_start[s], head_dim = (size_t)a->in->head_dim;
    size_t head = (size_t)(kv * (a->in->n_heads / a->in->n_kv_heads)) * head_dim;
    /* the run only reads out and lse here */
    PairGradients g = {.run =
                           pair_run((bf16 *)(uintptr_t)a->out, (float *)(uintptr_t)a->lse, a->in, a->segments, s, kv)};
    g.dout = a->dout + row * g.run.out_stride + head;
    g.dq = a->dq ? a->dq + row * a->in->q_stride + head : NULL;
    g.dk = a->dk ? a->dk + row * a->in->kv_stride + (size_t)kv * head_dim : NULL;
    g.dv = a->dv ? a->dv + row * a->in->kv_stride + (size_t)kv * head_dim : NULL;
    g.accumulate = a->accumulate;
    return g;
}

static float *thread_slot(const PairArrays *a) {
    return a->scratch + (size_t)omp_get_thread_num() * a->slot;
}

/* The unit after this one in order, for backward_whole. */
static void ahead_gradients(Ahead *ahead, const PairArrays *a, int s, int kv) {
    *ahead = (Ahead){0};
    if (!next_unit(&s, &kv, a->in->n_kv_heads, a->segments)) return;
    PairGradients g = pair_gradients(a, s, kv);
    const PairRun *r = &g.run;
    int width = r->group * r->head_dim;
    ahead_inputs(ahead, r);
    ahead_add(ahead, g.dout, r->out_stride, width, false);
    ahead_add(ahead, r->out, r->out_stride, width, false);
    if (g.dq) ahead_add(ahead, g.dq, r->q_stride, width, true);
    if (g.dk) ahead_add(ahead, g.dk, r->kv_stride, r->head_dim, true);
    if (g.dv) ahead_add(ahead, g.dv, r->kv_stride, r->head_dim, true);
}

static void pair_backward_keys(const void *context, int s, int kv, int first, int begin, int end, bool with_dq) {
    const PairArrays *a = context;
    PairGradients g = pair_gradients(a, s, kv);
    const PairRun *r = &g.run;
    PairBackward w;
    KeySlot slot;
    w.ahead = (Ahead){0};
    if (with_dq)
        ahead_gradients(&w.ahead, a, s, kv);
    else
        g.dq = NULL;
    fill_slot(&slot, thread_slot(a), r, begin, end);
    for (int i = first; i < r->n; i += block_queries(r->group))
        for (int h = 0; h < r->group; h += block_heads(r->group)) {
            QueryBlock b = query_block(h, r->group, i, r->n);
            backward_block(&w, &g, &b, &slot);
        }
    size_t row = (size_t)begin * r->kv_stride;
    if (g.dk)
        store_sums(g.dk + row, r->kv_stride, slot.dk, r->padded, end - begin, r->head_dim, r->scale, g.accumulate);
    if (g.dv) store_sums(g.dv + row, r->kv_stride, slot.dv, r->padded, end - begin, r->head_dim, 1, g.accumulate);
}

static void pair_backward_queries(const void *context, int s, int kv, int head, int first) {
    const PairArrays *a = context;
    PairGradients g = pair_gradients(a, s, kv);
    QueryBlock b = query_block(head, g.run.group, first, g.run.n);
    PairBackward w;
    KeySlot slot;
    g.dk = g.dv = NULL;
    w.ahead = (Ahead){0};
    fill_slot(&slot, thread_slot(a), &g.run, 0, b.first + b.n);
    backward_block(&w, &g, &b, &slot);
}

static void pair_attention_backward(bf16 *dq, bf16 *dk, bf16 *dv, bool accumulate, const bf16 *dout, const bf16 *out,
                                    const float *lse, const AttentionInputsBf16 *in, Segments segments,
                                    float *scratch) {
    if (!pair_shape(in)) {
        reference_bf16_attention_backward(dq, dk, dv, accumulate, dout, out, lse, in, segments, scratch);
        return;
    }
    PairArrays a = {dq, dk, dv, dout, out, lse, in, segments, accumulate, scratch, 0};
    int n = segments.segment_start[segments.n_segments] - segments.segment_start[0];
    a.slot = attention_slot(n, in->head_dim);
    BackwardWork work = {&a, pair_backward_keys, pair_backward_queries};
    backward_share(&work, in->n_heads, in->n_kv_heads, dq, dk || dv, segments);
}

#endif
