/* The gradient by each reward is known once the rewards are, so the graph ends with them: loss and gradient are
 * computed in fp64 between the forward and the backward pass. */
#include "train/objectives/reward_objective.h"

#include <stdlib.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "train/objectives/micro_batch.h"

typedef struct {
    Tensor *last, *rewards, *gradient; /* int32 and fp32 inputs [S, 1]; the latter when training */
} Recorded;

typedef struct {
    Objective base;
    RewardOptions options;
    Recorded training, evaluation;
    int32_t *last;   /* [capacity] each segment's last token */
    float *gradient; /* [capacity] */
    uint32_t *segment_ids;
    int capacity;
    bool has_warned;
} Reward;

enum { ACCURACY, MARGIN, MEAN, LEAST, MOST, WITH_STRENGTH, N_METRICS };
static const char *const metric_names[N_METRICS] = {
    [ACCURACY] = "accuracy", [MARGIN] = "margin",   [MEAN] = "mean_reward",
    [LEAST] = "min_reward",  [MOST] = "max_reward", /* WITH_STRENGTH is for watch alone */
};

static Recorded *recorded(Reward *self, bool training) {
    return training ? &self->training : &self->evaluation;
}

static int record(Objective *base, Tape *tape, Llama *model, LlamaRecord how, bool training) {
    Recorded *r = recorded((Reward *)base, training);
    r->last = tape_input(tape, ROWS_SEGMENTS, 1, DTYPE_I32, false);
    r->rewards = llama_score(tape, model, how, r->last);
    tape_keep(r->rewards);
    if (!training) return OK;
    r->gradient = tape_input(tape, ROWS_SEGMENTS, 1, DTYPE_F32, false);
    tape_seed(tape, r->rewards, r->gradient);
    return OK; /* a recording error is tape_plan's to tell */
}

static int bind(Objective *base, Tape *tape, int buffer, const MicroBatch *micro, const StepBatch *step,
                bool training) {
    Reward *self = (Reward *)base;
    Recorded *r = recorded(self, training);
    (void)step;
    if (micro->n_tokens > self->capacity)
        FAIL(ERR_FAILED, "a micro-batch of %d tokens; the plan holds %d", micro->n_tokens, self->capacity);
    if (micro->n_segments != 2 * micro->n_samples)
        FAIL(ERR_FAILED, "a micro-batch of %d pairs has %d answers", micro->n_samples, micro->n_segments);
    TapeBatch batch = micro_batch_tape(micro, self->segment_ids);
    TRY(tape_bind(tape, buffer, &batch));
    for (int s = 0; s < micro->n_segments; s++) self->last[s] = micro->segment_start[s + 1] - 1;
    tape_bind_input(buffer, r->last, self->last);
    if (training) tape_bind_input(buffer, r->gradient, self->gradient);
    return OK;
}

static void add(ObjectiveSums *sums, int metric, double value, double weight) {
    sums->metric[metric] += value;
    sums->metric_weight[metric] += weight;
}

static void add_pair(const Reward *self, ObjectiveSums *sums, double chosen, double rejected, SampleMark mark) {
    add(sums, ACCURACY, chosen > rejected, 1);
    add(sums, MARGIN, chosen - rejected, 1);
    add(sums, MEAN, chosen + rejected, 2);
    add(sums, WITH_STRENGTH, mark.strength != STRENGTH_UNKNOWN, 1);
    for (int i = 0; i < 2; i++) {
        objective_extreme(&self->base, sums, LEAST, i ? rejected : chosen);
        objective_extreme(&self->base, sums, MOST, i ? rejected : chosen);
    }
}

static int collect(Objective *base, Tape *tape, int buffer, const MicroBatch *micro, const StepBatch *step,
                   bool training, ObjectiveSums *sums) {
    Reward *self = (Reward *)base;
    const float *rewards = tape_value(tape, buffer, recorded(self, training)->rewards);
    double pairs = (double)step->total_samples;
    for (int s = 0; s < micro->n_samples; s++) {
        size_t first = 2 * (size_t)s, second = first + 1;
        int source = micro->source[first] < OBJECTIVE_MAX_SOURCES ? micro->source[first] : OBJECTIVE_MAX_SOURCES - 1;
        double chosen = (double)rewards[first], rejected = (double)rewards[second];
        double margin = reward_margin(self->options.margin, micro->marks[s]);
        RewardLoss loss = reward_loss(chosen, rejected, margin, self->options.center_coefficient);
        self->gradient[first] = (float)(loss.by_chosen / pairs);
        self->gradient[second] = (float)(loss.by_rejected / pairs);
        sums->loss += loss.value;
        sums->weight += 1;
        sums->scored += 1;
        sums->source_loss[source] += loss.value;
        sums->source_weight[source] += 1;
        add_pair(self, sums, chosen, rejected, micro->marks[s]);
    }
    sums->tokens += micro->n_tokens;
    return OK;
}

/* A table of margins by strength does nothing where no record has one. */
static void watch(Objective *base, int64_t step, const ObjectiveSums *sums) {
    Reward *self = (Reward *)base;
    bool by_strength = self->options.margin == MARGIN_LLAMA2_SMALL || self->options.margin == MARGIN_LLAMA2_LARGE;
    if (!by_strength || self->has_warned || sums->scored == 0 || sums->metric[WITH_STRENGTH] > 0) return;
    log_warning("step %lld: reward.margin is by strength, and none of the step's pairs says how much better its chosen "
                "answer is ('strength': significantly, better, slightly, negligibly): their margin is 0",
                (long long)step);
    self->has_warned = true;
}

static void free_objective(Objective *base) {
    Reward *self = (Reward *)base;
    free(self->last);
    free(self->gradient);
    free(self->segment_ids);
    free(self);
}

int reward_objective_new(Objective **objective, int capacity, RewardOptions options) {
    Reward *self = calloc(1, sizeof *self);
    if (!self) FAIL(ERR_FAILED, "out of memory");
    self->base = (Objective){.name = "reward",
                             .no_tokens = true,
                             .metrics = metric_names,
                             .n_metrics = N_METRICS,
                             .headline = ACCURACY,
                             .least = 1u << LEAST,
                             .most = 1u << MOST,
                             .record = record,
                             .bind = bind,
                             .collect = collect,
                             .watch = watch,
                             .free = free_objective};
    self->options = options;
    self->capacity = capacity;
    self->last = calloc((size_t)capacity + 1, sizeof *self->last);
    self->gradient = calloc((size_t)capacity + 1, sizeof *self->gradient);
    self->segment_ids = calloc((size_t)capacity + 1, sizeof *self->segment_ids);
    if (!self->last || !self->gradient || !self->segment_ids) {
        free_objective(&self->base);
        FAIL(ERR_FAILED, "out of memory");
    }
    *objective = &self->base;
    return OK;
}
