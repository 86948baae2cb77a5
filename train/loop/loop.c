/* The training loop: one step is forward and backward of this rank's micro-batches, one sum over ranks, one decision of
 * the guard, one optimizer update. Everything else here is when to measure, save and stop; measure.c measures and
 * writes the figures. */
#include "train/loop/loop.h"

#include <math.h>
#include <stdlib.h>

#include "model/core/clock.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "train/console/interrupt.h"
#include "train/loop/parts.h"

/* ---- the step --------------------------------------------------------------------------------------------------- */

void loop_alive(const Loop *loop, const char *doing) {
    watchdog_pat(loop->parts.watchdog, doing);
}

static int forward_backward(Loop *loop, const StepBatch *batch, int m, ObjectiveSums *sums) {
    Objective *objective = loop->parts.objective;
    const MicroBatch *micro = &batch->micro[m];
    if (objective->companion) TRY(objective->companion(objective, micro, batch, sums));
    TRY(objective->bind(objective, loop->training, 0, micro, batch, true));
    TRY(tape_forward(loop->training, 0));
    TRY(objective->collect(objective, loop->training, 0, micro, batch, true, sums));
    return tape_backward(loop->training, 0);
}

static void report_samples(const MicroBatch *micro, double loss, double grad_norm) {
    Text ids = {0};
    for (int s = 0; s < micro->n_samples && s < 8; s++)
        text_printf(&ids, "%s%llu:%llu", s ? ", " : "", (unsigned long long)(micro->sample_id[s] >> 40),
                    (unsigned long long)(micro->sample_id[s] & ((UINT64_C(1) << 40) - 1)));
    log_warning("loss %g, gradient norm %g in the micro-batch with samples (source:number) %s%s", loss, grad_norm,
                ids.bytes ? ids.bytes : "?", micro->n_samples > 8 ? ", …" : "");
    text_free(&ids);
}

static int next_batch(Loop *loop, int64_t step, StepBatch *batch) {
    const LoopBatches *batches = &loop->parts.batches;
    return batches->step ? batches->step(batches->context, step, batch) : loader_step(loop->parts.loader, step, batch);
}

int loop_begin_step(Loop *loop, int rc, const StepBatch *batch) {
    Objective *objective = loop->parts.objective;
    if (!objective->begin_step) return rc;
    TRY(mesh_agree(loop->parts.mesh, rc));
    loop_alive(loop, "what a step begins with");
    return objective->begin_step(objective, loop->evaluation, batch, loop->parts.mesh);
}

static int accumulate_gradients(Loop *loop, int64_t step, StepResult *result) {
    StepBatch batch;
    Agreed *agreed = &result->agreed;
    double start = clock_seconds();
    TRY(loop_begin_step(loop, next_batch(loop, step, &batch), &batch));
    double have_data = clock_seconds();
    learners_zero_gradients(&loop->parts);
    agreed->step_weight = mesh_rank(loop->parts.mesh) == 0 ? batch.total_weight : 0;
    for (int m = 0; m < batch.n_micro && batch.total_weight > 0; m++) {
        loop_alive(loop, "a micro-batch");
        TRY(forward_backward(loop, &batch, m, &agreed->sums));
        result->forward_flops += tape_forward_flops(loop->training, 0);
    }
    learners_merge_tied(&loop->parts);
    result->data_seconds = have_data - start;
    result->compute_seconds = clock_seconds() - have_data;
    return OK;
}

static int sum_over_ranks(Loop *loop, int rc, Agreed *agreed) {
    Mesh *mesh = loop->parts.mesh;
    Objective *objective = loop->parts.objective;
    loop_alive(loop, "waiting for the other ranks' gradients");
    TRY(mesh_agree(mesh, rc));
    TRY(learners_sum_gradients(&loop->parts));
    TRY(objective_share_extremes(objective, mesh, &agreed->sums));
    TRY(mesh_sum_f64(mesh, (double *)(void *)agreed, sizeof *agreed / sizeof(double)));
    if (objective->finish) objective->finish(objective, &agreed->sums);
    return OK;
}

int loop_gradients(Loop *loop, int64_t step, ObjectiveSums *sums) {
    StepResult result = {.loss = 0};
    TRY(sum_over_ranks(loop, accumulate_gradients(loop, step, &result), &result.agreed));
    *sums = result.agreed.sums;
    return OK;
}

static int train_step(Loop *loop, LoopState *state, StepResult *result) {
    Agreed *agreed = &result->agreed;
    double start = clock_seconds();
    *result = (StepResult){.agreed.interrupted = interrupt_requested()};
    double minutes = loop->options.checkpoint_minutes;
    if (mesh_rank(loop->parts.mesh) == 0 && minutes > 0 && start - loop->last_save >= 60 * minutes)
        agreed->save_due = 1;

    int rc = accumulate_gradients(loop, state->step, result);
    double computed = clock_seconds();
    TRY(sum_over_ranks(loop, rc, agreed));
    result->exchange_seconds = clock_seconds() - computed;
    bool empty = agreed->step_weight == 0;
    result->loss = empty ? 0 : agreed->sums.loss / agreed->sums.weight;
    result->norms = learners_norms(&loop->parts);
    result->learning_rate = schedule_at(&loop->options.schedule, state->step);
    double both = result->norms.model + result->norms.companion; /* the guard asks whether it is finite */
    result->verdict = empty ? GUARD_APPLY : guard_check(&state->guard, result->loss, both);
    if (result->verdict == GUARD_APPLY && !empty) learners_update(&loop->parts, result->learning_rate, &result->norms);

    result->seconds = clock_seconds() - start;
    state->step++;
    state->updates = optimizer_updates(loop->parts.optimizer);
    state->tokens += (int64_t)agreed->sums.tokens;
    state->seconds += result->seconds;
    return OK;
}

