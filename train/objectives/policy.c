/* See policy.h. */
#include "train/objectives/policy.h"

#include <math.h>
#include <stdlib.h>

#include "eval/correlation.h"
#include "model/core/error.h"
#include "train/objectives/micro_batch.h"
#include "train/objectives/policy_loss.h"
#include "train/objectives/policy_watch.h"
#include "train/objectives/value.h"

typedef enum {
    /* of the update, Σ over tokens (or answers, where the ratio is an answer's) */
    METRIC_KL,
    METRIC_LOW,
    METRIC_HIGH,
    METRIC_REGION,
    METRIC_LOWEST,
    METRIC_HIGHEST,
    METRIC_RATIO,
    /* of the rollout, told with its first update */
    METRIC_REWARD,
    METRIC_REWARD_STD,
    METRIC_EQUAL,
    METRIC_LENGTH,
    METRIC_SHORTEST,
    METRIC_LONGEST,
    METRIC_CUT_OFF,
    METRIC_ENDED_LENGTH,
    METRIC_ENDED_SHORTEST,
    METRIC_ENDED_LONGEST,
    METRIC_SUM_KL,
    METRIC_SUM_ENTROPY,
    METRIC_DISTANCE,
    METRIC_LARGEST_DISTANCE,
    /* PPO's, by the names of TRL's PPOTrainer: of the update */
    METRIC_APPROX_KL,
    METRIC_CLIPPED,
    METRIC_POLICY_LOSS,
    METRIC_POLICY_ENTROPY,
    METRIC_VALUE_LOSS,
    METRIC_VALUE_CLIPPED,
    /* of the rollout, with its first update */
    METRIC_SCORES,
    METRIC_PENALTY,
    METRIC_RLHF_REWARD,
    METRIC_ENDS,
    METRIC_EXPLAINED,
    METRIC_RATIO_VARIANCE, /* with its last */
    N_METRICS
} PolicyMetric;

static const char *const metric_names[N_METRICS] = {
    [METRIC_KL] = "kl",
    [METRIC_LOW] = "clip_ratio/low_mean",
    [METRIC_HIGH] = "clip_ratio/high_mean",
    [METRIC_REGION] = "clip_ratio/region_mean",
    [METRIC_LOWEST] = "clip_ratio/low_min",
    [METRIC_HIGHEST] = "clip_ratio/high_max",
    [METRIC_RATIO] = "val/ratio",
    [METRIC_REWARD] = "reward",
    [METRIC_REWARD_STD] = "reward_std",
    [METRIC_EQUAL] = "frac_reward_zero_std",
    [METRIC_LENGTH] = "completions/mean_length",
    [METRIC_SHORTEST] = "completions/min_length",
    [METRIC_LONGEST] = "completions/max_length",
    [METRIC_CUT_OFF] = "completions/clipped_ratio",
    [METRIC_ENDED_LENGTH] = "completions/mean_terminated_length",
    [METRIC_ENDED_SHORTEST] = "completions/min_terminated_length",
    [METRIC_ENDED_LONGEST] = "completions/max_terminated_length",
    [METRIC_SUM_KL] = "objective/kl",
    [METRIC_SUM_ENTROPY] = "objective/entropy",
    [METRIC_DISTANCE] = "sampling/sampling_logp_difference/mean",
    [METRIC_LARGEST_DISTANCE] = "sampling/sampling_logp_difference/max",
    [METRIC_APPROX_KL] = "policy/approxkl_avg",
    [METRIC_CLIPPED] = "policy/clipfrac_avg",
    [METRIC_POLICY_LOSS] = "loss/policy_avg",
    [METRIC_POLICY_ENTROPY] = "policy/entropy_avg",
    [METRIC_VALUE_LOSS] = "loss/value_avg",
    [METRIC_VALUE_CLIPPED] = "val/clipfrac_avg",
    [METRIC_SCORES] = "objective/scores",
    [METRIC_PENALTY] = "objective/non_score_reward",
    [METRIC_RLHF_REWARD] = "objective/rlhf_reward",
    [METRIC_ENDS] = "val/num_eos_tokens",
    [METRIC_EXPLAINED] = "val/var_explained",
    [METRIC_RATIO_VARIANCE] = "val/ratio_var",
};

