/* What a run of cria ppo holds besides what every run does. */
#ifndef CRIA_TRAIN_PPO_PLAN_H
#define CRIA_TRAIN_PPO_PLAN_H

#include "data/tokenizer/tokenizer.h"
#include "model/llama.h"
#include "train/plan.h"

/* Adds to the plan: the reference (under an adapter there is none of its own, unless ppo.reference names one), the value
 * model with gradients, moments and activations, reward models, the passes for log-probabilities and values, a rollout's
 * answers at their longest, and, where it is more than saving takes, the cache for sampling. The model may have names
 * only. */
int ppo_plan(MemoryPlan *plan, Llama *model, const Config *config, const Tokenizer *tokenizer);

#endif
