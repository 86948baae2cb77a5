/* Text from a model: many prompts at once over one KV cache. Every step takes each active sequence's next piece, a
 * chunk of its prompt or the one token just sampled, into one flat batch; a sequence that ends gives its slot to the
 * next prompt. */
#ifndef CRIA_EVAL_GENERATOR_H
#define CRIA_EVAL_GENERATOR_H

#include "data/tokenizer/tokenizer.h"
#include "eval/sampler.h"
#include "model/llama.h"

typedef struct {
    int max_batch;    /* sequences at once */
    int max_sequence; /* tokens of prompt and continuation, at most; sizes the cache */
    bool keep; /* what is in the cache stays from run to run: a prompt that begins like what its slot held (slot 0 for
                  one prompt) is computed only from where they part: turns of a conversation */
} GeneratorOptions;

typedef struct Generator Generator;
int generator_new(Generator **generator, Llama *model, const Tokenizer *tokenizer, GeneratorOptions options);
void generator_free(Generator *generator);
size_t generator_computed(const Generator *generator); /* tokens put through the model so far */
size_t generator_bytes(const Generator *generator);    /* cache and activations */

typedef enum { FINISH_STOP_TOKEN, FINISH_STOP_TEXT, FINISH_LENGTH, FINISH_CONTEXT } FinishReason;

typedef struct {
    SamplerOptions sampler;
    int max_new_tokens;
    const char *const *stop; /* texts that end a continuation; they are not part of it */
    size_t n_stop;
    const int32_t *stop_tokens; /* that end it too */
    size_t n_stop_tokens;
    /* Streaming: called with each new piece of whole UTF-8 characters, never with part of a stop text. May be NULL. */
    int (*emit)(void *context, size_t prompt, const char *bytes, size_t n);
    void *context;
} GenerateOptions;

typedef struct {
    TokenList tokens; /* the continuation, without the stop token */
    char *text;       /* malloc'd, NUL-terminated; special tokens have none */
    size_t text_size;
    double logprob; /* sum over the continuation's tokens, stop token included */
    FinishReason reason;
} Generation;
void generation_free(Generation *generation);

/* Continues prompts[0…n): out[i] belongs to prompt i. A prompt must leave room for one token in max_sequence. An empty
 * one begins with BOS. */
int generator_run(Generator *generator, const TokenList *prompts, size_t n, const GenerateOptions *options,
                  Generation *out);

#endif
