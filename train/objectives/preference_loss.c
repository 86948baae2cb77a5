/* See preference_loss.h. */
#include "train/objectives/preference_loss.h"

#include "train/objectives/logistic.h"

#include <math.h>

/* A loss of one number, and its derivative. */
typedef struct {
    double loss, slope;
} Sloped;

/* weight·-log σ(u) + other·-log σ(-u) */
static Sloped logistic(double u, double weight, double other) {
    return (Sloped){-weight * log_sigmoid(u) - other * log_sigmoid(-u), -weight * sigmoid(-u) + other * sigmoid(u)};
}

/* Of z, the difference of the ratios. */
static Sloped loss_of(const PreferenceLoss *options, double z) {
    double beta = options->beta, smoothing = options->label_smoothing, u = beta * z;
    Sloped l = {0};
    switch (options->loss) {
    case DPO_IPO:
        return (Sloped){(z - 1 / (2 * beta)) * (z - 1 / (2 * beta)), 2 * (z - 1 / (2 * beta))};
    case DPO_HINGE:
        return u < 1 ? (Sloped){1 - u, -beta} : l;
    case DPO_ROBUST:
        l = logistic(u, (1 - smoothing) / (1 - 2 * smoothing), -smoothing / (1 - 2 * smoothing));
        break;
    case DPO_SIMPO:
        l = logistic(u - options->gamma, 1 - smoothing, smoothing);
        break;
    default:
        l = logistic(u, 1 - smoothing, smoothing);
    }
    return (Sloped){l.loss, beta * l.slope};
}

bool preference_has_reference(const PreferenceLoss *options) {
    return options->loss != DPO_SIMPO;
}

PairLoss pair_loss(const PreferenceLoss *options, const PairScores *scores) {
    bool by_length = options->length_normalised || options->loss == DPO_IPO || options->loss == DPO_SIMPO;
    double ratio[2], unit[2];
    for (int i = 0; i < 2; i++) {
        ratio[i] = scores->logp[i] - (preference_has_reference(options) ? scores->reference[i] : 0);
        unit[i] = by_length ? 1 / scores->length[i] : 1;
    }
    Sloped l = loss_of(options, ratio[0] * unit[0] - ratio[1] * unit[1]);
    PairLoss out = {.loss = l.loss, .gradient = {l.slope * unit[0], -l.slope * unit[1]}};
    for (int i = 0; i < 2; i++) out.reward[i] = options->beta * ratio[i] * (options->loss == DPO_SIMPO ? unit[i] : 1);
    return out;
}

PairLoss labelled_loss(const PreferenceLoss *options, double logp, double reference, bool is_good, double z0) {
    double ratio = logp - reference, sign = is_good ? 1 : -1, u = sign * options->beta * (ratio - z0);
    double weight = is_good ? options->desirable : options->undesirable, p = sigmoid(u);
    return (PairLoss){.loss = weight * (1 - p),
                      .gradient = {-weight * p * (1 - p) * sign * options->beta},
                      .reward = {options->beta * ratio}};
}
