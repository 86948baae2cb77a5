/* What was sampled, as a rollout's answer and as what scorers are given. */
#ifndef CRIA_TRAIN_ROLLOUT_ANSWER_H
#define CRIA_TRAIN_ROLLOUT_ANSWER_H

#include "eval/generator.h"
#include "train/answers/scorer.h"
#include "train/objectives/rollout.h"

/* The rollout's answer `number`: the prompt, what was generated, and the token that ended it. *text is the caller's
 * (json_decref), and `scored`, whose index is `index`, points into it. `sequence` is room that may be used again. */
int rollout_add_generation(Rollout *rollout, int number, const Prompt *prompt, int64_t index,
                           const Generation *generation, TokenList *sequence, json_t **text, ScoredAnswer *scored);

#endif
