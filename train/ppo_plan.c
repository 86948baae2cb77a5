/* See ppo_plan.h. */
#include "train/ppo_plan.h"

#include "eval/generator.h"
#include "model/core/error.h"
#include "train/objectives/rollout.h"
#include "train/setup.h"

static int pass_bytes(uint64_t *bytes, Llama *model, int capacity, const Config *config) {
    LogprobPass *pass;
    TRY(logprob_pass_new(&pass, model, config->ppo_temperature, capacity, setup_precision(config), NULL));
    *bytes = logprob_pass_bytes(pass);
    logprob_pass_free(pass);
    return OK;
}

static int sampling_bytes(uint64_t *bytes, Llama *model, int64_t answers, const Config *config,
                          const Tokenizer *tokenizer) {
    Generator *generator;
    int64_t batch = answers < config->ppo_max_batch ? answers : config->ppo_max_batch;
    TRY(generator_new(&generator, model, tokenizer,
                      (GeneratorOptions){.max_batch = (int)batch, .max_sequence = (int)config->train_context}));
    *bytes = generator_bytes(generator);
    generator_free(generator);
    return OK;
}

int ppo_plan(MemoryPlan *plan, Llama *model, const Config *config, const Tokenizer *tokenizer) {
    enum { BYTES_A_TOKEN = sizeof(int32_t) + 4 * sizeof(float) }; /* Answer: its id and four numbers */
    int64_t answers = (config->ppo_prompts * config->ppo_samples + plan->ranks - 1) / plan->ranks;
    uint64_t passes, sampling;
    TRY(pass_bytes(&passes, model, (int)plan->microbatch, config));
    TRY(sampling_bytes(&sampling, model, answers, config, tokenizer));
    if (config->lora_rank == 0) plan->bytes[PLAN_PARAMETERS] += model->value_bytes + model->packing_bytes;
    plan->bytes[PLAN_BATCH] += passes + (uint64_t)answers * (uint64_t)config->train_context * BYTES_A_TOKEN;
    if (plan->bytes[PLAN_SAVING] < sampling) plan->bytes[PLAN_SAVING] = sampling;
    return OK;
}
