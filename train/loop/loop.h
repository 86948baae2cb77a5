/* The one training loop: every stage (pretrain, sft, …) is this with another objective. */
#ifndef CRIA_TRAIN_LOOP_H
#define CRIA_TRAIN_LOOP_H

#include "dist/mesh.h"
#include "dist/watchdog.h"
#include "model/lora.h"
#include "optim/guard.h"
#include "optim/optimizer.h"
#include "train/console/metrics.h"
#include "train/objectives/objective.h"
#include "train/loop/trained.h"

typedef struct {
    int64_t steps;
    int64_t validate_every;    /* 0: at the end only */
    int64_t validation_tokens; /* 0: all */
    int64_t checkpoint_every;  /* 0: by time only */
    double checkpoint_minutes; /* 0: by steps only */
    int64_t early_stopping;    /* validations without improvement; 0: never */
    int64_t whole_steps;       /* measured, saved and stopped only after a multiple of so many; 0 means 1 */
    int64_t log_every;
    int tokens_per_microbatch;
    int max_segments; /* of a micro-batch */
    Recompute recompute;
    Dtype precision; /* of activations */
    Schedule schedule;
    double peak_flops; /* of this rank's machine, for the share of peak; 0: not measured */
} LoopOptions;

/* Where steps come from when not from the loader; `step` is as loader_step. */
typedef struct {
    void *context;
    int (*step)(void *context, int64_t step, StepBatch *batch); /* NULL: the loader */
} LoopBatches;

/* What a checkpoint must hold besides arrays for the run to go on as if nothing had happened. */
typedef struct {
    int64_t step;    /* the next step to run = loader steps consumed */
    int64_t updates; /* optimizer updates applied: t of the bias correction */
    int64_t tokens;  /* seen */
    double best_loss;
    int64_t best_step, stale_validations; /* best_step -1: no validation yet */
    double seconds;                       /* of training, over all sessions */
    Guard guard;
} LoopState;

typedef struct Loop Loop;

/* What the loop asks of its surroundings; every rank is called, rank 0 writes. */
typedef struct {
    void *context;
    int (*save)(void *context, const LoopState *state, bool is_best);
    int (*load_newest)(void *context, LoopState *state); /* after a roll-back */
    /* In the validation set's place; NULL: the loader's. *found is false where nothing was measured. */
    int (*measure)(void *context, const LoopState *state, double *loss, bool *found);
    int (*sample)(void *context, const LoopState *state); /* NULL: no sample texts */
    bool (*sample_due)(void *context, const LoopState *state);
} LoopHooks;

typedef struct {
    Llama *model;
    Lora *lora;     /* trained on the model in its place; NULL: the model is trained */
    Loader *loader; /* may be NULL where `batches` is given and loop_run is not called */
    LoopBatches batches;
    Optimizer *optimizer;
    const Companion *companion; /* trained beside, by the same objective; NULL: none */
    Objective *objective;
    Mesh *mesh;
    MetricsWriter *metrics; /* rank 0; NULL elsewhere */
    Watchdog *watchdog;     /* is told of every sign of life; may be NULL */
    LoopHooks hooks;
} LoopParts;

/* Records and plans the tapes; everything in parts stays the caller's. */
int loop_new(Loop **loop, const LoopParts *parts, const LoopOptions *options);
void loop_free(Loop *loop);
size_t loop_tape_bytes(const Loop *loop);
Tape *loop_training_tape(Loop *loop); /* for profiles */

/* Whether nothing is left to do: all steps were run, or early stopping has ended the run. */
bool loop_finished(const Loop *loop, const LoopState *state);

/* Trains from *state to options.steps. ERR_INTERRUPTED after a signal, with a checkpoint saved. */
int loop_run(Loop *loop, LoopState *state);

/* The validation loss and what belongs to it, of the model as it is. */
typedef struct {
    double loss, accuracy, entropy; /* entropy: 0 where the objective does not measure it */
    ObjectiveSums sums;             /* of all of it */
    int64_t tokens; /* scored; 0: nothing was held out that another token foretells, and the losses mean nothing */
} Validation;
int loop_validate(Loop *loop, Validation *result);

/* What one step did and where its time went; seconds is the whole. */
typedef struct {
    double loss, grad_norm, learning_rate;
    double forward_flops; /* of this rank's forward passes; forward and backward are three times that */
    double seconds, data_seconds, compute_seconds, exchange_seconds, update_seconds; /* update: norm, clip, AdamW */
    bool applied;                                                                    /* the guard found nothing wrong */
    ObjectiveSums sums;                                                              /* over all ranks */
} LoopStep;
/* One training step, the one that loop_run repeats: data, forward, backward, sum over ranks, update. Nothing is
 * reported or saved, and a bad step is not answered. */
int loop_step(Loop *loop, LoopState *state, LoopStep *result);

/* One step's gradients without an update (tests): the sums over all ranks. */
int loop_gradients(Loop *loop, int64_t step, ObjectiveSums *sums);

#endif
