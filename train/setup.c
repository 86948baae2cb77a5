/* See setup.h. */
#include "train/setup.h"

#include <math.h>
#include <string.h>

#include "data/estimate.h"
#include "model/core/error.h"
#include "model/core/philox.h"
#include "model/core/text.h"
#include "model/kernels/kernels.h"
#include "model/lora_peft.h"

/* ---- the model's shape ---- */

static int number(int64_t wanted, int otherwise) {
    return wanted > 0 ? (int)wanted : otherwise;
}
static float real(double wanted, float otherwise) {
    return wanted > 0 ? (float)wanted : otherwise;
}

/* After one of these the config says what the run really uses. */
static void write_back(Config *config, const LlamaShape *shape) {
    config->model_dim = shape->dim;
    config->model_n_layers = shape->n_layers;
    config->model_n_heads = shape->n_heads;
    config->model_n_kv_heads = shape->n_kv_heads;
    config->model_head_dim = shape->head_dim;
    config->model_ffn_dim = shape->ffn_dim;
    config->model_vocab_size = shape->vocab_size;
    config->model_max_context = shape->max_context;
    config->model_rope_theta = text_float(shape->rope_theta);
    config->model_norm_eps = text_float(shape->norm_eps);
    config->model_rope_factor = (double)shape->rope_scaling.factor;
}

static bool tied(const Config *config, bool otherwise) {
    enum { AUTO, YES, NO };
    return config->model_tie_embeddings == AUTO ? otherwise : config->model_tie_embeddings == YES;
}

int setup_shape(LlamaShape *shape, Config *config, const Tokenizer *tokenizer) {
    LlamaShape base = {.max_context = (int)config->train_context, .norm_eps = 1e-5f, .rope_theta = 1e4f};
    bool preset = *config->model_preset != '\0';
    if (preset && llama_preset(&base, config->model_preset) != OK)
        return config_fail(config, OPTION_model_preset, "%s", error_text());
    if (!preset && (config->model_dim == 0 || config->model_n_layers == 0 || config->model_n_heads == 0))
        FAIL(ERR_USAGE, "the model has no shape: give model.preset, or model.dim, model.n_layers and model.n_heads");
    bool reshaped = config->model_dim > 0 || config->model_n_heads > 0; /* the preset's derived widths no longer hold */
    *shape = base;
    shape->dim = number(config->model_dim, base.dim);
    shape->n_layers = number(config->model_n_layers, base.n_layers);
    shape->n_heads = number(config->model_n_heads, base.n_heads);
    shape->n_kv_heads = number(config->model_n_kv_heads, reshaped ? 0 : base.n_kv_heads);
    shape->head_dim = number(config->model_head_dim, reshaped ? 0 : base.head_dim);
    shape->ffn_dim = number(config->model_ffn_dim, reshaped ? 0 : base.ffn_dim);
    int vocabulary = tokenizer ? tokenizer_vocab_size(tokenizer) : base.vocab_size;
    shape->vocab_size = number(config->model_vocab_size, vocabulary);
    shape->max_context = number(config->model_max_context, base.max_context);
    if (shape->max_context < config->train_context) shape->max_context = (int)config->train_context;
    shape->rope_theta = real(config->model_rope_theta, base.rope_theta);
    shape->norm_eps = real(config->model_norm_eps, base.norm_eps);
    if (config->model_rope_factor > 0)
        shape->rope_scaling = (RotaryScaling){.factor = (float)config->model_rope_factor,
                                              .low_freq_factor = (float)config->model_rope_low_freq_factor,
                                              .high_freq_factor = (float)config->model_rope_high_freq_factor,
                                              .original_context = (int)config->model_rope_original_context};
    shape->tied = tied(config, base.tied);
    if (tokenizer && shape->vocab_size < vocabulary)
        return config_fail(config, OPTION_model_vocab_size,
                           "the tokenizer has %d tokens; the embedding needs as many rows", vocabulary);
    if (llama_shape_check(shape) != OK) FAIL(ERR_USAGE, "%s", error_text()); /* from a file it would be a refusal */
    write_back(config, shape);
    return OK;
}

/* ---- the data ---- */

/* Stands for the encoder of conversations where only sizes are wanted. */
static const RecordEncoder some_encoder = {0};

static int copy_sources(SourceOptions **out, int *n, const ConfigSources *sources, const Config *config, Arena *arena) {
    ARENA_TRY(*out, arena, sources->n + 1);
    *n = (int)sources->n;
    for (size_t i = 0; i < sources->n; i++) {
        const ConfigSource *from = &sources->items[i];
        (*out)[i] = (SourceOptions){.path = from->path,
                                    .name = *from->name ? from->name : NULL,
                                    .field = from->field,
                                    .weight = from->weight,
                                    .separator = *from->separator ? from->separator : NULL,
                                    .encoder = *config->template_name ? &some_encoder : NULL};
    }
    return OK;
}

