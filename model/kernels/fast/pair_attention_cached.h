/* Attention over a paged bf16 cache on VDPBF16PS, bit for bit what pair_attention.h gives the same query: the same
 * products and sums in the same order, though here lanes run over keys and then over the head, and there over queries.
 * So a token's log-probability is the same when it is sampled and in a training graph. Included by
 * avx512bf16_kernels.c.
 *
 * A page holds, for each key/value head,
 *
 *   keys     [HD/2, CACHE_PAGE] pairs along the head     a vector: 16 keys
 *   values   [CACHE_PAGE/2, HD] pairs of keys            a vector: 16 elements of the head
 */
#ifndef CRIA_KERNELS_PAIR_ATTENTION_CACHED_H
#define CRIA_KERNELS_PAIR_ATTENTION_CACHED_H

#include "model/kernels/fast/cached_share.h"
#include "model/kernels/fast/pair_attention.h"

static bool pair_cached_shape(const CachedAttention *c) {
    return pair_shape(&(AttentionInputsBf16){.head_dim = c->head_dim, .scale = c->scale});
}

static ALWAYS_INLINE Pair pair_read(const bf16 *at) {
    Pair pair;
    memcpy(&pair, at, sizeof pair);
    return pair;
}

/* The second of two keys comes later: until then its half is 0. */
static void store_value(Pair *to, const bf16 *v, int head_dim, bool second) {
    for (int d = 0; d < head_dim; d += PAIR_VF) {
        __mmask16 mask = pair_mask(head_dim - d);
        __m512i x = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, v + d));
        if (second) x = _mm512_or_si512(_mm512_slli_epi32(x, 16), _mm512_maskz_loadu_epi32(mask, to + d));
        _mm512_mask_storeu_epi32(to + d, mask, x);
    }
}

static void store_head(bf16 *keys, bf16 *values, const bf16 *k, const bf16 *v, int head_dim, int j) {
    for (int p = 0; p < head_dim / 2; p++) memcpy(keys + 2 * (p * CACHE_PAGE + j), k + 2 * p, sizeof(Pair));
    store_value((Pair *)(void *)values + j / 2 * head_dim, v, head_dim, j % 2 == 1);
}

static void pair_cache_store(bf16 *keys, bf16 *values, const bf16 *k, const bf16 *v, const CachedAttention *c) {
    if (!pair_cached_shape(c)) {
        reference_bf16_cache_store(keys, values, k, v, c);
        return;
    }
    enum { FORK_ELEMENTS = 4096 };
    const bool fork = c->n_tokens * c->n_kv_heads * c->head_dim > FORK_ELEMENTS;
#pragma omp parallel for num_threads(threads_count()) schedule(static) if (fork)
    for (int kv = 0; kv < c->n_kv_heads; kv++) /* a thread has whole pages' heads: two keys share a pair */
        for (int t = 0; t < c->n_tokens; t++) {
            CachedRow row = cached_row(c, t, kv);
            size_t to = cached_tile(&row, row.position), from = (size_t)t * c->stride + (size_t)(kv * c->head_dim);
            store_head(keys + to, values + to, k + from, v + from, c->head_dim, row.position % CACHE_PAGE);
        }
}

/* ---- single rows ---- */

enum { TILE_VECTORS = TILE_KEYS / PAIR_VF, HEAD_VECTORS = MAX_HEAD_DIM / PAIR_VF };

/* One query head on its way through the tiles. */
typedef struct {
    __m512 o[HEAD_VECTORS];
    float top, sum;
    int head_dim;
    float factor; /* the scale, with log2(e) in it */
    _Alignas(64) bf16 p[TILE_KEYS];
} PairRow;

/* Scores of the first n keys of a tile, `vectors` of them; `never` behind. The values that will be wanted, which span
 * as many lines as the keys, are asked for meanwhile. */
static ALWAYS_INLINE void row_scores(const int vectors, __m512 s[TILE_VECTORS], const bf16 *q, const Pair *k,
                                     const Pair *values, int pairs, int n) {
    for (int u = 0; u < vectors; u++) s[u] = _mm512_setzero_ps();
    for (int p = 0; p < pairs; p++, k += CACHE_PAGE) {
        __m512i x = _mm512_set1_epi32(pair_read(q + 2 * p));
        for (int u = 0; u < vectors; u++) __builtin_prefetch(values + (p * vectors + u) * PAIR_VF);
        for (int u = 0; u < vectors; u++) s[u] = pair_dot(s[u], _mm512_loadu_si512(k + u * PAIR_VF), x);
    }
    for (int u = 0; u < vectors; u++)
        s[u] = _mm512_mask_mov_ps(_mm512_set1_ps(never), pair_mask(n - u * PAIR_VF > 0 ? n - u * PAIR_VF : 0), s[u]);
}

/* top follows, and sum and o with it. */
static void raise_row(PairRow *r, float tile_top) {
    __m512 shrink = _mm512_set1_ps(r->top) - _mm512_set1_ps(tile_top);
    pair_exp2(1, &shrink);
    r->top = tile_top;
    r->sum *= _mm512_cvtss_f32(shrink);
    for (int v = 0; v < blocks_of(r->head_dim, PAIR_VF); v++) r->o[v] = r->o[v] * shrink;
}

