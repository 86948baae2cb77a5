/* What a run keeps on disk: checkpoints that hold everything a run needs to go on, and everything a model is. */
#ifndef CRIA_TRAIN_RUN_FILES_H
#define CRIA_TRAIN_RUN_FILES_H

#include "data/tokenizer/tokenizer.h"
#include "dist/mesh.h"
#include "model/llama.h"
#include "optim/optimizer.h"
#include "train/loop/loop.h"
#include "train/files/model_file.h"
#include "train/loop/trained.h"

typedef struct {
    const char *output;     /* the run's folder */
    const Trained *trained; /* the arrays kept: an adapter's where it has one */
    Optimizer *optimizer;
    const Companion *companion; /* kept beside it; NULL: none */
    const Tokenizer *tokenizer;
    const ModelFile *base;  /* what training began from: its stop tokens and chat template stay; NULL: nothing */
    const HfLabels *labels; /* of the model's score head, where it has one; may be NULL */
    const char *base_path;  /* with an adapter: of the model it belongs to, and its fingerprint */
    uint64_t base_fingerprint;
    const char *chat_template;  /* Jinja, instead of the base's; NULL: the base's */
    const int32_t *stop_tokens; /* that end an answer, besides EOS */
    size_t n_stop_tokens;
    const char *resolved_config; /* YAML */
    uint64_t data_fingerprint;   /* loader_fingerprint */
    Mesh *mesh;
    int keep_last;
} RunFiles;

/* Writes checkpoints/step-N and prunes old ones. Every rank calls it; rank 0 writes, all learn whether it worked. */
int run_save(const RunFiles *files, const LoopState *state, bool is_best);

/* Fills model, moments and *state from a checkpoint's folder. Every rank reads it. A checkpoint of other data is
 * refused; other kernels or threads than then are a warning, since bits may differ from an uninterrupted run. */
int run_load(const RunFiles *files, const char *folder, LoopState *state);

#endif
