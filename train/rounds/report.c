/* What every finished stage came to, read from the files that it left: report.json, and from it report.md
 * (report_text.c). Nothing is told that was not measured. What a stage said while it ran (objective_tell) is of the
 * steps that one process saw: a run that was killed may say it later, or not at all.
 *
 *   {"rounds": [{"round": 1, "stages": [{"stage": "tune", "run": "sft", "steps": 40,
 *       "figures": {"loss": {"n": 40, "first": 2.1, "last": 1.4, "least": 1.3, "most": 2.1}, …}, "remarks": ["step 30:
 * …"]}]}]}
 *
 * `rejection` has "statistics", `eval` has "policy" and "reference" (the objects that they write), `merge` has
 * "models". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "train/console/metrics.h"
#include "train/rounds/record.h"
#include "train/rounds/report.h"

/* Of metrics.jsonl, by TRL's names; what a stage does not have is left out. */
static const char *const told[] = {"loss",
                                   "eval_loss",
                                   "accuracy",
                                   "eval_accuracy",
                                   "eval_margin",
                                   "eval_samples",
                                   "rewards/accuracies",
                                   "rewards/margins",
                                   "eval_rewards/accuracies",
                                   "eval_rewards/margins",
                                   "logps/chosen",
                                   "logps/rejected",
                                   "reward",
                                   "eval_reward",
                                   "objective/kl",
                                   "eval_objective/kl",
                                   "entropy"};

static json_t *summary(const double *values, size_t n) {
    double least = values[0], most = values[0];
    for (size_t i = 1; i < n; i++) {
        least = values[i] < least ? values[i] : least;
        most = values[i] > most ? values[i] : most;
    }
    return json_pack("{s:I, s:f, s:f, s:f, s:f}", "n", (json_int_t)n, "first", values[0], "last", values[n - 1],
                     "least", least, "most", most);
}

static int add_metric(json_t *figures, const char *path, const char *name, double *last) {
    double *steps = NULL, *values = NULL;
    size_t n = 0;
    int rc = metrics_read(path, name, &steps, &values, &n);
    if (rc == OK && n > 0) json_object_set_new(figures, name, summary(values, n));
    if (rc == OK && n > 0 && steps[n - 1] > *last) *last = steps[n - 1];
    free(steps);
    free(values);
    return rc;
}

/* How right a reward model is by each of its scores. */
static int add_scores(json_t *figures, const char *path, const ConfigStrings *scores, double *last) {
    static const char *const of_each[] = {"accuracy", "eval_accuracy"};
    for (size_t i = 0; i < 2 * scores->n; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s/%s", of_each[i % 2], scores->items[i / 2]);
        TRY(add_metric(figures, path, name, last));
    }
    return OK;
}

static int add_metrics(json_t *stage, const char *path, const ConfigStrings *scores) {
    json_t *figures = json_object();
    double last = 0;
    int rc = OK;
    for (size_t i = 0; i < sizeof told / sizeof *told && rc == OK; i++) rc = add_metric(figures, path, told[i], &last);
    if (rc == OK) rc = add_scores(figures, path, scores, &last);
    json_object_set_new(stage, "steps", json_integer((json_int_t)last));
    json_object_set_new(stage, "figures", figures);
    return rc;
}

/* What the stage said in words (objective_tell). */
static int add_own_remarks(json_t *remarks, const char *path) {
    char *bytes;
    size_t size;
    TRY(file_read(&bytes, &size, path, 0));
    for (char *line = bytes, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        json_t *object = json_loadb(line, (size_t)(end - line), 0, NULL);
        const char *text = json_string_value(json_object_get(object, "remark"));
        if (text)
            json_array_append_new(
                remarks,
                json_sprintf("step %lld: %s", (long long)json_integer_value(json_object_get(object, "step")), text));
        json_decref(object);
    }
    free(bytes);
    return OK;
}

