/* How often a model prefers the better answer of a pair: by log-probability, and by log-probability a token; beside a
 * reference by the ratio to it, which is DPO's implicit reward (Rafailov et al. 2023, section 4). */
#ifndef CRIA_TRAIN_EVAL_PAIRS_H
#define CRIA_TRAIN_EVAL_PAIRS_H

#include "data/chat/pairs.h"
#include "model/llama.h"

typedef struct {
    Llama *model, *reference; /* reference: NULL: none */
    const ChatTemplate *chat; /* of the model's tokenizer */
    const ChatColumns *columns;
    char *const *paths;
    size_t n_paths;
    size_t context;
    Overlong overlong;
    /* Called now and then; may be NULL. */
    void (*progress)(void *context, uint64_t records);
    void *progress_context;
} EvalPairsOptions;

typedef struct {
    uint64_t pairs, equal, overlong; /* equal, overlong: left out */
    uint64_t right, right_by_token;
    uint64_t strength_pairs[N_STRENGTHS], strength_right[N_STRENGTHS];
    double margin; /* mean over pairs of log π (or log π/π_ref) of the better answer minus the worse one's */
} PairEvaluation;

/* ERR_REFUSED: a record that is no pair (with file and line), one that is too long where overlong says fail, or none.
 */
int eval_pairs(const EvalPairsOptions *options, PairEvaluation *result);

#endif
