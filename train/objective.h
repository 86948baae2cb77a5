/* An objective: what a training stage minimises, as a weighted sum over the whole step (all micro-batches, all ranks).
 * It records its part of the graph once on the training tape and once on an evaluation tape, binds a micro-batch with
 * gradients already scaled by 1/Σw, and collects sums after a forward pass. The loop (loop.c) knows no more than this.
 */
#ifndef CRIA_TRAIN_OBJECTIVE_H
#define CRIA_TRAIN_OBJECTIVE_H

#include "data/loader.h"
#include "dist/mesh.h"
#include "model/llama.h"

enum {
    OBJECTIVE_MAX_SOURCES = 64, /* told apart; the last row is for all others */
    OBJECTIVE_MAX_FIGURES = 24
};

/* What is measured besides the loss: over the step, the mean of what objective_add is given, or an extreme of it. */
typedef struct {
    const char *name; /* TRL's; "eval_" comes before it when validating */
    enum { FIGURE_MEAN, FIGURE_LEAST, FIGURE_MOST } kind;
} ObjectiveFigure;

/* Sums over tokens or samples, added up over micro-batches and ranks: an array of doubles, so that ranks add it in one
 * call; but figures may be extremes (objective_sum). {0} is empty. */
typedef struct {
    double loss;                                                                /* Σ w·ℓ */
    double weight;                                                              /* Σ w */
    double tokens;                                                              /* tokens seen */
    double scored;                                                              /* terms with w > 0 */
    double figure[OBJECTIVE_MAX_FIGURES], figure_weight[OBJECTIVE_MAX_FIGURES]; /* weight 0: not measured */
    double source_loss[OBJECTIVE_MAX_SOURCES], source_weight[OBJECTIVE_MAX_SOURCES];
} ObjectiveSums;
enum { OBJECTIVE_SUMS = sizeof(ObjectiveSums) / sizeof(double) };

typedef struct Objective Objective;
struct Objective {
    const char *name;
    bool is_nll; /* of tokens: the loss's exponential is a perplexity */
    const ObjectiveFigure *figures;
    int n_figures;
    int (*record)(Objective *self, Tape *tape, Llama *model, LlamaRecord record, bool training);
    /* `total_weight` is Σw of the whole step. The micro-batch must stay until collect. */
    int (*bind)(Objective *self, Tape *tape, int buffer, const MicroBatch *micro, double total_weight, bool training);
    void (*collect)(Objective *self, Tape *tape, int buffer, const MicroBatch *micro, bool training,
                    ObjectiveSums *sums);
    void (*free)(Objective *self);
};

/* `value`, `weight` times, to a figure. */
void objective_add(const Objective *objective, ObjectiveSums *sums, int figure, double value, double weight);
/* w·ℓ to the loss, and to the one of its source. */
void objective_add_loss(ObjectiveSums *sums, int source, double loss, double weight);
/* What the ranks have, put together: in rank order, the same bits on all. */
int objective_sum(const Objective *objective, Mesh *mesh, ObjectiveSums *sums);
/* A figure of the sums; NaN where it was not measured. */
double objective_figure(const Objective *objective, const ObjectiveSums *sums, int figure);

/* Negative log-likelihood of the next token: pretraining and SFT. `capacity` is the micro-batch's tokens at most. */
int nll_objective_new(Objective **objective, int capacity);
/* The same, and the entropy. */
int sft_objective_new(Objective **objective, int capacity);

#endif
