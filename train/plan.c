/* See plan.h. Every part is asked of the code that will allocate it: the model and the tapes are recorded without
 * storage, the loader's sizes come from data/estimate.c, the optimizer's from optimizer_bytes_for. */
#include "train/plan.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "data/estimate.h"
#include "eval/generator.h"
#include "model/core/arena.h"
#include "model/core/error.h"
#include "model/core/memory.h"
#include "model/core/threads.h"
#include "model/shape_hf.h"
#include "train/chat_sample.h"
#include "train/flops.h"
#include "train/objectives/dpo_objective.h"
#include "train/loop.h"
#include "train/files/model_file.h"
#include "train/files/model_template.h"
#include "train/objectives/reference.h"
#include "train/other_model.h"
#include "train/probe.h"
#include "train/objectives/reward_objective.h"
#include "train/sample.h"
#include "train/setup.h"

enum {
    USUAL_VOCABULARY = 32000, /* where neither the config nor a tokenizer says */
    SAVE_FIXED = 1536 * 1024, /* libhdf5's own tables and the description of a file */
    SAVE_PER_ARRAY = 2048,    /* of it, for one array */
    PROGRAM_MORE = 6 << 20,   /* code that planning has not touched */
    ADVISED_RANK = 16,        /* of an adapter in the model's place */
    MPI_OWN = 4 << 20,        /* touched by two ranks of Open MPI 4.1 on one machine, where it does not run yet */
};

static const char *const part_names[PLAN_PARTS] = {
    [PLAN_BASELINE] = "process",        [PLAN_PROGRAM] = "program",
    [PLAN_TOKENIZER] = "tokenizer",     [PLAN_PARAMETERS] = "parameters",
    [PLAN_GRADIENTS] = "gradients",     [PLAN_MOMENTS] = "moments",
    [PLAN_ACTIVATIONS] = "activations", [PLAN_TABLES] = "tables",
    [PLAN_ORDER] = "data order",        [PLAN_BATCH] = "batch",
    [PLAN_EXCHANGE] = "exchange",       [PLAN_SAVING] = "saving",
};

const char *plan_part_name(PlanPart part) {
    return part_names[part];
}

void memory_plan_free(MemoryPlan *plan) {
    text_free(&plan->notes);
}

/* What the process holds once freed memory has gone back, as a run gives it back before it trains. */
static uint64_t resident_now(void) {
    malloc_trim(0);
    MemoryUse use = memory_use();
    return use.anonymous + use.shared;
}

static const char *const recompute_names[RECOMPUTE_KINDS] = {"none", "norms", "layer"};

const char *plan_recompute_name(int recompute) {
    return recompute_names[recompute];
}

/* ---- shape and tokenizer ---- */

/* What a chat template brings to fine-tuning: rows for tokens of its own, samples of a known length. */
static int plan_chat(MemoryPlan *plan, const Config *config, const ModelFile *file, const Tokenizer *tokenizer) {
    ModelTemplate chat = {0};
    Tokenizer *extended = NULL;
    if (!*config->template_name || !tokenizer) return OK;
    int rc = model_template_choose(&chat, config, file->chat_template, config->model_base, tokenizer);
    if (rc == OK) rc = model_template_extend(&chat, config, tokenizer, &extended);
    if (extended && tokenizer_vocab_size(extended) > plan->shape.vocab_size)
        plan->shape.vocab_size = tokenizer_vocab_size(extended);
    if (rc == OK) rc = model_template_open(&chat, extended ? extended : tokenizer);
    if (rc == OK) rc = chat_sample_length(&plan->sample_tokens, chat.chat, config);
    model_template_free(&chat);
    tokenizer_free(extended);
    return rc;
}

/* A template's tokens may be added to a base, not those of another model's tokenizer. */
static int check_tokenizer(const Config *config, const Tokenizer *tokenizer, int rows) {
    if (tokenizer && tokenizer_vocab_size(tokenizer) > rows)
        return config_fail(config, OPTION_tokenizer_path,
                           "%s has %d tokens, and %s knows %d: it is another model's tokenizer", config->tokenizer_path,
                           tokenizer_vocab_size(tokenizer), config->model_base, rows);
    return OK;
}

