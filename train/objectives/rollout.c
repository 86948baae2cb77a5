/* See rollout.h. */
#include "train/objectives/rollout.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/philox.h"
#include "train/objectives/micro_batch.h"
#include "train/objectives/rollout_gae.h"

enum { ARRAYS = 7, GATHERED = 3 }; /* of one number an answer, in one block; the first are gathered together */

static int n_answers(const Rollout *rollout) {
    return rollout->options.prompts * rollout->options.samples;
}

int rollout_init(Rollout *rollout, const PolicyOptions *options, Mesh *mesh) {
    *rollout = (Rollout){.options = *options, .mesh = mesh};
    int n = n_answers(rollout);
    ARENA_TRY(rollout->answers, &rollout->lasting, n);
    ARENA_TRY(rollout->lengths, &rollout->lasting, ARRAYS * n);
    rollout->scores = rollout->lengths + n;
    rollout->finished = rollout->scores + n;
    rollout->kl = rollout->finished + n;
    rollout->entropy = rollout->kl + n;
    rollout->clipped_low = rollout->entropy + n;
    rollout->clipped_high = rollout->clipped_low + n;
    ARENA_TRY(rollout->minibatch, &rollout->lasting, n);
    return OK;
}

void rollout_free(Rollout *rollout) {
    arena_free(&rollout->arena);
    arena_free(&rollout->lasting);
    answer_batch_free(&rollout->batch);
    *rollout = (Rollout){.number = 0};
}

void rollout_clear(Rollout *rollout, int64_t number) {
    size_t n = (size_t)n_answers(rollout);
    arena_free(&rollout->arena);
    memset(rollout->answers, 0, n * sizeof *rollout->answers);
    memset(rollout->lengths, 0, ARRAYS * n * sizeof *rollout->lengths);
    rollout->number = number;
    rollout->n_minibatch = 0;
    rollout->has_reference = rollout->has_sampled = false;
}

int rollout_add(Rollout *rollout, int index, const int32_t *tokens, int n_tokens, int n_prompt, bool finished,
                const float *sampled) {
    Answer *answer = &rollout->answers[index];
    size_t n = (size_t)(n_tokens - n_prompt);
    if (n_prompt < 1 || n_tokens <= n_prompt)
        FAIL(ERR_FAILED, "answer %d: %d tokens, %d of them the prompt's; both need at least one", index, n_tokens,
             n_prompt);
    *answer = (Answer){.n_tokens = n_tokens, .n_prompt = n_prompt};
    ARENA_TRY(answer->tokens, &rollout->arena, n_tokens);
    memcpy(answer->tokens, tokens, (size_t)n_tokens * sizeof *tokens);
    if (sampled) {
        ARENA_TRY(answer->sampled, &rollout->arena, n);
        memcpy(answer->sampled, sampled, n * sizeof *sampled);
        rollout->has_sampled = true;
    }
    rollout->lengths[index] = (double)n;
    rollout->finished[index] = finished;
    return OK;
}

int rollout_gather(Rollout *rollout) {
    return mesh_sum_f64(rollout->mesh, rollout->lengths, GATHERED * (size_t)n_answers(rollout));
}

int answer_states(const Rollout *rollout, int answer) {
    return (int)rollout->lengths[answer] + (rollout->finished[answer] > 0);
}

/* ---- log-probabilities ---- */

struct LogprobPass {
    Tape *tape;
    Tensor *mask, *logprob, *lse;
    MicroBuffers buffers;
};

int logprob_pass_new(LogprobPass **out, Llama *model, double temperature, int capacity, Dtype precision,
                     TapeMemory *memory) {
    int rc = OK;
    LogprobPass *pass = calloc(1, sizeof *pass);
    *out = NULL;
    if (!pass) FAIL(ERR_FAILED, "out of memory");
    TRY_TO(failed, micro_buffers_new(&pass->buffers, capacity, false));
    pass->tape = tape_new(&(TapeOptions){.capacity = capacity, .dtype = precision, .memory = memory});
    if (!pass->tape) FAIL_TO(failed, ERR_FAILED, "out of memory");
    pass->mask = tape_input(pass->tape, ROWS_TOKENS, 1, DTYPE_F32, false);
    HeadOptions head = {.logit_scale = (float)(1 / temperature), .mask = pass->mask};
    HeadOutputs outputs = llama_record(pass->tape, model, (LlamaRecord){.recompute = RECOMPUTE_NONE}, head);
    pass->logprob = outputs.logprob;
    pass->lse = outputs.lse;
    if (outputs.logprob) tape_keep(outputs.logprob);
    if (outputs.lse) tape_keep(outputs.lse);
    TRY_TO(failed, tape_plan(pass->tape));
    *out = pass;
    return OK;
failed:
    logprob_pass_free(pass);
    return rc;
}

void logprob_pass_free(LogprobPass *pass) {
    if (!pass) return;
    tape_free(pass->tape);
    micro_buffers_free(&pass->buffers);
    free(pass);
}

size_t logprob_pass_bytes(const LogprobPass *pass) {
    return tape_bytes(pass->tape);
}

