/* report.md: how far the run is, what each round came to in words, what to look at, a table over the rounds, then what
 * each stage came to. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "train/rounds/report.h"

static const char nothing[] = "–";

static const json_t *at(const json_t *object, const char *key) {
    return json_object_get(object, key);
}

static void put_number(Text *out, const json_t *value) {
    if (json_is_number(value))
        text_printf(out, "%.4g", json_number_value(value));
    else
        text_puts(out, nothing);
}

/* ---- a stage ---- */

/* "loss 2.1 → 1.4" */
static void put_change(Text *out, const json_t *figures, const char *name, const char *shown, const char **separator) {
    const json_t *figure = at(figures, name);
    if (!figure) return;
    text_printf(out, "%s%s ", *separator, shown);
    if (json_integer_value(at(figure, "n")) > 1) {
        put_number(out, at(figure, "first"));
        text_puts(out, " → ");
    }
    put_number(out, at(figure, "last"));
    *separator = "; ";
}

/* Of a reward model with several scores, each one's. */
static void put_scores(Text *out, const json_t *figures, const char **separator) {
    static const char held_out[] = "eval_accuracy/";
    const char *name;
    json_t *figure;
    char shown[128];
    json_object_foreach((json_t *)(uintptr_t)figures, name, figure) {
        if (!text_starts_with(name, held_out)) continue;
        snprintf(shown, sizeof shown, "of %s", name + sizeof held_out - 1);
        put_change(out, figures, name, shown, separator);
    }
}

static void put_training(Text *out, const json_t *stage) {
    static const struct {
        const char *name, *shown;
    } rows[] = {{"loss", "loss"},
                {"eval_loss", "held-out loss"},
                {"accuracy", "accuracy"},
                {"eval_accuracy", "held-out accuracy"},
                {"rewards/accuracies", "accuracy"},
                {"eval_rewards/accuracies", "held-out accuracy"},
                {"rewards/margins", "margin"},
                {"logps/chosen", "log-probability of the chosen"},
                {"reward", "reward"},
                {"eval_reward", "held-out reward"},
                {"objective/kl", "KL"},
                {"eval_objective/kl", "held-out KL"}};
    const json_t *figures = at(stage, "figures");
    const char *separator = "; ";
    long long steps = (long long)json_integer_value(at(stage, "steps"));
    text_printf(out, "%lld step%s", steps, steps == 1 ? "" : "s");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        put_change(out, figures, rows[i].name, rows[i].shown, &separator);
    put_scores(out, figures, &separator);
}

static void put_rejection(Text *out, const json_t *s) {
    text_printf(out, "%lld prompts, %lld answers (%lld distinct): mean reward ",
                (long long)json_integer_value(at(s, "prompts")), (long long)json_integer_value(at(s, "answers")),
                (long long)json_integer_value(at(s, "distinct_answers")));
    put_number(out, at(s, "mean_score"));
    text_puts(out, ", of the best ");
    put_number(out, at(s, "mean_best"));
    text_printf(out, "; %lld records, %lld pairs, %lld best answers from earlier rounds",
                (long long)json_integer_value(at(s, "sft_records")), (long long)json_integer_value(at(s, "pairs")),
                (long long)json_integer_value(at(s, "best_from_earlier")));
}

static void put_policy(Text *out, const json_t *stage) {
    const json_t *p = at(stage, "policy"), *before = at(at(stage, "reference"), "reward");
    text_printf(out, "%lld answers to %lld held-out prompts: reward ", (long long)json_integer_value(at(p, "answers")),
                (long long)json_integer_value(at(p, "prompts")));
    put_number(out, at(p, "reward"));
    text_puts(out, " ± ");
    put_number(out, at(p, "reward_error"));
    if (before) text_puts(out, ", of the model that it is compared with ");
    if (before) put_number(out, before);
    if (json_is_number(at(p, "objective/kl"))) {
        text_puts(out, "; KL divergence from that ");
        put_number(out, at(p, "objective/kl"));
        text_puts(out, " ± ");
        put_number(out, at(p, "objective/kl_error"));
        text_puts(out, " nats an answer");
    }
    text_puts(out, "; ");
    put_number(out, at(p, "completions/mean_length"));
    text_puts(out, " tokens an answer");
}

/* As seen from the report's own folder. */
static const char *from_here(const char *path) {
    static const char here[] = "{output}/";
    return strncmp(path, here, strlen(here)) == 0 ? path + strlen(here) : path;
}

