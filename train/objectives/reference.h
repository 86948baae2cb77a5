/* Reference log-probabilities: π_ref of every answer, computed once before training and kept in the run's folder, so
 * that no second model is in memory while the policy learns. They are exact over any packing, and are those of the
 * model's own forward pass: where policy and reference are the same model, rewards begin at 0. */
#ifndef CRIA_TRAIN_REFERENCE_H
#define CRIA_TRAIN_REFERENCE_H

#include "data/loader.h"
#include "dist/mesh.h"
#include "model/llama.h"

typedef struct {
    float *logps; /* [2 · n_samples]: of the first and the second segment of the loader's sample i, at 2i and 2i+1; 0
                     where there is no second */
    int64_t n_samples;
} Reference; /* {0} is empty; reference_free */
void reference_free(Reference *reference);

typedef struct {
    const char *folder; /* the run's */
    const char *name;   /* of the model, for messages */
    Llama *model;
    Loader *loader;
    Mesh *mesh;
    Dtype precision; /* of activations */
    int tokens_per_microbatch;
    bool must_match; /* the run has checkpoints: a file of another model or other data is refused, not replaced */
} ReferenceOptions;

/* Reads FOLDER/reference.safetensors where it is of this model and these data, by a key that covers every parameter and
 * token; else computes it, and writes it. Collective: each rank computes its part. */
int reference_make(Reference *reference, const ReferenceOptions *options);

/* What the pass for it takes, of a model that may have names only. */
int reference_pass_bytes(uint64_t *bytes, Llama *model, int tokens_per_microbatch, Dtype precision);

#endif