int loop_step(Loop *loop, LoopState *state, LoopStep *out) {
    StepResult result;
    TRY(train_step(loop, state, &result));
    *out = (LoopStep){.loss = result.loss,
                      .grad_norm = result.norms.model,
                      .learning_rate = result.learning_rate,
                      .forward_flops = result.forward_flops,
                      .seconds = result.seconds,
                      .data_seconds = result.data_seconds,
                      .compute_seconds = result.compute_seconds,
                      .exchange_seconds = result.exchange_seconds,
                      .applied = result.verdict == GUARD_APPLY,
                      .sums = result.agreed.sums};
    out->update_seconds = out->seconds - out->data_seconds - out->compute_seconds - out->exchange_seconds;
    return OK;
}

/* Which of this rank's samples made a step bad: its micro-batches are computed again, each for itself, up to the first
 * that is. To look at all gradients after every micro-batch would cost the good steps too. */
static int report_bad_samples(Loop *loop, int64_t step) {
    StepBatch batch;
    TRY(next_batch(loop, step, &batch));
    for (int m = 0; m < batch.n_micro; m++) {
        ObjectiveSums sums = {0};
        loop_alive(loop, "a micro-batch of a bad step");
        learners_zero_gradients(&loop->parts);
        TRY(forward_backward(loop, &batch, m, &sums));
        learners_merge_tied(&loop->parts);
        LearnerNorms norms = learners_norms(&loop->parts);
        if (isfinite(sums.loss) && isfinite(norms.model + norms.companion)) continue;
        report_samples(&batch.micro[m], sums.loss / sums.weight, norms.model);
        return OK;
    }
    return OK;
}

static int report_bad_step(Loop *loop, const LoopState *state, const StepResult *result) {
    log_warning("step %lld: loss %g, gradient norm %g; the step was not applied", (long long)state->step, result->loss,
                result->norms.model);
    return mesh_agree(loop->parts.mesh, report_bad_samples(loop, state->step - 1));
}

/* ---- the run ---------------------------------------------------------------------------------------------------- */

/* From here on the guard may go back to this checkpoint, so it counts roll-backs afresh. */
static int save(Loop *loop, LoopState *state, bool is_best) {
    state->guard.roll_backs_in_a_row = 0;
    loop_alive(loop, "saving a checkpoint");
    TRY(mesh_agree(loop->parts.mesh, loop->parts.metrics ? metrics_sync(loop->parts.metrics) : OK));
    TRY(loop->parts.hooks.save(loop->parts.hooks.context, state, is_best));
    loop_alive(loop, "a checkpoint was saved");
    loop->last_save = clock_seconds();
    return OK;
}

/* Back to the newest checkpoint; the guard keeps what it has learnt since, and leaves the window out. */
static int roll_back(Loop *loop, LoopState *state) {
    int64_t bad_step = state->step - 1;
    Guard guard = state->guard;
    state->guard = (Guard){0};
    int rc = loop->parts.hooks.load_newest(loop->parts.hooks.context, state);
    guard_free(&state->guard);
    state->guard = guard;
    TRY(rc);
    TRY(guard_roll_back(&state->guard, state->step, bad_step));
    rc = loop->parts.metrics ? metrics_rewind(loop->parts.metrics, state->step + 1) : OK;
    TRY(mesh_agree(loop->parts.mesh, rc));
    log_warning("%d bad steps in a row: back to the checkpoint of step %lld; steps to %lld are skipped", GUARD_PATIENCE,
                (long long)state->step, (long long)(bad_step + 1));
    return OK;
}

/* Whether a multiple of `every` was passed since the last whole step, `whole` steps ago. */
static bool due(int64_t step, int64_t every, int64_t whole) {
    return every > 0 && step / every != (step - whole) / every;
}

static bool stopped_early(const Loop *loop, const LoopState *state) {
    return loop->options.early_stopping > 0 && state->stale_validations >= loop->options.early_stopping;
}

bool loop_finished(const Loop *loop, const LoopState *state) {
    return state->step >= loop->options.steps || stopped_early(loop, state);
}