/* Scores become r->p, and join the sum: key j adds to part j % 4. */
static ALWAYS_INLINE void row_exponentials(const int vectors, PairRow *r, __m512 s[TILE_VECTORS]) {
    __m512 most = s[0];
    for (int u = 1; u < vectors; u++) most = _mm512_max_ps(most, s[u]);
    float tile_top = _mm512_reduce_max_ps(most) * r->factor;
    if (tile_top > r->top + LAZY) raise_row(r, tile_top);
    for (int u = 0; u < vectors; u++) s[u] = _mm512_fmsub_ps(s[u], _mm512_set1_ps(r->factor), _mm512_set1_ps(r->top));
    pair_exp2(vectors, s);
    __m128 sum = _mm_set_ss(r->sum);
    for (int u = 0; u < vectors; u++) {
        sum = _mm_add_ps(_mm512_castps512_ps128(s[u]), sum);
        sum = _mm_add_ps(_mm512_extractf32x4_ps(s[u], 1), sum);
        sum = _mm_add_ps(_mm512_extractf32x4_ps(s[u], 2), sum);
        sum = _mm_add_ps(_mm512_extractf32x4_ps(s[u], 3), sum);
        _mm256_store_si256((__m256i *)(void *)(r->p + u * PAIR_VF), (__m256i)_mm512_cvtneps_pbh(s[u]));
    }
    float part[4];
    _mm_storeu_ps(part, sum);
    r->sum = (part[0] + part[1]) + (part[2] + part[3]);
}

static ALWAYS_INLINE void row_tile(const int vectors, PairRow *r, const bf16 *q, const Pair *k, const Pair *values,
                                   int n) {
    __m512 s[TILE_VECTORS];
    row_scores(vectors, s, q, k, values, r->head_dim / 2, n);
    row_exponentials(vectors, r, s);
}

/* The keys that come after a tile, asked for while its values are gathered. */
typedef struct {
    const Pair *keys; /* NULL: not known */
    int vectors;      /* of each pair along the head */
} KeysAhead;

static KeysAhead keys_ahead(const CachedCall *call, const CachedRow *row, int head, int j) {
    const CachedAttention *c = call->shape;
    const int end = row->position + 1, group = c->n_heads / c->n_kv_heads;
    size_t at;
    j += TILE_KEYS;
    if (j < end || head + 1 < group) {
        if (j >= end) j = 0;
        at = cached_tile(row, j);
    } else {
        j = 0;
        at = cached_tile(row, j) + (size_t)CACHE_PAGE * (size_t)c->head_dim;
        if (at >= (size_t)(row->pages[0] + 1) * row->page) return (KeysAhead){0};
    }
    const int n = end - j < TILE_KEYS ? end - j : TILE_KEYS;
    return (KeysAhead){(const Pair *)(const void *)((const bf16 *)call->keys + at), blocks_of(n, PAIR_VF)};
}

/* The i-th of n parts of them. */
static ALWAYS_INLINE void keys_prefetch(const KeysAhead *ahead, int pairs, int i, int n) {
    if (!ahead->keys) return;
    for (int p = pairs * i / n, end = pairs * (i + 1) / n; p < end; p++)
        for (int u = 0; u < ahead->vectors; u++) __builtin_prefetch(ahead->keys + p * CACHE_PAGE + u * PAIR_VF);
}

/* Vectors [first, first + vectors) of o += P·V over pairs of keys */
static ALWAYS_INLINE void row_gather(const int vectors, PairRow *r, const Pair *v, int first, int pairs,
                                     const KeysAhead *ahead) {
    __m512 o[TILE_VECTORS];
    __mmask16 mask[TILE_VECTORS];
    for (int u = 0; u < vectors; u++) {
        o[u] = r->o[first + u];
        mask[u] = pair_mask(r->head_dim - (first + u) * PAIR_VF);
    }
    v += first * PAIR_VF;
    for (int i = 0; i < pairs; i++, v += r->head_dim) {
        __m512i x = _mm512_set1_epi32(pair_read(r->p + 2 * i));
        if (first == 0) keys_prefetch(ahead, r->head_dim / 2, i, pairs);
        for (int u = 0; u < vectors; u++) o[u] = pair_dot(o[u], _mm512_maskz_loadu_epi32(mask[u], v + u * PAIR_VF), x);
    }
    for (int u = 0; u < vectors; u++) r->o[first + u] = o[u];
}

static void row_gather_all(PairRow *r, const Pair *v, int n, const KeysAhead *ahead) {
    int vectors = blocks_of(r->head_dim, PAIR_VF), pairs = (n + 1) / 2, first = 0;
    for (; first + 4 <= vectors; first += 4) row_gather(4, r, v, first, pairs, ahead);
    if (vectors - first == 3) row_gather(3, r, v, first, pairs, ahead);
    if (vectors - first == 2) row_gather(2, r, v, first, pairs, ahead);
    if (vectors - first == 1) row_gather(1, r, v, first, pairs, ahead);
}

