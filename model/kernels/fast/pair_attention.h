/* Tiled attention in bf16 on VDPBF16PS (formulas in reference/attention.h, cutting in attention_blocks.h). Included by
 * avx512bf16_kernels.c.
 *
 * Lanes run over queries, as in fp32. A block of queries is turned once into qt[HD/2 pairs, lanes]; then for each tile
 * of keys
 *
 *   st[keys, lanes] = K·qt                 pairs along the head: K in quads of keys
 *   pt = 2^(scale·log2(e)·st − top)        rounded to bf16, pairs of keys
 *   ot[HD, lanes] += Vᵀ·pt                 V as pairs of keys
 *
 * Scores, maxima, sums and ot are fp32. A lane's `top` follows its maximum only when that has grown by more than
 * 2^LAZY (p is then at most 2^LAZY, and loses nothing by it), so that ot is seldom scaled. Keys of one segment and
 * key/value head are packed once for all its blocks where they fit the buffer on the stack, else tile by tile. */
#ifndef CRIA_KERNELS_PAIR_ATTENTION_H
#define CRIA_KERNELS_PAIR_ATTENTION_H

#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/fast/attention_blocks.h"
#include "model/kernels/kernels.h"
#include "model/kernels/fast/pair_tile.h"
#include "model/kernels/fast/fast.h"
#include "model/kernels/reference/reference.h"

enum { LAZY = 8, KEY_ROWS = 4, SHORT_PAIRS = 4, MAX_PAIRS = MAX_HEAD_DIM / 2, PACK_PAIRS = 1 << 15 };

/* The score of a key that is not seen: times any scale that is served, far below any score that is. */
static const float never = -1e30f, least_scale = 1e-6f;

/* Queries, keys and values of one segment and one key/value head, all from the segment's first row; q, out and lse
 * from the first of its heads. */
typedef struct {
    const bf16 *q, *k, *v;
    bf16 *out;
    float *lse;
    size_t q_stride, kv_stride, out_stride, lse_stride;
    int head_dim, pairs, padded; /* padded: head_dim up to a multiple of 16 */
    int n, group;
    int offset; /* position of the first query; 0 unless keys come from a cache */
    float scale;
} PairRun;

static PairRun pair_run(bf16 *out, float *lse, const AttentionInputsBf16 *in, Segments segments, int s, int kv) {
    size_t head_dim = (size_t)in->head_dim, row = (size_t)segments.segment_start[s], heads = (size_t)in->n_heads;
    size_t group = heads / (size_t)in->n_kv_heads, head = (size_t)kv * group;
    PairRun r = {.q_stride = in->q_stride,
                 .kv_stride = in->kv_stride,
                 .out_stride = heads * head_dim,
                 .lse_stride = heads,
                 .head_dim = in->head_dim,
                 .pairs = in->head_dim / 2,
                 .padded = blocks_of(in->head_dim, PAIR_VF) * PAIR_VF,
                 .n = segments.segment_start[s + 1] - segments.segment_start[s],
                 .group = (int)group,
                 .scale = in->scale};
    r.q = in->q + row * in->q_stride + head * head_dim;
    r.k = in->k + row * in->kv_stride + (size_t)kv * head_dim;
    r.v = in->v + row * in->kv_stride + (size_t)kv * head_dim;
    r.out = out ? out + (row * heads + head) * head_dim : NULL;
    r.lse = lse ? lse + row * heads + head : NULL;
    return r;
}

/* The rows that the next unit will read and write. Bringing them near while this one computes hides what memory takes:
 * about a seventh of the time with heads of 48 and segments of 256, which are not in cache and lie in rows far apart.
 */
enum { AHEAD_ARRAYS = 8, AHEAD_LARGEST = 1 << 15, LINE = 64 };
typedef struct {
    int n_arrays, n, at; /* rows there are, and rows asked for */
    struct {
        const bf16 *rows; /* NULL: none */
        size_t stride;
        int width; /* elements of a row */
        bool written;
    } of[AHEAD_ARRAYS];
} Ahead;

static void ahead_add(Ahead *a, const bf16 *rows, size_t stride, int width, bool written) {
    a->of[a->n_arrays].rows = rows;
    a->of[a->n_arrays].stride = stride;
    a->of[a->n_arrays].width = width;
    a->of[a->n_arrays++].written = written;
}

