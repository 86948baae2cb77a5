/* See plan_parts.h. */
#include "train/plan_parts.h"

#include <stdio.h>
#include <string.h>

#include "data/estimate.h"
#include "eval/generator.h"
#include "model/core/arena.h"
#include "model/core/error.h"
#include "train/flops.h"
#include "train/loop/loop.h"
#include "train/objectives/dpo_objective.h"
#include "train/objectives/reward_objective.h"
#include "train/sample.h"
#include "train/setup.h"

enum {
    SAVE_FIXED = 1536 * 1024, /* libhdf5's own tables and the description of a file */
    SAVE_PER_ARRAY = 2048,    /* of it, for one array */
};

/* ---- the model ---- */

int plan_model_names(Llama **model, Lora **lora, const MemoryPlan *plan, const Config *config, int n_positions) {
    LoraOptions options;
    bool adapted;
    LlamaOptions how = setup_llama(config, n_positions);
    how.names_only = true;
    TRY(setup_lora(&options, &adapted, config));
    *lora = NULL;
    TRY(llama_new(model, &plan->shape, how));
    if (!adapted) return OK;
    how.training = true;
    int rc = lora_new(lora, *model, options, how);
    if (rc != OK) llama_free(*model);
    return rc;
}

int plan_activations(uint64_t *bytes, Llama *model, int64_t microbatch, Recompute recompute, const Config *config) {
    Objective *objective;
    Loop *loop = NULL;
    Dtype precision = setup_precision(config);
    if (model->shape.n_scores > 0)
        TRY(reward_objective_new(&objective, (int)microbatch,
                                 (RewardOptions){.labels = hf_labels_unnamed(model->shape.n_scores)}));
    else if (config->preferences_per_batch > 0)
        TRY(dpo_objective_new(&objective, (int)microbatch, &(DpoOptions){.nll = config->dpo_nll}));
    else if (*config->template_name)
        TRY(sft_objective_new(&objective, (int)microbatch));
    else
        TRY(nll_objective_new(&objective, (int)microbatch));
    LoopOptions options = {.tokens_per_microbatch = (int)microbatch, .recompute = recompute, .precision = precision};
    int rc = loop_new(&loop, &(LoopParts){.model = model, .objective = objective}, &options);
    if (rc == OK)
        *bytes =
            loop_tape_bytes(loop) + (uint64_t)microbatch * (sizeof(float) + sizeof(uint32_t)); /* the objective's own */
    loop_free(loop);
    objective->free(objective);
    return rc;
}

int plan_add_trained(MemoryPlan *plan, uint64_t *elements, Llama *model, Lora *lora, const Config *config) {
    int rc = OK;
    Arena arena = {0};
    Trained trained;
    TRY_TO(done, trained_list(&trained, model, lora, &arena));
    OptimParameter *parameters = arena_alloc(&arena, (size_t)trained.n_weights * sizeof *parameters);
    if (!parameters) FAIL_TO(done, ERR_FAILED, "out of memory");
    for (int i = 0; i < trained.n_weights; i++)
        parameters[i] = (OptimParameter){.n = weight_elements(trained.weights[i])};
    plan->bytes[PLAN_PARAMETERS] += model->value_bytes + model->packing_bytes;
    plan->bytes[PLAN_GRADIENTS] +=
        llama_touched_gradient_bytes(model, (size_t)setup_batch(config).tokens_per_batch / (size_t)plan->ranks);
    plan->bytes[PLAN_TABLES] += model->arena.total;
    plan->bytes[PLAN_MOMENTS] += optimizer_bytes_for(parameters, (size_t)trained.n_weights, setup_moments(config));
    plan->saved_arrays += trained.n_weights;
    if (elements) *elements = trained_elements(&trained);
    if (!lora) goto done;
    plan->bytes[PLAN_PARAMETERS] += lora->value_bytes + lora->packing_bytes;
    plan->bytes[PLAN_GRADIENTS] += lora->grad_bytes;
    plan->bytes[PLAN_TABLES] += lora->arena.total;
done:
    arena_free(&arena);
    return rc;
}

/* A sample text's cache and activations. */
static int sampling_bytes(uint64_t *bytes, const MemoryPlan *plan, Llama *model, const Config *config,
                          const Tokenizer *tokenizer) {
    Generator *generator;
    *bytes = 0;
    if (config->train_sample_every == 0) return OK;
    int64_t limit = model->rotary.n_positions, text = (int64_t)strlen(config->train_sample_prompt) + SAMPLE_TOKENS;
    int64_t wanted = *config->template_name ? plan->sample_tokens : text;
    int sequence = (int)(wanted < limit ? wanted : limit);
    if (sequence < 2) return OK;
    TRY(generator_new(&generator, model, tokenizer, (GeneratorOptions){.max_batch = 1, .max_sequence = sequence}));
    *bytes = generator_bytes(generator);
    generator_free(generator);
    return OK;
}

static int rotary_positions(const MemoryPlan *plan, const Config *config) {
    return *config->model_base ? plan->shape.max_context : (int)config->train_context;
}

