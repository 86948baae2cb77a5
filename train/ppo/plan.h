/* What a run of cria ppo holds besides what every run does. */
#ifndef CRIA_TRAIN_PPO_PLAN_H
#define CRIA_TRAIN_PPO_PLAN_H

#include "data/tokenizer/tokenizer.h"
#include "model/llama.h"
#include "train/plan.h"

/* ppo.samples where the config leaves it to the algorithm, and train.tokens_per_batch: a step is as many answers as
 * there are, so that it has no part in that but to bound a micro-batch. */
void ppo_settle(Config *config);
/* Whether the config is one of cria ppo's: some ppo option is set. */
bool ppo_is_planned(const Config *config);

/* StagePlan: adds the reference (under an adapter there is none of its own, unless ppo.reference names one), the
 * value model with gradients, moments and activations, reward models, the passes for log-probabilities and values, a
 * rollout's answers at their longest, and, where it is more than saving takes, the cache for sampling. */
int ppo_plan(MemoryPlan *plan, Llama *model, const Config *config, const Tokenizer *tokenizer);

#endif
