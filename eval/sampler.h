/* From logits to a token. The order of the filters is that of transformers' generate: repetition penalty, temperature,
 * top-k, top-p, min-p. Draws come from Philox(seed, sample, position): no state, so the same seed gives the same text
 * whatever else is generated beside it. */
#ifndef CRIA_EVAL_SAMPLER_H
#define CRIA_EVAL_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    double temperature;        /* 0: the most probable token, the lowest id among equals */
    int top_k;                 /* 0: all */
    double top_p;              /* 1: all */
    double min_p;              /* 0: none */
    double repetition_penalty; /* 1: off */
    uint64_t seed;
} SamplerOptions;

typedef struct Sampler Sampler;
int sampler_new(Sampler **sampler, int vocab_size, SamplerOptions options);
void sampler_free(Sampler *sampler);

/* The next token after `history` (prompt and what was generated), from logits[vocab]. `sample` numbers the sequence,
 * `position` the token in it. *logprob (may be NULL) gets the token's log-probability before any filter. ERR_REFUSED
 * where a logit is NaN or +infinity, or none is finite. */
int sampler_next(Sampler *sampler, const float *logits, const int32_t *history, size_t n_history, uint64_t sample,
                 uint64_t position, int32_t *token, double *logprob);

#endif
