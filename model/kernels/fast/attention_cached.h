/* Attention on a key/value cache, for generation. Rows that continue one sequence (a prefill) are blocks of queries
 * like those of fast/attention.h; a single row (a decoding step) goes over its keys once, for all the heads that share
 * them, with lanes over the head's width. Included by avx2_kernels.c and avx512_kernels.c. */
#include "model/kernels/fast/attention.h"

typedef struct {
    float *out;
    const float *q, *k_cache, *v_cache;
    size_t q_stride, slot_stride;
    int n_tokens, n_heads, n_kv_heads, head_dim;
    float scale;
    const int32_t *positions, *slot;
} CachedInputs;

/* Row t and key/value head kv as the first query of a run. */
static AttentionRun cached_run(const CachedInputs *in, int t, int kv) {
    size_t head_dim = (size_t)in->head_dim, heads = (size_t)in->n_heads, group = heads / (size_t)in->n_kv_heads;
    size_t head = (size_t)kv * group * head_dim;
    size_t keys = (size_t)in->slot[t] * in->slot_stride + (size_t)kv * head_dim;
    return (AttentionRun){.q = in->q + (size_t)t * in->q_stride + head,
                          .k = in->k_cache + keys,
                          .v = in->v_cache + keys,
                          .out = in->out + (size_t)t * heads * head_dim + head,
                          .q_stride = in->q_stride,
                          .kv_stride = (size_t)in->n_kv_heads * head_dim,
                          .out_stride = heads * head_dim,
                          .head_dim = in->head_dim,
                          .offset = in->positions[t],
                          .scale = in->scale};
}

/* Rows from t on that continue one another in one slot. */
static int rows_in_sequence(const CachedInputs *in, int t) {
    int n = 1;
    while (t + n < in->n_tokens && in->slot[t + n] == in->slot[t] && in->positions[t + n] == in->positions[t] + n) n++;
    return n;
}

enum { ROW_HEADS = 8 };

/* scores[j] = q·k_j·scale in powers of 2, four keys at a time */
static void row_scores(float *scores, const float *q, const float *k, size_t stride, int n_keys, int head_dim,
                       float scale) {
    size_t n = (size_t)head_dim;
    for (int j = 0; j < n_keys; j += 4) {
        const float *key[4];
        vf sum[4];
        for (int u = 0; u < 4; u++) {
            key[u] = k + (size_t)(j + u < n_keys ? j + u : j) * stride;
            sum[u] = vf_zero();
        }
        for (size_t i = 0; i < n; i += VF) {
            vf x = vf_get(q + i, n - i);
            for (int u = 0; u < 4; u++) sum[u] = vf_fma(x, vf_get(key[u] + i, n - i), sum[u]);
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

/* A row of up to ROW_HEADS heads from `head` on against its keys. */
static void attend_row(const AttentionRun *run, int head, int heads) {
    float o[ROW_HEADS * MAX_HEAD_DIM] = {0}, p[ROW_HEADS * TILE_KEYS], top[ROW_HEADS], sum[ROW_HEADS] = {0};
    int head_dim = run->head_dim, end = run->offset + 1;
    for (int h = 0; h < heads; h++) top[h] = -INFINITY;
    for (int j = 0; j < end; j += TILE_KEYS) {
        int n = end - j < TILE_KEYS ? end - j : TILE_KEYS;
        for (int h = 0; h < heads; h++) {
            row_scores(p + h * TILE_KEYS, run->q + (head + h) * head_dim, run->k + (size_t)j * run->kv_stride,
                       run->kv_stride, n, head_dim, run->scale * log2_e);
            row_softmax(p + h * TILE_KEYS, n, &top[h], &sum[h], o + h * head_dim, head_dim);
        }
        TileProduct t = {p, run->v + (size_t)j * run->kv_stride, o, TILE_KEYS, 1, run->kv_stride, (size_t)head_dim};
        tile_add(t, heads, head_dim, n);
    }
    for (int h = 0; h < heads; h++)
        for (int d = 0; d < head_dim; d++) run->out[(head + h) * head_dim + d] = o[h * head_dim + d] / sum[h];
}

/* n rows from t on, each on its own. Worksharing: all threads of the team call it. */
static void cached_rows(const CachedInputs *in, int t, int n) {
    int group = in->n_heads / in->n_kv_heads, n_kv_heads = in->n_kv_heads;
#pragma omp for collapse(2) schedule(dynamic, 1) nowait
    for (int i = t; i < t + n; i++)
        for (int kv = 0; kv < n_kv_heads; kv++) {
            AttentionRun run = cached_run(in, i, kv);
            for (int h = 0; h < group; h += ROW_HEADS)
                attend_row(&run, h, group - h < ROW_HEADS ? group - h : ROW_HEADS);
        }
}

/* n rows from t on that continue one another, as blocks of queries. Worksharing. */
static void cached_blocks(const CachedInputs *in, int t, int n) {
    int group = in->n_heads / in->n_kv_heads, n_kv_heads = in->n_kv_heads;
    int blocks = blocks_of(n, block_queries(group)), head_blocks = blocks_of(group, block_heads(group));
#pragma omp for collapse(3) schedule(dynamic, 1) nowait
    for (int i = 0; i < blocks; i++)
        for (int kv = 0; kv < n_kv_heads; kv++)
            for (int h = 0; h < head_blocks; h++) {
                AttentionRun run = cached_run(in, t, kv);
                QueryBlock b = query_block(h * block_heads(group), group, (blocks - 1 - i) * block_queries(group), n);
                forward_block(&run, &b);
            }
}

static void fast_attention_cached(float *out, const float *q, size_t q_stride, int n_tokens, int n_heads,
                                  int n_kv_heads, int head_dim, float scale, const int32_t *positions,
                                  const int32_t *slot, const float *k_cache, const float *v_cache, size_t slot_stride) {
    enum { PREFILL = 4 }; /* rows in sequence that are worth a block, most lanes of which may be empty */
    if (head_dim > MAX_HEAD_DIM) {
        reference_attention_cached(out, q, q_stride, n_tokens, n_heads, n_kv_heads, head_dim, scale, positions, slot,
                                   k_cache, v_cache, slot_stride);
        return;
    }
    CachedInputs in = {out,     q,          k_cache,  v_cache, q_stride,  slot_stride, n_tokens,
                       n_heads, n_kv_heads, head_dim, scale,   positions, slot};
#pragma omp parallel num_threads(threads_count())
    for (int t = 0; t < n_tokens;) {
        int n = rows_in_sequence(&in, t);
        if (n >= PREFILL) {
            cached_blocks(&in, t, n);
        } else { /* as many single rows as follow */
            while (t + n < n_tokens) {
                int next = rows_in_sequence(&in, t + n);
                if (next >= PREFILL) break;
                n += next;
            }
            cached_rows(&in, t, n);
        }
        t += n;
    }
}
