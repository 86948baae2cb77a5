/* What loop.c, which trains, and measure.c, which measures and writes the figures, share. */
#ifndef CRIA_TRAIN_LOOP_PARTS_H
#define CRIA_TRAIN_LOOP_PARTS_H

#include "train/console/progress.h"
#include "train/loop/learners.h"
#include "train/loop/loop.h"

struct Loop {
    LoopParts parts;
    LoopOptions options;
    TapeMemory *memory;
    Tape *training, *evaluation;
    double last_save; /* seconds of the monotonic clock */
    Progress progress;
};

/* What ranks must agree on at the end of a step, added up like the sums. */
typedef struct {
    ObjectiveSums sums;
    double interrupted, save_due;
    double step_weight; /* Σw of the step as the loader planned it; 0: nothing to learn (a lone last token) */
} Agreed;

typedef struct {
    Agreed agreed;
    double loss, learning_rate, seconds;
    LearnerNorms norms;
    double forward_flops, data_seconds, compute_seconds, exchange_seconds; /* of this rank */
    GuardVerdict verdict;
} StepResult;

/* ---- loop.c ---- */

/* A sign of life, for the watch over ranks that wait for each other. */
void loop_alive(const Loop *loop, const char *doing);

/* What the objective does before a step's micro-batches. Collective; `rc`: whether this rank has its batch. */
int loop_begin_step(Loop *loop, int rc, const StepBatch *batch);

/* ---- measure.c ---- */

/* Measures the model as it is, and remembers in the state whether it is the best so far. Collective. */
int loop_measure(Loop *loop, LoopState *state, bool *is_best);

/* Progress, what the objective remarks, and the step's row of metrics where one is due; this rank's part. */
int loop_report_step(Loop *loop, const LoopState *state, const StepResult *result);

#endif
