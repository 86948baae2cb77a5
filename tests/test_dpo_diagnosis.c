/* Every diagnosis by sums in which it holds, and by the nearest ones in which it does not; and when they are told. */
#include <math.h>
#include <string.h>

#include "tests/check_main.h"
#include "train/objectives/dpo_diagnosis.h"
#include "train/objectives/dpo_objective.h"
#include "train/objectives/kto_objective.h"

static void set(ObjectiveSums *sums, int metric, double mean, double n) {
    sums->metric[metric] = mean * n;
    sums->metric_weight[metric] = n;
}

static bool holds(int rule, const DpoFigures *figures, const char *says) {
    Text out = {0};
    bool found = dpo_rules[rule](figures, &out);
    ck_assert(found == (out.length > 0));
    if (found) ck_assert_msg(strstr(out.bytes, says) != NULL, "%s", out.bytes);
    text_free(&out);
    return found;
}

static DpoFigures plain(void) {
    DpoFigures f = {.beta = 0.1, .has_reference = true};
    set(&f.window, DPO_REWARDS_CHOSEN, 0.1, 300);
    set(&f.window, DPO_MARGINS, 0.5, 300);
    set(&f.window, DPO_NLL, 2, 300 * 50); /* answers of 50 tokens */
    set(&f.baseline, DPO_ENTROPY, 2, 1000);
    set(&f.window, DPO_ENTROPY, 1.9, 1000);
    return f;
}

START_TEST(falling_chosen_answers_are_told) {
    DpoFigures f = plain();
    ck_assert(!holds(DPO_CHOSEN_FALLS, &f, ""));
    set(&f.window, DPO_REWARDS_CHOSEN, -0.51, 300); /* 5.1 nats of 50 tokens */
    ck_assert(holds(DPO_CHOSEN_FALLS, &f, "dpo.nll"));
    set(&f.window, DPO_REWARDS_CHOSEN, -0.49, 300);
    ck_assert(!holds(DPO_CHOSEN_FALLS, &f, ""));
    set(&f.window, DPO_REWARDS_CHOSEN, -0.51, 300);
    set(&f.window, DPO_MARGINS, -0.1, 300);
    ck_assert(!holds(DPO_CHOSEN_FALLS, &f, ""));
    f.has_reference = false;
    set(&f.window, DPO_MARGINS, 0.5, 300);
    ck_assert(!holds(DPO_CHOSEN_FALLS, &f, ""));
}
END_TEST

/* Steps of 21 pairs of margin m = slope·d + noise, the noise of two signs, and the margin growing by one a step;
 * through dpo_watch. */
static DpoFigures lengths(double slope, double noise, int n_steps) {
    DpoWatch watch = {.figures = {.beta = 0.1, .has_reference = true}};
    Text out = {0};
    for (int step = 0; step < n_steps; step++) {
        ObjectiveSums sums = {0};
        for (int i = 0; i < 21; i++) {
            double d = i - 10, m = slope * d + ((i + step) % 2 ? noise : -noise) + step;
            const double values[] = {m, m * m, d, d * d, m * d};
            static const DpoMetric metrics[] = {DPO_MARGINS, DPO_SUM_MM, DPO_SUM_D, DPO_SUM_DD, DPO_SUM_MD};
            for (int k = 0; k < 5; k++) {
                sums.metric[metrics[k]] += values[k];
                sums.metric_weight[metrics[k]] += 1;
            }
        }
        ck_assert(!dpo_watch(&watch, &sums, &out));
    }
    text_free(&out);
    return watch.figures;
}

START_TEST(margins_that_are_lengths_are_told) {
    DpoFigures f = lengths(0.1, 0.2, 20);
    ck_assert(holds(DPO_MARGINS_ARE_LENGTHS, &f, "to be long"));
    f = lengths(-0.1, 0.2, 20);
    ck_assert(holds(DPO_MARGINS_ARE_LENGTHS, &f, "to be short"));
    f = lengths(0.1, 0.6, 20); /* 0.71 */
    ck_assert(!holds(DPO_MARGINS_ARE_LENGTHS, &f, ""));
    f = lengths(0.1, 0.2, 4); /* too few to say */
    ck_assert(!holds(DPO_MARGINS_ARE_LENGTHS, &f, ""));
    f = lengths(0, 0, 20);
    ck_assert(!holds(DPO_MARGINS_ARE_LENGTHS, &f, ""));
}
END_TEST

