/* PPO's value model: what it begins as, and what the loop and the checkpoints know of it. It is a model with a score
 * head of its own, of one row; under adapters (lora.rank) it is an adapter and a head on the policy's frozen base, or,
 * where it begins as a whole model, on that one's, which is read for it and frozen likewise. */
#ifndef CRIA_TRAIN_PPO_VALUE_H
#define CRIA_TRAIN_PPO_VALUE_H

#include "train/run.h"

typedef struct {
    Llama *model;
    Lora *lora;     /* NULL: the model itself is trained */
    ModelFile body; /* what it is on under an adapter, where that is not the policy's base */
    Companion companion;
    Arena arena;
} ValueModel; /* {0} is none */

/* From ppo.value_model, the reward model or the policy, which is run->model before any checkpoint is loaded into it and
 * before it has an adapter. Does not say what it begins as: value_model_start does. */
int value_model_new(ValueModel *value, const Run *run);
void value_model_free(ValueModel *value);

/* Sets the values it begins with, and no moments. A model that must be read is read again. */
int value_model_start(ValueModel *value, const Run *run);

/* The whole model that it begins as, and whose body it has, under lora.rank: malloc'd; NULL: it has the policy's. What
 * is not there counts as one. */
int value_model_body(char **path, const Config *config);
/* How that is opened. */
ModelFileOptions value_body_options(const Config *config);

#endif
