/* See value.h. */
#include "train/objectives/value.h"

#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "train/objectives/micro_batch.h"
#include "train/objectives/policy_loss.h"

struct ValuePass {
    Tape *tape;
    Tensor *values, *gradient; /* [T, 1]; the latter when training */
    MicroBuffers buffers;
};

int value_pass_new(ValuePass **out, Llama *model, ValuePassOptions options) {
    int rc = OK;
    ValuePass *pass = calloc(1, sizeof *pass);
    *out = NULL;
    if (!pass) FAIL(ERR_FAILED, "out of memory");
    TRY_TO(failed, micro_buffers_new(&pass->buffers, options.capacity, options.training));
    pass->tape = tape_new(&(TapeOptions){.capacity = options.capacity,
                                         .dtype = options.precision,
                                         .training = options.training,
                                         .memory = options.memory});
    if (!pass->tape) FAIL_TO(failed, ERR_FAILED, "out of memory");
    pass->values = llama_score(pass->tape, model, (LlamaRecord){.recompute = options.recompute}, NULL);
    if (pass->values) tape_keep(pass->values);
    if (pass->values && options.training) {
        pass->gradient = tape_input(pass->tape, ROWS_TOKENS, 1, DTYPE_F32, false);
        tape_seed(pass->tape, pass->values, pass->gradient);
    }
    TRY_TO(failed, tape_plan(pass->tape));
    *out = pass;
    return OK;
failed:
    value_pass_free(pass);
    return rc;
}

void value_pass_free(ValuePass *pass) {
    if (!pass) return;
    tape_free(pass->tape);
    micro_buffers_free(&pass->buffers);
    free(pass);
}

size_t value_pass_bytes(const ValuePass *pass) {
    return tape_bytes(pass->tape);
}

/* [T]: of every token of the micro-batch. */
static int forward(const float **values, ValuePass *pass, const MicroBatch *micro) {
    TRY(micro_batch_bind(pass->tape, 0, micro, &pass->buffers));
    TRY(tape_forward(pass->tape, 0));
    *values = tape_value(pass->tape, 0, pass->values);
    return OK;
}

/* The row of an answer's first state. */
static int first_state(const MicroBatch *micro, int segment, const Answer *answer) {
    return micro->segment_start[segment] + answer->n_prompt - 1;
}

int rollout_values(Rollout *rollout, ValuePass *pass, int capacity) {
    StepBatch batch;
    const float *values;
    TRY(rollout_all(rollout, capacity, &batch));
    for (int m = 0; m < batch.n_micro; m++) {
        const MicroBatch *micro = &batch.micro[m];
        TRY(forward(&values, pass, micro));
        for (int s = 0; s < micro->n_segments; s++) {
            int number = (int)micro->sample_id[s];
            Answer *answer = &rollout->answers[number];
            TRY(rollout_take(&answer->values, rollout, values, first_state(micro, s, answer),
                             answer_states(rollout, number)));
        }
    }
    return OK;
}

/* ---- the loss ---- */

/* Of one answer: `values` now, and dL/dvalue. */
static void answer_loss(const Rollout *rollout, int number, const float *values, float *gradient, ValueSums *sums) {
    const Answer *answer = &rollout->answers[number];
    double scale = rollout->options.value_weight / rollout->minibatch_states;
    for (int t = 0; t < answer_states(rollout, number); t++) {
        ValueLoss loss = value_loss((double)values[t], (double)answer->values[t], answer->returns[t],
                                    rollout->options.value_epsilon);
        gradient[t] = (float)(scale * loss.gradient);
        sums->loss += loss.loss;
        sums->clipped += loss.clipped;
        sums->states += 1;
    }
}

int value_pass_learn(ValuePass *pass, const Rollout *rollout, const MicroBatch *micro, ValueSums *sums) {
    const float *values;
    float *gradient = pass->buffers.gradient;
    TRY(forward(&values, pass, micro));
    memset(gradient, 0, (size_t)micro->n_tokens * sizeof *gradient);
    for (int s = 0; s < micro->n_segments; s++) {
        int number = (int)micro->sample_id[s], first = first_state(micro, s, &rollout->answers[number]);
        answer_loss(rollout, number, values + first, gradient + first, sums);
    }
    tape_bind_input(0, pass->gradient, gradient);
    return tape_backward(pass->tape, 0);
}