/* One row of each array; called often. */
static ALWAYS_INLINE void ahead_row(Ahead *a) {
    if (a->at == a->n) return;
    size_t row = (size_t)a->at++;
    for (int i = 0; i < a->n_arrays; i++) {
        const char *p = (const char *)(a->of[i].rows + row * a->of[i].stride);
        const char *end = p + (size_t)a->of[i].width * sizeof(bf16) - 1;
        if (a->of[i].written) {
            for (; p < end; p += LINE) __builtin_prefetch(p, 1);
            __builtin_prefetch(end, 1);
        } else {
            for (; p < end; p += LINE) __builtin_prefetch(p, 0, 2);
            __builtin_prefetch(end, 0, 2);
        }
    }
}

/* The unit after segment s and key/value head kv in order; false where there is none. */
static bool next_unit(int *s, int *kv, int n_kv_heads, Segments segments) {
    if (++*kv < n_kv_heads) return true;
    *kv = 0;
    return ++*s < segments.n_segments;
}

/* Units that do not fit the second-level cache beside the present one are not worth it: their time goes elsewhere. */
static int ahead_rows(const PairRun *r) {
    return r->n * r->head_dim <= AHEAD_LARGEST ? r->n : 0;
}

static void ahead_inputs(Ahead *a, const PairRun *r) {
    int width = r->group * r->head_dim;
    *a = (Ahead){.n = ahead_rows(r)};
    ahead_add(a, r->k, r->kv_stride, r->head_dim, false);
    ahead_add(a, r->v, r->kv_stride, r->head_dim, false);
    ahead_add(a, r->q, r->q_stride, width, false);
}

/* What the kernels here have room and pairs for. */
static bool pair_shape(const AttentionInputsBf16 *in) {
    return in->head_dim % 2 == 0 && in->head_dim <= MAX_HEAD_DIM && in->scale >= least_scale;
}

static int padded_keys(int n) {
    return blocks_of(n, KEY_ROWS) * KEY_ROWS;
}

/* A tile whose rows are padded is treated as one on the diagonal: no query sees the padding. */
static KeyTile pair_tile(const QueryBlock *b, int offset, int begin, int end) {
    KeyTile tile = key_tile(b, offset, begin, end);
    if (tile.n % KEY_ROWS != 0) tile.diagonal = true;
    return tile;
}

/* to[HD/2, LANES] = rows of the block */
static void pair_block_lanes(Pair *to, const QueryBlock *b, const bf16 *rows, size_t stride, int head_dim) {
    for (int v = 0; v < b->heads * b->vectors; v++) {
        int first = v % b->vectors * PAIR_VF, n = b->n - first < PAIR_VF ? b->n - first : PAIR_VF;
        const bf16 *from = rows + (size_t)(b->first + first) * stride + (b->head + v / b->vectors) * head_dim;
        pair_pack_lanes(to + v * PAIR_VF, LANES, from, stride, n, head_dim / 2);
    }
}

typedef struct {
    _Alignas(64) Pair q[MAX_PAIRS * LANES];
    _Alignas(64) float o[MAX_HEAD_DIM * LANES];
    _Alignas(64) float s[TILE_KEYS * LANES];
    _Alignas(64) Pair p[TILE_KEYS / 2 * LANES];
    _Alignas(64) float tile_top[LANES]; /* of scores before scaling */
    _Alignas(64) float top[LANES];      /* in powers of 2 */
    _Alignas(64) float sum[LANES];
    _Alignas(64) Pair keys[PACK_PAIRS];
    Ahead ahead;
} PairForward;

/* Packed keys from some tile on: k[keys/4, HD/2, 4] and v[keys/2, padded] in pairs of keys. */
typedef struct {
    const Pair *k, *v;
} PairKeys;

static PairKeys pack_keys(Pair *to, const PairRun *r, int begin, int end) {
    int n = end - begin, padded = padded_keys(n);
    Pair *values = to + padded * r->pairs;
    pair_pack_quads(to, r->k + (size_t)begin * r->kv_stride, r->kv_stride, n, padded, r->pairs);
    pair_pack_row_pairs(values, r->v + (size_t)begin * r->kv_stride, r->kv_stride, n, padded, r->head_dim, r->padded);
    return (PairKeys){to, values};
}

