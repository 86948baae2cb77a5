/* From a config to the plain structs that the rooms take: shape, loader, optimizer, schedule, loop. The only place
 * where training code reads configs. */
#ifndef CRIA_TRAIN_SETUP_H
#define CRIA_TRAIN_SETUP_H

#include "configs/config.h"
#include "data/loader.h"
#include "eval/sampler.h"
#include "model/llama.h"
#include "optim/optimizer.h"
#include "train/loop/loop.h"
#include "train/files/model_file.h"
#include "train/loop/trained.h"

/* The model's shape: the preset's numbers, or defaults, with those the config gives; vocabulary from the tokenizer
 * where the config has none. What was resolved is written back, so that the saved config says it. */
int setup_shape(LlamaShape *shape, Config *config, const Tokenizer *tokenizer);

/* What a step and a sequence hold in tokens, at most: train.*; with preferences.per_batch so many samples, each of up
 * to two answers of train.context. */
typedef struct {
    int64_t tokens_per_batch;
    int context;
} BatchShape;
BatchShape setup_batch(const Config *config);
/* The most tokens that one rank computes at once. */
int setup_microbatch(const Config *config, int n_ranks);

/* n_sources is 0 where data.train is empty. With template.name, as `sft` sets it, the sources hold conversations: each
 * has an encoder that only serves to estimate sizes. Points into the config; `sources` and `validation` have room for
 * the config's lists (setup_sources allocates them in the arena). `cache` is where tokens are cached when the config
 * does not say. */
int setup_loader(LoaderOptions *options, const Config *config, Arena *arena, const char *cache, int rank, int n_ranks);

/* `auto` becomes what this CPU's kernels are best at, so that the saved config says what was computed. */
void setup_resolve_precision(Config *config);
Dtype setup_precision(const Config *config); /* resolved; DTYPE_F32 or DTYPE_BF16 */

/* How the model is kept under an adapter; FROZEN_NONE where there is none, or where it stays in fp32. */
Frozen setup_frozen(const Config *config);
/* Of the model that is trained, or that an adapter is trained on. */
LlamaOptions setup_llama(const Config *config, int n_positions);

Dtype setup_moments(const Config *config); /* AdamW's */

LlamaInit setup_init(const Config *config);

/* reward.objectives; n is 0 where there are none. ERR_USAGE for names that cannot be. */
int setup_labels(HfLabels *labels, const Config *config);

/* Whether the vocabulary is trained beside an adapter. */
bool setup_trains_vocabulary(const Config *config);

/* *wanted: whether lora.rank asks for an adapter. Its dropout has the run's seed. */
int setup_lora(LoraOptions *options, bool *wanted, const Config *config);
/* The same of a policy's value model, whose head is trained whole: the other targets, or all-linear where it has none.
 */
int setup_value_lora(LoraOptions *options, bool *wanted, const Config *config);

/* An optimizer over what is trained; its list is made in the arena. */
int setup_optimizer(Optimizer **optimizer, const Trained *trained, const Config *config, Arena *arena);

/* generate.precision */
InferencePrecision setup_inference(const Config *config);
Frozen setup_inference_weights(const Config *config);

/* The generate.* options of how a token is chosen. */
SamplerOptions setup_sampler(const Config *config);

/* Length of the run in steps: train.steps, or from epochs or tokens. */
int64_t setup_steps(const Config *config, const Loader *loader);

LoopOptions setup_loop(const Config *config, int64_t steps, int n_ranks);

#endif