typedef struct {
    Objective base;
    Rollout *rollout;
    Tensor *mask[2], *gradient; /* by `training` */
    HeadOutputs out[2];
    MicroBuffers buffers;
    PolicyWatch watch;
    Llama *value; /* PPO's; NULL: none */
    ValuePass *value_pass;
    double ratios, ratio_squares; /* over the rollout's updates: of each one's mean ratio */
} Policy;

static int record_value(Policy *self, const Tape *tape, Recompute recompute) {
    const TapeOptions *options = tape_options(tape);
    if (!self->value) return OK;
    return value_pass_new(&self->value_pass, self->value,
                          (ValuePassOptions){.capacity = options->capacity,
                                             .precision = options->dtype,
                                             .memory = options->memory,
                                             .training = true,
                                             .recompute = recompute});
}

static int policy_record(Objective *base, Tape *tape, Llama *model, LlamaRecord record, bool training) {
    Policy *self = (Policy *)base;
    Tensor *mask = self->mask[training] = tape_input(tape, ROWS_TOKENS, 1, DTYPE_F32, false);
    HeadOptions head = {.logit_scale = (float)(1 / self->rollout->options.temperature), .mask = mask, .entropy = true};
    HeadOutputs out = self->out[training] = llama_record(tape, model, record, head);
    if (!out.logprob) return OK; /* a recording error is tape_plan's to tell */
    tape_keep(out.logprob);
    tape_keep(out.entropy);
    if (!training) return OK;
    self->gradient = tape_input(tape, ROWS_TOKENS, 1, DTYPE_F32, false);
    tape_seed(tape, out.logprob, self->gradient);
    return record_value(self, tape, record.recompute);
}

static int policy_bind(Objective *base, Tape *tape, int buffer, const MicroBatch *micro, const StepBatch *step,
                       bool training) {
    (void)step;
    Policy *self = (Policy *)base;
    TRY(micro_batch_bind(tape, buffer, micro, &self->buffers));
    tape_bind_input(buffer, self->mask[training], micro->weights);
    if (training) tape_bind_input(buffer, self->gradient, self->buffers.gradient);
    return OK;
}

/* ---- the value model ---- */

/* Its loss is a mean over states, the policy's over tokens: as a part of the step's sum it is weighed by their ratio.
 */
static int policy_companion(Objective *base, const MicroBatch *micro, const StepBatch *step, ObjectiveSums *sums) {
    Policy *self = (Policy *)base;
    const Rollout *rollout = self->rollout;
    ValueSums value = {0};
    TRY(value_pass_learn(self->value_pass, rollout, micro, &value));
    sums->loss += rollout->options.value_weight * value.loss * step->total_weight / rollout->minibatch_states;
    objective_add(sums, METRIC_VALUE_LOSS, value.loss, value.states);
    objective_add(sums, METRIC_VALUE_CLIPPED, value.clipped, value.states);
    return OK;
}

/* ---- the loss of one answer ---- */

/* Before the first update of a rollout the ratio is 1: what is trained is what its log-probabilities are of. */
static int check_ratio(const Rollout *rollout, int number, const float *logprob) {
    const Answer *answer = &rollout->answers[number];
    double most = rollout->options.most_distance;
    if (rollout->update != 0 || most == 0 || !answer->lse) return OK;
    for (int t = 0; t < answer_length(answer); t++) {
        double distance = fabs((double)logprob[t] - (double)answer->logprob[t]);
        if (distance > most * fmax(1, fabs((double)answer->lse[t])))
            FAIL(ERR_FAILED,
                 "rollout %lld, answer %d, token %d: before the first update its ratio is %.9g and not 1: the model "
                 "that is trained is not the one whose log-probabilities were taken",
                 (long long)rollout->number, number, t, exp((double)logprob[t] - (double)answer->logprob[t]));
    }
    return OK;
}

