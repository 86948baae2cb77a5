/* The tokens of one source, made once and mapped from a file afterwards. */
#ifndef CRIA_DATA_CACHE_H
#define CRIA_DATA_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "data/encoder.h"
#include "data/loader.h"
#include "data/tokenizer/tokenizer.h"
#include "model/core/file.h"

typedef struct {
    FileMap map;
    const void *ids;       /* [n_tokens] of uint16_t, uint32_t or both an uint32_t and a float, in the file */
    const uint64_t *start; /* [n_documents + 1]: where each document's tokens begin, in the file */
    SampleKind samples;
    const uint64_t *second;  /* [n_documents]: where the second segment, or part, of each begins; NULL: none have one */
    const SampleMark *marks; /* [n_documents]; NULL: none have one */
    int bytes_per_id;        /* 2, 4, or 8: with a weight */
    int64_t n_documents, n_tokens, n_skipped;
    RecordCounts counts;  /* where an encoder made it; n_skipped is its RECORD_BAD */
    uint64_t fingerprint; /* of lengths and ids; the same wherever the source's files lie */
    bool was_built;       /* by this call; false: it was there */
} TokenCache;

typedef struct {
    const char *directory; /* made where absent */
    const char *name;      /* of the source, for file names and messages */
    const SourceOptions *source;
    const Tokenizer *tokenizer;
    int flags; /* TOKENIZE_BOS | TOKENIZE_EOS, of every document */
    bool fail_on_error;
} CacheOptions;

/* Opens the source's cache, building it where it is absent, older than its source, or damaged. Several processes may
 * do so at once: one builds, the others wait for it (where the file system has locks; else each builds the same). */
int token_cache_open(TokenCache *cache, const CacheOptions *options);
/* What a finished cache says of its size, without the checks that opening makes; *found is false where there is none
 * that was made for these options. Makes nothing. */
int token_cache_peek(bool *found, int64_t *n_documents, int64_t *n_tokens, const CacheOptions *options);
void token_cache_close(TokenCache *cache);

/* `n` ids from token `first` on; the caller has checked the range. */
void token_cache_read(const TokenCache *cache, int64_t first, int64_t n, int32_t *out);
/* The document that a token is in. */
int64_t token_cache_document(const TokenCache *cache, int64_t token);
/* The weights of the loss of predicting them; 1 where the cache has none. */
bool token_cache_has_weights(const TokenCache *cache);
void token_cache_weights(const TokenCache *cache, int64_t first, int64_t n, float *out);
double token_cache_weight_sum(const TokenCache *cache, int64_t first, int64_t n); /* in order, in fp64 */

#endif