static void put_merge(Text *out, const json_t *stage) {
    size_t i;
    json_t *model, *models = json_object_get(stage, "models");
    const char *weights = json_string_value(at(stage, "weights"));
    text_puts(out, "of");
    json_array_foreach(models, i, model) {
        text_printf(out, "%s %s", i ? "," : "", from_here(json_string_value(model)));
    }
    if (weights) text_printf(out, "; weights %s", weights);
}

static void put_stage(Text *out, const json_t *stage) {
    text_printf(out, "| %s | %s | ", json_string_value(at(stage, "stage")), json_string_value(at(stage, "run")));
    if (at(stage, "models"))
        put_merge(out, stage);
    else if (at(stage, "policy"))
        put_policy(out, stage);
    else if (at(stage, "statistics"))
        put_rejection(out, at(stage, "statistics"));
    else
        put_training(out, stage);
    text_puts(out, " |\n");
}

/* Rewards by number of answers (Touvron et al. 2023b, figure 7): powers of two, and the last. */
static void put_by_k(Text *out, const json_t *stage) {
    const json_t *by_k = at(at(stage, "statistics"), "by_k");
    size_t last = json_array_size(by_k);
    if (last == 0) return;
    text_printf(out, "\nRewards of %s by number of answers:\n\n| K | maximum | median |\n|---|---|---|\n",
                json_string_value(at(stage, "stage")));
    for (size_t k = 1; k <= last; k = k * 2 <= last || k == last ? k * 2 : last) {
        const json_t *row = json_array_get(by_k, k - 1);
        text_printf(out, "| %zu | ", k);
        put_number(out, at(row, "maximum"));
        text_puts(out, " | ");
        put_number(out, at(row, "median"));
        text_puts(out, " |\n");
    }
}

/* ---- over the rounds ---- */

typedef struct {
    const json_t *sft, *reward, *mean, *best, *before, *after, *kl;
} Row;

/* The last stage of a kind speaks for its round. */
static Row row_of(const json_t *stages) {
    Row row = {NULL};
    for (size_t i = 0; i < json_array_size(stages); i++) {
        const json_t *stage = json_array_get(stages, i), *figures = at(stage, "figures"), *p = at(stage, "policy");
        const char *run = json_string_value(at(stage, "run"));
        if (strcmp(run, "sft") == 0)
            row.sft = at(figures, "eval_loss") ? at(at(figures, "eval_loss"), "last") : at(at(figures, "loss"), "last");
        if (strcmp(run, "reward") == 0) row.reward = at(at(figures, "eval_accuracy"), "last");
        if (at(stage, "statistics")) {
            row.mean = at(at(stage, "statistics"), "mean_score");
            row.best = at(at(stage, "statistics"), "mean_best");
        }
        if (!p) continue;
        row.before = at(at(stage, "reference"), "reward");
        row.after = at(p, "reward");
        row.kl = at(p, "objective/kl");
    }
    return row;
}

static void put_overview(Text *out, const json_t *all) {
    text_puts(out, "| round | SFT loss | reward model's held-out accuracy | reward of all answers | of the best of K | "
                   "held-out reward before | after | KL, nats |\n|---|---|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < json_array_size(all); i++) {
        const json_t *round = json_array_get(all, i);
        Row row = row_of(at(round, "stages"));
        const json_t *cells[] = {row.sft, row.reward, row.mean, row.best, row.before, row.after, row.kl};
        text_printf(out, "| %lld |", (long long)json_integer_value(at(round, "round")));
        for (size_t c = 0; c < sizeof cells / sizeof *cells; c++) {
            text_puts(out, " ");
            put_number(out, cells[c]);
            text_puts(out, " |");
        }
        text_puts(out, "\n");
    }
}

/* ---- in words ---- */

