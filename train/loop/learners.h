/* What a step trains: the loop's model and, where there is one, its companion. */
#ifndef CRIA_TRAIN_LOOP_LEARNERS_H
#define CRIA_TRAIN_LOOP_LEARNERS_H

#include "train/loop/loop.h"

void learners_zero_gradients(const LoopParts *parts);
/* After the last micro-batch: llama_merge_tied_gradients. */
void learners_merge_tied(const LoopParts *parts);
/* Over all ranks. Collective. */
int learners_sum_gradients(const LoopParts *parts);

/* Of the gradients; companion: 0 where there is none. */
typedef struct {
    double model, companion;
} LearnerNorms;
LearnerNorms learners_norms(const LoopParts *parts);
/* One update of each, clipped by its own norm. */
void learners_update(const LoopParts *parts, double learning_rate, const LearnerNorms *norms);

#endif
