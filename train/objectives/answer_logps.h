/* The log-probability of every segment's learned tokens: what losses on preferences are functions of. */
#ifndef CRIA_TRAIN_ANSWER_LOGPS_H
#define CRIA_TRAIN_ANSWER_LOGPS_H

#include "train/objectives/micro_batch.h"
#include "model/llama.h"

typedef struct {
    Tensor *weights; /* input [T, 1]: the micro-batch's weights */
    HeadOutputs head;
    Tensor *logps; /* [S, 1] Σ w·log p over each segment's tokens; kept */
} AnswerLogps;

/* `metrics`: entropy, top-1 and mean logit too, all kept. */
AnswerLogps answer_logps_record(Tape *tape, Llama *model, LlamaRecord record, bool metrics);

/* Binds the micro-batch and its weights. */
int answer_logps_bind(const AnswerLogps *recorded, Tape *tape, int buffer, const MicroBatch *micro,
                      const MicroBuffers *buffers);

/* The graphs of an objective that is a function of them, metrics included: its gradient, a number for each segment,
 * is known after the forward pass and put into buffers.gradient before backward. */
typedef struct {
    AnswerLogps graph[2]; /* by `training` */
    Tensor *gradient;     /* input [S, 1]: dL/dlogps; training only */
    MicroBuffers buffers;
} AnswerGraphs;
int answer_graphs_record(AnswerGraphs *graphs, Tape *tape, Llama *model, LlamaRecord record, bool training);
int answer_graphs_bind(const AnswerGraphs *graphs, Tape *tape, int buffer, const MicroBatch *micro, bool training);

/* Of one segment's learned tokens, after forward with metrics: sums, and the least that a loss wants to know. */
typedef struct {
    double logp;                     /* Σ w·log p */
    double length;                   /* Σ w */
    double n;                        /* tokens with w > 0 */
    double logits, entropy, correct; /* over these: mean logits, entropies, and how many are the most likely */
} AnswerSums;
AnswerSums answer_sums(const AnswerLogps *recorded, Tape *tape, int buffer, const MicroBatch *micro, int segment);

#endif
