/* Rewards by a reward model, or by two scores in one reward as Llama 2 has them (Touvron et al. 2023b, section 3.4.3):
 * of two models, or of two rows of one model's head. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "train/answers/reward_model.h"
#include "train/objectives/advantages.h"

typedef struct {
    Scorer base;
    RewardModel *model, *safety_model; /* the second: NULL where there is none, or where it is the first */
    int n_scores, rows[2];             /* helpfulness, or the only score; safety */
} ModelScorer;

static void free_scorer(Scorer *base) {
    ModelScorer *self = (ModelScorer *)base;
    reward_model_free(self->model);
    reward_model_free(self->safety_model);
    free(self);
}

/* ---- scoring ---- */

static int score_both(const ModelScorer *self, const ScoredAnswer *answers, size_t n, double *const *scores) {
    if (!self->safety_model) return reward_model_score(self->model, answers, n, self->rows, 2, scores);
    TRY(reward_model_score(self->model, answers, n, &self->rows[0], 1, &scores[0]));
    return reward_model_score(self->safety_model, answers, n, &self->rows[1], 1, &scores[1]);
}

static int score(Scorer *base, const ScoredAnswer *answers, size_t n, double *scores) {
    const ModelScorer *self = (const ModelScorer *)base;
    if (self->n_scores == 1) return reward_model_score(self->model, answers, n, self->rows, 1, &scores);
    double *safety = malloc((n + 1) * sizeof *safety);
    if (!safety) FAIL(ERR_FAILED, "out of memory");
    int rc = score_both(self, answers, n, (double *const[]){scores, safety});
    for (size_t i = 0; i < n && rc == OK; i++) {
        bool tagged = json_is_true(json_object_get(answers[i].prompt->record, "safety"));
        scores[i] = reward_llama2(scores[i], safety[i], tagged);
    }
    free(safety);
    return rc;
}

/* ---- opening ---- */

static int find_row(int *row, const RewardModel *model, const ScorerOptions *options, const char *path,
                    const char *name, const char *option) {
    char key[64];
    snprintf(key, sizeof key, "%s.%s", options->section, option);
    return reward_row(row, reward_model_labels(model), name, key, path);
}

static int open_models(ModelScorer *self, const ScorerOptions *options) {
    bool other = *options->safety_model && strcmp(options->safety_model, options->model) != 0;
    self->n_scores = *options->safety_model || *options->safety_head ? 2 : 1;
    TRY(reward_model_open(&self->model, options->model));
    TRY(find_row(&self->rows[0], self->model, options, options->model, options->head, "head"));
    if (self->n_scores == 1) return OK;
    if (other) TRY(reward_model_open(&self->safety_model, options->safety_model));
    TRY(find_row(&self->rows[1], other ? self->safety_model : self->model, options,
                 other ? options->safety_model : options->model, options->safety_head, "safety_head"));
    if (!*options->safety_model && self->rows[0] == self->rows[1])
        FAIL(ERR_USAGE, "%s.safety_head: it is the score that %s.head is; helpfulness and safety are two",
             options->section, options->section);
    return OK;
}

int scorer_model_new(Scorer **scorer, const ScorerOptions *options) {
    ModelScorer *self = calloc(1, sizeof *self);
    *scorer = NULL;
    if (!self) FAIL(ERR_FAILED, "out of memory");
    self->base = (Scorer){score, free_scorer};
    int rc = open_models(self, options);
    if (rc == OK)
        *scorer = &self->base;
    else
        free_scorer(&self->base);
    return rc;
}
