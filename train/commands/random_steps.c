/* See random_steps.h. */
#include "train/commands/random_steps.h"

#include "model/core/arena.h"
#include "model/core/error.h"
#include "model/core/philox.h"

static int add_micro(RandomSteps *steps, int n_sequences) {
    MicroBatch *micro = &steps->micro[steps->n_micro++];
    int n = n_sequences * steps->context;
    *micro = (MicroBatch){.n_tokens = n, .n_segments = n_sequences, .n_samples = n_sequences};
    ARENA_TRY(micro->tokens, &steps->arena, n);
    ARENA_TRY(micro->targets, &steps->arena, n);
    ARENA_TRY(micro->positions, &steps->arena, n);
    ARENA_TRY(micro->weights, &steps->arena, n);
    ARENA_TRY(micro->segment_start, &steps->arena, n_sequences + 1);
    ARENA_TRY(micro->source, &steps->arena, n_sequences);
    ARENA_TRY(micro->segment, &steps->arena, n_sequences);
    ARENA_TRY(micro->sample_id, &steps->arena, n_sequences);
    for (int t = 0; t < n; t++) {
        micro->positions[t] = t % steps->context;
        micro->weights[t] = 1;
    }
    for (int s = 0; s < n_sequences; s++) micro->segment[s] = (uint64_t)(steps->tokens + (int64_t)s * steps->context);
    for (int s = 0; s <= n_sequences; s++) micro->segment_start[s] = s * steps->context;
    steps->tokens += n;
    return OK;
}

/* As many sequences as fit the batch, cut into micro-batches as the loader cuts them. */
int random_steps_new(RandomSteps *steps, const Config *config, int vocabulary) {
    steps->vocabulary = vocabulary;
    steps->context = (int)config->train_context;
    steps->seed = (uint64_t)config->seed;
    int64_t left = config->train_tokens_per_batch / config->train_context;
    int64_t most = config->train_tokens_per_microbatch / config->train_context;
    ARENA_TRY(steps->micro, &steps->arena, (left + most - 1) / most);
    for (; left > 0; left -= most) TRY(add_micro(steps, (int)(left < most ? left : most)));
    return OK;
}

void random_steps_free(RandomSteps *steps) {
    arena_free(&steps->arena);
    *steps = (RandomSteps){.micro = NULL};
}

/* New tokens for every step; a target is the token after it. */
static int random_step(void *context, int64_t step, StepBatch *batch) {
    RandomSteps *steps = context;
    PhiloxKey key = philox_key(steps->seed, PHILOX_TEST, (uint32_t)step, 0);
    uint64_t index = 0;
    for (int m = 0; m < steps->n_micro; m++) {
        MicroBatch *micro = &steps->micro[m];
        micro->step = step;
        for (int t = 0; t < micro->n_tokens; t++) {
            int32_t token = (int32_t)philox_below(key, index++, (uint64_t)steps->vocabulary);
            micro->tokens[t] = token;
            if (t > 0) micro->targets[t - 1] = token;
        }
        micro->targets[micro->n_tokens - 1] = micro->tokens[0];
    }
    *batch = (StepBatch){.micro = steps->micro,
                         .n_micro = steps->n_micro,
                         .total_weight = (double)steps->tokens,
                         .total_tokens = steps->tokens};
    return OK;
}

LoopBatches random_steps_batches(RandomSteps *steps) {
    return (LoopBatches){.context = steps, .step = random_step};
}