static int pack_capacity(const PairRun *r) {
    return PACK_PAIRS / (r->pairs + r->padded / 2) / KEY_ROWS * KEY_ROWS;
}

/* Scores of keys [j, j + rows) and of `vectors` vectors from v on, stored, and their maxima. */
static ALWAYS_INLINE void score_registers(const int rows, const int vectors, const bool masked, PairForward *w,
                                          const Pair *k, int j, int v, int pairs, int position) {
    __m512 sum[8][4];
    for (int r = 0; r < rows; r++)
        for (int u = 0; u < vectors; u++) sum[r][u] = _mm512_setzero_ps();
    const Pair *q = w->q + v * PAIR_VF;
    k += j * pairs;
    for (int p = 0; p < pairs; p++, k += KEY_ROWS, q += LANES) {
        __m512i row[4];
        for (int u = 0; u < vectors; u++) row[u] = _mm512_load_si512(q + u * PAIR_VF);
        for (int r = 0; r < rows; r++) {
            __m512i x = _mm512_set1_epi32(k[r / KEY_ROWS * KEY_ROWS * pairs + r % KEY_ROWS]);
            for (int u = 0; u < vectors; u++) sum[r][u] = pair_dot(sum[r][u], x, row[u]);
        }
    }
    for (int u = 0; u < vectors; u++) {
        float *top_at = w->tile_top + (v + u) * PAIR_VF;
        __m512 top = _mm512_load_ps(top_at);
        for (int r = 0; r < rows; r++) {
            if (masked && j + r > position)
                sum[r][u] = vf_from_lane(sum[r][u], j + r - position, _mm512_set1_ps(never));
            _mm512_store_ps(w->s + (j + r) * LANES + (v + u) * PAIR_VF, sum[r][u]);
            top = _mm512_max_ps(sum[r][u], top); /* top second: it stays where the score is NaN */
        }
        _mm512_store_ps(top_at, top);
    }
}

static ALWAYS_INLINE void score_vectors(const int vectors, PairForward *w, const Pair *k, int v, int n_keys,
                                        int pairs) {
    for (int j = 0; j < n_keys; j += KEY_ROWS) score_registers(KEY_ROWS, vectors, false, w, k, j, v, pairs, 0);
}

static ALWAYS_INLINE void score_masked(PairForward *w, const Pair *k, int v, int n_keys, int pairs, int position) {
    int j = 0;
    for (; j + 8 <= n_keys; j += 8) score_registers(8, 1, true, w, k, j, v, pairs, position);
    for (; j < n_keys; j += KEY_ROWS) score_registers(KEY_ROWS, 1, true, w, k, j, v, pairs, position);
}

/* Lanes whose maximum has outgrown their top: top follows, and sum and ot with it. */
static void raise_top(PairForward *w, int v, __m512 tile_top, __mmask16 grown, int head_dim) {
    __m512 old = _mm512_load_ps(w->top + v * PAIR_VF);
    __m512 top = _mm512_mask_mov_ps(old, grown, tile_top);
    __m512 shrink = old - top;
    pair_exp2(1, &shrink);
    shrink = _mm512_mask_mov_ps(_mm512_set1_ps(1), grown, shrink);
    _mm512_store_ps(w->top + v * PAIR_VF, top);
    _mm512_store_ps(w->sum + v * PAIR_VF, _mm512_load_ps(w->sum + v * PAIR_VF) * shrink);
    float *o = w->o + v * PAIR_VF;
    for (int d = 0; d < head_dim; d++, o += LANES) _mm512_store_ps(o, _mm512_load_ps(o) * shrink);
}

