/* The language-model head and its loss, from the definition. For a token with hidden state x and target y:
 *
 *   z_v = logit_scale·x·w_v     L = log Σ_v e^{z_v}     logprob = z_y − L     p_v = e^{z_v − L}
 *   entropy = L − Σ_v p_v·z_v   top1 = argmax z         mean_logit = Σ_v z_v / V
 *
 * Backward, given c = dL/d logprob:  dz_v = c·([v = y] − p_v);  dx = logit_scale·Σ_v dz_v·w_v;
 * dw_v += logit_scale·Σ_t dz_tv·x_t. Logits are computed again in each pass: one row of them per thread is all that is
 * stored. With an adapter w_v is gain_v·(w_v + A'·b_v), of which u = x·A' is given; to it go du_t = Σ_v
 * gain_v·dz_tv·b_v, db_v = gain_v·Σ_t dz_tv·u_t and gain·dgain_v = Σ_t dz_tv·z_tv, all but the last times logit_scale.
 * A NaN or an infinite logit makes L, and so the logprob, NaN. */
#include <math.h>
#include <omp.h>

#include "model/core/threads.h"
#include "model/kernels/reference/reference.h"

typedef struct {
    const float *x, *w;
    const HeadAdapter *adapter; /* or NULL */
    int width;
    float scale;
} Logits;

static float gain_of(const Logits *l, int v) {
    return l->adapter && l->adapter->gains ? l->adapter->gains[v] : 1;
}

static const float *inner_row(const HeadAdapter *adapter, int t) {
    return (const float *)adapter->u + (size_t)t * (size_t)adapter->rank;
}

static double logit(const Logits *l, int t, int v) {
    const float *x = l->x + (size_t)t * (size_t)l->width, *w = l->w + (size_t)v * (size_t)l->width;
    double sum = 0;
    for (int i = 0; i < l->width; i++) sum += (double)x[i] * w[i];
    for (int k = 0; l->adapter && k < l->adapter->rank; k++)
        sum += (double)inner_row(l->adapter, t)[k] * l->adapter->b[(size_t)v * (size_t)l->adapter->rank + (size_t)k];
    return (double)l->scale * (double)gain_of(l, v) * sum;
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

void reference_head_forward(HeadResults out, const float *x, const float *w, const HeadAdapter *adapter,
                            const int32_t *targets, const float *mask, int n_tokens, int width, int vocab,
                            float logit_scale, float *scratch) {
    const Logits logits = {x, w, adapter, width, logit_scale};
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

/* dL/d logit of a token; *z is the logit. */
static double logit_gradient(double *z, const Logits *l, int t, int v, float dlogprob, float lse, int target) {
    *z = logit(l, t, v);
    return (double)dlogprob * ((v == target) - exp(*z - (double)lse));
}

/* dx and du */
static void token_gradients(float *dx, bool accumulate, const float *dlogprob, const Logits *l, const float *lse,
                            const int32_t *targets, int n_tokens, int vocab) {
    const int width = l->width, rank = l->adapter && l->adapter->du ? l->adapter->rank : 0;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int t = 0; t < n_tokens; t++) {
        float *dx_D = dx ? dx + (size_t)t * (size_t)width : NULL;
        float *du = rank > 0 ? (float *)l->adapter->du + (size_t)t * (size_t)rank : NULL;
        for (int i = 0; dx && !accumulate && i < width; i++) dx_D[i] = 0;
        for (int k = 0; k < rank; k++) du[k] = 0;
        if (dlogprob[t] == 0) continue;
        for (int v = 0; v < vocab; v++) {
            const float *w_D = l->w + (size_t)v * (size_t)width;
            double z, dz = logit_gradient(&z, l, t, v, dlogprob[t], lse[t], targets[t]);
            float g = (float)(dz * (double)l->scale * (double)gain_of(l, v));
            for (int i = 0; dx && i < width; i++) dx_D[i] += g * w_D[i];
            for (int k = 0; k < rank; k++) du[k] += g * l->adapter->b[(size_t)v * (size_t)rank + (size_t)k];
        }
    }
}

/* dw, db and dlog_gains */
static void word_gradients(float *dw, const float *dlogprob, const Logits *l, const float *lse, const int32_t *targets,
                           int n_tokens, int vocab) {
    const int width = l->width, rank = l->adapter && l->adapter->db ? l->adapter->rank : 0;
#pragma omp parallel for num_threads(threads_count()) schedule(static)
    for (int v = 0; v < vocab; v++) {
        float *dw_D = dw ? dw + (size_t)v * (size_t)width : NULL;
        float *db = rank > 0 ? l->adapter->db + (size_t)v * (size_t)rank : NULL;
        double log_gain = 0;
        for (int t = 0; t < n_tokens; t++) {
            if (dlogprob[t] == 0) continue;
            const float *x_D = l->x + (size_t)t * (size_t)width;
            double z, dz = logit_gradient(&z, l, t, v, dlogprob[t], lse[t], targets[t]);
            float g = (float)(dz * (double)l->scale * (double)gain_of(l, v));
            for (int i = 0; dw && i < width; i++) dw_D[i] += g * x_D[i];
            for (int k = 0; k < rank; k++) db[k] += g * inner_row(l->adapter, t)[k];
            log_gain += dz * z;
        }
        if (rank > 0 && l->adapter->gains) l->adapter->dlog_gains[v] += (float)log_gain;
    }
}

void reference_head_backward(float *dx, bool accumulate, float *dw, const float *dlogprob, const float *x,
                             const float *w, const HeadAdapter *adapter, const float *lse, const int32_t *targets,
                             int n_tokens, int width, int vocab, float logit_scale, float *scratch) {
    const Logits l = {x, w, adapter, width, logit_scale};
    const bool adapted = adapter && adapter->du;
    (void)scratch;
    if (dx || adapted) token_gradients(dx, accumulate, dlogprob, &l, lse, targets, n_tokens, vocab);
    if (dw || (adapted && adapter->db)) word_gradients(dw, dlogprob, &l, lse, targets, n_tokens, vocab);
}

void reference_head_forward_backward(HeadResults out, float *dx, float *dw, const float *dlogprob, const float *x,
                                     const float *w, const HeadAdapter *adapter, const int32_t *targets, int n_tokens,
                                     int width, int vocab, float logit_scale, float *scratch) {
    reference_head_forward(out, x, w, adapter, targets, dlogprob, n_tokens, width, vocab, logit_scale, scratch);
    reference_head_backward(dx, false, dw, dlogprob, x, w, adapter, out.lse, targets, n_tokens, width, vocab,
                            logit_scale, scratch);
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
