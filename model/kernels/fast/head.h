/* The head in blocks of tokens whose logits stay in cache between the products; formulas in reference/head.c. Included
 * by avx2_kernels.c and avx512_kernels.c.
 *
 * For a block of B live tokens, gathered so that skipped ones cost nothing: one product gives the logits z[B,V]; each
 * row is turned in place into e_v = exp(z_v − top), whose sum S gives the results and stays out of the array. With
 * dz_v = e_v − S·[v = y], the gradient of a logit is f·dz_v, f = −dlogprob·logit_scale/S, so that
 *
 *   dx_t = f_t·(dz·W)_t        dW += dzᵀ·(f·x)
 *
 * and nothing more than the target's element of the row has to be rewritten. An adapter's products are small ones of
 * the same z; with gains, gain·dgain_v = Σ_t f/logit_scale·dz_tv·z_tv, where z_tv = top + log e_v, and then dz ←
 * gain∘dz. */
#include <math.h>
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/fast/fast.h"
#include "model/kernels/kernels.h"
#include "model/kernels/fast/simd.h"

typedef struct {
    int n;                         /* live tokens in the block */
    int32_t token[HEAD_BLOCK_MAX]; /* which they are */
    float factor[HEAD_BLOCK_MAX];  /* f above */
    float top[HEAD_BLOCK_MAX];     /* e_v = exp(z_v − top) */
    float target[HEAD_BLOCK_MAX];  /* z of the target */
    float *z, *x, *dx;             /* [B,V], [B,D], [B,D], in the caller's scratch */
    float *u, *du;                 /* [B,rank], with an adapter */
    const HeadAdapter *adapter;    /* or NULL */
    int width, vocab;
    float logit_scale;
} HeadBlock;

static void head_block_start(HeadBlock *block, const HeadAdapter *adapter, float *scratch, int n_tokens, int width,
                             int vocab, float logit_scale) {
    size_t B = (size_t)head_block_tokens(n_tokens, vocab);
    block->z = scratch;
    block->x = block->z + B * (size_t)vocab;
    block->dx = block->x + B * (size_t)width;
    block->u = block->dx + B * (size_t)width;
    block->du = block->u + B * (size_t)(adapter ? adapter->rank : 0);
    block->adapter = adapter;
    block->width = width;
    block->vocab = vocab;
    block->logit_scale = logit_scale;
}

/* The next live tokens from *next on, their rows of x copied side by side. False when there are none left. */
static bool head_gather(HeadBlock *block, int *next, const float *x, const float *mask, int n_tokens) {
    int limit = head_block_tokens(n_tokens, block->vocab), t = *next;
    size_t D = (size_t)block->width;
    block->n = 0;
    for (; t < n_tokens && block->n < limit; t++)
        if (!mask || mask[t] != 0) block->token[block->n++] = t;
    *next = t;
    for (int b = 0; b < block->n; b++) memcpy(block->x + (size_t)b * D, x + (size_t)block->token[b] * D, D * sizeof *x);
    size_t rank = block->adapter ? (size_t)block->adapter->rank : 0;
    for (int b = 0; rank > 0 && b < block->n; b++)
        memcpy(block->u + (size_t)b * rank, (const float *)block->adapter->u + (size_t)block->token[b] * rank,
               rank * sizeof *block->u);
    return block->n > 0;
}

/* z ← gain∘z */
static void head_block_gains(const HeadBlock *block) {
    size_t V = (size_t)block->vocab;
    const float *gains = block->adapter->gains;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int b = 0; b < block->n; b++) {
        float *z = block->z + (size_t)b * V;
        for (size_t i = 0; i < V; i += VF) vf_put(z + i, V - i, vf_get(gains + i, V - i) * vf_get(z + i, V - i));
    }
}

