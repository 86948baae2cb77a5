/* See dpo_objective.h. The loss is a function of the answers' log-probabilities alone, and these are sums over tokens:
 * so its gradient is one number an answer, known after the forward pass, and seeds backward there. */
#include "train/objectives/dpo_objective.h"

#include <math.h>
#include <stdlib.h>

#include "model/core/error.h"
#include "train/objectives/answer_logps.h"
#include "train/objectives/dpo_diagnosis.h"

enum { CHOSEN, REJECTED };

typedef struct {
    Objective base;
    DpoOptions options;
    AnswerGraphs graphs;
    bool has_begun; /* the first step is over */
    DpoWatch watch;
} Dpo;

static const char *const metric_names[] = {
#define DPO_METRIC(name, label) label,
    DPO_METRICS
#undef DPO_METRIC
};
_Static_assert(sizeof metric_names / sizeof *metric_names <= OBJECTIVE_MAX_METRICS, "too many metrics");

static int record(Objective *base, Tape *tape, Llama *model, LlamaRecord how, bool training) {
    return answer_graphs_record(&((Dpo *)base)->graphs, tape, model, how, training);
}

static int bind(Objective *base, Tape *tape, int buffer, const MicroBatch *micro, const StepBatch *step,
                bool training) {
    Dpo *self = (Dpo *)base;
    (void)step;
    if (micro->n_segments != 2 * micro->n_samples)
        FAIL(ERR_FAILED, "a micro-batch of %d segments in %d pairs", micro->n_segments, micro->n_samples);
    return answer_graphs_bind(&self->graphs, tape, buffer, micro, training);
}

/* ---- sums ---------------------------------------------------------------------------------------------------------
 */

static void add_answer(const AnswerSums *answer, int side, ObjectiveSums *sums) {
    objective_add(sums, side == CHOSEN ? DPO_LOGITS_CHOSEN : DPO_LOGITS_REJECTED, answer->logits, answer->n);
    objective_add(sums, DPO_ENTROPY, answer->entropy, answer->n);
    if (side == REJECTED) return;
    sums->scored += answer->n;
    sums->correct += answer->correct;
    objective_add(sums, DPO_NLL, -answer->logp, answer->length);
}

static void add_pair(const PreferenceLoss *options, const PairScores *scores, const PairLoss *loss, SampleMark mark,
                     ObjectiveSums *sums) {
    double margin = loss->reward[CHOSEN] - loss->reward[REJECTED], right = margin > 0;
    double difference = scores->length[CHOSEN] - scores->length[REJECTED];
    double unit[2] = {1, 1}; /* TRL's CPOTrainer tells SimPO's log-probabilities as means over tokens */
    for (int side = 0; side < 2 && options->loss == DPO_SIMPO; side++) unit[side] = 1 / scores->length[side];
    objective_add(sums, DPO_REWARDS_CHOSEN, loss->reward[CHOSEN], 1);
    objective_add(sums, DPO_REWARDS_REJECTED, loss->reward[REJECTED], 1);
    objective_add(sums, DPO_ACCURACIES, right, 1);
    objective_add(sums, DPO_MARGINS, margin, 1);
    objective_add(sums, DPO_LOGPS_CHOSEN, scores->logp[CHOSEN] * unit[CHOSEN], 1);
    objective_add(sums, DPO_LOGPS_REJECTED, scores->logp[REJECTED] * unit[REJECTED], 1);
    objective_add(sums, (DpoMetric)(DPO_ACCURACIES_UNKNOWN + mark.strength % N_STRENGTHS), right, 1);
    objective_add(sums, DPO_SUM_MM, margin * margin, 1);
    objective_add(sums, DPO_SUM_D, difference, 1);
    objective_add(sums, DPO_SUM_DD, difference * difference, 1);
    objective_add(sums, DPO_SUM_MD, margin * difference, 1);
}

/* ---- the step -----------------------------------------------------------------------------------------------------
 */

double dpo_start_bound(double reference) {
    return 1e-5 * (1 + fabs(reference));
}

