/* PPO's advantages over a rollout: rewards a token, generalised advantage estimation, whitening over all ranks. */
#ifndef CRIA_TRAIN_ROLLOUT_GAE_H
#define CRIA_TRAIN_ROLLOUT_GAE_H

#include "train/objectives/rollout.h"

/* The reward of token t is -beta·kl_estimate_t; the answer's score is added at its last state (answer_states); with
 * whiten_rewards all are divided by their standard deviation over the rollout (their mean stays). Fills the answers'
 * advantages and returns from their values, the advantages whitened over the rollout's tokens. `scores` [answers]; one
 * that is NaN, or its answer, takes no part: its advantages are 0 and its returns are its values, which teach nothing.
 * Collective. */
int rollout_gae(Rollout *rollout, const double *scores);

#endif