static int run_pass(LogprobPass *pass, const MicroBatch *micro) {
    TRY(micro_batch_bind(pass->tape, 0, micro, &pass->buffers));
    tape_bind_input(0, pass->mask, micro->weights);
    return tape_forward(pass->tape, 0);
}

int rollout_all(Rollout *rollout, int capacity, StepBatch *batch) {
    int n = 0, *mine = rollout->minibatch;
    for (int i = 0; i < n_answers(rollout); i++)
        if (rollout->answers[i].tokens) mine[n++] = i;
    return answer_batch_fill(batch, &rollout->batch, rollout->answers, mine, n, capacity);
}

int rollout_take(float **out, Rollout *rollout, const float *values, int row, int n) {
    ARENA_TRY(*out, &rollout->arena, n);
    memcpy(*out, values + row, (size_t)n * sizeof **out);
    return OK;
}

int rollout_logprobs(Rollout *rollout, LogprobPass *pass, int capacity, bool reference) {
    StepBatch batch;
    rollout->has_reference |= reference;
    TRY(rollout_all(rollout, capacity, &batch));
    for (int m = 0; m < batch.n_micro; m++) {
        const MicroBatch *micro = &batch.micro[m];
        TRY(run_pass(pass, micro));
        const float *logprobs = tape_value(pass->tape, 0, pass->logprob), *lse = tape_value(pass->tape, 0, pass->lse);
        for (int s = 0; s < micro->n_segments; s++) {
            Answer *answer = &rollout->answers[micro->sample_id[s]];
            int first = micro->segment_start[s] + answer->n_prompt - 1, length = answer_length(answer);
            float **out = reference ? &answer->reference : &answer->logprob;
            TRY(rollout_take(out, rollout, logprobs, first, length));
            if (!reference) TRY(rollout_take(&answer->lse, rollout, lse, first, length));
        }
    }
    return OK;
}

/* The largest over all ranks, to a resolution far below what fp32 resolves. */
static int largest_of(Mesh *mesh, double x[2]) {
    const double unit = 0x1p-40;
    int64_t scaled[2];
    for (int i = 0; i < 2; i++) scaled[i] = x[i] < 0x1p20 ? (int64_t)ceil(x[i] / unit) : INT64_MAX;
    TRY(mesh_max_i64(mesh, scaled, 2));
    for (int i = 0; i < 2; i++) x[i] = (double)scaled[i] * unit;
    return OK;
}

int rollout_distance(Rollout *rollout) {
    double largest[2] = {0}, sums[2] = {0};
    for (int i = 0; i < n_answers(rollout); i++) {
        const Answer *answer = &rollout->answers[i];
        for (int t = 0; answer->sampled && t < answer_length(answer); t++) {
            double exact = (double)answer->logprob[t], d = fabs((double)answer->sampled[t] - exact);
            double relative = d / fmax(1, fabs((double)answer->lse[t]));
            sums[0] += d;
            sums[1] += 1;
            if (!(d <= largest[0])) largest[0] = d;
            if (!(relative <= largest[1])) largest[1] = relative;
        }
    }
    TRY(largest_of(rollout->mesh, largest));
    TRY(mesh_sum_f64(rollout->mesh, sums, 2));
    rollout->distance =
        (LogprobDistance){.largest = largest[0], .relative = largest[1], .mean = sums[1] > 0 ? sums[0] / sums[1] : 0};
    return OK;
}

/* ---- advantages ---- */

int rollout_divergences(Rollout *rollout) {
    for (int i = 0; i < n_answers(rollout); i++) {
        const Answer *answer = &rollout->answers[i];
        for (int t = 0; answer->tokens && t < answer_length(answer); t++) {
            double logprob = (double)answer->logprob[t];
            rollout->entropy[i] -= logprob;
            if (answer->reference)
                rollout->kl[i] += kl_estimate(rollout->options.kl_estimator, logprob, (double)answer->reference[t]);
        }
    }
    return mesh_sum_f64(rollout->mesh, rollout->kl, 2 * (size_t)n_answers(rollout));
}

int rollout_advantages(Rollout *rollout) {
    const PolicyOptions *options = &rollout->options;
    size_t n = (size_t)n_answers(rollout), prompts = (size_t)options->prompts, samples = (size_t)options->samples;
    double *advantages, *rewards, *scores;
    ARENA_TRY(advantages, &rollout->arena, n);
    ARENA_TRY(rewards, &rollout->arena, n);
    ARENA_TRY(scores, &rollout->arena, n);
    for (size_t i = 0; i < n; i++)
        if (rollout->finished[i] == 0) rollout->scores[i] -= options->missing_eos_penalty;
    memcpy(scores, rollout->scores, n * sizeof *scores);
    if (options->whiten_scores) whiten(scores, n, false);
    if (options->algorithm == ALGORITHM_PPO) return rollout_gae(rollout, scores);
    for (size_t i = 0; i < n; i++) rewards[i] = scores[i] - options->beta * rollout->kl[i];
    if (options->algorithm == ALGORITHM_RLOO)
        rollout->equal_groups = advantages_rloo(advantages, rewards, prompts, samples, options->normalise);
    else
        rollout->equal_groups = advantages_grpo(advantages, scores, prompts, samples, options->scale);
    for (size_t i = 0; i < n; i++) rollout->answers[i].advantage = advantages[i];
    return OK;
}

