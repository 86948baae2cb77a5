/* The adapter of a run: how it begins, and what must hold before the first step. */
#ifndef CRIA_TRAIN_RUN_ADAPTER_H
#define CRIA_TRAIN_RUN_ADAPTER_H

#include "train/run.h"

/* What the config says of an adapter, before anything is opened. */
int run_check_adapter_options(const Config *config);

/* run->lora on run->model, where lora.rank asks for one, as run_start_adapter leaves it. */
int run_make_adapter(Run *run);
/* Fresh from the run's seed, or lora.init's. */
int run_start_adapter(Run *run);
/* Keeps a score head as it was, for run_restart_adapter. */
int run_remember_head(Run *run);
/* What is trained beside the adapter, and then the adapter, as they began: for a roll-back. */
int run_restart_adapter(Run *run);
/* An adapter's values, and the score head and vocabulary that were trained beside it, into one on the run's base. It
 * must be of that base and have the same options: an error names `option`, which PATH is the value of. */
int run_load_adapter(const Run *run, Lora *lora, OptionId option, const char *path);

/* ERR_FAILED unless the model with its fresh adapter has on the first 64 tokens of this rank's first micro-batch the
 * log-probabilities (or scores) of the model without it, to the last bit. The loader is left as it was; no memory is
 * kept. */
int run_check_adapter(Run *run, const LoopOptions *options);

void run_announce_adapter(const Run *run);

#endif