/* What an answer's tokens have: arrays of its length. */
typedef struct {
    const Answer *answer;
    const float *logprob; /* now */
    float *gradient;      /* dL/dlogprob, out */
    double scale;         /* 1 / the step's total weight */
    int number, n;
} Part;

static void count_ratio(ObjectiveSums *sums, const PolicyLoss *p) {
    objective_add(sums, METRIC_LOW, p->low, 1);
    objective_add(sums, METRIC_HIGH, p->high, 1);
    objective_add(sums, METRIC_REGION, p->low || p->high, 1);
    objective_add(sums, METRIC_RATIO, p->ratio, 1);
}

static void count_ppo(ObjectiveSums *sums, const PolicyLoss *p, double log_ratio) {
    objective_add(sums, METRIC_APPROX_KL, 0.5 * log_ratio * log_ratio, 1);
    objective_add(sums, METRIC_CLIPPED, p->low || p->high, 1);
    objective_add(sums, METRIC_POLICY_LOSS, p->loss, 1);
    objective_add(sums, METRIC_RATIO, p->ratio, 1);
}

/* Every token has its ratio and its advantage (PPO); the KL penalty is in the reward. */
static void ppo_losses(const Rollout *rollout, const Part *part, ObjectiveSums *sums) {
    const PolicyOptions *options = &rollout->options;
    const Answer *answer = part->answer;
    for (int t = 0; t < part->n; t++) {
        double log_ratio = (double)part->logprob[t] - (double)answer->logprob[t];
        PolicyLoss p = policy_loss(log_ratio, answer->advantages[t], options->epsilon_low, options->epsilon_high);
        sums->loss += p.loss;
        part->gradient[t] = (float)(p.gradient * part->scale);
        count_ppo(sums, &p, log_ratio);
    }
}

/* Every token has its ratio (GRPO). */
static void token_losses(Rollout *rollout, const Part *part, ObjectiveSums *sums) {
    const PolicyOptions *options = &rollout->options;
    const Answer *answer = part->answer;
    double weight = rollout_token_weight(rollout, part->number), low = 0, high = 0;
    for (int t = 0; t < part->n; t++) {
        double logprob = (double)part->logprob[t];
        PolicyLoss p = policy_loss(logprob - (double)answer->logprob[t], answer->advantage, options->epsilon_low,
                                   options->epsilon_high);
        double loss = p.loss, gradient = p.gradient;
        if (answer->reference) {
            double reference = (double)answer->reference[t];
            KlLoss kl = options->weigh_kl ? kl_loss_weighed(logprob, reference, p.ratio) : kl_loss(logprob, reference);
            loss += options->beta * kl.loss;
            gradient += options->beta * kl.gradient;
            objective_add(sums, METRIC_KL, kl.loss, 1);
        }
        sums->loss += weight * loss;
        part->gradient[t] = (float)(weight * gradient * part->scale);
        count_ratio(sums, &p);
        low += p.low;
        high += p.high;
    }
    rollout->clipped_low[part->number] = low / part->n;
    rollout->clipped_high[part->number] = high / part->n;
}

/* The answer has one: that of its whole probability (RLOO). */
static void answer_loss(Rollout *rollout, const Part *part, ObjectiveSums *sums) {
    const PolicyOptions *options = &rollout->options;
    const Answer *answer = part->answer;
    double log_ratio = 0;
    for (int t = 0; t < part->n; t++) log_ratio += (double)part->logprob[t] - (double)answer->logprob[t];
    PolicyLoss p = policy_loss(log_ratio, answer->advantage, options->epsilon_low, options->epsilon_high);
    for (int t = 0; t < part->n; t++) part->gradient[t] = (float)(p.gradient * part->scale);
    sums->loss += p.loss;
    count_ratio(sums, &p);
    rollout->clipped_low[part->number] = p.low;
    rollout->clipped_high[part->number] = p.high;
}

