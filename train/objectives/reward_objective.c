/* The gradient by each reward is known once the rewards are, so the graph ends with them: loss and gradient are
 * computed in fp64 between the forward and the backward pass. */
#include "train/objectives/reward_objective.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "train/objectives/micro_batch.h"

typedef struct {
    Tensor *last, *rewards, *gradient; /* int32 input [S, 1], fp32 [S, rows], such an input when training */
} Recorded;

/* Of all pairs; then, where rows have names, the same of each row's with LOSS in place of the last. */
enum { ACCURACY, MARGIN, MEAN, LEAST, MOST, WITH_STRENGTH, N_METRICS, LOSS = WITH_STRENGTH };
enum { MOST_METRICS = N_METRICS * (1 + HF_MAX_LABELS), METRIC_NAME = HF_LABEL_SIZE + 24 };
_Static_assert((int)MOST_METRICS <= (int)OBJECTIVE_MAX_METRICS, "every score's metrics have a place");
static const char *const metric_names[N_METRICS] = {
    [ACCURACY] = "accuracy", [MARGIN] = "margin",   [MEAN] = "mean_reward",
    [LEAST] = "min_reward",  [MOST] = "max_reward", [LOSS] = "objective_loss",
};

typedef struct {
    Objective base;
    RewardOptions options;
    Recorded training, evaluation;
    MicroBuffers buffers;
    int32_t *last;   /* [capacity] each segment's last token */
    float *gradient; /* [capacity, rows] of each segment's rewards */
    const char *metrics[MOST_METRICS];
    char names[MOST_METRICS][METRIC_NAME];
    bool has_warned;
} Reward;

static Recorded *recorded(Reward *self, bool training) {
    return training ? &self->training : &self->evaluation;
}

static int record(Objective *base, Tape *tape, Llama *model, LlamaRecord how, bool training) {
    Recorded *r = recorded((Reward *)base, training);
    r->last = tape_input(tape, ROWS_SEGMENTS, 1, DTYPE_I32, false);
    r->rewards = llama_score(tape, model, how, r->last);
    tape_keep(r->rewards);
    if (!training) return OK;
    r->gradient = tape_input(tape, ROWS_SEGMENTS, ((const Reward *)base)->options.labels.n, DTYPE_F32, false);
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
    if (training) tape_bind_input(buffer, r->gradient, self->gradient);
    return OK;
}

static int metric_of(int objective, int metric) {
    return N_METRICS * (1 + objective) + metric;
}

/* What of all pairs is told, and of each row's: `first` is ACCURACY's place. */
static void add_figures(const Reward *self, ObjectiveSums *sums, int first, double chosen, double rejected) {
    objective_add(sums, first + ACCURACY, chosen > rejected, 1);
    objective_add(sums, first + MARGIN, chosen - rejected, 1);
    objective_add(sums, first + MEAN, chosen + rejected, 2);
    for (int i = 0; i < 2; i++) {
        objective_extreme(&self->base, sums, first + LEAST, i ? rejected : chosen);
        objective_extreme(&self->base, sums, first + MOST, i ? rejected : chosen);
    }
}

static void add_pair(const Reward *self, ObjectiveSums *sums, double chosen, double rejected, double loss,
                     SampleMark mark) {
    add_figures(self, sums, 0, chosen, rejected);
    objective_add(sums, WITH_STRENGTH, mark.strength != STRENGTH_UNKNOWN, 1);
    if (self->base.n_metrics == N_METRICS) return;
    add_figures(self, sums, metric_of(mark.objective, 0), chosen, rejected);
    objective_add(sums, metric_of(mark.objective, LOSS), loss, 1);
}

static int collect(Objective *base, Tape *tape, int buffer, const MicroBatch *micro, const StepBatch *step,
                   bool training, ObjectiveSums *sums) {
    Reward *self = (Reward *)base;
    const float *rewards = tape_value(tape, buffer, recorded(self, training)->rewards);
    size_t rows = (size_t)self->options.labels.n;
    double pairs = (double)step->total_samples;
    memset(self->gradient, 0, (size_t)micro->n_segments * rows * sizeof *self->gradient);
    for (int s = 0; s < micro->n_samples; s++) {
        SampleMark mark = micro->marks[s];
        if (mark.objective >= rows)
            FAIL(ERR_FAILED, "a pair is about objective %u, and the head has %zu rows", mark.objective, rows);
        size_t first = 2 * (size_t)s * rows + mark.objective, second = first + rows;
        double chosen = (double)rewards[first], rejected = (double)rewards[second];
        double margin = reward_margin(self->options.margin, mark);
        RewardLoss loss = reward_loss(chosen, rejected, margin, self->options.center_coefficient);
        self->gradient[first] = (float)(loss.by_chosen / pairs);
        self->gradient[second] = (float)(loss.by_rejected / pairs);
        objective_add_loss(sums, micro->source[2 * (size_t)s], loss.value, 1);
        sums->scored += 1;
        add_pair(self, sums, chosen, rejected, loss.value, mark);
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
    micro_buffers_free(&self->buffers);
    free(self);
}

/* The row of a model that has but one, and no name for it, is not told apart. */
static void name_metrics(Reward *self) {
    const HfLabels *labels = &self->options.labels;
    for (int m = 0; m < WITH_STRENGTH; m++) self->metrics[m] = metric_names[m]; /* that is for watch alone */
    self->base.n_metrics = N_METRICS;
    self->base.least = UINT64_C(1) << LEAST;
    self->base.most = UINT64_C(1) << MOST;
    for (int i = 0; i < labels->n && !(labels->n == 1 && hf_labels_are_unnamed(labels)); i++) {
        for (int m = 0; m < N_METRICS; m++) {
            char *name = self->names[metric_of(i, m)];
            snprintf(name, METRIC_NAME, "%s/%s", metric_names[m], labels->names[i]);
            self->metrics[metric_of(i, m)] = name;
        }
        self->base.n_metrics += N_METRICS;
        self->base.least |= UINT64_C(1) << metric_of(i, LEAST);
        self->base.most |= UINT64_C(1) << metric_of(i, MOST);
    }
    self->base.metrics = self->metrics;
}

static int reserve(Reward *self, int capacity) {
    size_t n = (size_t)capacity + 1;
    self->last = calloc(n, sizeof *self->last);
    self->gradient = calloc(n * (size_t)self->options.labels.n, sizeof *self->gradient);
    if (!self->last || !self->gradient) FAIL(ERR_FAILED, "out of memory");
    return micro_buffers_new(&self->buffers, capacity, false);
}

int reward_objective_new(Objective **objective, int capacity, RewardOptions options) {
    Reward *self = calloc(1, sizeof *self);
    if (!self) FAIL(ERR_FAILED, "out of memory");
    self->base = (Objective){.name = "reward",
                             .no_tokens = true,
                             .headline = ACCURACY,
                             .record = record,
                             .bind = bind,
                             .collect = collect,
                             .watch = watch,
                             .free = free_objective};
    self->options = options;
    name_metrics(self);
    *objective = &self->base;
    return objective_made(objective, reserve(self, capacity));
}
