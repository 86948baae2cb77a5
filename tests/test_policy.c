/* Advantages, losses and diagnoses of policy-gradient training. Golden values: tests/golden/ppo_trl.py. */
#include <math.h>
#include <string.h>

#include <jansson.h>

#include "tests/check_main.h"
#include "train/objectives/advantages.h"
#include "train/objectives/policy_loss.h"
#include "eval/correlation.h"
#include "train/objectives/policy_watch.h"

static json_t *golden(void) {
    json_t *root = json_load_file("tests/golden/ppo_trl.json", 0, NULL);
    ck_assert_ptr_nonnull(root);
    return root;
}

static size_t numbers(double *out, const json_t *list) {
    size_t n = json_array_size(list);
    ck_assert_uint_gt(n, 0);
    for (size_t i = 0; i < n; i++) out[i] = json_number_value(json_array_get(list, i));
    return n;
}

static void near(double found, double expected, double bound) {
    ck_assert_msg(fabs(found - expected) <= bound * fmax(1, fabs(expected)), "%.12g, expected %.12g", found, expected);
}

enum { MOST = 64 };

/* One answer of TRL's batch: n values, the last of which stands behind the stop token where there is one. */
static void check_answer(const json_t *golden_answer, double *advantages, double *returns, size_t *n) {
    double logprobs[MOST], references[MOST], values[MOST], expected[MOST], rewards[MOST];
    size_t tokens = numbers(logprobs, json_object_get(golden_answer, "logprobs"));
    numbers(references, json_object_get(golden_answer, "references"));
    *n = numbers(values, json_object_get(golden_answer, "values"));
    ck_assert(*n == tokens || *n == tokens + 1);
    KlEstimator kl = strcmp(json_string_value(json_object_get(golden_answer, "kl")), "k3") == 0 ? KL_K3 : KL_K1;
    double beta = json_number_value(json_object_get(golden_answer, "kl_coef"));
    for (size_t t = 0; t < *n; t++) rewards[t] = t < tokens ? -beta * kl_estimate(kl, logprobs[t], references[t]) : 0;
    rewards[*n - 1] += json_number_value(json_object_get(golden_answer, "score"));
    numbers(expected, json_object_get(golden_answer, "rewards"));
    for (size_t t = 0; t < *n; t++) near(rewards[t], expected[t], 1e-6);
    advantages_gae(advantages, returns, rewards, values, *n, json_number_value(json_object_get(golden_answer, "gamma")),
                   json_number_value(json_object_get(golden_answer, "lambda")));
    numbers(expected, json_object_get(golden_answer, "returns"));
    for (size_t t = 0; t < *n; t++) near(returns[t], expected[t], 1e-5);
    *n = tokens;
}

START_TEST(advantages_and_returns_are_those_of_trl) {
    json_t *root = golden(), *batch;
    size_t b;
    json_array_foreach(json_object_get(root, "batches"), b, batch) {
        json_t *answer;
        size_t i, used = 0, n;
        double all[16 * MOST], expected[MOST], advantages[MOST], returns[MOST];
        json_array_foreach(json_object_get(batch, "answers"), i, answer) {
            check_answer(answer, advantages, returns, &n);
            memcpy(all + used, advantages, n * sizeof *advantages);
            used += n;
        }
        whiten(all, used, false);
        used = 0;
        json_array_foreach(json_object_get(batch, "answers"), i, answer) {
            n = numbers(expected, json_object_get(answer, "advantages"));
            for (size_t t = 0; t < n; t++) near(all[used + t], expected[t], 1e-5);
            used += n;
        }
    }
    ck_assert_uint_ge(b, 2);
    json_decref(root);
}
END_TEST

