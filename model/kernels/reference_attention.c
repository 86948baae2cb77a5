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
 * Only L is kept between the passes: every p is computed again where it is needed. */
#include <math.h>

#include "model/core/threads.h"
#include "model/kernels/reference.h"

/* Elements of a head summed at a time, in fp64 on the stack; scores are computed again for each slice. */
enum { SLICE = 64 };

static double dot(const float *a, const float *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

static int smaller(int a, int b) {
    return a < b ? a : b;
}

/* log-sum-exp of the scores of `q` with the first n rows of `keys` */
static double score_lse(const float *q, const float *keys, size_t stride, int n, int head_dim, float scale) {
    double top = -INFINITY, sum = 0;
    for (int j = 0; j < n; j++) top = fmax(top, scale * dot(q, keys + (size_t)j * stride, head_dim));
    for (int j = 0; j < n; j++) sum += exp(scale * dot(q, keys + (size_t)j * stride, head_dim) - top);
    return top + log(sum); /* cppcheck-suppress invalidFunctionArg ; one term is 1 */
}

/* One query against the n keys and values it may see. Returns log-sum-exp. */
static double attend(float *out, const float *q, const float *keys, const float *values, size_t stride, int n,
                     int head_dim, float scale) {
    double lse = score_lse(q, keys, stride, n, head_dim, scale);
    for (int i0 = 0; i0 < head_dim; i0 += SLICE) {
        int width = smaller(SLICE, head_dim - i0);
        double sum[SLICE] = {0};
        for (int j = 0; j < n; j++) {
            double p = exp(scale * dot(q, keys + (size_t)j * stride, head_dim) - lse);
            for (int i = 0; i < width; i++) sum[i] += p * values[(size_t)j * stride + (size_t)(i0 + i)];
        }
        for (int i = 0; i < width; i++) out[i0 + i] = (float)sum[i];
    }
    return lse;
}

void reference_attention_forward(float *out, float *lse, const AttentionInputs *in, Segments segments) {
    int n_heads = in->n_heads, group = n_heads / in->n_kv_heads, head_dim = in->head_dim;
#pragma omp parallel num_threads(threads_count())
    for (int s = 0; s < segments.n_segments; s++) {
        int first = segments.segment_start[s], end = segments.segment_start[s + 1];
#pragma omp for schedule(static, 1) collapse(2) nowait
        for (int t = first; t < end; t++)
            for (int h = 0; h < n_heads; h++) {
                size_t kv = (size_t)first * in->kv_stride + (size_t)(h / group) * (size_t)head_dim;
                size_t head = (size_t)t * (size_t)n_heads + (size_t)h;
                const float *q = in->q + (size_t)t * in->q_stride + (size_t)h * (size_t)head_dim;
                double l = attend(out + head * (size_t)head_dim, q, in->k + kv, in->v + kv, in->kv_stride,
                                  t - first + 1, head_dim, in->scale);
                if (lse) lse[head] = (float)l;
            }
    }
}

/* What the backward pass reads; the gradients it writes follow as arguments. */
typedef struct {
    const AttentionInputs *in;
    const float *dout, *out, *lse;
    int first, end; /* rows of the segment */
} Backward;

static const float *query(const Backward *b, int t, int h) {
    return b->in->q + (size_t)t * b->in->q_stride + (size_t)h * (size_t)b->in->head_dim;
}

/* p_tj and ds_tj of query head h */
static void probability(const Backward *b, int t, int h, int j, double *p, double *ds) {
    const AttentionInputs *in = b->in;
    int head_dim = in->head_dim;
    size_t head = (size_t)t * (size_t)in->n_heads + (size_t)h;
    size_t kv = (size_t)j * in->kv_stride + (size_t)(h / (in->n_heads / in->n_kv_heads)) * (size_t)head_dim;
    const float *g = b->dout + head * (size_t)head_dim;
    *p = exp(in->scale * dot(query(b, t, h), in->k + kv, head_dim) - (double)b->lse[head]);
    *ds = *p * (dot(g, in->v + kv, head_dim) - dot(g, b->out + head * (size_t)head_dim, head_dim));
}

static void store(float *to, const double *from, int n, bool accumulate, double scale) {
    for (int i = 0; i < n; i++) to[i] = (float)(accumulate ? to[i] + scale * from[i] : scale * from[i]);
}

static void query_gradient(float *dq, bool accumulate, const Backward *b, int t, int h) {
    const AttentionInputs *in = b->in;
    size_t kv_head = (size_t)(h / (in->n_heads / in->n_kv_heads)) * (size_t)in->head_dim;
    float *dq_HD = dq + (size_t)t * in->q_stride + (size_t)h * (size_t)in->head_dim;
    for (int i0 = 0; i0 < in->head_dim; i0 += SLICE) {
        int width = smaller(SLICE, in->head_dim - i0);
        double sum[SLICE] = {0}, p, ds;
        for (int j = b->first; j <= t; j++) {
            probability(b, t, h, j, &p, &ds);
            const float *k = in->k + (size_t)j * in->kv_stride + kv_head + i0;
            for (int i = 0; i < width; i++) sum[i] += ds * k[i];
        }
        store(dq_HD + i0, sum, width, accumulate, in->scale);
    }
}

static void key_value_gradient(float *dk, float *dv, bool accumulate, const Backward *b, int j, int kv_head) {
    const AttentionInputs *in = b->in;
    int group = in->n_heads / in->n_kv_heads;
    size_t row = (size_t)j * in->kv_stride + (size_t)kv_head * (size_t)in->head_dim;
    for (int i0 = 0; i0 < in->head_dim; i0 += SLICE) {
        int width = smaller(SLICE, in->head_dim - i0);
        double dk_sum[SLICE] = {0}, dv_sum[SLICE] = {0}, p, ds;
        for (int t = j; t < b->end; t++)
            for (int h = kv_head * group; h < (kv_head + 1) * group; h++) {
                probability(b, t, h, j, &p, &ds);
                const float *q = query(b, t, h) + i0;
                const float *g = b->dout + ((size_t)t * (size_t)in->n_heads + (size_t)h) * (size_t)in->head_dim + i0;
                for (int i = 0; i < width; i++) dk_sum[i] += ds * q[i];
                for (int i = 0; i < width; i++) dv_sum[i] += p * g[i];
            }
        if (dk) store(dk + row + i0, dk_sum, width, accumulate, in->scale);
        if (dv) store(dv + row + i0, dv_sum, width, accumulate, 1);
    }
}

void reference_attention_backward(float *dq, float *dk, float *dv, bool accumulate, const float *dout, const float *out,
                                  const float *lse, const AttentionInputs *in, Segments segments, float *scratch) {
    (void)scratch;
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

void reference_attention_cached(float *out, const float *q, size_t q_stride, int n_tokens, int n_heads, int n_kv_heads,
                                int head_dim, float scale, const int32_t *positions, const int32_t *slot,
                                const float *k_cache, const float *v_cache, size_t slot_stride) {
    size_t row = (size_t)n_kv_heads * (size_t)head_dim;
    int group = n_heads / n_kv_heads;
#pragma omp parallel for num_threads(threads_count()) schedule(static) collapse(2)
    for (int t = 0; t < n_tokens; t++)
        for (int h = 0; h < n_heads; h++) {
            size_t kv = (size_t)slot[t] * slot_stride + (size_t)(h / group) * (size_t)head_dim;
            float *out_HD = out + ((size_t)t * (size_t)n_heads + (size_t)h) * (size_t)head_dim;
            const float *q_HD = q + (size_t)t * q_stride + (size_t)h * (size_t)head_dim;
            attend(out_HD, q_HD, k_cache + kv, v_cache + kv, row, positions[t] + 1, head_dim, scale);
        }
}
