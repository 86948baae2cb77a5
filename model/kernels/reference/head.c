/* The language-model head and its loss, from the definition. For a token with hidden state x and target y:
 *
 *   z_v = logit_scale·x·w_v     L = log Σ_v e^{z_v}     logprob = z_y − L     p_v = e^{z_v − L}
 *   entropy = L − Σ_v p_v·z_v   top1 = argmax z         mean_logit = Σ_v z_v / V
 *
 * Backward, given c = dL/d logprob:  dz_v = c·([v = y] − p_v);  dx = logit_scale·Σ_v dz_v·w_v;
 * dw_v += logit_scale·Σ_t dz_tv·x_t. Logits are computed again in each pass: one row of them per thread is all that is
 * stored. A NaN or an infinite logit makes L, and so the logprob, NaN. */
#include <math.h>
#include <omp.h>

#include "model/core/threads.h"
#include "model/kernels/reference/reference.h"

static double logit(const float *x, const float *w, int width, float logit_scale) {
    double sum = 0;
    for (int i = 0; i < width; i++) sum += (double)x[i] * w[i];
    return logit_scale * sum;
}

void reference_token_skipped(HeadResults out, int t) {
    out.logprob[t] = 0;
    out.lse[t] = 0;
    if (out.entropy) out.entropy[t] = 0;
    if (out.top1) out.top1[t] = -1;
    if (out.mean_logit) out.mean_logit[t] = 0;
}

void reference_token_results(HeadResults out, int t, const float *z, int vocab, int target) {
    int top = 0;
    for (int v = 1; v < vocab; v++)
        if (z[v] > z[top] || isnan(z[top])) top = v;
    double sum = 0, weighted = 0, total = 0;
    for (int v = 0; v < vocab; v++) {
        double e = exp((double)z[v] - (double)z[top]);
        sum += e;
        weighted += e * ((double)z[v] - (double)z[top]);
        total += (double)z[v];
    }
    double lse = (double)z[top] + log(sum); /* cppcheck-suppress invalidFunctionArg ; one term is 1 */
    out.lse[t] = (float)lse;
    out.logprob[t] = (float)((double)z[target] - lse);
    if (out.entropy) out.entropy[t] = (float)(log(sum) - weighted / sum);
    if (out.top1) out.top1[t] = top;
    if (out.mean_logit) out.mean_logit[t] = (float)(total / vocab);
}

void reference_head_forward(HeadResults out, const float *x, const float *w, const int32_t *targets, const float *mask,
                            int n_tokens, int width, int vocab, float logit_scale, float *scratch) {
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        float *z = scratch + (size_t)omp_get_thread_num() * (size_t)vocab;
        if (mask && mask[t] == 0) {
            reference_token_skipped(out, t);
            continue;
        }
        const float *x_D = x + (size_t)t * (size_t)width;
        for (int v = 0; v < vocab; v++) z[v] = (float)logit(x_D, w + (size_t)v * (size_t)width, width, logit_scale);
        reference_token_results(out, t, z, vocab, targets[t]);
    }
}

/* dL/d(x·w_v) of a token */
static float logit_gradient(float dlogprob, const float *x, const float *w_v, float lse, bool is_target, int width,
                            float logit_scale) {
    double p = exp(logit(x, w_v, width, logit_scale) - (double)lse);
    return (float)(dlogprob * (is_target - p) * logit_scale);
}

static void hidden_gradient(float *dx, bool accumulate, const float *dlogprob, const float *x, const float *w,
                            const float *lse, const int32_t *targets, int n_tokens, int width, int vocab,
                            float logit_scale) {
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        const float *x_D = x + (size_t)t * (size_t)width;
        float *dx_D = dx + (size_t)t * (size_t)width;
        if (!accumulate)
            for (int i = 0; i < width; i++) dx_D[i] = 0;
        if (dlogprob[t] == 0) continue;
        for (int v = 0; v < vocab; v++) {
            const float *w_D = w + (size_t)v * (size_t)width;
            float g = logit_gradient(dlogprob[t], x_D, w_D, lse[t], v == targets[t], width, logit_scale);
            for (int i = 0; i < width; i++) dx_D[i] += g * w_D[i];
        }
    }
}

static void weight_gradient(float *dw, const float *dlogprob, const float *x, const float *w, const float *lse,
                            const int32_t *targets, int n_tokens, int width, int vocab, float logit_scale) {
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int v = 0; v < vocab; v++) {
        const float *w_D = w + (size_t)v * (size_t)width;
        float *dw_D = dw + (size_t)v * (size_t)width;
        for (int t = 0; t < n_tokens; t++) {
            if (dlogprob[t] == 0) continue;
            const float *x_D = x + (size_t)t * (size_t)width;
            float g = logit_gradient(dlogprob[t], x_D, w_D, lse[t], v == targets[t], width, logit_scale);
            for (int i = 0; i < width; i++) dw_D[i] += g * x_D[i];
        }
    }
}

void reference_head_backward(float *dx, bool accumulate, float *dw, const float *dlogprob, const float *x,
                             const float *w, const float *lse, const int32_t *targets, int n_tokens, int width,
                             int vocab, float logit_scale, float *scratch) {
    (void)scratch;
    if (dx) hidden_gradient(dx, accumulate, dlogprob, x, w, lse, targets, n_tokens, width, vocab, logit_scale);
    if (dw) weight_gradient(dw, dlogprob, x, w, lse, targets, n_tokens, width, vocab, logit_scale);
}

void reference_head_forward_backward(HeadResults out, float *dx, float *dw, const float *dlogprob, const float *x,
                                     const float *w, const int32_t *targets, int n_tokens, int width, int vocab,
                                     float logit_scale, float *scratch) {
    reference_head_forward(out, x, w, targets, dlogprob, n_tokens, width, vocab, logit_scale, scratch);
    reference_head_backward(dx, false, dw, dlogprob, x, w, out.lse, targets, n_tokens, width, vocab, logit_scale,
                            scratch);
}

double reference_softmax_weights(float *weights, float *top, const float *x, size_t n, float scale) {
    double most = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(x[i])) return NAN;
        most = fmax(most, (double)x[i]);
    }
    if (!isfinite(most)) return NAN;
    for (size_t i = 0; i < n; i++) {
        weights[i] = (float)exp((double)scale * ((double)x[i] - most));
        sum += (double)weights[i];
    }
    *top = (float)most;
    return sum;
}
