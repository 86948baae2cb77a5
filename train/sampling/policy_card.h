/* What a policy is worth on prompts, and how far it is from a reference: answers are sampled from it, scored, and their
 * log-probabilities compared as reinforcement learning compares them, so that models made in any way are measured
 * alike. */
#ifndef CRIA_TRAIN_POLICY_CARD_H
#define CRIA_TRAIN_POLICY_CARD_H

#include "train/answers/scorer.h"
#include "train/objectives/rollout.h"
#include "train/sampling/answering.h"

/* A mean over prompts (of each the mean of its answers), and its standard error: NaN with one prompt. */
typedef struct {
    double mean, error;
} PolicyFigure;

typedef struct {
    RolloutFigures all;
    PolicyFigure reward, kl; /* KL(policy ‖ reference) of an answer in nats: E[Σ_t log p - log p_ref], y ~ policy */
    double length_correlation; /* of reward and length; NaN where one does not vary */
    int prompts, answers;
} PolicyCard;

typedef struct {
    Answering *answering; /* the policy and the prompts */
    Llama *reference;     /* NULL: none, and no KL */
    Scorer *scorer;
    int samples; /* of each prompt, at least 1 */
    int max_batch;
    GenerateOptions how; /* of the whole distribution: temperature > 0, no filter and no penalty */
} PolicyCardOptions;

/* A KL divergence is one of whole distributions: temperature 1 and all tokens where generate.* does not say otherwise,
 * and ERR_USAGE where it says so. */
int policy_card_sampling(Config *config);

/* The mesh is one process. */
int policy_card(PolicyCard *card, const PolicyCardOptions *options, Mesh *mesh);

#endif
