/* What a sampled answer is worth: from scores to advantages. Pure functions over the whole step's arrays, in double.
 *
 * A score that is NaN belongs to an answer that could not be judged: it takes no part in any mean, and its advantage
 * is 0, so that it teaches nothing. */
#ifndef CRIA_TRAIN_ADVANTAGES_H
#define CRIA_TRAIN_ADVANTAGES_H

#include <stdbool.h>
#include <stddef.h>

/* Mean, and the standard deviation with Bessel's correction, of what is not NaN; n is how many that are. */
typedef struct {
    double mean, std; /* NaN where n is 0 (std: below 2) */
    size_t n;
} Moments;
Moments moments_of(const double *x, size_t n);

/* ---- groups: the K answers to one prompt lie side by side, x[prompt·K + answer] ---- */

typedef enum { SCALE_GROUP, SCALE_BATCH, SCALE_NONE } ScaleRewards;

/* (score - group's mean) / (standard deviation + 1e-4), of the group or of the whole step (Shao et al. 2024, section
 * 4.1.2; SCALE_NONE: Liu et al. 2025, "Dr. GRPO"). Returns the share of groups whose scores are all the same, which
 * teach nothing. */
double advantages_grpo(double *out, const double *scores, size_t n_prompts, size_t n_samples, ScaleRewards scale);

/* reward - mean of the other answers' rewards (Ahmadian et al. 2024, section 2.2: REINFORCE leave-one-out). With
 * `normalise`, then whitened over the whole step. Returns as advantages_grpo. */
double advantages_rloo(double *out, const double *rewards, size_t n_prompts, size_t n_samples, bool normalise);

/* ---- single answers ---- */

typedef enum { KL_K1, KL_K3 } KlEstimator;
/* Of KL(policy, reference) at one token drawn from the policy (Schulman 2020, "Approximating KL divergence"): k1 =
 * log p - log q, unbiased; k3 = q/p - 1 - log(q/p), unbiased too and never negative. */
double kl_estimate(KlEstimator estimator, double logprob, double reference);

/* Generalised advantage estimation over one answer (Schulman et al. 2016, equation 16): delta_t = r_t + gamma·V_(t+1) -
 * V_t with V_n = 0, A_t = delta_t + gamma·lambda·A_(t+1); returns R_t = A_t + V_t. Arrays of n. */
void advantages_gae(double *advantages, double *returns, const double *rewards, const double *values, size_t n,
                    double gamma, double lambda);

/* x = (x - mean) / sqrt(variance + 1e-8), the variance with Bessel's correction; with `keep_mean` the mean is added
 * back. Fewer than two numbers are left alone. */
void whiten(double *x, size_t n, bool keep_mean);
/* The same by moments that are of more than x. */
void whiten_by(const Moments *moments, double *x, size_t n, bool keep_mean);

/* Llama 2's combination of two reward models (Touvron et al. 2023b, section 3.4.3): the safety score where the prompt
 * is tagged as one of safety or sigmoid(safety) < 0.15, else the helpfulness score. Scores are logits, before the
 * sigmoid; so is the result, which is then whitened over the step. */
double reward_llama2(double helpfulness, double safety, bool is_safety);

#endif
