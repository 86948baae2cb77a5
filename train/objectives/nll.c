/* L = Σ_t w_t·(-log p(target_t)) / Σ w. dL/dlogprob_t = -w_t/Σw is known before the forward pass, so the head takes its
 * gradients while the logits are in cache. */
#include <stdlib.h>

#include "model/core/error.h"
#include "train/objectives/micro_batch.h"
#include "train/objectives/objective.h"

typedef struct {
    Tensor *row_input; /* training: dL/dlogprob; evaluation: the weights, as the head's mask */
    HeadOutputs out;
} Recorded;

typedef struct {
    Objective base;
    Recorded training, evaluation;
    MicroBuffers buffers;
    bool entropy; /* is asked for */
} Nll;

static Recorded *recorded(Nll *self, bool training) {
    return training ? &self->training : &self->evaluation;
}

static int nll_record(Objective *base, Tape *tape, Llama *model, LlamaRecord record, bool training) {
    Recorded *r = recorded((Nll *)base, training);
    r->row_input = tape_input(tape, ROWS_TOKENS, 1, DTYPE_F32, false);
    HeadOptions head = {.top1 = true, .entropy = ((Nll *)base)->entropy};
    if (training)
        head.known_gradient = r->row_input;
    else
        head.mask = r->row_input;
    r->out = llama_record(tape, model, record, head);
    tape_keep(r->out.logprob);
    tape_keep(r->out.top1);
    if (head.entropy) tape_keep(r->out.entropy);
    return OK; /* a recording error is tape_plan's to tell */
}

static int nll_bind(Objective *base, Tape *tape, int buffer, const MicroBatch *micro, const StepBatch *step,
                    bool training) {
    Nll *self = (Nll *)base;
    float *gradient = self->buffers.gradient;
    TRY(micro_batch_bind(tape, buffer, micro, &self->buffers));
    for (int t = 0; training && t < micro->n_tokens; t++)
        gradient[t] = (float)(-(double)micro->weights[t] / step->total_weight);
    tape_bind_input(buffer, recorded(self, training)->row_input, training ? gradient : micro->weights);
    return OK;
}

static int nll_collect(Objective *base, Tape *tape, int buffer, const MicroBatch *micro, const StepBatch *step,
                       bool training, ObjectiveSums *sums) {
    (void)step;
    const Recorded *r = recorded((Nll *)base, training);
    const float *logprob = tape_value(tape, buffer, r->out.logprob);
    const int32_t *top1 = tape_value(tape, buffer, r->out.top1);
    const float *entropy = r->out.entropy ? tape_value(tape, buffer, r->out.entropy) : NULL;
    for (int s = 0; s < micro->n_segments; s++) {
        for (int t = micro->segment_start[s]; t < micro->segment_start[s + 1]; t++) {
            double weight = (double)micro->weights[t];
            sums->tokens += 1;
            if (weight == 0) continue;
            objective_add_loss(sums, micro->source[s], -(weight * (double)logprob[t]), weight);
            sums->scored += 1;
            sums->correct += top1[t] == micro->targets[t];
            if (entropy) sums->entropy += (double)entropy[t];
        }
    }
    return OK;
}

static void nll_free(Objective *base) {
    Nll *self = (Nll *)base;
    micro_buffers_free(&self->buffers);
    free(self);
}

static int new_objective(Objective **objective, const char *name, int capacity, bool entropy) {
    Nll *self = calloc(1, sizeof *self);
    if (!self) FAIL(ERR_FAILED, "out of memory");
    self->base =
        (Objective){.name = name, .record = nll_record, .bind = nll_bind, .collect = nll_collect, .free = nll_free};
    self->entropy = entropy;
    *objective = &self->base;
    return objective_made(objective, micro_buffers_new(&self->buffers, capacity, true));
}

int nll_objective_new(Objective **objective, int capacity) {
    return new_objective(objective, "nll", capacity, false);
}

int sft_objective_new(Objective **objective, int capacity) {
    return new_objective(objective, "sft", capacity, true);
}