/* Everything that may follow a step. *finished ends the run. */
static int after_step(Loop *loop, LoopState *state, const StepResult *result, bool *finished) {
    const LoopOptions *options = &loop->options;
    int64_t whole = options->whole_steps > 1 ? options->whole_steps : 1;
    bool last = state->step >= options->steps, is_best = false, saved = false;
    if (state->step % whole != 0 && !last) return OK;
    if (due(state->step, options->validate_every, whole) || last) {
        TRY(loop_measure(loop, state, &is_best));
        if (stopped_early(loop, state)) {
            log_info("step %lld: no better validation loss in %lld validations; stopping early", (long long)state->step,
                     (long long)state->stale_validations);
            last = true;
        }
    }
    /* In the middle of bad steps the weights are suspect: they must not push a good checkpoint out, nor become the one
     * that a roll-back goes to. An interruption waits for the next good step. */
    bool save_due = due(state->step, options->checkpoint_every, whole) || result->agreed.save_due > 0 ||
                    result->agreed.interrupted > 0;
    if (is_best || last || (save_due && result->verdict == GUARD_APPLY)) {
        TRY(save(loop, state, is_best));
        saved = true;
    }
    const LoopHooks *hooks = &loop->parts.hooks;
    if (hooks->sample && hooks->sample_due(hooks->context, state))
        TRY(mesh_agree(loop->parts.mesh, hooks->sample(hooks->context, state)));
    *finished = last;
    if (result->agreed.interrupted > 0 && !last && saved)
        FAIL(ERR_INTERRUPTED, "interrupted at step %lld of %lld; a checkpoint was saved, the same command resumes",
             (long long)state->step, (long long)options->steps);
    return OK;
}

/* About a loss that is NaN. */
static const char *what_to_do(const LoopState *state) {
    return state->updates > 0 ? "lower optim.lr, or look at the data of the samples named above"
                              : "is the model broken that training begins from ('cria eval loss' tells)? Else lower "
                                "optim.lr, or look at the data of the samples named above";
}

int loop_run(Loop *loop, LoopState *state) {
    int rc = OK;
    bool finished = loop_finished(loop, state);
    loop->last_save = clock_seconds();
    progress_begin(&loop->progress, "training", "steps", state->step, loop->options.steps);
    progress_show(&loop->progress, state->step);
    while (!finished) {
        state->step = guard_next(&state->guard, state->step);
        if (state->step >= loop->options.steps)
            FAIL_TO(done, ERR_FAILED,
                    "the loss became NaN or infinite, and every step up to the last, %lld, is being skipped for it; %s",
                    (long long)loop->options.steps, what_to_do(state));
        StepResult result;
        TRY_TO(done, train_step(loop, state, &result));
        if (result.verdict != GUARD_APPLY) TRY_TO(done, report_bad_step(loop, state, &result));
        if (result.verdict == GUARD_STOP)
            FAIL_TO(done, ERR_FAILED, "the loss stays NaN or infinite after %d roll-backs to the same checkpoint; %s",
                    GUARD_ROLL_BACKS, what_to_do(state));
        if (result.verdict == GUARD_ROLL_BACK) {
            TRY_TO(done, roll_back(loop, state));
            continue;
        }
        if (state->updates == 0 && state->step >= loop->options.steps)
            FAIL_TO(done, ERR_FAILED, "the loss was NaN or infinite in every step, and nothing was learned; %s",
                    what_to_do(state));
        TRY_TO(done, mesh_agree(loop->parts.mesh, loop_report_step(loop, state, &result)));
        TRY_TO(done, after_step(loop, state, &result, &finished));
    }
done:
    progress_end(&loop->progress);
    return rc;
}

/* ---- set-up ----------------------------------------------------------------------------------------------------- */

static int record(Loop *loop, Tape **tape, bool training) {
    const LoopOptions *options = &loop->options;
    *tape = tape_new(&(TapeOptions){.capacity = options->tokens_per_microbatch,
                                    .segments = options->max_segments,
                                    .dtype = options->precision,
                                    .training = training,
                                    .memory = loop->memory});
    if (!*tape) FAIL(ERR_FAILED, "out of memory");
    LlamaRecord how = {.recompute = training ? options->recompute : RECOMPUTE_NONE};
    TRY(loop->parts.objective->record(loop->parts.objective, *tape, loop->parts.model, how, training));
    return tape_plan(*tape);
}

int loop_new(Loop **out, const LoopParts *parts, const LoopOptions *options) {
    int rc = OK;
    Loop *loop = calloc(1, sizeof *loop);
    *out = NULL;
    if (!loop) FAIL(ERR_FAILED, "out of memory");
    loop->parts = *parts;
    loop->options = *options;
    loop->memory = tape_memory_new();
    if (!loop->memory) FAIL_TO(failed, ERR_FAILED, "out of memory");
    TRY_TO(failed, record(loop, &loop->training, true));
    TRY_TO(failed, record(loop, &loop->evaluation, false));
    *out = loop;
    return OK;
failed:
    loop_free(loop);
    return rc;
}

void loop_free(Loop *loop) {
    if (!loop) return;
    tape_free(loop->training);
    tape_free(loop->evaluation);
    tape_memory_free(loop->memory);
    free(loop);
}

size_t loop_tape_bytes(const Loop *loop) {
    return tape_memory_bytes(loop->memory);
}

Tape *loop_training_tape(Loop *loop) {
    return loop->training;
}
