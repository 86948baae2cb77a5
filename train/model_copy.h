/* A model's parameters on their way from one file to another: streamed slice by slice and converted, so that a model
 * larger than memory passes through. What import and export have in common. */
#ifndef CRIA_TRAIN_MODEL_COPY_H
#define CRIA_TRAIN_MODEL_COPY_H

#include "model/core/arena.h"
#include "train/model_file.h"
#include "train/progress.h"

/* Changes elements [first, first + n) of an array, [rows, cols] in fp32, on their way. */
typedef int (*ModelCopyChange)(void *context, const NamedFile *file, const NamedArray *array, size_t first, size_t n,
                               float *values);

typedef struct {
    ModelFile file;
    ModelCopyChange change; /* or NULL: set after model_copy_open */
    void *change_context;
    NamedSource *sources; /* the parameters in canonical order, a tied head left out; room for one more */
    size_t n;
    uint64_t elements, bytes; /* of all sources, as they will be stored */
    Arena arena;
    Progress progress;
    int64_t done; /* bytes */
} ModelCopy;      /* does not move: the sources point into it */

typedef struct {
    const char *tokenizer; /* instead of the model's own; NULL: its own */
    bool need_tokenizer;
    const char *dtype; /* to store: "fp32", "bf16", "fp16"; NULL: as it is (fp64 as fp32) */
} ModelCopyOptions;

/* Opens any MODEL. copy->file.config.dtype says what will be stored. */
int model_copy_open(ModelCopy *copy, const char *path, ModelCopyOptions options);

/* Makes the folder TO (new_directory.h) of what `write` puts into `directory`, with a live line. Ctrl-C and SIGTERM end
 * it with ERR_INTERRUPTED; whatever happens, TO is complete or as it was. `verb`: "import", for messages. */
typedef int (*ModelCopyWrite)(ModelCopy *copy, const char *directory, const void *context);
int model_copy_write(ModelCopy *copy, const char *to, const char *verb, ModelCopyWrite write, const void *context);

/* The same for a single file TO (new_file.h), which `write` makes at `path`. */
int model_copy_write_file(ModelCopy *copy, const char *to, const char *verb, ModelCopyWrite write, const void *context);

void model_copy_close(ModelCopy *copy);

#endif
