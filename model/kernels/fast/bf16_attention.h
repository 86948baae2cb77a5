/* Tiled attention of bf16 rows without bf16 instructions: a block's rows, and the keys and values of a tile at a time,
 * are widened to fp32, and the tiles of fast/attention.h and fast/attention_backward.h do the rest. P and dS stay fp32.
 * Included by avx2_kernels.c and avx512_kernels.c.
 *
 * A block is handed to those tiles as the only one of a run of its own, whose first query is at position `offset`. */
#ifndef CRIA_KERNELS_FAST_BF16_ATTENTION_H
#define CRIA_KERNELS_FAST_BF16_ATTENTION_H

#include <omp.h>

#include "model/kernels/fast/fast.h"
#include "model/kernels/fast/attention_backward.h"

#if defined(__AVX512F__)
static inline vf vector_widen(const bf16 *p) {
    __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
static inline void vector_narrow(bf16 *p, vf x) {
    __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    sum = _mm512_mask_mov_epi32(sum, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16)));
}
#else
static inline vf vector_widen(const bf16 *p) {
    __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
static inline void vector_narrow(bf16 *p, vf x) {
    __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    sum = _mm256_blendv_epi8(sum, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    sum = _mm256_srli_epi32(sum, 16);
    __m128i low = _mm256_castsi256_si128(sum), high = _mm256_extracti128_si256(sum, 1);
    _mm_storeu_si128((__m128i *)(void *)p, _mm_packus_epi32(low, high));
}
#endif

/* to[n, width], rows close together */
static void widen_rows(float *to, const bf16 *rows, size_t stride, int n, int width) {
    for (int i = 0; i < n; i++, rows += stride, to += width) {
        int d = 0;
        for (; d + VF <= width; d += VF) vf_store(to + d, vector_widen(rows + d));
        for (; d < width; d++) to[d] = bf16_to_f32(rows[d]);
    }
}

/* rows = (or +=) from[n, width] */
static void narrow_rows(bf16 *rows, size_t stride, const float *from, int n, int width, bool add) {
    for (int i = 0; i < n; i++, rows += stride, from += width) {
        int d = 0;
        for (; d + VF <= width; d += VF) {
            vf x = vf_load(from + d);
            if (add) x = x + vector_widen(rows + d);
            vector_narrow(rows + d, x);
        }
        for (; d < width; d++) rows[d] = f32_to_bf16(add ? from[d] + bf16_to_f32(rows[d]) : from[d]);
    }
}

/* One segment and key/value head, as attention_run has it. */
typedef struct {
    const bf16 *q, *k, *v, *out;
    const float *lse;
    size_t q_stride, kv_stride, out_stride, lse_stride;
    int n, group, head_dim;
    float scale;
} HalfRun;

static HalfRun half_run(const bf16 *out, const float *lse, const AttentionInputsBf16 *in, Segments segments, int s,
                        int kv) {
    size_t head_dim = (size_t)in->head_dim, row = (size_t)segments.segment_start[s], heads = (size_t)in->n_heads;
    size_t group = heads / (size_t)in->n_kv_heads, head = (size_t)kv * group;
    return (HalfRun){.q = in->q + row * in->q_stride + head * head_dim,
                     .k = in->k + row * in->kv_stride + (size_t)kv * head_dim,
                     .v = in->v + row * in->kv_stride + (size_t)kv * head_dim,
                     .out = out + (row * heads + head) * head_dim,
                     .lse = lse ? lse + row * heads + head : NULL,
                     .q_stride = in->q_stride,
                     .kv_stride = in->kv_stride,
                     .out_stride = heads * head_dim,
                     .lse_stride = heads,
                     .n = segments.segment_start[s + 1] - segments.segment_start[s],
                     .group = (int)group,
                     .head_dim = in->head_dim,
                     .scale = in->scale};
}

/* A block of a run in fp32: rows of all its heads, [n, heads·HD]. */
typedef struct {
    QueryBlock block; /* the first of the run */
    AttentionRun run;
    size_t first, head; /* of the block, in elements of a column */
    int width;
} HalfBlock;

static HalfBlock half_block(const HalfRun *r, const QueryBlock *b, float *rows) {
    HalfBlock h = {.first = (size_t)b->first, .head = (size_t)(b->head * r->head_dim), .width = b->heads * r->head_dim};
    h.block = query_block(0, b->heads, 0, b->n);
    size_t stride = (size_t)h.width;
    h.run = (AttentionRun){.q = rows,
                           .out = rows,
                           .q_stride = stride,
                           .kv_stride = (size_t)r->head_dim,
                           .out_stride = stride,
                           .lse_stride = r->lse_stride,
                           .head_dim = r->head_dim,
                           .offset = b->first,
                           .scale = r->scale};
    h.run.lse = r->lse ? (float *)(uintptr_t)r->lse + h.first * r->lse_stride + (size_t)b->head : NULL;
    return h;
}

static void half_forward_block(const HalfRun *r, const QueryBlock *block) {
    ForwardTiles w;
    _Alignas(64) float rows[TILE_KEYS * MAX_HEAD_DIM]; /* of the block, of keys, of values, and of the block again */
    HalfBlock h = half_block(r, block, rows);
    const QueryBlock *b = &h.block;
    int end = block->first + block->n, head_dim = r->head_dim;
    widen_rows(rows, r->q + h.first * r->q_stride + h.head, r->q_stride, b->n, h.width);
    forward_begin(&w, &h.run, b);
    for (int j = 0; j < end; j += TILE_KEYS) {
        KeyTile tile = key_tile(b, h.run.offset, j, end);
        size_t row = (size_t)j * r->kv_stride;
        widen_rows(rows, r->k + row, r->kv_stride, tile.n, head_dim);
        tile_scores(w.s, &tile, b, h.run.offset, rows, h.run.kv_stride, w.q, head_dim);
        softmax_tile(&w, &tile, b, h.run.offset, head_dim);
        widen_rows(rows, r->v + row, r->kv_stride, tile.n, head_dim);
        tile_gather(w.o, &tile, b, h.run.offset, rows, h.run.kv_stride, w.s, head_dim);
    }
    forward_finish(&w, &h.run, b);
    narrow_rows((bf16 *)(uintptr_t)r->out + h.first * r->out_stride + h.head, r->out_stride, rows, b->n, h.width,
                false);
}

static void fast_bf16_attention_forward(bf16 *out, float *lse, const AttentionInputsBf16 *in, Segments segments) {
    if (in->head_dim > MAX_HEAD_DIM) {
        reference_bf16_attention_forward(out, lse, in, segments);
        return;
    }
    int group = in->n_heads / in->n_kv_heads, head_blocks = blocks_of(group, block_heads(group));
#pragma omp parallel num_threads(threads_count())
    for (int s = 0; s < segments.n_segments; s++) {
        int n = segments.segment_start[s + 1] - segments.segment_start[s], blocks = blocks_of(n, block_queries(group));
#pragma omp for collapse(3) schedule(dynamic, 1) nowait
        for (int i = 0; i < blocks; i++) /* the last blocks see the most keys: they go first */
            for (int kv = 0; kv < in->n_kv_heads; kv++)
                for (int h = 0; h < head_blocks; h++) {
                    HalfRun r = half_run(out, lse, in, segments, s, kv);
                    QueryBlock b =
                        query_block(h * block_heads(group), group, (blocks - 1 - i) * block_queries(group), n);
                    half_forward_block(&r, &b);
                }
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
} HalfArrays;

/* What backward works on: the sums of dk and dv of keys [begin, end), and rows of the block and of the tile. */
typedef struct {
    int begin, end;
    float *dk, *dv; /* NULL where not wanted */
    float *q, *g, *keys;
} HalfSlot;

static HalfSlot half_slot(const HalfArrays *a, int begin, int end) {
    float *memory = a->scratch + (size_t)omp_get_thread_num() * a->slot;
    size_t sums = (size_t)(end - begin) * (size_t)a->in->head_dim, tile = (size_t)(TILE_KEYS * a->in->head_dim);
    memset(memory, 0, 2 * sums * sizeof *memory);
    HalfSlot slot = {.begin = begin, .end = end};
    slot.dk = a->dk ? memory : NULL;
    slot.dv = a->dv ? memory + sums : NULL;
    slot.q = memory + 2 * sums;
    slot.g = slot.q + tile;
    slot.keys = slot.g + tile;
    return slot;
}

/* One block of queries against the keys of the slot; dq: of the block, or NULL. */
static void half_backward_block(const HalfArrays *a, const HalfRun *r, const QueryBlock *block, const bf16 *dout,
                                bf16 *dq, const HalfSlot *slot) {
    BackwardTiles w;
    HalfBlock h = half_block(r, block, slot->q);
    const QueryBlock *b = &h.block;
    int last = block->first + block->n, end = slot->end < last ? slot->end : last, head_dim = r->head_dim;
    int offset = h.run.offset;
    size_t stride = (size_t)head_dim, out = h.first * r->out_stride + h.head;
    BackwardRun backward = {.run = h.run, .dout = slot->g, .dq = dq ? slot->q : NULL};
    widen_rows(slot->q, r->q + h.first * r->q_stride + h.head, r->q_stride, b->n, h.width);
    widen_rows(slot->g, dout + out, r->out_stride, b->n, h.width);
    widen_rows(w.dq, r->out + out, r->out_stride, b->n, h.width); /* read before dq begins */
    backward.run.out = w.dq;
    backward_pack(&w, &backward, b);
    for (int j = slot->begin; j < end; j += TILE_KEYS) {
        KeyTile tile = key_tile(b, offset, j, end);
        size_t row = (size_t)j * r->kv_stride, at = (size_t)(j - slot->begin) * stride;
        widen_rows(slot->keys, r->v + row, r->kv_stride, tile.n, head_dim);
        tile_scores(w.ds, &tile, b, offset, slot->keys, stride, w.g, head_dim);
        widen_rows(slot->keys, r->k + row, r->kv_stride, tile.n, head_dim);
        tile_scores(w.p, &tile, b, offset, slot->keys, stride, w.q, head_dim);
        gradient_tile(&w, &tile, b, offset, r->scale);
        if (dq) tile_gather(w.dq, &tile, b, offset, slot->keys, stride, w.ds, head_dim);
        if (slot->dv) tile_scatter(slot->dv + at, stride, &tile, b, offset, w.p, slot->g, (size_t)h.width, head_dim);
        if (slot->dk) tile_scatter(slot->dk + at, stride, &tile, b, offset, w.ds, slot->q, (size_t)h.width, head_dim);
    }
    if (!dq) return;
    block_unpack(slot->q, (size_t)h.width, b, w.dq, head_dim, 1, false);
    narrow_rows(dq + h.first * r->q_stride + h.head, r->q_stride, slot->q, b->n, h.width, a->accumulate);
}

/* The first row of a segment and the columns of a key/value head or its group */
static bf16 *half_at(bf16 *x, size_t row, size_t stride, size_t column) {
    return x ? x + row * stride + column : NULL;
}

static void half_backward_keys(const void *context, int s, int kv, int first, int begin, int end, bool with_dq) {
    const HalfArrays *a = context;
    HalfRun r = half_run(a->out, a->lse, a->in, a->segments, s, kv);
    HalfSlot slot = half_slot(a, begin, end);
    size_t row = (size_t)a->segments.segment_start[s], column = (size_t)(kv * r.head_dim),
           heads = column * (size_t)r.group;
    bf16 *dq = with_dq ? half_at(a->dq, row, r.q_stride, heads) : NULL;
    for (int i = first; i < r.n; i += block_queries(r.group))
        for (int h = 0; h < r.group; h += block_heads(r.group)) {
            QueryBlock b = query_block(h, r.group, i, r.n);
            half_backward_block(a, &r, &b, a->dout + row * r.out_stride + heads, dq, &slot);
        }
    row += (size_t)begin;
    if (a->dk)
        narrow_rows(half_at(a->dk, row, r.kv_stride, column), r.kv_stride, slot.dk, end - begin, r.head_dim,
                    a->accumulate);
    if (a->dv)
        narrow_rows(half_at(a->dv, row, r.kv_stride, column), r.kv_stride, slot.dv, end - begin, r.head_dim,
                    a->accumulate);
}

static void half_backward_queries(const void *context, int s, int kv, int head, int first) {
    const HalfArrays *a = context;
    HalfRun r = half_run(a->out, a->lse, a->in, a->segments, s, kv);
    QueryBlock b = query_block(head, r.group, first, r.n);
    HalfSlot slot = half_slot(a, 0, 0); /* no sums */
    slot.end = r.n;
    slot.dk = slot.dv = NULL;
    size_t row = (size_t)a->segments.segment_start[s], heads = (size_t)(kv * r.group * r.head_dim);
    half_backward_block(a, &r, &b, a->dout + row * r.out_stride + heads, half_at(a->dq, row, r.q_stride, heads), &slot);
}

static void fast_bf16_attention_backward(bf16 *dq, bf16 *dk, bf16 *dv, bool accumulate, const bf16 *dout,
                                         const bf16 *out, const float *lse, const AttentionInputsBf16 *in,
                                         Segments segments, float *scratch) {
    if (in->head_dim > MAX_HEAD_DIM) {
        reference_bf16_attention_backward(dq, dk, dv, accumulate, dout, out, lse, in, segments, scratch);
        return;
    }
    HalfArrays a = {dq, dk, dv, dout, out, lse, in, segments, accumulate, scratch, 0};
    a.slot = attention_slot(segments.segment_start[segments.n_segments] - segments.segment_start[0], in->head_dim);
    BackwardWork work = {&a, half_backward_keys, half_backward_queries};
    backward_share(&work, in->n_heads, in->n_kv_heads, dq, dk || dv, segments);
}

static void fast_bf16_attention(Bf16Kernels *table) {
    table->attention_forward = fast_bf16_attention_forward;
    table->attention_backward = fast_bf16_attention_backward;
}

#endif