/* Of those that ended by themselves, or of all. TRL has 0 where none did. */
static LengthFigures lengths_of(const Rollout *rollout, bool ended) {
    LengthFigures f = {.least = INFINITY};
    double n = 0;
    for (int i = 0; i < n_answers(rollout); i++) {
        if (ended && rollout->finished[i] == 0) continue;
        f.mean += rollout->lengths[i];
        f.least = fmin(f.least, rollout->lengths[i]);
        f.most = fmax(f.most, rollout->lengths[i]);
        n++;
    }
    if (n == 0) return (LengthFigures){.mean = 0};
    f.mean /= n;
    return f;
}

RolloutFigures rollout_figures(const Rollout *rollout) {
    int n = n_answers(rollout);
    Moments reward = moments_of(rollout->scores, (size_t)n);
    RolloutFigures f = {.reward = reward.mean,
                        .reward_std = reward.std,
                        .length = lengths_of(rollout, false),
                        .ended = lengths_of(rollout, true)};
    double finished = 0, tokens = 0;
    for (int i = 0; i < n; i++) {
        finished += rollout->finished[i];
        tokens += rollout->lengths[i];
        f.kl += rollout->kl[i];
        f.entropy += rollout->entropy[i];
    }
    f.token_kl = f.kl / tokens;
    f.kl /= n;
    f.entropy /= n;
    f.cut_off = 1 - finished / n;
    f.n_ended = finished;
    return f;
}

/* ---- updates ---- */

double rollout_token_weight(const Rollout *rollout, int answer) {
    bool means_of_means = rollout->options.algorithm == ALGORITHM_GRPO && rollout->options.loss_type == LOSS_GRPO;
    return means_of_means ? 1 / rollout->lengths[answer] : 1;
}

static double mean_length(const Rollout *rollout) {
    double sum = 0;
    for (int i = 0; i < n_answers(rollout); i++) sum += rollout->lengths[i];
    return sum / n_answers(rollout);
}

double rollout_answer_weight(const Rollout *rollout, int answer) {
    const PolicyOptions *options = &rollout->options;
    if (options->algorithm == ALGORITHM_RLOO) return 1;
    if (options->algorithm == ALGORITHM_PPO || options->loss_type == LOSS_BNPO) return rollout->lengths[answer];
    if (options->loss_type == LOSS_DR_GRPO) return options->max_new_tokens;
    return options->loss_type == LOSS_DAPO ? mean_length(rollout) : 1;
}

/* The answers of all ranks that an update is over. */
static int choose(Rollout *rollout, int update) {
    const PolicyOptions *options = &rollout->options;
    int n = options->prompts, per_step = n / options->minibatches;
    int epoch = update / options->minibatches, first = update % options->minibatches * per_step;
    uint32_t *order = malloc((size_t)n * sizeof *order);
    if (!order) FAIL(ERR_FAILED, "out of memory");
    for (int p = 0; p < n; p++) order[p] = (uint32_t)p;
    if (options->minibatches > 1)
        philox_permutation(order, (uint32_t)n,
                           philox_key(options->seed, PHILOX_MINIBATCH, (uint32_t)rollout->number, (uint32_t)epoch));
    rollout->n_minibatch = 0;
    memset(rollout->clipped_low, 0, 2 * (size_t)n_answers(rollout) * sizeof(double));
    for (int p = first; p < first + per_step; p++)
        for (int k = 0; k < options->samples; k++)
            rollout->minibatch[rollout->n_minibatch++] = (int)order[p] * options->samples + k;
    free(order);
    return OK;
}

int rollout_updates(const Rollout *rollout) {
    return rollout->options.epochs * rollout->options.minibatches;
}

int rollout_update(Rollout *rollout, int update, int capacity, StepBatch *batch) {
    TRY(choose(rollout, update));
    rollout->update = update;
    int n = 0, *mine = malloc(((size_t)rollout->n_minibatch + 1) * sizeof *mine);
    double weight = 0, tokens = 0;
    rollout->minibatch_states = 0;
    if (!mine) FAIL(ERR_FAILED, "out of memory");
    for (int i = 0; i < rollout->n_minibatch; i++) {
        int answer = rollout->minibatch[i];
        weight += rollout_answer_weight(rollout, answer);
        tokens += rollout->lengths[answer];
        rollout->minibatch_states += answer_states(rollout, answer);
        if (rollout->answers[answer].tokens) mine[n++] = answer;
    }
    int rc = answer_batch_fill(batch, &rollout->batch, rollout->answers, mine, n, capacity);
    free(mine);
    TRY(rc);
    for (int m = 0; m < batch->n_micro; m++) batch->micro[m].step = rollout->number * rollout_updates(rollout) + update;
    batch->total_weight = weight;
    batch->total_tokens = (int64_t)tokens;
    return OK;
}
