/* From logits to tokens. The order of the filters is that of transformers' generate: repetition penalty, temperature,
 * top-k, top-p, min-p. A draw comes from Philox(seed, prompt, sample, position): no state, so the same seed gives the
 * same text whatever else is generated beside it. */
#ifndef CRIA_EVAL_SAMPLER_H
#define CRIA_EVAL_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    double temperature;        /* 0: the most probable token, the lowest id among equals */
    int top_k;                 /* 0: all */
    double top_p;              /* 1: all */
    double min_p;              /* 0: none */
    double repetition_penalty; /* 1: off */
    uint64_t seed;
    /* Which log-probability is recorded, always before any filter and penalty: that of the model's distribution
     * softmax(logits), or (true, and where the temperature is not 0) of softmax(logits / temperature), as TRL's PPO,
     * RLOO and GRPO have it: what op_head gives with logit_scale 1/temperature. */
    bool tempered_logprobs;
} SamplerOptions;

typedef struct Sampler Sampler;
int sampler_new(Sampler **sampler, int vocab_size, SamplerOptions options);
void sampler_free(Sampler *sampler);

typedef struct {
    const float *logits;    /* [vocab] */
    const int32_t *history; /* prompt and what was generated */
    size_t n_history;
    uint32_t prompt, sample; /* which sequence: the sample-th of the prompt-th prompt */
    uint64_t position;       /* of the token in it */
    double temperature;      /* as SamplerOptions has it, for this draw */
    int32_t token;           /* out */
    double logprob;          /* out */
} Draw;

/* The next token of each: all threads. ERR_REFUSED where a logit is NaN or +infinity, or none is finite. */
int sampler_draw(Sampler *sampler, Draw *draws, size_t n);

#endif