/* And what its figures show. */
static int add_remarks(json_t *stage, const char *path) {
    Text text = {0};
    json_t *remarks = json_array();
    int rc = path ? add_own_remarks(remarks, path) : OK;
    report_remarks(stage, &text);
    for (const char *line = text.bytes, *end; line && (end = strchr(line, '\n')) != NULL; line = end + 1)
        json_array_append_new(remarks, json_stringn(line, (size_t)(end - line)));
    if (rc == OK) rc = text_check(&text);
    text_free(&text);
    json_object_set_new(stage, "remarks", remarks);
    return rc;
}

/* A file that is absent is of what was not measured. */
static int add_file(json_t *stage, const char *key, const RoundStage *of, const char *name) {
    json_error_t where = {.line = 0};
    char *path = path_join(of->folder, name);
    bool absent = path && !file_exists(path);
    json_t *object = path && !absent ? json_load_file(path, 0, &where) : NULL;
    int rc =
        object || absent ? OK : error_set(ERR_FAILED, __FILE__, __LINE__, "%s: %s", path ? path : name, where.text);
    if (object) json_object_set_new(stage, key, object);
    free(path);
    return rc;
}

static int add_models(json_t *stage, const RoundStage *of) {
    json_t *models = json_array();
    for (size_t i = 0; i < of->symbolic_models.n; i++)
        json_array_append_new(models, json_string(of->symbolic_models.items[i]));
    if (of->spec->weights) json_object_set_new(stage, "weights", json_string(of->spec->weights));
    return json_object_set_new(stage, "models", models) == 0 ? OK : ERR_FAILED;
}

static int describe_training(json_t *out, const RoundStage *stage) {
    char *path = path_join(stage->folder, "metrics.jsonl");
    int rc = path ? add_metrics(out, path, &stage->config->reward_objectives)
                  : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    if (rc == OK) rc = add_remarks(out, path);
    free(path);
    return rc;
}

static int describe(json_t *out, const RoundStage *stage) {
    const StageCommand *command = stage->spec->command;
    if (stage->models.n > 0) return add_models(out, stage);
    if (command->training) return describe_training(out, stage);
    if (command->makes & MAKES_FIGURES) {
        TRY(add_file(out, "policy", stage, POLICY_FIGURES));
        TRY(add_file(out, "reference", stage, REFERENCE_FIGURES));
    } else {
        TRY(add_file(out, "statistics", stage, "statistics.json"));
    }
    return add_remarks(out, NULL);
}

/* Stages are finished in their order, but where one was put in later. */
static int collect(const Rounds *rounds, json_t *all) {
    json_t *round = NULL;
    int64_t number = 0;
    for (size_t i = 0; i < rounds->n_stages; i++) {
        const RoundStage *stage = &rounds->stages[i];
        RoundState state;
        TRY(record_state(stage, &state));
        if (!state.finished) continue;
        if (stage->round != number) {
            number = stage->round;
            round = json_pack("{s:I, s:[]}", "round", (json_int_t)number, "stages");
            json_array_append_new(all, round);
        }
        json_t *out = json_pack("{s:s, s:s}", "stage", stage->spec->name, "run", stage->spec->command->name);
        json_array_append_new(json_object_get(round, "stages"), out);
        if (!out) FAIL(ERR_FAILED, "out of memory");
        TRY(describe(out, stage));
    }
    return OK;
}

static int write_report(const Rounds *rounds, const char *name, const char *text) {
    char *path = path_join(rounds->config->output, name);
    int rc = path && text ? file_write_atomic(path, text, strlen(text))
                          : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    free(path);
    return rc;
}

int rounds_report(const Rounds *rounds) {
    json_t *all = json_array();
    Text text = {0};
    int rc = collect(rounds, all);
    json_t *root = json_pack("{s:O}", "rounds", all);
    char *json = rc == OK ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) : NULL;
    if (rc == OK) rc = write_report(rounds, "report.json", json);
    if (rc == OK) rc = report_text(all, rounds, &text);
    if (rc == OK) rc = write_report(rounds, "report.md", text.bytes);
    free(json);
    json_decref(root);
    json_decref(all);
    text_free(&text);
    return rc;
}
