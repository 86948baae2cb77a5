/* KTO as an objective (Ethayarajh et al. 2024, section 4): the mean of labelled_loss (preference_loss.h) over the
 * step's labelled answers. Its reference point z0 is an estimate of KL(π ‖ π_ref), from answers to other prompts: the
 * mean of log π(y'|x)/π_ref(y'|x) over the whole step (all micro-batches, all ranks), from 0 on, found before the
 * step's gradients by forward passes on the step's mismatched answers; no gradient flows through it. TRL takes that
 * mean over each micro-batch of its own, so that its loss changes with how a step is cut. */
#ifndef CRIA_TRAIN_KTO_OBJECTIVE_H
#define CRIA_TRAIN_KTO_OBJECTIVE_H

#include "train/objectives/objective.h"
#include "train/objectives/preference_loss.h"
#include "train/objectives/reference.h"

typedef struct {
    PreferenceLoss loss;
    const Reference *reference; /* the caller's: of each answer, and of its prompt with another's answer */
    bool begins_at_reference;   /* as in dpo_objective.h: rewards and z0 must be 0 at the first step */
} KtoOptions;

int kto_objective_new(Objective **objective, int capacity, const KtoOptions *options);

/* The objective's own metrics, by TRL's names but for rewards/accuracies: the share of answers whose reward is on the
 * right side of the reference point. */
#define KTO_METRICS                                  \
    KTO_METRIC(REWARDS_CHOSEN, "rewards/chosen")     \
    KTO_METRIC(REWARDS_REJECTED, "rewards/rejected") \
    KTO_METRIC(ACCURACIES, "rewards/accuracies")     \
    KTO_METRIC(MARGINS, "rewards/margins")           \
    KTO_METRIC(LOGPS_CHOSEN, "logps/chosen")         \
    KTO_METRIC(LOGPS_REJECTED, "logps/rejected")     \
    KTO_METRIC(LOGITS_CHOSEN, "logits/chosen")       \
    KTO_METRIC(LOGITS_REJECTED, "logits/rejected")   \
    KTO_METRIC(KL, "kl")                             \
    KTO_METRIC(ENTROPY, "entropy")
typedef enum {
#define KTO_METRIC(name, label) KTO_##name,
    KTO_METRICS
#undef KTO_METRIC
        N_KTO_METRICS
} KtoMetric;

#endif