/* The shape of model.base, without its parameters. */
static int shape_of_base(MemoryPlan *plan, Tokenizer **tokenizer, const Config *config, ModelHead head) {
    bool own = !*config->tokenizer_path || strcmp(config->tokenizer_path, "from-model") == 0;
    bool adapted = config->lora_rank > 0;
    HfLabels labels;
    ModelFile file;
    TRY(setup_labels(&labels, config));
    TRY(model_file_open(&file, config->model_base,
                        (ModelFileOptions){.head = head,
                                           .labels = labels.n > 0 ? &labels : NULL,
                                           .shape_only = !adapted,
                                           .keep_open = adapted,
                                           .whole = adapted,
                                           .tokenizer = own ? NULL : config->tokenizer_path}));
    plan->shape = llama_shape_from_hf(&file.config);
    plan->mapped = setup_frozen(config) == FROZEN_16BIT && model_file_is_mapped(file.arrays);
    *tokenizer = file.tokenizer;
    file.tokenizer = NULL;
    int rc = own ? OK : check_tokenizer(config, *tokenizer, plan->shape.vocab_size);
    if (rc == OK) rc = plan_chat(plan, config, &file, *tokenizer);
    model_file_close(&file);
    TRY(rc);
    return llama_shape_check(&plan->shape);
}

/* *tokenizer is NULL where it cannot be opened: its vocabulary is then taken from the config, or guessed. */
static int find_shape(MemoryPlan *plan, Config *config, ModelHead head, Tokenizer **tokenizer) {
    *tokenizer = NULL;
    if (*config->model_base) return shape_of_base(plan, tokenizer, config, head);
    if (*config->tokenizer_path && tokenizer_load(tokenizer, config->tokenizer_path) != OK) {
        text_printf(&plan->notes, "the tokenizer is not there yet (%s)\n", error_text());
        error_clear();
    }
    bool guess = !*tokenizer && config->model_vocab_size == 0 && !*config->model_preset;
    if (guess) {
        config->model_vocab_size = USUAL_VOCABULARY;
        text_printf(&plan->notes, "a vocabulary of %d tokens was assumed; model.vocab_size says otherwise\n",
                    USUAL_VOCABULARY);
    }
    int rc = setup_shape(&plan->shape, config, *tokenizer);
    if (guess) config->model_vocab_size = 0;
    return rc;
}

/* ---- the parts ---- */

