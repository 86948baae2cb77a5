/* What an answer to a prompt is worth, by a rule or by a program of the user's. */
#ifndef CRIA_TRAIN_SCORER_H
#define CRIA_TRAIN_SCORER_H

#include "train/prompts.h"

typedef struct {
    const Prompt *prompt;
    const char *text; /* the answer's, without the stop token: `size` bytes */
    size_t size;
    const int32_t *ids; /* prompt and answer, its stop token included */
    int n_ids, n_prompt;
    bool finished; /* it ended by itself */
} ScoredAnswer;

typedef struct Scorer Scorer;
struct Scorer {
    const char *name; /* for metrics */
    /* scores[i] of answers[i]; NaN where it cannot be judged. */
    int (*score)(Scorer *self, const ScoredAnswer *answers, size_t n, double *scores);
    void (*free)(Scorer *self);
};

/* Rules, each 1 where it holds, else 0:
 *
 *   contains:TEXT  the answer has TEXT in it
 *   short:N        it ended by itself within N tokens, its stop token included
 *   number         its last number is that of the record's own answer (GSM8K: the one after ####)
 *   exact          it is the record's own answer, but for white space at the ends
 *
 * `number` and `exact` cannot judge where the record has no answer (no number in it). ERR_USAGE: no such rule. */
int scorer_rule_new(Scorer **scorer, const char *rule);

/* A shell command that is run for every list of answers: it reads on stdin one line of JSON an answer,
 *
 *   {"prompt": "…" or [{"role": …, "content": …}, …], "completion": "…", "finished": true, "tokens": 12, "record": {…}}
 *
 * and writes a line with a number for each, in their order, or null where it cannot judge. ERR_FAILED where it ends
 * with another status than 0 or writes anything else. */
int scorer_program_new(Scorer **scorer, const char *command);

#endif
