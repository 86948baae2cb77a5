/* See parts.h. */
#include <math.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/memory.h"
#include "train/loop/figures.h"
#include "train/loop/parts.h"

/* ---- the validation set ---- */

int loop_validate(Loop *loop, Validation *result) {
    Objective *objective = loop->parts.objective;
    int64_t steps = loader_validation_steps(loop->parts.loader), limit = loop->options.validation_tokens;
    ObjectiveSums sums = {0};
    int rc = OK;
    int64_t tokens = 0;
    bool together = objective->begin_step != NULL; /* then no rank may leave before all know of its error */
    for (int64_t v = 0; v < steps && (rc == OK || together) && (limit == 0 || tokens < limit); v++) {
        StepBatch batch = {0};
        if (rc == OK) rc = loader_validation_step(loop->parts.loader, v, &batch);
        rc = loop_begin_step(loop, rc, &batch);
        if (rc != OK) break;
        tokens += batch.total_tokens;
        for (int m = 0; m < batch.n_micro && rc == OK; m++) {
            loop_alive(loop, "a micro-batch of the validation set");
            rc = objective->bind(objective, loop->evaluation, 0, &batch.micro[m], &batch, false);
            if (rc == OK) rc = tape_forward(loop->evaluation, 0);
            if (rc == OK)
                rc = objective->collect(objective, loop->evaluation, 0, &batch.micro[m], &batch, false, &sums);
        }
    }
    TRY(mesh_agree(loop->parts.mesh, rc));
    TRY(objective_share_extremes(objective, loop->parts.mesh, &sums));
    TRY(mesh_sum_f64(loop->parts.mesh, (double *)(void *)&sums, OBJECTIVE_SUMS));
    if (objective->finish) objective->finish(objective, &sums);
    *result = (Validation){.loss = sums.loss / sums.weight,
                           .accuracy = sums.correct / sums.scored,
                           .entropy = sums.entropy / sums.scored,
                           .tokens = (int64_t)sums.scored,
                           .sums = sums};
    return OK;
}

static int report_validation(Loop *loop, const LoopState *state, const Validation *result) {
    if (!loop->parts.metrics) return OK;
    Figures figures = {.n = 0};
    const Loader *loader = loop->parts.loader;
    const Objective *objective = loop->parts.objective;
    figures_put(&figures, "eval_loss", result->loss);
    if (!objective->no_tokens) figures_put(&figures, "eval_mean_token_accuracy", result->accuracy);
    if (result->entropy > 0) figures_put(&figures, "eval_entropy", result->entropy);
    figures_put_own(&figures, "eval_", objective, &result->sums);
    if (objective->n_metrics) figures_put(&figures, "eval_samples", result->sums.metric_weight[objective->headline]);
    figures_put_sources(&figures, "eval_loss", loader_n_validation_sources(loader), &result->sums, loader,
                        loader_validation_source_name);
    return metrics_write(loop->parts.metrics, state->step, figures.rows, figures.n);
}

static bool is_better(const LoopState *state, double loss) {
    return isfinite(loss) && (state->best_step < 0 || loss < state->best_loss);
}

static void tell_validation(const Loop *loop, const LoopState *state, const Validation *result, bool is_best) {
    const Objective *objective = loop->parts.objective;
    const char *best = is_best ? " (best)" : "";
    int h = objective->headline;
    if (objective->n_metrics)
        log_info("step %lld: validation loss %.4f, %s %.1f %%%s", (long long)state->step, result->loss,
                 objective->metrics[h], 100 * result->sums.metric[h] / result->sums.metric_weight[h], best);
    else
        log_info("step %lld: validation loss %.4f, perplexity %.6g, accuracy %.1f %%%s", (long long)state->step,
                 result->loss, exp(result->loss), 100 * result->accuracy, best);
}

static int measure_validation_set(Loop *loop, const LoopState *state, double *loss, bool *found) {
    Validation result;
    *found = false;
    if (loader_validation_steps(loop->parts.loader) == 0) return OK;
    TRY(loop_validate(loop, &result));
    if (result.tokens == 0) return OK;
    *found = true;
    *loss = result.loss;
    tell_validation(loop, state, &result, is_better(state, *loss));
    return mesh_agree(loop->parts.mesh, report_validation(loop, state, &result));
}

int loop_measure(Loop *loop, LoopState *state, bool *is_best) {
    const LoopHooks *hooks = &loop->parts.hooks;
    double loss;
    bool found;
    *is_best = false;
    if (hooks->measure)
        TRY(hooks->measure(hooks->context, state, &loss, &found));
    else
        TRY(measure_validation_set(loop, state, &loss, &found));
    if (!found) return OK;
    *is_best = is_better(state, loss);
    if (*is_best) {
        state->best_loss = loss;
        state->best_step = state->step;
        state->stale_validations = 0;
    } else {
        state->stale_validations++;
    }
    return OK;
}

/* ---- a step's figures ---- */

static double memory_gib(void) {
    return (double)memory_use().resident / 0x1p30;
}

/* What the objective says in words is kept with the figures. */
static int watch(Loop *loop, int64_t step, const ObjectiveSums *sums) {
    Objective *objective = loop->parts.objective;
    int rc = OK;
    objective->watch(objective, step, sums);
    for (char *line = objective->remarks.bytes, *end; rc == OK && line && *line; line = end + 1) {
        end = strchr(line, '\n');
        if (!end) break;
        *end = '\0';
        Metric remark = {.name = "remark", .text = line};
        if (loop->parts.metrics) rc = metrics_write(loop->parts.metrics, step, &remark, 1);
    }
    text_free(&objective->remarks);
    return rc;
}

int loop_report_step(Loop *loop, const LoopState *state, const StepResult *result) {
    const ObjectiveSums *sums = &result->agreed.sums;
    Objective *objective = loop->parts.objective;
    if (objective->watch && mesh_rank(loop->parts.mesh) == 0) TRY(watch(loop, state->step, sums));
    double rate = sums->tokens / result->seconds;
    char details[128];
    if (progress_due(&loop->progress))
        progress_update(&loop->progress, state->step,
                        progress_training_details(details, sizeof details, result->loss, rate));
    if (!loop->parts.metrics || sums->scored == 0 ||
        (state->step % loop->options.log_every != 0 && state->step != loop->options.steps))
        return OK;
    Figures figures = {.n = 0};
    const Loader *loader = loop->parts.loader;
    figures_put(&figures, "loss", result->loss);
    figures_put(&figures, "grad_norm", result->norms.model);
    if (loop->parts.companion) figures_put(&figures, "value_grad_norm", result->norms.companion);
    figures_put(&figures, "learning_rate", result->learning_rate);
    figures_put(&figures, "num_tokens", (double)state->tokens);
    if (!objective->no_tokens) figures_put(&figures, "mean_token_accuracy", sums->correct / sums->scored);
    if (sums->entropy > 0) figures_put(&figures, "entropy", sums->entropy / sums->scored);
    figures_put_own(&figures, "", objective, sums);
    figures_put(&figures, "tokens_per_second", rate);
    figures_put(&figures, "memory", memory_gib());
    if (loader) figures_put_sources(&figures, "loss", loader_n_sources(loader), sums, loader, loader_source_name);
    return metrics_write(loop->parts.metrics, state->step, figures.rows, figures.n);
}