static void head_logits(const HeadBlock *block, const float *w) {
    size_t D = (size_t)block->width, V = (size_t)block->vocab;
    const HeadAdapter *adapter = block->adapter;
    openblas_gemm(false, true, block->n, block->vocab, block->width, block->logit_scale, block->x, D, w, D, 0, block->z,
                  V);
    if (!adapter) return;
    size_t rank = (size_t)adapter->rank;
    openblas_gemm(false, true, block->n, block->vocab, adapter->rank, block->logit_scale, block->u, rank, adapter->b,
                  rank, 1, block->z, V);
    if (adapter->gains) head_block_gains(block);
}

/* ---- one row of logits ---- */

static float row_top(const float *z, size_t n) {
    vf top[4];
    for (size_t u = 0; u < 4; u++) top[u] = vf_set1(-INFINITY);
    size_t i = 0;
    for (; i + 4 * VF <= n; i += 4 * VF)
        for (size_t u = 0; u < 4; u++) top[u] = vf_max(top[u], vf_load(z + i + u * VF));
    float best = vf_top(vf_max(vf_max(top[0], top[1]), vf_max(top[2], top[3])));
    for (; i < n; i++) best = z[i] > best ? z[i] : best;
    return best;
}

/* Elements summed in fp32 lanes before their sum joins the fp64 total. */
enum { ROW_CHUNK = 64 * VF };

/* Σ exp(z − top); the terms replace z where `keep`. A NaN in z makes the sum NaN. */
static double row_exp_sum(float *z, size_t n, float top, bool keep) {
    vf shift = vf_set1(top), floor = vf_set1(-INFINITY);
    vd total = vd_zero();
    for (size_t begin = 0; begin < n; begin += ROW_CHUNK) {
        size_t end = n - begin < ROW_CHUNK ? n : begin + ROW_CHUNK, i = begin;
        vf sum = vf_zero();
        for (; i + VF <= end; i += VF) {
            vf e = vf_exp(vf_load(z + i) - shift);
            if (keep) vf_store(z + i, e);
            sum = sum + e;
        }
        if (i < end) {
            vf e = vf_exp(vf_to_lane(vf_load_part(z + i, end - i) - shift, (int)(end - i), floor));
            if (keep) vf_store_part(z + i, end - i, e);
            sum = sum + e;
        }
        total = vd_add(total, sum);
    }
    return vd_sum(total);
}

static double fast_softmax_weights(float *weights, float *top, const float *x, size_t n, float scale) {
    *top = row_top(x, n);
    if (!isfinite(*top)) return (double)NAN;
    vf factor = vf_set1(scale), shift = vf_set1(*top);
    vd total = vd_zero();
    for (size_t i = 0; i < n; i += VF) {
        vf e = vf_exp((vf_get(x + i, n - i) - shift) * factor);
        if (n - i < VF) e = vf_to_lane(e, (int)(n - i), vf_zero());
        vf_put(weights + i, n - i, e);
        total = vd_add(total, e);
    }
    return vd_sum(total);
}

/* Σ exp(z − top)·(z − top), for the entropy */
static double row_exp_moment(const float *z, size_t n, float top) {
    vf shift = vf_set1(top);
    vd total = vd_zero();
    for (size_t i = 0; i < n; i += VF) {
        vf d = vf_get(z + i, n - i) - shift;
        if (n - i < VF) d = vf_to_lane(d, (int)(n - i), vf_zero());
        total = vd_add(total, vf_exp(d) * d); /* 0 in the lanes beyond the end */
    }
    return vd_sum(total);
}

static double row_sum(const float *z, size_t n) {
    vd total = vd_zero();
    for (size_t i = 0; i < n; i += VF) total = vd_add(total, vf_get(z + i, n - i));
    return vd_sum(total);
}

static int32_t row_find(const float *z, int n, float value) {
    for (int i = 0; i < n; i++)
        if (z[i] == value) return i;
    return 0; /* NaN: any id */
}

static void head_skip(HeadResults out, int t) {
    out.logprob[t] = 0;
    out.lse[t] = 0;
    if (out.entropy) out.entropy[t] = 0;
    if (out.top1) out.top1[t] = -1;
    if (out.mean_logit) out.mean_logit[t] = 0;
}

