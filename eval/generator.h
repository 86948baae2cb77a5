/* Text from a model: many prompts, and several samples of each, over one paged cache. Every step takes each active
 * sequence's newest token, and chunks of prompts that have just come in, into one flat batch (continuous batching: Yu
 * et al. 2022); a sequence that ends gives its slot to the next at once. A prompt is computed once, whatever the number
 * of its samples: they share its keys and values.
 *
 * A sample depends on the model, the options, its prompt, and the seed, its prompt's index and its own, but not on what
 * is computed beside it. In bf16 that holds bit for bit, as long as a row of a product does not depend on how many
 * there are: for every kernel set but amx, which multiplies one row by other instructions than several. In fp32 the
 * products are OpenBLAS's, which may add up one row in another order than several: log-probabilities then agree to
 * rounding (1e-5), and a text differs where two tokens are as close as that. */
#ifndef CRIA_EVAL_GENERATOR_H
#define CRIA_EVAL_GENERATOR_H

#include "data/tokenizer/tokenizer.h"
#include "eval/sampler.h"
#include "model/llama.h"

typedef struct {
    int max_batch;    /* sequences at once */
    int max_sequence; /* tokens of prompt and continuation, at most; sizes the cache */
    bool keep; /* what is in the cache stays from run to run: a prompt that begins like what a slot held is computed
                  only from where they part: turns of a conversation */
} GeneratorOptions;

/* Computes in llama_inference_dtype(model). */
typedef struct Generator Generator;
int generator_new(Generator **generator, Llama *model, const Tokenizer *tokenizer, GeneratorOptions options);
void generator_free(Generator *generator);
size_t generator_computed(const Generator *generator); /* tokens put through the model so far */
size_t generator_bytes(const Generator *generator);    /* cache and activations, at most */

typedef enum { FINISH_STOP_TOKEN, FINISH_STOP_TEXT, FINISH_LENGTH, FINISH_CONTEXT } FinishReason;
const char *finish_reason_name(FinishReason reason); /* "stop-token", … */

typedef struct {
    TokenList tokens; /* the continuation, without the stop token */
    float *logprobs;  /* [n_logprobs] of the tokens, as SamplerOptions says, and of the stop token where there is one */
    size_t n_logprobs;
    char *text; /* malloc'd, NUL-terminated; special tokens have none */
    size_t text_size;
    double logprob; /* Σ logprobs */
    FinishReason reason;
    int32_t stop_token; /* that ended it; -1: none */
} Generation;
void generation_free(Generation *generation);

typedef struct {
    SamplerOptions sampler;
    int max_new_tokens;
    int samples;           /* of each prompt; 0: 1 */
    double temperature_to; /* the samples' temperatures go in equal steps from the sampler's to this; 0: all the same */
    uint32_t first_prompt; /* draws take prompts[0] for this one: a long list in pieces is what it is in one */
    const char *const *stop; /* texts that end a continuation; they are not part of it */
    size_t n_stop;
    const int32_t *stop_tokens; /* that end it too */
    size_t n_stop_tokens;
    /* Streaming: called with each new piece of whole UTF-8 characters, never with part of a stop text; `sequence` is
     * prompt·samples + sample. May be NULL. */
    int (*emit)(void *context, size_t sequence, const char *bytes, size_t n);
    /* Called when a sequence is complete. May be NULL. */
    int (*finished)(void *context, size_t sequence, const Generation *generation);
    void *context;
} GenerateOptions;

/* The temperature of sample k. */
double generate_temperature(const GenerateOptions *options, int k);

/* Continues prompts[0…n): out[i·samples + k] is sample k of prompt i. A prompt must leave room for one token in
 * max_sequence. An empty one begins with BOS. */
int generator_run(Generator *generator, const TokenList *prompts, size_t n, const GenerateOptions *options,
                  Generation *out);

#endif