int plan_weights(MemoryPlan *plan, Llama *model, Lora *lora, const Config *config) {
    uint64_t others[PLAN_PARTS];
    for (int part = 0; part < PLAN_PARTS; part++) others[part] = plan->bytes[part] -= plan->weights[part];
    Frozen frozen = setup_frozen(config);
    bool mapped = plan->mapped && frozen == FROZEN_16BIT; /* of a quantised one embedding and head alone */
    TRY(plan_add_trained(plan, &plan->trained, model, lora, config));
    plan->bytes[PLAN_PARAMETERS] += mapped ? 0 : model->frozen_bytes;
    plan->bytes[PLAN_TABLES] += llama_table_bytes(&plan->shape, rotary_positions(plan, config));
    plan->adapter = 0;
    for (int i = 0; lora && i < lora->n_weights; i++) plan->adapter += weight_elements(lora->weights[i]);
    for (int part = 0; part < PLAN_PARTS; part++) plan->weights[part] = plan->bytes[part] - others[part];
    return OK;
}

int plan_model(MemoryPlan *plan, const Config *config, const Tokenizer *tokenizer, StagePlan stage) {
    int rc = OK;
    Llama *model;
    Lora *lora;
    TRY(plan_model_names(&model, &lora, plan, config, rotary_positions(plan, config)));
    TRY_TO(done, plan_weights(plan, model, lora, config));
    for (int kind = 0; kind < RECOMPUTE_KINDS; kind++)
        TRY_TO(done, plan_activations(&plan->activations[kind], model, plan->microbatch, (Recompute)kind, config));
    plan->bytes[PLAN_ACTIVATIONS] = plan->activations[plan->recompute];
    TRY_TO(done, sampling_bytes(&plan->bytes[PLAN_SAVING], plan, model, config, tokenizer));
    if (stage) TRY_TO(done, stage(plan, model, config, tokenizer));
    uint64_t saving = SAVE_FIXED + (uint64_t)3 * SAVE_PER_ARRAY * (uint64_t)plan->saved_arrays;
    if (plan->bytes[PLAN_SAVING] < saving) plan->bytes[PLAN_SAVING] = saving;
done:
    lora_free(lora);
    llama_free(model);
    return rc;
}

/* ---- a step ---- */

/* What recomputation adds: cheap passes over memory, or the layers' forward pass once more. */
void plan_step(MemoryPlan *plan, const Config *config) {
    ForwardFlops forward = forward_flops(&plan->shape, (int)config->train_context);
    double tokens = (double)setup_batch(config).tokens_per_batch / plan->ranks;
    double norms = tokens * recomputed_norm_bytes(&plan->shape, dtype_size(plan->precision));
    plan->step_flops = 3 * tokens * forward_flops_total(forward);
    if (config->lora_rank > 0) /* of frozen matrices no gradients; the adapter's own products */
        plan->step_flops += tokens * (6 * (double)plan->adapter - forward.matrices);
    if (config->lora_rank > 0 && !setup_trains_vocabulary(config)) plan->step_flops -= tokens * forward.head;
    plan->update_bytes = adamw_bytes_per_parameter(plan->packed, setup_moments(config)) * (double)plan->trained;
    plan->recompute_bytes[RECOMPUTE_NORMS] = plan->recompute_bytes[RECOMPUTE_LAYER] = norms;
    plan->recompute_flops[RECOMPUTE_LAYER] = tokens * (forward.matrices + forward.attention);
}

/* ---- the data ---- */

/* What the run will read; 0 where its length is given in epochs of data that is not known yet. */
static int64_t run_tokens(const Config *config) {
    if (config->train_steps > 0) return config->train_steps * config->train_tokens_per_batch;
    if (config->train_tokens > 0) return config->train_tokens;
    return config->train_epochs > 1 ? INT64_MAX / 2 : 0;
}

int plan_data(MemoryPlan *plan, const Config *config, const Tokenizer *tokenizer) {
    int rc = OK;
    Arena arena = {0};
    LoaderOptions options;
    LoaderEstimate estimate;
    char cache[4096];
    snprintf(cache, sizeof cache, "%s/cache", config->output);
    TRY_TO(done, setup_loader(&options, config, &arena, cache, 0, plan->ranks));
    if (options.n_sources == 0) text_puts(&plan->notes, "no data.train: the order of the data is not counted\n");
    if (loader_estimate(&estimate, &options, tokenizer, run_tokens(config)) != OK) {
        text_printf(&plan->notes, "the data is not there yet (%s): its order, 12 bytes a document, is not counted\n",
                    error_text());
        error_clear();
        options.n_sources = options.n_validation_sources = 0;
        TRY_TO(done, loader_estimate(&estimate, &options, tokenizer, 0));
    }
    if (estimate.sampled)
        text_printf(&plan->notes,
                    "the data is not tokenised yet: %lld documents and %lld tokens are estimates from its beginning\n",
                    (long long)estimate.documents, (long long)estimate.tokens);
    plan->documents = estimate.documents;
    plan->tokens = estimate.tokens;
    plan->bytes[PLAN_ORDER] = estimate.order_bytes;
    plan->bytes[PLAN_BATCH] += estimate.step_bytes;
    plan->tokenising = estimate.tokenising_bytes;
done:
    arena_free(&arena);
    return rc;
}
