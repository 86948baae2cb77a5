/* The objective of `cria reward`: the mean over the step's pairs of reward_loss (reward_loss.h), with rewards from the
 * model's score head at each answer's last token. Of a head with several rows a pair reads, and trains, the one that
 * its mark names (SampleMark's objective); all of them train the body. Metrics by the names of TRL 1.16's
 * RewardTrainer; but where that averages a step's micro-batches, these are of the whole step. Each is told for every
 * named row too, as "accuracy/safety", with "objective_loss/safety" beside them. */
#ifndef CRIA_TRAIN_REWARD_OBJECTIVE_H
#define CRIA_TRAIN_REWARD_OBJECTIVE_H

#include "model/formats/hf_config.h"
#include "train/objectives/objective.h"
#include "train/objectives/reward_loss.h"

typedef struct {
    RewardMargin margin;
    double center_coefficient; /* 0: not centred */
    HfLabels labels;           /* of the rows of the model's head */
} RewardOptions;

/* `capacity` is the micro-batch's tokens at most. The loader's samples are pairs, the model has a score head. */
int reward_objective_new(Objective **objective, int capacity, RewardOptions options);

#endif
