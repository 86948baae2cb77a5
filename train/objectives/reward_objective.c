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
    MicroBuffers buffers;
    int32_t *last; /* [capacity] each segment's last token */
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
    if (micro->n_segments != 2 * micro->n_samples)
        FAIL(ERR_FAILED, "a micro-batch of %d pairs has %d answers", micro->n_samples, micro->n_segments);
    TRY(micro_batch_bind(tape, buffer, micro, &self->buffers));
    for (int s = 0; s < micro->n_segments; s++) self->last[s] = micro->segment_start[s + 1] - 1;
    tape_bind_input(buffer, r->last, self->last);
    if (training) tape_bind_input(buffer, r->gradient, self->buffers.gradient);
    return OK;
}

static void add_pair(const Reward *self, ObjectiveSums *sums, double chosen, double rejected, SampleMark mark) {
    objective_add(sums, ACCURACY, chosen > rejected, 1);
    objective_add(sums, MARGIN, chosen - rejected, 1);
    objective_add(sums, MEAN, chosen + rejected, 2);
    objective_add(sums, WITH_STRENGTH, mark.strength != STRENGTH_UNKNOWN, 1);
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
        double chosen = (double)rewards[first], rejected = (double)rewards[second];
        double margin = reward_margin(self->options.margin, micro->marks[s]);
        RewardLoss loss = reward_loss(chosen, rejected, margin, self->options.center_coefficient);
        self->buffers.gradient[first] = (float)(loss.by_chosen / pairs);
        self->buffers.gradient[second] = (float)(loss.by_rejected / pairs);
        objective_add_loss(sums, micro->source[first], loss.value, 1);
        sums->scored += 1;
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
    Text found = {0};
    text_puts(&found,
              "reward.margin is by strength, and none of the step's pairs says how much better its chosen answer "
              "is ('strength': significantly, better, slightly, negligibly): their margin is 0\n");
    objective_tell(base, step, &found);
    text_free(&found);
    self->has_warned = true;
}

static void free_objective(Objective *base) {
    Reward *self = (Reward *)base;
    free(self->last);
    micro_buffers_free(&self->buffers);
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
    self->last = calloc((size_t)capacity + 1, sizeof *self->last);
    *objective = &self->base;
    int rc = self->last ? OK : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    return objective_made(objective, rc == OK ? micro_buffers_new(&self->buffers, capacity, true) : rc);
}
