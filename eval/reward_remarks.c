/* A report card in words: see reward_card.h. A difference is told where the interval excludes it, and where it is large
 * enough to matter. */
#include <math.h>

#include "eval/reward_card.h"

static const double NOTABLE = 0.1; /* of a share */

static bool excludes(Proportion p, double share) {
    return p.n > 0 && (p.low > share || p.high < share);
}

static void about_chance(Text *out, const RewardCard *card) {
    if (!excludes(card->accuracy, 0.5))
        text_puts(out, "its ranking cannot be told from chance by these pairs: score more of them, or train longer\n");
    else if (card->accuracy.share < 0.5)
        text_puts(out, "it ranks the rejected answer first more often than not: are chosen and rejected swapped?\n");
}

static void about_length(Text *out, const RewardCard *card) {
    Proportion model = card->longer_preferred, people = card->longer_chosen;
    if (!excludes(model, people.share) || fabs(model.share - people.share) < NOTABLE) return;
    bool longer = model.share > people.share;
    text_printf(out,
                "it follows %s: the longer answer is ranked first in %.0f %% of the pairs, and is the chosen one in "
                "%.0f %%; train on pairs that differ less in length, or for fewer steps, and watch the length of what "
                "a policy learns from it\n",
                longer ? "length" : "brevity", 100 * model.share, 100 * people.share);
}

static void about_confidence(Text *out, const RewardCard *card) {
    double predicted = 0, n = (double)card->accuracy.n;
    for (int b = 0; b < CALIBRATION_BINS; b++)
        predicted += (double)card->bins[b].observed.n / n * card->bins[b].predicted;
    if (!excludes(card->accuracy, predicted) || fabs(predicted - card->accuracy.share) < NOTABLE) return;
    bool too_sure = predicted > card->accuracy.share;
    text_printf(
        out, "it is %s: it gives the answer that it ranks first %.0f %% on average, and is right in %.0f %%; %s\n",
        too_sure ? "too sure of itself" : "less sure than it could be", 100 * predicted, 100 * card->accuracy.share,
        too_sure ? "train for fewer epochs, or on more pairs" : "train longer, or with a larger learning rate");
}

static void about_strength(Text *out, const RewardCard *card) {
    Proportion slight = card->by_strength[STRENGTH_SLIGHT], strong = card->by_strength[STRENGTH_SIGNIFICANT];
    if (slight.n == 0 || excludes(slight, 0.5) || !excludes(strong, 0.5)) return;
    text_puts(out,
              "slight preferences are ranked as by chance, significant ones are not: that is usual, and margins by "
              "strength (reward.margin) make more of it\n");
}

void reward_remarks(Text *out, const RewardCard *card) {
    about_chance(out, card);
    about_length(out, card);
    about_confidence(out, card);
    about_strength(out, card);
}