static void pair_attend_head(const CachedCall *call, const CachedRow *row, int head) {
    const CachedAttention *c = call->shape;
    size_t at = (size_t)(head * c->head_dim);
    const bf16 *q = (const bf16 *)call->q + row->q + at;
    PairRow r = {.top = never, .head_dim = c->head_dim, .factor = c->scale * log2_e};
    for (int j = 0, end = row->position + 1; j < end; j += TILE_KEYS) {
        int n = end - j < TILE_KEYS ? end - j : TILE_KEYS;
        size_t tile = cached_tile(row, j);
        const Pair *k = (const Pair *)(const void *)((const bf16 *)call->keys + tile);
        const Pair *v = (const Pair *)(const void *)((const bf16 *)call->values + tile);
        switch (blocks_of(n, PAIR_VF)) {
        case 4:
            row_tile(4, &r, q, k, v, n);
            break;
        case 3:
            row_tile(3, &r, q, k, v, n);
            break;
        case 2:
            row_tile(2, &r, q, k, v, n);
            break;
        default:
            row_tile(1, &r, q, k, v, n);
        }
        const KeysAhead ahead = keys_ahead(call, row, head, j);
        row_gather_all(&r, v, n, &ahead);
    }
    bf16 *out = (bf16 *)call->out + row->out + at;
    __m512 inverse = _mm512_set1_ps(1) / _mm512_set1_ps(r.sum);
    for (int v = 0; v < blocks_of(c->head_dim, PAIR_VF); v++)
        _mm256_mask_storeu_epi16(out + v * PAIR_VF, pair_mask(c->head_dim - v * PAIR_VF),
                                 (__m256i)_mm512_cvtneps_pbh(r.o[v] * inverse));
}

static void pair_row(const CachedCall *call, const CachedRow *row) {
    int group = call->shape->n_heads / call->shape->n_kv_heads;
    for (int h = 0; h < group; h++) pair_attend_head(call, row, h);
}

/* ---- rows that follow one another ---- */

/* The first n keys and values of a tile as forward_tile has them, up to padded_keys(n); zero behind. */
static PairKeys unpack_tile(Pair *to, const PairRun *r, const Pair *k, const Pair *v, int n) {
    int padded = padded_keys(n);
    Pair *values = to + padded * r->pairs;
    for (int i = 0; i < padded; i += KEY_ROWS) {
        __mmask8 mask = (__mmask8)((1u << (n - i < KEY_ROWS ? n - i : KEY_ROWS)) - 1);
        for (int p = 0; p < r->pairs; p++)
            _mm_storeu_si128((__m128i *)(void *)(to + (i * r->pairs + p * KEY_ROWS)),
                             _mm_maskz_loadu_epi32(mask, k + p * CACHE_PAGE + i));
    }
    for (int i = 0; i < padded / 2; i++)
        for (int d = 0; d < r->padded; d += PAIR_VF) {
            __mmask16 mask = 2 * i < n ? pair_mask(r->head_dim - d > 0 ? r->head_dim - d : 0) : 0;
            __m512i x = _mm512_maskz_loadu_epi32(mask, v + i * r->head_dim + d);
            if (2 * i + 1 == n) x = _mm512_and_si512(x, _mm512_set1_epi32(0xffff));
            _mm512_storeu_si512(values + i * r->padded + d, x);
        }
    return (PairKeys){to, values};
}

static void pair_block(const CachedCall *call, const CachedRow *row, const QueryBlock *b) {
    const CachedAttention *c = call->shape;
    PairForward w;
    w.ahead.n = w.ahead.at = 0;
    PairRun r = {.q = (const bf16 *)call->q + row->q,
                 .out = (bf16 *)call->out + row->out,
                 .q_stride = c->stride,
                 .out_stride = (size_t)(c->n_heads * c->head_dim),
                 .head_dim = c->head_dim,
                 .pairs = c->head_dim / 2,
                 .padded = blocks_of(c->head_dim, PAIR_VF) * PAIR_VF,
                 .group = c->n_heads / c->n_kv_heads,
                 .offset = row->position,
                 .scale = c->scale};
    pair_forward_begin(&w, &r, b);
    for (int j = 0, end = row->position + b->first + b->n; j < end; j += TILE_KEYS) {
        KeyTile tile = pair_tile(b, r.offset, j, end);
        size_t at = cached_tile(row, j);
        const Pair *k = (const Pair *)(const void *)((const bf16 *)call->keys + at);
        const Pair *v = (const Pair *)(const void *)((const bf16 *)call->values + at);
        forward_tile(&w, &r, b, &tile, unpack_tile(w.keys, &r, k, v, tile.n));
    }
    forward_store(&w, &r, b);
}

static void pair_attention_cached(bf16 *out, const bf16 *q, const bf16 *keys, const bf16 *values,
                                  const CachedAttention *c) {
    if (pair_cached_shape(c))
        cached_share(&(CachedCall){c, out, q, keys, values, pair_row, pair_block});
    else
        reference_bf16_attention_cached(out, q, keys, values, c);
}

#endif
