/* Text to token ids and back. One BPE engine serves SentencePiece BPE models (Llama 1 and 2), tiktoken ranks (Llama 3),
 * Hugging Face tokenizer.json of both kinds, llama2.c's tokenizer.bin, and plain bytes. A Tokenizer is immutable after
 * loading and may be used from several threads at once. */
#ifndef CRIA_DATA_TOKENIZER_H
#define CRIA_DATA_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Tokenizer Tokenizer;

typedef struct {
    int32_t *ids;
    size_t n, capacity;
} TokenList; /* {0} is empty; appended to; token_list_free */
void token_list_free(TokenList *list);
int token_list_append(TokenList *list, const int32_t *ids, size_t n);

/* Opens a tokenizer file, or the tokenizer inside a directory (tokenizer.json, tokenizer.model, …). The kind is
 * recognised from the contents. "bytes" names the built-in byte tokenizer: ids 0–255 are bytes, 256 BOS, 257 EOS. */
int tokenizer_load(Tokenizer **tokenizer, const char *path);
/* The same from memory; `name` is for messages and is the file's base name ("tokenizer.json", "bytes", …). */
int tokenizer_load_memory(Tokenizer **tokenizer, const char *name, const void *bytes, size_t size);
void tokenizer_free(Tokenizer *tokenizer);

/* What tokenizer_load_memory needs to make the same tokenizer again (a checkpoint stores this): owned by the tokenizer.
 */
const char *tokenizer_source_name(const Tokenizer *tokenizer);
const void *tokenizer_source(const Tokenizer *tokenizer, size_t *size);
uint64_t tokenizer_fingerprint(const Tokenizer *tokenizer); /* of the source bytes and name */
const char *tokenizer_kind(const Tokenizer *tokenizer);     /* "sentencepiece", "tiktoken", "byte-level", "bytes" */

/* Writes the files transformers wants (tokenizer.json, tokenizer.model where that was the source,
 * tokenizer_config.json, special_tokens_map.json) into a directory. */
int tokenizer_export(const Tokenizer *tokenizer, const char *directory);

/* A new tokenizer: the same, and n more special tokens with the next ids. The names must be new. */
int tokenizer_extend(Tokenizer **extended, const Tokenizer *tokenizer, const char *const *names, size_t n);

int tokenizer_vocab_size(const Tokenizer *tokenizer);
/* The first id of both that means different text; -1: none. */
int tokenizer_first_difference(const Tokenizer *a, const Tokenizer *b);
int32_t tokenizer_bos(const Tokenizer *tokenizer); /* -1 where there is none */
int32_t tokenizer_eos(const Tokenizer *tokenizer);
/* The id of a special (control) token by its exact text, e.g. "<|eot_id|>"; -1 where there is none. */
int32_t tokenizer_special(const Tokenizer *tokenizer, const char *text);
/* The text of a special token's id, NUL-terminated; NULL for any other id. Owned by the tokenizer. */
const char *tokenizer_name(const Tokenizer *tokenizer, int32_t id);

enum {
    TOKENIZE_BOS = 1,     /* begin with BOS */
    TOKENIZE_EOS = 2,     /* end with EOS */
    TOKENIZE_SPECIAL = 4, /* match special tokens' names in the text (never for a user's text) */
    /* The text is part of a longer one whose pieces are encoded apart: it follows a special token, or more text (then
     * SentencePiece's space in front of a text is not put there again). */
    TOKENIZE_AFTER_TOKEN = 8,
    TOKENIZE_AFTER_TEXT = 16,
};
/* Appends the ids of `text` to `out`. Cost at most n log n. One thread. */
int tokenizer_encode(const Tokenizer *tokenizer, const char *text, size_t size, int flags, TokenList *out);

/* The same for a thread that encodes many short texts one after another: words that came before are remembered. The
 * tokenizer must outlive it. */
typedef struct TextEncoder TextEncoder;
int text_encoder_new(TextEncoder **encoder, const Tokenizer *tokenizer);
void text_encoder_free(TextEncoder *encoder); /* may be NULL */
int text_encoder_encode(TextEncoder *encoder, const char *text, size_t size, int flags, TokenList *out);

/* Encodes many texts with all threads; out[i] as from tokenizer_encode. */
int tokenizer_encode_many(const Tokenizer *tokenizer, const char *const *texts, const size_t *sizes, size_t n,
                          int flags, TokenList *out);

/* malloc'd bytes of `n` ids, NUL-terminated; special tokens are written only when keep_special. Ids outside the
 * vocabulary are an error. */
int tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, size_t n, bool keep_special, char **text,
                     size_t *size);
/* The bytes of one id when it follows `previous` (-1: at the start); for streaming. Owned by the tokenizer. */
const char *tokenizer_piece(const Tokenizer *tokenizer, int32_t previous, int32_t id, size_t *size);

#endif
