/* DPO and its relatives as an objective: the mean of a loss over the step's pairs (preference_loss.h), and beside it
 * the negative log-likelihood of the chosen answers, per token over the whole step (Grattafiori et al. 2024,
 * section 4.1.4). Metrics have TRL's names and meaning, and are means over the whole step. */
#ifndef CRIA_TRAIN_DPO_OBJECTIVE_H
#define CRIA_TRAIN_DPO_OBJECTIVE_H

#include "train/objectives/objective.h"
#include "train/objectives/preference_loss.h"
#include "train/objectives/reference.h"

typedef struct {
    PreferenceLoss loss;
    double nll;                 /* weight of the chosen answers' negative log-likelihood */
    const Reference *reference; /* the caller's; NULL where the loss has none */
    bool begins_at_reference; /* the policy is the reference at the first step: rewards must be 0, and the loss that of
                                 equal answers (sigmoid: ln 2), else the step is refused */
} DpoOptions;

int dpo_objective_new(Objective **objective, int capacity, const DpoOptions *options);

/* How far a log-ratio may be from 0 where policy and reference are the same model: their forward passes are the same
 * arithmetic on the same tokens, whatever the packing, so only a reference of another model exceeds it. */
double dpo_start_bound(double reference);

/* The objective's own metrics: DPO_METRIC(name in the program, TRL's name; NULL: not told). */
#define DPO_METRICS                                                        \
    DPO_METRIC(REWARDS_CHOSEN, "rewards/chosen")                           \
    DPO_METRIC(REWARDS_REJECTED, "rewards/rejected")                       \
    DPO_METRIC(ACCURACIES, "rewards/accuracies")                           \
    DPO_METRIC(MARGINS, "rewards/margins")                                 \
    DPO_METRIC(LOGPS_CHOSEN, "logps/chosen")                               \
    DPO_METRIC(LOGPS_REJECTED, "logps/rejected")                           \
    DPO_METRIC(LOGITS_CHOSEN, "logits/chosen")                             \
    DPO_METRIC(LOGITS_REJECTED, "logits/rejected")                         \
    DPO_METRIC(NLL, "nll_loss")                                            \
    DPO_METRIC(ENTROPY, "entropy")                                         \
    /* of pairs of each strength, in the order of enum Strength */         \
    DPO_METRIC(ACCURACIES_UNKNOWN, NULL)                                   \
    DPO_METRIC(ACCURACIES_NEGLIGIBLE, "rewards/accuracies/negligibly")     \
    DPO_METRIC(ACCURACIES_SLIGHT, "rewards/accuracies/slightly")           \
    DPO_METRIC(ACCURACIES_BETTER, "rewards/accuracies/better")             \
    DPO_METRIC(ACCURACIES_SIGNIFICANT, "rewards/accuracies/significantly") \
    /* sums over pairs, of margin m and difference of lengths d */         \
    DPO_METRIC(SUM_MM, NULL)                                               \
    DPO_METRIC(SUM_D, NULL)                                                \
    DPO_METRIC(SUM_DD, NULL)                                               \
    DPO_METRIC(SUM_MD, NULL)
typedef enum {
#define DPO_METRIC(name, label) DPO_##name,
    DPO_METRICS
#undef DPO_METRIC
        N_DPO_METRICS
} DpoMetric;

#endif
