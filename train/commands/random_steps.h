/* Training steps of random tokens whose sequences are all full: what cria bench trains on. */
#ifndef CRIA_TRAIN_RANDOM_STEPS_H
#define CRIA_TRAIN_RANDOM_STEPS_H

#include "configs/config.h"
#include "train/loop/loop.h"

typedef struct {
    Arena arena;
    MicroBatch *micro;
    int n_micro, vocabulary, context;
    int64_t tokens; /* of one step */
    uint64_t seed;
} RandomSteps; /* {0} may be freed */

/* As many sequences of train.context as fit train.tokens_per_batch, cut into micro-batches as the loader cuts them. */
int random_steps_new(RandomSteps *steps, const Config *config, int vocabulary);
void random_steps_free(RandomSteps *steps);

LoopBatches random_steps_batches(RandomSteps *steps);

#endif
