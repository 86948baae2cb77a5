/* A sequence as it grows: its tokens, its text, and what ends it. */
#ifndef CRIA_EVAL_CONTINUATION_H
#define CRIA_EVAL_CONTINUATION_H

#include "eval/generator.h"
#include "model/core/text.h"

typedef struct {
    TokenList tokens; /* prompt and continuation */
    size_t n_prompt;  /* of them from the prompt */
    Text text;        /* of the continuation so far */
    size_t emitted;   /* bytes of it given to emit */
    float *logprobs;
    size_t n_logprobs, logprobs_capacity;
    int32_t stop_token; /* that ended it; -1: none */
} Continuation;

int continuation_begin(Continuation *c, const TokenList *prompt);
void continuation_free(Continuation *c);

/* Takes the token in. *finished where the sequence ends with it; `max_sequence` tokens are the most. `sequence` is for
 * emit. */
int continuation_add(Continuation *c, const Tokenizer *tokenizer, int32_t id, double logprob,
                     const GenerateOptions *options, size_t max_sequence, size_t sequence, FinishReason *reason,
                     bool *finished);

/* What came of it; *c is empty then. */
int continuation_end(Continuation *c, FinishReason reason, Generation *out);

#endif
