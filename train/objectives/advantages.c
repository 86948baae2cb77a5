/* See advantages.h. */
#include "train/objectives/advantages.h"

#include <math.h>

static const double SCALE_EPSILON = 1e-4;  /* TRL's, beside the standard deviation */
static const double WHITEN_EPSILON = 1e-8; /* beside the variance */
static const double ZERO_STD = 1e-8;       /* a group of equal scores, to rounding */
static const double LLAMA2_UNSAFE = 0.15;  /* Touvron et al. 2023b: below it an answer is taken as unsafe */

Moments moments_of(const double *x, size_t n) {
    Moments m = {.n = 0};
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(x[i])) continue;
        sum += x[i];
        m.n++;
    }
    m.mean = m.n > 0 ? sum / (double)m.n : NAN;
    for (size_t i = 0; i < n; i++)
        if (!isnan(x[i])) squares += (x[i] - m.mean) * (x[i] - m.mean);
    m.std = m.n > 1 ? sqrt(squares / (double)(m.n - 1)) : NAN;
    return m;
}

static double or_zero(double x) {
    return isnan(x) ? 0 : x;
}

double advantages_grpo(double *out, const double *scores, size_t n_prompts, size_t n_samples, ScaleRewards scale) {
    size_t equal = 0;
    Moments all = moments_of(scores, n_prompts * n_samples);
    for (size_t p = 0; p < n_prompts; p++) {
        const double *group = scores + p * n_samples;
        Moments m = moments_of(group, n_samples);
        double std = scale == SCALE_BATCH ? all.std : m.std;
        equal += m.n > 1 && m.std <= ZERO_STD;
        for (size_t i = 0; i < n_samples; i++) {
            double advantage = group[i] - m.mean;
            out[p * n_samples + i] = or_zero(scale == SCALE_NONE ? advantage : advantage / (std + SCALE_EPSILON));
        }
    }
    return n_prompts > 0 ? (double)equal / (double)n_prompts : 0;
}

double advantages_rloo(double *out, const double *rewards, size_t n_prompts, size_t n_samples, bool normalise) {
    size_t equal = 0, n = n_prompts * n_samples;
    for (size_t p = 0; p < n_prompts; p++) {
        const double *group = rewards + p * n_samples;
        Moments m = moments_of(group, n_samples);
        equal += m.n > 1 && m.std <= ZERO_STD;
        for (size_t i = 0; i < n_samples; i++) {
            double others = (m.mean * (double)m.n - group[i]) / ((double)m.n - 1); /* NaN, or 0/0, where not judged */
            out[p * n_samples + i] = m.n > 1 ? group[i] - others : NAN;
        }
    }
    Moments m = moments_of(out, n);
    for (size_t i = 0; i < n; i++) out[i] = or_zero(normalise ? (out[i] - m.mean) / (m.std + SCALE_EPSILON) : out[i]);
    return n_prompts > 0 ? (double)equal / (double)n_prompts : 0;
}

double kl_estimate(KlEstimator estimator, double logprob, double reference) {
    double log_ratio = reference - logprob;
    return estimator == KL_K1 ? -log_ratio : expm1(log_ratio) - log_ratio;
}

void advantages_gae(double *advantages, double *returns, const double *rewards, const double *values, size_t n,
                    double gamma, double lambda) {
    double next_value = 0, next_advantage = 0;
    for (size_t t = n; t-- > 0;) {
        double delta = rewards[t] + gamma * next_value - values[t];
        next_advantage = advantages[t] = delta + gamma * lambda * next_advantage;
        next_value = values[t];
        returns[t] = advantages[t] + values[t];
    }
}

void whiten_by(const Moments *m, double *x, size_t n, bool keep_mean) {
    if (m->n < 2) return;
    double scale = 1 / sqrt(m->std * m->std + WHITEN_EPSILON), back = keep_mean ? m->mean : 0;
    for (size_t i = 0; i < n; i++) x[i] = (x[i] - m->mean) * scale + back;
}

void whiten(double *x, size_t n, bool keep_mean) {
    Moments m = moments_of(x, n);
    whiten_by(&m, x, n, keep_mean);
}

double reward_llama2(double helpfulness, double safety, bool is_safety) {
    double probability = 1 / (1 + exp(-safety));
    return is_safety || probability < LLAMA2_UNSAFE ? safety : helpfulness;
}
