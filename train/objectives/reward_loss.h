/* The loss of a reward model on one pair. */
#ifndef CRIA_TRAIN_REWARD_LOSS_H
#define CRIA_TRAIN_REWARD_LOSS_H

#include "data/encoder.h"

/* By how much the better answer's reward must exceed the other's (Touvron et al. 2023b, equation 2): nothing; what the
 * record says as a number; or the paper's table 27 by the strength of the preference, its small or its large margins.
 */
typedef enum { MARGIN_NONE, MARGIN_RECORD, MARGIN_LLAMA2_SMALL, MARGIN_LLAMA2_LARGE } RewardMargin;
/* 0 where the mark does not say. */
double reward_margin(RewardMargin kind, SampleMark mark);

/* -log σ(chosen - rejected - margin) + center·(chosen + rejected)², and its derivatives by the two rewards. The first
 * term is Bradley and Terry's (Touvron et al. 2023b, equations 1 and 2), the second keeps rewards around zero
 * (Eisenstein et al. 2023, equation 2). */
typedef struct {
    double value, by_chosen, by_rejected;
} RewardLoss;
RewardLoss reward_loss(double chosen, double rejected, double margin, double center);

#endif