START_TEST(slight_pairs_that_stay_flat_are_told) {
    DpoFigures f = plain();
    ck_assert(!holds(DPO_SLIGHT_PAIRS_ARE_FLAT, &f, ""));
    set(&f.window, DPO_ACCURACIES_SLIGHT, 0.51, 250);
    set(&f.window, DPO_ACCURACIES_SIGNIFICANT, 0.8, 250);
    ck_assert(holds(DPO_SLIGHT_PAIRS_ARE_FLAT, &f, "51 %"));
    set(&f.window, DPO_ACCURACIES_NEGLIGIBLE, 0.7, 250);
    ck_assert(!holds(DPO_SLIGHT_PAIRS_ARE_FLAT, &f, ""));
    set(&f.window, DPO_ACCURACIES_NEGLIGIBLE, 0.5, 250);
    set(&f.window, DPO_ACCURACIES_SIGNIFICANT, 0.6, 250); /* nothing is learned yet */
    ck_assert(!holds(DPO_SLIGHT_PAIRS_ARE_FLAT, &f, ""));
}
END_TEST

START_TEST(a_collapsing_entropy_is_told) {
    DpoFigures f = plain();
    ck_assert(!holds(DPO_ENTROPY_COLLAPSES, &f, ""));
    set(&f.window, DPO_ENTROPY, 0.99, 1000);
    ck_assert(holds(DPO_ENTROPY_COLLAPSES, &f, "from 2 to 0.99"));
    set(&f.window, DPO_ENTROPY, 1.01, 1000);
    ck_assert(!holds(DPO_ENTROPY_COLLAPSES, &f, ""));
}
END_TEST

START_TEST(a_finding_is_told_once_when_its_window_is_full) {
    DpoWatch watch = {.figures = {.beta = 0.1, .has_reference = true}};
    Text out = {0};
    int told = 0;
    for (int step = 1; step <= 4 * DPO_WINDOW_STEPS; step++) {
        ObjectiveSums sums = {0};
        set(&sums, DPO_MARGINS, 1, 16);
        set(&sums, DPO_ENTROPY, step <= DPO_BASELINE_STEPS ? 2 : step <= DPO_WINDOW_STEPS ? 1.5 : 0.5, 1000);
        bool full = dpo_watch(&watch, &sums, &out);
        ck_assert(full == (step % DPO_WINDOW_STEPS == 0));
        if (out.length == 0) continue;
        ck_assert_int_eq(step, 2 * DPO_WINDOW_STEPS);
        ck_assert(strstr(out.bytes, "entropy collapses"));
        text_clear(&out);
        told++;
    }
    ck_assert_int_eq(told, 1);
    text_free(&out);
}
END_TEST

START_TEST(what_kto_shows_is_told) {
    DpoWatch watch = {.figures = {.beta = 0.1}};
    Text out = {0};
    for (int step = 1; step <= 3 * DPO_WINDOW_STEPS; step++) {
        ObjectiveSums sums = {0};
        set(&sums, KTO_KL, step <= DPO_WINDOW_STEPS ? 9.9 : 10.1, 16);
        set(&sums, KTO_ENTROPY, step <= 2 * DPO_WINDOW_STEPS ? 2 : 0.9, 100);
        kto_watch(&watch, &sums, &out);
        if (step < 2 * DPO_WINDOW_STEPS) ck_assert_uint_eq(out.length, 0);
        if (step == 2 * DPO_WINDOW_STEPS) {
            ck_assert(strstr(out.bytes, "runs away from its reference: 10.1 nats") && !strstr(out.bytes, "entropy"));
            text_clear(&out);
        }
    }
    ck_assert(strstr(out.bytes, "entropy collapses: from 2 to 0.9") && !strstr(out.bytes, "runs away"));
    text_free(&out);
}
END_TEST

CHECK_MAIN("diagnoses of dpo", falling_chosen_answers_are_told, margins_that_are_lengths_are_told,
           slight_pairs_that_stay_flat_are_told, a_collapsing_entropy_is_told,
           a_finding_is_told_once_when_its_window_is_full, what_kto_shows_is_told)