/* Scores of one vector become pairs of p; `scale` has log2(e) in it. */
static void exponentials(PairForward *w, int v, int n_keys, float scale, int head_dim) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512 tile_top = _mm512_load_ps(w->tile_top + v * PAIR_VF) * factor, top = _mm512_load_ps(w->top + v * PAIR_VF);
    __mmask16 grown = _mm512_cmp_ps_mask(tile_top, top + _mm512_set1_ps(LAZY), _CMP_GT_OQ);
    if (grown) {
        raise_top(w, v, tile_top, grown, head_dim);
        top = _mm512_load_ps(w->top + v * PAIR_VF);
    }
    __m512 one = _mm512_set1_ps(1), sum[KEY_ROWS] = {_mm512_load_ps(w->sum + v * PAIR_VF)};
    for (int i = 1; i < KEY_ROWS; i++) sum[i] = _mm512_setzero_ps();
    const float *s = w->s + v * PAIR_VF;
    Pair *p = w->p + v * PAIR_VF;
    for (int j = 0; j < n_keys; j += KEY_ROWS, s += KEY_ROWS * LANES, p += KEY_ROWS / 2 * LANES) {
        __m512 x[KEY_ROWS];
        for (int i = 0; i < KEY_ROWS; i++) x[i] = _mm512_fmsub_ps(_mm512_load_ps(s + i * LANES), factor, top);
        pair_exp2(KEY_ROWS, x);
        ahead_row(&w->ahead);
        for (int i = 0; i < KEY_ROWS; i++) sum[i] = _mm512_fmadd_ps(x[i], one, sum[i]); /* adders are busier */
        for (int i = 0; i < KEY_ROWS; i += 2) _mm512_store_si512(p + i / 2 * LANES, pair_join(x[i], x[i + 1]));
    }
    _mm512_store_ps(w->sum + v * PAIR_VF, (sum[0] + sum[1]) + (sum[2] + sum[3]));
}

static ALWAYS_INLINE void forward_tile_pairs(const int pairs, PairForward *w, const PairRun *r, const QueryBlock *b,
                                             const KeyTile *tile, PairKeys keys) {
    int vectors = b->heads * b->vectors, n_keys = padded_keys(tile->n);
    PairProduct gather = {keys.v, w->p, w->o, (size_t)r->padded, LANES, LANES};
    if (!tile->diagonal) {
        if (vectors == 4) score_vectors(4, w, keys.k, 0, n_keys, pairs);
        if (vectors == 3) score_vectors(3, w, keys.k, 0, n_keys, pairs);
        if (vectors == 2) score_vectors(2, w, keys.k, 0, n_keys, pairs);
        if (vectors == 1) score_vectors(1, w, keys.k, 0, n_keys, pairs);
        for (int v = 0; v < vectors; v++) exponentials(w, v, n_keys, r->scale * log2_e, r->head_dim);
        pair_add(1, gather, r->head_dim, vectors * PAIR_VF, n_keys / 2);
        return;
    }
    for (int v = 0; v < vectors; v++, gather.b += PAIR_VF, gather.c += PAIR_VF) {
        int position = vector_position(tile, b, r->offset, v), seen = padded_keys(visible_keys(tile, position));
        if (seen == 0) continue;
        score_masked(w, keys.k, v, seen, pairs, position);
        exponentials(w, v, seen, r->scale * log2_e, r->head_dim);
        pair_add(1, gather, r->head_dim, PAIR_VF, seen / 2);
    }
}

static void forward_tile(PairForward *w, const PairRun *r, const QueryBlock *b, const KeyTile *tile, PairKeys keys) {
    for (int i = 0; i < LANES; i++) w->tile_top[i] = never;
    if (r->pairs == SHORT_PAIRS) /* known, the loop over them unrolls */
        forward_tile_pairs(SHORT_PAIRS, w, r, b, tile, keys);
    else
        forward_tile_pairs(r->pairs, w, r, b, tile, keys);
}

static void forward_store(const PairForward *w, const PairRun *r, const QueryBlock *b) {
    for (int v = 0; v < b->heads * b->vectors; v++) {
        int first = v % b->vectors * PAIR_VF, n = b->n - first < PAIR_VF ? b->n - first : PAIR_VF;
        int head = b->head + v / b->vectors;
        size_t row = (size_t)(b->first + first);
        __m512 sum = _mm512_load_ps(w->sum + v * PAIR_VF);
        pair_unpack_lanes(r->out + row * r->out_stride + head * r->head_dim, r->out_stride, w->o + v * PAIR_VF, LANES,
                          n, r->pairs, _mm512_set1_ps(1) / sum, false);
        if (!r->lse) continue;
        float lse[PAIR_VF];
        __m512 top = _mm512_load_ps(w->top + v * PAIR_VF);
        _mm512_storeu_ps(lse, _mm512_fmadd_ps(top, _mm512_set1_ps(ln_2), pair_log(sum)));
        for (int i = 0; i < n; i++) r->lse[(row + (size_t)i) * r->lse_stride + (size_t)head] = lse[i];
    }
}

