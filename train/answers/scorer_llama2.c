/* Helpfulness and safety in one reward (Touvron et al. 2023b, section 3.4.3). */
#include <stdlib.h>

#include "model/core/error.h"
#include "train/objectives/advantages.h"
#include "train/answers/scorer.h"

typedef struct {
    Scorer base;
    Scorer *helpfulness, *safety;
} Llama2Scorer;

static int score(Scorer *base, const ScoredAnswer *answers, size_t n, double *scores) {
    const Llama2Scorer *self = (const Llama2Scorer *)base;
    double *safety = malloc((n + 1) * sizeof *safety);
    if (!safety) FAIL(ERR_FAILED, "out of memory");
    int rc = self->helpfulness->score(self->helpfulness, answers, n, scores);
    if (rc == OK) rc = self->safety->score(self->safety, answers, n, safety);
    for (size_t i = 0; i < n && rc == OK; i++) {
        bool tagged = json_is_true(json_object_get(answers[i].prompt->record, "safety"));
        scores[i] = reward_llama2(scores[i], safety[i], tagged);
    }
    free(safety);
    return rc;
}

static void free_scorer(Scorer *base) {
    Llama2Scorer *self = (Llama2Scorer *)base;
    scorer_free(self->helpfulness);
    scorer_free(self->safety);
    free(self);
}

int scorer_llama2_new(Scorer **scorer, const char *helpfulness, const char *safety) {
    Llama2Scorer *self = calloc(1, sizeof *self);
    *scorer = NULL;
    if (!self) FAIL(ERR_FAILED, "out of memory");
    self->base = (Scorer){score, free_scorer};
    int rc = scorer_model_new(&self->helpfulness, helpfulness);
    if (rc == OK) rc = scorer_model_new(&self->safety, safety);
    if (rc == OK)
        *scorer = &self->base;
    else
        free_scorer(&self->base);
    return rc;
}
