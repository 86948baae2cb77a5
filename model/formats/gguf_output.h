/* The head of a GGUF file while it is made. */
#ifndef CRIA_FORMATS_GGUF_OUTPUT_H
#define CRIA_FORMATS_GGUF_OUTPUT_H

#include <stdbool.h>
#include <stdint.h>

#include "data/tokenizer/arrays.h"
#include "model/core/text.h"

typedef struct {
    Text values; /* metadata, as in the file */
    uint64_t n_values;
} GgufOutput; /* {0} is empty; whether memory sufficed is known from `values` */

void gguf_put_u32(Text *out, uint32_t value);
void gguf_put_u64(Text *out, uint64_t value);
void gguf_put_string(Text *out, const char *bytes, size_t length);

void gguf_put_value_u32(GgufOutput *out, const char *key, uint32_t value);
void gguf_put_value_f32(GgufOutput *out, const char *key, float value);
void gguf_put_value_bool(GgufOutput *out, const char *key, bool value);
void gguf_put_value_text(GgufOutput *out, const char *key, const char *value);
void gguf_put_texts(GgufOutput *out, const char *key, const TokenText *texts, size_t n);
void gguf_put_f32s(GgufOutput *out, const char *key, const float *values, size_t n);
void gguf_put_i32s(GgufOutput *out, const char *key, const int32_t *values, size_t n);

#endif
