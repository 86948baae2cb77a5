/* Causal grouped-query attention within each segment (Vaswani et al. 2017, eq. 1; Ainslie et al. 2023), from the
 * definition. For query t and key j ≤ t of the same segment, heads h and its key/value head:
 *
 *   s_tj = scale·q_t·k_j      L_t = log Σ_j e^{s_tj}      p_tj = e^{s_tj − L_t}      o_t = Σ_j p_tj·v_j
 *
 * Backward, with g_t = dL/do_t and δ_t = g_t·o_t (Dao et al. 2022, appendix B.2):
 *
 *   ds_tj = p_tj·(g_t·v_j − δ_t)
 *   dq_t = scale·Σ_j ds_tj·k_j     dk_j = scale·Σ_t,h ds_tj·q_t     dv_j = Σ_t,h p_tj·g_t
 *
 * Only L is kept between the passes: every p is computed again where it is needed.
 *
 * Included once for each type of element, after definitions of
 *
 *   Element, Inputs       float or bf16, and the struct of q, k and v in it
 *   read(Element)         its value
 *   rounded(double)       the nearest Element */
#ifndef CRIA_KERNELS_REFERENCE_ATTENTION_H
#define CRIA_KERNELS_REFERENCE_ATTENTION_H

#include <math.h>
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/reference/reference.h"

/* Elements of a head summed at a time, in fp64 on the stack; scores are computed again for each slice. */
enum { SLICE = 64 };

static double dot(const Element *a, const Element *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += read(a[i]) * read(b[i]);
    return sum;
}

static int smaller(int a, int b) {
    return a < b ? a : b;
}

/* Where row j of keys or values is: at j·stride, or in a cache's pages. */
typedef struct {
    size_t stride;
    const int32_t *pages; /* of one sequence; NULL: no pages */
    size_t page_size;     /* elements of a page */
} Rows;

static size_t row_at(const Rows *rows, int j) {
    if (!rows->pages) return (size_t)j * rows->stride;
    return (size_t)rows->pages[j / CACHE_PAGE] * rows->page_size + (size_t)(j % CACHE_PAGE) * rows->stride;
}

/* log-sum-exp of the scores of `q` with the first n rows of `keys` */
static double score_lse(const Element *q, const Element *keys, const Rows *rows, int n, int head_dim, float scale) {
    double top = -INFINITY, sum = 0;
    for (int j = 0; j < n; j++) top = fmax(top, scale * dot(q, keys + row_at(rows, j), head_dim));
    for (int j = 0; j < n; j++) sum += exp(scale * dot(q, keys + row_at(rows, j), head_dim) - top);
    return top + log(sum); /* cppcheck-suppress invalidFunctionArg ; one term is 1 */
}

/* One query against the n keys and values it may see. Returns log-sum-exp. */
static double attend(Element *out, const Element *q, const Element *keys, const Element *values, const Rows *rows,
                     int n, int head_dim, float scale) {
    double lse = score_lse(q, keys, rows, n, head_dim, scale);
    for (int i0 = 0; i0 < head_dim; i0 += SLICE) {
        int width = smaller(SLICE, head_dim - i0);
        double sum[SLICE] = {0};
        for (int j = 0; j < n; j++) {
            double p = exp(scale * dot(q, keys + row_at(rows, j), head_dim) - lse);
            for (int i = 0; i < width; i++) sum[i] += p * read(values[row_at(rows, j) + (size_t)(i0 + i)]);
        }
        for (int i = 0; i < width; i++) out[i0 + i] = rounded(sum[i]);
    }
    return lse;
}

static void attention_forward(Element *out, float *lse, const Inputs *in, Segments segments) {
    int n_heads = in->n_heads, group = n_heads / in->n_kv_heads, head_dim = in->head_dim;
#pragma omp parallel num_threads(threads_count())
    for (int s = 0; s < segments.n_segments; s++) {
        int first = segments.segment_start[s], end = segments.segment_start[s + 1];
#pragma omp for schedule(static, 1) collapse(2) nowait
        for (int t = first; t < end; t++)
            for (int h = 0; h < n_heads; h++) {
                size_t kv = (size_t)first * in->kv_stride + (size_t)(h / group) * (size_t)head_dim;
                size_t head = (size_t)t * (size_t)n_heads + (size_t)h;
                const Element *q = in->q + (size_t)t * in->q_stride + (size_t)h * (size_t)head_dim;
                double l = attend(out + head * (size_t)head_dim, q, in->k + kv, in->v + kv,
                                  &(Rows){.stride = in->kv_stride}, t - first + 1, head_dim, in->scale);
                if (lse) lse[head] = (float)l;
            }
    }
}

/* A page is [KV, CACHE_PAGE, HD]. */
static void cache_store(Element *keys, Element *values, const Element *k, const Element *v, const CachedAttention *c) {
    size_t HD = (size_t)c->head_dim, KV = (size_t)c->n_kv_heads;
#pragma omp parallel for num_threads(threads_count()) schedule(static) if (c->n_tokens > SLICE)
    for (int t = 0; t < c->n_tokens; t++) {
        int32_t page = c->pages[(size_t)c->slots[t] * c->page_stride + (size_t)(c->positions[t] / CACHE_PAGE)];
        size_t to = (size_t)page * c->page_size + (size_t)(c->positions[t] % CACHE_PAGE) * HD;
        for (size_t kv = 0; kv < KV; kv++, to += CACHE_PAGE * HD) {
            memcpy(keys + to, k + (size_t)t * c->stride + kv * HD, HD * sizeof *keys);
            memcpy(values + to, v + (size_t)t * c->stride + kv * HD, HD * sizeof *values);
        }
    }
}

