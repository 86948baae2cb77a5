/* The objective of policy-gradient training over a rollout's answers: GRPO (Shao et al. 2024), RLOO (Ahmadian et al.
 * 2024) and PPO (Schulman et al. 2017; Ouyang et al. 2022), which trains a value model beside. The loss depends on the
 * log-probabilities, so its gradients are filled in between the forward and the backward pass; everything it is a mean
 * over is the whole step's. Metrics have TRL's names. */
#ifndef CRIA_TRAIN_POLICY_H
#define CRIA_TRAIN_POLICY_H

#include "train/objectives/objective.h"
#include "train/objectives/rollout.h"

/* The rollout is the caller's; its minibatch is the step's (rollout_update). `value` is PPO's value model, the loop's
 * companion; NULL for the others. */
int policy_objective_new(Objective **objective, Rollout *rollout, Llama *value, int capacity);

#endif
