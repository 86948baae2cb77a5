/* The losses of policy-gradient training and their derivatives, one token (or one answer) at a time. They depend on the
 * model through log-probabilities and values alone, so that dL/dlogprob, known once the forward pass is done, is all
 * that the tape needs. Pure functions, in double. */
#ifndef CRIA_TRAIN_POLICY_LOSS_H
#define CRIA_TRAIN_POLICY_LOSS_H

#include <stdbool.h>

typedef struct {
    double loss, gradient; /* gradient: d loss / d log-probability (or value) */
    double ratio;          /* exp(log_ratio) */
    bool low, high;        /* the ratio is clipped below (advantage < 0), above (advantage > 0): no gradient */
} PolicyLoss;

/* -min(r·A, clamp(r, 1 - epsilon_low, 1 + epsilon_high)·A) with r = exp(log_ratio), log_ratio = log-probability now -
 * when sampled (Schulman et al. 2017, equation 7; two bounds: Yu et al. 2025, "DAPO"). */
PolicyLoss policy_loss(double log_ratio, double advantage, double epsilon_low, double epsilon_high);

/* The k3 estimate of KL(policy, reference) as a loss (Shao et al. 2024, equation 4): value and derivative with respect
 * to the policy's log-probability. */
typedef struct {
    double loss, gradient;
} KlLoss;
KlLoss kl_loss(double logprob, double reference);
/* The same times the ratio, which follows the log-probability too: the gradient's mean over answers sampled from an
 * older policy is that of the KL divergence (DeepSeek-AI 2025, "DeepSeek-V3.2", section 3.1). */
KlLoss kl_loss_weighed(double logprob, double reference, double ratio);

/* ½·max((v - R)², (clamp(v, old - epsilon, old + epsilon) - R)²) (Schulman et al.'s reference implementation; Ouyang
 * et al. 2022). `clipped`: the second is the larger. */
typedef struct {
    double loss, gradient;
    bool clipped;
} ValueLoss;
ValueLoss value_loss(double value, double old_value, double target, double epsilon);

#endif
