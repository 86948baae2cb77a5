/* See kto_objective.h. */
#include "train/objectives/kto_objective.h"

#include <math.h>
#include <stdlib.h>

#include "model/core/error.h"
#include "train/objectives/answer_logps.h"
#include "train/objectives/dpo_diagnosis.h"
#include "train/objectives/dpo_objective.h"

typedef struct {
    Objective base;
    KtoOptions options;
    AnswerGraphs graphs;
    double z0; /* of the running step */
    DpoWatch watch;
    bool has_begun; /* the first step is over */
} Kto;

static const char *const metric_names[] = {
#define KTO_METRIC(name, label) label,
    KTO_METRICS
#undef KTO_METRIC
};

static int record(Objective *base, Tape *tape, Llama *model, LlamaRecord how, bool training) {
    return answer_graphs_record(&((Kto *)base)->graphs, tape, model, how, training);
}

static int bind(Objective *base, Tape *tape, int buffer, const MicroBatch *micro, const StepBatch *step,
                bool training) {
    Kto *self = (Kto *)base;
    (void)step;
    if (micro->n_segments != micro->n_samples)
        FAIL(ERR_FAILED, "a micro-batch of %d segments in %d labelled answers", micro->n_segments, micro->n_samples);
    return answer_graphs_bind(&self->graphs, tape, buffer, micro, training);
}

/* ---- the reference point ------------------------------------------------------------------------------------------
 */

enum { MATCHED, MISMATCHED };

static double reference_of(const Kto *self, const MicroBatch *micro, int sample, int which) {
    return (double)self->options.reference->logps[2 * micro->sample[sample] + which];
}

/* Policy and reference are one model as long as no step was made. */
static int check_start(const Kto *self, double logp, double reference) {
    if (!self->options.begins_at_reference || self->has_begun || fabs(logp - reference) <= dpo_start_bound(reference))
        return OK;
    FAIL(
        ERR_REFUSED,
        "the policy begins as its own reference, so that every reward is 0; but an answer has log-probability %.6f and "
        "reference %.6f, and they may differ by %.1e. The reference in the output folder is not this model's; remove "
        "reference.safetensors there, or begin in another output",
        logp, reference, dpo_start_bound(reference));
}

/* Of this rank's mismatched answers: the sum of their log-ratios. */
static int sum_ratios(Kto *self, Tape *tape, const StepBatch *step, double *sum) {
    for (int m = 0; m < step->n_mismatched; m++) {
        const MicroBatch *micro = &step->mismatched[m];
        TRY(answer_graphs_bind(&self->graphs, tape, 0, micro, false));
        TRY(tape_forward(tape, 0));
        const float *logps = tape_value(tape, 0, self->graphs.graph[false].logps);
        for (int s = 0; s < micro->n_samples; s++) {
            double reference = reference_of(self, micro, s, MISMATCHED);
            TRY(check_start(self, (double)logps[s], reference));
            *sum += (double)logps[s] - reference;
        }
    }
    return OK;
}

static int begin_step(Objective *base, Tape *evaluation, const StepBatch *step, Mesh *mesh) {
    Kto *self = (Kto *)base;
    double sum = 0;
    TRY(mesh_agree(mesh, sum_ratios(self, evaluation, step, &sum)));
    TRY(mesh_sum_f64(mesh, &sum, 1));
    self->z0 = fmax(0, sum / (double)step->total_samples);
    return OK;
}

/* ---- the step -----------------------------------------------------------------------------------------------------
 */

static void add_answer(const Kto *self, const AnswerSums *answer, const PairLoss *loss, bool is_good,
                       ObjectiveSums *sums) {
    double point = self->options.loss.beta * self->z0;
    objective_add(sums, is_good ? KTO_REWARDS_CHOSEN : KTO_REWARDS_REJECTED, loss->reward[0], 1);
    objective_add(sums, is_good ? KTO_LOGPS_CHOSEN : KTO_LOGPS_REJECTED, answer->logp, 1);
    objective_add(sums, is_good ? KTO_LOGITS_CHOSEN : KTO_LOGITS_REJECTED, answer->logits, answer->n);
    objective_add(sums, KTO_ACCURACIES, is_good ? loss->reward[0] > point : loss->reward[0] < point, 1);
    objective_add(sums, KTO_KL, self->z0, 1);
    objective_add(sums, KTO_ENTROPY, answer->entropy, answer->n);
    sums->scored += answer->n;
    sums->correct += answer->correct;
}

static int collect(Objective *base, Tape *tape, int buffer, const MicroBatch *micro, const StepBatch *step,
                   bool training, ObjectiveSums *sums) {
    Kto *self = (Kto *)base;
    const AnswerLogps *r = &self->graphs.graph[training];
    for (int s = 0; s < micro->n_samples; s++) {
        bool is_good = micro->marks[s].is_good;
        AnswerSums answer = answer_sums(r, tape, buffer, micro, s);
        double reference = reference_of(self, micro, s, MATCHED);
        if (training) TRY(check_start(self, answer.logp, reference));
        PairLoss loss = labelled_loss(&self->options.loss, answer.logp, reference, is_good, self->z0);
        objective_add_loss(sums, micro->source[s], loss.loss, 1);
        add_answer(self, &answer, &loss, is_good, sums);
        self->graphs.buffers.gradient[s] = (float)(loss.gradient[0] / (double)step->total_samples);
    }
    sums->tokens += micro->n_tokens;
    return OK;
}

static void finish(Objective *base, ObjectiveSums *sums) {
    Kto *self = (Kto *)base;
    self->has_begun = true;
    const double *n = sums->metric_weight;
    if (!(n[KTO_REWARDS_CHOSEN] > 0 && n[KTO_REWARDS_REJECTED] > 0)) return;
    sums->metric_weight[KTO_MARGINS] = 1;
    sums->metric[KTO_MARGINS] = sums->metric[KTO_REWARDS_CHOSEN] / n[KTO_REWARDS_CHOSEN] -
                                sums->metric[KTO_REWARDS_REJECTED] / n[KTO_REWARDS_REJECTED];
}

static void watch(Objective *base, int64_t step, const ObjectiveSums *sums) {
    Kto *self = (Kto *)base;
    Text found = {0};
    kto_watch(&self->watch, sums, &found);
    objective_tell(base, step, &found);
    text_free(&found);
}

static void free_kto(Objective *base) {
    Kto *self = (Kto *)base;
    micro_buffers_free(&self->graphs.buffers);
    free(self);
}

int kto_objective_new(Objective **objective, int capacity, const KtoOptions *options) {
    Kto *self = calloc(1, sizeof *self);
    if (!self) FAIL(ERR_FAILED, "out of memory");
    *self = (Kto){.base = {.name = "kto",
                           .metrics = metric_names,
                           .n_metrics = N_KTO_METRICS,
                           .headline = KTO_ACCURACIES,
                           .record = record,
                           .begin_step = begin_step,
                           .bind = bind,
                           .collect = collect,
                           .finish = finish,
                           .watch = watch,
                           .free = free_kto},
                  .options = *options,
                  .watch.figures.beta = options->loss.beta};
    *objective = &self->base;
    return objective_made(objective, micro_buffers_new(&self->graphs.buffers, capacity, true));
}
