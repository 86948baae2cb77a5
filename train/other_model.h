/* A MODEL beside the one that is trained: a reference, a reward model, what a value model begins as. */
#ifndef CRIA_TRAIN_OTHER_MODEL_H
#define CRIA_TRAIN_OTHER_MODEL_H

#include "train/plan.h"
#include "train/run.h"

/* It must know the run's tokens by the same ids and take train.context of them; an error names `option`, which is its
 * path. */
int other_model_check(const Run *run, OptionId option, const ModelFile *file);

/* What it holds in memory once it is opened so, of an adapter its base too, the mapped file left out; with a `pass`
 * also what that says of the model, which has names only. Where PATH is not there yet, *bytes is 0, there is no pass,
 * and a note says so. */
int other_model_bytes(uint64_t *bytes, MemoryPlan *plan, const char *path, ModelFileOptions options,
                      int (*pass)(uint64_t *bytes, Llama *model, void *context), void *context);

#endif
