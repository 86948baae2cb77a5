/* Answers as micro-batches: each is one segment, its prompt and itself, and its own tokens' predictions are what
 * counts.
 */
#ifndef CRIA_TRAIN_ANSWER_BATCH_H
#define CRIA_TRAIN_ANSWER_BATCH_H

#include "data/loader.h"

typedef struct {
    int32_t *tokens; /* [n_tokens] the prompt's, then the answer's; NULL: another rank's */
    int n_tokens, n_prompt;
    float *sampled;             /* log-probabilities of the answer's tokens, recorded when sampling; NULL: not */
    float *lse;                 /* log-sum-exp of its logits: what the rounding of a log-probability goes by */
    float *logprob, *reference; /* the same from the training graph, and of the reference (NULL: none) */
    double advantage;           /* of each of its tokens */
    float *values;              /* PPO: of its states (answer_states), by the value model then; NULL: none */
    double *advantages;         /* PPO: of its states, in `advantage`'s place; beyond its tokens' they mean nothing */
    double *returns;            /* PPO: of its states: what their values are to be */
} Answer;

static inline int answer_length(const Answer *answer) {
    return answer->n_tokens - answer->n_prompt;
}

/* The arrays of some micro-batches, in memory that only grows. */
typedef struct {
    MicroBatch *micro;
    int micro_capacity;
    unsigned char *block;
    size_t block_size;
} AnswerBatch; /* {0} is empty */
void answer_batch_free(AnswerBatch *memory);

/* Fills batch->micro and n_micro with answers[chosen[0…n)] in their order, each micro-batch as many as fit `capacity`
 * tokens; an answer that does not is an error. weights are 1 where the target is one of the answer's tokens, else 0;
 * sample_id and segment are the answers' numbers. Valid until the next call with the same memory. */
int answer_batch_fill(StepBatch *batch, AnswerBatch *memory, const Answer *answers, const int *chosen, int n,
                      int capacity);

#endif