START_TEST(clipped_losses_and_their_gradients_are_those_of_trl) {
    json_t *root = golden(), *row;
    size_t i;
    int clipped = 0;
    json_array_foreach(json_object_get(root, "losses"), i, row) {
#define NUMBER(name) json_number_value(json_object_get(row, name))
        PolicyLoss p = policy_loss(NUMBER("log_ratio"), NUMBER("advantage"), 0.2, 0.2);
        near(p.loss, NUMBER("policy_loss"), 1e-6);
        near(p.gradient, NUMBER("policy_gradient"), 1e-6);
        near(p.low || p.high, NUMBER("policy_clipped"), 0);
        ValueLoss v = value_loss(NUMBER("value"), NUMBER("old_value"), NUMBER("target"), 0.2);
        near(v.loss, NUMBER("value_loss"), 1e-6);
        near(v.gradient, NUMBER("value_gradient"), 1e-6);
        near(v.clipped, NUMBER("value_clipped"), 0);
        clipped += v.clipped + p.low + p.high;
    }
    ck_assert_uint_ge(i, 100);
    ck_assert_int_ge(clipped, 20);
    json_decref(root);
}
END_TEST

START_TEST(whitening_with_the_mean_kept_is_that_of_trl) {
    json_t *root = golden();
    double x[MOST], expected[MOST];
    size_t n = numbers(x, json_object_get(json_object_get(root, "whiten"), "x"));
    numbers(expected, json_object_get(json_object_get(root, "whiten"), "kept"));
    whiten(x, n, true);
    for (size_t i = 0; i < n; i++) near(x[i], expected[i], 1e-6);
    double one[] = {3};
    whiten(one, 1, false);
    near(one[0], 3, 0);
    json_decref(root);
}
END_TEST

START_TEST(what_could_not_be_judged_teaches_nothing) {
    double scores[] = {1, NAN, 3, NAN, NAN, 5}, out[6];
    advantages_rloo(out, scores, 2, 3, false);
    double rloo[] = {-2, 0, 2, 0, 0, 0};
    for (int i = 0; i < 6; i++) near(out[i], rloo[i], 0);
    advantages_grpo(out, scores, 2, 3, SCALE_NONE);
    double grpo[] = {-1, 0, 1, 0, 0, 0};
    for (int i = 0; i < 6; i++) near(out[i], grpo[i], 0);
    double equal[] = {2, 2, 2, 1, 2, 3};
    near(advantages_grpo(out, equal, 2, 3, SCALE_GROUP), 0.5, 0);
}
END_TEST

START_TEST(gradients_are_the_slopes_of_the_losses) {
    const double h = 1e-6;
    for (int i = -20; i <= 20; i++) {
        double x = 0.07 * i + 0.003, ratio = exp(x + 0.4);
        double slope = (kl_loss(x + h, -0.3).loss - kl_loss(x - h, -0.3).loss) / (2 * h);
        near(kl_loss(x, -0.3).gradient, slope, 1e-7);
        slope = (kl_loss_weighed(x + h, -0.3, exp(x + h + 0.4)).loss -
                 kl_loss_weighed(x - h, -0.3, exp(x - h + 0.4)).loss) /
                (2 * h);
        near(kl_loss_weighed(x, -0.3, ratio).gradient, slope, 1e-7);
        slope = (policy_loss(x + h, -1.5, 0.1, 0.3).loss - policy_loss(x - h, -1.5, 0.1, 0.3).loss) / (2 * h);
        near(policy_loss(x, -1.5, 0.1, 0.3).gradient, slope, 1e-7);
    }
}
END_TEST

START_TEST(llama_2_takes_the_safety_score_where_it_is_tagged_or_low) {
    double low = log(0.149 / 0.851), high = log(0.151 / 0.849);
    near(reward_llama2(7, low, false), low, 0);
    near(reward_llama2(7, high, false), 7, 0);
    near(reward_llama2(7, high, true), high, 0);
}
END_TEST

/* ---- diagnoses ---- */

static const WatchFigures healthy = {.reward = 0.1,
                                     .kl = 1,
                                     .entropy = 2,
                                     .length = 50,
                                     .length_correlation = 0.1,
                                     .equal_groups = 0.2,
                                     .beta = 0.05,
                                     .value_loss = 0.1,
                                     .explained = 0.4};

