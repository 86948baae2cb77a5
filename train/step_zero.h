/* What must hold before the first step of a run that trains an adapter. */
#ifndef CRIA_TRAIN_STEP_ZERO_H
#define CRIA_TRAIN_STEP_ZERO_H

#include "train/run.h"

/* ERR_FAILED unless the model with its fresh adapter has on this rank's first micro-batch the loss of the model without
 * it, to the last bit. The loader is left as it was; no memory is kept. */
int check_fresh_adapter(Run *run, const LoopOptions *options);

#endif
