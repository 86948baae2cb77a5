/* What a run trains: the model's parameters; or an adapter's, and what of the frozen model is trained beside it. */
#ifndef CRIA_TRAIN_LOOP_TRAINED_H
#define CRIA_TRAIN_LOOP_TRAINED_H

#include "model/formats/peft.h"
#include "model/lora.h"
#include "optim/optimizer.h"

typedef struct {
    Llama *model;
    Lora *lora;       /* NULL: the model itself is trained */
    Weight **weights; /* untied and trainable, in canonical order: the model's, then the adapter's */
    int n_weights;
} Trained;

/* A second model that the same objective trains, with an optimizer of its own: PPO's value model. */
typedef struct {
    const char *name; /* of its files in a checkpoint: NAME.h5 and NAME_optimizer.h5 */
    Trained trained;
    Optimizer *optimizer;
    double rate;               /* its learning rate over the schedule's */
    const char *base_path;     /* of an adapter: what it is on; NULL: the run's base */
    uint64_t base_fingerprint; /* of that */
} Companion;

/* The list is allocated in the arena. */
int trained_list(Trained *trained, Llama *model, Lora *lora, Arena *arena);
uint64_t trained_elements(const Trained *trained);
/* Of the model, its adapter and the moments. */
size_t trained_bytes(const Trained *trained, const Optimizer *optimizer);
/* The learning rate of weights[i] over the schedule's (OptimParameter's rate). */
double trained_rate(const Trained *trained, int i);

/* Named arrays of the weights, as llama_arrays. */
int trained_arrays(const Trained *trained, WeightStorage storage, Arena *arena, NamedArray **arrays, size_t *n);
/* Reads such arrays into such storage; {0}: into the parameters, and packs them. */
int trained_load(const Trained *trained, WeightStorage storage, const NamedFile *file);

/* What of the model is saved beside the adapter. */
PeftSaved trained_saved(const Trained *trained);

#endif