static int policy_collect(Objective *base, Tape *tape, int buffer, const MicroBatch *micro, const StepBatch *step,
                          bool training, ObjectiveSums *sums) {
    Policy *self = (Policy *)base;
    Rollout *rollout = self->rollout;
    const float *logprob = tape_value(tape, buffer, self->out[training].logprob);
    const float *entropy = tape_value(tape, buffer, self->out[training].entropy);
    for (int t = 0; t < micro->n_tokens; t++) {
        self->buffers.gradient[t] = 0;
        sums->tokens += 1;
        if (micro->weights[t] == 0) continue;
        sums->scored += 1;
        sums->entropy += (double)entropy[t];
    }
    for (int s = 0; s < micro->n_segments; s++) {
        int number = (int)micro->sample_id[s];
        const Answer *answer = &rollout->answers[number];
        int first = micro->segment_start[s] + answer->n_prompt - 1;
        Part part = {.answer = answer,
                     .logprob = logprob + first,
                     .gradient = self->buffers.gradient + first,
                     .scale = 1 / step->total_weight,
                     .number = number,
                     .n = answer_length(answer)};
        sums->weight += rollout_answer_weight(rollout, number);
        if (training) TRY(check_ratio(rollout, number, part.logprob));
        if (rollout->options.algorithm == ALGORITHM_RLOO)
            answer_loss(rollout, &part, sums);
        else if (rollout->options.algorithm == ALGORITHM_PPO)
            ppo_losses(rollout, &part, sums);
        else
            token_losses(rollout, &part, sums);
    }
    return OK;
}

/* ---- what is known once all ranks are done ---- */

static void put(ObjectiveSums *sums, PolicyMetric metric, double value) {
    if (isnan(value)) return;
    sums->metric[metric] = value;
    sums->metric_weight[metric] = 1;
}

/* Over the answers of the update. */
static void put_extremes(Rollout *rollout, ObjectiveSums *sums) {
    double lowest = INFINITY, highest = 0;
    int n = rollout->options.prompts * rollout->options.samples;
    if (mesh_sum_f64(rollout->mesh, rollout->clipped_low, 2 * (size_t)n) != OK) return; /* the next exchange says so */
    for (int i = 0; i < rollout->n_minibatch; i++) {
        lowest = fmin(lowest, rollout->clipped_low[rollout->minibatch[i]]);
        highest = fmax(highest, rollout->clipped_high[rollout->minibatch[i]]);
    }
    put(sums, METRIC_LOWEST, lowest);
    put(sums, METRIC_HIGHEST, highest);
}

/* PPO compares no answer with others to its prompt. */
static bool has_groups(const PolicyOptions *options) {
    return options->samples > 1 && options->algorithm != ALGORITHM_PPO;
}

static void put_rollout(const Rollout *rollout, ObjectiveSums *sums) {
    RolloutFigures f = rollout_figures(rollout);
    const PolicyOptions *options = &rollout->options;
    /* TRL's zero deviation is then the batch's, not a group's */
    bool batch_scale = options->algorithm == ALGORITHM_GRPO && options->scale == SCALE_BATCH;
    put(sums, METRIC_REWARD, f.reward);
    put(sums, METRIC_REWARD_STD, f.reward_std);
    if (has_groups(options)) put(sums, METRIC_EQUAL, batch_scale ? f.reward_std == 0 : rollout->equal_groups);
    put(sums, METRIC_LENGTH, f.length.mean);
    put(sums, METRIC_SHORTEST, f.length.least);
    put(sums, METRIC_LONGEST, f.length.most);
    put(sums, METRIC_CUT_OFF, f.cut_off);
    put(sums, METRIC_ENDED_LENGTH, f.ended.mean);
    put(sums, METRIC_ENDED_SHORTEST, f.ended.least);
    put(sums, METRIC_ENDED_LONGEST, f.ended.most);
    put(sums, METRIC_SUM_ENTROPY, f.entropy);
    if (rollout->has_sampled) {
        put(sums, METRIC_DISTANCE, rollout->distance.mean);
        put(sums, METRIC_LARGEST_DISTANCE, rollout->distance.largest);
    }
    if (!rollout->has_reference) return;
    put(sums, METRIC_SUM_KL, f.kl);
    if (options->algorithm == ALGORITHM_RLOO) put(sums, METRIC_KL, f.token_kl);
}