BatchShape setup_batch(const Config *config) {
    if (config->preferences_per_batch == 0)
        return (BatchShape){config->train_tokens_per_batch, (int)config->train_context};
    int context = 2 * (int)config->train_context;
    return (BatchShape){config->preferences_per_batch * context, context};
}

int setup_microbatch(const Config *config, int n_ranks) {
    BatchShape shape = setup_batch(config);
    return loader_largest_microbatch(shape.tokens_per_batch, (int)config->train_tokens_per_microbatch, shape.context,
                                     n_ranks);
}

int setup_loader(LoaderOptions *options, const Config *config, Arena *arena, const char *cache, int rank, int n_ranks) {
    enum { ON_ERROR_FAIL = 0 };
    SourceOptions *sources, *validation;
    *options = (LoaderOptions){0};
    TRY(copy_sources(&sources, &options->n_sources, &config->data_train, config, arena));
    TRY(copy_sources(&validation, &options->n_validation_sources, &config->data_validation, config, arena));
    options->sources = sources;
    options->validation_sources = options->n_validation_sources > 0 ? validation : NULL;
    options->validation = config->data_validation.share;
    options->cache = *config->data_cache ? config->data_cache : cache;
    options->fail_on_error = config->data_on_error == ON_ERROR_FAIL;
    options->add_bos = config->data_add_bos;
    options->add_eos = config->data_add_eos;
    options->packing = (Packing)config->data_packing;
    if (*config->template_name) options->packing = config->sft_packing ? PACKING_BEST_FIT : PACKING_ALONE;
    if (config->preferences_per_batch > 0) options->packing = PACKING_ALONE;
    options->document_mask = config->data_document_mask;
    BatchShape shape = setup_batch(config);
    options->context = shape.context;
    options->tokens_per_batch = shape.tokens_per_batch;
    options->tokens_per_microbatch = (int)config->train_tokens_per_microbatch;
    options->seed = (uint64_t)config->seed;
    options->rank = rank;
    options->n_ranks = n_ranks;
    return OK;
}

/* ---- the score head ---- */

int setup_labels(HfLabels *labels, const Config *config) {
    *labels = (HfLabels){.n = 0};
    for (size_t i = 0; i < config->reward_objectives.n; i++)
        if (hf_labels_add(labels, config->reward_objectives.items[i]) != OK)
            return config_fail(config, OPTION_reward_objectives, "%s", error_text());
    return OK;
}

/* ---- adapters ---- */

int setup_lora(LoraOptions *options, bool *wanted, const Config *config) {
    *options = (LoraOptions){.rank = (int)config->lora_rank,
                             .alpha = config->lora_alpha,
                             .rank_stabilised = config->lora_rslora,
                             .magnitudes = config->lora_dora,
                             .dropout = config->lora_dropout,
                             .seed = (uint64_t)config->seed,
                             .plus_ratio = config->lora_plus_ratio};
    *wanted = options->rank > 0;
    if (lora_parse_targets(&options->targets, config->lora_targets) != OK)
        return config_fail(config, OPTION_lora_targets,
                           "found '%s', expected all-linear or a list of " LORA_TARGET_WORDS, config->lora_targets);
    if (*wanted && setup_trains_vocabulary(config) && lora_unties(options))
        return config_fail(
            config, OPTION_lora_targets,
            "embedding and head are trained whole with lora.vocabulary train; take them out of the list, "
            "or leave the vocabulary frozen");
    return OK;
}

int setup_value_lora(LoraOptions *options, bool *wanted, const Config *config) {
    TRY(setup_lora(options, wanted, config));
    options->targets &= ~(1u << LORA_LM_HEAD);
    if (!options->targets) options->targets = LORA_ALL;
    return OK;
}

/* ---- the optimizer and the run ---- */

/* in the order of precision's choices */
enum { PRECISION_AUTO, PRECISION_FP32, PRECISION_BF16 };

void setup_resolve_precision(Config *config) {
    if (config->precision == PRECISION_AUTO) config->precision = kernels_have_bf16() ? PRECISION_BF16 : PRECISION_FP32;
}

Frozen setup_frozen(const Config *config) {
    if (config->lora_rank == 0) return FROZEN_NONE;
    if (config->lora_base > 0) return (Frozen)config->lora_base;
    return setup_precision(config) == DTYPE_BF16 ? FROZEN_16BIT : FROZEN_NONE;
}

bool setup_trains_vocabulary(const Config *config) {
    enum { VOCABULARY_FROZEN };
    return config->lora_rank > 0 && config->lora_vocabulary != VOCABULARY_FROZEN;
}