static void attention_cached(Element *out, const Element *q, const Element *keys, const Element *values,
                             const CachedAttention *c) {
    size_t HD = (size_t)c->head_dim, H = (size_t)c->n_heads;
    int group = c->n_heads / c->n_kv_heads;
#pragma omp parallel for num_threads(threads_count()) schedule(static) collapse(2)
    for (int t = 0; t < c->n_tokens; t++)
        for (int h = 0; h < c->n_heads; h++) {
            Rows rows = {HD, c->pages + (size_t)c->slots[t] * c->page_stride, c->page_size};
            size_t head = (size_t)(h / group) * CACHE_PAGE * HD;
            attend(out + ((size_t)t * H + (size_t)h) * HD, q + (size_t)t * c->stride + (size_t)h * HD, keys + head,
                   values + head, &rows, c->positions[t] + 1, c->head_dim, c->scale);
        }
}

/* What the backward pass reads; the gradients it writes follow as arguments. */
typedef struct {
    const Inputs *in;
    const Element *dout, *out;
    const float *lse;
    int first, end; /* rows of the segment */
} Backward;

static const Element *query(const Backward *b, int t, int h) {
    return b->in->q + (size_t)t * b->in->q_stride + (size_t)h * (size_t)b->in->head_dim;
}

/* p_tj and ds_tj of query head h */
static void probability(const Backward *b, int t, int h, int j, double *p, double *ds) {
    const Inputs *in = b->in;
    int head_dim = in->head_dim;
    size_t head = (size_t)t * (size_t)in->n_heads + (size_t)h;
    size_t kv = (size_t)j * in->kv_stride + (size_t)(h / (in->n_heads / in->n_kv_heads)) * (size_t)head_dim;
    const Element *g = b->dout + head * (size_t)head_dim;
    *p = exp(in->scale * dot(query(b, t, h), in->k + kv, head_dim) - (double)b->lse[head]);
    *ds = *p * (dot(g, in->v + kv, head_dim) - dot(g, b->out + head * (size_t)head_dim, head_dim));
}

static void store(Element *to, const double *from, int n, bool accumulate, double scale) {
    for (int i = 0; i < n; i++) to[i] = rounded(accumulate ? read(to[i]) + scale * from[i] : scale * from[i]);
}

static void query_gradient(Element *dq, bool accumulate, const Backward *b, int t, int h) {
    const Inputs *in = b->in;
    size_t kv_head = (size_t)(h / (in->n_heads / in->n_kv_heads)) * (size_t)in->head_dim;
    Element *dq_HD = dq + (size_t)t * in->q_stride + (size_t)h * (size_t)in->head_dim;
    for (int i0 = 0; i0 < in->head_dim; i0 += SLICE) {
        int width = smaller(SLICE, in->head_dim - i0);
        double sum[SLICE] = {0}, p, ds;
        for (int j = b->first; j <= t; j++) {
            probability(b, t, h, j, &p, &ds);
            const Element *k = in->k + (size_t)j * in->kv_stride + kv_head + i0;
            for (int i = 0; i < width; i++) sum[i] += ds * read(k[i]);
        }
        store(dq_HD + i0, sum, width, accumulate, in->scale);
    }
}

static void key_value_gradient(Element *dk, Element *dv, bool accumulate, const Backward *b, int j, int kv_head) {
    const Inputs *in = b->in;
    int group = in->n_heads / in->n_kv_heads;
    size_t row = (size_t)j * in->kv_stride + (size_t)kv_head * (size_t)in->head_dim;
    for (int i0 = 0; i0 < in->head_dim; i0 += SLICE) {
        int width = smaller(SLICE, in->head_dim - i0);
        double dk_sum[SLICE] = {0}, dv_sum[SLICE] = {0}, p, ds;
        for (int t = j; t < b->end; t++)
            for (int h = kv_head * group; h < (kv_head + 1) * group; h++) {
                probability(b, t, h, j, &p, &ds);
                const Element *q = query(b, t, h) + i0;
                const Element *g = b->dout + ((size_t)t * (size_t)in->n_heads + (size_t)h) * (size_t)in->head_dim + i0;
                for (int i = 0; i < width; i++) dk_sum[i] += ds * read(q[i]);
                for (int i = 0; i < width; i++) dv_sum[i] += p * read(g[i]);
            }
        if (dk) store(dk + row + i0, dk_sum, width, accumulate, in->scale);
        if (dv) store(dv + row + i0, dv_sum, width, accumulate, 1);
    }
}

static void attention_backward(Element *dq, Element *dk, Element *dv, bool accumulate, const Element *dout,
                               const Element *out, const float *lse, const Inputs *in, Segments segments) {
#pragma omp parallel num_threads(threads_count())
    for (int s = 0; s < segments.n_segments; s++) {
        Backward b = {in, dout, out, lse, segments.segment_start[s], segments.segment_start[s + 1]};
        if (dq) {
#pragma omp for schedule(static, 1) collapse(2) nowait
            for (int t = b.first; t < b.end; t++)
                for (int h = 0; h < in->n_heads; h++) query_gradient(dq, accumulate, &b, t, h);
        }
        if (dk || dv) {
#pragma omp for schedule(static, 1) collapse(2) nowait
            for (int j = b.first; j < b.end; j++)
                for (int h = 0; h < in->n_kv_heads; h++) key_value_gradient(dk, dv, accumulate, &b, j, h);
        }
    }
}

#endif
