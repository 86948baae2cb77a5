/* From the config's lora.* to an adapter, and from an adapter to the optimizer. */
#ifndef CRIA_TRAIN_LORA_SETUP_H
#define CRIA_TRAIN_LORA_SETUP_H

#include "configs/config.h"
#include "model/lora.h"
#include "optim/optimizer.h"

/* *wanted: whether lora.rank asks for an adapter. The options' dropout has the run's seed. */
int setup_lora(LoraOptions *options, bool *wanted, const Config *config);

/* The adapter's parameters as the optimizer takes them, in the order of lora->weights, in the arena. */
int setup_lora_parameters(OptimParameter **parameters, size_t *n, const Lora *lora, Arena *arena);

#endif
