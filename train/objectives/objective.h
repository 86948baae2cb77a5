/* An objective: what a training stage minimises, as a weighted sum over the whole step (all micro-batches, all ranks).
 * It records its part of the graph once on the training tape and once on an evaluation tape, binds a micro-batch with
 * gradients already scaled by 1/Σw, and collects sums after a forward pass. The loop (train/loop) knows no more than
 * this.
 */
#ifndef CRIA_TRAIN_OBJECTIVE_H
#define CRIA_TRAIN_OBJECTIVE_H

#include "data/loader.h"
#include "dist/mesh.h"
#include "model/core/text.h"
#include "model/llama.h"

enum {
    OBJECTIVE_MAX_SOURCES = 64, /* told apart; the last row is for all others */
    OBJECTIVE_MAX_METRICS = 64,
};

/* Sums over tokens, added up over micro-batches and ranks: an array of doubles, so that ranks add it in one call. */
typedef struct {
    double loss;    /* Σ w·ℓ */
    double weight;  /* Σ w */
    double tokens;  /* tokens seen */
    double scored;  /* tokens with w > 0 */
    double correct; /* of those, top-1 equals the target */
    double entropy; /* of those, the sum of the distributions' entropies; 0 where it is not asked for */
    double source_loss[OBJECTIVE_MAX_SOURCES], source_weight[OBJECTIVE_MAX_SOURCES];
    double metric[OBJECTIVE_MAX_METRICS], metric_weight[OBJECTIVE_MAX_METRICS]; /* the objective's own: Σ and Σw */
} ObjectiveSums;
enum { OBJECTIVE_SUMS = sizeof(ObjectiveSums) / sizeof(double) };

typedef struct Objective Objective;
struct Objective {
    const char *name;
    bool no_tokens; /* what is scored are answers: no token is foretold, and there is no mean_token_accuracy */
    /* Metrics of its own: each is told as metric / metric_weight, where the weight is above 0. A name that is NULL is
     * of sums that only `finish` and `watch` use. Without metrics the loss is a likelihood's. */
    const char *const *metrics;
    int n_metrics, headline; /* headline: the one told with the validation loss, a share */
    Text remarks;            /* of `watch`, a line each; who has written them down clears it */
    uint64_t least, most;    /* bits: metrics that are the least, or the most, of what objective_extreme was given */
    int (*record)(Objective *self, Tape *tape, Llama *model, LlamaRecord record, bool training);
    /* May be NULL. Before the first micro-batch of a step, on every rank at once: figures over the whole step that its
     * gradients depend on, from forward passes on the evaluation tape. */
    int (*begin_step)(Objective *self, Tape *evaluation, const StepBatch *step, Mesh *mesh);
    /* May be NULL. First of all with a micro-batch in training: forward and backward of a second model that the
     * objective trains (the loop's companion), on a tape of its own, which may share the memory of the training tape.
     */
    int (*companion)(Objective *self, const MicroBatch *micro, const StepBatch *step, ObjectiveSums *sums);
    /* Before a micro-batch's forward pass. `step` has the sums over the whole step. The micro-batch must stay until
     * backward is done. */
    int (*bind)(Objective *self, Tape *tape, int buffer, const MicroBatch *micro, const StepBatch *step, bool training);
    /* After it, and before backward: what the gradients depend on may be read here, and the gradients that were bound
     * filled in. */
    int (*collect)(Objective *self, Tape *tape, int buffer, const MicroBatch *micro, const StepBatch *step,
                   bool training, ObjectiveSums *sums);
    /* May be NULL. Once the sums are over all micro-batches and ranks, of a step or of a validation. */
    void (*finish)(Objective *self, ObjectiveSums *sums);
    /* May be NULL. Sees every training step's sums on rank 0, to say in words what they show. */
    void (*watch)(Objective *self, int64_t step, const ObjectiveSums *sums);
    void (*free)(Objective *self);
};

/* One loss more, already times its weight, of a source of the data. */
static inline void objective_add_loss(ObjectiveSums *sums, int source, double loss, double weight) {
    int row = source < OBJECTIVE_MAX_SOURCES ? source : OBJECTIVE_MAX_SOURCES - 1;
    sums->loss += loss;
    sums->weight += weight;
    sums->source_loss[row] += loss;
    sums->source_weight[row] += weight;
}
/* Σ and Σw of one of the objective's own metrics. */
static inline void objective_add(ObjectiveSums *sums, int metric, double value, double weight) {
    sums->metric[metric] += value;
    sums->metric_weight[metric] += weight;
}

/* The end of a constructor: where `rc` is an error, *objective is freed and NULL. */
int objective_made(Objective **objective, int rc);

/* What `watch` has found: a warning for each line, which `remarks` has too. */
void objective_tell(Objective *self, int64_t step, const Text *found);

/* One value more for a metric that is an extreme. */
void objective_extreme(const Objective *objective, ObjectiveSums *sums, int metric, double value);
/* Before ranks add up their sums: the extremes over all of them, left on rank 0 alone. */
int objective_share_extremes(const Objective *objective, Mesh *mesh, ObjectiveSums *sums);

/* Negative log-likelihood of the next token: pretraining and SFT. `capacity` is the micro-batch's tokens at most. */
int nll_objective_new(Objective **objective, int capacity);
/* The same, and the entropy. */
int sft_objective_new(Objective **objective, int capacity);

#endif
