/* See plan.h. */
#include "train/ppo/plan.h"

#include <stdlib.h>
#include <string.h>

#include "eval/generator.h"
#include "eval/reward_scorer.h"
#include "model/core/error.h"
#include "train/answers/reward_model.h"
#include "train/objectives/value.h"
#include "train/other_model.h"
#include "train/plan_parts.h"
#include "train/ppo/value.h"
#include "train/setup.h"

enum { USUAL_SAMPLES = 8 /* of a group */ };

void ppo_settle(Config *config) {
    if (config->ppo_samples == 0) config->ppo_samples = config->ppo_algorithm == ALGORITHM_PPO ? 1 : USUAL_SAMPLES;
    double tokens = (double)config->ppo_prompts * (double)config->ppo_samples * (double)config->train_context;
    config->train_tokens_per_batch = tokens < 0x1p52 ? (int64_t)tokens : INT64_C(1) << 52;
}

bool ppo_is_planned(const Config *config) {
    for (int id = 0; id < OPTION_COUNT; id++)
        if (config_in_sections((OptionId)id, "ppo") && config_is_set(config, (OptionId)id)) return true;
    return false;
}

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
    *bytes = 0;
    int64_t batch = answers < config->ppo_max_batch ? answers : config->ppo_max_batch;
    if (config->train_context > model->rotary.n_positions)
        return config_fail(config, OPTION_train_context, "%s was made for at most %d tokens", config->model_base,
                           model->rotary.n_positions);
    TRY(generator_new(&generator, model, tokenizer,
                      (GeneratorOptions){.max_batch = (int)batch, .max_sequence = (int)config->train_context}));
    *bytes = generator_bytes(generator);
    generator_free(generator);
    return OK;
}

/* ---- other models ---- */

typedef struct {
    int tokens; /* that the tape holds */
    uint64_t bytes;
} ScorerPass;

/* What scoring takes beside the model: its tape is as full as a rollout makes it. */
static int scorer_pass(uint64_t *bytes, Llama *model, void *context) {
    RewardScorer *scorer;
    ScorerPass *pass = context;
    *bytes = 0; /* told apart from the model's */
    TRY(reward_scorer_new(&scorer, model, pass->tokens, llama_inference_dtype(model)));
    int rc = reward_scorer_bytes(scorer, &pass->bytes);
    reward_scorer_free(scorer);
    return rc;
}

/* A model that answers are scored by. One that is to be trained stands in for itself as what it begins from. */
static int scorer_bytes(MemoryPlan *plan, const char *path, uint64_t tokens) {
    uint64_t bytes;
    ScorerPass pass = {.tokens = tokens < REWARD_MODEL_BATCH ? (int)tokens : REWARD_MODEL_BATCH};
    ModelFileOptions options = reward_model_options();
    options.head = HEAD_TO_SCORE;
    TRY(other_model_bytes(&bytes, plan, path, options, scorer_pass, &pass));
    plan->bytes[PLAN_PARAMETERS] += bytes;
    plan->bytes[PLAN_BATCH] += pass.bytes;
    return OK;
}

static int scorers_bytes(MemoryPlan *plan, const Config *config, uint64_t tokens) {
    const char *model = config->ppo_model, *safety = config->ppo_safety_model;
    if (config->ppo_reward != REWARD_MODEL) return OK;
    if (*model) TRY(scorer_bytes(plan, model, tokens));
    return *safety && strcmp(safety, model) != 0 ? scorer_bytes(plan, safety, tokens) : OK;
}

static int reference_bytes(MemoryPlan *plan, const Llama *model, const Config *config) {
    uint64_t bytes = config->lora_rank == 0 ? model->value_bytes + model->packing_bytes : 0;
    if (*config->ppo_reference)
        TRY(other_model_bytes(&bytes, plan, config->ppo_reference,
                              (ModelFileOptions){.precision = setup_precision(config),
                                                 .frozen = setup_frozen(config),
                                                 .unpacked = !config->train_packed_weights},
                              NULL, NULL));
    plan->bytes[PLAN_PARAMETERS] += bytes;
    return OK;
}

/* ---- the value model ---- */