static int check_start(const Dpo *self, const PairScores *scores, uint64_t id) {
    for (int side = 0; side < 2; side++) {
        double ratio = scores->logp[side] - scores->reference[side], bound = dpo_start_bound(scores->reference[side]);
        if (!(fabs(ratio) <= bound))
            FAIL(ERR_REFUSED,
                 "the policy begins as its own reference, so that every reward is 0 and the loss %.6f; but the %s "
                 "answer of sample %llu:%llu has log-probability %.6f and reference %.6f, and they may differ by %.1e. "
                 "The reference in the output folder is not this model's; remove reference.safetensors there, or begin "
                 "in another output",
                 pair_loss(&self->options.loss, &(PairScores){.length = {1, 1}}).loss,
                 side == CHOSEN ? "chosen" : "rejected", (unsigned long long)(id >> 40),
                 (unsigned long long)(id & ((UINT64_C(1) << 40) - 1)), scores->logp[side], scores->reference[side],
                 bound);
    }
    return OK;
}

/* The scores of a pair, and its sums over tokens. */
static PairScores score(const Dpo *self, const AnswerSums answers[2], const MicroBatch *micro, int pair,
                        ObjectiveSums *sums) {
    const Reference *reference = self->options.reference;
    PairScores scores = {.logp = {0}};
    for (int side = 0; side < 2; side++) {
        scores.logp[side] = answers[side].logp;
        scores.length[side] = answers[side].length;
        scores.reference[side] = reference ? (double)reference->logps[2 * micro->sample[pair] + side] : 0;
        add_answer(&answers[side], side, sums);
    }
    return scores;
}

static int collect_pair(Dpo *self, const AnswerSums answers[2], const MicroBatch *micro, int pair,
                        const StepBatch *step, ObjectiveSums *sums) {
    const PreferenceLoss *options = &self->options.loss;
    PairScores scores = score(self, answers, micro, pair, sums);
    if (self->options.begins_at_reference && !self->has_begun) TRY(check_start(self, &scores, micro->sample_id[pair]));
    PairLoss loss = pair_loss(options, &scores);
    int chosen = 2 * pair;
    objective_add_loss(sums, micro->source[chosen], loss.loss, 1);
    add_pair(options, &scores, &loss, micro->marks[pair], sums);
    double n = (double)step->total_samples;
    float *gradient = self->graphs.buffers.gradient;
    gradient[chosen] = (float)(loss.gradient[CHOSEN] / n - self->options.nll / step->first_weight);
    gradient[chosen + 1] = (float)(loss.gradient[REJECTED] / n);
    return OK;
}

static int collect(Objective *base, Tape *tape, int buffer, const MicroBatch *micro, const StepBatch *step,
                   bool training, ObjectiveSums *sums) {
    Dpo *self = (Dpo *)base;
    const AnswerLogps *recorded = &self->graphs.graph[training];
    for (int pair = 0; pair < micro->n_samples; pair++) {
        AnswerSums answers[2];
        for (int side = 0; side < 2; side++)
            answers[side] = answer_sums(recorded, tape, buffer, micro, 2 * pair + side);
        TRY(collect_pair(self, answers, micro, pair, step, sums));
    }
    sums->tokens += micro->n_tokens;
    return OK;
}

/* The likelihood's part of the loss: a mean over tokens, where the rest is one over pairs. */
static void finish(Objective *base, ObjectiveSums *sums) {
    Dpo *self = (Dpo *)base;
    self->has_begun = true;
    if (sums->metric_weight[DPO_NLL] > 0)
        sums->loss += self->options.nll * sums->weight * sums->metric[DPO_NLL] / sums->metric_weight[DPO_NLL];
}

static void watch(Objective *base, int64_t step, const ObjectiveSums *sums) {
    Dpo *self = (Dpo *)base;
    Text found = {0};
    dpo_watch(&self->watch, sums, &found);
    objective_tell(base, step, &found);
    text_free(&found);
}

static void free_dpo(Objective *base) {
    Dpo *self = (Dpo *)base;
    micro_buffers_free(&self->graphs.buffers);
    free(self);
}

int dpo_objective_new(Objective **objective, int capacity, const DpoOptions *options) {
    Dpo *self = calloc(1, sizeof *self);
    if (!self) FAIL(ERR_FAILED, "out of memory");
    *self = (Dpo){.base = {.name = "dpo",
                           .metrics = metric_names,
                           .n_metrics = N_DPO_METRICS,
                           .headline = DPO_ACCURACIES,
                           .record = record,
                           .bind = bind,
                           .collect = collect,
                           .finish = finish,
                           .watch = watch,
                           .free = free_dpo},
                  .options = *options,
                  .watch.figures = {
                      .beta = options->loss.beta, .nll = options->nll, .has_reference = options->reference != NULL}};
    *objective = &self->base;
    return objective_made(objective, micro_buffers_new(&self->graphs.buffers, capacity, true));
}
