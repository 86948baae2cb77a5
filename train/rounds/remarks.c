/* What the figures of a stage mean for the round, in words, and what to change: beside what the stage said itself while
 * it ran. A rule is a function of the stage's object in report.json. */
#include <math.h>

#include "train/rounds/report.h"

static const double COIN_FLIP = 0.55, /* held-out accuracy of a reward model that has learned next to nothing */
    FEW_PAIRS = 30,                   /* held out: their accuracy's 95 % interval is wider than ± 18 % */
    FEW_STEPS = 5,                    /* of a stage that trains */
    LOSS_ROSE = 1.05,                 /* the last held-out loss over the least */
    REPEATED = 0.5,                   /* of answers that differ */
    NO_CHOICE = 0.5,                  /* of prompts with a pair */
    MANY_EARLIER = 0.5,               /* of prompts whose best answer is of an earlier round */
    KL_MUCH = 10,                     /* nats an answer */
    LONGER = 1.25,                    /* answers, against those before */
    FOLLOWED = 0.5,                   /* correlation of reward and length */
    MANY_CUT = 0.5,                   /* of answers */
    ERRORS = 2;                       /* standard errors of a difference that is no chance */

/* NaN where it was not measured: comparisons with it do not hold. */
static double number(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static double figure(const json_t *stage, const char *name, const char *which) {
    return number(json_object_get(json_object_get(stage, "figures"), name), which);
}

static void loss_rose(const json_t *stage, Text *out) {
    double least = figure(stage, "eval_loss", "least"), last = figure(stage, "eval_loss", "last");
    if (last > LOSS_ROSE * least)
        text_printf(
            out,
            "the held-out loss ended at %.4g, and was %.4g at its least: it has learned its data by heart. Train "
            "for less, or let later stages take the best checkpoint, {%s}/best\n",
            last, least, json_string_value(json_object_get(stage, "stage")));
}

/* `n`: NaN of runs that did not count them. */
static void judge_guesses(const json_t *stage, Text *out) {
    double accuracy = figure(stage, "eval_accuracy", "last"), n = figure(stage, "eval_samples", "last");
    if (isnan(accuracy)) return;
    if (n < FEW_PAIRS) {
        text_printf(out,
                    "its held-out accuracy, %.0f %%, is of %.0f pair%s, too few to tell it from chance: hold out more "
                    "(data.validation)\n",
                    100 * accuracy, n, n > 1 ? "s" : "");
        return;
    }
    if (!(accuracy < COIN_FLIP)) return;
    text_printf(out, "it ranks %.0f %% of the ", 100 * accuracy);
    if (n > 0) text_printf(out, "%.0f ", n);
    text_printf(out,
                "held-out pairs rightly, %s: what it prefers says nothing, and what is chosen by it neither. More "
                "pairs, clearer ones, or a larger base are needed\n",
                accuracy < 0.5 ? "no more than by chance" : "little more than by chance");
}

static void few_steps(const json_t *stage, Text *out) {
    double steps = number(stage, "steps");
    if (steps > 0 && steps < FEW_STEPS)
        text_printf(out,
                    "it took %.0f step%s, which changes little. If its data fill no more batches, lower "
                    "train.tokens_per_batch (of pairs: preferences.per_batch); else train for longer\n",
                    steps, steps > 1 ? "s" : "");
}

static void answers_repeat(const json_t *stage, Text *out) {
    const json_t *s = json_object_get(stage, "statistics");
    double share = number(s, "distinct_answers") / number(s, "answers");
    if (share < REPEATED)
        text_printf(out,
                    "only %.0f %% of the answers differ: raise generate.temperature, or spread it "
                    "(rejection.temperature_to)\n",
                    100 * share);
}

static void nothing_to_choose(const json_t *stage, Text *out) {
    const json_t *s = json_object_get(stage, "statistics");
    double share = number(s, "pairs") / number(s, "prompts");
    if (share < NO_CHOICE)
        text_printf(
            out,
            "for %.0f %% of the prompts no answer was better than another: prompts are too easy or too hard, or "
            "the reward is too coarse\n",
            100 * (1 - share));
}

static void earlier_are_better(const json_t *stage, Text *out) {
    const json_t *s = json_object_get(stage, "statistics");
    double share = number(s, "best_from_earlier") / number(s, "prompts");
    if (share > MANY_EARLIER)
        text_printf(
            out,
            "the best answers to %.0f %% of the prompts are of earlier rounds: by this judge the policy has not "
            "become better at them\n",
            100 * share);
}

static void reward_fell(const json_t *stage, Text *out) {
    const json_t *now = json_object_get(stage, "policy"), *then = json_object_get(stage, "reference");
    double fall = number(then, "reward") - number(now, "reward");
    double error = hypot(number(now, "reward_error"), number(then, "reward_error"));
    if (fall > 0 && fall > ERRORS * error)
        text_printf(
            out,
            "the reward on held-out prompts fell from %.4g to %.4g (standard error of the difference %.2g): the "
            "round has not helped\n",
            number(then, "reward"), number(now, "reward"), error);
}

static void kl_is_large(const json_t *stage, Text *out) {
    double kl = number(json_object_get(stage, "policy"), "objective/kl");
    if (kl > KL_MUCH)
        text_printf(out,
                    "the policy is %.3g nats an answer from what the round began with: so far away rewards are easily "
                    "fooled. Read its answers; raise beta, or lower the learning rates\n",
                    kl);
}

static void reward_is_length(const json_t *stage, Text *out) {
    static const char length[] = "completions/mean_length";
    const json_t *now = json_object_get(stage, "policy"), *then = json_object_get(stage, "reference");
    double correlation = number(now, "length_correlation");
    if (number(now, "reward") > number(then, "reward") && number(now, length) > LONGER * number(then, length) &&
        correlation > FOLLOWED)
        text_printf(
            out,
            "the reward rose with length: %.3g tokens an answer, %.3g before, and the correlation of reward and "
            "length is %.2f. Retrain the reward model on pairs that are as long, or penalise length\n",
            number(now, length), number(then, length), correlation);
}

static void answers_are_cut(const json_t *stage, Text *out) {
    double share = number(json_object_get(stage, "policy"), "completions/clipped_ratio");
    if (share > MANY_CUT)
        text_printf(out,
                    "%.0f %% of the answers did not end by themselves: raise generate.max_new_tokens, or train on "
                    "answers that end\n",
                    100 * share);
}

void report_remarks(const json_t *stage, Text *out) {
    static void (*const rules[])(const json_t *, Text *) = {
        loss_rose,          few_steps,   judge_guesses, answers_repeat,   nothing_to_choose,
        earlier_are_better, reward_fell, kl_is_large,   reward_is_length, answers_are_cut};
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) rules[i](stage, out);
}
