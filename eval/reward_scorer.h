/* Rewards of texts by a model with a score head: the scores at each one's last token, one for each of the head's rows.
 * What a reward model's report, the best of several samples and PPO's reward are made of. */
#ifndef CRIA_EVAL_REWARD_SCORER_H
#define CRIA_EVAL_REWARD_SCORER_H

#include "model/llama.h"

typedef struct RewardScorer RewardScorer;

typedef struct {
    const int32_t *ids; /* a prompt and its answer, as the template renders them, to the last token */
    size_t n;
} RewardText;

/* `tokens`: of a batch, at most, unless a single text is longer. `dtype`: DTYPE_F32 or DTYPE_BF16, as the model has its
 * matrices (llama_inference_dtype). The model stays the caller's; its parameters may change between calls. */
int reward_scorer_new(RewardScorer **scorer, Llama *model, int tokens, Dtype dtype);
void reward_scorer_free(RewardScorer *scorer);

/* rewards[n, n_scores], row i of texts[i]; texts are computed together, as many as fit, and a reward does not depend on
 * which (to rounding). ERR_REFUSED for an empty text, and for one longer than the model's rotary table. `progress` (may
 * be NULL) is told the texts done. */
int reward_scorer_score(RewardScorer *scorer, const RewardText *texts, size_t n, float *rewards,
                        void (*progress)(void *context, size_t done), void *context);

/* What it holds beside the model for a batch of its `tokens`: its tape and arrays. The model may have names only. */
int reward_scorer_bytes(RewardScorer *scorer, uint64_t *bytes);

#endif
