/* Shared by the two files that read a tokenizer.json. Everything in it is either understood or refused by its key. */
#ifndef CRIA_DATA_TOKENIZER_JSON_H
#define CRIA_DATA_TOKENIZER_JSON_H

#include <jansson.h>

#include "data/tokenizer/internal.h"

/* Refuses an object that has keys other than these (a NULL-terminated list). `path` names it in messages. */
int json_only_keys(const json_t *object, const char *path, const char *const *keys);
/* The string `object[key]`, or an error. */
int json_string_at(const json_t *object, const char *path, const char *key, const char **value);
/* object[key] as a flag; absent or null: `otherwise`. */
int json_flag_at(const json_t *object, const char *path, const char *key, bool otherwise, bool *value);

/* Reads normalizer, pre_tokenizer and decoder into the tokenizer's flags, normaliser and split pattern. Before the
 * vocabulary: it says how pieces are spelled. */
int tokenizer_json_pipeline(Tokenizer *t, const json_t *root);
/* Reads post_processor: which tokens begin and end a text. After the vocabulary. */
int tokenizer_json_template(Tokenizer *t, const json_t *root);

/* Appends a tokenizer.json that says the same as `t`. */
int tokenizer_to_json(const Tokenizer *t, Text *out);

/* "Ġthe" -> " the": byte-level tokens are spelled with a printable character for every byte. False where a character
 * stands for no byte. Appended to `out`. */
bool byte_level_unspell(const char *text, size_t length, Text *out);
/* The other way. */
void byte_level_spell(const char *bytes, size_t length, Text *out);

#endif