static void pair_forward_begin(PairForward *w, const PairRun *r, const QueryBlock *b) {
    pair_block_lanes(w->q, b, r->q, r->q_stride, r->head_dim);
    for (int i = 0; i < LANES; i++) {
        w->top[i] = never;
        w->sum[i] = 0;
    }
    memset(w->o, 0, (size_t)r->head_dim * LANES * sizeof *w->o);
}

/* One block of queries against all keys it sees. `packed`: keys from 0 on; NULL: they are packed here. */
static void forward_block(PairForward *w, const PairRun *r, const QueryBlock *b, const PairKeys *packed) {
    pair_forward_begin(w, r, b);
    int end = b->first + b->n;
    for (int j = 0; j < end; j += TILE_KEYS) {
        KeyTile tile = pair_tile(b, 0, j, end);
        PairKeys keys;
        if (packed)
            keys = (PairKeys){packed->k + j * r->pairs, packed->v + j / 2 * r->padded};
        else
            keys = pack_keys(w->keys, r, j, j + tile.n);
        forward_tile(w, r, b, &tile, keys);
    }
    forward_store(w, r, b);
}

/* All blocks of one segment and key/value head, whose keys fit the buffer. `next` (or NULL) comes after it. */
static void forward_whole(const PairRun *r, const PairRun *next) {
    PairForward w;
    w.ahead.n = w.ahead.at = 0;
    if (next) {
        ahead_inputs(&w.ahead, next);
        ahead_add(&w.ahead, next->out, next->out_stride, next->group * next->head_dim, true);
    }
    PairKeys keys = pack_keys(w.keys, r, 0, r->n);
    for (int i = 0; i < r->n; i += block_queries(r->group))
        for (int h = 0; h < r->group; h += block_heads(r->group)) {
            QueryBlock b = query_block(h, r->group, i, r->n);
            forward_block(&w, r, &b, &keys);
        }
}

static void forward_one(const PairRun *r, int head, int first) {
    PairForward w;
    w.ahead.n = w.ahead.at = 0;
    QueryBlock b = query_block(head, r->group, first, r->n);
    forward_block(&w, r, &b, NULL);
}

static void pair_attention_forward(bf16 *out, float *lse, const AttentionInputsBf16 *in, Segments segments) {
    if (!pair_shape(in)) {
        reference_bf16_attention_forward(out, lse, in, segments);
        return;
    }
    int group = in->n_heads / in->n_kv_heads, head_blocks = blocks_of(group, block_heads(group));
    bool whole = enough_units(segments, in->n_kv_heads);
#pragma omp parallel num_threads(threads_count())
    for (int s = 0; s < segments.n_segments; s++) {
        PairRun shape = pair_run(out, lse, in, segments, s, 0);
        int blocks = blocks_of(shape.n, block_queries(group));
        if (whole && shape.n <= pack_capacity(&shape)) {
#pragma omp for schedule(dynamic, 1) nowait
            for (int kv = 0; kv < in->n_kv_heads; kv++) {
                int next_s = s, next_kv = kv;
                bool more = next_unit(&next_s, &next_kv, in->n_kv_heads, segments);
                PairRun r = pair_run(out, lse, in, segments, s, kv), next = r;
                if (more) next = pair_run(out, lse, in, segments, next_s, next_kv);
                forward_whole(&r, more ? &next : NULL);
            }
            continue;
        }
#pragma omp for collapse(3) schedule(dynamic, 1) nowait
        for (int i = 0; i < blocks; i++) /* the last blocks see the most keys: they go first */
            for (int kv = 0; kv < in->n_kv_heads; kv++)
                for (int h = 0; h < head_blocks; h++) {
                    PairRun r = pair_run(out, lse, in, segments, s, kv);
                    forward_one(&r, h * block_heads(group), (blocks - 1 - i) * block_queries(group));
                }
    }
}

#endif
