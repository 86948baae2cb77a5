/* See reward_loss.h. */
#include "train/objectives/reward_loss.h"

#include <math.h>

#include "train/objectives/logistic.h"

/* Touvron et al. 2023b, table 27. "Negligibly better or unsure" has none. */
static const double llama2_margins[N_STRENGTHS][2] = {
    [STRENGTH_SIGNIFICANT] = {1, 3}, [STRENGTH_BETTER] = {2.0 / 3, 2}, [STRENGTH_SLIGHT] = {1.0 / 3, 1}};

double reward_margin(RewardMargin kind, SampleMark mark) {
    switch (kind) {
    case MARGIN_NONE:
        break;
    case MARGIN_RECORD:
        return isnan(mark.margin) ? 0 : (double)mark.margin;
    case MARGIN_LLAMA2_SMALL:
        return mark.strength < N_STRENGTHS ? llama2_margins[mark.strength][0] : 0;
    case MARGIN_LLAMA2_LARGE:
        return mark.strength < N_STRENGTHS ? llama2_margins[mark.strength][1] : 0;
    }
    return 0;
}

RewardLoss reward_loss(double chosen, double rejected, double margin, double center) {
    double apart = chosen - rejected - margin, sum = chosen + rejected;
    double slope = sigmoid(-apart);
    return (RewardLoss){.value = -log_sigmoid(apart) + center * sum * sum,
                        .by_chosen = -slope + 2 * center * sum,
                        .by_rejected = slope + 2 * center * sum};
}
