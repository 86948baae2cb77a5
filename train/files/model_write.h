/* What import, export and merge make of a model on its way: ModelCopyWrite functions. */
#ifndef CRIA_TRAIN_MODEL_WRITE_H
#define CRIA_TRAIN_MODEL_WRITE_H

#include "train/files/model_copy.h"

/* A Hugging Face directory. context: const uint64_t *, the largest shard in bytes (0: 5 GB). */
int model_write_hugging_face(ModelCopy *copy, const char *directory, const void *context);
/* A folder like a run's, with one checkpoint. context: not used. */
int model_write_checkpoint(ModelCopy *copy, const char *run, const void *context);
/* The same of the adapter that was opened, apart from its base. */
int model_write_adapter(ModelCopy *copy, const char *run, const void *context);

#endif