LlamaOptions setup_llama(const Config *config, int n_positions) {
    return (LlamaOptions){.training = config->lora_rank == 0,
                          .train_head = config->lora_rank > 0,
                          .train_vocabulary = setup_trains_vocabulary(config),
                          .precision = setup_precision(config),
                          .frozen = setup_frozen(config),
                          .unpacked = !config->train_packed_weights,
                          .n_positions = n_positions};
}

Dtype setup_precision(const Config *config) {
    return config->precision == PRECISION_BF16 ? DTYPE_BF16 : DTYPE_F32;
}

LlamaInit setup_init(const Config *config) {
    return (LlamaInit){.seed = (uint64_t)config->seed,
                       .std = (float)config->model_init_std,
                       .residual = (enum InitResidual)config->model_init_residual};
}

Dtype setup_moments(const Config *config) {
    enum { MOMENTS_FP32, MOMENTS_BF16 };
    return config->optim_moments == MOMENTS_BF16 ? DTYPE_BF16 : DTYPE_F32;
}

static OptimOptions optim_options(const Config *config) {
    return (OptimOptions){.learning_rate = config->optim_lr,
                          .beta1 = config->optim_beta1,
                          .beta2 = config->optim_beta2,
                          .epsilon = config->optim_eps,
                          .weight_decay = config->optim_weight_decay,
                          .clip = config->optim_clip,
                          .moments = setup_moments(config),
                          .seed = (uint64_t)config->seed};
}

int setup_optimizer(Optimizer **optimizer, const Trained *trained, const Config *config, Arena *arena) {
    OptimParameter *parameters;
    ARENA_TRY(parameters, arena, trained->n_weights);
    for (int i = 0; i < trained->n_weights; i++) {
        const Weight *weight = trained->weights[i];
        parameters[i] =
            (OptimParameter){.value = weight->value,
                             .grad = weight->grad,
                             .n = weight_elements(weight),
                             .decay = weight->decay,
                             .rate = trained_rate(trained, i),
                             .rows = weight->rows,
                             .cols = weight->cols,
                             .forward = weight->forward,
                             .backward = weight->backward,
                             .name = hash_bytes(weight->views[0].name, strlen(weight->views[0].name), HASH_START)};
    }
    return optimizer_new(optimizer, parameters, (size_t)trained->n_weights, optim_options(config));
}

int64_t setup_steps(const Config *config, const Loader *loader) {
    if (config->train_steps > 0) return config->train_steps;
    double per_step = (double)config->train_tokens_per_batch, steps;
    if (config->preferences_per_batch > 0)
        per_step = (double)loader_tokens(loader, -1) / (double)loader_steps_per_epoch(loader);
    if (config->train_tokens > 0)
        steps = ceil((double)config->train_tokens / per_step);
    else
        steps = ceil((config->train_epochs > 0 ? config->train_epochs : 1) * (double)loader_steps_per_epoch(loader));
    return steps < 1 ? 1 : (int64_t)steps;
}

/* A number of steps, or a share of the run where it is below 1. */
static int64_t steps_or_share(double value, int64_t steps) {
    return value < 1 ? llround(value * (double)steps) : llround(value);
}

LoopOptions setup_loop(const Config *config, int64_t steps, int n_ranks) {
    return (LoopOptions){.steps = steps,
                         .validate_every = config->train_validate_every,
                         .validation_tokens = config->train_validation_tokens,
                         .checkpoint_every = config->train_checkpoint_every,
                         .checkpoint_minutes = config->train_checkpoint_minutes,
                         .early_stopping = config->train_early_stopping,
                         .log_every = config->train_log_every,
                         .tokens_per_microbatch = setup_microbatch(config, n_ranks),
                         .recompute = (Recompute)config->train_recompute,
                         .precision = setup_precision(config),
                         .schedule = {.kind = (ScheduleKind)config->optim_schedule,
                                      .peak = config->optim_lr,
                                      .final_ratio = config->optim_final_lr_ratio,
                                      .warmup = steps_or_share(config->optim_warmup, steps),
                                      .total = steps,
                                      .decay = steps_or_share(config->optim_wsd_decay, steps)}};
}

/* ---- generation ---- */

InferencePrecision setup_inference(const Config *config) {
    return (InferencePrecision)(config->generate_precision + INFERENCE_AUTO);
}

Frozen setup_inference_weights(const Config *config) {
    return (Frozen)config->generate_weights;
}

SamplerOptions setup_sampler(const Config *config) {
    return (SamplerOptions){.temperature = config->generate_temperature,
                            .top_k = (int)config->generate_top_k,
                            .top_p = config->generate_top_p,
                            .min_p = config->generate_min_p,
                            .repetition_penalty = config->generate_repetition_penalty,
                            .seed = (uint64_t)config->generate_seed};
}
