/* PPO's value model at work: the values of a rollout's states (answer_states), and the clipped loss by which it learns
 * them, on a tape of its own. */
#ifndef CRIA_TRAIN_VALUE_H
#define CRIA_TRAIN_VALUE_H

#include "train/objectives/rollout.h"

typedef struct ValuePass ValuePass;
typedef struct {
    int capacity; /* tokens of a micro-batch */
    Dtype precision;
    TapeMemory *memory; /* shared with other tapes; NULL: its own */
    bool training;      /* value_pass_learn will be called */
    Recompute recompute;
} ValuePassOptions;
/* `model` has a score head. */
int value_pass_new(ValuePass **pass, Llama *model, ValuePassOptions options);
void value_pass_free(ValuePass *pass);
size_t value_pass_bytes(const ValuePass *pass); /* of its plan */

/* Fills the values of this rank's answers. */
int rollout_values(Rollout *rollout, ValuePass *pass, int capacity);

typedef struct {
    double loss;    /* Σ over states of value_loss */
    double clipped; /* how many are clipped */
    double states;
} ValueSums;
/* Forward and backward of value_weight · the mean of value_loss over the update's states (rollout->minibatch_states),
 * this micro-batch's part. Adds to the sums. */
int value_pass_learn(ValuePass *pass, const Rollout *rollout, const MicroBatch *micro, ValueSums *sums);

#endif
