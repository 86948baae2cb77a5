/* The head of precision bf16, from the formulas in reference/head.c: bf16 operands, every sum in fp64, nothing rounded
 * before the results. dx is taken from the `backward` panels, everything else from `forward`. Scratch: for each thread
 * a row of logits or a column of their gradients. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "model/core/threads.h"
#include "model/kernels/reference/reference.h"

typedef struct {
    const bf16 *x;
    Panels forward, backward;
    const HeadAdapter *adapter; /* or NULL */
    float scale;
} Logits;

static double gain_of(const Logits *l, int v) {
    return l->adapter && l->adapter->gains ? (double)l->adapter->gains[v] : 1;
}

static int rank_of(const Logits *l) {
    return l->adapter ? l->adapter->rank : 0;
}

static double inner(const Logits *l, int t, int k) {
    return (double)bf16_to_f32(((const bf16 *)l->adapter->u)[(size_t)t * (size_t)rank_of(l) + (size_t)k]);
}

static double logit(const Logits *l, int t, int v) {
    const int width = l->forward.depth;
    const bf16 *x_D = l->x + (size_t)t * (size_t)width;
    double sum = 0;
    for (int i = 0; i < width; i++) sum += (double)bf16_to_f32(x_D[i]) * (double)reference_panels_at(&l->forward, v, i);
    for (int k = 0; k < rank_of(l); k++)
        sum += inner(l, t, k) * (double)reference_panels_at(&l->adapter->forward, v, k);
    return (double)l->scale * gain_of(l, v) * sum;
}

static void reference_bf16_head_forward(HeadResults out, const bf16 *x, Panels forward, const HeadAdapter *adapter,
                                        const int32_t *targets, const float *mask, int n_tokens, float logit_scale,
                                        float *scratch) {
    const Logits logits = {x, forward, forward, adapter, logit_scale};
    const int vocab = forward.lanes;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        float *z = scratch + (size_t)omp_get_thread_num() * (size_t)vocab;
        if (mask && mask[t] == 0) {
            reference_token_skipped(out, t);
            continue;
        }
        for (int v = 0; v < vocab; v++) z[v] = (float)logit(&logits, t, v);
        reference_token_results(out, t, z, vocab, targets[t]);
    }
}

/* dL/d logit of token t; *z is the logit. */
static double logit_gradient(double *z, const Logits *l, int t, int v, float dlogprob, float lse, int target) {
    *z = logit(l, t, v);
    return (double)dlogprob * ((v == target) - exp(*z - (double)lse));
}

/* to[i] (+)= Σ_v g_v·(a column of the panels), rounded. */
static void row_times_panels(bf16 *to, bool accumulate, const float *g, Panels backward) {
    for (int i = 0; i < backward.lanes; i++) {
        double sum = accumulate ? (double)bf16_to_f32(to[i]) : 0;
        for (int v = 0; v < backward.depth; v++) sum += (double)g[v] * (double)reference_panels_at(&backward, i, v);
        to[i] = f32_to_bf16((float)sum);
    }
}

/* dx and du */
static void token_gradients(bf16 *dx, bool accumulate, const float *dlogprob, const Logits *l, const float *lse,
                            const int32_t *targets, int n_tokens, float *scratch) {
    const int vocab = l->forward.lanes;
    const size_t width = (size_t)l->forward.depth, rank = l->adapter && l->adapter->du ? (size_t)rank_of(l) : 0;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        float *g = scratch + (size_t)omp_get_thread_num() * (size_t)vocab;
        bf16 *dx_D = dx ? dx + (size_t)t * width : NULL,
             *du = rank > 0 ? (bf16 *)l->adapter->du + (size_t)t * rank : NULL;
        if (dx && !accumulate) memset(dx_D, 0, width * sizeof *dx_D);
        if (du) memset(du, 0, rank * sizeof *du);
        if (dlogprob[t] == 0) continue;
        for (int v = 0; v < vocab; v++) {
            double z, dz = logit_gradient(&z, l, t, v, dlogprob[t], lse[t], targets[t]);
            g[v] = (float)(dz * (double)l->scale * gain_of(l, v));
        }
        if (dx) row_times_panels(dx_D, accumulate, g, l->backward);
        if (du) row_times_panels(du, false, g, l->adapter->backward);
    }
}

/* dw, db and dlog_gains */
static void word_gradients(float *dw, const float *dlogprob, const Logits *l, const float *lse, const int32_t *targets,
                           int n_tokens, float *scratch) {
    const int vocab = l->forward.lanes, rank = l->adapter && l->adapter->db ? rank_of(l) : 0;
    const size_t width = (size_t)l->forward.depth;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int v = 0; v < vocab; v++) {
        float *g = scratch + (size_t)omp_get_thread_num() * (size_t)n_tokens;
        double log_gain = 0;
        for (int t = 0; t < n_tokens; t++) {
            double z = 0, dz = 0;
            if (dlogprob[t] != 0) dz = logit_gradient(&z, l, t, v, dlogprob[t], lse[t], targets[t]);
            g[t] = (float)(dz * (double)l->scale * gain_of(l, v));
            log_gain += dz * z;
        }
        for (size_t i = 0; dw && i < width; i++) {
            double sum = 0;
            for (int t = 0; t < n_tokens; t++)
                if (dlogprob[t] != 0) sum += (double)g[t] * (double)bf16_to_f32(l->x[(size_t)t * width + i]);
            dw[(size_t)v * width + i] += (float)sum;
        }
        for (int k = 0; k < rank; k++) {
            double sum = 0;
            for (int t = 0; t < n_tokens; t++)
                if (dlogprob[t] != 0) sum += (double)g[t] * inner(l, t, k);
            l->adapter->db[(size_t)v * (size_t)rank + (size_t)k] += (float)sum;
        }
        if (rank > 0 && l->adapter->gains) l->adapter->dlog_gains[v] += (float)log_gain;
    }
}

static void reference_bf16_head_backward(bf16 *dx, bool accumulate, float *dw, const float *dlogprob, const bf16 *x,
                                         Panels forward, Panels backward, const HeadAdapter *adapter, const float *lse,
                                         const int32_t *targets, int n_tokens, float logit_scale, float *scratch) {
    const Logits l = {x, forward, backward, adapter, logit_scale};
    const bool adapted = adapter && adapter->du;
    if (dx || adapted) token_gradients(dx, accumulate, dlogprob, &l, lse, targets, n_tokens, scratch);
    if (dw || (adapted && adapter->db)) word_gradients(dw, dlogprob, &l, lse, targets, n_tokens, scratch);
}

static void reference_bf16_head_forward_backward(HeadResults out, bf16 *dx, float *dw, const float *dlogprob,
                                                 const bf16 *x, Panels forward, Panels backward,
                                                 const HeadAdapter *adapter, const int32_t *targets, int n_tokens,
                                                 float logit_scale, float *scratch) {
    reference_bf16_head_forward(out, x, forward, adapter, targets, dlogprob, n_tokens, logit_scale, scratch);
    reference_bf16_head_backward(dx, false, dw, dlogprob, x, forward, backward, adapter, out.lse, targets, n_tokens,
                                 logit_scale, scratch);
}

void reference_bf16_head(Bf16Kernels *table) {
    table->head_forward = reference_bf16_head_forward;
    table->head_backward = reference_bf16_head_backward;
    table->head_forward_backward = reference_bf16_head_forward_backward;
}
