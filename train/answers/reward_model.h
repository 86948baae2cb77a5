/* A MODEL with a score head (`cria reward` trains one) at work: the scores of prompts, a user's message or messages,
 * with their answers, rendered with the model's own chat template and tokenizer. */
#ifndef CRIA_TRAIN_REWARD_MODEL_H
#define CRIA_TRAIN_REWARD_MODEL_H

#include "train/answers/scorer.h"
#include "train/files/model_file.h"

typedef struct RewardModel RewardModel;
int reward_model_open(RewardModel **model, const char *path);
void reward_model_free(RewardModel *model); /* NULL will do */

/* The row of a head that a name means; "" is the only one. ERR_USAGE, which begins with `option` (the key of the option
 * that names it), where there is no such row or several to choose from. `path` is the model's, for messages. */
int reward_row(int *row, const HfLabels *labels, const char *name, const char *option, const char *path);
const HfLabels *reward_model_labels(const RewardModel *model);

/* scores[r][i]: of answers[i] by row rows[r] of the head, finite. The body is read once for all of them. */
int reward_model_score(const RewardModel *model, const ScoredAnswer *answers, size_t n, const int *rows, int n_rows,
                       double *const *scores);

/* How models are opened for it, and the tokens that are computed at once unless an answer is longer: for plans. */
ModelFileOptions reward_model_options(void);
enum { REWARD_MODEL_BATCH = 4096 };

#endif