static double number_of(const json_t *object, const char *key) {
    const json_t *value = at(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

/* Two standard errors of the difference part a change from chance. */
static void put_measured(Text *out, const json_t *stage) {
    const json_t *now = at(stage, "policy"), *then = at(stage, "reference");
    double change = number_of(now, "reward") - number_of(then, "reward");
    double error = hypot(number_of(now, "reward_error"), number_of(then, "reward_error"));
    double kl = number_of(now, "objective/kl");
    if (isnan(change)) {
        text_puts(out, " On held-out prompts its model earns ");
        put_number(out, at(now, "reward"));
        text_puts(out, ".");
        return;
    }
    text_puts(out, " On held-out prompts the reward went from ");
    put_number(out, at(then, "reward"));
    text_puts(out, " to ");
    put_number(out, at(now, "reward"));
    if (!isnan(error))
        text_printf(out, ", %s (the difference's standard error is %.2g)",
                    fabs(change) <= 2 * error ? "which may be chance"
                    : change > 0              ? "a gain"
                                              : "a loss",
                    error);
    if (!isnan(kl)) text_printf(out, ", %.3g nats of KL divergence away", kl);
    text_puts(out, ".");
}

static void put_chosen(Text *out, const json_t *stage) {
    const json_t *s = at(stage, "statistics");
    text_printf(out, " The best of %zu answers to a prompt earned ", json_array_size(at(s, "by_k")));
    put_number(out, at(s, "mean_best"));
    text_puts(out, ", the mean of all ");
    put_number(out, at(s, "mean_score"));
    text_puts(out, ".");
}

static bool is_measured(const Rounds *rounds) {
    for (size_t i = 0; i < rounds->n_specs; i++)
        if (rounds->specs[i].command->makes & MAKES_FIGURES) return true;
    return false;
}

static void put_words(Text *out, const json_t *round) {
    size_t i;
    json_t *stage, *stages = json_object_get(round, "stages");
    text_printf(out, "- Round %lld:", (long long)json_integer_value(at(round, "round")));
    json_array_foreach(stages, i, stage) {
        if (at(stage, "statistics")) put_chosen(out, stage);
        if (at(stage, "policy")) put_measured(out, stage);
    }
    text_puts(out, "\n");
}

/* All remarks of all stages. */
static void put_remarks(Text *out, const json_t *all) {
    size_t r, s, i;
    json_t *round, *stage, *remark;
    bool any = false;
    text_puts(out, "\n## What to look at\n\n");
    json_array_foreach(all, r, round) {
        json_array_foreach(json_object_get(round, "stages"), s, stage) {
            json_array_foreach(json_object_get(stage, "remarks"), i, remark) {
                text_printf(out, "- round %lld, %s: %s\n", (long long)json_integer_value(at(round, "round")),
                            json_string_value(at(stage, "stage")), json_string_value(remark));
                any = true;
            }
        }
    }
    if (!any) text_puts(out, "Nothing: no stage said that something was wrong, and no figure shows it.\n");
}

static void put_progress(Text *out, const json_t *all, const Rounds *rounds) {
    size_t finished = 0;
    for (size_t i = 0; i < json_array_size(all); i++) finished += json_array_size(at(json_array_get(all, i), "stages"));
    text_printf(out, "# Rounds\n\n%zu of %zu stages of %lld round%s are finished", finished, rounds->n_stages,
                (long long)rounds->config->rounds_count, rounds->config->rounds_count == 1 ? "" : "s");
    text_puts(out, finished < rounds->n_stages ? "; the same command goes on.\n\n" : ".\n\n");
}

static void put_round(Text *out, const json_t *round) {
    size_t s;
    json_t *stage, *stages = json_object_get(round, "stages");
    text_printf(out, "\n## Round %lld\n\n| stage | command | what came of it: first → last |\n|---|---|---|\n",
                (long long)json_integer_value(at(round, "round")));
    json_array_foreach(stages, s, stage) {
        put_stage(out, stage);
    }
    json_array_foreach(stages, s, stage) {
        put_by_k(out, stage);
    }
}

int report_text(const json_t *all, const Rounds *rounds, Text *out) {
    put_progress(out, all, rounds);
    for (size_t i = 0; i < json_array_size(all); i++) put_words(out, json_array_get(all, i));
    if (!is_measured(rounds))
        text_puts(
            out, "\nWhether the rounds have helped is not measured: a stage with run: eval tells the reward and the KL "
                 "divergence on held-out prompts.\n");
    put_remarks(out, all);
    text_printf(out,
                "\n## All rounds\n\nLosses are held-out where something is held out; %s: not measured. Each round's "
                "rewards are by its own judge. Before: the model that the measured one is compared with.\n\n",
                nothing);
    put_overview(out, all);
    for (size_t i = 0; i < json_array_size(all); i++) put_round(out, json_array_get(all, i));
    return text_check(out);
}