static int says(PolicyWatch *watch, WatchFigures figures, const char *part) {
    Text text = {0};
    policy_watch(watch, &figures, &text);
    int lines = 0;
    for (const char *p = text.bytes; p && *p; p++) lines += *p == '\n';
    if (part) ck_assert_msg(text.bytes && strstr(text.bytes, part), "'%s' is not in: %s", part, text.bytes);
    text_free(&text);
    return lines;
}

START_TEST(each_way_to_go_wrong_is_told_once_and_a_healthy_run_is_left_alone) {
    static const struct {
        WatchFigures figures;
        const char *part;
        int after; /* rollouts until it is told */
    } ill[] = {
        {{.reward = 0.5, .kl = 20, .entropy = 2, .length = 50, .equal_groups = 0.2}, "KL divergence runs away", 1},
        {{.reward = 0.5, .kl = 1, .entropy = 2, .length = 80, .length_correlation = 0.9, .length_slope = 0.01},
         "with length only",
         1},
        {{.reward = 0.5, .kl = 1, .entropy = 0.3, .length = 50}, "entropy collapses", 1},
        {{.reward = 0, .kl = 1, .entropy = 2, .length = 50, .equal_groups = 0.95, .explained = 0.4}, "no signal", 3},
        {{.reward = 0.1, .kl = 1, .entropy = 2, .length = 50, .value_loss = 5, .explained = -20},
         "value loss explodes",
         1},
        {{.reward = 0.1, .kl = 1, .entropy = 2, .length = 50, .value_loss = 0.1, .explained = 0.01},
         "has learned nothing",
         10}};
    for (size_t i = 0; i < sizeof ill / sizeof *ill; i++) {
        PolicyWatch watch = {.n = 0};
        for (int r = 0; r < 30; r++) ck_assert_int_eq(says(&watch, healthy, NULL), 0);
        for (int r = 1; r < ill[i].after; r++) ck_assert_int_eq(says(&watch, ill[i].figures, NULL), 0);
        ck_assert_int_eq(says(&watch, ill[i].figures, ill[i].part), 1);
        ck_assert_int_eq(says(&watch, ill[i].figures, NULL), 0);
    }
}
END_TEST

/* Longer answers with higher scores, where the reward rises by more than length foretells. */
START_TEST(a_reward_that_rises_beyond_its_length_is_left_alone) {
    PolicyWatch watch = {.n = 0};
    WatchFigures longer = {.reward = 0.8, .kl = 1, .entropy = 2, .length = 80, .length_correlation = 0.9};
    longer.length_slope = 0.01; /* 0.3 of 0.7 */
    ck_assert_int_eq(says(&watch, healthy, NULL), 0);
    ck_assert_int_eq(says(&watch, longer, NULL), 0);
    longer.length_slope = 0.012; /* 0.36 */
    ck_assert_int_eq(says(&watch, longer, "with length only"), 1);
}
END_TEST

START_TEST(correlation_of_lines_is_one_and_of_constants_unknown) {
    double x[] = {1, 2, 3, NAN}, y[] = {2, 4, 6, 1}, z[] = {5, 5, 5, 5};
    near(correlation(x, y, 4), 1, 1e-12);
    ck_assert(isnan(correlation(x, z, 4)));
    near(slope(x, y, 4), 2, 1e-12);
    near(slope(x, z, 4), 0, 1e-12);
    ck_assert(isnan(slope(z, x, 4)));
}
END_TEST

CHECK_MAIN("policy", advantages_and_returns_are_those_of_trl, clipped_losses_and_their_gradients_are_those_of_trl,
           whitening_with_the_mean_kept_is_that_of_trl, what_could_not_be_judged_teaches_nothing,
           gradients_are_the_slopes_of_the_losses, llama_2_takes_the_safety_score_where_it_is_tagged_or_low,
           each_way_to_go_wrong_is_told_once_and_a_healthy_run_is_left_alone,
           a_reward_that_rises_beyond_its_length_is_left_alone, correlation_of_lines_is_one_and_of_constants_unknown)
