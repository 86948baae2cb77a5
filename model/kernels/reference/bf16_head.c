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
    Panels forward;
    float scale;
} Logits;

static double logit(const Logits *l, int t, int v) {
    const int width = l->forward.depth;
    const bf16 *x_D = l->x + (size_t)t * (size_t)width;
    double sum = 0;
    for (int i = 0; i < width; i++) sum += (double)bf16_to_f32(x_D[i]) * (double)reference_panels_at(&l->forward, v, i);
    return (double)l->scale * sum;
}

static void reference_bf16_head_forward(HeadResults out, const bf16 *x, Panels forward, const int32_t *targets,
                                        const float *mask, int n_tokens, float logit_scale, float *scratch) {
    const Logits logits = {x, forward, logit_scale};
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

/* dL/d(x·w_v) of token t */
static float logit_gradient(const Logits *l, int t, int v, float dlogprob, float lse, int target) {
    double p = exp(logit(l, t, v) - (double)lse);
    return (float)((double)dlogprob * ((v == target) - p) * (double)l->scale);
}

static void hidden_gradient(bf16 *dx, bool accumulate, const float *dlogprob, const Logits *l, Panels backward,
                            const float *lse, const int32_t *targets, int n_tokens, float *scratch) {
    const int width = backward.lanes, vocab = backward.depth;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        float *g = scratch + (size_t)omp_get_thread_num() * (size_t)vocab;
        bf16 *dx_D = dx + (size_t)t * (size_t)width;
        if (!accumulate) memset(dx_D, 0, (size_t)width * sizeof *dx_D);
        if (dlogprob[t] == 0) continue;
        for (int v = 0; v < vocab; v++) g[v] = logit_gradient(l, t, v, dlogprob[t], lse[t], targets[t]);
        for (int i = 0; i < width; i++) {
            double sum = accumulate ? (double)bf16_to_f32(dx_D[i]) : 0;
            for (int v = 0; v < vocab; v++) sum += (double)g[v] * (double)reference_panels_at(&backward, i, v);
            dx_D[i] = f32_to_bf16((float)sum);
        }
    }
}

static void weight_gradient(float *dw, const float *dlogprob, const Logits *l, const float *lse, const int32_t *targets,
                            int n_tokens, float *scratch) {
    const int width = l->forward.depth, vocab = l->forward.lanes;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int v = 0; v < vocab; v++) {
        float *g = scratch + (size_t)omp_get_thread_num() * (size_t)n_tokens;
        for (int t = 0; t < n_tokens; t++)
            g[t] = dlogprob[t] == 0 ? 0 : logit_gradient(l, t, v, dlogprob[t], lse[t], targets[t]);
        for (int i = 0; i < width; i++) {
            double sum = 0;
            for (int t = 0; t < n_tokens; t++)
                if (dlogprob[t] != 0)
                    sum += (double)g[t] * (double)bf16_to_f32(l->x[(size_t)t * (size_t)width + (size_t)i]);
            dw[(size_t)v * (size_t)width + (size_t)i] += (float)sum;
        }
    }
}

static void reference_bf16_head_backward(bf16 *dx, bool accumulate, float *dw, const float *dlogprob, const bf16 *x,
                                         Panels forward, Panels backward, const float *lse, const int32_t *targets,
                                         int n_tokens, float logit_scale, float *scratch) {
    const Logits logits = {x, forward, logit_scale};
    if (dx) hidden_gradient(dx, accumulate, dlogprob, &logits, backward, lse, targets, n_tokens, scratch);
    if (dw) weight_gradient(dw, dlogprob, &logits, lse, targets, n_tokens, scratch);
}

static void reference_bf16_head_forward_backward(HeadResults out, bf16 *dx, float *dw, const float *dlogprob,
                                                 const bf16 *x, Panels forward, Panels backward, const int32_t *targets,
                                                 int n_tokens, float logit_scale, float *scratch) {
    reference_bf16_head_forward(out, x, forward, targets, dlogprob, n_tokens, logit_scale, scratch);
    reference_bf16_head_backward(dx, false, dw, dlogprob, x, forward, backward, out.lse, targets, n_tokens, logit_scale,
                                 scratch);
}

void reference_bf16_head(Bf16Kernels *table) {
    table->head_forward = reference_bf16_head_forward;
    table->head_backward = reference_bf16_head_backward;
    table->head_forward_backward = reference_bf16_head_forward_backward;
}
