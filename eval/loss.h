/* The loss of a model on a text: mean negative log-likelihood a token, perplexity, bits a byte. */
#ifndef CRIA_EVAL_LOSS_H
#define CRIA_EVAL_LOSS_H

#include "data/tokenizer/tokenizer.h"
#include "model/llama.h"

typedef enum {
    /* The text after BOS (where the tokenizer has one) in windows of `window` inputs; every token is scored once. */
    SCORE_ALL,
    /* llama.cpp's protocol: chunks of `window` tokens, the first of each replaced by BOS, and only targets in a chunk's
     * second half scored; what is left of the text after the last whole chunk is dropped. */
    SCORE_LAST_HALF,
} ScoreMode;

typedef struct {
    double loss;                      /* nats a token */
    double perplexity, bits_per_byte; /* bits_per_byte: 0 where what was scored has no bytes (special tokens) */
    uint64_t tokens, bytes;           /* scored */
    double accuracy;                  /* share of tokens that are the model's first choice */
} LossResult;

/* `progress` (may be NULL) is told the tokens done. ERR_REFUSED where the loss is not finite, or nothing is scored. */
int eval_loss(Llama *model, const Tokenizer *tokenizer, const char *text, size_t size, int window, ScoreMode mode,
              void (*progress)(void *context, uint64_t done, uint64_t total), void *context, LossResult *result);

#endif
