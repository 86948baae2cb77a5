/* See step_zero.h. */
#include "train/step_zero.h"

#include <string.h>

#include "model/core/error.h"

static int replay(double *loss, Objective *objective, Tape *tape, const Run *run, const StepBatch *step) {
    const MicroBatch *micro = &step->micro[0];
    ObjectiveSums sums = {0};
    TRY(objective->record(objective, tape, run->model, (LlamaRecord){0}, false));
    TRY(tape_plan(tape));
    TRY(objective->bind(objective, tape, 0, micro, step, false));
    TRY(tape_forward(tape, 0));
    TRY(objective->collect(objective, tape, 0, micro, step, false, &sums));
    *loss = sums.loss;
    return OK;
}

static int loss_on(double *loss, Run *run, const StepBatch *step, Dtype precision) {
    const MicroBatch *micro = &step->micro[0];
    Objective *objective;
    TRY(run->stage->objective(&objective, run, micro->n_tokens));
    Tape *tape =
        tape_new(&(TapeOptions){.capacity = micro->n_tokens, .segments = micro->n_segments, .dtype = precision});
    int rc =
        tape ? replay(loss, objective, tape, run, step) : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    tape_free(tape);
    objective->free(objective);
    return rc;
}

int check_fresh_adapter(Run *run, const LoopOptions *options) {
    StepBatch batch;
    double with, without;
    TRY(loader_step(run->loader, 0, &batch));
    if (batch.n_micro == 0) return OK;
    TRY(loss_on(&with, run, &batch, options->precision));
    lora_attach(run->lora, false);
    int rc = loss_on(&without, run, &batch, options->precision);
    lora_attach(run->lora, true);
    TRY(rc);
    if (memcmp(&with, &without, sizeof with) != 0)
        FAIL(ERR_FAILED,
             "the fresh adapter changes the model: the summed loss of the first micro-batch is %.17g with it and "
             "%.17g without it",
             with, without);
    return OK;
}