/* Results of token t from its row z, which becomes exp(z − top) where `keep`. Returns the sum of those. */
static double head_row(HeadResults out, int t, float *z, int vocab, int target, bool keep) {
    size_t V = (size_t)vocab;
    float top = row_top(z, V), target_logit = z[target];
    if (out.top1) out.top1[t] = row_find(z, vocab, top);
    if (out.mean_logit) out.mean_logit[t] = (float)(row_sum(z, V) / vocab);
    double moment = out.entropy ? row_exp_moment(z, V, top) : 0;
    double sum = row_exp_sum(z, V, top, keep), lse = (double)top + log(sum);
    out.lse[t] = (float)lse;
    out.logprob[t] = (float)((double)target_logit - lse);
    if (out.entropy) out.entropy[t] = (float)(log(sum) - moment / sum);
    return sum;
}

static void fast_head_forward(HeadResults out, const float *x, const float *w, const HeadAdapter *adapter,
                              const int32_t *targets, const float *mask, int n_tokens, int width, int vocab,
                              float logit_scale, float *scratch) {
    HeadBlock block;
    head_block_start(&block, adapter, scratch, n_tokens, width, vocab, logit_scale);
    for (int t = 0; mask && t < n_tokens; t++)
        if (mask[t] == 0) head_skip(out, t);
    for (int next = 0; head_gather(&block, &next, x, mask, n_tokens);) {
        head_logits(&block, w);
#pragma omp parallel for num_threads(threads_count()) schedule(static)
        for (int b = 0; b < block.n; b++) {
            int t = block.token[b];
            head_row(out, t, block.z + (size_t)b * (size_t)vocab, vocab, targets[t], false);
        }
    }
}

/* ---- gradients ---- */

/* dlog_gains of a block from z = dz: threads own words. */
static void head_block_log_gains(const HeadBlock *block, const int32_t *targets) {
    enum { WORDS = 64 };
    const int V = block->vocab;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int first = 0; first < V; first += WORDS) {
        const int n = V - first < WORDS ? V - first : WORDS;
        double sum[WORDS] = {0};
        for (int b = 0; b < block->n; b++) {
            const float *e = block->z + (size_t)b * (size_t)V + first, top = block->top[b];
            const double factor = (double)block->factor[b] / (double)block->logit_scale;
            const int y = targets[block->token[b]] - first;
            for (int i = 0; i < n; i++)
                if (i != y && e[i] > 0) sum[i] += factor * (double)e[i] * (double)(top + logf(e[i]));
            if (y >= 0 && y < n) sum[y] += factor * (double)e[y] * (double)block->target[b];
        }
        for (int i = 0; i < n; i++) block->adapter->dlog_gains[first + i] += (float)sum[i];
    }
}

/* du and db of a block from z = dz, which has met the gains. */
static void head_block_adapter(const HeadBlock *block) {
    const HeadAdapter *adapter = block->adapter;
    size_t V = (size_t)block->vocab, rank = (size_t)adapter->rank;
    openblas_gemm(false, false, block->n, adapter->rank, block->vocab, 1, block->z, V, adapter->b, rank, 0, block->du,
                  rank);
    for (int b = 0; b < block->n; b++) {
        float *du = (float *)adapter->du + (size_t)block->token[b] * rank;
        for (size_t k = 0; k < rank; k++) {
            du[k] = block->factor[b] * block->du[(size_t)b * rank + k];
            block->u[(size_t)b * rank + k] *= block->factor[b];
        }
    }
    if (adapter->db)
        openblas_gemm(true, false, block->vocab, adapter->rank, block->n, 1, block->z, V, block->u, rank, 1,
                      adapter->db, rank);
}

