/* A tokenizer as plain arrays, the way GGUF carries one: tokens as they are spelled, and either a score for each
 * (SentencePiece) or a list of merges (byte-level BPE). */
#ifndef CRIA_DATA_TOKENIZER_ARRAYS_H
#define CRIA_DATA_TOKENIZER_ARRAYS_H

#include "data/tokenizer/tokenizer.h"
#include "model/core/arena.h"

/* The numbers of SentencePiece's types, which GGUF has too. */
enum {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
};

typedef struct {
    const char *bytes; /* need not be NUL-terminated */
    size_t length;
} TokenText;

typedef struct {
    bool byte_level;         /* merges; else scores */
    const TokenText *tokens; /* "▁the", "<0x0A>"; byte-level: "Ġthe" */
    const int32_t *types;
    const float *scores; /* NULL where byte-level */
    size_t n;
    const TokenText *merges; /* "Ġ the", the first the sooner; NULL where not byte-level */
    size_t n_merges;
    const char *split_pattern;     /* byte-level: NULL where texts are not split */
    bool whole_words;              /* byte-level: a word that is a token is taken whole */
    bool space_prefix;             /* scores: a space is put in front */
    bool remove_extra_whitespaces; /* scores */
    int32_t bos, eos;              /* -1: none */
} TokenizerArrays;

/* The tokenizer they describe. Its source is a tokenizer.model (scores) or a tokenizer.json (merges) that says the
 * same.
 */
int tokenizer_from_arrays(Tokenizer **tokenizer, const TokenizerArrays *arrays);

/* The other way, allocated in the arena; unknown: the id of the unknown token, -1 for none. What cannot be said so is
 * refused: tables of replacements, tokens that no text leads to, tokens spelled alike. */
int tokenizer_to_arrays(const Tokenizer *tokenizer, Arena *arena, TokenizerArrays *arrays, int32_t *unknown);

#endif