/* The model as a run of this config allocates it, and its adapter; names only. */
static int planned_model(Llama **model, Lora **lora, const MemoryPlan *plan, const Config *config, int n_positions) {
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

/* The activations of a run so configured: both tapes are recorded and planned, as the loop does it. */
static int activation_bytes(uint64_t *bytes, Llama *model, int64_t microbatch, Recompute recompute,
                            const Config *config) {
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

/* What the model and its adapter take whatever the micro-batch, in place of what they took before. */
static int weight_parts(MemoryPlan *plan, Llama *model, Lora *lora, const Config *config, int n_positions) {
    uint64_t others[PLAN_PARTS];
    for (int part = 0; part < PLAN_PARTS; part++) others[part] = plan->bytes[part] -= plan->weights[part];
    Frozen frozen = setup_frozen(config);
    bool mapped = plan->mapped && frozen == FROZEN_16BIT; /* of a quantised one embedding and head alone */
    TRY(plan_add_trained(plan, &plan->trained, model, lora, config));
    plan->bytes[PLAN_PARAMETERS] += mapped ? 0 : model->frozen_bytes;
    plan->bytes[PLAN_TABLES] += llama_table_bytes(&plan->shape, n_positions);
    plan->adapter = 0;
    for (int i = 0; lora && i < lora->n_weights; i++) plan->adapter += weight_elements(lora->weights[i]);
    for (int part = 0; part < PLAN_PARTS; part++) plan->weights[part] = plan->bytes[part] - others[part];
    return OK;
}

static int rotary_positions(const MemoryPlan *plan, const Config *config) {
    return *config->model_base ? plan->shape.max_context : (int)config->train_context;
}

static int model_parts(MemoryPlan *plan, const Config *config, const Tokenizer *tokenizer, StagePlan stage) {
    int rc = OK, n_positions = rotary_positions(plan, config);
    Llama *model;
    Lora *lora;
    TRY(planned_model(&model, &lora, plan, config, n_positions));
    TRY_TO(done, weight_parts(plan, model, lora, config, n_positions));
    for (int kind = 0; kind < RECOMPUTE_KINDS; kind++)
        TRY_TO(done, activation_bytes(&plan->activations[kind], model, plan->microbatch, (Recompute)kind, config));
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

/* What a step of one rank computes, and what recomputation adds: cheap passes over memory, or the layers' forward pass
 * once more. */
static void step_work(MemoryPlan *plan, const Config *config) {
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

void plan_predict(MemoryPlan *plan, const MachineSpeed *machine) {
    double product = machine->rate[plan->precision == DTYPE_BF16 ? MACHINE_BF16_PRODUCT : MACHINE_F32_PRODUCT];
    double copy = machine->rate[MACHINE_COPY];
    for (int kind = 0; kind < RECOMPUTE_KINDS && product > 0 && copy > 0; kind++)
        plan->step_seconds[kind] = (plan->step_flops + plan->recompute_flops[kind]) / product +
                                   (plan->update_bytes + plan->recompute_bytes[kind]) / copy;
}

/* What the run will read; 0 where its length is given in epochs of data that is not known yet. */
static int64_t run_tokens(const Config *config) {
    if (config->train_steps > 0) return config->train_steps * config->train_tokens_per_batch;
    if (config->train_tokens > 0) return config->train_tokens;
    return config->train_epochs > 1 ? INT64_MAX / 2 : 0;
}

static int data_parts(MemoryPlan *plan, const Config *config, const Tokenizer *tokenizer) {
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

/* ---- the sum ---- */

static uint64_t training_total(const MemoryPlan *plan, uint64_t activations) {
    uint64_t sum = activations;
    for (int part = 0; part < PLAN_PARTS; part++)
        if (part != PLAN_ACTIVATIONS) sum += plan->bytes[part];
    return sum;
}

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

uint64_t plan_total_with(const MemoryPlan *plan, Recompute recompute) {
    return larger(training_total(plan, plan->activations[recompute]), larger(plan->tokenising, plan->referring));
}

/* Another model beside the policy, before anything of training is touched. */
static int referring_pass(uint64_t *bytes, Llama *model, void *context) {
    const MemoryPlan *plan = context;
    return reference_pass_bytes(bytes, model, (int)plan->microbatch, plan->precision);
}

static int reference_part(MemoryPlan *plan, const Config *config) {
    if (!*config->dpo_reference) return OK;
    return other_model_bytes(&plan->referring, plan, config->dpo_reference,
                             (ModelFileOptions){.precision = setup_precision(config)}, referring_pass, plan);
}

/* What is there before gradients, moments and activations are touched. */
static uint64_t early_total(const MemoryPlan *plan) {
    return plan->bytes[PLAN_BASELINE] + plan->bytes[PLAN_PROGRAM] + plan->bytes[PLAN_TOKENIZER] +
           plan->bytes[PLAN_PARAMETERS] + plan->bytes[PLAN_TABLES] + plan->bytes[PLAN_EXCHANGE];
}

static void add_up(MemoryPlan *plan) {
    if (plan->tokenising > 0) plan->tokenising += early_total(plan);
    if (plan->referring > 0) plan->referring += early_total(plan) + plan->bytes[PLAN_ORDER] + plan->bytes[PLAN_BATCH];
    plan->training = training_total(plan, plan->activations[plan->recompute]);
    plan->total = larger(plan->training, larger(plan->tokenising, plan->referring));
    plan->fits = plan->available == 0 || plan->total <= plan->available;
}

/* What the machine leaves for one of the ranks here, when this process's own pages are counted as taken. */
static uint64_t find_available(const Config *config, int ranks_here) {
    if (config->train_memory_limit > 0) return (uint64_t)config->train_memory_limit;
    uint64_t available = memory_available();
    return available == 0 ? 0 : (available + resident_now()) / (uint64_t)ranks_here;
}

/* ---- what would fit ---- */

/* A way to keep the model, for the advice. */
typedef struct {
    const char *words; /* "" or "lora.base=nf4 " */
    int64_t rank;
    int base;
} Keeping;

/* As configured; then the model under the adapter in fewer bits; for fine-tuning of a whole model, adapters on it. */
static int keepings(Keeping list[4], const Config *config) {
    int n = 0;
    bool adapted = config->lora_rank > 0, tuned = *config->model_base && config->ppo_samples == 0;
    list[n++] = (Keeping){"", config->lora_rank, config->lora_base};
    if (adapted && setup_frozen(config) == FROZEN_NONE)
        list[n++] = (Keeping){"lora.base=16bit ", config->lora_rank, FROZEN_16BIT};
    if (adapted && setup_frozen(config) < FROZEN_INT8)
        list[n++] = (Keeping){"lora.base=int8 ", config->lora_rank, FROZEN_INT8};
    if (adapted && setup_frozen(config) < FROZEN_NF4)
        list[n++] = (Keeping){"lora.base=nf4 ", config->lora_rank, FROZEN_NF4};
    if (!adapted && tuned) {
        list[n++] = (Keeping){"lora.rank=16 lora.base=16bit ", ADVISED_RANK, FROZEN_16BIT};
        list[n++] = (Keeping){"lora.rank=16 lora.base=nf4 ", ADVISED_RANK, FROZEN_NF4};
    }
    return n;
}

/* Micro-batches halved down to the context, each without and with recomputation: the first that fits, in `advice`. */
static int advise_keeping(MemoryPlan *plan, const Config *config, Keeping keeping, uint64_t *least) {
    int rc = OK;
    char bytes[32];
    Llama *model;
    Lora *lora;
    MemoryPlan other = *plan;
    Config changed = *config;
    changed.lora_rank = keeping.rank;
    changed.lora_base = keeping.base;
    TRY(planned_model(&model, &lora, plan, &changed, 0));
    TRY_TO(done, weight_parts(&other, model, lora, &changed, rotary_positions(plan, config)));
    uint64_t fixed = training_total(&other, 0);
    for (int64_t microbatch = plan->microbatch;; microbatch /= 2) {
        if (microbatch < config->train_context) microbatch = config->train_context;
        for (int kind = 0; kind < RECOMPUTE_KINDS; kind++) {
            uint64_t activations;
            TRY_TO(done, activation_bytes(&activations, model, microbatch, (Recompute)kind, &changed));
            if (fixed + activations < *least) *least = fixed + activations;
            if (fixed + activations > plan->available) continue;
            char smaller[64] = "";
            if (microbatch < config->train_tokens_per_microbatch)
                snprintf(smaller, sizeof smaller, "train.tokens_per_microbatch=%lld ", (long long)microbatch);
            snprintf(plan->advice, sizeof plan->advice, "it fits with %s%strain.recompute=%s: %s", keeping.words,
                     smaller, recompute_names[kind], text_bytes(bytes, fixed + activations));
            goto done;
        }
        if (microbatch <= config->train_context) break;
    }
done:
    lora_free(lora);
    llama_free(model);
    return rc;
}

static int find_advice(MemoryPlan *plan, const Config *config) {
    char bytes[32];
    Keeping list[4];
    uint64_t least = UINT64_MAX;
    if (plan->tokenising > plan->available) {
        snprintf(
            plan->advice, sizeof plan->advice,
            "tokenising alone takes %s: a run of a smaller model with the same data.cache can make the cache first",
            text_bytes(bytes, plan->tokenising));
        return OK;
    }
    int n = keepings(list, config);
    for (int i = 0; i < n && !*plan->advice; i++) TRY(advise_keeping(plan, config, list[i], &least));
    if (*plan->advice) return OK;
    snprintf(plan->advice, sizeof plan->advice,
             "no micro-batch is small enough%s: the least is %s; take a smaller model%s or a shorter train.context",
             n > 1 ? ", even with lora.base=nf4 and train.recompute=layer" : "", text_bytes(bytes, least),
             plan->ranks_here > 1 ? ", fewer ranks on this machine" : "");
    return OK;
}

int memory_plan(MemoryPlan *plan, Config *config, MemoryPlanOptions options) {
    int rc = OK, ranks = options.ranks, ranks_here = options.ranks_here;
    Tokenizer *tokenizer = NULL;
    *plan = (MemoryPlan){.ranks = ranks, .ranks_here = ranks_here, .threads = threads_count()};
    plan->recompute = (Recompute)config->train_recompute;
    plan->precision = setup_precision(config);
    plan->microbatch = setup_microbatch(config, ranks);
    plan->frozen = setup_frozen(config);
    plan->vocabulary = setup_trains_vocabulary(config);
    plan->packed = plan->precision == DTYPE_BF16 && config->train_packed_weights;
    uint64_t before = resident_now();
    TRY_TO(done, find_shape(plan, config, options.head, &tokenizer));
    uint64_t after = resident_now();
    plan->bytes[PLAN_TOKENIZER] = after > before ? after - before : 0;
    plan->bytes[PLAN_EXCHANGE] = mesh_scratch_bytes(ranks);
    TRY_TO(done, model_parts(plan, config, tokenizer, options.stage));
    step_work(plan, config);
    TRY_TO(done, data_parts(plan, config, tokenizer));
    tokenizer_free(tokenizer);
    tokenizer = NULL;
    malloc_trim(0);
    plan->bytes[PLAN_BASELINE] =
        probe_baseline(&plan->shape, (int)plan->microbatch, plan->precision, plan->frozen != FROZEN_NONE);
    plan->bytes[PLAN_PROGRAM] = memory_use().file + PROGRAM_MORE;
    if (ranks > 1 && !mesh_is_running()) {
        plan->bytes[PLAN_BASELINE] += MPI_OWN;
        text_printf(&plan->notes, "MPI's own memory is taken as %d MiB a rank; mpirun -n %d cria plan measures it\n",
                    MPI_OWN >> 20, ranks);
    }
    TRY_TO(done, reference_part(plan, config));
    plan->available = find_available(config, ranks_here);
    add_up(plan);
    if (!plan->fits) TRY_TO(done, find_advice(plan, config));
    TRY_TO(done, text_check(&plan->notes));
done:
    tokenizer_free(tokenizer);
    return rc;
}

int memory_plan_check(const MemoryPlan *plan) {
    char total[32], available[32];
    if (plan->fits) return OK;
    FAIL(ERR_REFUSED,
         "this run needs %s of memory%s and %s is there; %s ('cria plan' shows the parts; train.memory_limit sets "
         "another "
         "limit)",
         text_bytes(total, plan->total), plan->ranks > 1 ? " a rank" : "", text_bytes(available, plan->available),
         plan->advice);
}