/* The gradients of a block from z = dz; the rows of block->x are scaled on the way. */
static void head_block_gradients(HeadBlock *block, float *dx, bool accumulate, float *dw, const float *w,
                                 const int32_t *targets) {
    size_t D = (size_t)block->width, V = (size_t)block->vocab;
    const bool adapted = block->adapter && block->adapter->du, gains = block->adapter && block->adapter->gains;
    if (adapted && gains && block->adapter->db) head_block_log_gains(block, targets);
    if (gains) head_block_gains(block);
    if (adapted) head_block_adapter(block);
    if (!dx && !dw) return;
    if (dx) openblas_gemm(false, false, block->n, block->width, block->vocab, 1, block->z, V, w, D, 0, block->dx, D);
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int b = 0; b < block->n; b++) {
        vf f = vf_set1(block->factor[b]);
        float *x_D = block->x + (size_t)b * D, *from = block->dx + (size_t)b * D;
        float *to = dx ? dx + (size_t)block->token[b] * D : NULL;
        for (size_t i = 0; i < D; i += VF) {
            size_t n = D - i;
            vf_put(x_D + i, n, f * vf_get(x_D + i, n));
            if (!to) continue;
            vf d = f * vf_get(from + i, n);
            if (accumulate) d = d + vf_get(to + i, n);
            vf_put(to + i, n, d);
        }
    }
    if (dw) openblas_gemm(true, false, block->vocab, block->width, block->n, 1, block->z, V, block->x, D, 1, dw, D);
}

static void zero_skipped(float *dx, const float *dlogprob, int n_tokens, int width) {
    for (int t = 0; dx && t < n_tokens; t++)
        if (dlogprob[t] == 0) memset(dx + (size_t)t * (size_t)width, 0, (size_t)width * sizeof *dx);
}

static void fast_head_backward(float *dx, bool accumulate, float *dw, const float *dlogprob, const float *x,
                               const float *w, const HeadAdapter *adapter, const float *lse, const int32_t *targets,
                               int n_tokens, int width, int vocab, float logit_scale, float *scratch) {
    HeadBlock block;
    head_block_start(&block, adapter, scratch, n_tokens, width, vocab, logit_scale);
    if (!dx && !dw && !(adapter && adapter->du)) return;
    if (!accumulate) zero_skipped(dx, dlogprob, n_tokens, width);
    if (adapter) zero_skipped(adapter->du, dlogprob, n_tokens, adapter->rank);
    for (int next = 0; head_gather(&block, &next, x, dlogprob, n_tokens);) {
        head_logits(&block, w);
#pragma omp parallel for num_threads(threads_count()) schedule(static)
        for (int b = 0; b < block.n; b++) {
            int t = block.token[b];
            float *z = block.z + (size_t)b * (size_t)vocab;
            block.top[b] = lse[t];
            block.target[b] = z[targets[t]];
            row_exp_sum(z, (size_t)vocab, lse[t], true);
            z[targets[t]] -= 1;
            block.factor[b] = -dlogprob[t] * logit_scale;
        }
        head_block_gradients(&block, dx, accumulate, dw, w, targets);
    }
}

static void fast_head_forward_backward(HeadResults out, float *dx, float *dw, const float *dlogprob, const float *x,
                                       const float *w, const HeadAdapter *adapter, const int32_t *targets, int n_tokens,
                                       int width, int vocab, float logit_scale, float *scratch) {
    HeadBlock block;
    head_block_start(&block, adapter, scratch, n_tokens, width, vocab, logit_scale);
    for (int t = 0; t < n_tokens; t++)
        if (dlogprob[t] == 0) head_skip(out, t);
    zero_skipped(dx, dlogprob, n_tokens, width);
    if (adapter) zero_skipped(adapter->du, dlogprob, n_tokens, adapter->rank);
    for (int next = 0; head_gather(&block, &next, x, dlogprob, n_tokens);) {
        head_logits(&block, w);
#pragma omp parallel for num_threads(threads_count()) schedule(static)
        for (int b = 0; b < block.n; b++) {
            int t = block.token[b];
            float *z = block.z + (size_t)b * (size_t)vocab;
            block.target[b] = z[targets[t]];
            double sum = head_row(out, t, z, vocab, targets[t], true);
            block.top[b] = (float)((double)out.lse[t] - log(sum));
            z[targets[t]] = (float)((double)z[targets[t]] - sum);
            block.factor[b] = (float)(-(double)dlogprob[t] * (double)logit_scale / sum);
        }
        head_block_gradients(&block, dx, false, dw, w, targets);
    }
}