static void put_ppo_rollout(const Rollout *rollout, ObjectiveSums *sums) {
    RolloutFigures f = rollout_figures(rollout);
    double penalty = rollout->has_reference ? 0 - rollout->options.beta * f.kl : 0;
    put(sums, METRIC_SCORES, f.reward);
    put(sums, METRIC_PENALTY, penalty);
    put(sums, METRIC_RLHF_REWARD, f.reward + penalty);
    put(sums, METRIC_ENDS, f.n_ended);
    put(sums, METRIC_EXPLAINED, rollout->explained);
}

/* The variance of the updates' mean ratios, known with the last of them. */
static void put_ratio_variance(Policy *self, ObjectiveSums *sums) {
    int update = self->rollout->update, n = rollout_updates(self->rollout);
    double ratio = sums->metric[METRIC_RATIO] / sums->metric_weight[METRIC_RATIO] - 1; /* they are all near 1 */
    if (update == 0) self->ratios = self->ratio_squares = 0;
    self->ratios += ratio;
    self->ratio_squares += ratio * ratio;
    if (update == n - 1 && n > 1)
        put(sums, METRIC_RATIO_VARIANCE, (self->ratio_squares - self->ratios * self->ratios / n) / (n - 1));
}

static void policy_finish(Objective *base, ObjectiveSums *sums) {
    Policy *self = (Policy *)base;
    bool ppo = self->rollout->options.algorithm == ALGORITHM_PPO;
    if (!ppo) put_extremes(self->rollout, sums);
    if (self->rollout->update == 0) put_rollout(self->rollout, sums);
    if (!ppo) return;
    put(sums, METRIC_POLICY_ENTROPY, sums->entropy / sums->scored);
    put_ratio_variance(self, sums);
    if (self->rollout->update == 0) put_ppo_rollout(self->rollout, sums);
}

/* In words, once a rollout. */
static void policy_watch_step(Objective *base, int64_t step, const ObjectiveSums *sums) {
    Policy *self = (Policy *)base;
    const Rollout *rollout = self->rollout;
    if (rollout->update != 0) return;
    RolloutFigures f = rollout_figures(rollout);
    size_t n = (size_t)rollout->options.prompts * (size_t)rollout->options.samples;
    WatchFigures figures = {
        .reward = f.reward,
        .kl = rollout->has_reference ? f.kl : NAN,
        .entropy = sums->entropy / sums->scored,
        .length = f.length.mean,
        .length_correlation = correlation(rollout->scores, rollout->lengths, n),
        .length_slope = slope(rollout->lengths, rollout->scores, n),
        .equal_groups = has_groups(&rollout->options) ? rollout->equal_groups : NAN,
        .beta = rollout->options.beta,
        .value_loss = self->value ? sums->metric[METRIC_VALUE_LOSS] / sums->metric_weight[METRIC_VALUE_LOSS] : NAN,
        .explained = self->value ? rollout->explained : NAN};
    Text text = {0};
    policy_watch(&self->watch, &figures, &text);
    objective_tell(base, step, &text);
    text_free(&text);
}

static void policy_free(Objective *base) {
    Policy *self = (Policy *)base;
    value_pass_free(self->value_pass);
    micro_buffers_free(&self->buffers);
    free(self);
}

int policy_objective_new(Objective **objective, Rollout *rollout, Llama *value, int capacity) {
    Policy *self = calloc(1, sizeof *self);
    if (!self) FAIL(ERR_FAILED, "out of memory");
    *self = (Policy){.base = {.name = "policy",
                              .metrics = metric_names,
                              .n_metrics = N_METRICS,
                              .headline = METRIC_REWARD,
                              .no_tokens = true,
                              .record = policy_record,
                              .bind = policy_bind,
                              .collect = policy_collect,
                              .finish = policy_finish,
                              .watch = policy_watch_step,
                              .free = policy_free},
                     .rollout = rollout,
                     .value = value};
    if (value) self->base.companion = policy_companion;
    *objective = &self->base;
    return objective_made(objective, micro_buffers_new(&self->buffers, capacity, true));
}
