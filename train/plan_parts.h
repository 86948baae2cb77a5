/* The parts of a memory plan, each asked of the code that will allocate it: the model and the tapes are recorded
 * without storage, the loader's sizes come from data/estimate.c, the optimizer's from optimizer_bytes_for. */
#ifndef CRIA_TRAIN_PLAN_PARTS_H
#define CRIA_TRAIN_PLAN_PARTS_H

#include "train/plan.h"

/* The model as a run of this config allocates it, and its adapter (NULL: none), the caller's to free; names only. Of
 * plan->shape, which must be known. */
int plan_model_names(Llama **model, Lora **lora, const MemoryPlan *plan, const Config *config, int n_positions);

/* The activations of a run so configured: both tapes are recorded and planned, as the loop does it. */
int plan_activations(uint64_t *bytes, Llama *model, int64_t microbatch, Recompute recompute, const Config *config);

/* Counts a model that is trained, or the adapter on it, with gradients and moments; *elements (may be NULL): how many
 * numbers. Values of a frozen model are not counted. */
int plan_add_trained(MemoryPlan *plan, uint64_t *elements, Llama *model, Lora *lora, const Config *config);

/* What the model and its adapter take whatever the micro-batch, in place of what they took before. */
int plan_weights(MemoryPlan *plan, Llama *model, Lora *lora, const Config *config);

/* The model, its activations, what `stage` (may be NULL) adds, and saving. */
int plan_model(MemoryPlan *plan, const Config *config, const Tokenizer *tokenizer, StagePlan stage);

/* What a step of one rank computes, and what recomputation adds. */
void plan_step(MemoryPlan *plan, const Config *config);

/* The order of the data, a step's arrays, and the making of the token cache; without data, a note. */
int plan_data(MemoryPlan *plan, const Config *config, const Tokenizer *tokenizer);

#endif
