/* A model's parameters on their way from one file to another: streamed slice by slice and converted, so that a model
 * larger than memory passes through. An adapter is merged into its base on the way. What import, export and merge have
 * in common. */
#ifndef CRIA_TRAIN_MODEL_COPY_H
#define CRIA_TRAIN_MODEL_COPY_H

#include "model/core/arena.h"
#include "train/files/model_file.h"
#include "train/console/progress.h"

typedef struct {
    ModelFile file;
    const Lora *lora; /* merged into the matrices on their way: the file's own, or set after model_copy_open; or NULL */
    float *rows;      /* room for a slice of a merged matrix and what its first and last row lack */
    size_t room;
    /* Changes elements [first, first + n) of an array on their way; NULL: none. Set after model_copy_open. */
    int (*change)(void *context, const char *name, size_t first, size_t n, float *values);
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
    const char *base;  /* of an adapter, instead of the one it names */
    bool adapter;      /* of an adapter: its own arrays, apart from its base */
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