/* As train/ppo/value.c makes it; names only. `model` has the policy's adapter, which is not the value model's. */
static int value_names(Llama **value, Lora **lora, const Llama *model, const Config *config) {
    LlamaOptions how = setup_llama(config, model->rotary.n_positions);
    LlamaShape shape = model->shape;
    LoraOptions options;
    bool adapted;
    TRY(setup_value_lora(&options, &adapted, config));
    how.training = how.names_only = true;
    *lora = NULL;
    if (adapted) {
        TRY(llama_new_on_body(value, model, how));
        return lora_new(lora, *value, options, how);
    }
    shape.n_scores = 1;
    shape.tied = false;
    return llama_new(value, &shape, how);
}

static int value_activations(MemoryPlan *plan, Llama *value, const Config *config) {
    for (int kind = 0; kind < RECOMPUTE_KINDS; kind++) {
        ValuePass *pass;
        TRY(value_pass_new(&pass, value,
                           (ValuePassOptions){.capacity = (int)plan->microbatch,
                                              .precision = setup_precision(config),
                                              .training = true,
                                              .recompute = (Recompute)kind}));
        if (plan->activations[kind] < value_pass_bytes(pass)) plan->activations[kind] = value_pass_bytes(pass);
        value_pass_free(pass);
    }
    plan->bytes[PLAN_ACTIVATIONS] = plan->activations[plan->recompute];
    return OK;
}

/* On such a body under adapters. */
static int value_on(MemoryPlan *plan, const Llama *body, const Config *config) {
    Llama *value = NULL;
    Lora *lora = NULL;
    int rc = value_names(&value, &lora, body, config);
    if (rc == OK) rc = value_activations(plan, value, config);
    if (rc == OK) rc = plan_add_trained(plan, NULL, value, lora, config);
    lora_free(lora);
    llama_free(value);
    return rc;
}

typedef struct {
    MemoryPlan *plan;
    const Config *config;
    bool found;
} ValueBody;

static int value_on_other(uint64_t *bytes, Llama *model, void *context) {
    ValueBody *body = context;
    *bytes = 0;
    body->found = true;
    return value_on(body->plan, model, body->config);
}

/* With a body of its own where it begins as a whole model under adapters; else on the policy's. */
static int value_bytes(MemoryPlan *plan, const Llama *model, const Config *config) {
    char *path;
    uint64_t bytes = 0;
    ValueBody body = {.plan = plan, .config = config};
    TRY(value_model_body(&path, config));
    int rc = path ? other_model_bytes(&bytes, plan, path, value_body_options(config), value_on_other, &body) : OK;
    plan->bytes[PLAN_PARAMETERS] += bytes;
    free(path);
    TRY(rc);
    return body.found ? OK : value_on(plan, model, config);
}

/* ---- all of it ---- */

int ppo_plan(MemoryPlan *plan, Llama *model, const Config *config, const Tokenizer *tokenizer) {
    enum {
        BYTES_A_TOKEN = sizeof(int32_t) + 4 * sizeof(float), /* Answer: its id and four numbers */
        BYTES_A_STATE = sizeof(float) + 4 * sizeof(double)   /* and, for PPO, its value and four more */
    };
    bool valued = config->ppo_algorithm == ALGORITHM_PPO;
    int64_t answers = (config->ppo_prompts * config->ppo_samples + plan->ranks - 1) / plan->ranks;
    uint64_t passes, sampling, tokens = (uint64_t)answers * (uint64_t)config->train_context;
    TRY(pass_bytes(&passes, model, (int)plan->microbatch, config)); /* that for values takes less */
    TRY(sampling_bytes(&sampling, model, answers, config, tokenizer));
    TRY(reference_bytes(plan, model, config));
    TRY(scorers_bytes(plan, config, tokens));
    if (valued) TRY(value_bytes(plan, model, config));
    plan->bytes[PLAN_BATCH] += passes + tokens * (valued ? BYTES_A_TOKEN + BYTES_A_STATE : BYTES_A_TOKEN);
    if (plan->bytes[PLAN_SAVING] < sampling) plan->bytes[PLAN_SAVING] = sampling;
    return OK;
}
