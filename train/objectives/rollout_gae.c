/* See rollout_gae.h. An answer's arrays lie one behind the other in the rollout's memory; sums over them go over
 * answers in their order, then over ranks. */
#include "train/objectives/rollout_gae.h"

#include <math.h>
#include <string.h>

#include "model/core/error.h"

static int n_answers(const Rollout *rollout) {
    return rollout->options.prompts * rollout->options.samples;
}

/* One number for each state of each answer of this rank. */
typedef struct {
    double **rows; /* [answers] NULL where it takes no part: another rank's, or not judged */
    bool states;   /* its last state counts too, where that is behind its last token */
    const Rollout *rollout;
} Rows;

static int counted(const Rows *rows, int answer) {
    if (!rows->rows[answer]) return 0;
    return rows->states ? answer_states(rows->rollout, answer) : (int)rows->rollout->lengths[answer];
}

/* Over all ranks. */
static int moments_of_rows(Moments *m, const Rows *rows) {
    double first[2] = {0}, squares = 0;
    int n = n_answers(rows->rollout);
    for (int i = 0; i < n; i++)
        for (int t = 0; t < counted(rows, i); t++) {
            first[0] += rows->rows[i][t];
            first[1] += 1;
        }
    TRY(mesh_sum_f64(rows->rollout->mesh, first, 2));
    *m = (Moments){.mean = first[0] / first[1], .n = (size_t)first[1]};
    for (int i = 0; i < n; i++)
        for (int t = 0; t < counted(rows, i); t++)
            squares += (rows->rows[i][t] - m->mean) * (rows->rows[i][t] - m->mean);
    TRY(mesh_sum_f64(rows->rollout->mesh, &squares, 1));
    m->std = m->n > 1 ? sqrt(squares / (first[1] - 1)) : NAN;
    return OK;
}

static int whiten_rows(const Rows *rows, bool keep_mean) {
    Moments m;
    TRY(moments_of_rows(&m, rows));
    for (int i = 0; i < n_answers(rows->rollout); i++)
        if (rows->rows[i]) whiten_by(&m, rows->rows[i], (size_t)counted(rows, i), keep_mean);
    return OK;
}

/* ---- rewards, advantages, returns ---- */

/* By answer; NULL where it takes no part. */
typedef struct {
    double **rewards, **values, **advantages, **returns;
} Arrays;

/* Memory of one answer's; what is not judged gets none but its returns, which are its values. */
static int prepare_answer(Rollout *rollout, const Arrays *arrays, int number, bool judged) {
    Answer *answer = &rollout->answers[number];
    int n = answer_states(rollout, number);
    ARENA_TRY(answer->advantages, &rollout->arena, n);
    ARENA_TRY(answer->returns, &rollout->arena, n);
    for (int t = 0; t < n; t++) answer->returns[t] = (double)answer->values[t];
    if (!judged) return OK;
    ARENA_TRY(arrays->rewards[number], &rollout->arena, n);
    ARENA_TRY(arrays->values[number], &rollout->arena, n);
    memcpy(arrays->values[number], answer->returns, (size_t)n * sizeof(double));
    arrays->advantages[number] = answer->advantages;
    arrays->returns[number] = answer->returns;
    return OK;
}

static int prepare(Arrays *arrays, Rollout *rollout, const double *scores) {
    size_t n = (size_t)n_answers(rollout);
    double **all;
    ARENA_TRY(all, &rollout->arena, 4 * n);
    *arrays = (Arrays){.rewards = all, .values = all + n, .advantages = all + 2 * n, .returns = all + 3 * n};
    for (int i = 0; i < (int)n; i++)
        if (rollout->answers[i].tokens) TRY(prepare_answer(rollout, arrays, i, !isnan(scores[i])));
    return OK;
}

static void put_rewards(double *rewards, const Rollout *rollout, int number, double score) {
    const PolicyOptions *options = &rollout->options;
    const Answer *answer = &rollout->answers[number];
    for (int t = 0; t < answer_length(answer) && answer->reference; t++)
        rewards[t] = -options->beta *
                     kl_estimate(options->kl_estimator, (double)answer->logprob[t], (double)answer->reference[t]);
    rewards[answer_states(rollout, number) - 1] += score;
}

/* 1 - Var(return - value) / Var(return); return - value is the advantage before it is whitened. */
static int explain(Rollout *rollout, const Arrays *arrays) {
    Moments all, left;
    TRY(moments_of_rows(&all, &(Rows){arrays->returns, true, rollout}));
    TRY(moments_of_rows(&left, &(Rows){arrays->advantages, true, rollout}));
    rollout->explained = 1 - left.std * left.std / (all.std * all.std);
    return OK;
}

int rollout_gae(Rollout *rollout, const double *scores) {
    Arrays arrays = {0};
    const PolicyOptions *options = &rollout->options;
    int rc = prepare(&arrays, rollout, scores);
    TRY(mesh_agree(rollout->mesh, rc));
    if (rc != OK) return rc;
    for (int i = 0; i < n_answers(rollout); i++)
        if (arrays.rewards[i]) put_rewards(arrays.rewards[i], rollout, i, scores[i]);
    if (options->whiten_rewards) TRY(whiten_rows(&(Rows){arrays.rewards, true, rollout}, true));
    for (int i = 0; i < n_answers(rollout); i++)
        if (arrays.rewards[i])
            advantages_gae(arrays.advantages[i], arrays.returns[i], arrays.rewards[i], arrays.values[i],
                           (size_t)answer_states(rollout, i), options->gamma, options->lambda);
    TRY(explain(rollout, &arrays));
    return whiten_rows(&(Rows){arrays.advantages, false, rollout}, false);
}
