/* The losses on preferences: their slopes against differences of their values, and values that the papers' formulas
 * give by hand. (TRL's trainers: test_dpo_trl.c.) */
#include <math.h>

#include "model/core/philox.h"
#include "tests/check_main.h"
#include "train/objectives/preference_loss.h"

static const PreferenceLoss kinds[] = {
    {.loss = DPO_SIGMOID, .beta = 0.1},
    {.loss = DPO_SIGMOID, .beta = 0.5, .label_smoothing = 0.2},
    {.loss = DPO_SIGMOID, .beta = 2, .length_normalised = true},
    {.loss = DPO_IPO, .beta = 0.3},
    {.loss = DPO_HINGE, .beta = 0.1},
    {.loss = DPO_ROBUST, .beta = 0.2, .label_smoothing = 0.1},
    {.loss = DPO_SIMPO, .beta = 2, .gamma = 0.5},
    {.loss = DPO_SIMPO, .beta = 2, .gamma = 1, .label_smoothing = 0.1},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

static double uniform(int i, double low, double high) {
    PhiloxKey key = philox_key(5, PHILOX_TEST, 0, 0);
    return low + (high - low) * (double)philox_uniform(key, (uint64_t)i);
}

static PairScores some_scores(int i) {
    PairScores s = {.logp = {0}};
    for (int side = 0; side < 2; side++) {
        s.logp[side] = uniform(8 * i + side, -60, -5);
        s.reference[side] = s.logp[side] + uniform(8 * i + 2 + side, -8, 8);
        s.length[side] = 1 + floor(uniform(8 * i + 4 + side, 0, 20));
    }
    return s;
}

START_TEST(slopes_are_those_of_the_values) {
    const double h = 1e-5;
    for (int k = 0; k < N_KINDS; k++)
        for (int i = 0; i < 200; i++) {
            PairScores s = some_scores(i);
            PairLoss loss = pair_loss(&kinds[k], &s);
            for (int side = 0; side < 2; side++) {
                PairScores up = s, down = s;
                up.logp[side] += h;
                down.logp[side] -= h;
                double slope = (pair_loss(&kinds[k], &up).loss - pair_loss(&kinds[k], &down).loss) / (2 * h);
                ck_assert_msg(fabs(slope - loss.gradient[side]) <= 1e-8 * (1 + fabs(slope)), "kind %d: %.9g, %.9g", k,
                              slope, loss.gradient[side]);
            }
        }
    PreferenceLoss kto = {.loss = DPO_KTO, .beta = 0.3, .desirable = 1, .undesirable = 1.5};
    for (int i = 0; i < 200; i++) {
        PairScores s = some_scores(i);
        double z0 = uniform(i, 0, 5);
        bool good = i % 2;
        double slope = (labelled_loss(&kto, s.logp[0] + h, s.reference[0], good, z0).loss -
                        labelled_loss(&kto, s.logp[0] - h, s.reference[0], good, z0).loss) /
                       (2 * h);
        ck_assert_double_eq_tol(slope, labelled_loss(&kto, s.logp[0], s.reference[0], good, z0).gradient[0], 1e-8);
    }
}
END_TEST

static double value(PreferenceLoss options, double chosen, double rejected, double n_chosen, double n_rejected) {
    return pair_loss(&options, &(PairScores){{chosen, rejected}, {-1, -3}, {n_chosen, n_rejected}}).loss;
}

START_TEST(values_are_the_papers) {
    ck_assert_double_eq_tol(value((PreferenceLoss){.loss = DPO_SIGMOID, .beta = 0.7}, -1, -3, 2, 5), log(2), 1e-15);
    /* z = (-2+1) - (-5+3) = 1 */
    ck_assert_double_eq_tol(value((PreferenceLoss){.loss = DPO_SIGMOID, .beta = 0.5}, -2, -5, 1, 1), log(1 + exp(-0.5)),
                            1e-15);
    ck_assert_double_eq_tol(
        value((PreferenceLoss){.loss = DPO_SIGMOID, .beta = 0.5, .label_smoothing = 0.1}, -2, -5, 1, 1),
        0.9 * log(1 + exp(-0.5)) + 0.1 * log(1 + exp(0.5)), 1e-15);
    ck_assert_double_eq_tol(value((PreferenceLoss){.loss = DPO_HINGE, .beta = 0.25}, -2, -5, 1, 1), 0.75, 1e-15);
    ck_assert_double_eq(value((PreferenceLoss){.loss = DPO_HINGE, .beta = 1}, -2, -5, 1, 1), 0);
    /* (-1/2 + 2/4 - 1/(2·0.5))² */
    ck_assert_double_eq_tol(value((PreferenceLoss){.loss = DPO_IPO, .beta = 0.5}, -2, -5, 2, 4), 1, 1e-15);
    ck_assert_double_eq_tol(
        value((PreferenceLoss){.loss = DPO_ROBUST, .beta = 0.5, .label_smoothing = 0.1}, -2, -5, 1, 1),
        (0.9 * log(1 + exp(-0.5)) - 0.1 * log(1 + exp(0.5))) / 0.8, 1e-15);
    /* no reference: 2·(-2/2 + 5/4) - 0.3 = 0.2 */
    ck_assert_double_eq_tol(value((PreferenceLoss){.loss = DPO_SIMPO, .beta = 2, .gamma = 0.3}, -2, -5, 2, 4),
                            log(1 + exp(-0.2)), 1e-15);
    ck_assert(!preference_has_reference(&(PreferenceLoss){.loss = DPO_SIMPO}));
    /* far apart, nothing overflows */
    ck_assert_double_eq_tol(value((PreferenceLoss){.loss = DPO_SIGMOID, .beta = 1}, -1e4, -3, 1, 1), 1e4 - 1, 1e-9);
    ck_assert_double_eq(value((PreferenceLoss){.loss = DPO_SIGMOID, .beta = 1}, -1, -1e5, 1, 1), 0);
    PreferenceLoss kto = {.loss = DPO_KTO, .beta = 0.5, .desirable = 2, .undesirable = 3};
    ck_assert_double_eq_tol(labelled_loss(&kto, -2, -4, true, 1).loss, 2 / (1 + exp(0.5)), 1e-15);
    ck_assert_double_eq_tol(labelled_loss(&kto, -2, -4, false, 1).loss, 3 / (1 + exp(-0.5)), 1e-15);
}
END_TEST

CHECK_MAIN("losses on preferences", slopes_are_those_of_the_values, values_are_the_papers)
